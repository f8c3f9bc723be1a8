"""What there is to tell of a shard's documents: counted while it is written, and again by `motet verify`.

    documents, one at a time --`Counts.document`--> lists --every FLUSH tokens: numpy--> tokens, spans, `Totals`, `Sketch`, longest
    record batches of a file --`Counts.documents`, `.spans`, `.ids`------^

No Python object is made per token, and next to nothing is done per document: lengths, hashes and arrays of ids are
gathered, and counted a million tokens at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from motet.pipeline.dataset.shard import Document
from motet.pipeline.dataset.sketch import Sketch
from motet.pipeline.dataset.totals import Histogram, Totals, histogram

FLUSH = 1 << 19
"""Tokens (and, 64 times fewer, documents) that are gathered before they are counted: 2 MiB of ids."""
LONGEST = 3
ID = 16
"""Bytes of a sample id."""


class Counts:
    """Counts documents; `codebooks` are the sizes of each discrete modality's, as the shard's header has them."""

    def __init__(self, codebooks: Mapping[str, Sequence[int]]):
        self._sizes = {m: tuple(sizes) for m, sizes in codebooks.items() if sizes}
        self._languages: dict[str, list[int]] = {}
        self._unknown: dict[str, list[int]] = {}
        self._sketch = Sketch()
        self._longest: list[tuple[int, bytes]] = []
        self._books: dict[str, list[np.ndarray]] = {}
        self._document_lengths: list[Histogram] = []
        self._span_lengths: dict[str, list[Histogram]] = defaultdict(list)
        self._clear()

    def _clear(self) -> None:
        self._ids_of: dict[str, list[np.ndarray]] = defaultdict(list)
        self._spans_of: dict[str, list[int]] = defaultdict(list)
        self._lengths_of: list[int] = []
        self._samples_of: list[bytes] = []
        self._pending = 0

    def document(self, document: Document) -> None:
        """Count one document; its arrays are kept until the next count, and must not change."""
        length = 0
        for modality, span in document.spans:
            if span.ids is not None:
                n = len(span.ids)
                self._ids_of[modality].append(span.ids)
            else:
                n = len(span.latents)  # type: ignore[arg-type]
            self._spans_of[modality].append(n)
            length += n
            if span.characters:
                unknown = self._unknown.setdefault(modality, [0, 0])
                unknown[0] += span.unknown
                unknown[1] += span.characters
        self._lengths_of.append(length)
        self._samples_of.append(document.sample_id)
        if document.language:
            language = self._languages.setdefault(document.language, [0, 0])
            language[0] += 1
            language[1] += length
        self._pending += length + 64
        if self._pending >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        for modality, spans in self._spans_of.items():
            self.spans(modality, np.array(spans, np.int64))
        for modality, ids in self._ids_of.items():
            self.ids(modality, np.concatenate(ids))
        if self._lengths_of:
            self.documents(b"".join(self._samples_of), np.array(self._lengths_of, np.int64))
        self._clear()

    def documents(self, samples: bytes, length_D: np.ndarray) -> None:
        """Documents by their sample ids, 16 bytes each, and their lengths in tokens."""
        if not len(length_D):
            return
        half_D2 = np.frombuffer(samples, ">u8").reshape(-1, 2)
        self._sketch.add(half_D2[:, 0].astype(np.uint64))
        self._document_lengths.append(histogram(length_D))
        least = self._longest[-1][0] if len(self._longest) == LONGEST else 0
        least = max(least, int(np.partition(length_D, -LONGEST)[-LONGEST]) if len(length_D) > LONGEST else 0)
        at_D = np.flatnonzero(length_D >= least)
        found = {(int(length_D[i]), samples[ID * i : ID * i + ID]) for i in at_D.tolist()}
        self._longest = sorted(found | set(self._longest), key=lambda one: (-one[0], one[1]))[:LONGEST]

    def spans(self, modality: str, length_S: np.ndarray) -> None:
        """Spans of one modality by their lengths in tokens."""
        if len(length_S):
            self._span_lengths[modality].append(histogram(length_S))

    def ids(self, modality: str, id_T: np.ndarray) -> None:
        """Ids of one modality's whole spans, all within their codebooks."""
        sizes = self._sizes[modality]
        if len(id_T):
            books = self._books.setdefault(modality, [np.zeros(size, np.int64) for size in sizes])
            for k, size in enumerate(sizes):
                books[k] += np.bincount(id_T[k :: len(sizes)], minlength=size)

    @property
    def totals(self) -> Totals:
        """Exact histograms."""
        self._flush()
        spans = {m: _merged(parts) for m, parts in sorted(self._span_lengths.items())}
        return Totals(_merged(self._document_lengths), spans, dict(sorted(self._books.items())))

    @property
    def languages(self) -> dict[str, tuple[int, int]]:
        """(documents, tokens) of those whose source tells their language."""
        return {code: (n, tokens) for code, (n, tokens) in sorted(self._languages.items())}

    @property
    def unknown(self) -> dict[str, tuple[int, int]]:
        """(characters without a token, characters) by modality, where a vocabulary may lack some."""
        return {modality: (n, of) for modality, (n, of) in sorted(self._unknown.items())}

    def told(self) -> dict[str, Any]:
        """What the manifest's entry of the shard says of it, and a second count can say again: fields of `ShardEntry`."""
        totals = self.totals
        return {
            "tokens": {m: int(lengths @ counts) for m, (lengths, counts) in totals.span_lengths.items()},
            "spans": {m: int(counts.sum()) for m, (_, counts) in totals.span_lengths.items()},
            "sketch": self._sketch.hashes,
            "repeated": self._sketch.repeated,
            "longest": tuple((n, sample.hex()) for n, sample in self._longest),
        }


def _merged(parts: list[Histogram]) -> Histogram:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    lengths, of = np.unique(np.concatenate([lengths for lengths, _ in parts]), return_inverse=True)
    total = np.zeros(len(lengths), np.int64)
    np.add.at(total, of, np.concatenate([counts for _, counts in parts]))
    return lengths, total
