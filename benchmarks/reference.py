"""A Mixture-of-Transformers as plainly as it can be written, and random packed batches to try it on.

    `random_rows` -> `Rows` (sequence order) --`grouped`--> a batch as the trainer's collate makes it
                                             --`plain_losses`--> the same losses without grouping, packing or kernels

The reference walks over the towers with boolean masks in sequence order, as Algorithm 1 of arXiv 2411.04996 is printed,
one packed row at a time, with the softmax written out. It shares no code with `motet.trainer.model`; only the names of
the weights. Needs torch and numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

NONE = -100
TOWERS = ("text", "image", "speech")


@dataclass
class Rows:
    """Packed rows in sequence order; arrays are [B, S] unless said otherwise.

    `document` 0 is padding; `block` numbers pictures of latents; `modality` is the label's; `clean`, `noise` [N, L] and
    `time` [N] belong to the positions where `is_latent`, in reading order.
    """

    ids: np.ndarray
    tower: np.ndarray
    document: np.ndarray
    position: np.ndarray
    block: np.ndarray
    labels: np.ndarray
    modality: np.ndarray
    is_latent: np.ndarray
    clean: np.ndarray
    noise: np.ndarray
    time: np.ndarray
    towers: int
    modalities: tuple[str, ...]


def random_rows(
    seed: int,
    rows: int,
    length: int,
    shares: Sequence[float],
    vocabulary: int,
    latent_dim: int = 0,
    span: int = 16,
    padding: float = 0.1,
    noise_steps: int = 1000,
) -> Rows:
    """Random documents packed into rows.

    `shares[m]` is how likely a span is of modality m (0 is text); each has its own tower. With `latent_dim`, the last
    modality is continuous. The ids of the vocabulary are dealt out evenly among the modalities.
    """
    rng = np.random.default_rng(seed)
    count = len(shares)
    shape = (rows, length)
    ids, tower, document, position, block = (np.zeros(shape, np.int64) for _ in range(5))
    modality = np.zeros(shape, np.int64)
    is_latent = np.zeros(shape, bool)
    per = vocabulary // count
    documents = blocks = 0
    blocks_of: list[int] = []
    for row in range(rows):
        end = length - int(rng.integers(0, max(int(2 * padding * length), 1)))
        at = 0
        while at < end:
            documents += 1
            stop = min(end, at + int(rng.integers(2, 6 * span)))
            begin = at
            while at < stop:
                m = int(rng.choice(count, p=np.asarray(shares) / sum(shares)))
                n = min(int(rng.integers(1, 2 * span)), stop - at)
                here = (row, slice(at, at + n))
                tower[here] = modality[here] = m
                if latent_dim and m == count - 1 and count > 1:
                    is_latent[here], blocks = True, blocks + 1
                    block[here] = blocks
                    blocks_of.append(n)
                    ids[here] = 0
                else:
                    ids[here] = rng.integers(m * per, (m + 1) * per, n)
                at += n
                if at < stop and is_latent[row, at - 1]:  # the end token of a picture is text
                    ids[row, at], at = rng.integers(0, per), at + 1
            document[row, begin:at] = documents
            position[row, begin:at] = np.arange(at - begin)
    labels = np.full(shape, NONE)
    follows = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] > 0)
    follows &= ~is_latent[:, 1:] & ~is_latent[:, :-1]
    labels[:, :-1] = np.where(follows, ids[:, 1:], NONE)
    label_modality = np.full(shape, -1)
    label_modality[:, :-1] = np.where(follows, modality[:, 1:], -1)
    n = int(is_latent.sum())
    time = rng.integers(0, noise_steps, len(blocks_of)).repeat(blocks_of)
    clean, noise = (rng.standard_normal((n, latent_dim)) for _ in range(2))
    return Rows(
        ids,
        tower,
        document,
        position,
        block,
        labels,
        label_modality,
        is_latent,
        clean,
        noise,
        time,
        count,
        TOWERS[:count],
    )


def grouped(rows: Rows, towers: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The batch that the trainer's collate makes of these rows; `towers[m]` maps modality m's tower (default its own)."""
    tower = np.asarray(towers if towers is not None else range(rows.towers))[rows.tower].reshape(-1)
    order = np.argsort(tower, kind="stable")
    counts = np.bincount(tower, minlength=rows.towers if towers is None else max(towers) + 1)
    label_row = np.flatnonzero(rows.labels.reshape(-1)[order] != NONE)
    latent_row = np.flatnonzero(rows.is_latent.reshape(-1)[order])
    nth = np.cumsum(rows.is_latent.reshape(-1)) - 1
    reading = nth[order][latent_row]

    def take(values: np.ndarray, kind: torch.dtype = torch.int64) -> Tensor:
        return torch.from_numpy(values.reshape(-1)[order]).to(kind)

    return SimpleNamespace(
        ids_T=take(rows.ids),
        position_T=take(rows.position),
        document_T=take(rows.document, torch.int32),
        block_T=take(rows.block, torch.int32),
        place_T=torch.from_numpy(order),
        offsets_G=torch.from_numpy(np.cumsum(counts)).int(),
        counts=tuple(counts.tolist()),
        labels_T=take(rows.labels),
        label_modality_T=take(rows.modality, torch.int8),
        label_row_M=torch.from_numpy(label_row),
        further_row_J=torch.empty(0, dtype=torch.int64),
        further_ids_J=torch.empty(0, dtype=torch.int64),
        further_label_row_Q=torch.empty(0, dtype=torch.int64),
        further_labels_Q=torch.empty(0, dtype=torch.int64),
        further_ranges=(),
        latent_row_N=torch.from_numpy(latent_row),
        latents_ND=torch.from_numpy(rows.clean[reading]).to(dtype),
        noise_ND=torch.from_numpy(rows.noise[reading]).to(dtype),
        time_N=torch.from_numpy(rows.time[reading]),
        pictures=tuple((n, 1) for n in np.unique(rows.block[rows.block > 0], return_counts=True)[1].tolist()),
        modalities=rows.modalities,
        rows=rows.ids.shape[0],
        sequence=rows.ids.shape[1],
    )


def counts_of(rows: Rows) -> dict[str, int]:
    """Labels of each modality, and latent patches, as the trainer's stream counts them."""
    counted = {name: int((rows.modality == i).sum()) for i, name in enumerate(rows.modalities)}
    return counted | {"diffusion": int(rows.is_latent.sum())}


def plain_hidden(weights: Mapping[str, Tensor], config: Any, rows: Rows) -> Tensor:
    """[B, S, D] after the last norm, in sequence order, of rows without latents."""
    return _run(weights, config, rows, None)[0]


def linear_patches(w: Mapping[str, Tensor], config: Any, rows: Rows, noisy: Tensor) -> tuple[Tensor, Any]:
    """(what latents become on entering, [N, D], what hidden states become on leaving)."""
    wave = timestep(rows.time, config.dim).to(noisy.dtype)
    hidden = wave @ w["patches.time.0.weight"].T + w["patches.time.0.bias"]
    step = (hidden * torch.sigmoid(hidden)) @ w["patches.time.2.weight"].T + w["patches.time.2.bias"]
    return noisy @ w["patches.latent_in.weight"].T + step, lambda left: left @ w["patches.latent_out.weight"].T


def plain_losses(
    weights: Mapping[str, Tensor], config: Any, objective: Any, rows: Rows, patches: Any = linear_patches
) -> tuple[Tensor, dict[str, Tensor]]:
    """(total loss, sums by modality) of the whole batch; `patches` carries latents in and out."""
    dtype = weights["norm"].dtype
    entered = None
    if rows.is_latent.any():
        clean, noise = (torch.from_numpy(x).to(dtype) for x in (rows.clean, rows.noise))
        if objective.diffusion == "flow":
            t = torch.from_numpy((rows.time + 1) / objective.noise_steps).to(dtype)[:, None]
            noisy, target = clean + t * (noise - clean), noise - clean
        else:
            kept = torch.from_numpy(_alpha_bar(objective.noise_steps)[rows.time]).to(dtype)[:, None]
            noisy, target = kept.sqrt() * clean + (1 - kept).sqrt() * noise, noise
        entered, leave = patches(weights, config, rows, noisy)
    hidden, uneven = _run(weights, config, rows, entered)
    logits = hidden @ weights["head.weight"].T
    log_z = logits.exp().sum(-1).log()
    sums: dict[str, Tensor] = {}
    counts = counts_of(rows)
    labels = sum(counts[name] for name in rows.modalities)
    total = (uneven - uneven.detach()) / max(labels, 1)  # the trainer's loss for balance has gradients and no value
    for m, name in enumerate(rows.modalities):
        b, s = np.nonzero(rows.modality == m)
        nats = log_z[b, s] - logits[b, s, rows.labels[b, s]]
        sums[name] = nats.sum()
        weight = objective.weights.get(name, 1.0)
        total = total + weight * (nats.sum() + objective.z_loss * (log_z[b, s] ** 2).sum()) / max(labels, 1)
    if entered is not None and objective.kind == "transfusion":
        predicted = leave(hidden[torch.from_numpy(rows.is_latent)])
        error = ((predicted - target) ** 2).mean(-1).sum()
        sums["diffusion"] = error
        total = total + objective.diffusion_weight * error / counts["diffusion"]
    return total, sums


def _run(weights: Mapping[str, Tensor], config: Any, rows: Rows, entered: Tensor | None) -> tuple[Tensor, Tensor]:
    """(hidden states, weighed unevenness of experts summed over tokens)."""
    masks = [torch.from_numpy(rows.tower == g) for g in range(rows.towers)]
    x = weights["embedding.weight"][torch.from_numpy(rows.ids)]
    if entered is not None:
        x = x.index_put((torch.from_numpy(rows.is_latent),), entered)
    uneven = x.new_zeros(())
    for layer in range(config.layers):
        x, more = _layer(weights, f"blocks.{layer}.", config, rows, masks, x)
        uneven = uneven + more
    return _each(masks, x, lambda g, part: _rms(part, config.norm_eps) * _own(weights["norm"], g)), uneven


def _layer(
    w: Mapping[str, Tensor], at: str, config: Any, rows: Rows, masks: list[Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    heads, kv_heads, width = config.heads, config.kv_heads or config.heads, config.dim // config.heads
    B, S, _ = x.shape

    def norm(name: str, y: Tensor) -> Tensor:
        return _each(masks, y, lambda g, part: _rms(part, config.norm_eps) * _own(w[at + name], g))

    y = x if config.norm == "after" else norm("attention_norm", x)
    qkv = _each(masks, y, lambda g, part: part @ _own(w[at + "qkv"], g).T).view(B, S, heads + 2 * kv_heads, width)
    q, k, v = qkv[:, :, :heads], qkv[:, :, heads : heads + kv_heads], qkv[:, :, heads + kv_heads :]
    if config.qk_norm:
        q, k = norm("q_norm", q), norm("k_norm", k)
    mixed = torch.stack([_attention(config, at, rows, row, q[row], k[row], v[row]) for row in range(B)])
    y = _each(masks, mixed, lambda g, part: part @ _own(w[at + "out"], g).T)
    x = x + (norm("attention_norm", y) if config.norm == "after" else y)
    if config.norm == "after":
        y, uneven = _feed_forward(w, at, config, masks, x)
        return x + norm("ffn_norm", y), uneven
    y, uneven = _feed_forward(w, at, config, masks, norm("ffn_norm", x))
    return x + y, uneven


def _attention(config: Any, at: str, rows: Rows, row: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    S, heads, width = q.shape
    angle = torch.from_numpy(rows.position[row])[:, None] * config.rope_theta ** (
        -torch.arange(0, width, 2, dtype=q.dtype) / width
    )
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def rotate(z: Tensor) -> Tensor:
        turned = torch.complex(z[..., : width // 2], z[..., width // 2 :]) * turn
        return torch.cat((turned.real, turned.imag), -1)

    q, k = rotate(q), rotate(k)
    k, v = (z.repeat_interleave(heads // k.shape[1], 1) for z in (k, v))
    scores = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(width)
    document, block = rows.document[row], rows.block[row]
    causal = np.arange(S)[:, None] >= np.arange(S)[None]
    together = (block[:, None] == block[None]) & (block[:, None] > 0)
    seen = torch.from_numpy((document[:, None] == document[None]) & (causal | together))
    if config.cross_layers is not None and int(at.split(".")[1]) not in config.cross_layers:
        tower = torch.from_numpy(rows.tower[row])
        seen &= tower[:, None] == tower[None]
    return torch.einsum("hqk,khc->qhc", scores.masked_fill(~seen, -math.inf).softmax(-1), v).reshape(S, -1)


def _feed_forward(
    w: Mapping[str, Tensor], at: str, config: Any, masks: list[Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """(result, weighed unevenness); experts one by one, each on all rows, what it was not chosen for thrown away."""
    uneven = x.new_zeros(())

    def network(index: int, part: Tensor) -> Tensor:
        gate, up = (part @ w[at + "gate_up"][index].T).chunk(2, -1)
        return (gate * torch.sigmoid(gate) * up) @ w[at + "down"][index].T

    if len(w[at + "gate_up"]) == 1:
        return network(0, x), uneven
    choices = [config.experts.get(name) for name in TOWERS[: len(masks)]]
    y = torch.zeros_like(x)
    first = first_router = 0
    for mask, choice in zip(masks, choices, strict=True):
        if choice is None:
            y = y + network(first, x) * mask[..., None]
            first += 1
            continue
        E = choice.count
        chance = (x @ w[at + "router"][first_router : first_router + E].T).softmax(-1)
        own = torch.where(mask[..., None], chance, -math.inf)
        n = int(mask.sum())
        for e in range(E):
            if choice.routing == "expert":
                best = own[..., e].reshape(-1).sort(descending=True, stable=True).indices[: -(-n // E)]
                taken = torch.zeros(mask.numel(), dtype=torch.bool).index_fill(0, best, True).view(mask.shape)
            else:
                rank = (chance > chance[..., e : e + 1]).sum(-1)
                taken = mask & (rank < choice.top)
                load = taken.sum(1) / choice.top
                of_row = mask.sum(1).clamp(min=1)
                mean = (chance[..., e] * mask).sum(1)
                uneven = uneven + choice.balance * E * (load * mean / of_row).sum()
            y = y + torch.where(taken[..., None], chance[..., e : e + 1] * network(first + e, x), 0)
        first, first_router = first + E, first_router + E
    return y, uneven


def _own(weight: Tensor, g: int) -> Tensor:
    """Tower g's own, or the one that all share."""
    return weight[g if len(weight) > 1 else 0]


def _each(masks: list[Tensor], x: Tensor, work: Any) -> Tensor:
    """Gather each tower's rows by its boolean mask, work on them, scatter the results back."""
    parts = [(mask, work(g, x[mask])) for g, mask in enumerate(masks) if mask.any()]
    y = x.new_zeros(*masks[0].shape, *parts[0][1].shape[1:])
    for mask, part in parts:
        y = y.index_put((mask,), part)
    return y


def _rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def timestep(time: np.ndarray, dim: int) -> Tensor:
    """Sines and cosines of the diffusion step."""
    half = (dim + 1) // 2
    angle = time[:, None] * np.exp(-9.21 * np.arange(half) / half)[None]
    return torch.from_numpy(np.concatenate((np.sin(angle), np.cos(angle)), -1)[:, :dim])


def _alpha_bar(steps: int) -> np.ndarray:
    """The cosine schedule, step by step."""
    f = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    kept, values = 1.0, []
    for i in range(steps):
        kept *= 1 - min(1 - f[i + 1] / f[i], 0.999)
        values.append(kept)
    return np.array(values)
