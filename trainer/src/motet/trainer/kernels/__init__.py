"""The model's row-wise parts as Triton kernels: the same results as `model`, in fewer passes over memory.

    `linear`         rows times their group's matrix, and the gradients of both
    `dispatch`       which of {`linear`, `torch.nn.functional.grouped_mm`, a loop of `torch.mm`} is fastest for a shape
    `norm`           RMSNorm with the gain of the row's group, also with the residual added
    `rope`           QK-norm, rotation and the way into sequence order, in one pass
    `swiglu`         silu(gate) * up
    `cross_entropy`  softmax and its gradient, in place of the scores
    `rows`           what these share: which group a row belongs to

Groups are told by the running ends of their rows, `offsets_G` (int32), which stay on the device: no kernel's launch
depends on how a batch splits, so nothing waits for the host, is compiled again, or hinders the capture of a CUDA graph.
Needs torch and triton only. `model.grouped` calls these where `usable` says so; everywhere else it stays with torch.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor


def usable(x: Tensor) -> bool:
    """Whether the kernels run on `x`: it lies on a GPU, has a type of at most 32 bits, and Triton is installed."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16, torch.float32) and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton can be imported; torch's CPU packages come without it."""
    return importlib.util.find_spec("triton") is not None
