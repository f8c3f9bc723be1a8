"""VAE latents: equal to the scaled means that diffusers gives, cut into patches and back, of about unit variance."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from motet.core.errors import UserError
from motet.tokenizers.image import image_fit
from motet.tokenizers.image.vae import VAE

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples/demo/weights/vae"
FILES = [path.read_bytes() for path in sorted((ROOT / "examples/corpus/images/emoji").glob("*.webp"))]
HELDOUT = [data for data in FILES if image_fit.is_heldout(data, 0.05)]


def open_demo(**settings: int) -> VAE:
    return VAE(VAE.Settings(path=str(DEMO), **settings))


def by_hand(data: bytes, size: int) -> torch.Tensor:
    """A square file as x_1CHW without motet's code."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels = np.asarray(white.resize((size, size), Image.Resampling.LANCZOS)).astype(np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with a scale and a shift, as published models have them, in a subfolder as in a pipeline."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("scaled")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.18215,
        shift_factor=0.1,
    ).save_pretrained(folder / "vae")
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_latents_equal_those_of_diffusers(scaled: Path, patch: int) -> None:
    tokenizer = VAE(VAE.Settings(path=str(scaled), subfolder="vae", patch=patch))
    library = AutoencoderKL.from_pretrained(scaled, subfolder="vae").eval()
    side = 16 // patch
    assert tokenizer.spec.latent_dim == 4 * patch**2 and tokenizer.spec.rate == side**2
    tokens = tokenizer.encode([tokenizer.load(data) for data in FILES[:5]])
    for data, one, image in zip(FILES[:5], tokens, tokenizer.decode(tokens), strict=True):
        mean_CHW = library.encode(by_hand(data, 64)).latent_dist.mean[0]
        want_CHW = ((mean_CHW - 0.1) * 0.18215).numpy()
        assert one.shape == (side, side) and one.latents.dtype == np.float16
        got = one.latents.reshape(side, side, 4, patch, patch)
        for row in range(16):
            for column in range(16):
                token = got[row // patch, column // patch]
                inside = token[:, row % patch, column % patch].astype(np.float32)
                np.testing.assert_allclose(inside, want_CHW[:, row, column], rtol=2e-3, atol=1e-4)
        exact = torch.from_numpy(
            np.concatenate([np.concatenate(list(line), axis=2) for line in got], axis=1).astype(np.float32)
        )
        x = library.decode(exact[None] / 0.18215 + 0.1).sample[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(np.asarray(image), np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8))


def test_patches_come_back_as_they_were() -> None:
    tokenizer = open_demo(patch=2)
    latents_BCHW = torch.randn(3, tokenizer.spec.latent_dim // 4, 6, 8)
    patches = tokenizer.patchify(latents_BCHW)
    assert patches.shape == (3, 3, 4, tokenizer.spec.latent_dim)
    assert torch.equal(tokenizer.unpatchify(patches), latents_BCHW)


def test_the_demo_weights_are_as_good_as_they_say() -> None:
    tokenizer = open_demo()
    originals = [tokenizer.load(data) for data in HELDOUT]
    tokens = tokenizer.encode(originals)
    got, want = (np.stack([np.asarray(image) for image in images]) for images in (tokenizer.decode(tokens), originals))
    assert image_fit.psnr(got, want) > 25.5
    latents = np.concatenate([one.latents for one in tokens]).astype(np.float32)
    assert abs(latents.mean()) < 0.1
    assert 0.9 < latents.std() < 1.1
    assert np.all(np.abs(latents.std(axis=0) - 1) < 0.25), "every channel, not only their mean"
    assert (DEMO / "diffusion_pytorch_model.safetensors").stat().st_size < 4_000_000


def test_latents_do_not_depend_on_the_batch() -> None:
    together, alone = open_demo(batch=16), open_demo(batch=1)
    samples = [together.load(data) for data in FILES[::40]]
    for a, b in zip(together.encode(samples), alone.encode(samples), strict=True):
        np.testing.assert_allclose(a.latents.astype(np.float32), b.latents.astype(np.float32), atol=4e-3)
    again = together.encode(samples[::-1])[::-1]
    for a, b in zip(together.encode(samples), again, strict=True):
        np.testing.assert_allclose(a.latents.astype(np.float32), b.latents.astype(np.float32), atol=4e-3)


def test_the_hash_is_of_weights_and_settings_not_of_the_place(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "moved")
    moved = VAE(VAE.Settings(path=str(tmp_path / "moved"), batch=3, threads=2))
    assert moved.spec == open_demo().spec
    hashes = {open_demo(**settings).spec.hash for settings in ({}, {"size": 128}, {"patch": 2}, {"max_pixels": 999})}
    moved.model.save_config(tmp_path / "moved")
    config = (tmp_path / "moved/config.json").read_text()
    (tmp_path / "moved/config.json").write_text(config.replace('"scaling_factor": 1.0', '"scaling_factor": 0.5'))
    hashes.add(VAE(VAE.Settings(path=str(tmp_path / "moved"))).spec.hash)
    assert len(hashes) == 5
    with pytest.raises(UserError, match="size: 72 is no multiple of the 16 pixels"):
        open_demo(size=72, patch=2)


def test_fitting_lowers_the_loss_and_is_repeatable(tmp_path: Path) -> None:
    options = {"size": 32, "channels": [8, 16], "latent": 4, "steps": 40, "batch": 8, "bfloat16": False, "heldout": 0.1}
    told = VAE.fit(FILES[:150], tmp_path / "one", options)
    assert told == VAE.fit(FILES[149::-1], tmp_path / "two", options)
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() == (tmp_path / "two" / weights).read_bytes()
    assert told["loss_last"] < 0.7 * told["loss_first"]
    assert told["latent_deviation"] == pytest.approx(1, abs=0.2)
    tokenizer = VAE(VAE.Settings(path=str(tmp_path / "one")))
    assert tokenizer.size == 32 and tokenizer.spec.latent_dim == 4
    with pytest.raises(UserError, match="fit vae: channels"):
        VAE.fit(FILES[:9], tmp_path, {"channels": "wide"})


def test_a_models_own_shift_is_in_the_hash(scaled: Path, tmp_path: Path) -> None:
    before = VAE(VAE.Settings(path=str(scaled), subfolder="vae")).spec
    shutil.copytree(scaled, tmp_path / "other")
    file = tmp_path / "other/vae/config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "shift_factor": 0.2}), encoding="utf-8")
    assert VAE(VAE.Settings(path=str(tmp_path / "other"), subfolder="vae")).spec.hash != before.hash
