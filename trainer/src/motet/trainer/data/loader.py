"""What a rank trains on at a step: its view of the global batch.

    `Order.rows_of(step)` --`shares` of the rank--> micro-batches of `micro_rows` rows --ids read, `Collate.batch`--> GroupedBatch

Any number of ranks that divides the rows sees the same global batches, and starting at any step gives what an undisturbed
run gives there: at once with that step's `cursor`, after planning all before it without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from motet.core.errors import UserError
from motet.trainer.data.balance import costs, shares
from motet.trainer.data.batch import GroupedBatch
from motet.trainer.data.collate import Collate, Noise
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.dropout import Dropout
from motet.trainer.data.opened import Opened
from motet.trainer.data.order import Damage, Order
from motet.trainer.data.packed import Rows
from motet.trainer.vocabulary import Towers, Vocabulary

if TYPE_CHECKING:
    from motet.trainer.config import DataConfig

EVALUATION_SEED = 0


@dataclass(frozen=True)
class View:
    """What one rank sees of a global batch.

    Attributes:
        rows: their numbers in the global batch. batches: the same rows, some to a micro-batch.
        counts: labels by modality, and latents under `diffusion`, in the whole global batch.
    """

    rows: list[int]
    batches: list[GroupedBatch]
    counts: dict[str, int]


class Loader:
    """Grouped batches of an order of training.

    Args:
        order: the rows of each step.
        vocabulary: the model's; UserError if the data was encoded by other tokenizers.
        towers: which tower each modality uses.
        noise: the diffusion noise; only its `steps` matter to data without latents.
        pair: what attention to one earlier token costs, relative to a token: see `balance`.
    """

    def __init__(self, order: Order, vocabulary: Vocabulary, towers: Towers, noise: Noise, pair: float = 0.0):
        vocabulary.check(order.corpus.tokenizers, "data.paths")
        self.order, self.vocabulary, self.towers, self.noise, self.pair = order, vocabulary, towers, noise, pair
        dropout = Dropout(order.seed, order.data.guidance_dropout)
        self._collate = Collate(vocabulary, towers, order.data.sequence, noise, dropout, order.data.streams)

    @classmethod
    def open(cls, data: DataConfig, rows: int, seed: int = 0, towers: Mapping[str, str] | None = None) -> Loader:
        """Batches of `rows` rows of what is not held out, for a training loop of one's own.

        `towers` names a tower for each modality, as `model.towers`; with one name for all, a batch stands in reading order.
        UserError as `Opened.of`.
        """
        order = Opened.of(data, rows, seed).order
        vocabulary = Vocabulary.of(order.corpus.tokenizers)
        return cls(order, vocabulary, Towers.of(vocabulary, towers or {}), Noise(seed))

    def view(self, step: int, rank: int = 0, world: int = 1, micro_rows: int = 1) -> View:
        """One rank's view of global batch `step` (from 0), `micro_rows` rows to a micro-batch.

        UserError if ranks and micro-batches do not divide the rows; LostBatches as `Corpus.read`.
        """
        rows = self.order.rows
        if rows % (world * micro_rows):
            sizes = [m for m in range(1, rows + 1) if rows % (world * m) == 0]
            cure = f"use micro_rows {', '.join(map(str, sizes))}" if sizes else f"use rows {_multiples(rows, world)}"
            raise UserError(f"rows: {rows} rows do not divide into {world} workers x {micro_rows} micro_rows; {cure}")
        whole = self.order.rows_of(step)
        mine = shares(costs(whole, self.pair), world)[rank]
        read = whole.taken(mine).read(self.order.corpus)
        batches = [self.batch(read.taken(range(at, at + micro_rows))) for at in range(0, len(mine), micro_rows)]
        return View(mine, batches, self._collate.counts(whole))

    def micro_batches(self, step: int, rank: int = 0, world: int = 1, micro_rows: int = 1) -> list[GroupedBatch]:
        """The batches of a rank's `view`."""
        return self.view(step, rank, world, micro_rows).batches

    def once(self, micro_rows: int, limit: int | None = None) -> Iterator[GroupedBatch]:
        """One pass over the documents, or over its first `limit` rows; the last batch is filled with padding."""
        return map(self.batch, self.rows_once(micro_rows, limit))

    def batch(self, rows: Rows) -> GroupedBatch:
        """These rows, which have been read, as one batch."""
        return self._collate.batch(rows)

    def rows_once(self, micro_rows: int, limit: int | None = None) -> Iterator[Rows]:
        """The rows of each batch of `once`, read."""
        left: Rows | None = None
        for rows in self._first(limit):
            found = Rows.joined([left, rows]) if left else rows
            whole = len(found) // micro_rows * micro_rows
            read = found.taken(range(whole)).read(self.order.corpus)
            for at in range(0, whole, micro_rows):
                yield read.taken(range(at, at + micro_rows))
            left = found.taken(range(whole, len(found)))
        if left:
            yield left.filled_up(micro_rows).read(self.order.corpus)

    def _first(self, limit: int | None) -> Iterator[Rows]:
        """One pass, cut off after `limit` rows."""
        seen = 0
        for rows in self.order.once():
            fresh = rows if limit is None or seen + len(rows) <= limit else rows.taken(range(limit - seen))
            seen += len(fresh)
            yield fresh
            if seen == limit:
                break


def heldout_loader(
    corpus: Corpus,
    vocabulary: Vocabulary,
    towers: Towers,
    data: DataConfig,
    noise_steps: int,
    damage: Iterable[Damage] = (),
) -> Loader:
    """Held-out documents, to be passed over once: the same order and noise whatever the training's seed.

    `corpus` is the held-out split; nothing comes of an empty one. Record batches in `damage` are left out.
    """
    noise = Noise(EVALUATION_SEED, noise_steps)
    return Loader(heldout_order(corpus, data, damage), vocabulary, towers, noise)


def heldout_order(corpus: Corpus, data: DataConfig, damage: Iterable[Damage] = ()) -> Order:
    """In which order held-out documents are passed over; `corpus` and `damage` as in `heldout_loader`."""
    order = Order(corpus, data.unweighed, 1, EVALUATION_SEED)
    order.leave_out(damage)
    return order


def _multiples(rows: int, world: int) -> str:
    below = rows // world * world
    return " or ".join(str(n) for n in (below, below + world) if n)
