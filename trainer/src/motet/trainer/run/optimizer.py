"""AdamW with its parameter groups, its learning rate as a function of the step, and its state by name.

    model --`adamw`--> optimizer;  step --`learning_rate`--> lr;  optimizer --`state`--> named tensors, which are its own

The state goes to a checkpoint as plain tensors under the parameters' own names, so that it can be read without pickle
and does not depend on the order of parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from motet.trainer.config import OptimizerConfig
from motet.trainer.run.sharding import whole

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps for each parameter."""


def adamw(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW (arXiv 1711.05101) that decays matrices only: norms, embeddings and vectors are left as they are."""
    kept: list[Tensor] = []
    decayed: list[Tensor] = []
    for name, weight in model.named_parameters():
        (decayed if _is_matrix(name, weight) else kept).append(weight)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of step `step` (from 0) of `steps`: a linear climb, then the schedule down to `final` of the peak."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup) / max(steps - 1 - config.warmup, 1)
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.lr * (config.final + (1 - config.final) * left)


def set_learning_rate(optimizer: AdamW, rate: float) -> None:
    """Use `rate` for all groups from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def state(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """Everything AdamW remembers after a step, as tensors named `<moment>/<parameter>`."""
    return {
        f"{moment}/{name}": optimizer.state[weight][moment]
        for name, weight in model.named_parameters()
        for moment in MOMENTS
    }


def with_state(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """`state` of an optimizer that has not stepped yet, all zero: room for what a checkpoint has."""
    for weight in model.parameters():
        step = torch.zeros((), dtype=torch.float32, device=weight.device)
        optimizer.state[weight] = {"step": step, **{m: torch.zeros_like(weight) for m in MOMENTS if m != "step"}}
    return state(model, optimizer)


def _is_matrix(name: str, weight: Tensor) -> bool:
    kind = name.removesuffix(".weight").rpartition(".")[2]
    return weight.dim() > 1 and kind != "embedding" and not kind.endswith("norm")


def gradient_norm(model: nn.Module, clip: float | None) -> Tensor:
    """The norm of the whole gradient, scalar, before it is scaled down to at most `clip`; nothing waits for it."""
    return whole(torch.nn.utils.clip_grad_norm_(model.parameters(), clip if clip is not None else math.inf))
