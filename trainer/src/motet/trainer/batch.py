"""A batch, born grouped by tower: what the host hands to the model, so that the device never asks back.

    packed rows in sequence order (numpy, from `render`) --`group`--> `GroupedBatch` (torch, tokens sorted by tower)

A token's modality is data, so the order that brings each tower's tokens together is known before the step and the same
in every layer (facts/training.md, section 2d, option a). It is computed here once, on the host: ids, positions,
documents, blocks and labels come sorted, with the towers' row ranges beside them. `order_T` leads back to sequence
order, which only attention needs. This file needs numpy and torch only.

Letters: T tokens of the batch = B rows x S columns, G towers, M tokens with a label, N latent vectors of width D.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NO_LABEL = -100


@dataclass(frozen=True)
class Packed:
    """B packed rows in sequence order, flat: token t stands in row t // sequence. All arrays are numpy.

    Attributes:
        sequence: S, tokens per row.
        ids_T: int64; pad where there is no token, and at latents.
        position_T: int64, from 0 in each document.
        document_T: int32; 0 = padding, documents from 1.
        block_T: int32; 0, or the number (from 1) of the picture whose latent stands here.
        modality_T: uint8, index into the vocabulary's modalities; markers and padding are text's.
        latents_ND: float32, the clean latents in sequence order; noise_ND likewise; time_N: int64.
    """

    sequence: int
    ids_T: np.ndarray
    position_T: np.ndarray
    document_T: np.ndarray
    block_T: np.ndarray
    modality_T: np.ndarray
    latents_ND: np.ndarray
    noise_ND: np.ndarray
    time_N: np.ndarray


@dataclass(frozen=True)
class GroupedBatch:
    """One micro-batch in grouped order: sorted by tower, within a tower in sequence order.

    Attributes:
        rows: B. sequence: S. T = B * S.
        modalities: the vocabulary's; what `label_modality_T` counts in.
        ids_T: int64; latent positions and padding hold pad.
        position_T: int64, position in the document (from 0 in each piece of a split one), for RoPE.
        document_T: int32; 0 = padding, else the document's number in this batch.
        block_T: int32; 0, or the number of the picture (its latents only) whose tokens all see one another.
        order_T: int64; the place row * S + column of each grouped row.
        offsets_G: int32, where each tower's rows end.
        counts: the rows of each tower, on the host.
        labels_T: int64; the next token of the document, -100 where there is none or a latent is involved.
        label_modality_T: int8; modality of the label, -1 where there is none.
        label_row_M: int64; the grouped rows that have a label.
        latent_row_N: int64; the grouped rows that hold latents.
        latents_ND: float32, clean. noise_ND: float32, standard normal.
        time_N: int64; diffusion step, equal within a picture.
        latent_modality: the continuous modality, if the vocabulary has one.
    """

    rows: int
    sequence: int
    modalities: tuple[str, ...]
    ids_T: Tensor
    position_T: Tensor
    document_T: Tensor
    block_T: Tensor
    order_T: Tensor
    offsets_G: Tensor
    counts: tuple[int, ...]
    labels_T: Tensor
    label_modality_T: Tensor
    label_row_M: Tensor
    latent_row_N: Tensor
    latents_ND: Tensor
    noise_ND: Tensor
    time_N: Tensor
    latent_modality: str | None

    def to(self, device: torch.device | str) -> GroupedBatch:
        """The same batch on `device`; copies from pinned memory do not wait."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


def group(
    packed: Packed,
    modalities: Sequence[str],
    tower_of_modality: Sequence[int],
    modality_of_V: np.ndarray,
    latent_modality: str | None = None,
) -> GroupedBatch:
    """Sort packed rows by tower and work out the labels.

    `tower_of_modality` are `Towers.of_modality`, `modality_of_V` the vocabulary's modality of each id.
    """
    document_T, latent_T = packed.document_T, packed.block_T > 0
    labels_T = np.full(len(packed.ids_T), NO_LABEL, np.int64)
    follows_T = (document_T[1:] == document_T[:-1]) & (document_T[1:] > 0) & ~latent_T[1:] & ~latent_T[:-1]
    np.copyto(labels_T[:-1], packed.ids_T[1:], where=follows_T)
    label_modality_T = modality_of_V[np.maximum(labels_T, 0)].astype(np.int8)
    label_modality_T[labels_T == NO_LABEL] = -1

    towers = np.asarray(tower_of_modality, np.uint8)
    tower_T = towers[packed.modality_T]
    order_T = np.argsort(tower_T, kind="stable")
    counts = np.bincount(tower_T, minlength=int(towers.max()) + 1)

    def sort(values_T: np.ndarray) -> Tensor:
        return torch.from_numpy(values_T[order_T])

    return GroupedBatch(
        rows=len(packed.ids_T) // packed.sequence,
        sequence=packed.sequence,
        modalities=tuple(modalities),
        ids_T=sort(packed.ids_T),
        position_T=sort(packed.position_T),
        document_T=sort(document_T),
        block_T=sort(packed.block_T),
        order_T=torch.from_numpy(order_T),
        offsets_G=torch.from_numpy(counts.cumsum().astype(np.int32)),
        counts=tuple(counts.tolist()),
        labels_T=sort(labels_T),
        label_modality_T=sort(label_modality_T),
        label_row_M=torch.from_numpy(np.flatnonzero(label_modality_T[order_T] >= 0)),
        latent_row_N=torch.from_numpy(np.flatnonzero(latent_T[order_T])),
        latents_ND=torch.from_numpy(packed.latents_ND),
        noise_ND=torch.from_numpy(packed.noise_ND),
        time_N=torch.from_numpy(packed.time_N),
        latent_modality=latent_modality,
    )
