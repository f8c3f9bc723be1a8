"""The grouped model against a plain one, against Llama, and what each position may see."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference_unet as _unet
import torch

from motet.trainer.config import ModelConfig
from motet.trainer.model import grouped
from motet.trainer.model.float8 import float8_linear
from motet.trainer.model.mot import MoT
from motet.trainer.objective.losses import losses

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("motet_reference", ROOT / "benchmarks" / "reference.py")
reference = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = reference
_spec.loader.exec_module(reference)
unet_patches = _unet.unet_patches

VOCABULARY = 60


def shape(**changes):
    return ModelConfig(**dict(dim=32, layers=2, heads=4, kv_heads=2) | changes)


def objective(**changes):
    values = dict(
        kind="chameleon", z_loss=1e-3, weights={"image": 0.5}, diffusion="ddpm", diffusion_weight=5.0, noise_steps=1000
    )
    return SimpleNamespace(**values | changes)


def model_of(config, towers, latent_dim=0, seed=0, vocabulary=VOCABULARY):
    model = MoT(config, reference.TOWERS[:towers], vocabulary, latent_dim, seed).double()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():  # gains and biases that are not all alike, so that a mixed-up one shows
        for name, weight in model.named_parameters():
            if "norm" in name or weight.dim() == 1:
                weight += 0.1 * torch.randn(weight.shape, generator=random, dtype=weight.dtype)
    return model


def keep_one(rows, modality):
    """The same rows with all but one of a modality's tokens made text's."""
    tower = rows.tower.copy()
    tower[tower == modality] = 0
    tower[np.unravel_index(np.flatnonzero(rows.document)[7], tower.shape)] = modality
    return replace(rows, tower=tower)


CASES = {
    "one modality": ([1.0], 0),
    "two": ([1.0, 1.0], 0),
    "three": ([1.0, 1.0, 1.0], 0),
    "two, latents": ([1.0, 1.0], 4),
    "three, latents": ([1.0, 1.0, 1.0], 4),
    "three, latents, flow": ([1.0, 1.0, 1.0], 4),
    "three, one absent": ([1.0, 0.0, 1.0], 0),
    "three, latents absent": ([1.0, 1.0, 0.0], 4),
    "three, one token of one": ([1.0, 1.0, 1.0], 0),
}


@pytest.mark.parametrize("norm", ["after", "before"])
@pytest.mark.parametrize("case", CASES)
def test_equals_a_plain_loop_over_modalities(case, norm):
    shares, latent_dim = CASES[case]
    rows = reference.random_rows(3, 3, 48, shares, VOCABULARY, latent_dim, span=8)
    if case.endswith("one token of one"):
        rows = keep_one(rows, 2)
        assert (rows.tower == 2).sum() == 1
    diffusion = "flow" if case.endswith("flow") else "ddpm"
    model, batch = agree_with_a_plain_loop(shape(norm=norm), rows, latent_dim, diffusion=diffusion)
    for tower, count in enumerate(batch.counts):
        if not count:  # an absent tower gets a zero gradient, not none: parallel wrappers wait for every parameter
            assert all(not w.grad[tower].any() for n, w in model.named_parameters() if n.startswith("blocks"))


FAMILY = {
    "dense": dict(untied=[]),
    "feed-forward untied": dict(untied=["ffn"]),
    "queries, keys, values untied": dict(untied=["qkv"]),
    "all of attention untied": dict(untied=["qkv", "out"]),
    "norms untied": dict(untied=["norms"]),
    "norms shared": dict(untied=["qkv", "out", "ffn"]),
    "no qk-norm": dict(qk_norm=False, kv_heads=None),
    "towers cross in one layer": dict(cross_layers=[1], layers=3),
    "towers never cross": dict(cross_layers=[]),
    "text experts, token choice": dict(experts={"text": {"count": 4}}),
    "two experts a token": dict(experts={"text": {"count": 4, "top": 2, "balance": 0.3}, "speech": {"count": 3}}),
    "text experts, expert choice": dict(experts={"text": {"count": 4, "routing": "expert"}}),
    "experts of a dense model": dict(experts={"text": {"count": 4, "routing": "expert"}}, untied=[]),
    "everything": dict(
        untied=["ffn", "norms"], cross_layers=[0], experts={"image": {"count": 2}}, ffn=48, norm_eps=1e-5
    ),
}


@pytest.mark.parametrize("norm", ["after", "before"])
@pytest.mark.parametrize("member", FAMILY)
def test_every_member_of_the_family_equals_a_plain_loop(member, norm):
    latent_dim = 4 if member == "everything" else 0
    rows = reference.random_rows(
        3, 3, 48, [1.0] * (1 if "dense model" in member else 3), VOCABULARY, latent_dim, span=8
    )
    if "expert" in member:  # equal tokens are equally likely up to rounding, and so would be chosen by chance
        rows = replace(rows, ids=np.arange(rows.ids.size).reshape(rows.ids.shape))
    for recompute in ("none", "ffn", "layer"):
        agree_with_a_plain_loop(shape(norm=norm, **FAMILY[member]), rows, latent_dim, recompute)


@pytest.mark.parametrize(("patch", "channels"), [(1, (6,)), (2, (4, 8))])
def test_a_unet_equals_a_plain_one(patch, channels):
    rows = reference.random_rows(3, 3, 48, [1.0, 1.0, 1.0], VOCABULARY, 3 * patch**2, span=8)
    config = shape(unet={"patch": patch, "channels": channels, "blocks": 2})
    model, _ = agree_with_a_plain_loop(config, rows, 3 * patch**2, patches=unet_patches(reference.timestep))
    assert all(weight.grad.any() for name, weight in model.named_parameters() if name.startswith("patches"))


def agree_with_a_plain_loop(
    config, rows, latent_dim, recompute="none", diffusion="ddpm", patches=reference.linear_patches
):
    """Losses and all gradients equal those of the float64 reference; (the model, the batch)."""
    aim = objective(kind="transfusion" if latent_dim else "chameleon", diffusion=diffusion)
    model = model_of(config, rows.towers, latent_dim, vocabulary=max(VOCABULARY, rows.ids.max() + 1))
    batch = reference.grouped(rows, dtype=torch.float64)
    model.recompute = recompute
    found = losses(model, batch, aim, reference.counts_of(rows))
    found.total.backward()

    weights = {name: w.detach().clone().requires_grad_() for name, w in model.named_parameters()}
    total, sums = reference.plain_losses(weights, config, aim, rows, patches)
    total.backward()
    if not latent_dim:
        hidden_TD = reference.plain_hidden(weights, config, rows).flatten(0, 1)[batch.place_T]
        torch.testing.assert_close(model(batch), hidden_TD, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.total, total, rtol=1e-10, atol=1e-10)
    for name, value in sums.items():
        torch.testing.assert_close(found.sums[name], value.detach(), rtol=1e-10, atol=1e-10)
    for name, weight in model.named_parameters():
        expected = weights[name].grad if weights[name].grad is not None else torch.zeros_like(weight)
        torch.testing.assert_close(weight.grad, expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    return model, batch


def test_experts_that_do_not_fit_are_refused():
    for experts, untied, words in (
        ({"texts": {"count": 2}}, ["ffn"], "there is no tower texts; there are text, image"),
        ({"text": {"count": 2}}, ["qkv"], "the towers share one feed-forward"),
    ):
        with pytest.raises(ValueError, match=words):
            MoT(shape(experts=experts, untied=untied), ["text", "image"], VOCABULARY)


def test_presets_are_shapes_and_what_stands_beside_them_stays():
    assert ModelConfig(preset="chameleon-443M", qk_norm=False) == ModelConfig(
        dim=1024, layers=24, heads=16, qk_norm=False
    )
    assert ModelConfig(preset="transfusion-163M", layers=2).layers == 2
    with pytest.raises(ValueError, match="chameleon-37M"):
        ModelConfig(preset="chameleon-1B")


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_one_tower_with_norms_before_is_llama(kv_heads):
    transformers = pytest.importorskip("transformers")
    config = shape(norm="before", qk_norm=False, ffn=80, kv_heads=kv_heads)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            tie_word_embeddings=False,
        )
    )
    ours = MoT(config, ["text"], VOCABULARY)
    llama = theirs.model
    with torch.no_grad():
        ours.embedding.weight.copy_(llama.embed_tokens.weight)
        ours.head.weight.copy_(theirs.lm_head.weight)
        ours.norm[0] = llama.norm.weight
        for block, layer in zip(ours.blocks, llama.layers, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            block.qkv[0] = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
            block.out[0] = attention.o_proj.weight
            block.gate_up[0] = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
            block.down[0] = mlp.down_proj.weight
            block.attention_norm[0] = layer.input_layernorm.weight
            block.ffn_norm[0] = layer.post_attention_layernorm.weight
    rows = one_document(40)
    batch = reference.grouped(rows)
    scores_TV = ours.logits(ours(batch))
    torch.testing.assert_close(scores_TV, theirs(torch.from_numpy(rows.ids)).logits[0], rtol=1e-5, atol=1e-5)
    counts = reference.counts_of(rows)
    loss = losses(ours, batch, objective(z_loss=0.0), counts).total
    loss.backward()
    theirs(torch.from_numpy(rows.ids), labels=torch.from_numpy(rows.ids)).loss.backward()
    torch.testing.assert_close(
        ours.blocks[0].out.grad[0], llama.layers[0].self_attn.o_proj.weight.grad, rtol=1e-4, atol=1e-5
    )


def one_document(length):
    rows = reference.random_rows(0, 1, length, [1.0], VOCABULARY, padding=0)
    ids = rows.ids
    labels, modality = np.full_like(ids, -100), np.full_like(ids, -1)
    labels[:, :-1], modality[:, :-1] = ids[:, 1:], 0
    ones = np.ones_like(ids)
    return replace(rows, document=ones, position=np.arange(length)[None], labels=labels, modality=modality)


def changed(rows, place):
    """Hidden states in sequence order before and after the id at `place` is changed, and where they differ."""
    model = model_of(shape(), rows.towers, rows.clean.shape[1] if rows.is_latent.any() else 0)
    ids, clean = rows.ids.copy(), rows.clean.copy()
    if rows.is_latent[place]:
        clean[int(rows.is_latent.reshape(-1)[: np.ravel_multi_index(place, ids.shape)].sum())] += 1.0
    else:
        ids[place] = (ids[place] + 1) % VOCABULARY
    hidden = []
    for version in (rows, replace(rows, ids=ids, clean=clean)):
        batch = reference.grouped(version, dtype=torch.float64)
        hidden_TD = torch.empty(rows.ids.size, 32, dtype=torch.float64)
        hidden_TD[batch.place_T] = model(batch).detach()
        hidden.append(hidden_TD)
    return (hidden[0] != hidden[1]).any(-1).view(rows.ids.shape).numpy()


def test_a_change_reaches_later_positions_of_its_own_document_only():
    rows = reference.random_rows(1, 2, 64, [1.0, 1.0], VOCABULARY, span=6)
    place = tuple(np.argwhere((rows.document > 0) & (rows.position == 3))[1])
    differs = changed(rows, place)
    same = rows.document == rows.document[place]
    later = np.broadcast_to(np.arange(64) >= place[1], same.shape)
    assert not differs[~same].any()
    assert not differs[~later].any()
    assert differs[same & later].all()


def test_a_picture_is_seen_whole_by_its_own_patches():
    rows = reference.random_rows(2, 2, 64, [1.0, 1.0], VOCABULARY, 4, span=6)
    sizes = np.bincount(rows.block.reshape(-1))
    block = int(np.argmax(sizes[1:])) + 1
    last = tuple(np.argwhere(rows.block == block)[-1])
    differs = changed(rows, last)
    assert differs[rows.block == block].all()
    before = (rows.document == rows.document[last]) & (rows.block != block) & (np.arange(64)[None] < last[1])
    assert not differs[before].any()


def test_short_documents_share_a_segment_and_long_ones_do_not():
    short = reference.random_rows(4, 2, 200, [1.0, 1.0], VOCABULARY, span=2)
    long = reference.random_rows(4, 2, 200, [1.0, 1.0], VOCABULARY, span=60)
    for rows in (short, long):
        model, batch = model_of(shape(), 2), reference.grouped(rows, dtype=torch.float64)
        weights = dict(model.named_parameters())
        expected = reference.plain_hidden(weights, shape(), rows).flatten(0, 1)[batch.place_T]
        torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-10)


def test_initial_weights_are_a_function_of_the_seed_and_start_near_the_uniform_loss():
    rows = reference.random_rows(0, 4, 64, [1.0, 1.0], VOCABULARY)
    for norm in ("after", "before"):
        first, again, other = (MoT(shape(norm=norm), ["a", "b"], VOCABULARY, seed=s) for s in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        assert not torch.equal(first.blocks[0].qkv, other.blocks[0].qkv)
        counts = reference.counts_of(rows)
        loss = losses(first, reference.grouped(rows), objective(z_loss=0.0, weights={}), counts).total
        assert abs(float(loss.detach()) - np.log(VOCABULARY)) < 0.1


def test_eight_bits_stay_near_float32():
    """Rows and weights have scales of their own: what is large elsewhere costs no digits here."""
    random = torch.Generator().manual_seed(0)
    groups = grouped.Groups((5, 0, 1, 42), torch.tensor([5, 5, 6, 48], dtype=torch.int32))
    x, weight, grad = (torch.randn(*s, generator=random) for s in ((48, 64), (4, 32, 64), (48, 32)))
    x *= torch.logspace(-3, 3, 48)[:, None]
    weight *= torch.logspace(-2, 2, 32)[:, None]
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    y = float8_linear(*leaves, groups)
    y.backward(grad.to(y.dtype))
    exact = [t.clone().requires_grad_() for t in (x, weight)]
    true = grouped.grouped_linear(*exact, groups)
    true.backward(grad)
    assert y.dtype is torch.bfloat16
    for tower, rows in groups.slices():
        size = x[rows].norm(dim=1)[:, None] * weight[tower].norm(dim=1)[None]
        assert ((y - true)[rows].abs() / size).max() < 0.02
    for ours, theirs, bound in zip(leaves, exact, (0.06, 0.01), strict=True):
        assert (ours.grad - theirs.grad).norm() / theirs.grad.norm() < bound
    assert not leaves[1].grad[1].any()


def test_a_model_in_eight_bits_stays_near_one_in_float32():
    rows = reference.random_rows(0, 2, 64, [1.0, 1.0, 1.0], VOCABULARY, 4)
    model, batch = MoT(shape(), ["a", "b", "c"], VOCABULARY, 4), reference.grouped(rows)
    aim, counts = objective(kind="transfusion"), reference.counts_of(rows)
    exact = losses(model, batch, aim, counts).total.detach()
    model.use_float8()
    with torch.autocast("cpu", torch.bfloat16):
        rough = losses(model, batch, aim, counts).total
    rough.backward()
    assert float(rough.detach()) == pytest.approx(float(exact), rel=0.03) and rough.item() != exact.item()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_bf16_stays_near_float32():
    rows = reference.random_rows(0, 2, 64, [1.0, 1.0, 1.0], VOCABULARY, 4)
    model, batch = MoT(shape(), ["a", "b", "c"], VOCABULARY, 4), reference.grouped(rows)
    aim, counts = objective(kind="transfusion"), reference.counts_of(rows)
    exact = losses(model, batch, aim, counts).total.detach()
    with torch.autocast("cpu", torch.bfloat16):
        rough = losses(model, batch, aim, counts).total
    rough.backward()
    assert rough.dtype is torch.float32
    assert float(rough.detach()) == pytest.approx(float(exact), rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_gpu_benchmark_needs_torch_and_numpy_only():
    code = (
        "import runpy, sys\n"
        "for name in ('pydantic', 'yaml', 'pyarrow', 'xxhash', 'ray', 'motet.tokenizers'): sys.modules[name] = None\n"
        "benchmark = runpy.run_path('benchmarks/gpu.py', run_name='imported')\n"
        "loss, gradient = benchmark['errors'](benchmark['torch'].device('cpu'), 'float64', 8, 'after')\n"
        "assert max(loss, gradient) < 1e-10, (loss, gradient)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
