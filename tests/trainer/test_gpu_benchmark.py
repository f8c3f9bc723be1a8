"""The GPU benchmark where there is no GPU: what can run on a CPU does, at small sizes, and its baseline computes the same."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def parts():
    """Its files can be imported as they are when it runs."""
    path = list(sys.path)
    sys.path.append(str(BENCHMARKS))
    yield
    sys.path[:] = path


def test_the_eager_baseline_computes_what_a_block_computes():
    """With the same weights; otherwise its time would say nothing."""
    import reference
    from gpu_parts import common, eager, steps

    from motet.trainer.model.mot import Layout

    config, rows = common.shape(32, 1, 4), reference.random_rows(0, 2, 64, common.SHARES, 64, span=8)
    batch = reference.grouped(rows)
    model, block = common.model_of(config, reference.TOWERS, 64, CPU), eager.EagerBlock(config, 3)
    ours = model.blocks[0]
    with torch.no_grad():
        for g, tower in enumerate(block.towers):
            for module, weight in zip((tower.q, tower.k, tower.v), ours.qkv[g].chunk(3), strict=True):
                module.weight.copy_(weight)
            tower.out.weight.copy_(ours.out[g])
            tower.gate.weight.copy_(ours.gate_up[g].chunk(2)[0])
            tower.up.weight.copy_(ours.gate_up[g].chunk(2)[1])
            tower.down.weight.copy_(ours.down[g])
    layout = model.layout(batch)
    place_T = layout.order[0]
    x_TD = torch.randn(len(place_T), 32, generator=torch.Generator().manual_seed(0))
    masks = [torch.from_numpy(rows.tower.reshape(-1) == m) for m in range(3)]
    plain = Layout(layout.groups, None, layout.cos[place_T], layout.sin[place_T], layout.attend)
    torch.testing.assert_close(
        block(x_TD, masks, plain), ours(x_TD[batch.place_T], layout)[place_T], rtol=1e-4, atol=1e-5
    )
    work = steps.eager_work(config, rows, batch, CPU)
    assert all(grad.isfinite().all() for grad in work())


def test_every_table_that_needs_no_gpu_prints(capsys):
    from gpu_parts import products, steps

    products.products(CPU, (64,), (100,))
    steps.blocks(CPU, ((64, 4),), 128, 64)
    steps.on_cpu(CPU, ((64, 1, 4, 2, 64),))
    printed = capsys.readouterr().out
    for title in ("Grouped linear over", "MoT block over", "eager MoT", "MoT step over dense step on the CPU"):
        assert title in printed
    assert "5/90/5" in printed and "nan" not in printed


def test_its_help_names_the_parts(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit):
        runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    assert "utilisation" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_step_waits_for_nothing_compiles_nothing_and_can_be_captured():
    from gpu_parts import host

    device = torch.device("cuda")
    step = host.small(device)
    step.whole(1), step.whole(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.whole(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for work in (host.compilations, host.captured):
        found, fine = work(device)
        assert fine == "yes", found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_kernels_and_model_agree_with_float64():
    from gpu_parts import correct

    assert correct.kernels(torch.device("cuda"))
