"""What a rank trains on at a step: its view of the global batch.

    Plan.rows_of(step) --`share` of the rank--> micro-batches of `micro_rows` rows --ids read, `render`--> GroupedBatch

Any number of ranks that divides the rows sees the same global batches, and starting at any step gives what an undisturbed
run gives there: at once with that step's `cursor`, after planning all before it without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from motet.core.errors import UserError
from motet.trainer.data.balance import costs, shares
from motet.trainer.data.batch import GroupedBatch
from motet.trainer.data.collate import Noise, Renderer
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.dropout import Dropout
from motet.trainer.data.order import Loss, Plan
from motet.trainer.data.packed import Rows
from motet.trainer.vocabulary import Towers, Vocabulary

if TYPE_CHECKING:
    from motet.trainer.config import DataConfig

EVALUATION_SEED = 0


class Stream:
    """Grouped batches of a plan.

    Args:
        plan: the rows of each step.
        vocabulary: the model's; UserError if the plan's data was encoded by other tokenizers.
        towers: which tower each modality uses.
        noise: the diffusion noise; only its `steps` matter to data without latents.
        pair: what attention to one earlier token costs, relative to a token: see `balance`.
    """

    def __init__(self, plan: Plan, vocabulary: Vocabulary, towers: Towers, noise: Noise, pair: float = 0.0):
        vocabulary.check(plan.corpus.tokenizers, "data.paths")
        self.plan, self.vocabulary, self.towers, self.noise, self.pair = plan, vocabulary, towers, noise, pair
        dropout = Dropout(plan.seed, plan.data.guidance_dropout)
        self._renderer = Renderer(vocabulary, towers, plan.data.sequence, noise, dropout, plan.data.streams)

    def micro_batches(self, step: int, rank: int = 0, world: int = 1, micro_rows: int = 1) -> list[GroupedBatch]:
        """The batches of one rank at one step (from 0): its `share` of the rows, `micro_rows` at a time."""
        rows = self.plan.rows
        if rows % (world * micro_rows):
            sizes = [m for m in range(1, rows + 1) if rows % (world * m) == 0]
            cure = f"use micro_rows {', '.join(map(str, sizes))}" if sizes else f"use rows {_multiples(rows, world)}"
            raise UserError(f"rows: {rows} rows do not divide into {world} workers x {micro_rows} micro_rows; {cure}")
        mine = self.plan.rows_of(step).taken(self.share(step, rank, world)).read(self.plan.corpus)
        return [self._renderer.batch(mine.taken(range(at, at + micro_rows))) for at in range(0, len(mine), micro_rows)]

    def share(self, step: int, rank: int, world: int) -> list[int]:
        """Which rows of global batch `step` a rank takes, by their numbers in it."""
        return shares(costs(self.plan.rows_of(step), self.pair), world)[rank]

    def counts(self, step: int) -> dict[str, int]:
        """Labels by modality, and latents under `diffusion`, in the whole global batch of a step."""
        return self._renderer.counts(self.plan.rows_of(step))

    def once(self, micro_rows: int, limit: int | None = None) -> Iterator[GroupedBatch]:
        """One pass over the plan's documents, or over its first `limit` rows; the last batch is filled with padding."""
        return map(self.batch, self.rows_once(micro_rows, limit))

    def batch(self, rows: Rows) -> GroupedBatch:
        """These rows, which have been read, as one batch."""
        return self._renderer.batch(rows)

    def rows_once(self, micro_rows: int, limit: int | None = None) -> Iterator[Rows]:
        """The rows of each batch of `once`, read."""
        left: Rows | None = None
        for rows in self._first(limit):
            found = Rows.joined([left, rows]) if left else rows
            whole = len(found) // micro_rows * micro_rows
            read = found.taken(range(whole)).read(self.plan.corpus)
            for at in range(0, whole, micro_rows):
                yield read.taken(range(at, at + micro_rows))
            left = found.taken(range(whole, len(found)))
        if left:
            yield left.filled_up(micro_rows).read(self.plan.corpus)

    def _first(self, limit: int | None) -> Iterator[Rows]:
        """One pass, cut off after `limit` rows."""
        seen = 0
        for rows in self.plan.once():
            fresh = rows if limit is None or seen + len(rows) <= limit else rows.taken(range(limit - seen))
            seen += len(fresh)
            yield fresh
            if seen == limit:
                break


def heldout(
    corpus: Corpus,
    vocabulary: Vocabulary,
    towers: Towers,
    data: DataConfig,
    noise_steps: int,
    losses: Iterable[Loss] = (),
) -> Stream:
    """Held-out documents, to be passed over once: the same order and noise whatever the training's seed.

    `corpus` is the held-out split; nothing comes of an empty one. `losses` are left out.
    """
    plan = Plan(corpus, data.unweighed, 1, EVALUATION_SEED)
    plan.lose(losses)
    return Stream(plan, vocabulary, towers, Noise(EVALUATION_SEED, noise_steps))


def _multiples(rows: int, world: int) -> str:
    below = rows // world * world
    return " or ".join(str(n) for n in (below, below + world) if n)
