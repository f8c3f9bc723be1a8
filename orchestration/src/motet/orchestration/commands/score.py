"""`motet score` and `sheet`: what a trained model makes of held-out documents, in numbers and as one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="A run folder, or one of its checkpoints.")]
Seed = Annotated[int, typer.Option(help="Equal seeds draw equal samples.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest that make up this share.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps for latents.")]
Guidance = Annotated[float, typer.Option(min=0, help="How much media are to follow the prompt; 1 = no guidance.")]


def score(
    run: Run,
    to: Annotated[list[str] | None, typer.Option(help="What to generate: image, text, speech; default: all.")] = None,
    count: Annotated[int, typer.Option(min=4, help="At most so many held-out documents of a kind.")] = 256,
    seed: Seed = 0,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.95,
    steps: Steps = 50,
    guidance: Guidance = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Generate from held-out documents and judge it: distances of pictures, chrF, word errors, each beside real media's.

    Needs the extra `scores`. Example: `motet score run --to image --count 512`
    """
    from motet.core.errors import UserError
    from motet.trainer.generate.generator import Sampling
    from motet.trainer.use.media.score import TASKS, lines
    from motet.trainer.use.media.score import score as judge
    from motet.trainer.use.trained import Trained

    trained = Trained.open(run)
    known = trained.vocabulary.tokenizers
    wanted = to or [m for m in TASKS if m in known and (m != "text" or "image" in known)]
    if strange := [m for m in wanted if m not in TASKS]:
        raise UserError(f"--to {strange[0]}: nothing judges that; choose from {', '.join(TASKS)}")
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, steps=steps, guidance=guidance)
    found = judge(trained, wanted, count, sampling)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo("\n".join(lines(found)))


def sheet(
    run: Run,
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    count: Annotated[int, typer.Option(min=1, help="So many held-out captioned pictures.")] = 16,
    seed: Seed = 0,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.95,
    steps: Steps = 50,
    guidance: Guidance = 1.0,
) -> None:
    """Pictures from held-out captions and captions of held-out pictures, beside the real ones, with an honest label.

    Example: `motet sheet run --out sheet.png`
    """
    from motet.core import places

    places.file(out)

    from motet.trainer.generate.generator import Sampling
    from motet.trainer.use.media.sheet import write_sheet
    from motet.trainer.use.trained import Trained

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, steps=steps, guidance=guidance)
    write_sheet(Trained.open(run), out, count, sampling)
    typer.echo(f"wrote {out}")
