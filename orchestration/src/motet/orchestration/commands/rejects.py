"""`motet rejects`: the samples that became no document, and why."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer


def rejects(
    dataset: Annotated[str, typer.Argument(help="Folder or URI that `motet tokenize` wrote.", metavar="DATASET")],
    source: Annotated[str | None, typer.Option(help="Only those of this source.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only those of this reason.")] = None,
    count: Annotated[
        int, typer.Option(min=0, help="Show at most so many, those of every source and reason in turn.")
    ] = 20,
    save: Annotated[
        Path | None, typer.Option(help="Write the bytes of those that are shown here; kept with `keep_rejected: true`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all as JSON lines, kept bytes as base64.")] = False,
) -> None:
    """Rejected samples: how many of which source and why, where they stand, and their bytes if these were kept.

    Example: `motet rejects tokens --reason truncated-image --count 5`
    """
    from motet.core.errors import UserError
    from motet.pipeline.dataset.quarantine import quarantine

    counts: Counter[tuple[str, str]] = Counter()
    shown: list[dict[str, Any]] = []
    for row in quarantine(dataset):
        if source not in (None, row["source"]) or reason not in (None, row["reason"]):
            continue
        if as_json:
            parts = [{**part, "bytes": base64.b64encode(part["bytes"]).decode()} for part in row["parts"] or ()]
            typer.echo(json.dumps({**row, "parts": parts if row["parts"] is not None else None}))
            continue
        kind = row["source"], row["reason"]
        if counts[kind] < count:
            shown.append({**row, "turn": counts[kind]})
        counts[kind] += 1
    if as_json:
        return
    if not counts:
        typer.echo(f"{dataset}: no sample was rejected" + " for that" * bool(source or reason))
        return
    shown = sorted(shown, key=lambda row: row["turn"])[:count]
    shown.sort(key=lambda row: (row["source"], row["reason"], row["turn"]))
    _tables(counts, shown)
    if save is not None:
        if not any(row["parts"] for row in shown):
            raise UserError(f"--save {save}: no bytes were kept; set keep_rejected: true and use --retry-rejects")
        _save(save, shown)


def _tables(counts: Counter[tuple[str, str]], shown: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from motet.pipeline.dataset.rejects import PASSING

    sums = Table(box=box.SIMPLE_HEAD, title=f"{counts.total():,} samples rejected")
    for head in ("source", "because", "samples"):
        sums.add_column(head, justify="right" if head == "samples" else "left")
    for (source, reason), n in sorted(counts.items()):
        sums.add_row(source, reason, f"{n:,}")
    console = Console()
    console.print(sums)
    if passing := sorted({reason for _, reason in counts} & PASSING):
        console.print(f"{', '.join(passing)}: the same `motet tokenize` with --retry-rejects tries these again")
    if not shown:
        return
    some = Table(box=box.SIMPLE_HEAD)
    for head in ("source", "where it stands", "because", "", "bytes kept"):
        some.add_column(head, overflow="fold", justify="right" if head == "bytes kept" else "left")
    for row in shown:
        size = sum(len(part["bytes"]) for part in row["parts"] or ())
        told = (row["source"], row["position"], row["reason"], row["detail"])
        some.add_row(*map(escape, map(_printable, told)), f"{size:,}" if row["parts"] else "")
    console.print(some)


def _printable(text: str) -> str:
    """What a hostile name or message may do to a terminal is shown as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _save(folder: Path, shown: list[dict[str, Any]]) -> None:
    from motet.core.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, row in enumerate(shown):
            for j, part in enumerate(row["parts"] or ()):
                name = f"{i:04d}-{row['source']}-{j}" + f"-{part['modality']}" * part["modality"].isalnum()
                (folder / name).write_bytes(part["bytes"])
    except OSError as error:
        raise UserError(f"--save {folder}: cannot be written: {error.strerror}; choose another path") from None
    typer.echo(f"wrote the bytes of {sum(bool(row['parts']) for row in shown)} samples to {folder}")
