"""Exact histograms, which are wanted summed only: of one partition in its commit, of the whole dataset in the manifest.

    `Counts` --> Totals of a partition --`to_json`: packed--> its commit --`from_json`--> `Sums.add` --> manifest.json

A histogram is much larger than all else that is known of a shard (thousands of lengths, and as many counts as the
vocabulary has entries), so 100,000 of them would make a manifest of gigabytes. The manifest holds their sums, once.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

CODEC = pa.Codec("zstd", 1)
DENSE = 1 << 16
"""Lengths below this are summed in an array; the few longer ones in a dictionary."""


def pack(counts: np.ndarray) -> str:
    """Counts as text: `<bytes a count>x<how many>:<base64 of zstd of all lowest bytes, then all second bytes, ...>`.

    Few ids are very frequent, so that all but the lowest bytes are nearly all zero. Against zlib of 8-byte integers, the
    codes of a shard over a vocabulary of 131,072 take half of the room and an eighth of the time.
    """
    top = int(counts.max(initial=0))
    width = next(w for w in (1, 2, 4, 8) if top < 1 << (8 * w))
    planes = counts.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T.tobytes()
    return f"{width}x{len(counts)}:{base64.b64encode(CODEC.compress(planes, asbytes=True)).decode()}"


def unpack(text: str) -> np.ndarray:
    """Inverse of `pack`; ValueError if it is none."""
    head, _, data = text.partition(":")
    width, _, n = head.partition("x")
    if width not in ("1", "2", "4", "8"):
        raise ValueError(f"packed counts of {width[:8]!r} bytes")
    try:
        raw = CODEC.decompress(base64.b64decode(data, validate=True), int(width) * int(n), asbytes=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"packed counts: {error}") from None
    planes = np.frombuffer(raw, np.uint8).reshape(int(width), int(n))
    return np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(-1)


Histogram = tuple[np.ndarray, np.ndarray]
"""The lengths that occur, rising, and how often each does."""


def histogram(lengths: np.ndarray) -> Histogram:
    """Of the lengths of documents or spans."""
    return np.unique(lengths, return_counts=True)


def _pack_histogram(of: Histogram) -> str:
    """Differences of the lengths, then their counts: both small numbers."""
    return pack(np.concatenate((np.diff(of[0], prepend=0), of[1])))


def _unpack_histogram(text: str) -> Histogram:
    both = unpack(text).astype(np.int64)
    if len(both) % 2:
        raise ValueError("a histogram with a length and no count")
    return np.cumsum(both[: len(both) // 2]), both[len(both) // 2 :]


@dataclass
class Totals:
    """Exact histograms of one partition.

    Attributes:
        lengths: of documents, in tokens.
        span_lengths: of spans, by modality.
        codebooks: for each discrete modality that occurs, how often each id of each codebook does.
    """

    lengths: Histogram
    span_lengths: dict[str, Histogram]
    codebooks: dict[str, list[np.ndarray]]

    def same(self, other: Totals) -> bool:
        """Whether both say the same (another version of the compressor gives other bytes)."""
        mine, theirs = self._arrays(), other._arrays()
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine)

    def _arrays(self) -> dict[Any, np.ndarray]:
        spans = {("spans", m, i): part for m, h in self.span_lengths.items() for i, part in enumerate(h)}
        books = {("codebook", m, k): book for m, books in self.codebooks.items() for k, book in enumerate(books)}
        return {("lengths", 0): self.lengths[0], ("lengths", 1): self.lengths[1], **spans, **books}

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` reads it back."""
        return {
            "lengths": _pack_histogram(self.lengths),
            "span_lengths": {m: _pack_histogram(h) for m, h in sorted(self.span_lengths.items())},
            "codebooks": {m: [pack(book) for book in books] for m, books in sorted(self.codebooks.items())},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Totals:
        """Inverse of `to_json`."""
        return cls(
            _unpack_histogram(data["lengths"]),
            {m: _unpack_histogram(h) for m, h in data["span_lengths"].items()},
            {m: [unpack(book) for book in books] for m, books in data["codebooks"].items()},
        )


class _Sum:
    """A histogram that others are added to."""

    def __init__(self) -> None:
        self.dense, self.long = np.zeros(DENSE, np.int64), dict[int, int]()

    def add(self, other: Histogram) -> None:
        lengths, counts = other
        cut = int(np.searchsorted(lengths, DENSE))
        self.dense[lengths[:cut]] += counts[:cut]
        for length, count in zip(lengths[cut:].tolist(), counts[cut:].tolist(), strict=True):
            self.long[length] = self.long.get(length, 0) + count

    def counts(self) -> dict[int, int]:
        keys = np.flatnonzero(self.dense)
        found = dict(zip(keys.tolist(), self.dense[keys].tolist(), strict=True))
        return found | {length: count for length, count in sorted(self.long.items()) if count}


@dataclass
class Sums:
    """Histograms of a whole dataset, as the manifest holds them: lengths by source, codebooks once.

    They start empty; `add` takes the totals of each partition.
    """

    _lengths: dict[str, _Sum] = field(default_factory=dict)
    _spans: dict[str, dict[str, _Sum]] = field(default_factory=dict)
    _codebooks: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, source: str, totals: Totals) -> None:
        """Of one partition of `source`; ValueError if its codebooks have other sizes."""
        if len(totals.lengths[0]):
            self._lengths.setdefault(source, _Sum()).add(totals.lengths)
        for modality, lengths in totals.span_lengths.items():
            self._spans.setdefault(source, {}).setdefault(modality, _Sum()).add(lengths)
        for modality, books in totals.codebooks.items():
            known = self._codebooks.setdefault(modality, [np.zeros(len(book), np.int64) for book in books])
            for total, book in zip(known, books, strict=True):
                total += book

    @property
    def lengths(self) -> dict[str, dict[int, int]]:
        """How many documents of each source have exactly this many tokens."""
        return {source: counts for source, s in sorted(self._lengths.items()) if (counts := s.counts())}

    @property
    def span_lengths(self) -> dict[str, dict[str, dict[int, int]]]:
        """Likewise of spans, by source and modality."""
        found = {
            source: {m: counts for m, s in sorted(by.items()) if (counts := s.counts())}
            for source, by in sorted(self._spans.items())
        }
        return {source: by for source, by in found.items() if by}

    @property
    def codebooks(self) -> dict[str, list[list[int]]]:
        """How often each id of each codebook occurs; only modalities that do."""
        return {
            m: [book.tolist() for book in books]
            for m, books in sorted(self._codebooks.items())
            if any(book.any() for book in books)
        }
