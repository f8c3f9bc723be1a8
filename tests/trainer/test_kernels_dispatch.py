"""The three ways to multiply rows by their group's matrix: they agree, and the one that was measured as fastest is taken."""

import logging

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytest.importorskip("triton")

# ruff: noqa: E402
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.trainer.kernels import dispatch
from motet.trainer.kernels.groups import Groups
from motet.trainer.model.grouped import grouped_linear

SPLITS = [(16, 0, 1, 24), (0, 0, 33), (5, 11), (7,), (0, 0)]


def groups_of(counts):
    return Groups(counts, torch.tensor(counts, device=DEVICE).cumsum(0).int())


def random(seed, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


@pytest.fixture(autouse=True)
def nothing_measured():
    dispatch.measured.clear()
    yield
    dispatch.measured.clear()


@pytest.mark.parametrize("counts", SPLITS)
@pytest.mark.parametrize("tail", [0, 3])
@pytest.mark.parametrize("way", dispatch.WAYS)
def test_each_way_equals_float64(way, tail, counts):
    if way == "grouped_mm" and not (hasattr(torch.nn.functional, "grouped_mm") and sum(counts)):
        pytest.skip("not in this torch, or not for no rows")
    T, G, O, I = sum(counts) + tail, len(counts), 24, 16  # noqa: E741
    x_TI, weight_GOI, dy_TO = random(0, T, I), random(1, G, O, I), random(2, T, O)
    found_TO = dispatch.WAYS[way].rows_times(x_TI, weight_GOI.transpose(1, 2), groups_of(counts))
    dx_TI = dispatch.WAYS[way].rows_times(dy_TO, weight_GOI, groups_of(counts))
    dweight_GOI = dispatch.WAYS[way].weight_gradient(dy_TO, x_TI, groups_of(counts), torch.float32)
    begin = 0
    for group, count in enumerate(counts):
        rows, begin = slice(begin, begin + count), begin + count
        x, dy, weight = x_TI[rows].double(), dy_TO[rows].double(), weight_GOI[group].double()
        for ours, true in ((found_TO[rows], x @ weight.T), (dx_TI[rows], dy @ weight), (dweight_GOI[group], dy.T @ x)):
            torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-5)
    assert not found_TO[begin:].any() and not dx_TI[begin:].any()


@pytest.mark.parametrize("counts", SPLITS)
def test_gradients_by_autograd(counts):
    x_TI, weight_GOI = (
        random(0, sum(counts), 16, dtype=torch.float64),
        random(1, len(counts), 24, 16, dtype=torch.float64),
    )
    leaves = x_TI.requires_grad_(), weight_GOI.requires_grad_()

    def product(x, weight):
        return dispatch.grouped_linear(x, weight, groups_of(counts), torch.float64)

    assert torch.autograd.gradcheck(product, leaves)


def test_gradients_have_the_types_of_what_they_belong_to():
    groups, x_TI = groups_of((5, 0, 11)), random(0, 16, 8, dtype=torch.bfloat16).requires_grad_()
    weight_GOI = random(1, 3, 24, 8).requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        y_TO = grouped_linear(x_TI, weight_GOI, groups)
    y_TO.sum().backward()
    assert (y_TO.dtype, x_TI.grad.dtype, weight_GOI.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert not weight_GOI.grad[1].any()


@given(st.integers(0, 5000), st.integers(1, 70))
@settings(max_examples=50, deadline=None)
def test_the_splits_that_are_measured_deal_out_all_rows(rows, groups):
    for counts in dispatch.splits(rows, groups):
        assert len(counts) == groups and sum(counts) == rows and min(counts) >= 0
    assert max(dispatch.splits(1000, 3)[2]) == 900


def test_a_shape_is_measured_once_and_the_fastest_way_is_taken(caplog, monkeypatch):
    """All three ways really run; which of them wins is up to the machine."""
    ways = [way for way in dispatch.WAYS if way != "grouped_mm" or hasattr(torch.nn.functional, "grouped_mm")]
    monkeypatch.setattr(dispatch, "possible", lambda x, matrix: ways)
    monkeypatch.setattr(dispatch, "REPEATS", 1)
    x_TI, weight_GOI = random(0, 16, 8).requires_grad_(), random(1, 3, 24, 8).requires_grad_()
    with caplog.at_level(logging.INFO, dispatch.__name__):
        for counts in ((5, 0, 11), (1, 14, 1), (0, 0, 16)):
            dispatch.grouped_linear(x_TI, weight_GOI, groups_of(counts), torch.float32).sum().backward()
    assert [key[0] for key in dispatch.measured] == ["forward", "dX", "dW"] and len(caplog.messages) == 3
    for times, told in zip(dispatch.measured.values(), caplog.messages, strict=True):
        assert set(times) == set(ways) and all(taken > 0 for taken in times.values())
        assert told.endswith(f"-> {min(times, key=times.get)}") and all(way in told for way in ways)


def test_the_loop_is_not_taken_where_only_the_device_knows_the_groups(monkeypatch):
    monkeypatch.setattr(dispatch, "possible", lambda x, matrix: ["own", "loop"])
    x_TI, weight_GOI = random(0, 16, 8), random(1, 3, 24, 8)
    dispatch.measured["forward", 3, 8, 24, torch.float32, 16] = {"own": 2.0, "loop": 1.0}
    unknown = Groups(None, groups_of((5, 0, 11)).offsets_G)  # the loop would fail for want of counts
    found = dispatch.grouped_linear(x_TI, weight_GOI, unknown, torch.float32)
    torch.testing.assert_close(
        found, dispatch.WAYS["loop"].rows_times(x_TI, weight_GOI.transpose(1, 2), groups_of((5, 0, 11)))
    )


def test_on_a_cpu_nothing_is_measured():
    if DEVICE == "cpu":
        grouped_linear(random(0, 16, 8), random(1, 3, 24, 8), groups_of((5, 0, 11)))
        assert not dispatch.measured
