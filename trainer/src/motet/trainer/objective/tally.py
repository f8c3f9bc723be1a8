"""Losses summed up by name, over batches and ranks, and their means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from motet.trainer.data.batch import GroupedBatch


def heldout_tally(
    learner: nn.Module, batches: Iterable[GroupedBatch], names: Sequence[str], device: torch.device
) -> list[float]:
    """Sums of the losses called `names` of a `Learner` over `batches`, then how many terms each sum has."""
    tally = torch.zeros(2 * len(names), dtype=torch.float64, device=device)
    learner.eval()
    with torch.no_grad():
        for batch in batches:
            found = learner(batch.to(device), {})
            tally += torch.stack([each[name].double() for each in (found.sums, found.counts) for name in names])
    learner.train()
    return tally.tolist()


def means(names: Sequence[str], tally_2K: Sequence[float]) -> dict[str, float | None]:
    """Sums over counts, by name; None where nothing was counted."""
    sums, counts = tally_2K[: len(names)], tally_2K[len(names) :]
    return {name: total / n if n else None for name, total, n in zip(names, sums, counts, strict=True)}
