#!/usr/bin/env python3
"""The model on this machine's GPU: is it right, what do towers cost over a dense model, does the host ever wait?

    kernels and model against float64                                   `gpu_parts.correct`, here
    grouped linear layers over one dense product of the same rows       `gpu_parts.products`
    a block and a whole step, MoT over dense; over an eager MoT         `gpu_parts.steps`, `gpu_parts.eager`
    share of the peak that the 1.5B shape reaches                       `gpu_parts.steps`
    host syncs, recompilations, capture as a CUDA graph                 `gpu_parts.host`

Prints Markdown tables with the device's name, times as medians of interleaved repeats; exit code 1 if an error is above its
bound or the host's promises are broken. Needs torch and numpy (and triton on a GPU), nothing else: it runs from a bare copy of the repository. Without a GPU
it says so, and runs the checks of the model and a comparison of steps on the CPU.

    python benchmarks/gpu.py [--only correct products steps utilisation host] [--minutes 8]
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT / "trainer" / "src")  # before this folder, some of whose files are named like libraries' modules
sys.path.append(str(ROOT / "benchmarks"))

import argparse
import time
from collections.abc import Callable

import reference
import torch
from gpu_parts import host, products, steps
from gpu_parts.common import SHARES, free, moved, objective, shape, show, verdict
from torch import Tensor

from motet.trainer.model.mot import MoT
from motet.trainer.objective.losses import losses

BOUNDS = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2}
"""Largest relative error (norm of the difference over norm) of a loss or of any parameter's gradient."""

PARTS = ("correct", "products", "steps", "utilisation", "host")


def main() -> int:
    """Run everything; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--minutes", type=float, default=8, help="no part begins after this time")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"no GPU here; CPU, {torch.get_num_threads()} threads"
    )
    print(f"Device: **{name}**, torch {torch.__version__}\n")
    right: list[bool] = []
    start = time.monotonic()
    for part, works in (on_gpu(device, right) if device.type == "cuda" else on_cpu(device, right)).items():
        for work in works if part in options.only else ():
            if time.monotonic() - start > 60 * options.minutes:
                print(f"{part}: left out, {options.minutes:g} minutes are over.\n")
                continue
            begin = time.monotonic()
            work()
            free()
            print(f"({part}: {time.monotonic() - begin:.0f} s)\n", flush=True)
    return 0 if all(right) else 1


def on_gpu(device: torch.device, right: list[bool]) -> dict[str, list[Callable[[], object]]]:
    """What runs on a GPU, by part."""
    from gpu_parts import correct

    return {
        "correct": [lambda: right.append(correct.kernels(device)), lambda: right.append(correctness(device))],
        "host": [lambda: right.append(host.host(device))],
        "products": [lambda: products.products(device, (2048, 4096), (1 << 14, 1 << 15, 1 << 16))],
        "steps": [
            lambda: steps.blocks(device, ((1024, 8), (2048, 16), (4096, 32)), 1 << 15),
            lambda: steps.whole_step(device, 2048, 12, 16, 1 << 16, 1 << 14),
        ],
        "utilisation": [lambda: steps.utilisation(device, 2048, 24, 16, 1 << 16, 1 << 14)],
    }


def on_cpu(device: torch.device, right: list[bool]) -> dict[str, list[Callable[[], object]]]:
    """What runs without one."""
    return {
        "correct": [lambda: right.append(correctness(device))],
        "steps": [lambda: steps.on_cpu(device, ((256, 6, 8, 8, 512), (512, 4, 8, 4, 512), (512, 4, 8, 16, 512)))],
    }


def correctness(device: torch.device) -> bool:
    """Errors against the float64 reference, both objectives and both places of the norms; whether all are in bounds."""
    table = []
    for precision, bound in BOUNDS.items():
        for latent_dim in (0, 8):
            for norm in ("after", "before"):
                loss, gradient = errors(device, precision, latent_dim, norm)
                kind, fine = "transfusion" if latent_dim else "chameleon", verdict(max(loss, gradient) <= bound)
                table.append((precision, kind, norm, f"{loss:.1e}", f"{gradient:.1e}", f"{bound:.0e}", fine))
    head = ("precision", "objective", "norms", "loss error", "worst gradient error", "bound", "within")
    show("Model against a plain one in float64", head, table)
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


if __name__ == "__main__":
    sys.exit(main())
