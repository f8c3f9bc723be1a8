"""`motet run` and `motet demo`: the whole line as a workflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    context: typer.Context,
    workflow: Annotated[Path, typer.Argument(help="YAML file of steps.")],
    out: Annotated[Path, typer.Option(help="Folder that holds all outputs and the record of the steps.")],
) -> int:
    """Run a workflow of steps; what was done before, and has not changed, is not done again.

    Example: `motet run examples/demo/workflow.yaml --out demo`
    """
    from motet.orchestration.workflow import StepFailed, run_workflow

    try:
        states = run_workflow(workflow, out, context.find_root().command, lambda line: typer.secho(line, bold=True))
    except StepFailed as failed:
        typer.echo(f"motet: {failed}", err=True)
        return failed.code
    done = list(states.values()).count("done")
    typer.echo(f"{out}: {done} steps done, {len(states) - done} were done before")
    return 0


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
) -> int:
    """The whole line on the bundled corpus: tokenize, statistics, train, evaluate, generate. Needs only the repository.

    Example: `motet demo --out demo`
    """
    from motet.orchestration.demo import summary, workflow_file

    code = run(context, workflow_file(), out)
    if code == 0:
        summary(out)
    return code
