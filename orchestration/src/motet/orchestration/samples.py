"""Samples from a trained model: raw prompts in, files a person can open out.

prompts (text, files) --tokenizers of the run's data--> spans --`Generator`--> tokens --decode, dump--> files, index.html
"""

from __future__ import annotations

import base64
import json
import math
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader

from motet.pipeline.dataset_tokenizers import dataset_tokenizers
from motet.pipeline.manifest import Manifest
from motet.tokenizers.contract import BadSample, Tokenizer, Tokens
from motet.tokenizers.errors import UserError
from motet.trainer.checkpoint import Trained, open_model
from motet.trainer.generate import Generator, Sampling

BATCH = 16
"""Prompts that are continued together."""


@dataclass(frozen=True)
class Prompt:
    """What comes before (modality, raw bytes), and which modality is to follow."""

    parts: tuple[tuple[str, bytes], ...]
    to: str


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model made of it, as a file's bytes."""

    prompt: Prompt
    data: bytes


class Sampler:
    """A run's newest checkpoint with the tokenizers of the data that it learnt."""

    def __init__(self, run: Path):
        self.trained: Trained = open_model(run)
        manifest = Manifest.load(self.trained.config.data.paths[0])
        self.tokenizers: dict[str, Tokenizer] = dataset_tokenizers(manifest)
        self.trained.vocabulary.check({m: t.spec for m, t in self.tokenizers.items()}, str(run))
        self.generator = Generator(
            self.trained.model, self.trained.vocabulary, self.trained.towers, self.trained.config.objective.noise_steps
        )

    def draw(self, prompts: Sequence[Prompt], sampling: Sampling, seconds: float, words: int) -> list[Sample]:
        """One sample a prompt; speech lasts at most `seconds`; text, and what has no rate, at most `words` tokens."""
        encoded = [self._encode(prompt) for prompt in prompts]
        samples: list[Sample | None] = [None] * len(prompts)
        for to in dict.fromkeys(prompt.to for prompt in prompts):
            size = self._size(to, seconds, words)
            mine = [i for i, prompt in enumerate(prompts) if prompt.to == to]
            for start in range(0, len(mine), BATCH):
                some = mine[start : start + BATCH]
                tokens = self.generator.continue_([encoded[i] for i in some], to, sampling=sampling, **size)
                for i, media in zip(some, self._files(to, tokens), strict=True):
                    samples[i] = Sample(prompts[i], media)
        return [sample for sample in samples if sample is not None]

    def _encode(self, prompt: Prompt) -> list[tuple[str, Tokens]]:
        spans = []
        for modality, data in prompt.parts:
            tokenizer = self._tokenizer(modality)
            try:
                spans.append((modality, tokenizer.encode([tokenizer.load(data)])[0]))
            except BadSample as bad:
                raise UserError(f"prompt: {modality}: {bad}; give another file") from None
        return spans

    def _files(self, modality: str, tokens: Sequence[Tokens]) -> list[bytes]:
        tokenizer = self._tokenizer(modality)
        return [tokenizer.dump(sample) for sample in tokenizer.decode(tokens)]

    def _tokenizer(self, modality: str) -> Tokenizer:
        if modality not in self.tokenizers:
            raise UserError(f"{modality}: the model does not know it; it knows {', '.join(self.tokenizers)}")
        return self.tokenizers[modality]

    def _size(self, modality: str, seconds: float, words: int) -> dict[str, Any]:
        """A picture has the grid that its tokenizer makes; the rest ends by itself, or at a limit."""
        spec = self._tokenizer(modality).spec
        if spec.rate is None:
            return {"limit": words}
        if modality == "image":
            side = math.isqrt(int(spec.rate))
            return {"shape": (side, side)}
        return {"limit": max(round(seconds * spec.rate), 1)}

    def suffix(self, modality: str) -> str:
        """File name ending of a modality's media."""
        media_type = self._tokenizer(modality).spec.media_type.partition(";")[0]
        return mimetypes.guess_extension(media_type) or "." + media_type.rpartition("/")[2]


def read_prompts(path: Path) -> list[Prompt]:
    """JSONL rows {"parts": [{"text": ...} | {"image": path}, ...], "to": modality}; paths are relative to the file."""
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
            prompts.append(Prompt(tuple(parts), row["to"]))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            cure = 'rows are {"parts": [{"text": "..."}], "to": "image"}'
            raise UserError(f"--prompts {path}, line {number}: {error}; {cure}") from None
    return prompts


def write_page(folder: Path, sampler: Sampler, samples: Sequence[Sample], sampling: Sampling) -> Path:
    """Every sample as a file in `folder`, and index.html, which shows them beside their prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[dict[str, Any]]] = {}
    for i, sample in enumerate(samples):
        name = f"{i:03d}{sampler.suffix(sample.prompt.to)}"
        (folder / name).write_bytes(sample.data)
        parts = [_shown(sampler.tokenizers, modality, data) for modality, data in sample.prompt.parts]
        result = _shown(sampler.tokenizers, sample.prompt.to, sample.data)
        groups.setdefault(sample.prompt.to, []).append({"parts": parts, "result": result, "file": name})
    loader = ChoiceLoader([PackageLoader("motet.orchestration"), PackageLoader("motet.pipeline")])
    page = (
        Environment(loader=loader, autoescape=True)
        .get_template("samples.html")
        .render(
            title=f"{folder.name}: samples",
            name=folder.name,
            count=len(samples),
            step=sampler.trained.state.step,
            seed=sampling.seed,
            temperature=sampling.temperature,
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
