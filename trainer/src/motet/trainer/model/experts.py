"""Experts in a tower's feed-forward: which rows each of them works on.

    x_TD, grouped by tower --`route`--> `Routed`: the rows of each expert, tower by tower, and how much each result counts
                           --gather, SwiGLU of each expert, weigh, add up (`mot.Block`)--> y_TD

A tower without experts is one expert that takes every row. Two ways to choose (`config.Experts`):

- `token`: each token takes its likeliest experts. How many rows an expert gets is known on the device only, so there
  the products take their row ranges from it; on a CPU they are read. Each expert's share is kept near 1/E by a loss
  over every packed row, so that neither micro-batches nor ranks change it.
- `expert`: each expert takes the n/E rows of the micro-batch that suit it best, so row ranges are known beforehand.

Letters: T rows, D model width, G towers, n rows of one tower, E its experts, X experts of all towers, P rows in the order
of the experts that work on them, B packed rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.trainer.kernels.groups import Groups

if TYPE_CHECKING:
    from motet.trainer.config import Experts


@dataclass(frozen=True)
class Balance:
    """What the balance of experts is counted over.

    Attributes:
        row_T: packed row of each row of the batch. rows: B.
        scale: what a token's share of the loss is divided by: 1 / labels of the global batch.
    """

    row_T: Tensor
    rows: int
    scale: float


@dataclass(frozen=True)
class Routed:
    """Rows as experts take them: `row_P` of the batch, `gate_P` the weight of each result, `groups` the rows of each."""

    row_P: Tensor
    gate_P: Tensor
    groups: Groups


def route(
    x_TD: Tensor, router_RD: Tensor, experts: Sequence[Experts | None], groups: Groups, balance: Balance | None
) -> Routed:
    """The rows of every expert of every tower.

    `router_RD` are the routers' rows, one for each expert of each tower that has some, towers in order. `balance` None:
    nothing is learnt about balance.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    begin = first = 0
    assert groups.counts is not None
    for n, choice in zip(groups.counts, experts, strict=True):
        row_n = torch.arange(begin, begin + n, device=x_TD.device)
        if choice is None:
            parts.append((row_n, x_TD.new_ones(n, dtype=torch.float32), _filled([n], x_TD.device)))
        else:
            router_ED = router_RD[first : first + choice.count]
            first += choice.count
            with torch.autocast(x_TD.device.type, enabled=False):
                wide = torch.promote_types(x_TD.dtype, torch.float32)
                chance_nE = F.linear(x_TD[begin : begin + n].to(wide), router_ED.to(wide)).softmax(-1)
            chosen = (
                _by_experts(chance_nE) if choice.routing == "expert" else _by_tokens(chance_nE, choice, row_n, balance)
            )
            parts.append((row_n[chosen[0]], *chosen[1:]))
        begin += n
    row_P, gate_P, count_X = (torch.cat(each) for each in zip(*parts, strict=True))
    known = count_X.device.type == "cpu" or all(choice is None or choice.routing == "expert" for choice in experts)
    counts = tuple(count_X.tolist()) if known else None
    return Routed(row_P, gate_P, Groups(counts, count_X.cumsum(0).int()))


def _by_experts(chance_nE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows [E * capacity], their gates, capacity of each expert): those that suit each best, of equal ones the first."""
    n, experts = chance_nE.shape
    capacity = -(-n // experts)
    gate_cE, row_cE = (x[:capacity] for x in chance_nE.sort(dim=0, descending=True, stable=True))
    return row_cE.t().reshape(-1), gate_cE.t().reshape(-1), _filled([capacity] * experts, chance_nE.device)


def _by_tokens(
    chance_nE: Tensor, choice: Experts, row_n: Tensor, balance: Balance | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows [n * top] by expert, their gates, rows of each expert): the experts that suit each token best."""
    experts = chance_nE.shape[1]
    expert_nk = chance_nE.topk(choice.top, dim=-1).indices
    taken_nE = torch.zeros_like(chance_nE).scatter_(1, expert_nk, 1.0)
    if balance is not None and choice.balance:
        packed_n = balance.row_T[row_n]
        chance_BE, load_BE = (
            x.new_zeros(balance.rows, experts).index_add(0, packed_n, x) for x in (chance_nE, taken_nE / choice.top)
        )
        uneven = (load_BE * chance_BE).sum(-1) / load_BE.sum(-1).clamp(min=1) * experts
        chance_nE = _Charged.apply(chance_nE, uneven.sum() * (choice.balance * balance.scale))
    order_P = expert_nk.reshape(-1).argsort(stable=True)
    gate_P = chance_nE.gather(1, expert_nk).reshape(-1)[order_P]
    return order_P // choice.top, gate_P, taken_nE.sum(0).long()


class _Charged(torch.autograd.Function):
    """`x` unchanged; the backward pass goes through `loss` too, as if it had been added to the total."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss.new_ones(())
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], ctx.like


def _filled(counts: list[int], device: torch.device) -> Tensor:
    """The counts on the device, without a copy that would wait for it."""
    return torch.cat([torch.full((1,), count, device=device) for count in counts])
