"""The head and its softmax together: cross-entropy without the whole matrix of scores.

    hidden_MD, weight_VD, labels --a few rows at a time: scores, softmax, both gradients--> loss, nats of each label

Letters: M rows with a label, D model width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from motet.trainer import kernels
from motet.trainer.model.grouped import compute_dtype

CHUNK_LOGITS = 1 << 22
"""How many scores are held at once: 16 MB in float32."""

GPU_CHUNK_LOGITS = 1 << 28
"""The same on a GPU, which only large products fill: half a GB in bf16."""


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
