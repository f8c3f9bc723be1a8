"""Rows times the matrix of their group, and the gradient of those matrices: two kernels for three products.

    x_TK, weight_GKN, offsets_G --`rows_times`-------> y_TN           forward: weight_GOI transposed; dX: as it is
    dy_TO, x_TI, offsets_G      --`weight_gradient`--> dweight_GOI    zero for a group without rows

A program works out one tile of the result. In the first kernel it finds the strip of rows that is its own on the device
(`rows.strip`), so that neither the launch nor any shape depends on the split; tiles never straddle two groups. Neighbours
in launch order share rows or columns, which the L2 cache then holds. Sums are float32 and always added in the same order.

Letters: T rows, G groups, K summed over, N columns of the result, O and I features of a weight.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.testing import do_bench

from motet.trainer.kernels.rows import INTERPRETED, most_strips, strip, strips_before

SHARED = 227 << 10
"""Bytes of shared memory that a program can have on Hopper."""

BAND = tl.constexpr(8)
"""Neighbouring programs walk down this many tiles before they go on to the next column."""


def _tile(rows: int, columns: int, depth: int, stages: int, warps: int) -> triton.Config:
    return triton.Config({"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}, num_stages=stages, num_warps=warps)


TILES = (
    [_tile(16, 32, 32, 1, 4)]
    if INTERPRETED
    else [
        _tile(128, 256, 64, 4, 8),
        _tile(128, 256, 64, 3, 8),
        _tile(256, 128, 64, 3, 8),
        _tile(128, 128, 64, 4, 4),
        _tile(64, 128, 64, 4, 4),
    ]
)


def _fitting(tiles: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    """The tiles whose operands fit into shared memory; float32 takes twice what bf16 does."""
    size = arguments["x_ptr"].element_size()

    def needs(tile: triton.Config) -> int:
        rows, columns, depth = (tile.kwargs[name] for name in ("ROWS", "COLUMNS", "DEPTH"))
        return (rows + columns) * depth * size * tile.num_stages

    return [tile for tile in tiles if needs(tile) <= SHARED] or tiles[-1:]


_tuned = partial(
    triton.autotune,
    configs=TILES,
    prune_configs_by={"early_config_prune": _fitting},
    do_bench=partial(do_bench, warmup=10, rep=40),
)


@_tuned(key=["G", "N", "K", "stride_n"])
@triton.jit(do_not_specialize=["T", "G"])
def rows_kernel(
    x_ptr, weight_ptr, y_ptr, offsets_ptr, T, G, N, K, stride_n, stride_k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One ROWS x COLUMNS tile of y; rows that belong to no group become zero."""
    across = tl.cdiv(N, COLUMNS)
    down = strips_before(G + 1, offsets_ptr, G, T, ROWS)
    band = tl.program_id(0) // (BAND * across)
    inside = tl.program_id(0) % (BAND * across)
    high = tl.maximum(tl.minimum(down - band * BAND, BAND), 1)
    group, first, end = strip(band * BAND + inside % high, offsets_ptr, G, T, ROWS)
    row_R = first + tl.arange(0, ROWS)
    column_N = inside // high * COLUMNS + tl.arange(0, COLUMNS)
    deep_K = tl.arange(0, DEPTH)
    here_R, here_N = row_R < end, column_N < N
    x_RK = x_ptr + row_R.to(tl.int64)[:, None] * K + deep_K[None, :]
    weight_KN = weight_ptr + group.to(tl.int64) * N * K
    weight_KN += column_N.to(tl.int64)[None, :] * stride_n + deep_K.to(tl.int64)[:, None] * stride_k
    y_RN = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, tl.where(group < G, K, 0), DEPTH):
        here_K = deep_K < K - k
        a_RK = tl.load(x_RK, mask=here_R[:, None] & here_K[None, :], other=0.0)
        b_KN = tl.load(weight_KN, mask=here_K[:, None] & here_N[None, :], other=0.0)
        if INTERPRETED:
            a_RK, b_KN = a_RK.to(tl.float32), b_KN.to(tl.float32)
        y_RN = tl.dot(a_RK, b_KN, y_RN, input_precision="ieee")
        x_RK += DEPTH
        weight_KN += DEPTH * stride_k
    to_RN = y_ptr + row_R.to(tl.int64)[:, None] * N + column_N[None, :]
    tl.store(to_RN, y_RN.to(y_ptr.dtype.element_ty), mask=here_R[:, None] & here_N[None, :])


@_tuned(key=["G", "O", "I"])
@triton.jit(do_not_specialize=["G"])
def weight_kernel(
    dy_ptr, x_ptr, dweight_ptr, offsets_ptr, G, O, I,  # noqa: E741
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One ROWS x COLUMNS tile of one group's dweight: the sum over the group's rows, DEPTH at a time."""
    across, down = tl.cdiv(I, COLUMNS), tl.cdiv(O, ROWS)
    group = tl.program_id(0) // (across * down)
    tile = tl.program_id(0) % (across * down)
    band = tile // (BAND * across)
    high = tl.minimum(down - band * BAND, BAND)
    inside = tile % (BAND * across)
    out_O = (band * BAND + inside % high) * ROWS + tl.arange(0, ROWS)
    in_I = inside // high * COLUMNS + tl.arange(0, COLUMNS)
    here_O, here_I = out_O < O, in_I < I
    begin = tl.load(offsets_ptr + group - 1, mask=group > 0, other=0)
    end = tl.load(offsets_ptr + group)
    row_T = begin + tl.arange(0, DEPTH)
    dy_OT = dy_ptr + row_T.to(tl.int64)[None, :] * O + out_O[:, None]
    x_TI = x_ptr + row_T.to(tl.int64)[:, None] * I + in_I[None, :]
    dweight_OI = tl.zeros((ROWS, COLUMNS), tl.float32)
    for t in range(begin, end, DEPTH):
        here_T = tl.arange(0, DEPTH) < end - t
        a_OT = tl.load(dy_OT, mask=here_O[:, None] & here_T[None, :], other=0.0)
        b_TI = tl.load(x_TI, mask=here_T[:, None] & here_I[None, :], other=0.0)
        if INTERPRETED:
            a_OT, b_TI = a_OT.to(tl.float32), b_TI.to(tl.float32)
        dweight_OI = tl.dot(a_OT, b_TI, dweight_OI, input_precision="ieee")
        dy_OT += DEPTH * O
        x_TI += DEPTH * I
    to_OI = dweight_ptr + (group.to(tl.int64) * O + out_O)[:, None] * I + in_I[None, :]
    tl.store(to_OI, dweight_OI.to(dweight_ptr.dtype.element_ty), mask=here_O[:, None] & here_I[None, :])


def rows_times(x_TK: Tensor, weight_GKN: Tensor, offsets_G: Tensor) -> Tensor:
    """y_TN = x_TK times the row's own group's weight; zero in rows that belong to no group.

    `weight_GKN` may be the transposed view of a contiguous weight. Both have the same type, of at most 32 bits; products
    of float32 are exact ones, not TF32.
    """
    x_TK = x_TK.contiguous()
    T, (G, K, N) = len(x_TK), weight_GKN.shape
    y_TN = x_TK.new_empty(T, N)
    _, stride_k, stride_n = weight_GKN.stride()

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (most_strips(T, G, tile["ROWS"]) * triton.cdiv(N, tile["COLUMNS"]),)

    with torch.cuda.device_of(x_TK):
        rows_kernel[grid](x_TK, weight_GKN, y_TN, offsets_G, T, G, N, K, stride_n, stride_k)
    return y_TN


def weight_gradient(dy_TO: Tensor, x_TI: Tensor, offsets_G: Tensor, dtype: torch.dtype) -> Tensor:
    """dweight_GOI in `dtype`: for each group dy^T x over its rows, rounded once."""
    dy_TO, x_TI = dy_TO.contiguous(), x_TI.contiguous()
    G, O, I = len(offsets_G), dy_TO.shape[1], x_TI.shape[1]  # noqa: E741
    dweight_GOI = torch.empty(G, O, I, dtype=dtype, device=x_TI.device)

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (G * triton.cdiv(O, tile["ROWS"]) * triton.cdiv(I, tile["COLUMNS"]),)

    with torch.cuda.device_of(x_TI):
        weight_kernel[grid](dy_TO, x_TI, dweight_GOI, offsets_G, G, O, I)
    return dweight_GOI
