"""What the host does in a step: it never waits, compiles nothing for a new mixture, and need not even be there.

one step under the sync detector                   -> how often the host waited
100 batches of different mixtures                  -> what Dynamo and Triton compiled after the first few
a step captured as a CUDA graph, another split     -> its loss and gradients beside those of an eager step
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import reference
import torch
from torch import Tensor

from .common import Step, moved, shape, show, verdict

BATCHES = 100


def host(device: torch.device) -> bool:
    """Print one row per promise; whether all are kept."""
    table = [[name, *work(device)] for name, work in (("host syncs in a step", syncs), ("compilations", compilations))]
    try:
        table.append(["CUDA graph of forward and backward, replayed on another split", *captured(device)])
    except Exception as error:  # the table says what a capture stumbled over
        table.append(
            ["CUDA graph of forward and backward", f"**failed**: {error!s:.300}".replace("\n", " "), verdict(False)]
        )
    show("The host", ["measure", "found", "as promised"], table)
    return all(row[-1] == verdict(True) for row in table)


def small(device: torch.device, tokens: int = 4096) -> Step:
    """A model in which all that a large one does happens, on rows whose labels are the same for every split."""
    rows = reference.random_rows(1, tokens // 1024, 1024, [1.0, 1.0, 1.0], 512, span=64)
    return Step(shape(256, 2, 4), [0, 1, 2], 512, rows, device)


def syncs(device: torch.device) -> list[str]:
    """The host's waits in the third step."""
    step = small(device)
    step.whole(1), step.whole(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step.whole(2)
    torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchroniz" in str(w.message)]
    where = "; ".join(sorted({f"{w.filename.rsplit('/', 1)[-1]}:{w.lineno}" for w in found}))
    return [f"{len(found)} {where}".strip(), verdict(not found)]


def compilations(device: torch.device) -> list[str]:
    """Graphs by Dynamo and kernels by Triton in 100 batches, the first five aside."""
    from triton import knobs

    made: list[str] = []
    knobs.compilation.listener = lambda **named: made.append(str(named["src"].name))
    step, rng = small(device), np.random.default_rng(0)
    graphs = 0
    for n in range(BATCHES):
        if n == 5:
            made.clear()
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        rows = reference.random_rows(n, 4, 1024, rng.dirichlet(np.ones(3)) + 0.01, 512, span=64)
        step.batch, step.counts = moved(reference.grouped(rows), device), reference.counts_of(rows)
        step.learn()
    knobs.compilation.listener = None
    more = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
    names = ", ".join(sorted(set(made)))
    return [f"{more} by Dynamo, {len(made)} by Triton {names}".strip(), verdict(not more and not made)]


def captured(device: torch.device) -> list[str]:
    """Largest relative error of loss and gradients of a replay, whose batch was split otherwise than the captured one."""
    step = small(device)
    rows = reference.random_rows(1, 4, 1024, [1.0, 1.0, 1.0], 512, span=64)
    other = moved(reference.grouped(replace(rows, tower=(rows.tower + (rows.position % 5 == 0)) % 3)), device)
    assert other.counts != step.batch.counts
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step.learn()
        step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = step.learn()
    for name, value in vars(other).items():
        if isinstance(value, Tensor):
            getattr(step.batch, name).copy_(value)
    graph.replay()
    found: dict[str, Any] = {"loss": total.detach().clone()}
    found |= {name: weight.grad.clone() for name, weight in step.model.named_parameters()}
    step.batch = other
    step.optimizer.zero_grad(set_to_none=True)
    expected: dict[str, Any] = {"loss": step.learn().detach()}
    expected |= {name: weight.grad for name, weight in step.model.named_parameters()}
    worst = max(float((found[name] - true).norm() / true.norm()) for name, true in expected.items())
    return [f"error {worst:.1e}", verdict(worst <= 2e-2)]
