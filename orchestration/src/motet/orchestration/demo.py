"""`motet demo`: the bundled workflow, and a summary of what to open."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path

from safetensors import safe_open

from motet.core.errors import UserError

EXPECT = """\
These models are tiny and have read each picture a few times, in minutes. Pictures come out as blobs in the colours of emoji
and follow their caption at best by chance, captions are words and fragments, speech is speech-like sound without words.
What shows that every modality is being learnt is the held-out loss beside the unigram entropy, and the falling error of the
predicted noise: `motet evaluate` printed both above, docs/demo.md explains them. The same commands with your own corpus, better
tokenizers and more time give a model worth the name.\
"""
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
    lines = ["", "What to open:"]
    for what, path in (
        ("the corpus as tokens: codes", "codes-stats.html"),
        ("the corpus as tokens: latents", "latents-stats.html"),
        ("documents decoded from their tokens", "codes-view.html"),
        ("loss curves: next token over codes (Chameleon)", "chameleon/curves.svg"),
        ("loss curves: next token and diffusion (Transfusion)", "transfusion/curves.svg"),
        ("pictures from captions, captions, speech: from codes", "samples-chameleon/index.html"),
        ("the same with pictures by diffusion", "samples-transfusion/index.html"),
        ("sound spoken from text", "samples-chameleon/*.wav"),
    ):
        lines += [f"  {what:<53} {place}" for place in sorted(out.glob(path))]
    lines += ["", "The models:"]
    for name in ("chameleon", "transfusion"):
        rows = (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        lines.append(
            f"  {name}: {_weights(out / name):,} weights, {len(rows)} steps, {json.loads(rows[-1])['tokens']:,} tokens"
        )
    lines += ["", *textwrap.wrap(EXPECT, 100), ""]
    print("\n".join(lines))


def _weights(run: Path) -> int:
    """How many numbers the newest checkpoint's model has, read from the header of its safetensors file."""
    newest = sorted((run / "checkpoints").glob("step-*/model.safetensors"))[-1]
    with safe_open(newest, "numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
