"""SwiGLU (arXiv 2002.05202): silu(gate) * up, one pass over memory forward and one backward.

    gate_up_TE --`swiglu`--> y_TF        kept: the input alone

Arithmetic is float32; only results are rounded. Letters: T rows, F width of each half, E = 2F.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDTH = 1024


@triton.jit
def swiglu_kernel(gate_up_ptr, y_ptr, F, WIDTH: tl.constexpr):
    """WIDTH columns of one row."""
    row, column_F = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here_F = column_F < F
    gate_F = tl.load(gate_up_ptr + row * 2 * F + column_F, mask=here_F, other=0.0).to(tl.float32)
    up_F = tl.load(gate_up_ptr + row * 2 * F + F + column_F, mask=here_F, other=0.0).to(tl.float32)
    y_F = gate_F * tl.sigmoid(gate_F) * up_F
    tl.store(y_ptr + row * F + column_F, y_F.to(y_ptr.dtype.element_ty), mask=here_F)


@triton.jit
def swiglu_backward_kernel(grad_ptr, gate_up_ptr, dgate_up_ptr, F, WIDTH: tl.constexpr):
    """The gradients of both halves, in WIDTH columns of one row."""
    row, column_F = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here_F = column_F < F
    grad_F = tl.load(grad_ptr + row * F + column_F, mask=here_F, other=0.0).to(tl.float32)
    gate_F = tl.load(gate_up_ptr + row * 2 * F + column_F, mask=here_F, other=0.0).to(tl.float32)
    up_F = tl.load(gate_up_ptr + row * 2 * F + F + column_F, mask=here_F, other=0.0).to(tl.float32)
    chance_F = tl.sigmoid(gate_F)
    silu_F = gate_F * chance_F
    dgate_F = grad_F * up_F * (chance_F + silu_F * (1 - chance_F))
    kind = dgate_up_ptr.dtype.element_ty
    tl.store(dgate_up_ptr + row * 2 * F + column_F, dgate_F.to(kind), mask=here_F)
    tl.store(dgate_up_ptr + row * 2 * F + F + column_F, (grad_F * silu_F).to(kind), mask=here_F)


def swiglu(gate_up_TE: Tensor) -> Tensor:
    """silu(first half) * second half, [T, 2F] -> [T, F]."""
    return _SwiGLU.apply(gate_up_TE)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TE: Tensor) -> Tensor:
        gate_up_TE = gate_up_TE.contiguous()
        T, F = len(gate_up_TE), gate_up_TE.shape[1] // 2
        y_TF = gate_up_TE.new_empty(T, F)
        if T:
            with torch.cuda.device_of(gate_up_TE):
                swiglu_kernel[T, triton.cdiv(F, WIDTH)](gate_up_TE, y_TF, F, WIDTH)
        ctx.save_for_backward(gate_up_TE)
        return y_TF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up_TE,) = ctx.saved_tensors
        T, F = len(gate_up_TE), gate_up_TE.shape[1] // 2
        dgate_up_TE = torch.empty_like(gate_up_TE)
        if T:
            with torch.cuda.device_of(gate_up_TE):
                swiglu_backward_kernel[T, triton.cdiv(F, WIDTH)](
                    grads[0].contiguous(), gate_up_TE, dgate_up_TE, F, WIDTH
                )
        return dgate_up_TE
