"""`motet generate`: text, pictures and speech from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    run: Annotated[Path, typer.Argument(help="A run folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="File for the result; with --prompts a folder.")],
    to: Annotated[str | None, typer.Option(help="What to generate: text, image, speech.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Prompt: text; parts stand in the order text, image, speech.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Prompt: a picture file.")] = None,
    speech: Annotated[Path | None, typer.Option(help="Prompt: a sound file.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of many prompts: {parts: [...], to: ...} a line.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds draw equal samples.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.9,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Draw among the likeliest that make up this share.")
    ] = 0.95,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps for latents.")] = 50,
    seconds: Annotated[float, typer.Option(min=0.1, help="Speech lasts at most so long.")] = 4.0,
    words: Annotated[int, typer.Option(min=1, help="Text has at most so many tokens.")] = 64,
) -> None:
    """Generate from a trained model: a picture from a caption, a caption of a picture, speech from text.

    Examples: `motet generate run --text "a red apple" --to image --out apple.png`,
    `motet generate run --prompts prompts.jsonl --out samples`
    """
    from motet.tokenizers.errors import UserError

    if (prompts is None) == (to is None):
        raise UserError("generate: give either --to with a prompt, or --prompts with a file")
    if prompts is not None and (text or image or speech):
        raise UserError("generate: --prompts holds the prompts; leave --text, --image and --speech out")

    from motet.orchestration.samples import Prompt, Sampler, read_prompts, write_page
    from motet.trainer.generate import Sampling

    wanted = read_prompts(prompts) if prompts is not None else [Prompt(_parts(text, image, speech), str(to))]
    sampler = Sampler(run)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, steps=steps)
    samples = sampler.draw(wanted, sampling, seconds, words)
    if prompts is not None:
        typer.echo(f"wrote {len(samples)} samples and {write_page(out, sampler, samples, sampling)}")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(samples[0].data)
    if to == "text":
        typer.echo(samples[0].data.decode("utf-8", "replace"))
    typer.echo(f"wrote {out}")


def _parts(text: str | None, image: Path | None, speech: Path | None) -> tuple[tuple[str, bytes], ...]:
    from motet.tokenizers.errors import UserError

    parts = [("text", text.encode())] if text else []
    for modality, path in (("image", image), ("speech", speech)):
        if path is not None:
            try:
                parts.append((modality, path.read_bytes()))
            except OSError as error:
                raise UserError(f"--{modality} {path}: {error.strerror}") from None
    return tuple(parts)
