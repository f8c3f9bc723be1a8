"""`motet demo`: the bundled workflow, and a summary of what to open."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from motet.tokenizers.errors import UserError

WORKFLOW = "examples/demo/workflow.yaml"


def workflow_file() -> Path:
    """The demo's workflow, found from the working directory or from this file upwards; UserError outside a clone."""
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            if (folder / WORKFLOW).is_file():
                return folder / WORKFLOW
    raise UserError(f"motet demo: no {WORKFLOW} above {Path.cwd()}; run it in a clone of the repository")


def summary(out: Path) -> None:
    """What to open, how small the models are, and what to expect of them."""
    console = Console()
    console.rule("what came out")
    table = Table(box=None, pad_edge=False, show_header=False)
    for what, path in (
        ("the corpus as tokens: codes", "codes-stats.html"),
        ("the corpus as tokens: latents", "latents-stats.html"),
        ("documents decoded from their tokens", "codes-view.html"),
        ("loss curves, next token over codes (Chameleon)", "chameleon/curves.svg"),
        ("loss curves, next token and diffusion (Transfusion)", "transfusion/curves.svg"),
        ("pictures, captions and speech from codes", "samples-chameleon/index.html"),
        ("pictures and captions by diffusion", "samples-transfusion/index.html"),
    ):
        table.add_row(what, str(out / path))
    console.print(table)
    for name in ("chameleon", "transfusion"):
        rows = (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        tokens, steps = json.loads(rows[-1])["tokens"], len(rows)
        console.print(f"{name}: {steps} steps, {tokens:,} tokens")
    console.print(
        "\nThese models have a few million weights and have seen a few minutes of training: pictures come out as blobs of\n"
        "about the right colours, captions as fragments, speech as speech-like sound. What shows that every modality is\n"
        "learnt is the held-out loss beside the unigram entropy: [bold]motet evaluate[/] prints it, docs/demo.md explains it.\n"
        "The same command with your own corpus, your own tokenizers and more time gives a model worth the name."
    )
