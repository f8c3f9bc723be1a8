"""`motet tokenize`: a corpus to shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def tokenize(
    config: Annotated[Path, typer.Argument(help="YAML file: corpus, tokenizers, limits.")],
    out: Annotated[Path, typer.Option(help="Folder of the token dataset.")],
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Who does the work.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes or Ray actors.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster (`auto`, `ray://host:10001`); none starts one here.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: `path.to.field=value`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Tokenize a corpus. The same command again does only what is missing or has changed.

    Example: `motet tokenize corpus.yaml --out tokens --workers 8`
    """
    from motet.pipeline.config import TokenizeConfig
    from motet.pipeline.job import tokenize_corpus
    from motet.tokenizers.configuration import load_config

    settings = load_config(config, TokenizeConfig, set_ or [])
    result = tokenize_corpus(settings, config.resolve().parent, out, engine, workers, address)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "out": str(out),
                    "partitions": result.partitions,
                    "partitions_done_now": result.done,
                    "documents": result.manifest.documents,
                    "rejected": result.rejected,
                    "rejects": result.manifest.rejects(),
                }
            )
        )
    else:
        typer.echo(
            f"{out}: {result.manifest.documents:,} documents, {result.rejected:,} samples rejected; "
            f"{result.done} of {result.partitions} partitions done now, the others were there"
        )
        for reason, count in result.manifest.rejects().items():
            typer.echo(f"  {reason}: {count:,}")
    if result.too_many_rejects:
        typer.echo(
            f"motet: {result.rejected:,} of {result.samples:,} samples were rejected, more than max_reject_fraction "
            f"{result.max_reject_fraction} allows; see {out / 'rejects.jsonl'}",
            err=True,
        )
        return 3
    return 0
