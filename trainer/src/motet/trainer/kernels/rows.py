"""Which group a row belongs to, found on the device: what all kernels share.

    offsets_G --`group_of`--> the group of each row
              --`strip`-----> the n-th run of at most ROWS rows that lie in one group: the work of one program
    partial sums, one per strip --`sum_by_group`--> one sum per group, always added in the same order

`offsets_G` holds the running ends of the groups. Groups may be empty, and end where they like. Rows past the last end
belong to no group; kernels give them the number G and write zeros. How many strips there can be, `most_strips`, is known
without reading the offsets, so the host launches that many programs and those without a strip have nothing to do.

Letters: T rows, G groups, P strips, N columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run in Triton's interpreter, whose `tl.dot` takes the bits of bf16 for integers: it must be widened."""

SUM_WIDTH, SUM_DEPTH = 64, 32


def most_strips(T: int, G: int, rows: int) -> int:
    """The largest number of strips into which T rows can fall: each group, and the rows of none, may end in a short one."""
    return T // rows + G + 1


@triton.jit
def group_of(row, offsets_ptr, G):
    """How many groups end at or before the row (a number or a block of them): its group; G if it belongs to none."""
    group = row * 0
    for g in range(G):
        group += (row >= tl.load(offsets_ptr + g)).to(row.dtype)
    return group


@triton.jit
def strip(n, offsets_ptr, G, T, ROWS: tl.constexpr):
    """(group, first row, end of the group's rows) of the n-th strip; the end is 0 if there is no such strip.

    The strips of group G are the rows that belong to none.
    """
    group, first, end = n * 0 + G, n * 0, n * 0
    begin, before = n * 0, n * 0
    for g in range(G + 1):
        stop = tl.load(offsets_ptr + g, mask=g < G, other=T)
        count = tl.cdiv(stop - begin, ROWS)
        here = (n >= before) & (n < before + count)
        group = tl.where(here, g, group)
        first = tl.where(here, begin + (n - before) * ROWS, first)
        end = tl.where(here, stop, end)
        before += count
        begin = stop
    return group, first, end


@triton.jit
def strips_before(group, offsets_ptr, G, T, ROWS: tl.constexpr):
    """How many strips lie before those of `group`; with G + 1, how many there are."""
    begin, before = group * 0, group * 0
    for g in range(group):
        stop = tl.load(offsets_ptr + g, mask=g < G, other=T)
        before += tl.cdiv(stop - begin, ROWS)
        begin = stop
    return before


@triton.jit(do_not_specialize=["G", "T"])
def sum_strips(
    partial_ptr, sum_ptr, offsets_ptr, G, T, N, ROWS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr
):
    """One program adds up one group's partial sums in WIDTH columns."""
    group = tl.program_id(0)
    column_N = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    first = strips_before(group, offsets_ptr, G, T, ROWS)
    stop = strips_before(group + 1, offsets_ptr, G, T, ROWS)
    sum_N = tl.zeros((WIDTH,), tl.float32)
    for at in range(first, stop, DEPTH):
        strip_P = at + tl.arange(0, DEPTH)
        here = (strip_P < stop)[:, None] & (column_N < N)[None, :]
        part_PN = tl.load(partial_ptr + strip_P.to(tl.int64)[:, None] * N + column_N[None, :], mask=here, other=0.0)
        sum_N += tl.sum(part_PN, 0)
    tl.store(sum_ptr + group * N + column_N, sum_N, mask=column_N < N)


def sum_by_group(partial_PN: Tensor, offsets_G: Tensor, T: int, rows: int) -> Tensor:
    """[G, N] float32: for each group the sum over its strips of at most `rows` rows; zero where it has none."""
    G, N = len(offsets_G), partial_PN.shape[1]
    sum_GN = torch.empty(G, N, dtype=torch.float32, device=partial_PN.device)
    grid = (G, triton.cdiv(N, SUM_WIDTH))
    sum_strips[grid](partial_PN, sum_GN, offsets_G, G, T, N, rows, SUM_WIDTH, SUM_DEPTH)
    return sum_GN
