"""Rotary position embedding: query and key vectors are turned by angles that grow with the position in the document.

Halves are paired as in Llama's checkpoints in the Hugging Face layout: component `i` turns with component `i + C/2`.
Positions travel with the rows, so the rotation works in grouped order as well as in sequence order.

Letters: T rows, H heads, C components of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotation(position_T: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos_T1C and sin_T1C of every row's angles, [T, 1, C/2] each, computed in at least float32."""
    wide = dtype if dtype is torch.float64 else torch.float32
    exponent = torch.arange(0, width, 2, dtype=wide, device=position_T.device) / width
    angle = (position_T.to(wide).unsqueeze(-1) * theta**-exponent).unsqueeze(-2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x_THC: Tensor, cos_T1C: Tensor, sin_T1C: Tensor) -> Tensor:
    """Turn every pair (x_i, x_{i+C/2}) by its row's angle; the result has the type of the angles."""
    return _Rotate.apply(x_THC, cos_T1C, sin_T1C)


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x_THC: Tensor, cos_T1C: Tensor, sin_T1C: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1C, sin_T1C)
        ctx.dtype = x_THC.dtype
        return _turn(x_THC.to(cos_T1C.dtype), cos_T1C, sin_T1C, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_T1C, sin_T1C = ctx.saved_tensors
        return _turn(grads[0], cos_T1C, sin_T1C, -1).to(ctx.dtype), None, None


def _turn(x_THC: Tensor, cos_T1C: Tensor, sin_T1C: Tensor, sign: int) -> Tensor:
    a, b = x_THC.chunk(2, dim=-1)
    y_THC = torch.empty_like(x_THC, memory_format=torch.contiguous_format)
    ya, yb = y_THC.chunk(2, dim=-1)
    torch.mul(a, cos_T1C, out=ya).addcmul_(b, sin_T1C, value=-sign)
    torch.mul(b, cos_T1C, out=yb).addcmul_(a, sin_T1C, value=sign)
    return y_THC
