"""Token datasets as training sees them: documents by number, read when they are asked for.

    paths --`Corpus.open`--> split: train | heldout --order of an epoch--> `Corpus.read` --> `Documents`, a table in memory

A document is held out by the hash of its content, which stands in its sample id, so whoever reads it knows; nothing has to
be counted in advance. `Documents` holds a few thousand at a time: what rows are packed from and rendered of.

Letters: D documents of a table, S their spans, T their ids, V their latent vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from motet.tokenizers.contract import TokenizerSpec
from motet.trainer.data import columns, shuffle
from motet.trainer.data.records import Place, Records

Split = Literal["train", "heldout"]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Documents:
    """Some documents, read; or their outline, without ids and latents.

    Attributes:
        modalities: what `modality_S` indexes: text first, then the others by name.
        number_D: int64, in the corpus.
        sample_D2: uint64; the two halves of each document's sample id: hash of its content, hash of its place.
        source_D: int16, index into the corpus's sources.
        length_D: int64; rendered tokens, markers included.
        span_D, spans_D: int64; the document's first span, and how many it has.
        modality_S: uint8. length_S: int64, tokens. at_S: int64; where the span starts in `tokens_T` or `latents_VW`.
        height_S: int64; rows in the grid of a span given as latents.
        tokens_T: int64, the tokenizers' own ids. latents_VW: float16.
        continuous: whether each modality is given as latents.
    """

    modalities: tuple[str, ...]
    continuous: tuple[bool, ...]
    number_D: np.ndarray
    sample_D2: np.ndarray
    source_D: np.ndarray
    length_D: np.ndarray
    span_D: np.ndarray
    spans_D: np.ndarray
    modality_S: np.ndarray
    length_S: np.ndarray
    at_S: np.ndarray
    height_S: np.ndarray
    tokens_T: np.ndarray
    latents_VW: np.ndarray

    def __len__(self) -> int:
        return len(self.length_D)

    @cached_property
    def key_D(self) -> np.ndarray:
        """uint64: each document's identity, whatever else is in the corpus and wherever it stands in it."""
        return shuffle.scramble(np.ascontiguousarray(self.sample_D2[:, 0])) ^ self.sample_D2[:, 1]

    @cached_property
    def captioned_D(self) -> np.ndarray:
        """bool: documents of two spans, a text and then something else: those whose order may be turned round."""
        found_D = self.spans_D == 2
        first, text_S = self.span_D[found_D], self.modality_S == 0
        found_D[found_D] = text_S[first] & ~text_S[first + 1]
        return found_D

    @classmethod
    def joined(cls, tables: Sequence[Documents]) -> Documents:
        """Several outlines, one after another."""
        spans = np.cumsum([0, *(len(t.length_S) for t in tables[:-1])])
        of_documents = ("number_D", "sample_D2", "source_D", "length_D", "spans_D")
        columns = (*of_documents, "modality_S", "length_S", "at_S", "height_S")
        joined: dict[str, Any] = {name: np.concatenate([getattr(t, name) for t in tables]) for name in columns}
        joined["span_D"] = np.concatenate([t.span_D + s for t, s in zip(tables, spans, strict=True)])
        return replace(tables[0], **joined)


@dataclass(frozen=True, eq=False)
class Corpus:
    """The documents of one split of token datasets.

    Attributes:
        records: their record batches. split, holdout: which documents belong to it: see `belongs`.
    """

    records: Records
    split: Split | None = None
    holdout: float = 0.0

    @classmethod
    def open(cls, paths: Sequence[str], split: Split | None = None, holdout: float = 0.0) -> Corpus:
        """One split of the token datasets at `paths`; None: all of it."""
        return cls(Records.open(paths), split, holdout)

    @property
    def tokenizers(self) -> Mapping[str, TokenizerSpec]:
        """What encoded each modality."""
        return self.records.tokenizers

    @property
    def modalities(self) -> tuple[str, ...]:
        """Text first, then the others by name."""
        return self.records.modalities

    @property
    def sources(self) -> tuple[str, ...]:
        """Names, sorted."""
        return self.records.sources

    def belongs(self, hash_N: np.ndarray) -> np.ndarray:
        """bool: documents whose content hash, as a fraction of its range, lies under `holdout` are held out, others not.

        Equal content falls on the same side wherever it stands.
        """
        if self.split is None:
            return np.ones(len(hash_N), bool)
        under_N = hash_N < np.uint64(min(int(self.holdout * 2.0**64), 2**64 - 1))
        return under_N if self.split == "heldout" else ~under_N

    def survey(self, document_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which documents belong to this split (bool), and their rendered lengths (int64); LostBatches as in `read`."""
        known_PM, rule_M2 = self.records.known_PM, self.records.rule_M2
        id_N2, length_N, *_ = self._steadily(document_N, lambda place: columns.survey(*place[:4], known_PM, rule_M2))
        return self.belongs(id_N2[:, 0]), length_N

    def outline(self, document_N: np.ndarray) -> Documents:
        """These documents without ids and latents, whichever split they belong to; LostBatches as in `read`."""
        return self._steadily(document_N, lambda place: self._outline(document_N, place)[0])

    def read(self, document_N: np.ndarray) -> Documents:
        """These documents, whichever split they belong to; LostBatches names record batches that are not whole."""
        return self._steadily(document_N, lambda place: self._read(document_N, place))

    def _steadily(self, document_N: np.ndarray, work: Callable[[Place], T]) -> T:
        """What `work` makes of where documents lie, by shards that were not changed in their place while it did."""
        while True:
            place = self.records.touch(document_N)  # keeps in reach, until this returns, what the loops read
            found = work(place)
            if not place.moved():
                return found

    def _read(self, document_N: np.ndarray, place: Place) -> Documents:
        records = self.records
        documents, ids, latents = self._outline(document_N, place)
        tokens_T = np.empty(ids, np.int64)
        latents_VW = np.empty((latents, records.width), np.uint16)
        spans = documents.spans_D, documents.modality_S, documents.length_S, documents.at_S, documents.height_S
        columns.copy(
            *place[:4], records.rule_M2, records.wide_P, records.latent, records.width, *spans, tokens_T, latents_VW
        )
        return replace(documents, tokens_T=tokens_T, latents_VW=latents_VW.view(np.float16))

    def _outline(self, document_N: np.ndarray, place: Place) -> tuple[Documents, int, int]:
        """(the documents, how many ids, how many latents they have)."""
        records = self.records
        id_N2, length_N, spans_N, ids_N, latents_N = columns.survey(*place[:4], records.known_PM, records.rule_M2)
        modality_S, length_S = np.empty(spans := int(spans_N.sum()), np.uint8), np.empty(spans, np.int64)
        columns.outline(*place[:4], records.known_PM, records.rule_M2, modality_S, length_S)
        documents = Documents(
            modalities=self.modalities,
            continuous=tuple(i == records.latent for i in range(len(self.modalities))),
            number_D=document_N,
            sample_D2=id_N2,
            source_D=(np.searchsorted(records.begin, document_N, side="right") - 1).astype(np.int16),
            length_D=length_N,
            span_D=np.cumsum(spans_N) - spans_N,
            spans_D=spans_N,
            modality_S=modality_S,
            length_S=length_S,
            at_S=np.zeros(spans, np.int64),
            height_S=np.zeros(spans, np.int64),
            tokens_T=np.empty(0, np.int64),
            latents_VW=np.empty((0, records.width), np.float16),
        )
        return documents, int(ids_N.sum()), int(latents_N.sum())
