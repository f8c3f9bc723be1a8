"""What a rank trains on at a step: its view of the global batch.

    Plan.rows_of(step) --rows[rank::world]--> micro-batches of `micro_rows` rows --`render`, `group`--> GroupedBatch

The stream holds no cursor: the step is the cursor. Any number of ranks that divides the rows sees the same global
batches, and starting at any step gives what an undisturbed run gives there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from motet.tokenizers.configuration import UserError

from .batch import GroupedBatch, group
from .corpus import Corpus
from .plan import Plan, Row
from .render import Noise, label_counts, lay_out, render
from .vocabulary import Towers, Vocabulary

if TYPE_CHECKING:
    from .config import DataConfig

EVALUATION_SEED = 0


class Stream:
    """Grouped batches of a plan.

    Args:
        plan: the rows of each step.
        vocabulary: the model's; UserError if the plan's data was encoded by other tokenizers.
        towers: which tower each modality uses.
        noise: the diffusion noise; only its `steps` matter to data without latents.
    """

    def __init__(self, plan: Plan, vocabulary: Vocabulary, towers: Towers, noise: Noise):
        vocabulary.check(plan.corpus.tokenizers, "data.paths")
        self.plan, self.vocabulary, self.towers, self.noise = plan, vocabulary, towers, noise

    @property
    def fingerprint(self) -> str:
        """Training streams with equal fingerprints give the same global batches."""
        return self.plan.fingerprint

    def micro_batches(self, step: int, rank: int = 0, world: int = 1, micro_rows: int = 1) -> list[GroupedBatch]:
        """The batches of one rank at one step (from 0), of `micro_rows` rows each."""
        rows = self.plan.rows
        if rows % (world * micro_rows):
            sizes = [m for m in range(1, rows + 1) if rows % (world * m) == 0]
            cure = f"use micro_rows {', '.join(map(str, sizes))}" if sizes else f"use rows {_multiples(rows, world)}"
            raise UserError(f"rows: {rows} rows do not divide into {world} workers x {micro_rows} micro_rows; {cure}")
        mine = self.plan.rows_of(step)[rank::world]
        return [self._batch(mine[at : at + micro_rows]) for at in range(0, len(mine), micro_rows)]

    def counts(self, step: int) -> dict[str, int]:
        """Labels by modality, and latents under `diffusion`, in the whole global batch of a step."""
        return label_counts(lay_out(self.plan.corpus, self.vocabulary, self.plan.rows_of(step)), self.vocabulary)

    def once(self, micro_rows: int, limit: int | None = None) -> Iterator[GroupedBatch]:
        """One pass over the plan's documents, or over its first `limit` rows; the last batch is filled with padding."""
        pending: list[Row] = []
        for i, row in enumerate(self.plan.once()):
            if i == limit:
                break
            pending.append(row)
            if len(pending) == micro_rows:
                yield self._batch(pending)
                pending = []
        if pending:
            yield self._batch([*pending, *[()] * (micro_rows - len(pending))])

    def _batch(self, rows: Sequence[Row]) -> GroupedBatch:
        packed = render(self.plan.corpus, self.vocabulary, rows, self.plan.data.sequence, self.noise)
        vocabulary = self.vocabulary
        return group(
            packed,
            vocabulary.modalities,
            self.towers.of_modality,
            vocabulary.modality_of_V,
            vocabulary.latent_modality,
        )


def heldout_batches(
    corpus: Corpus,
    vocabulary: Vocabulary,
    towers: Towers,
    data: DataConfig,
    micro_rows: int,
    noise_steps: int,
    limit: int | None = None,
) -> Iterator[GroupedBatch]:
    """One pass over held-out documents, each once: the same rows, orders and noise whatever the training's seed.

    `corpus` is the held-out split; nothing comes of an empty one. `limit` bounds the rows.
    """
    if len(corpus):
        plan = Plan(corpus, data.model_copy(update={"weights": {}}), micro_rows, EVALUATION_SEED)
        yield from Stream(plan, vocabulary, towers, Noise(EVALUATION_SEED, noise_steps)).once(micro_rows, limit)


def _multiples(rows: int, world: int) -> str:
    below = rows // world * world
    return " or ".join(str(n) for n in (below, below + world) if n)
