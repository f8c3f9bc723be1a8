"""What a tokenizer is: raw bytes -> sample -> tokens -> sample -> bytes.

A tokenizer of one modality goes four ways: `load` parses the raw bytes of one file into a sample (and refuses hostile
ones), `encode` turns a list of samples into tokens, `decode` turns tokens into samples, `dump` writes a sample as a
file a person can open. `spec` says what the tokens mean; it is stored in every shard, so that a shard can be read
without the tokenizer that wrote it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel

from motet.core.configuration import Settings
from motet.core.errors import UserError

LARGEST = 1 << 16
"""Values of a latent vector, and codebooks, that a tokenizer has at most."""


class BadSample(Exception):
    """One raw sample cannot become a document; it is quarantined and the job goes on.

    `reason` is a short fixed word in kebab-case (`truncated-image`), counted in the statistics; `detail` is free text.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class TokenizerSpec:
    """What the tokens of one tokenizer mean.

    Attributes:
        name: the tokenizer's name in the registry.
        modality: `text`, `image`, `speech`, or a new one that a plug-in brings.
        kind: `discrete` (ids of one or more codebooks) or `continuous` (latent vectors).
        codebooks: size of each codebook; id `i` of codebook `k` lies in `[0, codebooks[k])`. Empty if continuous.
        latent_dim: width of one latent vector; 0 if discrete.
        rate: positions per second (speech: frames), or positions per picture; None where it varies (text).
        media_type: what `dump` writes, as a MIME type.
        hash: content hash over everything that changes the output: weights, vocabulary, settings, never paths.
    """

    name: str
    modality: str
    kind: Literal["discrete", "continuous"]
    codebooks: tuple[int, ...]
    latent_dim: int
    rate: float | None
    media_type: str
    hash: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` reads it back."""
        return {**asdict(self), "codebooks": list(self.codebooks)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TokenizerSpec:
        """Inverse of `to_json`; ValueError for one that no tokenizer can have."""
        spec = cls(**{**data, "codebooks": tuple(data["codebooks"])})
        sizes = (*spec.codebooks, spec.latent_dim)
        if not all(type(size) is int for size in sizes) or not 0 <= spec.latent_dim <= LARGEST:
            raise ValueError(f"{spec.name}: codebooks {spec.codebooks!r:.80}, latent_dim {spec.latent_dim!r:.80}")
        if any(not 0 < size <= 1 << 31 for size in spec.codebooks) or len(spec.codebooks) > LARGEST:
            raise ValueError(f"{spec.name}: codebooks of {spec.codebooks!r:.80} ids")
        kinds = {"discrete": (True, False), "continuous": (False, True)}
        if kinds.get(spec.kind) != (bool(spec.codebooks), bool(spec.latent_dim)):
            raise ValueError(
                f"{spec.name}: {spec.kind!r:.40}, with {len(spec.codebooks)} codebooks and latents of {spec.latent_dim}"
            )
        return spec


@dataclass(frozen=True)
class Tokens:
    """One encoded sample: one span of a document.

    Attributes:
        shape: the grid in reading order: text `(n,)`, a picture `(rows, columns)`, speech `(frames, codebooks)`. With
            more than one codebook the last axis is the codebook. The number of tokens is the product.
        ids: int32, flat, `prod(shape)` long: each codebook's own ids; None if continuous.
        latents: float16 `[prod(shape), latent_dim]`; None if discrete.
        unknown, characters: of a text whose vocabulary may lack some characters, how many no token stands for, and all.
    """

    shape: tuple[int, ...]
    ids: np.ndarray | None = None
    latents: np.ndarray | None = None
    unknown: int = 0
    characters: int = 0

    def __len__(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Waveform:
    """Mono sound: `samples` float32 in [-1, 1], `rate` in Hz."""

    samples: np.ndarray
    rate: int


class Tokenizer(ABC):
    """Base class of all tokenizers, built in and plugged in.

    A subclass has `modality` and a pydantic `Settings` class, takes one `Settings` in its constructor, and sets `spec`. If it
    can be fitted, it overrides `fit`, and `Fit` are the options of that. The docstrings of both classes explain every field.
    Relative paths in settings have been made absolute before the constructor runs (fields of type `Path`, or named
    `path`). Encoding must be deterministic and must not depend on what else is in the batch.
    """

    modality: ClassVar[str]
    Settings: ClassVar[type[Settings]]
    Fit: ClassVar[type[BaseModel] | None] = None
    spec: TokenizerSpec

    @abstractmethod
    def load(self, data: bytes) -> Any:
        """Parse one raw file into a sample; raises BadSample for anything that is not a sound sample."""

    @abstractmethod
    def encode(self, samples: Sequence[Any]) -> list[Tokens]:
        """Tokens of each sample, in order; the result of a sample does not depend on its neighbours."""

    @abstractmethod
    def decode(self, tokens: Sequence[Tokens]) -> list[Any]:
        """Samples back from tokens: exactly for lossless tokenizers, as well as the codec can otherwise."""

    @abstractmethod
    def dump(self, sample: Any) -> bytes:
        """The sample as a file of type `spec.media_type`."""

    def byte_lengths(self) -> np.ndarray | None:
        """How many bytes of raw text each id stands for, int64 [ids]; None where an id does not stand for so many bytes."""
        return None

    @classmethod
    def fit(cls, samples: Sequence[bytes], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Fit a new tokenizer on raw files and write it into the folder `out`; returns what was measured.

        `settings` are the keyword options of this tokenizer's fit. Only what can be fitted overrides this; of the others
        it raises UserError.
        """
        raise UserError(f"{cls.__name__} cannot be fitted: give it weights by path or hub id")
