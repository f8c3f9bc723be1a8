"""The halves of a U-Net: grids of any shape, each picture for itself, no picture at all, the paper's size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.tokenizers.image.vae import VAE
from motet.trainer.model.patches import UNetPatches, fold, unfold

grids = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)
SHAPES = {1: (4,), 2: (4, 6), 4: (2, 4, 6)}


def unet(patch, seed=0):
    torch.manual_seed(seed)
    return UNetPatches(10, 3 * patch**2, patch, SHAPES[patch], 2).double()


def noise_of(patches, latents, time, hidden, pictures):
    sizes = torch.tensor([h * w for h, w in pictures], dtype=torch.int64)
    x, passage = patches.into(latents, time.repeat_interleave(sizes), pictures)
    return x, patches.out(x + hidden, passage)


@given(grids, st.sampled_from([1, 2, 4]))
@settings(max_examples=15, deadline=None)
def test_a_picture_does_not_depend_on_the_others(pictures, patch):
    patches, n = unet(patch), sum(h * w for h, w in pictures)
    latents, hidden = (torch.randn(n, width, dtype=torch.float64) for width in (3 * patch**2, 10))
    time = torch.randint(0, 1000, (len(pictures),))
    together = noise_of(patches, latents, time, hidden, pictures)
    assert together[0].shape == (n, 10) and together[1].shape == latents.shape
    end = 0
    for i, (h, w) in enumerate(pictures):
        here, end = slice(end, end + h * w), end + h * w
        alone = noise_of(patches, latents[here], time[i : i + 1], hidden[here], [(h, w)])
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found[here], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pictures", [[], [(1, 1)], [(3, 1), (1, 3), (3, 1)]])
def test_every_weight_gets_a_gradient(pictures):
    patches, n = unet(2), sum(h * w for h, w in pictures)
    latents, hidden = torch.randn(n, 12, dtype=torch.float64), torch.randn(n, 10, dtype=torch.float64)
    _, noise = noise_of(patches, latents, torch.zeros(len(pictures), dtype=torch.int64), hidden, pictures)
    noise.square().sum().backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in patches.parameters())
    assert any(w.grad.any() for w in patches.parameters()) == bool(pictures)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_fold_is_the_tokenizers_order(p):
    latents = torch.randn(2, 4, 3 * p, 2 * p)
    tokenizer = type("Patch", (), {"patch": p})()
    patches = VAE.patchify(tokenizer, latents)
    assert torch.equal(fold(patches, p), latents) and torch.equal(unfold(latents, p), patches)


@pytest.mark.parametrize("dim", [2048, 4096])
def test_the_papers_setting_adds_about_0_27_billion(dim):
    with torch.device("meta"):
        patches = UNetPatches(dim, 32, 2, (512, 1024), 4)
    assert sum(w.numel() for w in patches.parameters()) / 1e9 == pytest.approx(0.27, abs=0.008)


@pytest.mark.parametrize(("latent_dim", "patch", "channels"), [(12, 3, (4, 4)), (10, 2, (4, 4)), (12, 2, (4,))])
def test_shapes_that_do_not_fit_are_refused(latent_dim, patch, channels):
    with pytest.raises(ValueError, match="power of two"):
        UNetPatches(8, latent_dim, patch, channels, 1)


def test_odd_channels_are_refused():
    with pytest.raises(ValueError, match="even"):
        UNetPatches(8, 12, 2, (4, 5), 1)
