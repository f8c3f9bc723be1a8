"""The model and what it is to learn, as one module: a batch in, its losses out.

    batch, counts of the global batch --`Learner.forward`--> `Losses`

Wrappers for several processes (`run.sharding`) exchange weights and gradients by hooks on a module's `forward`. Losses use
the embedding, the head and the patches beside the layers, so the forward that is wrapped has to be that of losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from motet.trainer.objective.losses import Losses, losses

if TYPE_CHECKING:
    from motet.trainer.config import ObjectiveConfig
    from motet.trainer.data.batch import GroupedBatch
    from motet.trainer.model.mot import MoT


class Learner(nn.Module):
    """`losses` of one model for one objective."""

    def __init__(self, model: MoT, objective: ObjectiveConfig):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: GroupedBatch, counts: Mapping[str, int]) -> Losses:
        """See `losses`."""
        return losses(self.model, batch, self.objective, counts)
