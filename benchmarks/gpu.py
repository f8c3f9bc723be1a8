#!/usr/bin/env python3
"""The model on this machine's GPU: is it right, what do towers cost over a dense model, does the host ever wait?

    random packed batches -> plain float64 reference        ) errors of losses and gradients
                          -> the model, in each precision   )
                          -> a MoT and a dense model of equal active parameters, steps interleaved -> ratio of medians
                          -> one MoT step under the sync detector -> host syncs

Prints Markdown tables with the device's name; exit code 1 if an error is above its bound. Needs torch and numpy (and
triton on a GPU), nothing else: it runs from a bare copy of the repository. Without a GPU it says so, and runs the checks
and a smaller comparison on the CPU.

    python benchmarks/gpu.py [--repeats 9]
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT / "trainer" / "src")  # in place of this folder, whose file names are not modules to import

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from motet.trainer.flops import batch_flops, peak
from motet.trainer.model.mot import MoT
from motet.trainer.objective import losses

_spec = importlib.util.spec_from_file_location("motet_reference", ROOT / "benchmarks" / "reference.py")
assert _spec and _spec.loader
reference: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = reference
_spec.loader.exec_module(reference)

BOUNDS = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2}
"""Largest relative error (norm of the difference over norm) of a loss or of any parameter's gradient."""

SHARES = (0.3, 0.55, 0.15)
"""Text, pictures, speech: uneven, as real batches are."""


def main() -> int:
    """Run everything; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="interleaved steps of each model")
    repeats = parser.parse_args().repeats
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
        shapes = [(1024, 24, 16, 4, 4096), (1024, 24, 16, 16, 1024), (2048, 12, 16, 4, 4096), (2048, 12, 16, 8, 4096)]
        precisions = ["bfloat16"]
    else:
        name = f"no GPU here; CPU, {torch.get_num_threads()} threads"
        shapes, precisions = [(256, 6, 8, 8, 512), (512, 4, 8, 4, 512)], ["float32", "bfloat16"]
    print(f"Device: **{name}**, torch {torch.__version__}\n")
    right = correctness(device)
    speed(device, shapes, precisions, repeats)
    return 0 if right else 1


def correctness(device: torch.device) -> bool:
    """Errors against the float64 reference, both objectives and both places of the norms; whether all are in bounds."""
    table = []
    for precision, bound in BOUNDS.items():
        for latent_dim in (0, 8):
            for norm in ("after", "before"):
                loss, gradient = errors(device, precision, latent_dim, norm)
                kind = "transfusion" if latent_dim else "chameleon"
                fine = "yes" if max(loss, gradient) <= bound else "**no**"
                table.append((precision, kind, norm, f"{loss:.1e}", f"{gradient:.1e}", f"{bound:.0e}", fine))
    show(("precision", "objective", "norms", "loss error", "worst gradient error", "bound", "within"), table)
    return all(row[-1] == "yes" for row in table)


def errors(device: torch.device, precision: str, latent_dim: int, norm: str) -> tuple[float, float]:
    """Relative error of the loss, and the worst one of any parameter's gradient."""
    config, aim = shape(64, 3, 4, norm=norm), objective(latent_dim)
    rows = reference.random_rows(1, 2, 256, SHARES, 96, latent_dim, span=24)
    dtype = torch.float64 if precision == "float64" else torch.float32
    model = MoT(config, reference.TOWERS, 96, latent_dim)
    weights = {name: w.detach().double().requires_grad_() for name, w in model.named_parameters()}
    expected, _ = reference.plain_losses(weights, config, aim, rows)
    expected.backward()

    model = model.to(device, dtype)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        found = losses(model, moved(reference.grouped(rows, dtype=dtype), device), aim, reference.counts_of(rows)).total
    found.backward()

    def error(ours: Tensor, true: Tensor) -> float:
        return float((ours.detach().double().cpu() - true.detach()).norm() / true.detach().norm())

    worst = max(error(w.grad, weights[name].grad) for name, w in model.named_parameters())
    return error(found, expected), worst


def speed(device: torch.device, shapes: Sequence[tuple[int, ...]], precisions: Sequence[str], repeats: int) -> None:
    """A training step of a MoT with three towers over one of a dense model, on the same batches."""
    table = []
    for dim, layers, heads, batch_rows, length in shapes:
        config, vocabulary = shape(dim, layers, heads), 8192 if device.type == "cpu" else 65536
        rows = reference.random_rows(1, batch_rows, length, SHARES, vocabulary, span=length // 8, padding=0.02)
        for precision in precisions:
            steps: dict[str, Step] = {}
            for kind, towers in (("MoT", [0, 1, 2]), ("dense", [0, 0, 0])):
                names = reference.TOWERS[: max(towers) + 1]
                model = MoT(config, names, vocabulary).to(device)
                steps[kind] = Step(model, reference.grouped(rows, towers=towers), rows, device, precision)
            flops = batch_flops(config, vocabulary, steps["MoT"].host, reference.TOWERS)
            for step in steps.values():
                step.learn(), step.learn(), step.update()
            times: dict[tuple[str, str], list[float]] = {}
            for _ in range(repeats):
                for kind, step in steps.items():
                    times.setdefault((kind, "learn"), []).append(step.timed(step.learn))
                    times.setdefault((kind, "update"), []).append(step.timed(step.update))
            median = {key: statistics.median(values) for key, values in times.items()}
            learn, dense = median["MoT", "learn"], median["dense", "learn"]
            whole = (learn + median["MoT", "update"]) / (dense + median["dense", "update"])
            best = peak(str(device), getattr(torch, precision), torch.get_num_threads())
            table.append(
                (
                    f"{dim} x {layers}",
                    f"{batch_rows} x {length}",
                    "/".join(f"{c / sum(steps['MoT'].host.counts):.0%}" for c in steps["MoT"].host.counts),
                    precision,
                    f"{dense * 1e3:.1f}",
                    f"{learn * 1e3:.1f}",
                    f"**{learn / dense:.3f}**",
                    f"{whole:.3f}",
                    f"{batch_rows * length / learn:,.0f}",
                    f"{flops / learn / best.flops:.1%}" if best else "-",
                    steps["MoT"].syncs(),
                )
            )
            del steps
    show(
        (
            "D x L",
            "batch",
            "towers",
            "precision",
            "dense ms",
            "MoT ms",
            "ratio",
            "with AdamW",
            "tokens/s",
            "MFU",
            "syncs",
        ),
        table,
    )
    print(
        "dense, MoT: forward and backward of one batch, medians of interleaved steps; with AdamW: one update per batch."
    )
    for precision in precisions:
        if best := peak(str(device), getattr(torch, precision), torch.get_num_threads()):
            print(f"Peak for MFU in {precision}: {best.flops / 1e12:.2f} TFLOP/s, {best.source}.")


class Step:
    """One model's training step on one batch, and how long it takes."""

    def __init__(self, model: MoT, host: Any, rows: Any, device: torch.device, precision: str):
        self.model, self.host, self.device = model, host, device
        self.batch, self.counts = moved(host, device), reference.counts_of(rows)
        self.half = precision == "bfloat16"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def learn(self) -> None:
        """Forward and backward."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            total = losses(self.model, self.batch, objective(0), self.counts).total
        total.backward()

    def update(self) -> None:
        """The optimizer's step."""
        self.optimizer.step()

    def timed(self, work: Callable[[], None]) -> float:
        """Seconds of `work`, the device's part included."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def syncs(self) -> str:
        """How often the host waits for the device in one step."""
        if self.device.type != "cuda":
            return "-"
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.learn()
            self.update()
        torch.cuda.set_sync_debug_mode("default")
        return str(sum("synchroniz" in str(w.message) for w in caught))


def shape(dim: int, layers: int, heads: int, norm: str = "after") -> Any:
    """A model's configuration."""
    return SimpleNamespace(
        **dict(dim=dim, layers=layers, heads=heads, kv_heads=None, ffn=None, norm=norm, norm_eps=1e-6, qk_norm=True),
        **dict(rope_theta=1e4, untied=("qkv", "out", "ffn", "norms"), experts={}, cross_layers=None),
    )


def objective(latent_dim: int) -> Any:
    """An objective's configuration."""
    kind = "transfusion" if latent_dim else "chameleon"
    return SimpleNamespace(kind=kind, z_loss=1e-5, weights={}, diffusion="ddpm", diffusion_weight=5.0, noise_steps=1000)


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`."""
    return SimpleNamespace(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(batch).items()})


def show(head: Sequence[str], table: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    lines = [head, ["---"] * len(head), *table]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
