"""Documents under way: what was written, what the model has read of it, and what it says comes next.

    `Stretch`es --`write`, `open`, `close`--> waiting --one call of the model, its keys and values kept--> read
                                                    --> `scores` of the next id, or `predict` of latents

Whatever waits is read in one call when the model is next asked. With guidance, each document has a twin that holds its
newest span alone, from the opening marker on, as `data.dropout` cuts them in training; both are read in one batch, and
what the model says is taken that much further from the twin (arXiv 2207.12598, Eq. 6, where 1 + w is our guidance).

Letters: B documents, R rows of the batch (documents, then their twins), n positions, D model width, L width of one
latent, V ids that are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from motet.trainer.generate.kv_cache import KVCache
from motet.trainer.model.mot import MoT
from motet.trainer.model.patches import Grid, Passage


class Stretch(NamedTuple):
    """Some positions of one tower: ids, and the float latents [n, L] and grid of a picture given as latents.

    At the places `further_at` among the positions, the ids `further` enter too (`codebooks`).
    """

    ids: np.ndarray
    tower: int
    latents: np.ndarray | None = None
    grid: Grid = (0, 0)
    further_at: Sequence[int] | np.ndarray = ()
    further: Sequence[int] | np.ndarray = ()


class Decoding:
    """B documents that begin with prompts.

    Args:
        model: what reads them.
        prompts: the stretches of each.
        room: how many positions may follow the longest of them.
        guidance: 1 = none, and no twins.
    """

    def __init__(self, model: MoT, prompts: Sequence[Sequence[Stretch]], room: int, guidance: float = 1.0):
        self.model, self.guidance, self.documents = model, guidance, len(prompts)
        twins: list[list[Stretch]] = [[] for _ in prompts] if guidance != 1 else []
        self._waiting = [*map(list, prompts), *twins]
        self._twins = len(twins)
        self._guided = False
        self._context = KVCache(model, len(self._waiting), max(map(_length, self._waiting)) + room)
        self._end_RD = torch.empty(0)

    def open(self, marker: Stretch) -> None:
        """Write the marker that opens a span to every document; each twin begins anew with it."""
        self._guided = self._twins > 0
        self._context.length_B[self.documents :] = 0
        self._waiting[self.documents :] = [[] for _ in range(self._twins)]
        self.write([marker] * self.documents)

    def close(self, marker: Stretch) -> None:
        """Write the marker that closes a span to every document; without twins from there on."""
        self._guided = False
        self.write([marker] * self.documents)

    def write(self, stretches: Sequence[Stretch | None]) -> None:
        """A stretch more for each document, None = nothing, and the same for its twin."""
        for row, stretch in enumerate([*stretches, *(stretches if self._guided else ())]):
            if stretch is not None:
                self._waiting[row].append(stretch)

    def scores(self, ranges: Sequence[tuple[int, int]]) -> Tensor:
        """[B, V]: scores of the ids in these ranges as the next one."""
        end_RD = self._read()[: self.documents + self._guided * self._twins]
        return self._guide(torch.cat([self.model.logits(end_RD, *each) for each in ranges], dim=-1))

    def predict(self, noisy_BnL: Tensor, time: int, tower: int, grid: Grid) -> Tensor:
        """[B, n, L]: what the model predicts of the latents of a picture at diffusion step `time`, were they to come next."""
        assert self.model.patches is not None, "this model has no continuous modality"
        self._read()
        noisy_RnL = torch.cat([noisy_BnL] * (len(self._waiting) // self.documents))
        R, n = shape = noisy_RnL.shape[:2]
        patch_ND, passage = self._patches(noisy_RnL.flatten(0, 1), time, [grid] * R)
        hidden_RnD = self._context.extend(
            np.zeros(shape, np.int64), np.full(shape, tower), np.ones(shape, np.int64), patch_ND, keep=False
        )
        predicted_NL = self.model.patches.out(hidden_RnD.flatten(0, 1), passage)
        return self._guide(predicted_NL.unflatten(0, (R, n)))

    def _patches(self, latents_NL: Tensor, time: int, pictures: Sequence[Grid]) -> tuple[Tensor, Passage]:
        assert self.model.patches is not None, "this model has no continuous modality"
        device = self.model.embedding.weight.device
        time_N = torch.full((len(latents_NL),), time, device=device)
        return self.model.patches.into(latents_NL.to(device), time_N, pictures)

    def _guide(self, said_R: Tensor) -> Tensor:
        """What is said of each document, with what is said of its twin."""
        if not self._guided:
            return said_R[: self.documents]
        own_B, alone_B = said_R.split(self.documents)
        return alone_B + self.guidance * (own_B - alone_B)

    def _read(self) -> Tensor:
        """The state [R, D] at the end of each row, once what waits is read; of no use where a row has nothing new."""
        length_R = np.array([*map(_length, self._waiting)])
        R, n = len(length_R), int(length_R.max())
        if n == 0:
            return self._end_RD
        ids_Rn, tower_Rn = np.zeros((R, n), np.int64), np.zeros((R, n), np.int64)
        pictures = [stretch for row in self._waiting for stretch in row if stretch.latents is not None]
        block_Rn = np.zeros((R, n), np.int64) if pictures else None
        patch_ND, further = None, []
        if pictures:
            latents_NL = np.concatenate([np.asarray(stretch.latents, np.float32) for stretch in pictures])
            patch_ND, _ = self._patches(torch.from_numpy(latents_NL), 0, [stretch.grid for stretch in pictures])
        for row, stretches in enumerate(self._waiting):
            at = 0
            for number, stretch in enumerate(stretches, 1):
                here = row, slice(at, at + len(stretch.ids))
                ids_Rn[here], tower_Rn[here] = stretch.ids, stretch.tower
                if stretch.latents is not None and block_Rn is not None:
                    block_Rn[here] = number
                further += [
                    (row * n + at + place, id_) for place, id_ in zip(stretch.further_at, stretch.further, strict=True)
                ]
                at += len(stretch.ids)
        further_2J = np.array(further, np.int64).reshape(-1, 2).T
        hidden_RnD = self._context.extend(ids_Rn, tower_Rn, block_Rn, patch_ND, further_2J, length_R)
        last_R = torch.from_numpy(length_R - 1).to(hidden_RnD.device)
        self._end_RD = hidden_RnD[torch.arange(R, device=hidden_RnD.device), last_R]
        self._waiting = [[] for _ in self._waiting]
        return self._end_RD


def _length(stretches: Sequence[Stretch]) -> int:
    return sum(len(stretch.ids) for stretch in stretches)
