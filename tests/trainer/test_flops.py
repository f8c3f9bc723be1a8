"""Parameter and FLOP counts: the paper's table, a real model's parameters, torch's own counter."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from motet.trainer.config import ModelConfig
from motet.trainer.model.flops import batch_flops, forward_flops, mean_visible_keys, parameters, peak, training_flops
from motet.trainer.model.mot import MoT
from motet.trainer.model.patches import UNetPatches


def shape(dim, layers, heads, **changes):
    return ModelConfig(**dict(dim=dim, layers=layers, heads=heads, qk_norm=False) | changes)


TOWERS = ("text", "image", "speech")

# The sizes of arXiv 2411.04996, 65,536 ids: name, body M, dense M, MoT-2 M, MoT-3 M, MoE-4x M, linear and attention GFLOP a token
TABLE = [
    ("37M", 3.4, 37.0, 40.4, 43.8, 44.0, 0.121, 0.025),
    ("94M", 27.3, 94.4, 121.6, 148.9, 151.0, 0.365, 0.101),
    ("443M", 308.3, 442.5, 750.8, 1059.1, 1065.5, 2.252, 0.604),
    ("880M", 679.5, 880.8, 1560.3, 2239.8, 2239.9, 4.681, 0.906),
    ("1.5B", 1233.1, 1501.6, 2734.7, 3967.8, 3993.2, 8.204, 1.208),
    ("7B", 6476, 7012.9, 13488.9, 19964.9, 19999, 40.467, 3.221),
]

# The same, 32,000 ids: name, dense M, MoT-2 M, MoE-4x M
TRANSFUSION = [
    ("163M", 162.4, 275.6, 389),
    ("760M", 777.8, 1457, 2137),
    ("1.4B", 1364, 2597, 3856),
    ("7B", 6738, 13214, 19724),
]


def matrices(config, towers, vocabulary):
    """Millions of parameters in matrices: the table leaves out the gains of norms."""
    count = parameters(config, towers, vocabulary)
    return (count.total - (len(towers) if "norms" in config.untied else 1) * count.gains) / 1e6


@pytest.mark.parametrize(("name", "body", "dense", "two", "three", "experts", "linear", "attention"), TABLE)
def test_the_papers_sizes(name, body, dense, two, three, experts, linear, attention):
    config = ModelConfig(preset=f"chameleon-{name}", qk_norm=False)
    counts = [parameters(config, TOWERS[:towers], 65536) for towers in (1, 2, 3)]
    assert counts[0].body / 1e6 == pytest.approx(body, abs=0.06 if name != "7B" else 0.6)
    for towers, expected in enumerate((dense, two, three), 1):
        assert matrices(config, TOWERS[:towers], 65536) == pytest.approx(expected, abs=0.11)
        assert counts[towers - 1].active == counts[0].total
    moe = ModelConfig(preset=f"chameleon-{name}", qk_norm=False, experts={"text": {"count": 4, "routing": "expert"}})
    # the 880M and 7B entries of the table are rounded otherwise than its formula
    assert matrices(moe, ["text"], 65536) == pytest.approx(experts, abs=0.11, rel=4e-4)
    assert training_flops(config, 65536, 0) / 1e9 == pytest.approx(linear, abs=6e-4)
    keys = (4096 + 1) / 2
    both = training_flops(config, 65536, keys) / 1e9
    assert both - training_flops(config, 65536, 0) / 1e9 == pytest.approx(attention, rel=1e-3, abs=6e-4)


@pytest.mark.parametrize(("name", "dense", "two", "experts"), TRANSFUSION)
def test_the_papers_transfusion_sizes(name, dense, two, experts):
    config = ModelConfig(preset=f"transfusion-{name}", qk_norm=False)
    assert matrices(config, ["text"], 32000) == pytest.approx(dense, abs=0.6)
    assert matrices(config, ["text", "image"], 32000) == pytest.approx(two, abs=0.6)
    moe = ModelConfig(preset=f"transfusion-{name}", qk_norm=False, experts={"text": {"count": 4}})
    assert matrices(moe, ["text"], 32000) == pytest.approx(experts, abs=1.0)


@pytest.mark.parametrize("latent_dim", [0, 6])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_parameters_are_those_of_the_model(qk_norm, latent_dim):
    for changes in (
        {},
        {"untied": ["ffn"]},
        {"untied": ["qkv", "norms"]},
        {"untied": []},
        {"experts": {"a": {"count": 4, "top": 2}}},
        {"unet": {"patch": 1, "channels": [6], "blocks": 2}},
        {"untied": ["ffn", "out"], "experts": {"a": {"count": 4, "routing": "expert"}, "b": {"count": 2}}},
    ):
        config = shape(64, 3, 4, kv_heads=2, qk_norm=qk_norm, **changes)
        model = MoT(config, ["a", "b"], 100, latent_dim)
        found = parameters(config, ["a", "b"], 100, latent_dim)
        assert found.total == sum(p.numel() for p in model.parameters())
        if not config.experts:
            assert found.active == parameters(config, ["a"], 100, latent_dim).total


def one_document(length):
    index = torch.arange(length)
    ones = torch.ones(length, dtype=torch.int32)
    return SimpleNamespace(
        ids_T=index % 100,
        position_T=index,
        document_T=ones,
        block_T=ones * 0,
        place_T=index,
        offsets_G=torch.tensor([length], dtype=torch.int32),
        counts=(length,),
        further_row_J=torch.empty(0, dtype=torch.int64),
        further_ids_J=torch.empty(0, dtype=torch.int64),
        further_label_row_Q=torch.empty(0, dtype=torch.int64),
        further_labels_Q=torch.empty(0, dtype=torch.int64),
        further_ranges=(),
        latent_row_N=index[:0],
        latents_ND=torch.zeros(0, 0),
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


@pytest.mark.parametrize(("patch", "channels"), [(1, (8,)), (2, (6, 8)), (4, (4, 6, 8))])
def test_a_unet_costs_what_torch_counts(patch, channels):
    """But for the timestep's products, once a picture."""
    patches, n = UNetPatches(64, 3 * patch**2, patch, channels, 2), 12
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        x, passage = patches.into(torch.randn(n, 3 * patch**2), torch.zeros(n), [(3, 4)])
        patches.out(x, passage)
    counts = counter.get_flop_counts()["Global"]
    convolutions = sum(count for name, count in counts.items() if "convolution" in str(name))
    assert convolutions == n * patches.flops() and convolutions > 0.9 * counter.get_total_flops()


@pytest.mark.parametrize("routing", ["token", "expert"])
def test_a_batch_with_experts_costs_what_torch_counts(routing):
    config = shape(64, 3, 4, experts={"a": {"count": 4, "top": 2, "routing": routing}})
    model, batch = MoT(config, ["a"], 100), one_document(48)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.logits(model(batch))
    batch.label_row_M = batch.place_T
    attention = 4 * 48 * mean_visible_keys(batch) * 3 * 64
    assert batch_flops(config, 100, batch, ["a"]) / 3 - attention == counter.get_total_flops()


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
