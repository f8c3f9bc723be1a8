"""The order of training as a pure function of (datasets, configuration, seed): which documents stand in which row.

    documents --formula: a keyed permutation per epoch--> --by token weights--> windows --best-fit packing--> rows --> global batches

Nothing here is state (DESIGN.md, section 2, idea 3): global batch k of any run follows from what the configuration says,
and is the same for every number of ranks. Only how many rows a window of documents fills is known by packing it, so what
goes before a window is summed up in a `Cursor`, of a few numbers: planning goes on from any of them at once.

**Shuffle.** Document i of an epoch is what a keyed permutation takes i to: nothing is sorted, no table is made.

**Mixture.** Without weights all sources go through their epochs together. With weights each window takes of each source
what brings its tokens nearest to its share of all tokens so far, so that a share is wrong by half a document at most.

**Packing.** The documents of a window fill rows of S tokens, longest first, each into the fullest row that still has
room (best fit decreasing), and the rows are shuffled.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from motet.tokenizers.configuration import UserError
from motet.tokenizers.contract import content_hash

from . import loops
from .corpus import Corpus, Documents, scramble

if TYPE_CHECKING:
    from .config import DataConfig

WINDOW_ROWS = 256
"""Rows that one packing window aims at: about half a row of them stays empty."""
KNOWN = 4096
"""Cursors that a plan remembers."""
ORDER_VERSION = 2
"""Part of the fingerprint: another value means that the same configuration gives another order."""


class Piece(NamedTuple):
    """A stretch of one document in a row: its rendered tokens [begin, end); `flipped` turns its two spans round."""

    document: int
    begin: int
    end: int
    flipped: bool
    epoch: int


Row = tuple[Piece, ...]


class Cursor(NamedTuple):
    """Where a window begins: its first row, and of each group of sources the positions and tokens taken before."""

    row: int
    taken: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows, and the documents that their pieces count in."""

    documents: Documents
    rows: list[Row]

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of several, one after another."""
        if len(parts) == 1:
            return parts[0]
        rows, before = [], 0
        for part in parts:
            rows += [tuple(p._replace(document=p.document + before) for p in row) for row in part.rows]
            before += len(part.documents)
        return cls(Documents.joined([part.documents for part in parts]), rows)


@dataclass(frozen=True, eq=False)
class Window:
    """Documents that are packed together: pieces int64 [P, 5] sorted by row, and where each row starts in them [R + 1]."""

    begin: Cursor
    end: Cursor
    documents: Documents
    pieces_P5: np.ndarray
    start_R1: np.ndarray

    def rows(self, begin: int, end: int) -> Rows:
        """Rows [begin, end) of the run, which all lie in this window."""
        found = []
        for row in range(begin - self.begin.row, end - self.begin.row):
            inside = self.pieces_P5[self.start_R1[row] : self.start_R1[row + 1]].tolist()
            found.append(tuple(Piece(d, b, e, bool(f), epoch) for d, b, e, f, epoch in inside))
        return Rows(self.documents, found)


@dataclass(frozen=True)
class _Group:
    """Sources that go through their epochs together: (number, first document, documents, positions) of each.

    Attributes:
        weight: its share of the tokens. tokens: the mean at a position, roughly.
    """

    sources: tuple[tuple[int, int, int, int], ...]
    weight: float
    tokens: float

    @property
    def positions(self) -> int:
        """Of one epoch."""
        return sum(positions for *_, positions in self.sources)


class Plan:
    """Rows of every step, for ever: when a source's documents are used up, its next epoch begins.

    Args:
        corpus: the documents.
        data: sequence length, weights of the sources, how captions stand, what becomes of long documents.
        rows: rows per global batch.
        seed: of every shuffle.
        epochs: None = for ever; else the plan ends after so many, and its last window is cut short.
    """

    def __init__(self, corpus: Corpus, data: DataConfig, rows: int, seed: int, epochs: int | None = None):
        self.corpus, self.data, self.rows, self.seed, self.epochs = corpus, data, rows, seed, epochs
        self._groups = _groups(corpus, data)
        self._window_tokens = max(WINDOW_ROWS, 2 * rows) * data.sequence
        nothing = (0,) * len(self._groups)
        self._known: tuple[Cursor, ...] = (Cursor(0, nothing, nothing),)  # replaced whole: several threads may plan
        self._window = lru_cache(maxsize=4)(self._pack)

    def rows_of(self, step: int) -> Rows:
        """The rows of global batch `step` (from 0)."""
        return self._rows_between(step * self.rows, (step + 1) * self.rows)

    def cursor(self, step: int) -> Cursor:
        """Where the window begins that global batch `step` begins in: what `remember` needs to plan from there on."""
        return self._window_at(step * self.rows).begin

    def remember(self, cursor: Cursor) -> None:
        """A cursor of this plan, from a checkpoint or a log: planning goes on from there, not from the beginning."""
        known = self._known
        if cursor not in known:
            self._known = (known[0], *sorted([*known[1:], cursor])[-KNOWN:])

    def windows(self) -> Iterator[Window]:
        """All windows, from the first on."""
        cursor = self._known[0]
        while len((window := self._window(cursor)).start_R1) > 1:
            yield window
            cursor = window.end

    def once(self) -> Iterator[Rows]:
        """One pass over the documents, whatever the weights, some rows at a time."""
        data = self.data.model_copy(update={"weights": {}})
        for window in Plan(self.corpus, data, self.rows, self.seed, epochs=1).windows():
            yield window.rows(window.begin.row, window.end.row)

    def padding(self, step: int) -> float:
        """Fraction of the positions of global batch `step` that hold no token."""
        used = sum(piece.end - piece.begin for row in self.rows_of(step).rows for piece in row)
        return 1 - used / (self.rows * self.data.sequence)

    @cached_property
    def fingerprint(self) -> str:
        """Training plans with equal fingerprints give the same rows: over datasets, settings of the data, rows and seed."""
        settings = self.data.model_dump(mode="json", exclude={"paths"})
        return content_hash(ORDER_VERSION, list(self.corpus.records.hashes), settings, self.rows, self.seed)

    def _rows_between(self, begin: int, end: int) -> Rows:
        parts = []
        while begin < end:
            window = self._window_at(begin)
            stop = min(end, window.end.row)
            parts.append(window.rows(begin, stop))
            begin = stop
        return Rows.joined(parts)

    def _window_at(self, row: int) -> Window:
        """The window that holds a row: found from the last known cursor before it."""
        known = self._known
        window = self._window(known[bisect_right(known, (row, (math.inf,))) - 1])
        while window.end.row <= row:
            self.remember(window.end)
            window = self._window(window.end)
        return window

    def _pack(self, begin: Cursor) -> Window:
        document_N, epoch_N, taken, tokens = self._due(begin)
        documents = self.corpus.read(document_N)
        pieces_P5 = self._pieces(documents, epoch_N)
        length_P = pieces_P5[:, 2] - pieces_P5[:, 1]
        row_P = loops.best_fit(length_P, self.data.sequence)
        # Packing opens rows with the longest documents first; a shuffle keeps early rows from being all of one kind.
        rows = int(row_P.max(initial=-1)) + 1
        place_R = np.argsort(scramble(np.arange(rows, dtype=np.uint64) ^ np.uint64(self._key("rows", begin.row))))
        place_R = np.argsort(place_R)
        order_P = np.argsort(place_R[row_P], kind="stable")
        start_R1 = np.concatenate(([0], np.cumsum(np.bincount(place_R[row_P], minlength=rows))))
        end = Cursor(begin.row + rows, taken, tokens)
        return Window(begin, end, documents, pieces_P5[order_P], start_R1)

    def _due(self, begin: Cursor) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], tuple[int, ...]]:
        """(documents, their epochs, positions and tokens taken with them) of the window that begins at a cursor."""
        total = sum(begin.tokens) + self._window_tokens
        documents, epochs, taken, tokens = [], [], list(begin.taken), list(begin.tokens)
        for g, group in enumerate(self._groups):
            document_N, epoch_N, taken[g], more = self._take(group, taken[g], group.weight * total - tokens[g])
            documents.append(document_N)
            epochs.append(epoch_N)
            tokens[g] += more
        return np.concatenate(documents), np.concatenate(epochs), tuple(taken), tuple(tokens)

    def _take(self, group: _Group, begin: int, wanted: float) -> tuple[np.ndarray, np.ndarray, int, int]:
        """(documents, epochs, position after them, tokens) of a group from position `begin` on: about `wanted` tokens."""
        taken: list[tuple[np.ndarray, ...]] = []
        last = math.inf if self.epochs is None else self.epochs * group.positions
        at, found = begin, 0
        while found < wanted and at < last:
            if at - begin > group.positions and not found:
                raise UserError(f"data.holdout: {self.corpus.holdout} leaves no document of a source; lower it")
            until = min(at + math.ceil((wanted - found) / group.tokens * 1.02) + 8, last)
            document_N, epoch_N, position_N = self._draw(group, at, int(until))
            keep_N, length_N = self.corpus.survey(document_N)
            if self.data.long == "truncate":
                length_N = np.minimum(length_N, self.data.sequence)
            taken.append(tuple(column[keep_N] for column in (document_N, epoch_N, position_N, length_N)))
            found += int(length_N[keep_N].sum())
            at = int(until)
        if not taken:
            return np.empty(0, np.int64), np.empty(0, np.int64), begin, 0
        document_N, epoch_N, position_N, length_N = (np.concatenate(columns) for columns in zip(*taken, strict=True))
        if found < wanted:
            return document_N, epoch_N, at, found
        # The document that reaches what is wanted is taken if that is nearer than to leave it, and those beside it.
        after_N = np.cumsum(length_N)
        n = int(np.searchsorted(after_N, wanted))
        n -= int(n > 0 and after_N[n] - wanted > wanted - after_N[n - 1])
        n = int(np.searchsorted(position_N, position_N[n], side="right"))
        return document_N[:n], epoch_N[:n], int(position_N[n - 1]) + 1, int(after_N[n - 1])

    def _draw(self, group: _Group, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(documents, epochs, positions) at the positions [begin, end) of a group, in order."""
        whole, found = group.positions, []
        for epoch in range(begin // whole, (end - 1) // whole + 1):
            since, until = max(begin - epoch * whole, 0), min(end - epoch * whole, whole)
            for source, first, documents, own in group.sources:
                a, b = since * own // whole, until * own // whole
                key = np.uint64(self._key("order", self.corpus.sources[source], epoch))
                document_N = loops.draw(a, b, documents, self.data.shuffle or 0, key)
                # Position p of the source is reached with the first position of the group whose share of it is over p.
                position_N = -(-(np.arange(a + 1, b + 1) * whole) // own) - 1 + epoch * whole
                here_N = document_N >= 0
                found.append((first + document_N[here_N], np.full(int(here_N.sum()), epoch), position_N[here_N]))
        document_N, epoch_N, position_N = (np.concatenate(columns) for columns in zip(*found, strict=True))
        order_N = np.argsort(position_N, kind="stable")
        return document_N[order_N], epoch_N[order_N], position_N[order_N]

    def _pieces(self, documents: Documents, epoch_D: np.ndarray) -> np.ndarray:
        """int64 [pieces, 5], the fields of `Piece`: documents turned round and cut to the row's length."""
        flipped_D = np.zeros(len(documents), bool)
        for epoch in np.unique(epoch_D):
            this_D = epoch_D == epoch
            chance_D = scramble(documents.key_D[this_D] ^ np.uint64(self._key("flip", int(epoch))))
            flipped_D[this_D] = (chance_D >> np.uint64(11)) * 2.0**-53 >= self.data.caption_first
        flipped_D &= documents.captioned_D
        length_D = documents.length_D
        number_D = np.arange(len(documents))
        whole_D = np.column_stack((number_D, np.zeros_like(length_D), length_D, flipped_D, epoch_D)).astype(np.int64)
        parts, at = [], 0
        for d in np.flatnonzero(length_D > self.data.sequence).tolist():
            cuts = self._cut(documents, d, bool(flipped_D[d]))
            part = np.repeat(whole_D[d : d + 1], len(cuts), axis=0)
            part[:, 1:3] = cuts
            parts += [whole_D[at:d], part]
            at = d + 1
        return np.concatenate([*parts, whole_D[at:]])

    def _cut(self, documents: Documents, d: int, flipped: bool) -> list[tuple[int, int]]:
        """Stretches of a long document that fit a row; a picture as latents, with its markers, is never cut."""
        sequence = self.data.sequence
        first = int(documents.span_D[d])
        spans = range(first, first + int(documents.spans_D[d]))
        pictures, at = [], 1
        for span in reversed(spans) if flipped else spans:
            modality = int(documents.modality_S[span])
            width = int(documents.length_S[span]) + (loops.MARKS if modality else 0)
            if documents.continuous[modality]:
                if (need := width + loops.MARKS) > sequence:
                    latents = width - loops.MARKS
                    raise UserError(
                        f"data.sequence: a picture of {latents} latents needs rows of {need} tokens or more"
                    )
                pictures.append((at, at + width))
            at += width
        length, begin, cuts = int(documents.length_D[d]), 0, []
        while begin < length:
            end = min(begin + sequence, length)
            end = next((start for start, stop in pictures if start < end < stop), end)
            cuts.append((begin, end))
            begin = end if self.data.long == "split" else length
        return cuts

    def _key(self, *parts: str | int) -> int:
        """A key of its own for each use of randomness."""
        return int(content_hash(self.seed, *parts)[:16], 16)


def _groups(corpus: Corpus, data: DataConfig) -> list[_Group]:
    """All sources together, or each with its weight."""
    records, sources = corpus.records, {}
    for s, name in enumerate(corpus.sources):
        first, end = records.begin[s : s + 2]
        if end > first:
            positions = -(-(end - first) // loops.BLOCK) * loops.BLOCK if data.shuffle else end - first
            sources[name] = (s, first, end - first, positions)

    def group(names: list[str], weight: float) -> _Group:
        chosen = tuple(sources[name] for name in names)
        tokens = sum(sum(records.tokens[name].values()) for name in names) + sum(n for _, _, n, _ in chosen)
        return _Group(chosen, weight, tokens / sum(p for *_, p in chosen))

    if not data.weights:
        return [group(list(sources), 1.0)]
    for name, weight in data.weights.items():
        if name not in corpus.sources:
            raise UserError(f"data.weights: {name}: the data has no such source; it has {', '.join(corpus.sources)}")
        if weight and name not in sources:
            raise UserError(f"data.weights: {name}: this source holds no document to train on; give it weight 0")
    for name in sources:
        if name not in data.weights:
            raise UserError(f"data.weights: source '{name}' has no weight; give it one (0 leaves it out)")
    total = sum(data.weights.values())
    if total <= 0:
        raise UserError("data.weights: weights must be 0 or more, and one of them more than 0")
    return [group([name], data.weights[name] / total) for name in sources if data.weights[name]]
