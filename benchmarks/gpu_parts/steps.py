"""What towers cost in a block, in a whole step, and over an eager model with masks; how much of the peak a step reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import reference
import torch
from torch import Tensor

from motet.trainer.model.flops import batch_flops, peak
from motet.trainer.model.mot import Layout

from .common import SHARES, Step, free, interleaved, model_of, moved, shape, show, verdict
from .eager import EagerBlock

VOCABULARY = 65536
SEQUENCE = 4096


def packed(tokens: int, length: int = SEQUENCE) -> Any:
    """Rows of documents of three modalities, hardly padded."""
    return reference.random_rows(1, tokens // length, length, SHARES, VOCABULARY, span=length // 8, padding=0.02)


def shares(counts: tuple[int, ...]) -> str:
    """Each tower's share of the rows, for people."""
    return "/".join(f"{count / sum(counts):.0%}" for count in counts)


def blocks(device: torch.device, shapes: tuple[tuple[int, int], ...], tokens: int, length: int = SEQUENCE) -> None:
    """A MoT block over a dense one, forward and backward, and over the eager one with masks."""
    table, over_eager = [], []
    for D, H in shapes:
        config, rows = shape(D, 1, H), packed(tokens, length)
        works: dict[str, Callable[[], object]] = {}
        for kind, towers in (("dense", [0, 0, 0]), ("MoT", [0, 1, 2])):
            batch = moved(reference.grouped(rows, towers=towers), device)
            works[kind] = block_work(config, towers, batch, device)
        seconds = interleaved(works, device)
        ratio, bound = seconds["MoT"] / seconds["dense"], 1.05 if D < 4096 else 1.03
        cells = [str(D), f"{tokens:,}", shares(batch.counts)]
        times = [f"{seconds[kind] * 1e3:.2f}" for kind in ("dense", "MoT")]
        table.append([*cells, *times, f"**{ratio:.3f}**", f"{bound}", verdict(ratio <= bound)])
        del works["dense"]
        free()
        if D <= 2048:
            works["eager"] = eager_work(config, rows, batch, device)
            seconds = interleaved(works, device)
            ratio = seconds["eager"] / seconds["MoT"]
            times = [f"{seconds[kind] * 1e3:.2f}" for kind in ("eager", "MoT")]
            over_eager.append([*cells, *times, f"**{ratio:.2f}**", verdict(ratio >= 2)])
        del works
        free()
    head = ["D", "tokens", "towers"]
    show(
        "MoT block over dense block, forward and backward",
        [*head, "dense ms", "MoT ms", "ratio", "at most", "within"],
        table,
    )
    show(
        "Block of an eager MoT with boolean masks (written for this benchmark) over MoT block",
        [*head, "eager ms", "MoT ms", "times", ">= 2"],
        over_eager,
    )


def block_work(config: Any, towers: list[int], batch: Any, device: torch.device) -> Callable[[], object]:
    """Forward and backward of one block under autocast, rows in grouped order."""
    model = model_of(config, reference.TOWERS[: max(towers) + 1], 64, device)
    with torch.autocast(device.type, torch.bfloat16):
        layout = model.layout(batch)
    return backward_of(
        lambda x_TD: model.blocks[0](x_TD, layout), list(model.blocks[0].parameters()), batch, config, device
    )


def eager_work(config: Any, rows: Any, batch: Any, device: torch.device) -> Callable[[], object]:
    """The same of the eager block, rows in sequence order."""
    with device:
        block = EagerBlock(config, rows.towers)
    tower_T = torch.from_numpy(rows.tower.reshape(-1)).to(device)
    masks = [tower_T == m for m in range(rows.towers)]
    model = model_of(config, reference.TOWERS, 64, device)
    with torch.autocast(device.type, torch.bfloat16):
        grouped = model.layout(batch)
    assert grouped.order is not None
    place_T = grouped.order[0]
    layout = Layout(grouped.groups, None, grouped.cos[place_T], grouped.sin[place_T], grouped.attend)
    return backward_of(lambda x_TD: block(x_TD, masks, layout), list(block.parameters()), batch, config, device)


def backward_of(
    block: Callable[[Tensor], Tensor], weights: list[Tensor], batch: Any, config: Any, device: torch.device
) -> Callable[[], object]:
    """Runs the block on a residual stream in float32, and takes all gradients."""
    x_TD = torch.randn(len(batch.ids_T), config.dim, device=device, requires_grad=True)
    grad_TD = torch.randn_like(x_TD)

    def work() -> object:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            y_TD = block(x_TD)
        return torch.autograd.grad(y_TD, [x_TD, *weights], grad_TD)

    return work


def whole_step(device: torch.device, D: int, L: int, H: int, tokens: int, micro: int) -> None:
    """One optimizer step of `tokens` tokens in micro-batches of `micro`, MoT over dense."""
    rows, config, times = packed(micro), shape(D, L, H), tokens // micro
    steps = {
        kind: Step(config, towers, VOCABULARY, rows, device)
        for kind, towers in (("dense", [0, 0, 0]), ("MoT", [0, 1, 2]))
    }
    seconds = interleaved({kind: lambda step=step: step.whole(times) for kind, step in steps.items()}, device, 5)
    ratio = seconds["MoT"] / seconds["dense"]
    cells = [f"{D} x {L}", f"{tokens:,} in {times}", shares(steps["MoT"].host.counts)]
    cells += [f"{seconds[kind] * 1e3:.1f}" for kind in ("dense", "MoT")]
    head = ["D x L", "tokens per step", "towers", "dense ms", "MoT ms", "ratio", "<= 1.08", "MoT tokens/s"]
    row = [*cells, f"**{ratio:.3f}**", verdict(ratio <= 1.08), f"{tokens / seconds['MoT']:,.0f}"]
    show("Whole step over dense step, with AdamW", head, [row])


def utilisation(device: torch.device, D: int, L: int, H: int, tokens: int, micro: int) -> None:
    """Model FLOP/s of a whole step over the maker's peak, dense and MoT, one after the other in memory."""
    rows, config, times, table = packed(micro), shape(D, L, H), tokens // micro, []
    best = peak(str(device), torch.bfloat16, 1)
    for kind, towers in (("dense", [0, 0, 0]), ("MoT", [0, 1, 2])):
        torch.cuda.reset_peak_memory_stats()
        try:
            step = Step(config, towers, VOCABULARY, rows, device)
            taken = interleaved({kind: lambda step=step: step.whole(times)}, device, 3)[kind]
            done = times * batch_flops(config, VOCABULARY, step.host, reference.TOWERS[: max(towers) + 1])
            share = f"**{done / taken / best.flops:.1%}**" if best else "-"
            fine = verdict(bool(best) and done / taken >= 0.5 * best.flops)
            memory = f"{torch.cuda.max_memory_allocated() / 2**30:.0f}"
            table.append(
                [
                    kind,
                    f"{taken * 1e3:.0f}",
                    f"{tokens / taken:,.0f}",
                    f"{done / taken / 1e12:.0f}",
                    share,
                    fine,
                    memory,
                ]
            )
        except torch.OutOfMemoryError:
            table.append([kind, *["does not fit"] * 6])
        step = None
        free()
    print(f"Peak: {best.flops / 1e12:.0f} TFLOP/s, {best.source}.\n" if best else "This device's peak is not known.\n")
    head = ["model", "step ms", "tokens/s", "TFLOP/s", "MFU", ">= 50%", "GB"]
    show(f"Utilisation, D {D}, {L} layers, rows of {SEQUENCE}, {tokens:,} tokens a step in {times}, bf16", head, table)


def on_cpu(device: torch.device, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Without a GPU: a step of a MoT over one of a dense model with as many active parameters, in CPU time."""
    table = []
    for D, L, H, B, S in shapes:
        rows, config = reference.random_rows(2, B, S, SHARES, 8192, span=S // 16, padding=0.02), shape(D, L, H)
        for half in (False, True):
            steps = {
                kind: Step(config, towers, 8192, rows, device, half)
                for kind, towers in (("dense", [0, 0, 0]), ("MoT", [0, 1, 2]))
            }
            seconds = interleaved({kind: lambda step=step: step.whole(1) for kind, step in steps.items()}, device, 5)
            ratio, precision = seconds["MoT"] / seconds["dense"], "bfloat16" if half else "float32"
            cells = [f"{D} x {L}", f"{B} x {S}", shares(steps["MoT"].host.counts), precision]
            cells += [f"{seconds[kind] * 1e3:.0f}" for kind in ("dense", "MoT")]
            table.append([*cells, f"**{ratio:.3f}**", verdict(ratio <= 1.10), f"{B * S / seconds['MoT']:,.0f}"])
    head = ["D x L", "batch", "towers", "precision", "dense ms", "MoT ms", "ratio", "<= 1.10", "MoT tokens/s"]
    show("MoT step over dense step on the CPU, with AdamW", head, table)
