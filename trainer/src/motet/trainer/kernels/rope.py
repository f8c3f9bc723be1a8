"""From the fused projection to attention's inputs in one pass: QK-norm, rotation, and the way into sequence order.

    qkv_TJC in grouped order --`qk_norm_rope`--> q_THC, k_TKC, v_TKC in sequence order, each contiguous

A query or key vector is divided by its root mean square and multiplied by its tower's gain (if there are gains), then
component i and i + C/2 turn by the row's angle (`model.rotary`); values only move. Row t of the input becomes row
`place_T[t]` of the outputs. The backward pass goes the same way back, again in one pass, and leaves the gains' gradients
as one sum per strip of rows, added up in a fixed order. Arithmetic is float32; only results are rounded, to the input's
type.

The attention's result goes back into grouped order by `model.attention.restored`: a gather of whole rows is all there is to
do, and torch's `index_select` does that at the speed of memory.

Letters: T rows, J = H + 2K heads, H query heads, K key heads and as many value heads, C width of a head, G towers, P strips.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from motet.trainer.kernels.rows import group_of, most_strips, strip, sum_by_group

STRIP = 16
"""Rows of one program of the backward pass."""


@triton.jit
def _turn(
    from_ptr, to_ptr, gain_ptr, cos_C, sin_C, heads, C, eps, NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr
):
    """All heads of one row: norm, gain, rotation."""
    head_J, half_C = tl.arange(0, HEADS), tl.arange(0, HALF)
    in_C = half_C < C // 2
    here = (head_J < heads)[:, None] & in_C[None, :]
    at = head_J[:, None] * C + half_C[None, :]
    a = tl.load(from_ptr + at, mask=here, other=0.0).to(tl.float32)
    b = tl.load(from_ptr + at + C // 2, mask=here, other=0.0).to(tl.float32)
    if NORM:
        rstd_J = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / C + eps)
        a *= rstd_J[:, None] * tl.load(gain_ptr + half_C, mask=in_C, other=0.0).to(tl.float32)[None, :]
        b *= rstd_J[:, None] * tl.load(gain_ptr + C // 2 + half_C, mask=in_C, other=0.0).to(tl.float32)[None, :]
    kind = to_ptr.dtype.element_ty
    tl.store(to_ptr + at, (a * cos_C[None, :] - b * sin_C[None, :]).to(kind), mask=here)
    tl.store(to_ptr + at + C // 2, (b * cos_C[None, :] + a * sin_C[None, :]).to(kind), mask=here)


@triton.jit
def _turn_back(
    grad_ptr,
    from_ptr,
    to_ptr,
    gain_ptr,
    cos_C,
    sin_C,
    heads,
    C,
    eps,
    NORM: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """The gradients of `_turn`'s input (stored) and of both halves of the gain (returned)."""
    head_J, half_C = tl.arange(0, HEADS), tl.arange(0, HALF)
    in_C = half_C < C // 2
    here = (head_J < heads)[:, None] & in_C[None, :]
    at = head_J[:, None] * C + half_C[None, :]
    ga = tl.load(grad_ptr + at, mask=here, other=0.0).to(tl.float32)
    gb = tl.load(grad_ptr + at + C // 2, mask=here, other=0.0).to(tl.float32)
    da = ga * cos_C[None, :] + gb * sin_C[None, :]
    db = gb * cos_C[None, :] - ga * sin_C[None, :]
    dgain_a, dgain_b = tl.zeros((HALF,), tl.float32), tl.zeros((HALF,), tl.float32)
    if NORM:
        a = tl.load(from_ptr + at, mask=here, other=0.0).to(tl.float32)
        b = tl.load(from_ptr + at + C // 2, mask=here, other=0.0).to(tl.float32)
        rstd_J = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / C + eps)
        a *= rstd_J[:, None]
        b *= rstd_J[:, None]
        dgain_a, dgain_b = tl.sum(da * a, 0), tl.sum(db * b, 0)
        da *= tl.load(gain_ptr + half_C, mask=in_C, other=0.0).to(tl.float32)[None, :]
        db *= tl.load(gain_ptr + C // 2 + half_C, mask=in_C, other=0.0).to(tl.float32)[None, :]
        along_J = (tl.sum(da * a, 1) + tl.sum(db * b, 1)) / C
        da = (da - a * along_J[:, None]) * rstd_J[:, None]
        db = (db - b * along_J[:, None]) * rstd_J[:, None]
    kind = to_ptr.dtype.element_ty
    tl.store(to_ptr + at, da.to(kind), mask=here)
    tl.store(to_ptr + at + C // 2, db.to(kind), mask=here)
    return dgain_a, dgain_b


@triton.jit
def _move(from_ptr, to_ptr, heads, C, HEADS: tl.constexpr, HALF: tl.constexpr):
    """All heads of one row as they are."""
    head_J, column_C = tl.arange(0, HEADS), tl.arange(0, 2 * HALF)
    here = (head_J < heads)[:, None] & (column_C < C)[None, :]
    at = head_J[:, None] * C + column_C[None, :]
    tl.store(to_ptr + at, tl.load(from_ptr + at, mask=here), mask=here)


@triton.jit(do_not_specialize=["G"])
def rope_kernel(
    qkv_ptr, q_gain_ptr, k_gain_ptr, cos_ptr, sin_ptr, place_ptr, q_ptr, k_ptr, v_ptr, offsets_ptr, G, H, K, C, eps,
    NORM: tl.constexpr, MOVE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One row, all heads."""
    row = tl.program_id(0)
    group = tl.minimum(group_of(row, offsets_ptr, G), G - 1)
    row = row.to(tl.int64)
    place = tl.load(place_ptr + row).to(tl.int64) if MOVE else row
    half_C = tl.arange(0, HALF)
    cos_C = tl.load(cos_ptr + row * (C // 2) + half_C, mask=half_C < C // 2, other=0.0).to(tl.float32)
    sin_C = tl.load(sin_ptr + row * (C // 2) + half_C, mask=half_C < C // 2, other=0.0).to(tl.float32)
    qkv_ptr += row * (H + 2 * K) * C
    q_ptr += place * H * C
    k_ptr += place * K * C
    v_ptr += place * K * C
    _turn(qkv_ptr, q_ptr, q_gain_ptr + group * C, cos_C, sin_C, H, C, eps, NORM, HEADS, HALF)
    _turn(qkv_ptr + H * C, k_ptr, k_gain_ptr + group * C, cos_C, sin_C, K, C, eps, NORM, KV_HEADS, HALF)
    _move(qkv_ptr + (H + K) * C, v_ptr, K, C, KV_HEADS, HALF)


@triton.jit(do_not_specialize=["T", "G"])
def rope_backward_kernel(
    dq_ptr, dk_ptr, dv_ptr, qkv_ptr, q_gain_ptr, k_gain_ptr, cos_ptr, sin_ptr, place_ptr, dqkv_ptr, partial_ptr,
    offsets_ptr, T, G, H, K, C, eps, NORM: tl.constexpr, MOVE: tl.constexpr, STRIP: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A strip of rows of one group, row by row; leaves the strip's share of both gains' gradients."""
    group, first, end = strip(tl.program_id(0), offsets_ptr, G, T, STRIP)
    group = tl.minimum(group, G - 1)
    half_C = tl.arange(0, HALF)
    in_C = half_C < C // 2
    q_a, q_b = tl.zeros((HALF,), tl.float32), tl.zeros((HALF,), tl.float32)
    k_a, k_b = tl.zeros((HALF,), tl.float32), tl.zeros((HALF,), tl.float32)
    for at in range(first, tl.minimum(end, first + STRIP)):
        row = tl.cast(at, tl.int64)
        place = tl.load(place_ptr + row).to(tl.int64) if MOVE else row
        cos_C = tl.load(cos_ptr + row * (C // 2) + half_C, mask=in_C, other=0.0).to(tl.float32)
        sin_C = tl.load(sin_ptr + row * (C // 2) + half_C, mask=in_C, other=0.0).to(tl.float32)
        q_ptr = row * (H + 2 * K) * C
        k_ptr = q_ptr + H * C
        a, b = _turn_back(
            dq_ptr + place * H * C, qkv_ptr + q_ptr, dqkv_ptr + q_ptr, q_gain_ptr + group * C, cos_C, sin_C, H, C, eps,
            NORM, HEADS, HALF,
        )  # fmt: skip
        q_a += a
        q_b += b
        a, b = _turn_back(
            dk_ptr + place * K * C, qkv_ptr + k_ptr, dqkv_ptr + k_ptr, k_gain_ptr + group * C, cos_C, sin_C, K, C, eps,
            NORM, KV_HEADS, HALF,
        )  # fmt: skip
        k_a += a
        k_b += b
        _move(dv_ptr + place * K * C, dqkv_ptr + k_ptr + K * C, K, C, KV_HEADS, HALF)
    if NORM:
        partial_ptr += tl.program_id(0).to(tl.int64) * 2 * C
        tl.store(partial_ptr + half_C, q_a, mask=in_C)
        tl.store(partial_ptr + C // 2 + half_C, q_b, mask=in_C)
        tl.store(partial_ptr + C + half_C, k_a, mask=in_C)
        tl.store(partial_ptr + C + C // 2 + half_C, k_b, mask=in_C)


def qk_norm_rope(
    qkv_TJC: Tensor,
    kv_heads: int,
    q_gain_GC: Tensor | None,
    k_gain_GC: Tensor | None,
    offsets_G: Tensor,
    eps: float,
    cos_TC: Tensor,
    sin_TC: Tensor,
    place_T: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q_THC, k_TKC, v_TKC) in sequence order.

    Args:
        qkv_TJC: query heads, then `kv_heads` key heads, then as many value heads, in grouped order; C even.
        kv_heads: K.
        q_gain_GC: gains of the queries' norm by group; None (as `k_gain_GC`) for no norm.
        k_gain_GC: gains of the keys' norm.
        offsets_G: running ends of the groups; they cover all rows.
        eps: what the norm adds to the mean square.
        cos_TC: cosines of each row's angles, T x C/2 in any shape.
        sin_TC: their sines.
        place_T: each grouped row's place in sequence order, a permutation; None if the orders are the same.
    """
    return _QKNormRope.apply(qkv_TJC, kv_heads, q_gain_GC, k_gain_GC, offsets_G, eps, cos_TC, sin_TC, place_T)


class _QKNormRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_TJC: Tensor,
        K: int,
        q_gain_GC: Tensor | None,
        k_gain_GC: Tensor | None,
        offsets_G: Tensor,
        eps: float,
        cos_TC: Tensor,
        sin_TC: Tensor,
        place_T: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv_TJC, cos_TC, sin_TC = qkv_TJC.contiguous(), cos_TC.contiguous(), sin_TC.contiguous()
        T, J, C = qkv_TJC.shape
        H = J - 2 * K
        q_THC, k_TKC, v_TKC = (qkv_TJC.new_empty(T, heads, C) for heads in (H, K, K))
        ctx.constants = K, eps, q_gain_GC is not None, place_T is not None
        q_gain_GC, k_gain_GC = (
            offsets_G if gain_GC is None else gain_GC.contiguous() for gain_GC in (q_gain_GC, k_gain_GC)
        )
        place_T = offsets_G if place_T is None else place_T  # a tensor in place of one that no program reads
        if T:
            with torch.cuda.device_of(qkv_TJC):
                rope_kernel[T,](
                    qkv_TJC, q_gain_GC, k_gain_GC, cos_TC, sin_TC, place_T, q_THC, k_TKC, v_TKC, offsets_G,
                    len(offsets_G), H, K, C, eps, *ctx.constants[2:], *_blocks(H, K, C), num_warps=_warps(H),
                )  # fmt: skip
        ctx.save_for_backward(qkv_TJC, q_gain_GC, k_gain_GC, offsets_G, cos_TC, sin_TC, place_T)
        return q_THC, k_TKC, v_TKC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv_TJC, q_gain_GC, k_gain_GC, offsets_G, cos_TC, sin_TC, place_T = ctx.saved_tensors
        dq_THC, dk_TKC, dv_TKC = (grad.contiguous() for grad in grads)
        K, eps, norm, move = ctx.constants
        G, (T, J, C) = len(offsets_G), qkv_TJC.shape
        H, P = J - 2 * K, most_strips(T, G, STRIP)
        dqkv_TJC = torch.empty_like(qkv_TJC)
        partial_PN = torch.empty(P, 2 * C if norm else 0, dtype=torch.float32, device=qkv_TJC.device)
        with torch.cuda.device_of(qkv_TJC):
            rope_backward_kernel[P,](
                dq_THC, dk_TKC, dv_TKC, qkv_TJC, q_gain_GC, k_gain_GC, cos_TC, sin_TC, place_T, dqkv_TJC, partial_PN,
                offsets_G, T, G, H, K, C, eps, norm, move, STRIP, *_blocks(H, K, C), num_warps=_warps(H),
            )  # fmt: skip
            dgains: tuple[Tensor | None, Tensor | None] = (None, None)
            if norm:
                sum_GN = sum_by_group(partial_PN, offsets_G, T, STRIP)
                dgains = sum_GN[:, :C].to(q_gain_GC.dtype), sum_GN[:, C:].to(k_gain_GC.dtype)
        return dqkv_TJC, None, *dgains, None, None, None, None, None


def _blocks(H: int, K: int, C: int) -> tuple[int, int, int]:
    """Heads, key heads and half a head's width as powers of two."""
    return triton.next_power_of_2(H), triton.next_power_of_2(K), triton.next_power_of_2(C // 2)


def _warps(H: int) -> int:
    """So many that the backward pass keeps all heads of a row in registers."""
    return 4 if H <= 16 else 8 if H <= 32 else 16
