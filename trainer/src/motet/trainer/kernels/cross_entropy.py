"""The softmax of rows of scores, their cross-entropy and their gradient, written in the scores' place.

    scores_CV, label_C, scale_C --`softmax_gradient_`--> nats_C, loss_C;  scores_CV becomes d(sum of scale * loss)/d(scores)

with nats = log Z - score of the label, loss = nats + z_loss * (log Z)^2 (the z-loss of PaLM, arXiv 2204.02311, section 5)
and log Z the log of the sum of exponentials. A row is read twice and written once; nothing of its size is allocated.
Arithmetic is float32.

Letters: C rows of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDTH = 4096


@triton.jit
def softmax_kernel(
    scores_ptr, label_ptr, scale_ptr, nats_ptr, loss_ptr, V, z_loss, LEARN: tl.constexpr, WIDTH: tl.constexpr
):
    """One row, WIDTH scores at a time: first the sum of exponentials, then, if LEARN, the gradient."""
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * V
    column_V = tl.arange(0, WIDTH)
    label = tl.load(label_ptr + row)
    known = (label >= 0) & (label < V)  # a label outside the vocabulary reads nothing, and makes the loss NaN
    # Read first: the barriers of the sums below then keep every warp's reading ahead of any warp's writing.
    of_label = tl.load(scores_ptr + label, mask=known, other=float("nan")).to(tl.float32)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for begin in range(0, V, WIDTH):
        here_V = begin + column_V < V
        score_V = tl.load(scores_ptr + begin + column_V, mask=here_V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(score_V, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(score_V - higher), 0)
        top = higher
    log_z = top + tl.log(total)
    nats = log_z - of_label
    tl.store(nats_ptr + row, nats)
    tl.store(loss_ptr + row, nats + z_loss * log_z * log_z)
    if LEARN:
        scale = tl.load(scale_ptr + row).to(tl.float32)
        slope = scale * (1 + 2 * z_loss * log_z)
        for begin in range(0, V, WIDTH):
            here_V = begin + column_V < V
            at_V = scores_ptr + begin + column_V
            chance_V = tl.exp(tl.load(at_V, mask=here_V, other=float("-inf")).to(tl.float32) - log_z)
            grad_V = slope * chance_V - tl.where(begin + column_V == label, scale, 0.0)
            tl.store(at_V, grad_V.to(scores_ptr.dtype.element_ty), mask=here_V)


def softmax_gradient_(
    scores_CV: Tensor, label_C: Tensor, scale_C: Tensor, z_loss: float, learn: bool
) -> tuple[Tensor, Tensor]:
    """(nats_C, loss_C) in float32; with `learn`, `scores_CV` (contiguous) becomes the gradient of sum(scale * loss)."""
    C, V = scores_CV.shape
    nats_C = torch.empty(C, dtype=torch.float32, device=scores_CV.device)
    loss_C = torch.empty_like(nats_C)
    if C:
        with torch.cuda.device_of(scores_CV):
            softmax_kernel[C,](
                scores_CV, label_C.contiguous(), scale_C.contiguous(), nats_C, loss_C, V, z_loss,
                learn, WIDTH, num_warps=8,
            )  # fmt: skip
    return nats_C, loss_C
