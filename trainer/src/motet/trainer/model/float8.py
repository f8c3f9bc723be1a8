"""Grouped products in eight bits, for GPUs that multiply them (compute capability 8.9 and later).

    x_TI, one scale per row -----------) e4m3 --`torch._scaled_mm`, tower by tower--> y_TO in bf16
    weight_GOI, one scale per output --)

The gradient of the rows is such a product too; the gradient of the weights, a sum over all rows, is one in bf16, so that
small gradients do not vanish beside large ones (as torchao's recipe `rowwise_with_gw_hp`). Scales are the largest magnitudes of this very tensor: nothing is remembered between steps.

Letters: T rows, G towers, I and O features in and out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from motet.trainer.kernels.dispatch import weight_gradient
from motet.trainer.kernels.groups import Groups

LARGEST = 448.0
"""Of e4m3."""


def float8_linear(x_TI: Tensor, weight_GOI: Tensor, groups: Groups) -> Tensor:
    """As `grouped_linear`, in eight bits; I and O must be multiples of 16. The result is bf16."""
    return _Float8Linear.apply(x_TI, weight_GOI, groups.of(weight_GOI))


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_GOI: Tensor, groups: Groups) -> Tensor:
        ctx.groups, ctx.dtypes = groups, (x_TI.dtype, weight_GOI.dtype)
        ctx.save_for_backward(x_TI.to(torch.bfloat16), weight_GOI)
        return _product(x_TI, weight_GOI, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_GOI = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        dx_TI = _product(grads[0], weight_GOI.transpose(1, 2), ctx.groups) if ctx.needs_input_grad[0] else None
        dweight_GOI = weight_gradient(grads[0].to(x_TI.dtype), x_TI, ctx.groups, weight_dtype)
        return None if dx_TI is None else dx_TI.to(x_dtype), dweight_GOI, None


def _product(x_TI: Tensor, weight_GOI: Tensor, groups: Groups) -> Tensor:
    low_TI, scale_T1 = _scaled(x_TI)
    low_GOI, scale_GO1 = _scaled(weight_GOI)
    y_TO = torch.empty(len(x_TI), weight_GOI.shape[1], dtype=torch.bfloat16, device=x_TI.device)
    for tower, rows in groups.slices():
        y_TO[rows] = torch._scaled_mm(
            low_TI[rows],
            low_GOI[tower].t(),
            scale_a=scale_T1[rows],
            scale_b=scale_GO1[tower].t(),
            out_dtype=torch.bfloat16,
        )
    return y_TO


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3, row-major, the float32 scales of its last axis' vectors)."""
    scale = x.detach().abs().amax(-1, keepdim=True).float().clamp_(min=1e-12).div_(LARGEST)
    return (x / scale).to(torch.float8_e4m3fn).contiguous(), scale
