"""One vocabulary for all modalities: where each tokenizer's own ids land in the model's embedding and output rows.

    TokenizerSpec per modality -> `Vocabulary`:  pad bos eos | begin, end per modality | text ids | codebooks per modality

Shards store each tokenizer's own ids (docs/architecture.md, idea 2); the ranges are laid out here, when training starts,
so that adding a modality re-encodes nothing. A document in sequence order is `bos`, then its spans, then `eos`: a text
span stands bare, any other stands between its `begin` and `end`. Continuous modalities have `begin` and `end` but no
range of ids: their positions hold `pad` and carry a latent vector. The markers belong to the text tower, as in BAGEL
(arXiv 2505.14683) and Chameleon (arXiv 2405.09818).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from motet.core.errors import UserError
from motet.tokenizers.contract import TokenizerSpec

TEXT = "text"


@dataclass(frozen=True)
class Vocabulary:
    """The model's ids, a pure function of the tokenizers' specs; use `Vocabulary.of`.

    Attributes:
        tokenizers: the spec of each modality; those of the checkpoint, once there is one.
    """

    tokenizers: Mapping[str, TokenizerSpec]

    pad: ClassVar[int] = 0
    bos: ClassVar[int] = 1
    eos: ClassVar[int] = 2

    @classmethod
    def of(cls, tokenizers: Mapping[str, TokenizerSpec]) -> Vocabulary:
        """The vocabulary of these tokenizers; UserError if two of them are continuous or text is."""
        continuous = sorted(m for m, spec in tokenizers.items() if spec.kind == "continuous")
        if len(continuous) > 1 or TEXT in continuous:
            raise UserError(f"data.paths: {', '.join(continuous)}: the trainer takes one continuous modality, not text")
        return cls(dict(tokenizers))

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Text first (it always is there, for the markers), then the others by name."""
        return (TEXT, *sorted(m for m in self.tokenizers if m != TEXT))

    @cached_property
    def begin(self) -> dict[str, int]:
        """The id that opens a span of each modality but text."""
        return {m: 3 + 2 * i for i, m in enumerate(self.modalities[1:])}

    @cached_property
    def end(self) -> dict[str, int]:
        """The id that closes a span of each modality but text."""
        return {m: i + 1 for m, i in self.begin.items()}

    @cached_property
    def base(self) -> dict[str, tuple[int, ...]]:
        """First id of each codebook of each modality; empty for a continuous one."""
        at, bases = 3 + 2 * (len(self.modalities) - 1), {}
        for modality in self.modalities:
            starts = []
            for size in self._codebooks(modality):
                starts.append(at)
                at += size
            bases[modality] = tuple(starts)
        return bases

    @cached_property
    def size(self) -> int:
        """How many ids there are: rows of the embedding and of the output head."""
        return 3 + 2 * (len(self.modalities) - 1) + sum(sum(self._codebooks(m)) for m in self.modalities)

    @cached_property
    def latent_modality(self) -> str | None:
        """The continuous modality, if there is one."""
        return next((m for m, spec in self.tokenizers.items() if spec.kind == "continuous"), None)

    @property
    def latent_dim(self) -> int:
        """Width of a latent vector; 0 without a continuous modality."""
        return self.tokenizers[self.latent_modality].latent_dim if self.latent_modality else 0

    def ids(self, modality: str, codes: np.ndarray) -> np.ndarray:
        """The tokenizer's own ids [n], the last axis of the grid being the codebook, as ids of the vocabulary: int64 [n]."""
        return np.asarray(codes, np.int64) + self._bases_at(modality, len(codes))

    def codes(self, modality: str, ids: np.ndarray) -> np.ndarray:
        """Inverse of `ids`: the tokenizer's own ids, int32 [n]."""
        return (np.asarray(ids, np.int64) - self._bases_at(modality, len(ids))).astype(np.int32)

    def check(self, tokenizers: Mapping[str, TokenizerSpec], where: str) -> None:
        """UserError if data encoded with `tokenizers` does not mean the same with this vocabulary."""
        for modality, spec in tokenizers.items():
            known = self.tokenizers.get(modality)
            if known is None:
                raise UserError(f"{where}: the model knows {', '.join(self.modalities)}, but the data holds {modality}")
            if known.hash != spec.hash:
                raise UserError(
                    f"{where}: {modality} was encoded by {spec.name} {spec.hash[:12]}, the model learnt "
                    f"{known.name} {known.hash[:12]}; tokenize with the model's own tokenizer"
                )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` reads it back."""
        return {"tokenizers": {m: spec.to_json() for m, spec in sorted(self.tokenizers.items())}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Inverse of `to_json`."""
        return cls.of({m: TokenizerSpec.from_json(spec) for m, spec in data["tokenizers"].items()})

    def _codebooks(self, modality: str) -> tuple[int, ...]:
        return self.tokenizers[modality].codebooks if modality in self.tokenizers else ()

    def _bases_at(self, modality: str, n: int) -> np.ndarray:
        bases = np.asarray(self.base[modality], np.int64)
        return bases[np.arange(n) % len(bases)]


@dataclass(frozen=True)
class Towers:
    """Which weights each modality uses.

    Attributes:
        names: the towers; `names[0]` is text's, and takes the markers and the padding too.
        of_modality: index into `names` for each of the vocabulary's `modalities`.
    """

    names: tuple[str, ...]
    of_modality: tuple[int, ...]

    @classmethod
    def of(cls, vocabulary: Vocabulary, mapping: Mapping[str, str]) -> Towers:
        """`mapping` (configuration `model.towers`) names a tower per modality; a modality left out has its own."""
        for modality in mapping:
            if modality not in vocabulary.modalities:
                known = ", ".join(vocabulary.modalities)
                raise UserError(f"model.towers: {modality}: the data has no such modality; it has {known}")
        tower = [mapping.get(m, m) for m in vocabulary.modalities]
        names = tuple(dict.fromkeys(tower))
        return cls(names, tuple(names.index(t) for t in tower))

    def __len__(self) -> int:
        return len(self.names)
