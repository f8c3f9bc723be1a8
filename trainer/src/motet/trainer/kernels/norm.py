"""RMSNorm with the gain of the row's group (arXiv 1910.07467), optionally added to a residual stream.

    x, gain_GJC, offsets_G --`grouped_rms_norm`--> y = x / rms(x) * gain[group of the row]        (+ residual)

The last axis is normalised. One pass forward, one backward; kept are the input and one number per vector. Gains' gradients
are summed over strips of rows that lie in one group, then over the strips in a fixed order (`rows.sum_by_group`): the same
batch gives the same bits. All arithmetic is float32; only results are rounded. Rows of no group become the residual, or zero.

Letters: T rows, G groups, J heads (one where x is [T, C]), C width of a vector, P strips.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from motet.trainer.kernels.rows import group_of, most_strips, strip, sum_by_group


@triton.jit(do_not_specialize=["T", "G"])
def norm_kernel(
    x_ptr, gain_ptr, residual_ptr, y_ptr, rstd_ptr, offsets_ptr, T, G, J, C, stride_t, eps,
    ADD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one head."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    column_C = tl.arange(0, WIDTH)
    here_RC = (row_R < T)[:, None] & (column_C < C)[None, :]
    x_RC = x_ptr + row_R.to(tl.int64)[:, None] * stride_t + head * C + column_C[None, :]
    x_RC = tl.load(x_RC, mask=here_RC, other=0.0).to(tl.float32)
    rstd_R = 1.0 / tl.sqrt(tl.sum(x_RC * x_RC, 1) / C + eps)
    group_R = group_of(row_R, offsets_ptr, G)
    gain_RC = gain_ptr + (group_R * J + head)[:, None] * C + column_C[None, :]
    gain_RC = tl.load(gain_RC, mask=here_RC & (group_R < G)[:, None], other=0.0).to(tl.float32)
    y_RC = x_RC * rstd_R[:, None] * gain_RC
    vector_R = row_R.to(tl.int64) * J + head
    at_RC = vector_R[:, None] * C + column_C[None, :]
    if ADD:
        y_RC += tl.load(residual_ptr + at_RC, mask=here_RC, other=0.0).to(tl.float32)
    tl.store(y_ptr + at_RC, y_RC.to(y_ptr.dtype.element_ty), mask=here_RC)
    tl.store(rstd_ptr + vector_R, rstd_R, mask=row_R < T)


@triton.jit(do_not_specialize=["T", "G"])
def norm_backward_kernel(
    grad_ptr, x_ptr, gain_ptr, rstd_ptr, dx_ptr, partial_ptr, offsets_ptr, T, G, J, C, stride_t,
    STRIP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of a strip of rows of one group, ROWS at a time; leaves the strip's share of the gain's gradient."""
    head = tl.program_id(1)
    group, first, end = strip(tl.program_id(0), offsets_ptr, G, T, STRIP)
    end = tl.minimum(end, first + STRIP)
    column_C = tl.arange(0, WIDTH)
    here_C = column_C < C
    gain_C = tl.load(gain_ptr + (group * J + head) * C + column_C, mask=here_C & (group < G), other=0.0).to(tl.float32)
    dgain_C = tl.zeros((WIDTH,), tl.float32)
    for row in range(first, end, ROWS):
        row_R = row + tl.arange(0, ROWS)
        here_RC = (row_R < end)[:, None] & here_C[None, :]
        vector_R = row_R.to(tl.int64) * J + head
        at_RC = vector_R[:, None] * C + column_C[None, :]
        x_RC = x_ptr + row_R.to(tl.int64)[:, None] * stride_t + head * C + column_C[None, :]
        x_RC = tl.load(x_RC, mask=here_RC, other=0.0).to(tl.float32)
        grad_RC = tl.load(grad_ptr + at_RC, mask=here_RC, other=0.0).to(tl.float32)
        rstd_R = tl.load(rstd_ptr + vector_R, mask=row_R < end, other=0.0)
        unit_RC = x_RC * rstd_R[:, None]
        dgain_C += tl.sum(grad_RC * unit_RC, 0)
        slope_RC = grad_RC * gain_C[None, :]
        along_R = tl.sum(slope_RC * unit_RC, 1) / C
        dx_RC = (slope_RC - unit_RC * along_R[:, None]) * rstd_R[:, None]
        tl.store(dx_ptr + at_RC, dx_RC.to(dx_ptr.dtype.element_ty), mask=here_RC)
    partial_C = partial_ptr + (tl.program_id(0).to(tl.int64) * J + head) * C + column_C
    tl.store(partial_C, dgain_C, mask=here_C)


def grouped_rms_norm(
    x: Tensor, gain: Tensor, offsets_G: Tensor, eps: float, dtype: torch.dtype, residual: Tensor | None = None
) -> Tensor:
    """Rows over their root mean square (last axis) times their group's gain, plus `residual`; rounded to `dtype`.

    `x` (and `residual`) is [T, C] or [T, J, C], `gain` [G, C] or [G, J, C].
    """
    return _GroupedRMSNorm.apply(x, gain, offsets_G, eps, dtype, residual)


class _GroupedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, offsets_G: Tensor, eps: float, dtype: torch.dtype, residual: Tensor | None
    ) -> Tensor:
        x, gain = _with_packed_vectors(x), gain.contiguous()
        G, T, C = len(offsets_G), len(x), x.shape[-1]
        J = x.shape[1] if x.dim() == 3 else 1
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        rstd_TJ = torch.empty(T, J, dtype=torch.float32, device=x.device)
        if T:
            rows, width, warps = _block(C)
            added = y if residual is None else residual.contiguous()
            with torch.cuda.device_of(x):
                norm_kernel[triton.cdiv(T, rows), J](
                    x, gain, added, y, rstd_TJ, offsets_G, T, G, J, C, x.stride(0), eps,
                    residual is not None, rows, width, num_warps=warps,
                )  # fmt: skip
        ctx.save_for_backward(x, gain, rstd_TJ, offsets_G)
        ctx.residual = None if residual is None else residual.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, rstd_TJ, offsets_G = ctx.saved_tensors
        grad = grads[0].contiguous()
        G, (T, J), C = len(offsets_G), rstd_TJ.shape, x.shape[-1]
        rows, width, warps = _block(C)
        length = _strip_rows(T)
        P = most_strips(T, G, length)
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        partial_PN = torch.empty(P, J * C, dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):
            norm_backward_kernel[P, J](
                grad, x, gain, rstd_TJ, dx, partial_PN, offsets_G, T, G, J, C, x.stride(0),
                length, min(rows, length), width, num_warps=warps,
            )  # fmt: skip
            dgain = sum_by_group(partial_PN, offsets_G, T, length).view(gain.shape).to(gain.dtype)
        dresidual = None if ctx.residual is None else grad.to(ctx.residual)
        return dx, dgain, None, None, None, dresidual


def _with_packed_vectors(x: Tensor) -> Tensor:
    """`x` itself where its rows may lie apart but each is contiguous, as in a slice of heads; else a copy."""
    return x if x[:1].is_contiguous() else x.contiguous()


def _block(C: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of one block: all of a vector, and as many rows as make some thousand numbers."""
    width = triton.next_power_of_2(C)
    rows = max(1, min(4096 // width, 32))
    return rows, width, 4 if rows * width <= 2048 else 8 if rows * width <= 8192 else 16


def _strip_rows(T: int) -> int:
    """Rows per strip: about a thousand strips, which fills a GPU and keeps their sums small."""
    return max(16, min(128, triton.next_power_of_2(T // 1024 or 1)))
