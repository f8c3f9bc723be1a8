"""k-means in plain torch: points -> seeded start -> Lloyd's rounds, empty clusters restarted -> centroids; the same every time.

Shapes: N points, K centroids, D coordinates. Points are visited in blocks, so memory stays at block x K.
"""

from __future__ import annotations

import torch

BLOCK = 16_384


def kmeans(points_ND: torch.Tensor, size: int, seed: int, rounds: int = 20) -> torch.Tensor:
    """Centroids `[size, D]` float32, most used first.

    Starts at `size` random points; a cluster that lost all its points restarts at a point that is far from its centroid.
    With fewer distinct points than `size`, some centroids coincide.
    """
    generator = torch.Generator().manual_seed(seed)
    pick_K = torch.randperm(len(points_ND), generator=generator)[:size]
    pick_K = pick_K.repeat(-(-size // len(pick_K)))[:size]
    centroids_KD = points_ND[pick_K].clone()
    for _ in range(rounds):
        nearest_N, distance_N = assign(points_ND, centroids_KD)
        sums_KD = torch.zeros_like(centroids_KD).index_add_(0, nearest_N, points_ND)
        count_K = torch.bincount(nearest_N, minlength=size)
        centroids_KD = sums_KD / count_K.clamp_min(1)[:, None]
        empty_E = (count_K == 0).nonzero().flatten()
        if len(empty_E):
            far_E = distance_N.topk(min(len(empty_E), len(points_ND))).indices
            centroids_KD[empty_E[: len(far_E)]] = points_ND[far_E]
    count_K = torch.bincount(assign(points_ND, centroids_KD)[0], minlength=size)
    return centroids_KD[torch.argsort(count_K, descending=True, stable=True)].contiguous()


def assign(points_ND: torch.Tensor, centroids_KD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest centroid of each point, int64 `[N]`, and the squared distance to it, float32 `[N]`."""
    half_K = centroids_KD.square().sum(1) / 2
    nearest, score = [], []
    for block_BD in points_ND.split(BLOCK):
        best = (block_BD @ centroids_KD.T - half_K).max(1)
        nearest.append(best.indices)
        score.append(best.values)
    if not nearest:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    return torch.cat(nearest), (points_ND.square().sum(1) - 2 * torch.cat(score)).clamp_min(0)


def perplexity(ids_N: torch.Tensor, size: int) -> float:
    """How many codes are in use, effectively: 2 to the entropy of their shares, between 1 and `size`."""
    share_K = torch.bincount(ids_N, minlength=size).double() / max(len(ids_N), 1)
    return float(torch.exp(-torch.xlogy(share_K, share_K).sum()))
