"""How many parameters, how much arithmetic, and what share of the machine's peak: counted, not profiled.

Profilers count grouped products as nothing, so the numbers come from the shapes:

    forward per token = 2 (L (2 D H C + 2 D K C + 3 D F) + V D) + 4 s L H C,    training = 3 x forward

with s the mean number of keys that a position sees: short packed documents make attention cheap, and it is counted so.
What carries latents in and out is added for each patch (`patches`).
Towers multiply parameters, not arithmetic: each token passes through one. A tower with E experts has E times its
feed-forward, a router of E x D, and the arithmetic of the router and of as many experts as a token takes.

Letters: D model width, L layers, H heads, K key heads, C head width, F feed-forward width, V vocabulary, G towers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from motet.trainer.model.mot import feed_forward_width, own
from motet.trainer.model.patches import patches_of

if TYPE_CHECKING:
    from motet.trainer.config import ModelConfig, UNet
    from motet.trainer.data.batch import GroupedBatch

PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 FLOP/s of GPUs as their makers state them, by a part of the device's name; the first that fits counts."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        body: of the matrices in all layers of a dense model of the same shape, without experts.
        embedding: in and out. gains: of the dense model's norms. latent: of what carries latents in and out.
        total: all of the model's. active: those that one token can meet.
    """

    body: int
    embedding: int
    gains: int
    latent: int
    total: int
    active: int


def pair_cost(config: ModelConfig, vocabulary: int) -> float:
    """What attention to one earlier token costs, relative to all else that a token costs."""
    D = config.dim
    return 4 * config.layers * D / (2 * (config.layers * _layer(config) + vocabulary * D))


def parameters(config: ModelConfig, towers: Sequence[str], vocabulary: int, latent_dim: int = 0) -> Parameters:
    """Parameters of a model whose towers have these names."""
    D, C, L = config.dim, config.dim // config.heads, config.layers
    latent = _patches(D, latent_dim, config.unet)[0]
    embedding = 2 * vocabulary * D
    gains = D + L * (2 * D + (2 * C if config.qk_norm else 0))
    qkv, out, ffn = _matrices(config)
    more = [_more(config, name) for name in towers[: own(config, towers, "ffn")]]
    total = own(config, towers, "qkv") * L * qkv + own(config, towers, "out") * L * out
    total += sum(L * (each.networks * ffn + each.router) for each in more)
    total += own(config, towers, "norms") * gains + embedding + latent
    met = max(L * ((each.taken - 1) * ffn + each.router) for each in more)
    body = L * (qkv + out + ffn)
    return Parameters(body, embedding, gains, latent, total, body + gains + embedding + latent + met)


def forward_flops(config: ModelConfig, vocabulary: int, keys: float, labels: float = 1.0) -> float:
    """FLOPs of one token's forward pass.

    Args:
        config: the model's shapes.
        vocabulary: V.
        keys: mean number of keys that a position sees, itself included: (s + 1) / 2 in a causal document of s tokens.
        labels: share of the tokens that the output head scores.
    """
    return (
        2 * (config.layers * _layer(config) + labels * vocabulary * config.dim) + 4 * keys * config.layers * config.dim
    )


def training_flops(config: ModelConfig, vocabulary: int, keys: float, labels: float = 1.0) -> float:
    """FLOPs of one token's training: the backward pass costs twice the forward."""
    return 3 * forward_flops(config, vocabulary, keys, labels)


def mean_visible_keys(batch: GroupedBatch) -> float:
    """Mean number of keys that a position of this batch (on the host) sees: causal within documents, pictures whole."""
    _, size_b = batch.block_T[batch.block_T > 0].unique(return_counts=True)
    ahead = (size_b * (size_b - 1)).sum() / 2  # each patch of a picture sees the ones after it too
    return float((batch.position_T + 1).sum() + ahead) / max(len(batch.position_T), 1)


def batch_flops(config: ModelConfig, vocabulary: int, batch: GroupedBatch, towers: Sequence[str]) -> float:
    """FLOPs of training on one batch (on the host) of a model whose towers have these names."""
    tokens = len(batch.ids_T)
    share = len(batch.label_row_M) / max(tokens, 1)
    more = [_more(config, name) for name in towers[: own(config, towers, "ffn")]]
    counts = batch.counts if len(more) > 1 else (tokens,)
    ffn = _matrices(config)[2]
    extra = sum(n * (each.router + (each.taken - 1) * ffn) for n, each in zip(counts, more, strict=True))
    total = tokens * training_flops(config, vocabulary, mean_visible_keys(batch), share) + 3 * 2 * config.layers * extra
    return total + 3 * len(batch.latent_row_N) * _patches(config.dim, batch.latents_ND.shape[1], config.unet)[1]


@dataclass(frozen=True)
class Peak:
    """A device's best FLOP/s, and where the number comes from, for people."""

    flops: float
    source: str


@cache
def peak(device: str, dtype: torch.dtype, threads: int) -> Peak | None:
    """The peak against which utilisation is told: a table for known GPUs, a measured matrix product on a CPU.

    `threads` is only there to measure again when it changes. None for a GPU that the table does not have.
    """
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
        flops = next((flops for part, flops in PEAKS.items() if part in name), None)
        return Peak(flops, f"{name}, dense bf16 as its maker states it") if flops else None
    n, best = 2048, float("inf")
    a, b = (torch.full((n, n), 0.5, dtype=dtype) for _ in range(2))
    for _ in range(4):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    kind = str(dtype).removeprefix("torch.")
    return Peak(2 * n**3 / best, f"measured here: a {n} x {n} {kind} matrix product on {threads} threads")


@cache
def _patches(dim: int, latent_dim: int, unet: UNet | None) -> tuple[int, float]:
    """(parameters, FLOPs of one latent patch's forward pass) of what carries latents in and out."""
    with torch.device("meta"):
        patches = patches_of(dim, latent_dim, unet)
    return (sum(weight.numel() for weight in patches.parameters()), patches.flops()) if patches else (0, 0.0)


def _layer(config: ModelConfig) -> int:
    """Parameters in the matrices of one layer of one tower."""
    return sum(_matrices(config))


def _matrices(config: ModelConfig) -> tuple[int, int, int]:
    """Parameters of one layer's (queries, keys and values; what mixes heads; feed-forward) of one tower."""
    D, C = config.dim, config.dim // config.heads
    heads, kv_heads = config.heads, config.kv_heads or config.heads
    return D * (heads + 2 * kv_heads) * C, D * heads * C, 3 * D * feed_forward_width(config)


@dataclass(frozen=True)
class _Networks:
    """A tower's feed-forward: how many networks, how many of them a token takes, and the router's parameters in a layer."""

    networks: int
    taken: int
    router: int


def _more(config: ModelConfig, tower: str) -> _Networks:
    experts = config.experts.get(tower)
    if experts is None:
        return _Networks(1, 1, 0)
    return _Networks(experts.count, experts.top if experts.routing == "token" else 1, experts.count * config.dim)
