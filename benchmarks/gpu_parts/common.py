"""What all tables share: clocks, models, batches and how a table is printed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import reference
import torch
from torch import Tensor, nn

from motet.trainer.model.mot import MoT
from motet.trainer.objective.losses import losses

SHARES = (0.3, 0.55, 0.15)
"""Text, pictures, speech: uneven, as real batches are."""

REPEATS = 9


def interleaved(
    works: dict[str, Callable[[], object]], device: torch.device, repeats: int = REPEATS
) -> dict[str, float]:
    """Median seconds of each work; they take turns, so that all see the same device, after two turns unmeasured."""
    laps: dict[str, list[Callable[[], float]]] = {name: [] for name in works}
    for turn in range(repeats + 2):
        for name, work in works.items():
            lap = _lap(work, device)
            if turn >= 2:
                laps[name].append(lap)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {name: statistics.median(lap() for lap in each) for name, each in laps.items()}


def _lap(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3
    start = time.process_time()  # of this process: other work on the machine does not count
    work()
    taken = time.process_time() - start
    return lambda: taken


class Drawn(MoT):
    """A MoT whose initial weights are drawn where they lie: for billions of them a CPU would take minutes."""

    def initial(self, seed: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Matrices with variance 1/fan_in, gains of one."""
        for name, weight in self.named_parameters():
            value = torch.empty_like(weight).detach()
            yield weight, value.fill_(1.0) if "norm" in name else value.normal_(std=weight.shape[-1] ** -0.5)


def model_of(config: Any, towers: Sequence[str], vocabulary: int, device: torch.device) -> MoT:
    """A model with float32 weights on the device."""
    with device:
        return Drawn(config, towers, vocabulary)


class Step:
    """One model's training step on one batch; `towers[m]` is the tower of modality m."""

    def __init__(
        self, config: Any, towers: Sequence[int], vocabulary: int, rows: Any, device: torch.device, half: bool = True
    ):
        self.model = model_of(config, reference.TOWERS[: max(towers) + 1], vocabulary, device)
        self.host = reference.grouped(rows, towers=towers)
        self.batch, self.counts = moved(self.host, device), reference.counts_of(rows)
        self.device, self.half = device, half
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def learn(self) -> Tensor:
        """Forward and backward of the batch; gradients add up."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            total = losses(self.model, self.batch, objective(0), self.counts).total
        total.backward()
        return total

    def update(self) -> None:
        """The optimizer's step."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def whole(self, times: int) -> None:
        """One optimizer step over `times` micro-batches."""
        for _ in range(times):
            self.learn()
        self.update()


def shape(dim: int, layers: int, heads: int, norm: str = "after") -> Any:
    """A model's configuration."""
    return SimpleNamespace(
        **dict(dim=dim, layers=layers, heads=heads, kv_heads=None, ffn=None, norm=norm, norm_eps=1e-6, qk_norm=True),
        **dict(rope_theta=1e4, untied=("qkv", "out", "ffn", "norms"), experts={}, cross_layers=None, unet=None),
    )


def objective(latent_dim: int) -> Any:
    """An objective's configuration."""
    kind = "transfusion" if latent_dim else "chameleon"
    return SimpleNamespace(kind=kind, z_loss=1e-5, weights={}, diffusion="ddpm", diffusion_weight=5.0, noise_steps=1000)


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`."""
    return SimpleNamespace(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(batch).items()})


def free() -> None:
    """Give memory back between tables, and forget what was compiled: Dynamo keeps eight shapes, then runs without."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(title: str, head: Sequence[str], table: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    lines = [head, ["---"] * len(head), *table]
    print(f"{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n", flush=True)


def verdict(fine: bool) -> str:
    """How a table says whether a bound is met."""
    return "yes" if fine else "**no**"
