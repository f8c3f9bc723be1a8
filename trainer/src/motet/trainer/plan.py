"""The order of training as a pure function of (manifests, configuration, seed): which documents stand in which row.

    documents --shuffle per epoch and source--> --mix by token weights--> windows --best-fit packing--> rows --> global batches

Nothing here is state (DESIGN.md, section 2, idea 3): any step of any run is computed anew from what the configuration
says, and the same for every number of ranks.

**Mixture.** Each source is an endless sequence of shuffled epochs. A document that starts after `n` tokens of its
source is due at time `n / share`, and documents are taken in the order of their times: at every moment the source
furthest behind its share goes next, so that realised shares are within one document of what was asked. Time counts
tokens of all sources together, so the documents of a window of time follow from arithmetic and one search per source.

**Packing.** The documents of a window fill rows of S tokens, longest first, each into the fullest row that still has
room (best fit decreasing). With proportional weights an epoch is a whole number of windows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from motet.tokenizers.configuration import UserError
from motet.tokenizers.contract import content_hash

from .corpus import MARKS, Corpus, scramble

if TYPE_CHECKING:
    from .config import DataConfig

WINDOW_ROWS = 256
"""Rows that one packing window aims at: about half a row of them stays empty."""
ORDER_VERSION = 1
"""Part of the fingerprint: another value means that the same configuration gives another order."""


class Piece(NamedTuple):
    """A stretch of one document in a row: its rendered tokens [begin, end); `flipped` turns its two spans round."""

    document: int
    begin: int
    end: int
    flipped: bool
    epoch: int


Row = tuple[Piece, ...]


class Plan:
    """Rows of every step, for ever: when a source's documents are used up, its next epoch begins.

    Args:
        corpus: the documents.
        data: sequence length, weights of the sources, how captions stand, what becomes of long documents.
        rows: rows per global batch.
        seed: of every shuffle.
    """

    def __init__(self, corpus: Corpus, data: DataConfig, rows: int, seed: int):
        self.corpus, self.data, self.rows, self.seed = corpus, data, rows, seed
        need = corpus.longest_latents + 2 * MARKS
        if corpus.longest_latents and need > data.sequence:
            raise UserError(
                f"data.sequence: a picture of {need - 2 * MARKS} latents needs rows of {need} tokens or more"
            )
        cost_D = corpus.length_D if data.long == "split" else np.minimum(corpus.length_D, data.sequence)
        self._cost_D = cost_D
        weights = _weights(corpus, data)
        total = sum(int(cost_D[corpus.source_D == s].sum()) for s in weights)
        self._sources: list[tuple[int, np.ndarray, int, float]] = []  # index, documents, tokens, time of an epoch
        for s, weight in weights.items():
            document_N = np.flatnonzero(corpus.source_D == s)
            tokens = int(cost_D[document_N].sum())
            period = float(total) if weight is None else tokens / weight
            self._sources.append((s, document_N, tokens, period))
        self._windows = -(-total // (WINDOW_ROWS * data.sequence))
        self._total = total
        self._row_ends: list[int] = []
        self._window = lru_cache(maxsize=4)(self._pack)
        self._order = lru_cache(maxsize=2 * len(self._sources))(self._shuffle)

    def rows_of(self, step: int) -> list[Row]:
        """The rows of global batch `step` (from 0)."""
        return self._rows_between(step * self.rows, (step + 1) * self.rows)

    def once(self) -> Iterator[Row]:
        """One pass over the documents, if no weights were given: the rows of the first epoch."""
        for window in range(self._windows):
            first = self._row_end(window - 1)
            yield from self._rows_between(first, self._row_end(window))

    def padding(self, step: int) -> float:
        """Fraction of the positions of global batch `step` that hold no token."""
        used = sum(piece.end - piece.begin for row in self.rows_of(step) for piece in row)
        return 1 - used / (self.rows * self.data.sequence)

    @cached_property
    def fingerprint(self) -> str:
        """Training plans with equal fingerprints give the same rows: over shards, settings of the data, rows and seed."""
        settings = self.data.model_dump(mode="json", exclude={"paths"})
        return content_hash(ORDER_VERSION, list(self.corpus.shard_hashes), settings, self.rows, self.seed)

    def _rows_between(self, begin: int, end: int) -> list[Row]:
        self._row_end_until(end)
        rows: list[Row] = []
        while begin < end:
            window = bisect_right(self._row_ends, begin)
            first = self._row_end(window - 1)
            stop = min(end, self._row_ends[window])
            pieces_P5, start_R1 = self._window(window)
            for row in range(begin - first, stop - first):
                inside = pieces_P5[start_R1[row] : start_R1[row + 1]].tolist()
                rows.append(tuple(Piece(d, b, e, bool(f), epoch) for d, b, e, f, epoch in inside))
            begin = stop
        return rows

    def _row_end_until(self, end: int) -> None:
        """Pack windows until `end` rows are known; how many rows a window fills is only known by packing it."""
        while not self._row_ends or self._row_ends[-1] < end:
            self._row_end(len(self._row_ends))

    def _row_end(self, window: int) -> int:
        """Rows in the windows up to this one."""
        while len(self._row_ends) <= window:
            before = self._row_ends[-1] if self._row_ends else 0
            self._row_ends.append(before + len(self._window(len(self._row_ends))[1]) - 1)
        return self._row_ends[window] if window >= 0 else 0

    def _pack(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [pieces, 5] sorted by row, where each row starts [rows + 1]) of a window."""
        pieces_P5 = self._pieces(*self._due(window))
        length_P = pieces_P5[:, 2] - pieces_P5[:, 1]
        row_P = best_fit(length_P, self.data.sequence)
        # Packing opens rows with the longest documents first; a shuffle keeps early rows from being all of one kind.
        rows = int(row_P.max(initial=-1)) + 1
        place_R = np.argsort(scramble(np.arange(rows, dtype=np.uint64) ^ self._key("rows", window)))
        order_P = np.argsort(place_R[row_P], kind="stable")
        return pieces_P5[order_P], np.concatenate(([0], np.cumsum(np.bincount(place_R[row_P], minlength=rows))))

    def _due(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents and their epochs that are due in a window of time, in order."""
        start, stop = self._start(window), self._start(window + 1)
        times, documents, epochs = [], [], []
        for source, _, tokens, period in self._sources:
            for epoch in range(int(start // period), int(stop // period) + 1):
                order_N, before_N = self._order(source, epoch)
                due_N = before_N * (period / tokens)
                since = np.searchsorted(due_N, start - epoch * period) if epoch == start // period else 0
                until = np.searchsorted(due_N, stop - epoch * period) if epoch == stop // period else len(order_N)
                times.append(epoch * period + due_N[since:until])
                documents.append(order_N[since:until])
                epochs.append(np.full(until - since, epoch))
        order = np.argsort(np.concatenate(times), kind="stable")
        return np.concatenate(documents)[order], np.concatenate(epochs)[order]

    def _start(self, window: int) -> float:
        """When a window begins, exact where an epoch does."""
        epoch, within = divmod(window, self._windows)
        return self._total * epoch + self._total * within / self._windows

    def _shuffle(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """A source's documents in the order of this epoch, and the tokens that stand before each."""
        document_N = next(documents for s, documents, _, _ in self._sources if s == source)
        key = self._key("order", self.corpus.sources[source], epoch)
        order_N = document_N[np.argsort(scramble(self.corpus.key_D[document_N] ^ key), kind="stable")]
        cost_N = self._cost_D[order_N]
        return order_N, np.cumsum(cost_N) - cost_N

    def _pieces(self, document_N: np.ndarray, epoch_N: np.ndarray) -> np.ndarray:
        """int64 [pieces, 5], the fields of `Piece`: documents turned round and cut to the row's length."""
        flipped_N = np.zeros(len(document_N), bool)
        for epoch in np.unique(epoch_N):
            this_N = epoch_N == epoch
            chance_N = scramble(self.corpus.key_D[document_N[this_N]] ^ self._key("flip", int(epoch)))
            flipped_N[this_N] = (chance_N >> np.uint64(11)) * 2.0**-53 >= self.data.caption_first
        flipped_N &= self.corpus.captioned_D[document_N]
        length_N = self.corpus.length_D[document_N]
        whole_N = np.column_stack((document_N, np.zeros_like(length_N), length_N, flipped_N, epoch_N)).astype(np.int64)
        parts, at = [], 0
        for n in np.flatnonzero(length_N > self.data.sequence).tolist():
            cuts = self._cut(int(document_N[n]), bool(flipped_N[n]))
            part = np.repeat(whole_N[n : n + 1], len(cuts), axis=0)
            part[:, 1:3] = cuts
            parts += [whole_N[at:n], part]
            at = n + 1
        return np.concatenate([*parts, whole_N[at:]])

    def _cut(self, document: int, flipped: bool) -> list[tuple[int, int]]:
        """Stretches of a long document that fit a row; a picture as latents, with its markers, is never cut."""
        corpus, sequence = self.corpus, self.data.sequence
        first = int(corpus.span_D[document])
        spans = range(first, first + int(corpus.spans_D[document]))
        pictures, at = [], 1
        for span in reversed(spans) if flipped else spans:
            modality = corpus.modalities[corpus.modality_S[span]]
            width = int(corpus.length_S[span]) + MARKS * (corpus.modality_S[span] != 0)
            if corpus.tokenizers[modality].kind == "continuous":
                pictures.append((at, at + width))
            at += width
        length, begin, cuts = int(corpus.length_D[document]), 0, []
        while begin < length:
            end = min(begin + sequence, length)
            end = next((start for start, stop in pictures if start < end < stop), end)
            cuts.append((begin, end))
            begin = end if self.data.long == "split" else length
        return cuts

    def _key(self, *parts: str | int) -> np.uint64:
        """A key of its own for each use of randomness."""
        return np.uint64(int(content_hash(self.seed, *parts)[:16], 16))


def best_fit(length_P: np.ndarray, sequence: int) -> np.ndarray:
    """The row of each piece, int64: longest first, each into the fullest row that still has room (best fit decreasing).

    Rows are numbered as they are opened.
    """
    row_P = np.empty(len(length_P), np.int64)
    rows = 0
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for piece in np.argsort(-length_P, kind="stable").tolist():
        length = int(length_P[piece])
        at = bisect_left(room, (length, 0))
        if at < len(room):
            free, row = room.pop(at)
        else:
            free, row = sequence, rows
            rows += 1
        row_P[piece] = row
        if free > length:
            insort(room, (free - length, row))
    return row_P


def _weights(corpus: Corpus, data: DataConfig) -> dict[int, float | None]:
    """Token share of each source that has documents and a share; None = in proportion to what there is."""
    present = np.unique(corpus.source_D).tolist()
    if not data.weights:
        return dict.fromkeys(present)
    for name, weight in data.weights.items():
        if weight and name in corpus.sources and corpus.sources.index(name) not in present:
            raise UserError(f"data.weights: {name}: this source holds no document to train on; give it weight 0")
        if name not in corpus.sources:
            raise UserError(f"data.weights: {name}: the data has no such source; it has {', '.join(corpus.sources)}")
    for s in present:
        if corpus.sources[s] not in data.weights:
            raise UserError(f"data.weights: source '{corpus.sources[s]}' has no weight; give it one (0 leaves it out)")
    weights = {s: data.weights[corpus.sources[s]] for s in present}
    total = sum(weights.values())
    if min(weights.values()) < 0 or total <= 0:
        raise UserError("data.weights: weights must be 0 or more, and one of them more than 0")
    return {s: weight / total for s, weight in weights.items() if weight}
