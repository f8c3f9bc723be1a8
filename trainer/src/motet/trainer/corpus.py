"""Token datasets as one table of documents and one of spans, over memory-mapped shards.

    manifests --`Corpus.read`--> documents (source, id, length) and spans (modality, length, place) --`split`--> train | heldout

Every record batch is checked against the manifest's hash when it is first touched, here, so that a damaged shard stops
training by name before the first step. Tokens and latents stay in the mapped files; tables are numpy columns, filled a
record batch at a time.

Letters: D documents, S spans, K record batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa

from motet.pipeline.manifest import Manifest
from motet.tokenizers.configuration import UserError
from motet.tokenizers.contract import TokenizerSpec

from .vocabulary import TEXT

MARKS = 2
"""Markers round a document (bos, eos), and round a span that is not text (begin, end)."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents that training or evaluation reads; use `Corpus.open`.

    Attributes:
        tokenizers: what encoded each modality. modalities: text first, then the others by name.
        sources: names, sorted. shard_hashes: of all files, sorted: what the order of documents rests on.
        sample_D2: uint64; the two halves of each document's sample id: hash of its content, hash of its place.
        source_D: int16, index into `sources`.
        length_D: int64; rendered tokens, markers included.
        batch_D: int32; the record batch that holds the document.
        span_D, spans_D: int64, int32; the document's first span, and how many it has.
        modality_S: uint8, index into `modalities`. length_S: int64, tokens.
        at_S: int64; where the span starts in its record batch's `tokens_K` or `latents_K`.
        tokens_K: the discrete ids of each record batch, flat. latents_K: float16 [n, latent_dim]; both mapped.
    """

    tokenizers: Mapping[str, TokenizerSpec]
    modalities: tuple[str, ...]
    sources: tuple[str, ...]
    shard_hashes: tuple[str, ...]
    sample_D2: np.ndarray
    source_D: np.ndarray
    length_D: np.ndarray
    batch_D: np.ndarray
    span_D: np.ndarray
    spans_D: np.ndarray
    modality_S: np.ndarray
    length_S: np.ndarray
    at_S: np.ndarray
    tokens_K: tuple[np.ndarray, ...]
    latents_K: tuple[np.ndarray, ...]

    @classmethod
    def open(cls, paths: Sequence[str], split: Literal["train", "heldout"], holdout: float) -> Corpus:
        """One split of the token datasets at `paths`; DamagedShard names a shard whose bytes are not what was written."""
        return cls.read(paths).split(split, holdout)

    @classmethod
    def read(cls, paths: Sequence[str]) -> Corpus:
        """All documents of the token datasets at `paths`."""
        manifests = [Manifest.load(path) for path in paths]
        tokenizers = _agreed(paths, manifests)
        modalities = (TEXT, *sorted(m for m in tokenizers if m != TEXT))
        sources = tuple(sorted({source for manifest in manifests for source in manifest.sources}))
        shards = [(m, entry) for m in manifests for entry in m.shards if entry.file]  # none where all was rejected
        tables: list[dict[str, np.ndarray]] = []
        continuous = [m for m in modalities if _continuous(tokenizers, m)]
        for manifest, entry in shards:
            shard = manifest.open_shard(entry)
            known = np.array([modalities.index(m) for m in shard.header.modalities], np.uint8)
            for i in range(shard.num_batches):
                table = _table(shard.batch(i), known, continuous, modalities)
                table["source_D"] = np.full(len(table["length_D"]), sources.index(entry.source), np.int16)
                tables.append(table)
        if not any(len(table["length_S"]) for table in tables):
            raise UserError(f"data.paths: {', '.join(paths)}: holds no documents")
        sizes_K = np.array([len(table["length_D"]) for table in tables])
        columns = {name: np.concatenate([t[name] for t in tables]) for name in tables[0] if not name.endswith("_K")}
        spans_D = columns["spans_D"]
        return cls(
            tokenizers=tokenizers,
            modalities=modalities,
            sources=sources,
            shard_hashes=tuple(sorted(entry.hash for _, entry in shards)),
            batch_D=np.repeat(np.arange(len(tables), dtype=np.int32), sizes_K),
            span_D=np.cumsum(spans_D, dtype=np.int64) - spans_D,
            tokens_K=tuple(t["tokens_K"] for t in tables),
            latents_K=tuple(t["latents_K"] for t in tables),
            **columns,
        )

    def split(self, split: Literal["train", "heldout"], holdout: float) -> Corpus:
        """The documents whose content hash, as a fraction of its range, lies at or over `holdout`, or under it.

        Equal content falls on the same side wherever it stands.
        """
        under_D = self.sample_D2[:, 0] < np.uint64(min(int(holdout * 2.0**64), 2**64 - 1))
        keep_D = under_D if split == "heldout" else ~under_D
        if split == "train" and not keep_D.any():
            raise UserError(f"data.holdout: {holdout} leaves none of {len(self)} documents to train on; lower it")
        names = [f.name for f in dataclasses.fields(self) if f.name.endswith(("_D", "_D2"))]
        return dataclasses.replace(self, **{name: getattr(self, name)[keep_D] for name in names})

    def __len__(self) -> int:
        return len(self.length_D)

    @cached_property
    def key_D(self) -> np.ndarray:
        """uint64: each document's identity, whatever else is in the corpus and wherever it stands in it."""
        return scramble(self.sample_D2[:, 0]) ^ self.sample_D2[:, 1]

    @cached_property
    def captioned_D(self) -> np.ndarray:
        """bool: documents of two spans, a text and then something else: those whose order may be turned round."""
        two_D = self.spans_D == 2
        first_D = np.where(two_D, self.span_D, 0)
        text_S = self.modality_S == 0
        return two_D & text_S[first_D] & ~text_S[first_D + two_D]

    @cached_property
    def longest_latents(self) -> int:
        """Most latent vectors in one span: a picture is never cut, so a row must hold it."""
        latent_M = np.array([_continuous(self.tokenizers, m) for m in self.modalities])
        return int(self.length_S[latent_M[self.modality_S]].max(initial=0))


def scramble(words: np.ndarray) -> np.ndarray:
    """A one-to-one scrambling of uint64 (the finalizer of splitmix64): random bits that depend on the input alone."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _continuous(tokenizers: Mapping[str, TokenizerSpec], modality: str) -> bool:
    return modality in tokenizers and tokenizers[modality].kind == "continuous"


def _agreed(paths: Sequence[str], manifests: Sequence[Manifest]) -> dict[str, TokenizerSpec]:
    """The tokenizer of each modality; all datasets must have used the same."""
    agreed: dict[str, TokenizerSpec] = {}
    for path, manifest in zip(paths, manifests, strict=True):
        for modality, spec in manifest.tokenizers.items():
            if agreed.setdefault(modality, spec).hash != spec.hash:
                raise UserError(
                    f"data.paths: {path}: {modality} was encoded by {spec.name} {spec.hash[:12]}, in another dataset by "
                    f"{agreed[modality].name} {agreed[modality].hash[:12]}; tokenize both with one tokenizer"
                )
    return agreed


def _table(
    batch: pa.RecordBatch, known: np.ndarray, continuous: Sequence[str], modalities: Sequence[str]
) -> dict[str, np.ndarray]:
    """The columns of one record batch: D and S columns of `Corpus`, and its tokens and latents.

    `known` maps the shard's modality table to the corpus's.
    """
    rows = batch.num_rows
    sample = np.frombuffer(batch.column("sample_id").buffers()[1], ">u8", count=2 * rows)
    offset_D1 = batch.column("span_end").offsets.to_numpy()
    end_S = batch.column("span_end").values.to_numpy()
    modality_S = known[batch.column("span_modality").values.to_numpy()]

    begin_S = np.zeros_like(end_S)
    begin_S[1:] = end_S[:-1]
    begin_S[offset_D1[:-1][np.diff(offset_D1) > 0]] = 0
    length_S = (end_S - begin_S).astype(np.int64)
    latent_S = np.isin(modality_S, [modalities.index(m) for m in continuous])
    # Documents lie one after another in the flat tokens, and so do their latents.
    discrete_S, vectors_S = np.where(latent_S, 0, length_S), np.where(latent_S, length_S, 0)
    at_S = np.where(latent_S, np.cumsum(vectors_S) - vectors_S, np.cumsum(discrete_S) - discrete_S)

    rendered_S1 = np.concatenate(([0], np.cumsum(length_S + MARKS * (modality_S != 0))))
    has_latents = "latents" in batch.schema.names
    latents = batch.column("latents").values if has_latents else None
    return {
        "sample_D2": sample.reshape(rows, 2).astype(np.uint64),
        "length_D": np.diff(rendered_S1[offset_D1]) + MARKS,
        "spans_D": np.diff(offset_D1),
        "modality_S": modality_S,
        "length_S": length_S,
        "at_S": at_S,
        "tokens_K": batch.column("tokens").values.to_numpy(),
        "latents_K": latents.flatten().to_numpy().reshape(len(latents), -1)
        if latents
        else np.empty((0, 0), np.float16),
    }
