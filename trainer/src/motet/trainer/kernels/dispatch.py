"""Rows times the matrix of their group, in whichever of three ways is fastest on this device for this shape.

    x_TI, weight_GOI, groups --`grouped_linear`--> y_TO        and in the backward pass dx_TI, dweight_GOI

    own          `linear`: one launch, the rows of each group told by the device
    grouped_mm   torch's: likewise; only where it has one kernel for it (Hopper and later, bf16)
    loop         one `torch.mm` per group, on slices that the host knows

Which is fastest depends on shapes, split and the libraries' versions, and differs by a tenth either way: so each product
(forward, dX, dW) of each shape is measured at its first use, on this device, with the very operands and three splits of
their rows, and the choice is kept for the process and logged. On a CPU the loop is the only way. While a CUDA graph is
captured it is none, since the graph would keep this batch's split for all others.

Letters: T rows, G groups, I and O features in and out, K summed over, N columns of a result.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.trainer.kernels import usable

if TYPE_CHECKING:
    from motet.trainer.kernels.groups import Groups

logger = logging.getLogger(__name__)

REPEATS = 7
"""How often each way is timed on each split; the median counts."""

Key = tuple[Any, ...]
"""(product, G, columns and rows of a matrix, type, T rounded up to a power of two): what a choice is remembered by."""

measured: dict[Key, dict[str, float]] = {}
"""Milliseconds of each way, by shape: everything that this process has measured."""


@dataclass(frozen=True)
class Way:
    """One way to do both kinds of product.

    Attributes:
        rows_times: (x_TK, weight_GKN, groups) -> y_TN, zero in rows past the last group; the weight may be transposed.
        weight_gradient: (dy_TO, x_TI, groups, dtype) -> dweight_GOI in that type, zero for groups without rows.
    """

    rows_times: Callable[[Tensor, Tensor, Groups], Tensor]
    weight_gradient: Callable[[Tensor, Tensor, Groups, torch.dtype], Tensor]


def _own_rows(x_TK: Tensor, weight_GKN: Tensor, groups: Groups) -> Tensor:
    from motet.trainer.kernels.linear import rows_times

    return rows_times(x_TK, weight_GKN, groups.offsets_G)


def _own_weight(dy_TO: Tensor, x_TI: Tensor, groups: Groups, dtype: torch.dtype) -> Tensor:
    from motet.trainer.kernels.linear import weight_gradient

    return weight_gradient(dy_TO, x_TI, groups.offsets_G, dtype)


def _torch_rows(x_TK: Tensor, weight_GKN: Tensor, groups: Groups) -> Tensor:
    y_TN = F.grouped_mm(x_TK.contiguous(), weight_GKN, offs=groups.offsets_G)
    if groups.counts is not None:  # where only the device knows the groups, they cover all rows
        y_TN[sum(groups.counts) :].zero_()  # it leaves these as they were
    return y_TN


def _torch_weight(dy_TO: Tensor, x_TI: Tensor, groups: Groups, dtype: torch.dtype) -> Tensor:
    return F.grouped_mm(dy_TO.contiguous().t(), x_TI.contiguous(), offs=groups.offsets_G).to(dtype)


def _loop_rows(x_TK: Tensor, weight_GKN: Tensor, groups: Groups) -> Tensor:
    y_TN, end = x_TK.new_empty(len(x_TK), weight_GKN.shape[2]), 0
    for group, rows in groups.slices():
        torch.mm(x_TK[rows], weight_GKN[group], out=y_TN[rows])
        end = rows.stop
    y_TN[end:].zero_()
    return y_TN


def _loop_weight(dy_TO: Tensor, x_TI: Tensor, groups: Groups, dtype: torch.dtype) -> Tensor:
    dweight_GOI = x_TI.new_empty(len(groups.offsets_G), dy_TO.shape[1], x_TI.shape[1])
    absent = set(range(len(dweight_GOI)))
    for group, rows in groups.slices():
        torch.mm(dy_TO[rows].t(), x_TI[rows], out=dweight_GOI[group])
        absent.remove(group)
    for group in absent:
        dweight_GOI[group].zero_()
    return dweight_GOI.to(dtype)


WAYS = {
    "own": Way(_own_rows, _own_weight),
    "grouped_mm": Way(_torch_rows, _torch_weight),
    "loop": Way(_loop_rows, _loop_weight),
}


def grouped_linear(x_TI: Tensor, weight_GOI: Tensor, groups: Groups, dtype: torch.dtype) -> Tensor:
    """Each row times its own group's matrix, multiplied in `dtype`; zero in rows past the last group.

    Gradients have the types of what they belong to. Raises RuntimeError if a shape's first use is in the capture of a
    CUDA graph.
    """
    return _GroupedLinear.apply(x_TI, weight_GOI, groups, dtype)


def weight_gradient(dy_TO: Tensor, x_TI: Tensor, groups: Groups, dtype: torch.dtype) -> Tensor:
    """dweight_GOI in `dtype`: dy^T x of each group's rows, zero for a group without any."""

    def run(way: str, groups: Groups) -> Tensor:
        return WAYS[way].weight_gradient(dy_TO, x_TI, groups, dtype)

    return _fastest("dW", run, x_TI, (dy_TO.shape[1], x_TI.shape[1]), groups)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_GOI: Tensor, groups: Groups, dtype: torch.dtype) -> Tensor:
        ctx.groups, ctx.dtypes = groups, (x_TI.dtype, weight_GOI.dtype)
        x_TI, weight_GOI = x_TI.to(dtype), weight_GOI.to(dtype).contiguous()
        ctx.save_for_backward(x_TI, weight_GOI)
        return _rows_times("forward", x_TI, weight_GOI.transpose(1, 2), groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_GOI = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        dy_TO = grads[0].to(x_TI.dtype).contiguous()
        dx_TI = dweight_GOI = None
        if ctx.needs_input_grad[0]:
            dx_TI = _rows_times("dX", dy_TO, weight_GOI, ctx.groups).to(x_dtype)
        if ctx.needs_input_grad[1]:
            dweight_GOI = weight_gradient(dy_TO, x_TI, ctx.groups, weight_dtype)
        return dx_TI, dweight_GOI, None, None


def _rows_times(product: str, x_TK: Tensor, weight_GKN: Tensor, groups: Groups) -> Tensor:
    def run(way: str, groups: Groups) -> Tensor:
        return WAYS[way].rows_times(x_TK, weight_GKN, groups)

    return _fastest(product, run, x_TK, weight_GKN.shape[1:], groups)


def _fastest(
    product: str, run: Callable[[str, Groups], Tensor], x: Tensor, matrix: Sequence[int], groups: Groups
) -> Tensor:
    """The product, in the fastest way there is for it."""
    ways = possible(x, matrix)
    if len(ways) > 1:
        key = product, len(groups.offsets_G), *matrix, x.dtype, 1 << max(len(x) - 1, 0).bit_length()
        capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
        if key not in measured:
            if capturing:
                raise RuntimeError(f"a CUDA graph is captured before {key} was measured: run a step beforehand")
            measured[key] = measure(run, ways, len(x), groups)
            times = ", ".join(f"{way} {taken:.3f} ms" for way, taken in measured[key].items())
            best = min(ways, key=measured[key].__getitem__)
            kind = str(x.dtype).removeprefix("torch.")
            logger.info(
                "grouped linear %s, %d x %d x %d, %s, up to %d rows: %s -> %s", *key[:4], kind, key[-1], times, best
            )
        if capturing or groups.counts is None:
            ways = [way for way in ways if way != "loop"]
        ways = [min(ways, key=measured[key].__getitem__)]
    return run(ways[0], groups)


def possible(x: Tensor, matrix: Sequence[int]) -> list[str]:
    """The ways that work for `x` times matrices of this shape without making the device wait for the host."""
    ways = ["loop"]
    if not usable(x) or not len(x):
        return ways
    hopper = torch.cuda.get_device_capability(x.device) >= (9, 0)  # before it, grouped_mm copies offsets to the host
    if hopper and x.dtype is torch.bfloat16 and hasattr(F, "grouped_mm") and not any(size % 8 for size in matrix):
        ways.insert(0, "grouped_mm")
    return ["own", *ways]


def measure(run: Callable[[str, Groups], Tensor], ways: Sequence[str], rows: int, groups: Groups) -> dict[str, float]:
    """Milliseconds of each way, summed over `splits` of the rows; the ways take turns, so that all see the same device."""
    device, total = groups.offsets_G.device, dict.fromkeys(ways, 0.0)
    for counts in splits(rows, len(groups.offsets_G)):
        split = replace(groups, counts=counts, offsets_G=torch.tensor(counts).cumsum(0).int().to(device))
        for way in ways:
            run(way, split)  # compiled and tuned here
        laps: dict[str, list[Callable[[], float]]] = {way: [] for way in ways}
        for _ in range(REPEATS):
            for way in ways:
                laps[way].append(_lap(run, way, split))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        for way in ways:
            total[way] += statistics.median(lap() for lap in laps[way])
    return total


def splits(rows: int, groups: int) -> list[tuple[int, ...]]:
    """Rows of each group: all alike, ever more, and nine tenths in one."""
    shares = [[1.0] * groups, [g + 1.0 for g in range(groups)], [1.0] * groups]
    shares[2][groups // 2] = 9.0 * max(groups - 1, 1)
    found = []
    for share in shares:
        ends = [0, *(round(end / sum(share) * rows) for end in accumulate(share))]
        found.append(tuple(end - begin for begin, end in pairwise(ends)))
    return found


def _lap(run: Callable[[str, Groups], Tensor], way: str, groups: Groups) -> Callable[[], float]:
    """Start the work; what is returned tells its milliseconds once the device has done it."""
    if groups.offsets_G.is_cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(way, groups)
        end.record()
        return lambda: begin.elapsed_time(end)
    start = time.perf_counter()
    run(way, groups)
    taken = 1e3 * (time.perf_counter() - start)
    return lambda: taken
