"""A Mixture-of-Transformers in plain eager torch with boolean masks: what a reader of the paper would write first.

    x_TD in sequence order --for each modality: gather by its mask, work, put back by its mask--> x_TD

**Written for this benchmark**, after Algorithm 1 and Section 2 of arXiv 2411.04996 and the counts of gathers and merges in
its published code, which does not run as shipped: it is a baseline, not anybody's program. Per layer and modality: one
gather before Q, K and V, three merges after them (each with its own norm where it has one), one gather and one merge
around the output projection, one gather and one merge around the feed-forward. Every one of them makes the host wait for
the device, which counts the mask's rows. Attention is motet's own, so that only the grouping differs.

Letters: T rows, D model width, H heads, C width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motet.trainer.model.mot import feed_forward_width
from motet.trainer.model.rotary import rotate


class Tower(nn.Module):
    """One modality's weights in one layer."""

    def __init__(self, config: Any):
        super().__init__()
        D, hidden, C = config.dim, feed_forward_width(config), config.dim // config.heads
        self.q, self.k, self.v, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(D, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, D, bias=False)
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(D, eps=1e-6) for _ in range(2))
        self.q_norm, self.k_norm = (nn.RMSNorm(C, eps=1e-6) for _ in range(2))


class EagerBlock(nn.Module):
    """x + norm(sublayer(x)), as in the paper, modality after modality."""

    def __init__(self, config: Any, modalities: int):
        super().__init__()
        self.heads = config.heads
        self.towers = nn.ModuleList(Tower(config) for _ in range(modalities))

    def forward(self, x_TD: Tensor, masks: list[Tensor], layout: Any) -> Tensor:
        """Rows in sequence order; `layout` has their rotation and motet's attention."""
        T, D = x_TD.shape
        dtype = torch.get_autocast_dtype("cuda") if x_TD.is_cuda else x_TD.dtype
        q, k, v = (torch.empty(T, D, dtype=dtype, device=x_TD.device) for _ in range(3))
        for tower, mask in zip(self.towers, masks, strict=True):
            x = x_TD[mask]
            q[mask] = tower.q_norm(self._split(tower.q(x))).flatten(1).to(dtype)
            k[mask] = tower.k_norm(self._split(tower.k(x))).flatten(1).to(dtype)
            v[mask] = tower.v(x).to(dtype)
        q, k = (rotate(self._split(y), layout.cos, layout.sin) for y in (q, k))
        mixed_TD = layout.attend(0, q, k, self._split(v)).reshape(T, D)
        merged_TD = torch.empty_like(x_TD)
        for tower, mask in zip(self.towers, masks, strict=True):
            merged_TD[mask] = tower.attention_norm(tower.out(mixed_TD[mask])).to(x_TD.dtype)
        x_TD = x_TD + merged_TD
        merged_TD = torch.empty_like(x_TD)
        for tower, mask in zip(self.towers, masks, strict=True):
            x = x_TD[mask]
            merged_TD[mask] = tower.ffn_norm(tower.down(F.silu(tower.gate(x)) * tower.up(x))).to(x_TD.dtype)
        return x_TD + merged_TD

    def _split(self, x_TD: Tensor) -> Tensor:
        return x_TD.unflatten(1, (self.heads, -1))
