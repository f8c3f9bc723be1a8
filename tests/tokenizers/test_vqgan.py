"""VQ-GAN codes: equal to what diffusers gives, from every layout of weights, and worth what the demo's README says."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from safetensors.torch import save_file
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from motet.core.configuration import validate
from motet.core.errors import UserError
from motet.tokenizers import registry, torch_models
from motet.tokenizers.contract import BadSample, Tokens
from motet.tokenizers.image import image_fit, pictures, taming, vqgan_fit
from motet.tokenizers.image.vqgan import VQGAN

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples/demo/weights/vqgan"
FILES = [path.read_bytes() for path in sorted((ROOT / "examples/corpus/images/emoji").glob("*.webp"))]
HELDOUT = [data for data in FILES if image_fit.is_heldout(data, 0.05)]


def open_demo(**settings: Any) -> VQGAN:
    return VQGAN(VQGAN.Settings(path=str(DEMO), **settings))


def by_hand(data: bytes, size: int) -> torch.Tensor:
    """A square file as x_1CHW without motet's code."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels = np.asarray(white.resize((size, size), Image.Resampling.LANCZOS)).astype(np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


@torch.inference_mode()
def test_codes_and_pictures_equal_those_of_diffusers() -> None:
    tokenizer = open_demo()
    library = VQModel.from_pretrained(DEMO, torch_dtype=torch.float32).eval()
    tokens = tokenizer.encode([tokenizer.load(data) for data in HELDOUT[:12]])
    for data, one, image in zip(HELDOUT[:12], tokens, tokenizer.decode(tokens), strict=True):
        latents = library.encode(by_hand(data, 64)).latents
        _, _, (_, _, ids) = library.quantize(latents)
        assert one.shape == tuple(latents.shape[2:]) == (8, 8)
        np.testing.assert_array_equal(one.ids, ids.flatten().numpy())
        entry = library.quantize.get_codebook_entry(ids, (1, 8, 8, library.config.vq_embed_dim))
        x = library.decode(entry, force_not_quantize=True).sample[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(np.asarray(image), np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8))


def test_the_demo_weights_are_as_good_as_they_say() -> None:
    tokenizer = open_demo()
    originals = [tokenizer.load(data) for data in HELDOUT]
    tokens = tokenizer.encode(originals)
    got, want = (np.stack([np.asarray(image) for image in images]) for images in (tokenizer.decode(tokens), originals))
    assert image_fit.psnr(got, want) > 23.5
    assert len(np.unique(np.concatenate([one.ids for one in tokens]))) > 800
    assert (DEMO / "diffusion_pytorch_model.safetensors").stat().st_size < 4_000_000


@pytest.mark.parametrize(("batch", "threads"), [(2, 1), (3, 2), (16, 1), (None, 1), (None, 2)])
@torch.inference_mode()
def test_codes_depend_on_neither_batch_nor_threads(batch: int | None, threads: int) -> None:
    """Sums are rounded otherwise: a code may differ only where the two nearest are as near, to a few of a million parts."""
    tokenizer, alone = open_demo(batch=batch, threads=threads), open_demo(batch=1)
    samples = [alone.load(data) for data in FILES[::7]]
    ids, want = (np.concatenate([t.ids for t in each.encode(samples)]) for each in (tokenizer, alone))
    latents = torch.cat([alone.model.encode(pictures.to_tensor([sample])).latents for sample in samples])
    distance_NK = torch.cdist(latents.permute(0, 2, 3, 1).flatten(0, 2), alone.model.quantize.embedding.weight)
    nearest_N2 = distance_NK.topk(2, largest=False).values
    clear_N = (nearest_N2[:, 1] - nearest_N2[:, 0] > 1e-4).numpy()
    assert clear_N.mean() > 0.99
    np.testing.assert_array_equal(ids[clear_N], want[clear_N])
    again = tokenizer.encode(samples[::-1])[::-1]
    assert np.mean(np.concatenate([t.ids for t in again]) != ids) < 1e-3


def test_of_equal_codes_the_first_is_taken_as_diffusers_does() -> None:
    tokenizer = open_demo()
    with torch.inference_mode():
        codes_KD = tokenizer.model.quantize.embedding.weight
        codes_KD[1::2] = codes_KD[::2]
        latents = tokenizer.model.encode(pictures.to_tensor([tokenizer.load(FILES[0])])).latents
        _, _, (_, _, want) = tokenizer.model.quantize(latents)
    (tokens,) = tokenizer.encode([tokenizer.load(FILES[0])])
    np.testing.assert_array_equal(tokens.ids, want.flatten().numpy())
    assert not (tokens.ids % 2).any()


def test_the_hash_is_of_weights_and_settings_not_of_the_place(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "moved")
    moved = VQGAN(VQGAN.Settings(path=str(tmp_path / "moved"), batch=3, threads=2))
    assert moved.spec == open_demo().spec
    assert len({open_demo(**settings).spec.hash for settings in ({}, {"size": 128}, {"max_pixels": 1000})}) == 3
    assert open_demo(max_pixels=64_000_000).spec == moved.spec, "the default, said or not"
    with torch.no_grad():
        moved.model.decoder.conv_out.bias[0] += 1e-3
    moved.model.save_pretrained(tmp_path / "changed")
    assert VQGAN(VQGAN.Settings(path=str(tmp_path / "changed"))).spec.hash != moved.spec.hash


def test_a_gpu_is_in_the_hash_its_number_is_not_and_one_that_is_not_there_is_named() -> None:
    for device in ("meta", "gpu", "cuda:x", "cpu:0"):
        with pytest.raises(UserError, match="device"):
            validate({"path": str(DEMO), "device": device}, VQGAN.Settings, "test")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"device: cuda:1 cannot be used here .*set device to cpu"):
            open_demo(device="cuda:1").encode([Image.new("RGB", (64, 64))])
    spec = open_demo().spec
    assert open_demo(device="cuda").spec.hash == open_demo(device="cuda:1").spec.hash != spec.hash
    assert open_demo(device="cpu").spec == spec


def test_the_device_is_known_from_the_settings_without_a_model() -> None:
    assert registry.absolute({"use": "vqgan", "path": str(DEMO)}, ROOT)["device"] == "cpu"
    assert registry.absolute({"use": "vae", "path": str(DEMO), "device": "cuda:1"}, ROOT)["device"] == "cuda:1"


def test_convolutions_on_a_gpu_keep_fp32_and_the_process_its_own_settings() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    with torch_models.running(1):
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.deterministic
        assert torch.is_inference_mode_enabled()
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)


def test_other_sizes_and_shapes_of_pictures() -> None:
    tokenizer = open_demo(size=128)
    wide = Image.open(io.BytesIO(FILES[0])).convert("RGB").resize((301, 90))
    file = io.BytesIO()
    wide.save(file, "PNG")
    sample = tokenizer.load(file.getvalue())
    assert sample.size == (128, 128)
    scaled = wide.resize((round(301 * 128 / 90), 128), Image.Resampling.LANCZOS)
    left = (scaled.width - 128) // 2
    np.testing.assert_array_equal(np.asarray(sample), np.asarray(scaled.crop((left, 0, left + 128, 128))))
    strip = pictures.square(Image.new("RGB", (20_000_000, 1), "red"), 512)
    assert strip.size == (512, 512) and strip.getcolors() == [(512 * 512, (255, 0, 0))], (
        "and not 20 million times 512 wide"
    )
    (tokens,) = tokenizer.encode([sample])
    assert tokens.shape == (16, 16) and tokenizer.spec.rate == 256
    oblong = Tokens((4, 16), ids=tokens.ids[:64])
    assert tokenizer.decode([oblong])[0].size == (128, 32)
    with pytest.raises(BadSample, match="image-too-large"):
        open_demo(max_pixels=1000).load(file.getvalue())
    with pytest.raises(ValueError, match="under 1024"):
        tokenizer.decode([Tokens((1, 1), ids=np.array([1024], np.int32))])


def taming_name(name: str, levels: int) -> str:
    """A name in diffusers' VQModel as taming-transformers writes it: the other way round, written for the test."""
    coarsest = levels - 1
    name = re.sub(r"encoder\.down_blocks\.(\d+)", r"encoder.down.\1", name)
    name = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{coarsest - int(m[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace(".attentions.", ".attn.")
    name = name.replace(".resnets.", ".block.").replace("samplers.0", "sample").replace("conv_shortcut", "nin_shortcut")
    for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("group_norm", "norm")):
        name = name.replace(f".{new}.", f".{old}.")
    return name.replace("conv_norm_out", "norm_out")


def taming_state(model: VQModel) -> dict[str, torch.Tensor]:
    """A model's weights as taming-transformers stores them, with weights of its loss beside them."""
    state = {"loss.discriminator.main.0.weight": torch.zeros(1)}
    for name, value in model.state_dict().items():
        old = taming_name(name, len(model.config.block_out_channels))
        is_matrix = re.search(r"attn[._]\d+\.(q|k|v|proj_out)\.weight", old)
        state[old] = (value[:, :, None, None] if is_matrix else value).clone()
    return state


@pytest.fixture(scope="module")
def small() -> VQModel:
    """A random VQModel with attention at its coarsest level, as taming's f16 models have it."""
    torch.manual_seed(0)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        latent_channels=16,
        num_vq_embeddings=128,
        vq_embed_dim=8,
        norm_num_groups=32,
        sample_size=64,
    ).eval()
    with torch.no_grad():
        model.quantize.embedding.weight.normal_(std=0.5)
    return model


@pytest.mark.parametrize("layout", ["safetensors", "torch", "lightning"])
def test_weights_in_the_layout_of_taming_and_chameleon(small: VQModel, tmp_path: Path, layout: str) -> None:
    state = taming_state(small)
    assert "decoder.up.2.upsample.conv.weight" in state and "encoder.down.1.downsample.conv.bias" in state
    assert "encoder.down.2.attn.1.proj_out.weight" in state and "decoder.up.1.block.0.nin_shortcut.weight" in state
    file = tmp_path / ("vqgan.safetensors" if layout == "safetensors" else "vqgan.ckpt")
    if layout == "safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if layout == "lightning" else state, file)
    small.save_pretrained(tmp_path / "diffusers")
    theirs = VQGAN(VQGAN.Settings(path=str(file), size=64))
    ours = VQGAN(VQGAN.Settings(path=str(tmp_path / "diffusers")))
    assert theirs.spec == ours.spec
    samples = [ours.load(data) for data in FILES[:4]]
    for a, b in zip(theirs.encode(samples), ours.encode(samples), strict=True):
        assert a.shape == (16, 16) and len(np.unique(a.ids)) > 5
        np.testing.assert_array_equal(a.ids, b.ids)
    assert VQGAN(VQGAN.Settings(path=str(file))).size == 512, "Chameleon's, which the weights do not say"


@torch.inference_mode()
def test_codes_equal_those_of_chameleon_in_transformers(tmp_path: Path) -> None:
    """An encoder written by others, in Chameleon's own names; transformers has no decoder, so that half is random."""
    torch.manual_seed(1)
    theirs = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=8,
            num_embeddings=64,
            latent_channels=16,
            resolution=64,
            base_channels=32,
            channel_multiplier=[1, 1, 2],
            num_res_blocks=2,
        )
    ).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.1)
    state = theirs.state_dict()
    decoder = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        latent_channels=16,
        vq_embed_dim=8,
    )
    state |= {name: value for name, value in taming_state(decoder).items() if name.startswith("decoder.")}
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    tokenizer = VQGAN(VQGAN.Settings(path=str(tmp_path / "vqgan.ckpt"), size=64))
    for data in FILES[:6]:
        (one,) = tokenizer.encode([tokenizer.load(data)])
        np.testing.assert_array_equal(one.ids, theirs.encode(by_hand(data, 64)).image_tokens.flatten().numpy())
        assert len(np.unique(one.ids)) > 3


def test_every_name_of_chameleons_own_size_is_known() -> None:
    chameleon = {
        "block_out_channels": (128, 128, 256, 256, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 5,
        "up_block_types": ("UpDecoderBlock2D",) * 5,
        "layers_per_block": 2,
        "latent_channels": 256,
        "num_vq_embeddings": 8192,
        "vq_embed_dim": 256,
    }
    with torch.device("meta"):
        model = VQModel(**chameleon)
    state = taming_state(model)
    found = taming.configuration(state, Path("vqgan.ckpt"))
    assert {key: found[key] for key in chameleon} == chameleon
    names = {taming.rename(name, 5) for name in state if name.startswith(taming.PARTS)}
    assert names == model.state_dict().keys()


class Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_no_code_is_run_from_files(tmp_path: Path) -> None:
    (tmp_path / "vqgan.ckpt").write_bytes(pickle.dumps({"state_dict": Touch(str(tmp_path / "ran"))}, protocol=2))
    torch.save({"state_dict": Touch(str(tmp_path / "ran"))}, tmp_path / "zip.ckpt")
    for name in ("vqgan.ckpt", "zip.ckpt"):
        with pytest.raises(UserError, match=name):
            VQGAN(VQGAN.Settings(path=str(tmp_path / name)))
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_missing_damaged_or_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path | str, match: str, **settings: int) -> None:
        with pytest.raises(UserError, match=match):
            VQGAN(VQGAN.Settings(path=str(path), **settings))

    weights, config = "diffusion_pytorch_model.safetensors", "config.json"
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "no config.json")
    refused(ROOT / "examples/demo/weights/vae", "AutoencoderKL, expected VQModel")
    refused(DEMO, "size: 63 is no multiple of the 8 pixels", size=63)
    for name in ("cut", "short", "no-json", "no-weights"):
        shutil.copytree(DEMO, tmp_path / name)
    (tmp_path / "cut" / weights).write_bytes((DEMO / weights).read_bytes()[:-1000])
    refused(tmp_path / "cut", "cannot be loaded as VQModel")
    fewer = json.loads((DEMO / config).read_text())
    (tmp_path / "short" / config).write_text(json.dumps({**fewer, "layers_per_block": 2}))
    refused(tmp_path / "short", "do not fit config.json")
    (tmp_path / "no-json" / config).write_text("{")
    refused(tmp_path / "no-json", "config.json: cannot be read")
    (tmp_path / "no-weights" / weights).unlink()
    refused(tmp_path / "no-weights", "cannot be loaded as VQModel")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "no VQ-GAN of taming")
    (tmp_path / "garbage.safetensors").write_bytes(b"\x00" * 64)
    refused(tmp_path / "garbage.safetensors", "cannot be read as weights")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("nobody/no-such-vqgan", "set path to its folder")


def test_a_hub_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_answer(url: str, timeout: float) -> None:
        asked.append((url, timeout))
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_answer)
    with pytest.raises(UserError, match="no route"):
        torch_models.open_diffusers(VQModel, "nobody/no-such-vqgan", "vqvae")
    ((url, timeout),) = asked
    assert url.endswith("nobody/no-such-vqgan/resolve/main/vqvae/config.json") and timeout <= 5


def test_fitting_lowers_the_loss_and_is_repeatable(tmp_path: Path) -> None:
    options = {"size": 32, "channels": [8, 16], "latent": 4, "codes": 32, "steps": 40, "batch": 8, "bfloat16": False}
    files = [*FILES[:150], b"no picture"]
    told = VQGAN.fit(files, tmp_path / "one", {**options, "heldout": 0.1})
    again = VQGAN.fit(files[::-1], tmp_path / "two", {**options, "heldout": 0.1})
    assert told == again
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() == (tmp_path / "two" / weights).read_bytes()
    assert told["loss_last"] < 0.7 * told["loss_first"]
    assert told["rejected"] == 1 and told["train"] + told["heldout"] == 150
    assert told["used_codes"] > 16 and 1 < told["perplexity"] <= told["used_codes"]
    tokenizer = VQGAN(VQGAN.Settings(path=str(tmp_path / "one")))
    assert tokenizer.size == 32 and tokenizer.spec.codebooks == (32,)
    with pytest.raises(UserError, match=r"fit vqgan: stepps: unknown key; did you mean 'steps'"):
        VQGAN.fit(files, tmp_path, {"stepps": 3})
    with pytest.raises(UserError, match="pictures to fit on"):
        VQGAN.fit([b"no picture"], tmp_path, {})


def test_codes_follow_their_latents_from_the_start_on() -> None:
    """The k-means that starts the codebook weighs no more than one batch: averages forget it at the rate of `DECAY`."""
    generator = torch.Generator().manual_seed(0)
    latents_ND = torch.randn(2048, 4, generator=generator)
    codebook = vqgan_fit.Codebook(torch.nn.Embedding(32, 4), generator)
    codebook.watch(latents_ND)
    with torch.no_grad():
        codebook.start()
        assert codebook.count_K.sum().item() == pytest.approx(1)
        start_D = codebook.sum_KD.sum(0)
        codebook.quantize(latents_ND + 0.5)
    moved_D = codebook.sum_KD.sum(0) - start_D
    torch.testing.assert_close(moved_D, torch.full((4,), 0.5 * (1 - vqgan_fit.DECAY)))
