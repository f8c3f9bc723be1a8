"""The order of training as a pure function of (datasets, configuration, seed): which documents stand in which row.

    documents --formula: a keyed permutation per epoch--> --tokens wanted of each source--> windows
              --best-fit packing--> rows --> global batches

Nothing here is state (docs/architecture.md, idea 3): global batch k of any run follows from what the configuration says,
and is the same for every number of ranks. Only how many rows a window of documents fills is known by packing it, so what
goes before a window is summed up in a `Cursor`, of a few numbers: planning goes on from any of them at once.

**Shuffle.** Document i of an epoch is what a keyed permutation takes i to: nothing is sorted, no table is made.

**Mixture.** `mixture` says how many tokens a window takes of each source, from what was taken before. An edit of the
weights, or a further dataset, begins an era with the first window that begins at its step or later.

**Packing.** The documents of a window fill rows of S tokens, longest first, each into the fullest row that still has
room (best fit decreasing), and the rows are shuffled.

**Damage.** Record batches that are not what was written are left out from a window on, and further documents take their
place. Who shares an order must tell all others (`leave_out`), or they would see other rows.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.trainer.data import columns, packing, shuffle
from motet.trainer.data.corpus import Corpus, Documents
from motet.trainer.data.mixture import Era, Group, eras
from motet.trainer.data.packed import Rows
from motet.trainer.data.records import Lost, LostBatches

if TYPE_CHECKING:
    from motet.trainer.config import DataConfig

WINDOW_ROWS = 256
"""Rows that one packing window aims at: about half a row of them stays empty."""
KNOWN = 4096
"""Cursors that an order remembers."""
ORDER_VERSION = 3
"""Part of the fingerprint: another value means that the same configuration gives another order."""


class Cursor(NamedTuple):
    """Where a window begins: its first row, and what was taken before, since its era began.

    Attributes:
        row: the first row. taken: positions of each group. tokens: tokens of each group.
        modalities: tokens of each modality, where they have weights. before: positions of each part of the datasets when
            the era began; empty before the first edit.
    """

    row: int
    taken: tuple[int, ...]
    tokens: tuple[int, ...]
    modalities: tuple[int, ...] = ()
    before: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Cursor:
        """A cursor that was written as JSON, which has no tuples."""
        row, *taken = data
        return cls(row, *map(tuple, taken))


class Damage(NamedTuple):
    """Record batches that are left out of all windows that begin at `row` or later."""

    row: int
    lost: Lost


@dataclass(frozen=True, eq=False)
class Window:
    """Documents that are packed together, and the rows that they came to."""

    begin: Cursor
    end: Cursor
    packed: Rows

    def rows(self, begin: int, end: int) -> Rows:
        """Rows [begin, end) of the run, which all lie in this window."""
        start_R1 = self.packed.start_R1[begin - self.begin.row : end - self.begin.row + 1]
        return Rows(self.packed.documents, self.packed.piece_P5[start_R1[0] : start_R1[-1]], start_R1 - start_R1[0])


class Order:
    """Rows of every step, for ever: when a source's documents are used up, its next epoch begins.

    Args:
        corpus: the documents.
        data: sequence length, weights of the sources, how captions stand, what becomes of long documents.
        rows: rows per global batch.
        seed: of every shuffle.
        epochs: None = for ever; else it ends after so many, and its last window is cut short.
    """

    def __init__(self, corpus: Corpus, data: DataConfig, rows: int, seed: int, epochs: int | None = None):
        self.corpus, self.data, self.rows, self.seed, self.epochs = corpus, data, rows, seed, epochs
        self.eras = eras(corpus.records, data, rows)
        self.damage: tuple[Damage, ...] = ()
        self._lost: tuple[tuple[int, np.ndarray], ...] = ()
        self._window_tokens = max(WINDOW_ROWS, 2 * rows) * data.sequence
        self._known: tuple[Cursor, ...] = (_start(self.eras[0]),)  # replaced whole: several threads may pack
        self._window = lru_cache(maxsize=4)(self._pack)

    def rows_of(self, step: int) -> Rows:
        """The rows of global batch `step` (from 0)."""
        return self._rows_between(step * self.rows, (step + 1) * self.rows)

    def cursor(self, step: int) -> Cursor:
        """Where the window begins that global batch `step` begins in: what `remember` needs to plan from there on."""
        return self._window_at(step * self.rows).begin

    def remember(self, cursor: Cursor) -> None:
        """A cursor of this order, from a checkpoint or a log: planning goes on from there, not from the beginning."""
        known = self._known
        if cursor not in known:
            self._known = (known[0], *sorted([*known[1:], cursor])[-KNOWN:])

    def windows(self) -> Iterator[Window]:
        """All windows, from the first on."""
        cursor = self._known[0]
        while len((window := self._window(cursor)).packed):
            yield window
            cursor = window.end

    def once(self) -> Iterator[Rows]:
        """One pass over the documents, whatever the weights, some rows at a time."""
        order = Order(self.corpus, self.data.unweighed, self.rows, self.seed, epochs=1)
        order.leave_out(Damage(0, each.lost) for each in self.damage)
        for window in order.windows():
            yield window.packed

    def leave_out(self, found: Iterable[Damage]) -> None:
        """Go on without these record batches; everybody who shares this order has to leave out the same."""
        self.damage = tuple(sorted({*self.damage, *found}))
        self._lost = tuple((each.row, self.corpus.records.batches_of(each.lost)) for each in self.damage)
        self._known = (*self._known[:1], *(c for c in self._known[1:] if all(c.row <= row for row, _ in self._lost)))
        self._window.cache_clear()

    def lost_documents(self, further: Iterable[Damage] = ()) -> float:
        """Fraction of all documents that are left out, or would be with `further` damage."""
        records = self.corpus.records
        found = [records.batches_of(each.lost) for each in {*self.damage, *further}]
        gone_K, before_K1 = np.unique(np.concatenate([np.empty(0, np.int64), *found])), records.before_K1
        return float((before_K1[gone_K + 1] - before_K1[gone_K]).sum() / before_K1[-1])

    def fingerprint(self, step: int) -> str:
        """Over datasets, settings of the data, rows, seed, and the edits before `step`.

        Orders with equal fingerprints give the same global batches before that step, if they lose the same.
        """
        settings = self.data.model_dump(mode="json", exclude={"paths", "edits", "cache", "cache_gigabytes", "max_lost"})
        hashes = self.corpus.records.hashes
        changes = [{}, *(edit.model_dump(mode="json", exclude={"paths"}) for edit in self.data.edits)]
        told = [
            (sorted({hashes[part.dataset] for part in era.parts}), change)
            for era, change in zip(self.eras, changes, strict=True)
            if era.since < max(step * self.rows, 1)
        ]
        return content_hash(ORDER_VERSION, told, settings, self.rows, self.seed)

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
        era = self._era(begin.row)
        try:
            document_N, epoch_N, taken, tokens = self._due(era, begin)
            documents = self.corpus.outline(document_N)
        except LostBatches as error:
            error.row = begin.row
            raise
        piece_P5 = self._pieces(documents, epoch_N)
        length_P = piece_P5[:, 2] - piece_P5[:, 1]
        row_P = packing.best_fit(length_P, self.data.sequence)
        # Packing opens rows with the longest documents first; a shuffle keeps early rows from being all of one kind.
        rows = int(row_P.max(initial=-1)) + 1
        place_R = np.argsort(
            shuffle.scramble(np.arange(rows, dtype=np.uint64) ^ np.uint64(self._key("rows", begin.row)))
        )
        place_R = np.argsort(place_R)
        order_P = np.argsort(place_R[row_P], kind="stable")
        start_R1 = np.concatenate(([0], np.cumsum(np.bincount(place_R[row_P], minlength=rows))))
        modalities = begin.modalities
        if era.modalities:
            more_M = by_modality(documents, piece_P5)
            modalities = tuple(had + more for had, more in zip(begin.modalities, more_M, strict=True))
        end = self._entered(era, Cursor(begin.row + rows, taken, tokens, modalities, begin.before))
        return Window(begin, end, Rows(documents, piece_P5[order_P], start_R1))

    def _era(self, row: int) -> Era:
        """The era of the window that begins at a row."""
        return next(era for era in reversed(self.eras) if era.since <= row)

    def _entered(self, era: Era, end: Cursor) -> Cursor:
        """Where a window of `era` ends, as the next window needs it: another era counts anew from there."""
        after = self._era(end.row)
        if after is era:
            return end
        at = dict.fromkeys(era.parts, 0) | dict(zip(era.parts, end.before, strict=bool(end.before)))
        for group, taken in zip(era.groups, end.taken, strict=True):
            for part, own in zip(group.parts, group.positions, strict=True):
                at[part] += taken * own // group.whole
        return _start(after)._replace(row=end.row, before=tuple(at.get(part, 0) for part in after.parts))

    def _due(self, era: Era, begin: Cursor) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], tuple[int, ...]]:
        """(documents, their epochs, positions and tokens taken with them) of the window that begins at a cursor."""
        wanted = era.wanted(begin.tokens, begin.modalities, self._window_tokens)
        documents, epochs, taken, tokens = [], [], list(begin.taken), list(begin.tokens)
        before = dict(zip(era.parts, begin.before, strict=bool(begin.before)))
        for g, group in enumerate(era.groups):
            since = [before.get(part, 0) for part in group.parts]
            document_N, epoch_N, taken[g], more = self._take(group, since, begin.row, taken[g], wanted[g])
            documents.append(document_N)
            epochs.append(epoch_N)
            tokens[g] += more
        return np.concatenate(documents), np.concatenate(epochs), tuple(taken), tuple(tokens)

    def _take(
        self, group: Group, since: list[int], row: int, begin: int, wanted: float
    ) -> tuple[np.ndarray, np.ndarray, int, int]:
        """(documents, epochs, position after them, tokens) of a group from position `begin` on: about `wanted` tokens."""
        last = math.inf if self.epochs is None else group.whole * self.epochs
        taken, at, found = [], begin, 0
        while found < wanted and at < last:
            if at - begin > group.whole and not found:
                left = f"data.holdout: {self.corpus.holdout} leaves no document of a source"
                raise UserError(
                    f"{left}; lower it" if not self.damage else f"{left}, with what was lost; mend the data"
                )
            until = min(at + math.ceil((wanted - found) / group.tokens * 1.02) + 8, last)
            document_N, epoch_N, position_N = self._draw(group, since, row, at, int(until))
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

    def _draw(
        self, group: Group, since: list[int], row: int, begin: int, end: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(documents, epochs, positions) at the positions [begin, end) of a group, in order, without what was lost."""
        whole, found = group.whole, []
        for part, own, before in zip(group.parts, group.positions, since, strict=True):
            # Position p of the group stands for the positions of the part from p * own // whole on, counted from `before`.
            at, stop = before + begin * own // whole, before + end * own // whole
            while at < stop:
                epoch, first = divmod(at, own)
                last = min(first + stop - at, own)
                hashes = self.corpus.records.hashes
                key = self._key("order", self.corpus.sources[part.source], hashes[part.dataset], epoch)
                document_N = shuffle.draw(first, last, part.documents, self.data.shuffle or 0, np.uint64(key))
                turn_N, left_N = np.divmod(np.arange(at - before, at - before + last - first), own)
                position_N = turn_N * whole - (-(left_N + 1) * whole) // own - 1
                here_N = document_N >= 0
                found.append((part.begin + document_N[here_N], np.full(int(here_N.sum()), epoch), position_N[here_N]))
                at += last - first
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
        document_N, epoch_N, position_N = (np.concatenate(columns) for columns in zip(*found, strict=True))
        lost = [lost_K for since_row, lost_K in self._lost if since_row <= row]
        if lost:
            kept_N = ~np.isin(self.corpus.records.batch_of(document_N), np.concatenate(lost))
            document_N, epoch_N, position_N = document_N[kept_N], epoch_N[kept_N], position_N[kept_N]
        order_N = np.argsort(position_N, kind="stable")
        return document_N[order_N], epoch_N[order_N], position_N[order_N]

    def _pieces(self, documents: Documents, epoch_D: np.ndarray) -> np.ndarray:
        """int64 [pieces, 5], the fields of `Piece`: documents turned round and cut to the row's length."""
        flipped_D = np.zeros(len(documents), bool)
        for epoch in np.unique(epoch_D):
            this_D = epoch_D == epoch
            chance_D = shuffle.scramble(documents.key_D[this_D] ^ np.uint64(self._key("flip", int(epoch))))
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
            width = int(documents.length_S[span]) + (columns.MARKS if modality else 0)
            if documents.continuous[modality]:
                if (need := width + columns.MARKS) > sequence:
                    latents = width - columns.MARKS
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


def by_modality(documents: Documents, piece_P5: np.ndarray) -> list[int]:
    """Tokens of each modality in these pieces; markers are text's."""
    marked_M = np.arange(len(documents.modalities)) > 0
    return packing.tally(
        piece_P5, documents.span_D, documents.spans_D, documents.modality_S, documents.length_S, marked_M
    ).tolist()


def _start(era: Era) -> Cursor:
    """The cursor of a run that begins with an era."""
    nothing = (0,) * len(era.groups)
    return Cursor(0, nothing, nothing, (0,) * len(era.modalities))
