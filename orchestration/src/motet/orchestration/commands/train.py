"""`motet train` and `evaluate`: shards to a model, and how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML file: data, model, objective, optimizer, steps.")],
    out: Annotated[Path, typer.Option(help="The run folder: checkpoints, metrics, the complete configuration.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: `path.to.field=value`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Train a model. The same command again goes on from the last checkpoint, exactly.

    Example: `motet train train.yaml --out run --set optimizer.lr=0.002`
    """
    from motet.trainer.config import load
    from motet.trainer.launch import launch
    from motet.trainer.metrics import curves

    result = launch(load(config, set_ or []), out)
    if result["finished"]:
        page = curves(out)
        if not as_json:
            typer.echo(f"{out}: {result['steps']} steps, {result['tokens']:,} tokens; loss curves in {page}")
    if as_json:
        typer.echo(json.dumps(result))
    return 0 if result["finished"] else 130


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or one of its checkpoints.")],
    rows: Annotated[int, typer.Option(min=1, help="At most so many packed rows of held-out data.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Held-out losses by modality, beside the unigram entropy of the same tokens.

    Example: `motet evaluate run`
    """
    from motet.trainer.evaluate import evaluate as measure
    from motet.trainer.evaluate import table

    found = measure(run, rows)
    if as_json:
        typer.echo(json.dumps(found))
        return
    from rich.console import Console

    Console().print(table(found))
