"""Packed rows as pieces of documents: what an order says, what ranks share out, what batches are made of.

`Order` --outlines of documents, pieces of them row by row--> `Rows` --`taken`--> a rank's --`read`--> with their ids
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from motet.trainer.data.corpus import Corpus, Documents


class Piece(NamedTuple):
    """A stretch of one document in a row: its rendered tokens [begin, end); `flipped` turns its two spans round."""

    document: int
    begin: int
    end: int
    flipped: bool
    epoch: int


Row = tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows: pieces int64 [P, 5], the fields of `Piece`, those of a row together, and where each row starts in them [R + 1].

    `documents` is what the pieces count in; an `Order` gives their outlines, and `read` gives the rest.
    """

    documents: Documents
    piece_P5: np.ndarray
    start_R1: np.ndarray

    def __len__(self) -> int:
        return len(self.start_R1) - 1

    @classmethod
    def of(cls, documents: Documents, rows: Sequence[Sequence[Piece]]) -> Rows:
        """Inverse of `rows`."""
        pieces = [piece for row in rows for piece in row]
        piece_P5 = np.array(pieces, np.int64).reshape(-1, len(Piece._fields))
        return cls(documents, piece_P5, np.cumsum([0, *map(len, rows)]))

    @property
    def rows(self) -> list[Row]:
        """The same as tuples, to be looked at."""
        pieces = [Piece(d, b, e, bool(f), epoch) for d, b, e, f, epoch in self.piece_P5.tolist()]
        return [tuple(pieces[a:b]) for a, b in pairwise(self.start_R1.tolist())]

    @property
    def length_R(self) -> np.ndarray:
        """int64; tokens in each row."""
        before_P1 = np.concatenate(([0], np.cumsum(self.piece_P5[:, 2] - self.piece_P5[:, 1])))
        return np.diff(before_P1[self.start_R1])

    def taken(self, chosen: Sequence[int]) -> Rows:
        """These rows of them, in this order."""
        parts = [np.arange(self.start_R1[r], self.start_R1[r + 1]) for r in chosen]
        start_R1 = np.cumsum([0, *map(len, parts)])
        return Rows(self.documents, self.piece_P5[np.concatenate([np.empty(0, np.int64), *parts])], start_R1)

    def filled_up(self, rows: int) -> Rows:
        """The same with empty rows behind, to so many."""
        return Rows(self.documents, self.piece_P5, np.pad(self.start_R1, (0, rows - len(self)), "edge"))

    def read(self, corpus: Corpus) -> Rows:
        """The same with the ids and latents of the documents that stand in them. LostBatches as `Corpus.read`."""
        used_D, document_P = np.unique(self.piece_P5[:, 0], return_inverse=True)
        piece_P5 = self.piece_P5.copy()
        piece_P5[:, 0] = document_P
        return Rows(corpus.read(self.documents.number_D[used_D]), piece_P5, self.start_R1)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of several, one after another."""
        if len(parts) == 1:
            return parts[0]
        documents = np.cumsum([0, *(len(part.documents) for part in parts)]).tolist()
        pieces = np.cumsum([0, *(len(part.piece_P5) for part in parts)]).tolist()
        moved = [part.piece_P5 + np.array([d, 0, 0, 0, 0]) for part, d in zip(parts, documents, strict=False)]
        starts = [part.start_R1[1:] + p for part, p in zip(parts, pieces, strict=False)]
        return cls(
            Documents.joined([part.documents for part in parts]), np.concatenate(moved), np.concatenate([[0], *starts])
        )
