"""A sample sheet: what a model makes of held-out captions and pictures, beside what is really there, as one PNG.

    held-out pairs --`follow`, both ways--> tokens --decode--> pictures, captions --`_grid`--> PNG under an honest label

The real pictures are decoded from their own tokens: better than that no model over these tokens can be.
"""

from __future__ import annotations

import dataclasses
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from motet.tokenizers.contract import Tokens
from motet.trainer.data.opened import Opened
from motet.trainer.generate.generator import Sampling
from motet.trainer.use.media.pairs import follow, heldout_pairs
from motet.trainer.use.media.samples import Sampler
from motet.trainer.use.trained import Trained

SIDE, GAP, LINE, COLUMNS = 112, 12, 15, 4
"""Pixels: a picture, the space around it, a line of text; examples in a row."""
CELL = 2 * SIDE + 2 * GAP
INK, SOFT, PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)
_SAID = {"top_p": "top-p", "steps": "denoising steps"}


@dataclass(frozen=True)
class _Example:
    """One cell: text above, and two pictures side by side or one with text beside it."""

    above: str
    pictures: tuple[Image.Image, ...]
    beside: tuple[str, ...] = ()


def write_sheet(trained: Trained, out: Path, count: int, sampling: Sampling) -> None:
    """Draw `count` pictures from captions and as many captions from pictures, and write the sheet to `out`, a PNG.

    UserError if the run knows no pictures, or no captioned one was held out.
    """
    sampler = Sampler(trained)
    pairs = heldout_pairs(sampler.trained, "image", count)
    texts = _texts(sampler, [pair.text for pair in pairs])
    real = _pictures(sampler, [pair.media for pair in pairs])
    drawn = _pictures(sampler, list(follow(sampler.generator, pairs, "image", sampling)))
    said = _texts(sampler, list(follow(sampler.generator, pairs, "text", sampling)))
    to_image = [_Example(text, (a, b)) for text, a, b in zip(texts, drawn, real, strict=True)]
    to_text = [_Example("", (b,), (f"says: {s}", f"true: {t}")) for b, s, t in zip(real, said, texts, strict=True)]
    parts = [
        _lines([label(sampler.trained, sampling, len(pairs))], SOFT),
        _title("Pictures from captions: left the model's, right the real one decoded from its own tokens"),
        _grid(to_image),
        _title("Captions of pictures: what the model says, and the true one"),
        _grid(to_text),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    _stacked(parts, GAP).quantize(192).save(out, "PNG", optimize=True)


def label(trained: Trained, sampling: Sampling, count: int) -> str:
    """What a reader has to know to judge samples: the model, what it learnt from, how they were drawn."""
    training = trained.of_run()
    config, state = training.config, training.state
    weights = sum(weight.numel() for weight in trained.model.parameters())
    records = Opened.of(config.data.unweighed, config.rows, config.seed).begun_with
    drawn = ", ".join(f"{_SAID.get(name, name)} {value:g}" for name, value in dataclasses.asdict(sampling).items())
    return (
        f"{config.objective.kind}, {weights / 1e6:.1f} million weights, {len(trained.towers)} towers of "
        f"{config.model.layers} layers and width {config.model.dim}; {state.step:,} steps, {state.tokens:,} tokens, "
        f"from {records.begin[-1]:,} documents ({', '.join(records.sources)}). Drawn, not selected: the first {count} of the "
        f"held-out documents ({100 * config.data.holdout:g} % of all, by content hash), one draw each: {drawn}."
    )


def _pictures(sampler: Sampler, tokens: Sequence[Tokens]) -> list[Image.Image]:
    tokenizer = sampler.tokenizers["image"]
    files = [tokenizer.dump(sample) for sample in tokenizer.decode(tokens)]
    return [
        Image.open(io.BytesIO(file)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS) for file in files
    ]


def _texts(sampler: Sampler, tokens: Sequence[Tokens]) -> list[str]:
    return [" ".join(text.split()) for text in sampler.tokenizers["text"].decode(tokens)]


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _title(text: str) -> Image.Image:
    return _lines([text], INK, 14)


def _lines(texts: Sequence[str], ink: tuple[int, int, int], size: int = 11, width: int = COLUMNS * CELL) -> Image.Image:
    """Text, wrapped to a width, with a little space above and below."""
    font = _font(size)
    room = int((width - GAP) / font.getlength("n"))
    lines = [line for text in texts for line in textwrap.wrap(text, room)[:8]]
    height = round(LINE * size / 11)
    made = Image.new("RGB", (width, height * len(lines) + GAP), PAPER)
    for n, line in enumerate(lines):
        ImageDraw.Draw(made).text((GAP // 2, GAP // 2 + n * height), line, ink, font)
    return made


def _grid(examples: Sequence[_Example]) -> Image.Image:
    return _stacked([_row(examples[at : at + COLUMNS]) for at in range(0, len(examples), COLUMNS)])


def _row(examples: Sequence[_Example]) -> Image.Image:
    above = [_lines([e.above], INK, width=CELL) for e in examples]
    beside = [_lines(e.beside, INK, width=SIDE + GAP) for e in examples]
    head, foot = max(part.height for part in above), max(SIDE, *(part.height for part in beside))
    made = Image.new("RGB", (COLUMNS * CELL, head + foot + GAP // 2), PAPER)
    for n, example in enumerate(examples):
        left = n * CELL
        made.paste(above[n], (left, head - above[n].height))
        for k, picture in enumerate(example.pictures):
            made.paste(picture, (left + GAP // 2 + k * (SIDE + GAP // 2), head))
        if example.beside:
            made.paste(beside[n], (left + SIDE + GAP, head))
    return made


def _stacked(parts: Sequence[Image.Image], below: int = 0) -> Image.Image:
    """Parts of one width, one under the other, with so much space below."""
    made = Image.new("RGB", (parts[0].width, sum(part.height for part in parts) + below), PAPER)
    top = 0
    for part in parts:
        made.paste(part, (0, top))
        top += part.height
    return made
