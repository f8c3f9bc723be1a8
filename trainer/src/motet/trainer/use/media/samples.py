"""Samples from a trained model: raw prompts in, files a person can open out.

prompts (text, files) --the model's tokenizers--> spans --`Generator`--> tokens --decode, dump--> files, index.html
"""

from __future__ import annotations

import base64
import json
import math
import mimetypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader

from motet.core.errors import UserError
from motet.tokenizers.contract import BadSample, Tokenizer
from motet.trainer.generate.generator import Sampling, Span, Wanted
from motet.trainer.use.trained import Trained
from motet.trainer.vocabulary import TEXT

BATCH = 16
"""Prompts that are continued together."""
ANY = "any"
"""What is to follow is the model's choice."""

Media = tuple[str, bytes]
"""A modality, and a file's bytes."""


@dataclass(frozen=True)
class Prompt:
    """What comes before, and which modalities are to follow one after another; `(ANY,)`: the model chooses."""

    parts: tuple[Media, ...]
    to: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """Speech lasts at most `seconds`; text, and what has no rate, has at most `words` tokens; `ANY` gives at most `spans`."""

    seconds: float = 4.0
    words: int = 64
    spans: int = 4


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model made of it."""

    prompt: Prompt
    results: tuple[Media, ...]


@dataclass(frozen=True)
class Samples:
    """What was drawn, and how fast: `tokens` and calls for `denoising` in `seconds`, reading the prompts included."""

    samples: tuple[Sample, ...]
    tokens: int
    denoising: int
    seconds: float

    @property
    def speed(self) -> str:
        """The same for people."""
        calls = f" with {self.denoising} denoising calls" if self.denoising else ""
        rate = self.tokens / max(self.seconds, 1e-9)
        return f"drew {self.tokens:,} tokens{calls} in {self.seconds:.1f} s: {rate:,.0f} tokens/s"


class Sampler:
    """A trained model with its tokenizers."""

    def __init__(self, trained: Trained):
        self.trained, self.tokenizers, self.generator = trained, trained.tokenizers(), trained.generator()

    def draw(self, prompts: Sequence[Prompt], sampling: Sampling, limits: Limits) -> Samples:
        """One sample a prompt. UserError if a modality is unknown or a prompt too long."""
        wanted = {to: self._wanted(to, limits) for to in dict.fromkeys(prompt.to for prompt in prompts)}
        encoded = [self._encode(prompt) for prompt in prompts]
        results: dict[int, tuple[Media, ...]] = {}
        tokens, denoising, seconds = 0, 0, 0.0
        for to, asked in wanted.items():
            mine, together = [i for i, prompt in enumerate(prompts) if prompt.to == to], 1 if to == (ANY,) else BATCH
            for some in (mine[at : at + together] for at in range(0, len(mine), together)):
                begin = time.perf_counter()
                if to == (ANY,):
                    found = [self.generator.continue_freely(encoded[some[0]], asked, limits.spans, sampling)]
                else:
                    found = self.generator.interleave([encoded[i] for i in some], asked, sampling)
                seconds += time.perf_counter() - begin
                tokens += sum(len(span) for spans in found for _, span in spans)
                calls = min(sampling.steps, self.trained.objective.noise_steps)
                denoising += sum(calls for _, span in found[0] if span.latents is not None)  # for the whole batch
                results |= dict(zip(some, self._media(found), strict=True))
        samples = tuple(Sample(prompt, results[i]) for i, prompt in enumerate(prompts))
        return Samples(samples, tokens, denoising, seconds)

    def _wanted(self, to: tuple[str, ...], limits: Limits) -> list[Wanted]:
        """Pictures have the grid that their tokenizer makes; the rest ends by itself, or at a limit."""
        if any(one == other == TEXT for one, other in pairwise(to)):
            raise UserError(f"to: {','.join(to)}: two texts in a row are one text; ask for one, and for more words")
        found = []
        for modality in self.tokenizers if to == (ANY,) else to:
            if modality == ANY:
                raise UserError(f"to: {','.join(to)}: {ANY} stands alone")
            spec = self._tokenizer(modality, "to: ", f", and {ANY}").spec
            if spec.rate is None:
                found.append(Wanted(modality, limit=limits.words))
            elif modality == "image":
                side = math.isqrt(int(spec.rate))
                found.append(Wanted(modality, (side, side)))
            else:
                found.append(Wanted(modality, limit=max(round(limits.seconds * spec.rate), 1)))
        return found

    def _encode(self, prompt: Prompt) -> list[Span]:
        spans = []
        for modality, data in prompt.parts:
            tokenizer = self._tokenizer(modality, "prompt: ")
            try:
                spans.append((modality, tokenizer.encode([tokenizer.load(data)])[0]))
            except BadSample as bad:
                raise UserError(f"prompt: {modality}: {bad}; give another file") from None
        length = 1 + sum(len(tokens) + 2 * (modality != TEXT) for modality, tokens in spans)
        most = self.trained.sequence
        if length >= most:
            raise UserError(f"prompt: {length} tokens, but the model knows rows of {most} (data.sequence); shorten it")
        return spans

    def _media(self, found: Sequence[Sequence[Span]]) -> list[tuple[Media, ...]]:
        """Each prompt's spans as files; those of a modality are decoded together."""
        files: dict[tuple[int, int], Media] = {}
        for modality in dict.fromkeys(modality for spans in found for modality, _ in spans):
            tokenizer = self._tokenizer(modality)
            places = [(b, i) for b, spans in enumerate(found) for i, (m, _) in enumerate(spans) if m == modality]
            decoded = tokenizer.decode([found[b][i][1] for b, i in places])
            files |= {at: (modality, tokenizer.dump(sample)) for at, sample in zip(places, decoded, strict=True)}
        return [tuple(files[b, i] for i in range(len(spans))) for b, spans in enumerate(found)]

    def _tokenizer(self, modality: str, where: str = "", more: str = "") -> Tokenizer:
        if modality not in self.tokenizers:
            known = ", ".join(self.tokenizers)
            raise UserError(f"{where}{modality}: the model does not know it; it knows {known}{more}")
        return self.tokenizers[modality]

    def suffix(self, modality: str) -> str:
        """File name ending of a modality's media."""
        media_type = self._tokenizer(modality).spec.media_type.partition(";")[0]
        return mimetypes.guess_extension(media_type) or "." + media_type.rpartition("/")[2]


def modalities(to: str) -> tuple[str, ...]:
    """What is to follow, written with commas between."""
    return tuple(part.strip() for part in to.split(","))


def read_prompts(path: Path) -> list[Prompt]:
    """JSONL rows {"parts": [{"text": ...} | {"image": path}, ...], "to": "image"}; paths are relative to the file."""
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            parts = []
            for part in row["parts"]:
                ((modality, value),) = part.items()
                parts.append((modality, value.encode() if modality == "text" else (path.parent / value).read_bytes()))
            prompts.append(Prompt(tuple(parts), modalities(row["to"])))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            cure = 'rows are {"parts": [{"text": "..."}], "to": "image"}'
            raise UserError(f"--prompts {path}, line {number}: {error}; {cure}") from None
    return prompts


def write_spans(folder: Path, sampler: Sampler, results: Sequence[Media]) -> list[Path]:
    """Every span as a file in `folder`, numbered in reading order: 01-text.txt, 02-image.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (modality, data) in enumerate(results, 1):
        written.append(folder / f"{number:02d}-{modality}{sampler.suffix(modality)}")
        written[-1].write_bytes(data)
    return written


def write_page(folder: Path, sampler: Sampler, samples: Sequence[Sample], sampling: Sampling) -> Path:
    """Every sample in `folder`, as a file or as a folder of its spans, and index.html, which shows them beside their prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[dict[str, Any]]] = {}
    for i, sample in enumerate(samples):
        name = f"{i:03d}"
        if len(sample.prompt.to) == 1 and sample.prompt.to != (ANY,):
            ((modality, data),) = sample.results
            name += sampler.suffix(modality)
            (folder / name).write_bytes(data)
        else:
            write_spans(folder / name, sampler, sample.results)
        parts, results = (
            [_shown(sampler.tokenizers, modality, data) for modality, data in media]
            for media in (sample.prompt.parts, sample.results)
        )
        group = groups.setdefault(", ".join(sample.prompt.to), [])
        group.append({"parts": parts, "results": results, "file": name})
    loader = ChoiceLoader([PackageLoader("motet.trainer.use.media"), PackageLoader("motet.pipeline.dataset")])
    page = (
        Environment(loader=loader, autoescape=True)
        .get_template("samples.html")
        .render(
            title=f"{folder.name}: samples",
            name=folder.name,
            count=len(samples),
            step=sampler.trained.training and sampler.trained.training.state.step,
            seed=sampling.seed,
            temperature=sampling.temperature,
            guidance=sampling.guidance,
            groups=list(groups.items()),
        )
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    return folder / "index.html"


def _shown(tokenizers: Mapping[str, Tokenizer], modality: str, data: bytes) -> dict[str, str]:
    media_type = tokenizers[modality].spec.media_type
    kind = media_type.partition("/")[0]
    if kind == "text":
        return {"kind": kind, "text": data.decode("utf-8", "replace")}
    return {"kind": kind, "data": f"data:{media_type};base64,{base64.b64encode(data).decode()}"}
