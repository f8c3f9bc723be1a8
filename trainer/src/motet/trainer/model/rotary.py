"""Rotary position embedding: query and key vectors are turned by angles that grow with the position in the document.

Halves are paired as in Llama's checkpoints in the Hugging Face layout: component `i` turns with component `i + C/2`.
Positions travel with the rows, so the rotation works in grouped order as well as in sequence order.

Letters: T rows, H heads, C components of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(position_T: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos_T1C and sin_T1C of every row's angles, [T, 1, C/2] each, computed in at least float32."""
    wide = dtype if dtype is torch.float64 else torch.float32
    exponent = torch.arange(0, width, 2, dtype=wide, device=position_T.device) / width
    angle = (position_T.to(wide).unsqueeze(-1) * theta**-exponent).unsqueeze(-2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x_THC: Tensor, cos_T1C: Tensor, sin_T1C: Tensor) -> Tensor:
    """Turn every pair (x_i, x_{i+C/2}) by its row's angle."""
    a, b = x_THC.chunk(2, dim=-1)
    return torch.cat((a * cos_T1C - b * sin_T1C, b * cos_T1C + a * sin_T1C), dim=-1)
