"""`motet tokenize`: a corpus to shards."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from motet.core.urls import public


def tokenize(
    config: Annotated[Path, typer.Argument(help="YAML file: corpus, tokenizers, limits.")],
    extra: Annotated[
        list[str] | None, typer.Argument(help="After `--`: Beam's own options.", metavar="[-- OPTIONS]")
    ] = None,
    *,
    out: Annotated[str, typer.Option(help="Folder or URI (`s3://bucket/tokens`) of the token dataset.")],
    engine: Annotated[Literal["local", "ray", "beam"], typer.Option(help="Who does the work.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes, Ray actors or Beam workers.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster (`auto`, `ray://host:10001`); none starts one here.")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0.01, help="Ray: share of a GPU for each worker with a tokenizer on `cuda`.")
    ] = 1.0,
    retry_rejects: Annotated[
        bool, typer.Option("--retry-rejects", help="Do partitions with rejected samples again too.")
    ] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: `path.to.field=value`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Tokenize a corpus. The same command again does only what is missing or has changed.

    Example: `motet tokenize corpus.yaml --out tokens --workers 8`, or
    `motet tokenize corpus.yaml --out s3://bucket/tokens --engine beam -- --runner=FlinkRunner`
    """
    from motet.core.configuration import load_config
    from motet.pipeline.dataset.rejects import PASSING
    from motet.pipeline.dataset.unknown import unknown_lines
    from motet.pipeline.job.config import TokenizeConfig
    from motet.pipeline.job.engines import EngineOptions
    from motet.pipeline.job.job import tokenize_corpus
    from motet.pipeline.job.limits import AllRejected

    settings = load_config(config, TokenizeConfig, set_ or [])
    options = EngineOptions(address, gpus_per_worker, tuple(extra or ()))
    try:
        result = tokenize_corpus(settings, config.resolve().parent, out, engine, workers, options, retry_rejects)
    except AllRejected as error:
        typer.echo(f"motet: {error}; `motet rejects {shlex.quote(public(out))}` shows more", err=True)
        return 3
    out = public(out)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "out": out,
                    "partitions": result.partitions,
                    "partitions_done_now": result.done,
                    "documents": result.manifest.documents,
                    "rejected": result.rejected,
                    "rejects": result.manifest.rejects(),
                    "over_limit": list(result.over),
                    "left_out": {s: [row.to_json() for row in rows] for s, rows in result.manifest.left_out.items()},
                }
            )
        )
    else:
        typer.echo(
            f"{out}: {result.manifest.documents:,} documents, {result.rejected:,} samples rejected; "
            f"{result.done} of {result.partitions} partitions done now, the others were there"
        )
        for reason, count in result.manifest.rejects().items():
            typer.echo(
                f"  {reason}: {count:,}"
                + " (the same command with --retry-rejects tries these again)" * (reason in PASSING)
            )
        for source, rows in result.manifest.left_out.items():
            for row in rows:
                typer.echo(f"  left out of {source}: {row}")
    for line in unknown_lines(result.manifest):
        typer.echo(f"motet: {line}: the text tokenizer has no bytes to fall back on", err=True)
    if result.too_many_rejects and result.broken_files:
        typer.echo(
            f"motet: files that break off: {result.broken_files:,} (lost-rest); nobody knows how much of them is lost, so no "
            f"max_reject_fraction below 1 allows it; {out}/rejects says which: fetch them again, or leave them out of path",
            err=True,
        )
        return 3
    if result.too_many_rejects:
        sources = [f"{name} {lost:,} of {samples:,}" for name, (lost, samples) in result.over.items()]
        typer.echo(
            f"motet: {result.rejected:,} of {result.samples:,} samples were rejected ({', '.join(sources)}), more than "
            f"max_reject_fraction {result.max_reject_fraction} allows; `motet rejects {shlex.quote(out)}` shows them",
            err=True,
        )
        return 3
    return 0


def gc(
    dataset: Annotated[str, typer.Argument(help="Folder or URI that `motet tokenize` wrote.", metavar="DATASET")],
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Hours; by default 0 in a folder, 24 on an object store.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be deleted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Delete shards, rejects and commits that the dataset no longer stands on, and nothing else.

    Example: `motet gc tokens --dry-run`
    """
    from motet.pipeline.dataset.gc import collect, orphans
    from motet.pipeline.dataset.store import Folder, store_of

    store = store_of(dataset)
    hours = older_than if older_than is not None else 0.0 if isinstance(store, Folder) else 24.0
    found = orphans(store, hours) if dry_run else collect(store, hours)
    if as_json:
        typer.echo(json.dumps({"deleted": {} if dry_run else found.files, "orphans": found.files}))
        return
    if dry_run:
        for path in found.files:
            typer.echo(path)
    size = sum(found.files.values()) / 1e6
    typer.echo(f"{dataset}: {len(found.files):,} files, {size:,.1f} MB {'would be ' * dry_run}deleted")
    if found.unfinished:
        typer.echo(f"{found.unfinished:,} commits of an unfinished job are kept: `motet tokenize` goes on from them")
