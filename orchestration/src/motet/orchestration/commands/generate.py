"""`motet generate`: text, pictures and speech from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    run: Annotated[Path, typer.Argument(help="A run folder, one of its checkpoints, or an exported model.")],
    out: Annotated[Path, typer.Option(help="File for the result; for several spans, or with --prompts, a folder.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="What to generate: text, image, speech; several in turn with commas; any: the model chooses."
        ),
    ] = None,
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
    guidance: Annotated[
        float, typer.Option(min=0, help="How much pictures and speech are to follow the prompt; 1 = no guidance.")
    ] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps for latents.")] = 50,
    seconds: Annotated[float, typer.Option(min=0.1, help="Speech lasts at most so long.")] = 4.0,
    words: Annotated[int, typer.Option(min=1, help="Text has at most so many tokens.")] = 64,
    spans: Annotated[int, typer.Option(min=1, help="With --to any: at most so many texts, pictures, ...")] = 4,
) -> None:
    """Generate from a trained model: a picture from a caption, a caption of a picture, speech from text.

    Examples: `motet generate run --text "a red apple" --to image --out apple.png`,
    `motet generate run --to text,image,speech --out story`, `motet generate run --prompts prompts.jsonl --out samples`
    """
    from motet.core import places
    from motet.core.errors import UserError

    if (prompts is None) == (to is None):
        raise UserError("generate: give either --to with a prompt, or --prompts with a file")
    if prompts is not None and (text or image or speech):
        raise UserError("generate: --prompts holds the prompts; leave --text, --image and --speech out")

    many = prompts is not None or "," in str(to) or to == "any"
    (places.folder if many else places.file)(out)

    from motet.trainer.generate.generator import Sampling
    from motet.trainer.use.media.samples import (
        ANY,
        Limits,
        Prompt,
        Sampler,
        modalities,
        read_prompts,
        write_page,
        write_spans,
    )
    from motet.trainer.use.trained import Trained

    wanted = (
        read_prompts(prompts) if prompts is not None else [Prompt(_parts(text, image, speech), modalities(str(to)))]
    )
    sampler = Sampler(Trained.open(run))
    if guidance != 1 and not sampler.trained.guidance_dropout:
        typer.echo("warning: this model was trained without data.guidance_dropout; guidance may do harm", err=True)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, steps=steps, guidance=guidance)
    drawn = sampler.draw(wanted, sampling, Limits(seconds, words, spans))
    first = drawn.samples[0]
    if prompts is not None:
        page = write_page(out, sampler, drawn.samples, sampling)
        typer.echo(f"wrote {len(drawn.samples)} samples and {page}")
    elif len(first.prompt.to) > 1 or first.prompt.to == (ANY,):
        for path in write_spans(out, sampler, first.results):
            typer.echo(f"wrote {path}")
    else:
        ((modality, data),) = first.results
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(data)
        if modality == "text":
            typer.echo(data.decode("utf-8", "replace"))
        typer.echo(f"wrote {out}")
    typer.echo(drawn.speed)


def _parts(text: str | None, image: Path | None, speech: Path | None) -> tuple[tuple[str, bytes], ...]:
    from motet.core.errors import UserError

    parts = [("text", text.encode())] if text else []
    for modality, path in (("image", image), ("speech", speech)):
        if path is not None:
            try:
                parts.append((modality, path.read_bytes()))
            except OSError as error:
                raise UserError(f"--{modality} {path}: {error.strerror}") from None
    return tuple(parts)
