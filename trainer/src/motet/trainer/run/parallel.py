"""Several processes as one trainer: what they agree on, and how their sums become one.

    rank's losses, counts --all-reduce (sum)--> the global batch's, equal on every rank      (gradients: `sharding`)

With one process, everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from motet.core.errors import UserError
from motet.pipeline.dataset.header import DamagedShard


@contextmanager
def together(world: int) -> Iterator[None]:
    """What fails on one rank fails on all, so that none waits for another that is gone."""
    refusal: Exception | None = None
    try:
        yield
    except Exception as error:
        refusal = error
    if any_of(refusal is not None, world):
        raise together_refused(refusal, world)


def together_refused(mine: Exception | None, world: int) -> Exception:
    """What every rank raises when some of them fail: the first one's own words."""
    told = [
        each for each in gathered(mine and (_kind(mine), f"{type(mine).__name__}: {mine}", str(mine)), world) if each
    ]
    kind, named, words = told[0]
    if mine is not None and str(mine) == words:
        return mine
    return kind(words if kind is not RuntimeError else f"another worker stopped: {named}")


def _kind(error: Exception) -> type[Exception]:
    return next((kind for kind in (UserError, DamagedShard) if isinstance(error, kind)), RuntimeError)


def gathered(mine: Any, world: int) -> list[Any]:
    """What each rank has to say, in their order; small things only."""
    told: list[Any] = [mine] * world
    if world > 1:
        dist.all_gather_object(told, mine)
    return told


def any_of(mine: bool, world: int) -> bool:
    """Whether it is so on any rank."""
    return bool(add_up(torch.tensor(int(mine)), world))


def add_up(values: Tensor, world: int) -> Tensor:
    """The sum over ranks, where they exchange tensors; int64 wraps round. With one rank, `values` as they are."""
    if world > 1:
        values = values.to(_device())
        dist.all_reduce(values)
    return values


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
