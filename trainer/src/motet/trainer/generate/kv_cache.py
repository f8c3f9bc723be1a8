"""Inference a few positions at a time: what the layers computed for earlier positions is kept.

    new positions of B documents --grouped by tower--> the model's blocks, whose attention also sees the kept keys and
    values --> hidden states in sequence order

It is the same model code as in training; only the attention differs, and the grouping is done here, on the host, for
the few new rows. Documents in the batch may have different lengths: each has its own number of positions so far.

Letters: B documents, n new positions of each, M positions that there is room for, T = B*n, K key heads, C width of a
head, D model width, N positions that hold latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from motet.trainer.kernels.groups import Groups
from motet.trainer.model.attention import Attend, scaled_dot_product
from motet.trainer.model.mot import Layout
from motet.trainer.model.rotary import rotation

if TYPE_CHECKING:
    from motet.trainer.model.mot import MoT


class KVCache:
    """B documents under way: their keys and values by layer, and how many positions each has (`length_B`)."""

    def __init__(self, model: MoT, documents: int, room: int):
        config, weight = model.config, model.embedding.weight
        self.model, self.room = model, room
        self.length_B = np.zeros(documents, np.int64)
        kv_heads, self.width = config.kv_heads or config.heads, config.dim // config.heads
        shape = (config.layers, 2, documents, kv_heads, room, self.width)
        self._kept = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self._tower_BM = np.zeros((documents, room), np.int64)

    @torch.no_grad()
    def extend(
        self,
        ids_Bn: np.ndarray,
        tower_Bn: np.ndarray,
        block_Bn: np.ndarray | None = None,
        patch_ND: Tensor | None = None,
        further_2J: np.ndarray | None = None,
        length_B: np.ndarray | None = None,
        keep: bool = True,
    ) -> Tensor:
        """Hidden states [B, n, D] of n more positions of every document.

        Args:
            ids_Bn: ids; at latents anything.
            tower_Bn: index of each position's tower.
            block_Bn: 0, or the number of the picture whose patches see one another; those positions hold latents.
            patch_ND: what `MoT.patches` made of the latents, in the order of the positions where `block_Bn` is not 0.
            further_2J: places in [B * n] and ids that enter there besides `ids_Bn`: see `codebooks`.
            length_B: how many of the n positions are real; the rest is padding at the end. None = all.
            keep: whether the positions stay; if not, the next call overwrites them.
        """
        B, n = ids_Bn.shape
        device = self._kept.device
        begin_B1 = self.length_B[:, None]
        if int(self.length_B.max()) + n > self.room:
            raise ValueError(f"{int(self.length_B.max()) + n} positions, but there is room for {self.room}")
        place_T = np.argsort(tower_Bn.reshape(-1), kind="stable")
        counts = np.bincount(tower_Bn.reshape(-1), minlength=len(self.model.towers))
        alone = counts.max() == place_T.size
        grouped_T = torch.from_numpy(place_T).to(device)
        sequence_T = torch.from_numpy(np.argsort(place_T)).to(device)
        position_T = torch.from_numpy((begin_B1 + np.arange(n)).reshape(-1)[place_T]).to(device)

        x_TD = self.model.embed(torch.from_numpy(ids_Bn.astype(np.int64).reshape(-1)[place_T]).to(device))
        if further_2J is not None and further_2J.size:
            grouped_J, ids_J = torch.from_numpy(np.stack((np.argsort(place_T)[further_2J[0]], further_2J[1]))).to(
                device
            )
            x_TD = x_TD.index_add(0, grouped_J, self.model.embed(ids_J))
        if patch_ND is not None and block_Bn is not None:
            row_N = torch.from_numpy(np.flatnonzero(block_Bn.reshape(-1)[place_T])).to(device)
            x_TD = x_TD.index_copy(0, row_N, patch_ND.to(x_TD.dtype))

        cos, sin = rotation(position_T, self.width, self.model.config.rope_theta, x_TD.dtype)
        layout = Layout(
            Groups(tuple(counts.tolist()), torch.from_numpy(counts.cumsum()).int().to(device)),
            None if alone else (sequence_T, grouped_T),
            cos,
            sin,
            self._attend(begin_B1, tower_Bn, block_Bn),
        )
        hidden_TD = self.model.run(x_TD, layout)
        if keep:
            self.length_B = self.length_B + (n if length_B is None else length_B)
        return (hidden_TD if alone else hidden_TD[sequence_T]).view(B, n, -1)

    def _attend(self, begin_B1: np.ndarray, tower_Bn: np.ndarray, block_Bn: np.ndarray | None) -> Attend:
        """Each new position sees its document up to itself, and its own picture; its own tower's where towers do not cross."""
        B, n = tower_Bn.shape
        end = int(begin_B1.max()) + n
        here_Bn, key_M = begin_B1 + np.arange(n), np.arange(end)
        seen_BnM = key_M <= here_Bn[:, :, None]
        if block_Bn is not None:
            block_BM = np.zeros((B, end), np.int64)
            np.put_along_axis(block_BM, here_Bn, block_Bn, axis=1)
            seen_BnM |= (block_BM[:, None] == block_Bn[:, :, None]) & (block_Bn[:, :, None] > 0)
        np.put_along_axis(self._tower_BM, here_Bn, tower_Bn, axis=1)
        own_BnM = seen_BnM & (self._tower_BM[:, None, :end] == tower_Bn[:, :, None])
        device, crossing = self._kept.device, self.model.config.cross_layers
        across, within = (torch.from_numpy(seen).unsqueeze(1).to(device) for seen in (seen_BnM, own_BnM))
        row_B1, place_Bn = torch.arange(B, device=device)[:, None], torch.from_numpy(here_Bn).to(device)

        def attend(layer: int, q_THC: Tensor, k_TKC: Tensor, v_TKC: Tensor) -> Tensor:
            for kept_BKMC, new_TKC in zip(self._kept[layer], (k_TKC, v_TKC), strict=True):
                kept_BKMC.transpose(1, 2)[row_B1, place_Bn] = new_TKC.unflatten(0, (B, n)).to(kept_BKMC.dtype)
            q_BHnC = q_THC.unflatten(0, (B, n)).transpose(1, 2).to(self._kept.dtype)
            k_BKMC, v_BKMC = self._kept[layer, :, :, :, :end]
            mask = across if crossing is None or layer in crossing else within
            return scaled_dot_product(q_BHnC, k_BKMC, v_BKMC, mask).transpose(1, 2).flatten(0, 1)

        return attend
