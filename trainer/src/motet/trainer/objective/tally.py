"""Losses summed up by name, over batches and ranks, and their means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from motet.trainer.objective.losses import losses

if TYPE_CHECKING:
    from motet.trainer.config import ObjectiveConfig
    from motet.trainer.data.batch import GroupedBatch
    from motet.trainer.model.mot import MoT


def heldout_tally(
    model: MoT, batches: Iterable[GroupedBatch], objective: ObjectiveConfig, names: Sequence[str]
) -> list[float]:
    """Sums of the losses called `names` over `batches`, then how many terms each sum has."""
    device = model.embedding.weight.device
    tally = torch.zeros(2 * len(names), dtype=torch.float64, device=device)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            found = losses(model, batch.to(device), objective, {})
            tally += torch.stack([each[name].double() for each in (found.sums, found.counts) for name in names])
    model.train()
    return tally.tolist()


def means(names: Sequence[str], tally_2K: Sequence[float]) -> dict[str, float | None]:
    """Sums over counts, by name; None where nothing was counted."""
    sums, counts = tally_2K[: len(names)], tally_2K[len(names) :]
    return {name: total / n if n else None for name, total, n in zip(names, sums, counts, strict=True)}
