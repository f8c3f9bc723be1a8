"""Parameter and FLOP counts: the paper's table, a real model's parameters, torch's own counter."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from motet.trainer.flops import forward_flops, mean_visible_keys, parameters, peak, training_flops
from motet.trainer.model.mot import MoT


def shape(dim, layers, heads, **changes):
    values = dict(dim=dim, layers=layers, heads=heads, kv_heads=None, ffn=None, norm="after", qk_norm=False)
    return SimpleNamespace(**values | dict(rope_theta=1e4, towers={}) | changes)


# facts/mot.md, section 8: name, D, L, H, body M, dense M, MoT-2 M, MoT-3 M, linear GFLOP/token, attention GFLOP/token
TABLE = [
    ("37M", 256, 4, 8, 3.4, 37.0, 40.4, 43.8, 0.121, 0.025),
    ("94M", 512, 8, 8, 27.3, 94.4, 121.6, 148.9, 0.365, 0.101),
    ("443M", 1024, 24, 16, 308.3, 442.5, 750.8, 1059.1, 2.252, 0.604),
    ("880M", 1536, 24, 24, 679.5, 880.8, 1560.3, 2239.8, 4.681, 0.906),
    ("1.5B", 2048, 24, 16, 1233.1, 1501.6, 2734.7, 3967.8, 8.204, 1.208),
    ("7B", 4096, 32, 32, 6476, 7012.9, 13488.9, 19964.9, 40.467, 3.221),
]


@pytest.mark.parametrize(
    ("name", "dim", "layers", "heads", "body", "dense", "two", "three", "linear", "attention"), TABLE
)
def test_the_papers_sizes(name, dim, layers, heads, body, dense, two, three, linear, attention):
    config = shape(dim, layers, heads)
    counts = [parameters(config, towers, 65536) for towers in (1, 2, 3)]
    assert counts[0].body / 1e6 == pytest.approx(body, abs=0.06 if dim < 4096 else 0.6)
    for count, expected in zip(counts, (dense, two, three), strict=True):
        # the table counts matrices; gains of norms are a few hundred thousand parameters at most
        assert (count.total - count.towers * count.gains) / 1e6 == pytest.approx(expected, abs=0.11)
        assert count.active == counts[0].total
    assert training_flops(config, 65536, 0) / 1e9 == pytest.approx(linear, abs=6e-4)
    keys = (4096 + 1) / 2
    both = training_flops(config, 65536, keys) / 1e9
    assert both - training_flops(config, 65536, 0) / 1e9 == pytest.approx(attention, rel=1e-3, abs=6e-4)


@pytest.mark.parametrize("latent_dim", [0, 6])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_parameters_are_those_of_the_model(qk_norm, latent_dim):
    config = shape(64, 3, 4, kv_heads=2, qk_norm=qk_norm)
    model = MoT(config, ["a", "b"], 100, latent_dim)
    assert parameters(config, 2, 100, latent_dim).total == sum(p.numel() for p in model.parameters())


def one_document(length):
    index = torch.arange(length)
    ones = torch.ones(length, dtype=torch.int32)
    return SimpleNamespace(
        ids_T=index % 100,
        position_T=index,
        document_T=ones,
        block_T=ones * 0,
        order_T=index,
        offsets_G=torch.tensor([length], dtype=torch.int32),
        counts=(length,),
        latent_row_N=index[:0],
        rows=1,
        sequence=length,
    )


def test_forward_equals_torchs_counter():
    config = shape(64, 3, 4, qk_norm=True)
    model, batch = MoT(config, ["a"], 100), one_document(48)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.logits(model(batch))
    keys_that_torch_counts = 0  # it counts no attention on a CPU
    assert counter.get_total_flops() == 48 * forward_flops(config, 100, keys_that_torch_counts)


def test_visible_keys_of_packed_documents_and_pictures():
    position = torch.tensor([0, 1, 2, 0, 1, 2, 3, 0])
    block = torch.tensor([0, 0, 0, 0, 5, 5, 5, 0])
    batch = SimpleNamespace(position_T=position, block_T=block * 0)
    assert mean_visible_keys(batch) == (1 + 2 + 3 + 1 + 2 + 3 + 4 + 1) / 8
    batch = SimpleNamespace(position_T=position, block_T=block)
    assert mean_visible_keys(batch) == (1 + 2 + 3 + 1 + 4 + 4 + 4 + 1) / 8


def test_the_cpus_peak_is_measured():
    found = peak("cpu", torch.float32, torch.get_num_threads())
    assert found.flops > 1e9 and "measured" in found.source
