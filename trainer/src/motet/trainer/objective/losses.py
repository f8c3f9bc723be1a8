"""What a step minimises: the next token of every discrete modality, and the error of denoising the latents.

    batch --model--> hidden_TD --rows with a label--> `linear_cross_entropy` --> nats by the label's modality
                              --rows with latents--> prediction of the noise or flow --> squared error

`kind: chameleon` (arXiv 2405.09818) has the first term only; `kind: transfusion` (arXiv 2408.11039) adds
`diffusion_weight` times the second. Each sum is divided by the counts of the *global* batch, so that adding up the
losses (and gradients) of micro-batches and ranks gives the mean over the global batch.

Letters: T rows of the batch, M rows with a label, D model width, V vocabulary, N latent patches, L width of one latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.trainer.data.batch import DIFFUSION
from motet.trainer.model.patches import Passage
from motet.trainer.objective.cross_entropy import label_ranks, linear_cross_entropy
from motet.trainer.objective.diffusion import process

if TYPE_CHECKING:
    from motet.trainer.config import ObjectiveConfig
    from motet.trainer.data.batch import GroupedBatch
    from motet.trainer.model.mot import MoT


@dataclass(frozen=True)
class Losses:
    """One micro-batch's losses.

    Attributes:
        total: scalar to call `backward` on; already divided by the global counts.
        sums: for each modality the summed cross-entropy in nats, for `diffusion` the summed mean squared error of
            patches; scalars without gradient, on the device.
        counts: how many terms each sum has, likewise.
        nats_M, error_N: the terms themselves, of each label (those of further codebooks last) and of each latent patch;
            error_N is empty without diffusion.
        rank_M: `label_ranks`, where asked for.
    """

    total: Tensor
    sums: dict[str, Tensor]
    counts: dict[str, Tensor]
    nats_M: Tensor
    error_N: Tensor
    rank_M: Tensor | None


def losses(
    model: MoT,
    batch: GroupedBatch,
    config: ObjectiveConfig,
    counts: Mapping[str, int],
    ranges: Sequence[tuple[int, int]] = (),
) -> Losses:
    """Losses of one micro-batch.

    `counts` are the numbers of labels of each modality, and of latent patches under `diffusion`, in the whole global
    batch. A modality's labels weigh `config.weights` (default 1) each; the text loss is their mean over all labels.
    With `ranges`, [begin, end) of the codebooks' ids, each label is ranked within its own.
    """
    patches = model.patches if config.kind == "transfusion" else None
    patch_ND: Tensor | None = None
    passage = Passage()
    if patches is not None:
        diffusion = process(config.diffusion, config.noise_steps)
        noisy_NL = diffusion.noisy(batch.latents_ND, batch.noise_ND, batch.time_N)
        patch_ND, passage = patches.into(noisy_NL, batch.time_N, batch.pictures)
    names = batch.modalities
    labels = max(sum(counts.get(name, 0) for name in names), 1)
    hidden_TD = model(batch, patch_ND, 1 / labels)

    scale = torch.stack([hidden_TD.new_full((), config.weights.get(name, 1.0) / labels) for name in names])
    modality_M = batch.label_modality_T[batch.label_row_M].long()
    scale_M = scale[modality_M]
    hidden_MD, label_M = hidden_TD.index_select(0, batch.label_row_M), batch.labels_T[batch.label_row_M]
    total, nats_M = linear_cross_entropy(hidden_MD, model.head.weight, label_M, scale_M, config.z_loss)
    rank_M = label_ranks(hidden_MD, model.head.weight, label_M, ranges) if ranges else None
    if batch.further_ranges:
        hidden_QD = hidden_TD.index_select(0, batch.further_label_row_Q)
        more, nats_Q, modality_Q = _further(hidden_QD, model.head.weight, batch, scale, config.z_loss)
        total, nats_M, modality_M = total + more, torch.cat((nats_M, nats_Q)), torch.cat((modality_M, modality_Q))
        if rank_M is not None:
            rank_M = torch.cat((rank_M, label_ranks(hidden_QD, model.head.weight, batch.further_labels_Q, ranges)))
    error_N = nats_M.new_empty(0)
    zero = nats_M.new_zeros(len(names))
    sums = dict(zip(names, zero.index_add(0, modality_M, nats_M), strict=True))
    terms = dict(zip(names, zero.index_add(0, modality_M, torch.ones_like(nats_M)), strict=True))

    if patches is not None:
        predicted_NL = patches.out(hidden_TD.index_select(0, batch.latent_row_N), passage)
        target_NL = diffusion.target(batch.latents_ND, batch.noise_ND)
        error_NL = F.mse_loss(predicted_NL.to(hidden_TD.dtype), target_NL.to(hidden_TD.dtype), reduction="none")
        error_N = error_NL.mean(-1)
        error = error_N.sum()
        sums[DIFFUSION], terms[DIFFUSION] = error.detach(), zero.new_full((), len(error_N))
        total = total + config.diffusion_weight * error / max(counts.get(DIFFUSION, 0), 1)
    return Losses(total, sums, terms, nats_M, error_N.detach(), rank_M)


def _further(
    hidden_QD: Tensor, weight_VD: Tensor, batch: GroupedBatch, scale: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, nats and modality of each label) of further codebooks: each has a softmax of its own ids."""
    sizes = [count for *_, count in batch.further_ranges]
    parts = zip(hidden_QD.split(sizes), batch.further_labels_Q.split(sizes), batch.further_ranges, strict=True)
    total, nats, modalities = hidden_QD.new_zeros(()), [], []
    for hidden_qD, label_q, (begin, end, modality, count) in parts:
        scale_q = scale[modality].expand(count)
        more, nats_q = linear_cross_entropy(hidden_qD, weight_VD[begin:end], label_q - begin, scale_q, z_loss)
        total = total + more
        nats.append(nats_q)
        modalities.append(torch.full_like(label_q, modality))
    return total, torch.cat(nats), torch.cat(modalities)
