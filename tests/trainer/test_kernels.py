"""Every kernel against plain float64 arithmetic, in Triton's interpreter where there is no GPU.

Whatever the kernels allocate is full of NaN beforehand, so that a number which nobody wrote, or which was read without
having been written, shows.
"""

import sys
from pathlib import Path

import pytest
import torch

from motet.trainer.objective import cross_entropy as head

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytest.importorskip("triton")

# ruff: noqa: E402
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from motet.trainer import kernels
from motet.trainer.kernels import cross_entropy, linear, norm, rope, swiglu
from motet.trainer.kernels.rows import INTERPRETED
from motet.trainer.model.rotary import rotation
from motet.trainer.objective import losses as objective

assert DEVICE == "cuda" or INTERPRETED, f"triton was imported before this file: {'triton' in sys.modules}"

BOUNDS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Largest error of a result that is rounded to this type, relative to the result, both by their norms."""

EPS = 1e-6

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
types = st.sampled_from(list(BOUNDS))
counts = st.lists(st.sampled_from([0, 0, 1, 1, 2, 15, 16, 17, 31, 48]), min_size=1, max_size=4)
few_rows = st.lists(st.sampled_from([0, 1, 2, 3, 17]), min_size=1, max_size=3)
seeds = st.integers(0, 9)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Memory that is full of NaN."""

    def full_of_nan(make):
        def made(*args, **named):
            x = make(*args, **named)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return made

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            patch.setattr(owner, name, full_of_nan(getattr(owner, name)))
        yield


def random(seed, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def ends(counts):
    return torch.tensor(counts, device=DEVICE).cumsum(0).int()


def groups_of(counts):
    """The group of each row."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(DEVICE)


def near(found, expected, dtype):
    assert found.shape == expected.shape
    assert found.isfinite().all(), "a number that nobody computed"
    error = (found.double() - expected).norm()
    assert error <= BOUNDS[dtype] * expected.norm(), f"{error:.1e} of {expected.norm():.1e}"


def exact(x):
    """`x` in float64, to be differentiated."""
    return x.detach().double().requires_grad_()


@given(counts, st.integers(0, 3), st.sampled_from([8, 16, 40]), st.sampled_from([8, 24, 33]), types, seeds)
@few
def test_rows_times_their_groups_matrix(counts, tail, K, N, dtype, seed):
    T, G = sum(counts) + tail, len(counts)
    x_TK, weight_GNK = random(seed, T, K, dtype=dtype), random(seed + 1, G, N, K, dtype=dtype)
    x_TK[sum(counts) :] = float("nan")  # belongs to nobody
    expected_TN = torch.einsum("tk,tnk->tn", x_TK[: sum(counts)].double(), weight_GNK.double()[groups_of(counts)])
    expected_TN = torch.cat((expected_TN, expected_TN.new_zeros(tail, N)))
    near(linear.rows_times(x_TK, weight_GNK.transpose(1, 2), ends(counts)), expected_TN, dtype)
    weight_GKN = weight_GNK.transpose(1, 2).contiguous()
    near(linear.rows_times(x_TK, weight_GKN, ends(counts)), expected_TN, dtype)


@given(counts, st.integers(0, 3), st.sampled_from([8, 16, 40]), st.sampled_from([8, 24, 33]), types, seeds)
@few
def test_the_gradient_of_the_matrices(counts, tail, O, I, dtype, seed):  # noqa: E741
    T = sum(counts) + tail
    dy_TO, x_TI = random(seed, T, O, dtype=dtype), random(seed + 1, T, I, dtype=dtype)
    dy_TO[sum(counts) :] = x_TI[sum(counts) :] = float("nan")
    expected_GOI = torch.stack(
        [
            dy.T @ x
            for dy, x in zip(
                dy_TO.double()[: sum(counts)].split(counts), x_TI.double()[: sum(counts)].split(counts), strict=True
            )
        ]
    )
    for result in (torch.float32, dtype):
        found_GOI = linear.weight_gradient(dy_TO, x_TI, ends(counts), result)
        assert found_GOI.dtype is result
        near(found_GOI, expected_GOI, result)
        for group, count in enumerate(counts):
            assert count or not found_GOI[group].any()


def test_what_one_group_holds_stays_in_it():
    """Tiles that reach over a group's end neither read nor write its neighbour's rows: 0 * NaN would show."""
    counts = [5, 16, 11]
    x_TK, weight_GNK = random(0, 32, 24), random(1, 3, 24, 24)
    x_TK[5:21] = float("nan")
    y_TN = linear.rows_times(x_TK, weight_GNK.transpose(1, 2), ends(counts))
    assert y_TN[:5].isfinite().all() and y_TN[21:].isfinite().all() and y_TN[5:21].isnan().all()
    dweight_GNK = linear.weight_gradient(random(2, 32, 24), x_TK, ends(counts), torch.float32)
    assert [bool(dw.isfinite().all()) for dw in dweight_GNK] == [True, False, True]


@given(counts, st.sampled_from([(7,), (64,), (3, 16), (2, 33)]), types, st.booleans(), seeds)
@few
def test_rms_norm(counts, shape, dtype, add, seed):
    T, G = sum(counts), len(counts)
    x = random(seed, T, *shape, dtype=dtype).requires_grad_()
    gain = random(seed + 1, G, *shape).requires_grad_()
    residual = random(seed + 2, T, *shape).requires_grad_() if add else None
    grad = random(seed + 3, T, *shape)
    y = norm.grouped_rms_norm(x, gain, ends(counts), EPS, torch.float32, residual)
    y.backward(grad)

    exact_x, exact_gain = exact(x), exact(gain)
    expected = exact_x * (exact_x.square().mean(-1, keepdim=True) + EPS).rsqrt() * exact_gain[groups_of(counts)]
    expected.backward(grad.double())
    if residual is not None:
        expected = expected + residual.double()
        assert torch.equal(residual.grad, grad)
    near(y, expected, torch.float32)
    near(x.grad, exact_x.grad, dtype)
    near(gain.grad, exact_gain.grad, torch.float32)


def test_the_norm_of_a_slice_of_heads():
    qkv_TJC = random(0, 21, 5, 16).requires_grad_()
    gain_GJC = random(1, 2, 3, 16)
    y_TJC = norm.grouped_rms_norm(qkv_TJC[:, 1:4], gain_GJC, ends([9, 12]), EPS, torch.float32)
    x_TJC = qkv_TJC.double()[:, 1:4]
    expected = x_TJC * (x_TJC.square().mean(-1, keepdim=True) + EPS).rsqrt() * gain_GJC.double()[groups_of([9, 12])]
    near(y_TJC, expected, torch.float32)
    y_TJC.sum().backward()
    assert qkv_TJC.grad[:, 1:4].any() and not qkv_TJC.grad[:, [0, 4]].any()


def test_gains_of_many_pieces_are_summed_in_one_order():
    """More pieces than one step of the summation takes, twice the same bits."""
    counts = [530, 1, 0, 600]
    x_TC, gain_GC, grad_TC = random(0, 1131, 8), random(1, 4, 8), random(2, 1131, 8)
    found = []
    for _ in range(2):
        gain = gain_GC.clone().requires_grad_()
        norm.grouped_rms_norm(x_TC, gain, ends(counts), EPS, torch.float32).backward(grad_TC)
        found.append(gain.grad)
    assert torch.equal(*found) and not found[0][2].any()
    unit_TC = x_TC.double() * (x_TC.double().square().mean(-1, keepdim=True) + EPS).rsqrt() * grad_TC.double()
    near(
        found[0],
        torch.zeros(4, 8, dtype=torch.float64, device=DEVICE).index_add(0, groups_of(counts), unit_TC),
        torch.float32,
    )


@given(
    few_rows,
    st.sampled_from([(1, 1), (4, 2), (3, 3)]),
    st.sampled_from([8, 12]),
    types,
    st.booleans(),
    st.booleans(),
    seeds,
)
@few
def test_qk_norm_rope_and_the_way_into_sequence_order(counts, heads, C, dtype, normed, moved, seed):
    (H, K), T, G = heads, sum(counts), len(counts)
    qkv_TJC = random(seed, T, H + 2 * K, C, dtype=dtype).requires_grad_()
    gains = [random(seed + i, G, C).requires_grad_() if normed else None for i in (1, 2)]
    position_T = torch.randint(0, 50, (T,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    place_T = torch.randperm(T, generator=torch.Generator().manual_seed(seed)).to(DEVICE) if moved else None
    cos_TC, sin_TC = rotation(position_T, C, 100.0, torch.float32)
    grads = [random(seed + 3 + i, T, n, C) for i, n in enumerate((H, K, K))]
    found = rope.qk_norm_rope(qkv_TJC, K, *gains, ends(counts), EPS, cos_TC, sin_TC, place_T)
    torch.autograd.backward(found, [grad.to(dtype) for grad in grads])

    exact_qkv, exact_gains = exact(qkv_TJC), [None if gain is None else exact(gain) for gain in gains]
    q, k, v = exact_qkv.split((H, K, K), 1)
    turn_T1C = torch.complex(cos_TC.double(), sin_TC.double())
    expected = []
    for x, gain in ((q, exact_gains[0]), (k, exact_gains[1])):
        if gain is not None:
            x = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * gain[groups_of(counts), None]
        z = torch.complex(*x.chunk(2, -1)) * turn_T1C
        expected.append(torch.cat((z.real, z.imag), -1))
    expected.append(v)
    if place_T is not None:
        expected = [x[place_T.argsort()] for x in expected]
    torch.autograd.backward(expected, [grad.to(dtype).double() for grad in grads])
    for ours, true in zip(found, expected, strict=True):
        assert ours.is_contiguous() and ours.dtype is dtype
        near(ours, true, dtype)
    near(qkv_TJC.grad, exact_qkv.grad, dtype)
    for gain, true in zip(gains, exact_gains, strict=True):
        if gain is not None:
            near(gain.grad, true.grad, torch.float32)


@given(st.integers(0, 9), st.sampled_from([1, 64, 1030]), types, seeds)
@few
def test_swiglu(T, F, dtype, seed):
    gate_up_TE = random(seed, T, 2 * F, dtype=dtype).requires_grad_()
    grad_TF = random(seed + 1, T, F, dtype=dtype)
    y_TF = swiglu.swiglu(gate_up_TE)
    y_TF.backward(grad_TF)
    exact_TE = exact(gate_up_TE)
    gate_TF, up_TF = exact_TE.chunk(2, -1)
    expected_TF = gate_TF * torch.sigmoid(gate_TF) * up_TF
    expected_TF.backward(grad_TF.double())
    near(y_TF, expected_TF, dtype)
    near(gate_up_TE.grad, exact_TE.grad, dtype)


@given(st.integers(0, 9), st.sampled_from([1, 2, 100, 4096, 9001]), types, st.booleans(), seeds)
@few
def test_softmax_and_its_gradient_in_place(C, V, dtype, learn, seed):
    scores_CV = random(seed, C, V, dtype=dtype) * 5
    label_C = torch.randint(0, V, (C,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    scale_C = random(seed + 1, C)
    before_CV, exact_CV = scores_CV.clone(), exact(scores_CV)
    nats_C, loss_C = cross_entropy.softmax_gradient_(scores_CV, label_C, scale_C, 0.1, learn)
    log_z_C = exact_CV.logsumexp(-1)
    expected_C = log_z_C - exact_CV.gather(1, label_C[:, None])[:, 0]
    torch.testing.assert_close(
        nats_C, expected_C.detach().float(), rtol=2e-6, atol=1e-5
    )  # differences of large numbers
    torch.testing.assert_close(loss_C, (expected_C + 0.1 * log_z_C.square()).detach().float(), rtol=2e-6, atol=1e-5)
    if not learn:
        assert torch.equal(scores_CV, before_CV)
        return
    (scale_C.double() * (expected_C + 0.1 * log_z_C.square())).sum().backward()
    near(scores_CV, exact_CV.grad, dtype)


def test_scores_of_any_size_and_labels_that_do_not_exist():
    scores_CV = torch.tensor([[1e4, -1e4, 0.0], [-3e38, -3e38, -3e38], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], device=DEVICE)
    label_C = torch.tensor([1, 0, 3, -1], device=DEVICE)
    nats_C, _ = cross_entropy.softmax_gradient_(scores_CV, label_C, torch.ones(4, device=DEVICE), 0.0, True)
    assert nats_C[0] == 2e4 and nats_C[2:].isnan().all()
    assert scores_CV[:2].isfinite().all()


def test_the_chunked_cross_entropy_is_the_same_with_the_kernel(monkeypatch):
    """What a GPU runs, over chunks of a few rows, against what a CPU runs."""
    hidden_MD, weight_VD = random(0, 37, 16), random(1, 50, 16)
    label_M, scale_M = torch.arange(37, device=DEVICE), random(2, 37).abs()
    found = []
    for usable in (False, True):
        monkeypatch.setattr(kernels, "usable", lambda x, usable=usable: usable)
        monkeypatch.setattr(head, "CHUNK_LOGITS", 16 * 50)
        leaves = [x.clone().requires_grad_() for x in (hidden_MD, weight_VD)]
        total, nats_M = head.linear_cross_entropy(*leaves, label_M, scale_M, 0.01)
        total.backward()
        found.append((total, nats_M, *(leaf.grad for leaf in leaves)))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["after", "before"])
def test_a_model_is_the_same_with_the_kernels(norm, monkeypatch):
    """Loss and all gradients, in float32: what of the model goes through kernels on a GPU, against what a CPU runs."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2] / "benchmarks")])
    import reference
    from gpu_parts import common

    rows = reference.random_rows(1, 2, 24, [1.0, 1.0, 1.0], 64, span=4)
    found = []
    for usable in (False, True):
        monkeypatch.setattr(kernels, "usable", lambda x, usable=usable: usable)
        torch.manual_seed(0)
        model = common.model_of(common.shape(32, 1, 4, norm), reference.TOWERS, 64, torch.device(DEVICE))
        batch = common.moved(reference.grouped(rows), torch.device(DEVICE))
        total = objective.losses(model, batch, common.objective(0), reference.counts_of(rows)).total
        total.backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()} | {"loss": total.detach()})
    for name, plain in found[0].items():
        assert (found[1][name] - plain).norm() <= 1e-5 * plain.norm(), name
