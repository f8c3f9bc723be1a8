"""`motet stats`, `view`, `verify`: what is in a token dataset, and whether it is sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

Dataset = Annotated[Path, typer.Argument(help="Folder that `motet tokenize` wrote.", metavar="DATASET")]


def stats(
    dataset: Dataset,
    sequence: Annotated[list[int] | None, typer.Option(min=8, help="Row lengths for packing efficiency.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page with plots here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Tokens by modality, source and language, lengths, duplicates, outliers, codebook use, rejects, packing; from the manifest alone.

    Example: `motet stats tokens --html stats.html --sequence 1024`
    """
    from motet.core import places
    from motet.pipeline.dataset.manifest import Manifest
    from motet.pipeline.dataset.statistics import statistics, table

    if html is not None:
        places.file(html, "--html")
    manifest = Manifest.load(dataset)
    found = statistics(manifest, tuple(sequence or (512, 2048, 4096)))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    elif html is None:
        from rich.console import Console

        Console().print(table(found))
    if html is not None:
        from motet.pipeline.dataset.stats_page import page

        _write(html, page(manifest, found), as_json)


def view(
    dataset: Dataset,
    samples: Annotated[list[str] | None, typer.Argument(help="Sample ids (hex), or how they begin.")] = None,
    html: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("view.html"),
    count: Annotated[int, typer.Option(min=1, help="How many documents, if no sample is named.")] = 24,
) -> None:
    """Documents as a person sees them: text, pictures and sound decoded back from their tokens.

    Example: `motet view tokens --count 40 --html view.html`, or `motet view tokens 3fa9c1`
    """
    from motet.core import places
    from motet.pipeline.dataset import view as viewer
    from motet.pipeline.dataset.manifest import Manifest
    from motet.pipeline.dataset.tokenizers import dataset_tokenizers

    places.file(html, "--html")
    manifest = Manifest.load(dataset)
    documents = viewer.pick(manifest, samples) if samples else viewer.spread(manifest, count)
    _write(html, viewer.page(manifest, documents, dataset_tokenizers(manifest)), False)


def verify(
    dataset: Dataset,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Shards checked at once.", show_default="all cores")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> int:
    """Check every hash and invariant; names the damaged places and exits with 1 if there are any.

    Example: `motet verify tokens`
    """
    from motet.pipeline.dataset.manifest import Manifest
    from motet.pipeline.dataset.verify import Verification, strangers
    from motet.pipeline.progress import shown

    manifest = Manifest.load(dataset)
    verification = Verification(manifest, workers)
    problems: list[str] = []

    def checked() -> Iterator[int]:
        for entry, found in verification.shards():
            problems.extend(found)
            yield entry.bytes

    for _ in shown(checked(), sum(entry.bytes for entry in manifest.shards), "B", "verify"):
        pass
    problems.extend(verification.whole())
    others = strangers(manifest)
    if as_json:
        typer.echo(json.dumps({"shards": len(manifest.shards), "problems": problems, "strangers": others}))
        return 1 if problems else 0
    for problem in problems:
        typer.echo(problem)
    for name in others:
        typer.echo(f"{name}: not in the manifest (harmless; `motet gc` removes it)")
    typer.echo(
        f"{len(manifest.shards)} shards, {len(problems)} problems"
        if problems
        else f"{len(manifest.shards)} shards, all sound"
    )
    return 1 if problems else 0


def _write(path: Path, text: str, quiet: bool) -> None:
    from motet.core.errors import UserError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {path}: cannot be written: {error.strerror}; choose another path") from None
    if not quiet:
        typer.echo(f"wrote {path}")
