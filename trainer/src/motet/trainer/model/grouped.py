"""Row-wise operations with one set of weights per tower, on rows that lie grouped by tower.

    x_TI (rows of tower 0, then of tower 1, ...) + stacked weights [G, ...] -> y_TO, in the same order

How many rows each tower has is known on the host before the step (it came with the batch), so nothing here reads a
device value. All towers' weights of one kind are one parameter: a tower without a row in a batch gets a zero gradient,
never none. Weights that the towers share are one matrix, [1, ...], which then serves all rows.

Letters: T rows, G towers, I and O features in and out, C width of a normalised vector, J heads, F feed-forward, E = 2F.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.trainer import kernels
from motet.trainer.kernels import dispatch
from motet.trainer.kernels.groups import Groups


def grouped_linear(x_TI: Tensor, weight_GOI: Tensor, groups: Groups) -> Tensor:
    """Each row times its own tower's matrix, in autocast's type where autocast is on.

    On a GPU in whichever of three ways was measured to be fastest (`kernels.dispatch`), on a CPU one matrix product per
    tower, written into slices of one result.
    """
    if len(weight_GOI) == 1:
        return F.linear(x_TI, weight_GOI.squeeze(0))
    return dispatch.grouped_linear(x_TI, weight_GOI, groups, compute_dtype(x_TI))


def grouped_rms_norm(
    x: Tensor, gain: Tensor, groups: Groups, eps: float, dtype: torch.dtype, residual: Tensor | None = None
) -> Tensor:
    """Rows over their root mean square (last axis), times the row's own tower's gain, plus `residual`.

    `x` is [T, C] or [T, J, C], `gain` [G, C] or [G, J, C]. Statistics are taken in at least float32 and only the result is
    rounded to `dtype`.
    """
    groups = groups.of(gain)
    if kernels.usable(x):
        from motet.trainer.kernels import norm

        return norm.grouped_rms_norm(x, gain, groups.offsets_G, eps, dtype, residual)
    y = _GroupedRMSNorm.apply(x, gain, groups, eps, dtype)
    return y if residual is None else residual + y


def swiglu(gate_up_TE: Tensor) -> Tensor:
    """silu(first half) * second half, [T, 2F] -> [T, F]."""
    if kernels.usable(gate_up_TE):
        from motet.trainer.kernels import swiglu

        return swiglu.swiglu(gate_up_TE)
    return _SwiGLU.apply(gate_up_TE)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products of `x` run: autocast's where it is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _GroupedRMSNorm(torch.autograd.Function):
    """Keeps the input and one number per vector; recomputes the normalised vectors in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, groups: Groups, eps: float, dtype: torch.dtype) -> Tensor:
        wide = _wide(x)
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        rstd = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.groups = groups
        ctx.save_for_backward(x, gain, rstd)
        y = wide * rstd
        for tower, rows in groups.slices():
            y[rows] *= gain[tower]
        return y.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, rstd = ctx.saved_tensors
        grad, unit = _wide(grads[0]), _wide(x) * rstd
        dx, dgain = torch.empty_like(unit), torch.zeros_like(gain)
        for tower, rows in ctx.groups.slices():
            torch.mul(grad[rows], unit[rows], out=dx[rows])
            dgain[tower] = dx[rows].sum(0)
            torch.mul(grad[rows], gain[tower], out=dx[rows])
        along = torch.linalg.vecdot(dx, unit).unsqueeze(-1).div_(x.shape[-1])
        dx = dx.addcmul_(unit, along, value=-1).mul_(rstd)
        return dx.to(x.dtype), dgain, None, None, None


class _SwiGLU(torch.autograd.Function):
    """Keeps its input alone, and writes both halves' gradients into one tensor."""

    @staticmethod
    def forward(ctx: Any, gate_up_TE: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_TE)
        gate_TF, up_TF = gate_up_TE.chunk(2, dim=-1)
        return F.silu(gate_TF).mul_(up_TF)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up_TE,) = ctx.saved_tensors
        gate_TF, up_TF = gate_up_TE.chunk(2, dim=-1)
        grad_TE = torch.empty_like(gate_up_TE)
        dgate_TF, dup_TF = grad_TE.chunk(2, dim=-1)
        chance_TF = torch.sigmoid(gate_TF)
        torch.mul(gate_TF, chance_TF, out=dup_TF)  # silu(gate)
        slope_TF = torch.addcmul(chance_TF, dup_TF, 1 - chance_TF)
        torch.mul(grads[0], up_TF, out=dgate_TF).mul_(slope_TF)
        dup_TF.mul_(grads[0])
        return grad_TE


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()
