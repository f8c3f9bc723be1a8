"""A batch, born grouped by tower: what the host hands to the model, so that the device never asks back.

    rows of pieces --`Collate.batch`--> `GroupedBatch`: tokens sorted by tower --`to`--> the same on the device

A token's modality is data, so the order that brings each tower's tokens together is known before the step and the same
in every layer (docs/architecture.md, idea 4). The host writes every token there at once: ids, positions,
documents, blocks and labels come sorted, with the towers' row ranges beside them. `place_T` leads back to sequence
order, which only attention needs.

Letters: T tokens of the batch = B rows x S columns, G towers, M tokens with a label, N latent vectors of width D.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NO_LABEL = -100
DIFFUSION = "diffusion"
"""Key of the diffusion term in sums and counts; its count is the number of latent patches."""


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
        place_T: int64; the place row * S + column of each grouped row.
        offsets_G: int32, where each tower's rows end.
        counts: the rows of each tower, on the host.
        labels_T: int64; the next token of the document, -100 where there is none or a latent is involved.
        label_modality_T: int8; modality of the label, -1 where there is none.
        label_row_M: int64; the grouped rows that have a label.
        further_row_J, further_ids_J: int64; grouped rows whose tokens have more codes than one, and those codes' ids: see
            `codebooks`, as for the next three.
        further_label_row_Q, further_labels_Q: int64; the grouped rows that predict codes of further codebooks, and these,
            codebook by codebook.
        further_ranges: of each such codebook its ids [begin, end), its modality in `modalities`, and how many labels.
        latent_row_N: int64; the grouped rows that hold latents.
        latents_ND: float32, clean. noise_ND: float32, standard normal.
        time_N: int64; diffusion step, equal within a picture.
        pictures: rows and columns of each picture given as latents, in their order, on the host.
        latent_modality: the continuous modality, if the vocabulary has one.
    """

    rows: int
    sequence: int
    modalities: tuple[str, ...]
    ids_T: Tensor
    position_T: Tensor
    document_T: Tensor
    block_T: Tensor
    place_T: Tensor
    offsets_G: Tensor
    counts: tuple[int, ...]
    labels_T: Tensor
    label_modality_T: Tensor
    label_row_M: Tensor
    further_row_J: Tensor
    further_ids_J: Tensor
    further_label_row_Q: Tensor
    further_labels_Q: Tensor
    further_ranges: tuple[tuple[int, int, int, int], ...]
    latent_row_N: Tensor
    latents_ND: Tensor
    noise_ND: Tensor
    time_N: Tensor
    pictures: tuple[tuple[int, int], ...]
    latent_modality: str | None

    def to(self, device: torch.device | str) -> GroupedBatch:
        """The same batch on `device`; copies from pinned memory do not wait."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)
