"""The losses: the chunked cross-entropy, weights, and adding up over micro-batches."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from motet.trainer.model.patches import LinearPatches
from motet.trainer.objective import cross_entropy
from motet.trainer.objective import losses as objective
from motet.trainer.objective.cross_entropy import label_ranks, linear_cross_entropy


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_chunked_cross_entropy_equals_the_plain_one(monkeypatch, rows, z_loss):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 16 * 50)  # 16 rows at a time
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=random, dtype=torch.float64) for n in (rows, 50))
    label = torch.randint(0, 50, (rows,), generator=random)
    scale = torch.rand(rows, generator=random, dtype=torch.float64)
    leaves = [[t.clone().requires_grad_() for t in (hidden, weight)] for _ in range(2)]
    total, nats = linear_cross_entropy(*leaves[0], label, scale, z_loss)
    (3 * total).backward()
    scores = leaves[1][0] @ leaves[1][1].T
    plain = F.cross_entropy(scores, label, reduction="none")
    expected = (scale * (plain + z_loss * scores.logsumexp(-1) ** 2)).sum()
    (3 * expected).backward()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nats, plain, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*leaves, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-12)


def test_a_label_is_ranked_among_the_ids_of_its_own_range(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 32)
    random = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(41, 6, generator=random), torch.randn(13, 6, generator=random)
    label, ranges = torch.randint(13, (41,), generator=random), [(0, 4), (4, 5), (5, 13)]
    found = label_ranks(hidden, weight, label, ranges).tolist()
    for row, (rank, own) in enumerate(zip(found, label.tolist(), strict=True)):
        begin, end = next((b, e) for b, e in ranges if b <= own < e)
        in_order = sorted(range(begin, end), key=lambda i: -float(hidden[row] @ weight[i]))
        assert in_order.index(own) == rank
    assert 0 in found and max(found) > 3


def test_huge_scores_do_not_overflow():
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[2e4], [-2e4]], requires_grad=True)
    total, _ = linear_cross_entropy(hidden, weight, torch.tensor([1]), torch.ones(1))
    total.backward()
    assert float(total.detach()) == pytest.approx(4e4)
    assert math.isfinite(float(hidden.grad))


class Fixed(torch.nn.Module):
    """A model whose hidden states are a parameter: what remains is the objective."""

    def __init__(self, hidden, vocabulary, latent_dim):
        super().__init__()
        self.hidden = torch.nn.Parameter(hidden)
        self.head = torch.nn.Linear(hidden.shape[1], vocabulary, bias=False).double()
        self.patches = LinearPatches(hidden.shape[1], latent_dim).double()
        self.rows = slice(None)

    def forward(self, batch, patches, balance):
        return self.hidden[self.rows]


def batch_of(rows, random):
    """`rows` grouped rows: two in three are labels, every fifth of the rest is a latent."""
    label = torch.randint(0, 20, (rows,), generator=random)
    latent = torch.arange(2, rows, 6)
    modality = torch.where(label < 10, 0, 1).to(torch.int8)
    modality[2::3] = -1
    noise = torch.randn(len(latent), 3, generator=random, dtype=torch.float64)
    return SimpleNamespace(
        labels_T=torch.where(modality < 0, -100, label),
        label_modality_T=modality,
        label_row_M=(modality >= 0).nonzero().squeeze(-1),
        latent_row_N=latent,
        latents_ND=torch.randn(len(latent), 3, generator=random, dtype=torch.float64),
        noise_ND=noise,
        time_N=torch.zeros(len(latent), dtype=torch.int64),
        pictures=((1, len(latent)),),
        further_ranges=(),
        modalities=("text", "image"),
    )


def part_of(batch, begin, end):
    """Rows [begin, end) of a batch as a micro-batch."""
    inside = (batch.latent_row_N >= begin) & (batch.latent_row_N < end)
    rows = batch.label_row_M[(batch.label_row_M >= begin) & (batch.label_row_M < end)]
    return SimpleNamespace(
        labels_T=batch.labels_T[begin:end],
        label_modality_T=batch.label_modality_T[begin:end],
        label_row_M=rows - begin,
        latent_row_N=batch.latent_row_N[inside] - begin,
        latents_ND=batch.latents_ND[inside],
        noise_ND=batch.noise_ND[inside],
        time_N=batch.time_N[inside],
        pictures=((1, int(inside.sum())),),
        further_ranges=(),
        modalities=batch.modalities,
    )


@pytest.mark.parametrize("diffusion", ["ddpm", "flow"])
def test_losses_of_micro_batches_add_up_to_the_global_mean(diffusion):
    random = torch.Generator().manual_seed(1)
    batch = batch_of(60, random)
    model = Fixed(torch.randn(60, 8, generator=random, dtype=torch.float64), 20, 3)
    config = SimpleNamespace(
        kind="transfusion",
        z_loss=0.0,
        weights={"image": 0.25},
        diffusion=diffusion,
        diffusion_weight=5.0,
        noise_steps=100,
    )
    counts = {"text": int((batch.label_modality_T == 0).sum()), "image": int((batch.label_modality_T == 1).sum())}
    counts["diffusion"] = len(batch.latent_row_N)
    whole = objective.losses(model, batch, config, counts)
    parts = []
    for begin, end in ((0, 20), (20, 21), (21, 60)):
        model.rows = slice(begin, end)
        parts.append(objective.losses(model, part_of(batch, begin, end), config, counts))
    torch.testing.assert_close(sum(p.total for p in parts), whole.total)
    for name, sum_ in whole.sums.items():
        torch.testing.assert_close(sum(p.sums[name] for p in parts), sum_)
        assert float(whole.counts[name]) == sum(float(p.counts[name]) for p in parts) == counts[name]

    scores = model.hidden @ model.head.weight.T
    labels = counts["text"] + counts["image"]
    rows = [batch.label_modality_T == m for m in (0, 1)]
    nats = [F.cross_entropy(scores[r], batch.labels_T[r], reduction="sum") for r in rows]
    target = batch.noise_ND - batch.latents_ND if diffusion == "flow" else batch.noise_ND
    error = F.mse_loss(model.hidden[batch.latent_row_N] @ model.patches.latent_out.weight.T, target)
    torch.testing.assert_close(whole.total, (nats[0] + 0.25 * nats[1]) / labels + 5 * error)


def test_nothing_to_learn_gives_zero_with_gradients():
    batch = part_of(batch_of(60, torch.Generator().manual_seed(1)), 2, 3)
    batch.latent_row_N, batch.noise_ND = batch.latent_row_N[:0], batch.noise_ND[:0]
    batch.latents_ND, batch.time_N = batch.latents_ND[:0], batch.time_N[:0]
    model = Fixed(torch.zeros(1, 8, dtype=torch.float64), 20, 3)
    config = SimpleNamespace(
        kind="transfusion", z_loss=0.1, weights={}, diffusion="ddpm", diffusion_weight=5.0, noise_steps=100
    )
    found = objective.losses(model, batch, config, {"text": 4, "diffusion": 4})
    found.total.backward()
    assert float(found.total.detach()) == 0
    assert all(w.grad is not None and not w.grad.any() for w in (model.head.weight, model.patches.latent_out.weight))
