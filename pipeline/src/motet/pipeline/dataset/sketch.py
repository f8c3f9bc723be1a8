"""How much of a corpus is duplicates, from a few hashes of every shard: bottom-k (KMV) sketches.

    content hashes of a shard --`Sketch.add`--> its K smallest distinct ones, with how many documents have each
    sketches of all shards --`duplicates`--> the documents that repeat another, exactly or as an estimate

A hash is uniform, so the smallest ones are a random sample of the *contents* of a shard, and the same content is in every
shard's sample or in none (Bar-Yossef et al. 2002, "Counting distinct elements in a data stream"; Cohen & Kaplan 2007,
"Summarizing data using bottom-k sketches"). Sketches merge: below the smallest of the largest kept hash of all shards that
had more than was kept, every shard kept all it had, so that the hashes there are a complete sample of the corpus by content.
The mean number of documents of a content in it estimates that of the corpus. Where no shard was cut, all is known exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

K = 64
HEX = 16
"""Hexadecimal digits of a content hash: the first half of a sample id."""


@dataclass(frozen=True)
class Duplicates:
    """Documents that repeat the content of another: `share` of all `documents`, `exact` or estimated from `hashes`."""

    documents: int
    share: float
    exact: bool
    hashes: int


class Sketch:
    """The K smallest distinct content hashes of what was added, with their counts."""

    def __init__(self) -> None:
        self._hashes, self._counts = np.empty(0, np.uint64), np.empty(0, np.int64)

    def add(self, hashes: np.ndarray) -> None:
        """Content hashes of documents, uint64."""
        if len(self._hashes) == K:
            hashes = hashes[hashes <= self._hashes[-1]]  # soon nearly none is left, and this is all the work
        if len(hashes):
            both = np.concatenate((self._hashes, hashes))
            weights = np.concatenate((self._counts, np.ones(len(hashes), np.int64)))
            found, of = np.unique(both, return_inverse=True)
            self._hashes, self._counts = found[:K], np.bincount(of, weights).astype(np.int64)[:K]

    @property
    def hashes(self) -> str:
        """The kept hashes, rising, 16 hexadecimal digits each."""
        return self._hashes.astype(">u8").tobytes().hex()

    @property
    def repeated(self) -> dict[str, int]:
        """How many documents have a kept hash, for those of more than one."""
        at = np.flatnonzero(self._counts > 1)
        return {f"{int(self._hashes[i]):016x}": int(self._counts[i]) for i in at}


def duplicates(sketches: Iterable[tuple[int, str, dict[str, int]]]) -> Duplicates:
    """Of (documents, kept hashes, repeated) of all shards."""
    parts, more, documents, cut = [], dict[str, int](), 0, []
    for rows, hashes, repeated in sketches:
        documents += rows
        parts.append(hashes)
        for key, count in repeated.items():
            more[key] = more.get(key, 0) + count - 1
        if len(hashes) // HEX + sum(repeated.values()) - len(repeated) < rows:
            cut.append(hashes[-HEX:])
    found = np.frombuffer(bytes.fromhex("".join(parts)), ">u8").astype(np.uint64)
    extra = np.array([int(key, 16) for key in more], np.uint64), np.array(list(more.values()), np.int64)
    if cut:
        # The largest kept hash itself belongs to the sample too: its count is complete, as that of all below it.
        limit = np.uint64(int(min(cut), 16))
        found = found[found <= limit]
        extra = extra[0][extra[0] <= limit], extra[1][extra[0] <= limit]
    total, distinct = len(found) + int(extra[1].sum()), _distinct(found)
    share = 1 - distinct / total if total else 0.0
    return Duplicates(round(share * documents), share, not cut, total)


def _distinct(values: np.ndarray) -> int:
    """How many different values there are; np.unique's hash table takes ten times as long for millions."""
    return int(np.count_nonzero(np.diff(np.sort(values)))) + bool(len(values))
