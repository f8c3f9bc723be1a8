"""`motet tokenizer list|describe|fit|check`: tokenizers, built in and plugged in."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Tokenizers: list, describe, fit, check.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name from `motet tokenizer list`, or `module:Class`.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting of this tokenizer: `field=value`.")]
Samples = Annotated[Path, typer.Option(help="A folder of raw files, or a JSONL file with a `text` column.")]


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """All tokenizers that are installed; a broken one with its reason.

    Example: `motet tokenizer list`
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from motet.tokenizers.registry import available

    entries = available()
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries]))
        return
    table = Table("name", "brought by", "class", "state", box=None, pad_edge=False)
    for entry in entries:
        table.add_row(
            entry.name,
            entry.distribution,
            entry.target,
            "ready" if entry.reason is None else f"unavailable: {entry.reason}",
        )
    Console().print(table)


@app.command()
def describe(name: Name) -> None:
    """What a tokenizer is, every setting that it takes, and every option of fitting one.

    Example: `motet tokenizer describe vqgan`
    """
    from motet.core.described import described, prose
    from motet.tokenizers.registry import find

    kind = find(name)
    typer.echo(f"{name}: {kind.modality}\n\n{prose(kind)}")
    for title, model in (("settings", kind.Settings), (f"options of `motet tokenizer fit {name}`", kind.Fit)):
        if model is None:
            continue
        typer.echo(f"\n{title}:")
        for field in described(model):
            default = "required" if field.default is None else f"default {field.default}"
            typer.echo(f"  {field.name}: {field.kind}; {default}\n      {field.words}")


@app.command()
def fit(
    name: Name,
    samples: Samples,
    out: Annotated[Path, typer.Option(help="Folder that the fitted tokenizer is written into.")],
    set_: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
) -> None:
    """Fit a tokenizer on your own data. The folder is written when all is done; an interrupted fit leaves it as it was.

    Example: `motet tokenizer fit bpe --samples books.jsonl --out bpe --set vocabulary=32000`
    """
    from motet.tokenizers.registry import find

    _fitting(out)
    kind = find(name)
    progress = logging.getLogger("motet")  # a long fit says there how far it is
    progress.addHandler(logging.StreamHandler())
    progress.setLevel(logging.INFO)
    with _whole(out) as new:
        measured = kind.fit(_raw(samples), new, _settings(set_))
    if as_json:
        typer.echo(json.dumps(measured))
        return
    typer.echo(f"wrote {out}")
    for key, value in measured.items():
        typer.echo(f"  {key}: {value}")


@app.command()
def check(
    name: Name,
    samples: Samples,
    set_: Set = None,
    count: Annotated[int, typer.Option(min=1, help="How many of the samples are used.")] = 16,
) -> int:
    """Run the conformance kit on a tokenizer; exits with 1 if a check fails.

    Example: `motet tokenizer check melrvq --set path=melrvq --samples audio/talks`
    """
    from rich.console import Console
    from rich.table import Table

    from motet.tokenizers.conformance import check_settings

    report = check_settings({"use": name, **_settings(set_)}, Path.cwd(), _raw(samples)[:count])
    table = Table("", "check", "what was seen", box=None, pad_edge=False)
    for each in report.checks:
        table.add_row("[green]ok[/]" if each.passed else "[red]FAILED[/]", each.name, each.detail)
    Console().print(table)
    return 0 if report.passed else 1


def _fitting(out: Path) -> None:
    """UserError if `out` cannot be written, or holds something that is no tokenizer."""
    from motet.core import places
    from motet.core.errors import UserError

    places.folder(out)
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    if held and not held & {"config.json", "tokenizer.json"}:
        raise UserError(f"--out {out}: holds {min(held)}, but no tokenizer; choose an empty or a new folder")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A new folder beside `out`; what is in it replaces what is in `out` if nothing goes wrong, and is gone otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}"
    try:
        yield new
        out.mkdir(exist_ok=True)
        for file in sorted(
            new.iterdir(), key=lambda file: file.name == "config.json"
        ):  # that last: it says the rest is there
            if (out / file.name).is_dir():
                shutil.rmtree(out / file.name)
            os.replace(file, out / file.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _settings(overrides: Sequence[str] | None) -> dict[str, Any]:
    from motet.core.configuration import override
    from motet.core.errors import UserError

    settings: dict[str, Any] = {}
    for each in overrides or []:
        override(settings, each)
    if "use" in settings:
        raise UserError("--set use: the tokenizer is the verb's argument")
    return settings


def _raw(samples: Path) -> list[bytes]:
    """Raw files of a folder, in order of their names; or the texts of a JSONL file."""
    from motet.core.errors import UserError

    if samples.is_dir():
        skip = {".jsonl", ".json", ".md", ".py"}
        files = sorted(
            p for p in samples.rglob("*") if p.is_file() and p.suffix.lower() not in skip and p.name[0] != "."
        )
        found = [file.read_bytes() for file in files]
    elif samples.suffix == ".jsonl" and samples.is_file():
        with open(samples, encoding="utf-8") as lines:
            try:
                found = [json.loads(line)["text"].encode() for line in lines if line.strip()]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"--samples {samples}: a line is no JSON object with a 'text' string: {error}"
                ) from None
    elif samples.is_file():
        found = [samples.read_bytes()]
    else:
        raise UserError(f"--samples {samples}: no such file or folder")
    if not found:
        raise UserError(f"--samples {samples}: holds no files")
    return found
