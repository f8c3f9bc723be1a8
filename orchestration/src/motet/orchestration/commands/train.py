"""`motet upcycle`, `plan`, `train`, `why`, `evaluate` and `export`: shards to a model, what it saw, how good it is."""

from __future__ import annotations

import faulthandler
import json
from pathlib import Path
from typing import Annotated

import typer


def tell_of_crashes() -> None:
    """A signal that ends the process (SIGBUS: a shard was cut while it was read) first tells on stderr what was being done."""
    if not faulthandler.is_enabled():
        faulthandler.enable(2)


def train(
    config: Annotated[Path, typer.Argument(help="YAML file: data, model, objective, optimizer, steps.")],
    out: Annotated[Path, typer.Option(help="The run folder: checkpoints, metrics, the complete configuration.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: `path.to.field=value`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Train a model. The same command again goes on from the last checkpoint, exactly.

    Example: `motet train train.yaml --out run --set optimizer.lr=0.002`
    """
    from motet.core import places

    tell_of_crashes()
    places.folder(out)

    from motet.trainer.config import load
    from motet.trainer.run.launch import launch
    from motet.trainer.run.metrics import curves

    result = launch(load(config, set_ or []), out)
    if result["rank"]:  # of several processes that torchrun has started, the first one tells
        return 0 if result["finished"] else 130
    if result["finished"]:
        page = curves(out)
        if not as_json:
            typer.echo(f"{out}: {result['steps']} steps, {result['tokens']:,} tokens; loss curves in {page}")
    if as_json:
        typer.echo(json.dumps(result))
    return 0 if result["finished"] else 130


def plan(
    config: Annotated[Path, typer.Argument(help="The YAML file that `motet train` will get.")],
    steps: Annotated[int, typer.Option(min=1, help="Plan so many of the run's first steps.")] = 200,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: `path.to.field=value`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What a configuration will see: model size, mixture, padding, epochs of sources, balance of ranks; nothing is trained.

    Example: `motet plan train.yaml --set data.sequence=4096`
    """
    from motet.trainer.config import load
    from motet.trainer.use.plan import plan as foresee
    from motet.trainer.use.plan import tables

    found = foresee(load(config, set_ or []), steps)
    if as_json:
        typer.echo(json.dumps(found))
        return
    from rich.console import Console

    console = Console()
    console.print(
        f"{found['parameters'] / 1e6:,.1f} M parameters in the towers {', '.join(found['towers'])} and around them; "
        f"{found['active'] / 1e6:,.1f} M for any one token",
        highlight=False,
    )
    console.print(
        f"The first {found['steps']:,} steps: {found['tokens']:,} tokens, {found['padding']:.2%} padding; "
        f"the whole run, going on like that: {found['run_tokens']:,} tokens",
        highlight=False,
    )
    for table in tables(found):
        console.print(table)


def why(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    step: Annotated[int, typer.Argument(help="The step's number, from 0, as in metrics.jsonl.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """The samples that a training step learned from, and where they lie.

    Example: `motet why run 1200`
    """
    from motet.trainer.use.why import lines
    from motet.trainer.use.why import why as explain

    found = explain(run, step)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo("\n".join(lines(found)))


def upcycle(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a dense Hugging Face checkpoint: Llama, Mistral, Qwen3.")
    ],
) -> None:
    """What a train.yaml needs to start every tower from a dense model: its `start` and its `model` block.

    Example: `motet upcycle Llama-3.2-1B >> train.yaml`
    """
    import yaml

    from motet.trainer.model.llama import Dense

    settings = {"start": str(checkpoint), "model": Dense.open(checkpoint).settings}
    typer.echo(yaml.safe_dump(settings, sort_keys=False), nl=False)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="The new folder: weights, config.json and a card.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    llama: Annotated[bool, typer.Option("--llama", help="As transformers opens it: text models of one tower.")] = False,
) -> None:
    """Write a trained model for others: safetensors, a configuration and a card; opened without the trainer's extras.

    Example: `motet export run --out birds-1b --dtype bfloat16`
    """
    from motet.core import places
    from motet.core.errors import UserError

    places.folder(out)

    from motet.trainer.use.exported import DTYPES, export_llama
    from motet.trainer.use.exported import export as write
    from motet.trainer.use.trained import Trained

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: choose {' or '.join(DTYPES)}")
    written = (export_llama if llama else write)(Trained.open(run), out, dtype)
    typer.echo(f"wrote {written}" + ("" if llama else f"; see {written / 'README.md'}"))


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or one of its checkpoints.")],
    rows: Annotated[int, typer.Option(min=1, help="At most so many packed rows of held-out data.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Held-out losses by modality and source, beside the unigram entropy of the same tokens.

    Example: `motet evaluate run`
    """
    from motet.core.errors import UserError
    from motet.trainer.use.evaluate import evaluate as measure
    from motet.trainer.use.evaluate import source_table, table
    from motet.trainer.use.trained import Trained

    trained = Trained.open(run)
    lengths, reason = None, "a text tokenizer whose ids do not stand for bytes"
    try:
        lengths = trained.tokenizers(["text"])["text"].byte_lengths()
    except UserError as error:
        reason = str(error)
    found = measure(trained, rows, lengths)
    if as_json:
        typer.echo(json.dumps(found))
        return
    from rich.console import Console

    console = Console()
    console.print(table(found))
    if lengths is None:
        console.print(f"No bits per byte: {reason}", highlight=False)
    if len(found["sources"]) > 1:
        console.print(source_table(found))
