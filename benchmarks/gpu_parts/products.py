"""Grouped linear layers over one dense product of the same rows: what towers cost in the matrix products alone.

the four matrices of a layer (qkv, out, gate and up, down) x rows x splits --> dense time / grouped time
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.trainer.kernels import dispatch
from motet.trainer.kernels.groups import Groups
from motet.trainer.model.grouped import grouped_linear
from motet.trainer.model.mot import feed_forward_width

from .common import interleaved, show, verdict

SPLITS = ((50, 50), (25, 60, 15), (5, 90, 5))
BOUNDS = {"forward": 0.95, "with dX and dW": 0.93}


def products(device: torch.device, dims: tuple[int, ...], rows: tuple[int, ...]) -> None:
    """Print one row per width, number of rows and split, then which way each product was found fastest."""
    table = []
    for D in dims:
        for T in rows:
            for split in SPLITS:
                table.append([str(D), f"{T:,}", "/".join(map(str, split)), *ratios(device, D, T, split)])
    head = ["D", "rows", "split", "dense ms", "forward", f">= {BOUNDS['forward']}", "dense ms", "with dX and dW"]
    show(
        "Grouped linear over one dense product (dense time / grouped time)",
        [*head, f">= {BOUNDS['with dX and dW']}"],
        table,
    )
    ways = [
        [
            *map(str, key),
            *(f"{times[way]:.3f}" if way in times else "-" for way in dispatch.WAYS),
            min(times, key=times.__getitem__),
        ]
        for key, times in dispatch.measured.items()
    ]
    show(
        "Milliseconds by way, summed over three splits",
        ["product", "G", "K", "N", "type", "rows up to", *dispatch.WAYS, "taken"],
        ways,
    )


def ratios(device: torch.device, D: int, T: int, split: tuple[int, ...]) -> list[str]:
    """Dense milliseconds, ratio and verdict of the forward pass, and of forward and backward."""
    FF = feed_forward_width(SimpleNamespace(dim=D, ffn=None))
    ends = [round(sum(split[: g + 1]) / 100 * T) for g in range(len(split))]
    counts = tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))
    groups = Groups(counts, torch.tensor(ends, dtype=torch.int32, device=device))
    seconds = dict.fromkeys([(kind, part) for kind in ("dense", "grouped") for part in BOUNDS], 0.0)
    for O, I in ((3 * D, D), (D, D), (2 * FF, D), (D, FF)):  # noqa: E741
        x_TI = torch.randn(T, I, device=device, dtype=torch.bfloat16, requires_grad=True)
        weight_GOI = torch.randn(len(split), O, I, device=device, dtype=torch.bfloat16).mul_(I**-0.5).requires_grad_()
        dense_OI = weight_GOI.detach()[0].clone().requires_grad_()
        dy_TO = torch.randn(T, O, device=device, dtype=torch.bfloat16)
        works = {}
        for kind, product in (
            ("dense", lambda x=x_TI, w=dense_OI: F.linear(x, w)),
            ("grouped", lambda x=x_TI, w=weight_GOI: grouped_linear(x, w, groups)),
        ):
            works[kind, "forward"] = product
            works[kind, "with dX and dW"] = both(product, [x_TI, dense_OI if kind == "dense" else weight_GOI], dy_TO)
        for key, taken in interleaved(works, device).items():
            seconds[key] += taken
    cells = []
    for part, bound in BOUNDS.items():
        ratio = seconds["dense", part] / seconds["grouped", part]
        cells += [f"{seconds['dense', part] * 1e3:.2f}", f"**{ratio:.3f}**", verdict(ratio >= bound)]
    return cells


def both(product: Callable[[], Tensor], leaves: list[Tensor], dy_TO: Tensor) -> Callable[[], object]:
    """The product and its gradients; nothing is added to gradients of before."""
    return lambda: torch.autograd.grad(product(), leaves, dy_TO)
