"""What a step minimises: the next token of every discrete modality, and the error of denoising the latents.

    batch --model--> hidden_TD --rows with a label--> `linear_cross_entropy` --> nats by the label's modality
                              --rows with latents--> prediction of the noise or flow --> squared error

`kind: chameleon` (arXiv 2405.09818) has the first term only; `kind: transfusion` (arXiv 2408.11039) adds
`diffusion_weight` times the second. Each sum is divided by the counts of the *global* batch, so that adding up the
losses (and gradients) of micro-batches and ranks gives the mean over the global batch.

Letters: T rows of the batch, M rows with a label, D model width, V vocabulary, N latent patches, L width of one latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motet.trainer import kernels
from motet.trainer.model.grouped import compute_dtype
from motet.trainer.objective.diffusion import process

if TYPE_CHECKING:
    from motet.trainer.config import ObjectiveConfig
    from motet.trainer.data.batch import GroupedBatch

DIFFUSION = "diffusion"
"""Key of the diffusion term in sums and counts; its count is the number of latent patches."""

CHUNK_LOGITS = 1 << 22
"""How many scores are held at once: 16 MB in float32."""

GPU_CHUNK_LOGITS = 1 << 28
"""The same on a GPU, which only large products fill: half a GB in bf16."""


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
    model: nn.Module,
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
    bare: Any = getattr(model, "module", model)  # a parallel wrapper's hooks run in forward; heads are the model's own
    diffuse = config.kind == "transfusion" and bare.patches is not None
    patch_ND = passage = None
    if diffuse:
        diffusion = process(config.diffusion, config.noise_steps)
        noisy_NL = diffusion.noisy(batch.latents_ND, batch.noise_ND, batch.time_N)
        patch_ND, passage = bare.patches.into(noisy_NL, batch.time_N, batch.pictures)
    names = batch.modalities
    labels = max(sum(counts.get(name, 0) for name in names), 1)
    hidden_TD = model(batch, patch_ND, 1 / labels)

    scale = torch.stack([hidden_TD.new_full((), config.weights.get(name, 1.0) / labels) for name in names])
    modality_M = batch.label_modality_T[batch.label_row_M].long()
    scale_M = scale[modality_M]
    hidden_MD, label_M = hidden_TD.index_select(0, batch.label_row_M), batch.labels_T[batch.label_row_M]
    total, nats_M = linear_cross_entropy(hidden_MD, bare.head.weight, label_M, scale_M, config.z_loss)
    rank_M = label_ranks(hidden_MD, bare.head.weight, label_M, ranges) if ranges else None
    if batch.further_ranges:
        hidden_QD = hidden_TD.index_select(0, batch.further_label_row_Q)
        more, nats_Q, modality_Q = _further(hidden_QD, bare.head.weight, batch, scale, config.z_loss)
        total, nats_M, modality_M = total + more, torch.cat((nats_M, nats_Q)), torch.cat((modality_M, modality_Q))
        if rank_M is not None:
            rank_M = torch.cat((rank_M, label_ranks(hidden_QD, bare.head.weight, batch.further_labels_Q, ranges)))
    error_N = nats_M.new_empty(0)
    zero = nats_M.new_zeros(len(names))
    sums = dict(zip(names, zero.index_add(0, modality_M, nats_M), strict=True))
    terms = dict(zip(names, zero.index_add(0, modality_M, torch.ones_like(nats_M)), strict=True))

    if diffuse:
        predicted_NL = bare.patches.out(hidden_TD.index_select(0, batch.latent_row_N), passage)
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


@torch.no_grad()
def label_ranks(hidden_MD: Tensor, weight_VD: Tensor, label_M: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """How many ids of its range score higher than each label: int64 [M], 0 where the label is the likeliest.

    `ranges` are [begin, end) of ids; together they hold every label. It waits for the device: for evaluation only.
    """
    rank_M = torch.zeros_like(label_M)
    for begin, end in ranges:
        own_N = ((label_M >= begin) & (label_M < end)).nonzero().squeeze(-1)
        for own_C in own_N.split(max(CHUNK_LOGITS // (end - begin), 16)):
            scores_CV = hidden_MD[own_C] @ weight_VD[begin:end].to(hidden_MD.dtype).t()
            of_label_C1 = scores_CV.gather(-1, (label_M[own_C] - begin).unsqueeze(-1))
            rank_M[own_C] = (scores_CV > of_label_C1).sum(-1)
    return rank_M


def linear_cross_entropy(
    hidden_MD: Tensor, weight_VD: Tensor, label_M: Tensor, scale_M: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(sum over rows of scale * (-log p(label) + z_loss * log(Z)^2), the cross-entropy of each row without gradient).

    The head's product, the softmax and both their gradients run over a few rows at a time, so that the M x V scores
    never exist as a whole. Products run in autocast's type, sums and exponentials in at least float32.
    """
    learn = torch.is_grad_enabled() and (hidden_MD.requires_grad or weight_VD.requires_grad)
    dtype = compute_dtype(hidden_MD)
    return _LinearCrossEntropy.apply(hidden_MD, weight_VD, label_M, scale_M, z_loss, dtype, learn)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are known as soon as the scores are, so the forward pass computes them and drops the scores."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        label_M: Tensor,
        scale_M: Tensor,
        z_loss: float,
        dtype: torch.dtype,
        learn: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        M, V = hidden_MD.shape[0], weight_VD.shape[0]
        step = max((GPU_CHUNK_LOGITS if hidden_MD.is_cuda else CHUNK_LOGITS) // V, 16)
        low_MD, low_VD, scale_M = hidden_MD.detach().to(dtype), weight_VD.detach().to(dtype), scale_M.to(wide)
        loss_M = torch.empty(M, dtype=wide, device=hidden_MD.device)
        nats_M = torch.empty_like(loss_M)
        dhidden_MD = torch.empty_like(low_MD) if learn else None
        dweight_VD = torch.zeros_like(weight_VD, dtype=wide) if learn else None
        low_CV = torch.empty(min(step, M), V, dtype=dtype, device=hidden_MD.device)  # serves every chunk: fresh memory
        softmax_gradient_ = _softmax_of(low_CV)  # would cost as much as the products
        for begin in range(0, M, step):
            rows = slice(begin, min(begin + step, M))
            low = torch.mm(low_MD[rows], low_VD.t(), out=low_CV[: rows.stop - begin])
            nats_M[rows], loss_M[rows] = softmax_gradient_(low, label_M[rows], scale_M[rows], z_loss, learn)
            if dhidden_MD is not None and dweight_VD is not None:
                torch.mm(low, low_VD, out=dhidden_MD[rows])
                if dtype is wide:
                    dweight_VD.addmm_(low.t(), low_MD[rows])
                else:
                    dweight_VD += torch.mm(low.t(), low_MD[rows])
        ctx.save_for_backward(dhidden_MD, dweight_VD)
        ctx.dtypes = hidden_MD.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(nats_M)
        return (loss_M * scale_M).sum(), nats_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden_MD, dweight_VD = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        slope = grads[0]
        return (
            (dhidden_MD * slope).to(hidden_dtype),
            (dweight_VD * slope).to(weight_dtype),
            None,
            None,
            None,
            None,
            None,
        )


def _softmax_of(low_CV: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """What turns scores into their gradient in place and tells (nats_C, loss_C), for chunks in this memory.

    `kernels.cross_entropy` on a GPU; elsewhere torch, in memory of a wider type that serves every chunk too.
    """
    if kernels.usable(low_CV):
        from motet.trainer.kernels import cross_entropy

        return cross_entropy.softmax_gradient_
    wide = torch.promote_types(low_CV.dtype, torch.float32)
    wide_CV = low_CV if low_CV.dtype is wide else torch.empty_like(low_CV, dtype=wide)

    def softmax_gradient_(
        low: Tensor, label_C: Tensor, scale_C: Tensor, z_loss: float, learn: bool
    ) -> tuple[Tensor, Tensor]:
        scores = wide_CV[: len(low)].copy_(low)
        index, scale = label_C.unsqueeze(-1), scale_C.unsqueeze(-1)
        top, of_label = scores.amax(-1, keepdim=True), scores.gather(-1, index)
        z = scores.sub_(top).exp_().sum(-1, keepdim=True)
        log_z = z.log().add_(top)
        nats = log_z - of_label
        if learn:
            scores.mul_(scale * (1 + 2 * z_loss * log_z) / z).scatter_add_(-1, index, -scale)
            low.copy_(scores)
        return nats.squeeze(-1), (nats + z_loss * log_z.square()).squeeze(-1)

    return softmax_gradient_
