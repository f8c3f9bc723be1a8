"""Every kernel on the device against float64, in memory that is full of NaN beforehand.

random rows in uneven groups (one empty, one of a single row, none that ends at a tile) --> errors beside their bounds
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.trainer.kernels import dispatch
from motet.trainer.kernels.groups import Groups
from motet.trainer.model.rotary import rotation

from .common import show, verdict

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest relative error (norm of the difference over norm)."""

COUNTS = (1000, 0, 1, 3333)
EPS = 1e-6


def kernels(device: torch.device) -> bool:
    """Print one row per kernel, type and result; whether all are within bounds."""
    table, fine = [], True
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype, bound in BOUNDS.items():
            kind = str(dtype).removeprefix("torch.")
            for name, found, true in results(device, dtype):
                error = float((found.double() - true).norm() / true.norm())
                within = error <= bound  # false for NaN too
                fine &= within
                table.append([name, kind, f"{error:.1e}", f"{bound:.0e}", verdict(within)])
    torch.use_deterministic_algorithms(False)
    show("Kernels against float64", ["kernel", "type", "error", "bound", "within"], table)
    return fine


def results(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, result, the same in float64)."""
    from motet.trainer.kernels import cross_entropy, norm, rope, swiglu

    offsets_G = torch.tensor(COUNTS, device=device).cumsum(0).int()
    groups, T, G = Groups(COUNTS, offsets_G), sum(COUNTS), len(COUNTS)
    group_T = torch.repeat_interleave(torch.arange(G, device=device), torch.tensor(COUNTS, device=device))

    def random(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.float64).to(kind).requires_grad_()

    def compared(
        name: str, ours: Callable[..., Tensor], plain: Callable[..., Tensor], *leaves: Tensor
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        y, wide = ours(*leaves), [leaf.detach().double().requires_grad_() for leaf in leaves]
        true = plain(*wide)
        grad = torch.randn(y.shape, device=device, dtype=torch.float64).to(y.dtype)
        yield name, y, true
        pairs = zip(torch.autograd.grad(y, leaves, grad), torch.autograd.grad(true, wide, grad.double()), strict=True)
        for n, (found, expected) in enumerate(pairs):
            yield f"{name}, gradient {n + 1}", found, expected

    x_TI, weight_GOI, dy_TO = random(T, 200), random(G, 328, 200), random(T, 328).detach()
    parts = [slice(end - count, end) for count, end in zip(COUNTS, offsets_G.tolist(), strict=True)]
    x, w, dy = (t.detach().double() for t in (x_TI, weight_GOI, dy_TO))
    forward = torch.cat([x[rows] @ w[g].T for g, rows in enumerate(parts)])
    dx = torch.cat([dy[rows] @ w[g] for g, rows in enumerate(parts)])
    dweight = torch.stack([dy[rows].T @ x[rows] for rows in parts])
    for way in dispatch.possible(x_TI, weight_GOI.shape[1:]):
        run = dispatch.WAYS[way]
        yield f"linear, {way}", run.rows_times(x_TI.detach(), weight_GOI.detach().transpose(1, 2), groups), forward
        yield f"linear, {way}, dX", run.rows_times(dy_TO, weight_GOI.detach(), groups), dx
        yield f"linear, {way}, dW", run.weight_gradient(dy_TO, x_TI.detach(), groups, dtype), dweight

    def rms(x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()

    yield from compared(
        "RMSNorm",
        lambda x, gain, residual: norm.grouped_rms_norm(x, gain, offsets_G, EPS, dtype, residual),
        lambda x, gain, residual: residual + rms(x) * gain[group_T],
        random(T, 1000), random(G, 1000, kind=torch.float32), random(T, 1000),
    )  # fmt: skip
    H, K, C = 6, 2, 128
    cos_TC, sin_TC = rotation(torch.arange(T, device=device) % 4096, C, 1e4, torch.float32)
    place_T = torch.randperm(T, device=device)

    def plain_rope(qkv: Tensor, q_gain: Tensor, k_gain: Tensor) -> Tensor:
        q, k, v = qkv.split((H, K, K), 1)
        z = torch.cat((rms(q) * q_gain[group_T, None], rms(k) * k_gain[group_T, None]), 1)
        turned = torch.complex(*z.chunk(2, -1)) * torch.complex(cos_TC.double(), sin_TC.double())
        return torch.cat((turned.real, turned.imag), -1)[place_T.argsort()], v[place_T.argsort()]

    yield from compared(
        "QK-norm, rotation, order",
        lambda *x: torch.cat(rope.qk_norm_rope(x[0], K, x[1], x[2], offsets_G, EPS, cos_TC, sin_TC, place_T), 1),
        lambda *x: torch.cat(plain_rope(*x), 1),
        random(T, H + 2 * K, C), random(G, C, kind=torch.float32), random(G, C, kind=torch.float32),
    )  # fmt: skip
    yield from compared("SwiGLU", swiglu.swiglu, lambda x: F.silu(x[:, :1500]) * x[:, 1500:], random(T, 3000))
    scores_CV, scale_C = random(300, 50_001), random(300, kind=torch.float32).detach()
    label_C, wide_CV = torch.randint(0, 50_001, (300,), device=device), scores_CV.detach().double().requires_grad_()
    log_z_C = wide_CV.logsumexp(-1)
    true_C = log_z_C - wide_CV.gather(1, label_C[:, None])[:, 0] + 0.1 * log_z_C.square()
    (scale_C.double() * true_C).sum().backward()
    found_CV = scores_CV.detach().clone()
    _, loss_C = cross_entropy.softmax_gradient_(found_CV, label_C, scale_C, 0.1, True)
    yield "softmax, loss", loss_C, true_C.detach()
    yield "softmax, gradient", found_CV, wide_CV.grad
