"""EnCodec units: equal to the library's own on real speech, from both published layouts of weights."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import soundfile
import soxr
import torch
from encodec import EncodecModel
from safetensors.torch import save_file

from motet.core.configuration import validate
from motet.core.errors import UserError
from motet.tokenizers.contract import BadSample, Tokens, Waveform
from motet.tokenizers.speech import encodec_units
from motet.tokenizers.speech.encodec_units import EnCodec, same_length

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = (path.read_bytes() for path in sorted((ROOT / "examples/corpus/speech/prompts").glob("*.ogg")))
FILES = sorted(PROMPTS, key=len)[40:44]  # a second or less each


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncodecModel, Path]:
    """The library's 24 kHz architecture with random weights and codebooks of what they quantize; and its file."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = EncodecModel.encodec_model_24khz(pretrained=False)
    with torch.no_grad():
        emb_FD = torch.cat([model.encoder(torch.from_numpy(by_hand(data))[None, None])[0].T for data in FILES])
        for layer in model.quantizer.vq.layers:
            codebook = layer._codebook
            codebook.inited.fill_(1)
            picks = torch.randint(len(emb_FD), (codebook.codebook_size,))
            codebook.embed.copy_(emb_FD[picks] * (1 + 0.1 * torch.randn(codebook.codebook_size, 1)))
            emb_FD = emb_FD - codebook.decode(codebook.encode(emb_FD))
    file = tmp_path_factory.mktemp("encodec") / "encodec_24khz.th"
    torch.save(model.state_dict(), file)
    return model, file


def by_hand(data: bytes) -> np.ndarray:
    """A file as 24 kHz mono without motet's code."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    return np.clip(soxr.resample(samples, rate, 24_000).astype(np.float32), -1, 1)


@torch.inference_mode()
@pytest.mark.parametrize(("bandwidth", "codebooks"), [(1.5, 2), (6.0, 8)])
def test_codes_and_sound_equal_those_of_the_library(
    library: tuple[EncodecModel, Path], bandwidth: float, codebooks: int
) -> None:
    model, file = library
    model.set_target_bandwidth(bandwidth)
    tokenizer = EnCodec(EnCodec.Settings(path=str(file), bandwidth=bandwidth))
    assert tokenizer.spec.codebooks == (1024,) * codebooks and tokenizer.spec.rate == 75
    tokens = tokenizer.encode([tokenizer.load(data) for data in FILES])
    for data, one, wave in zip(FILES, tokens, tokenizer.decode(tokens), strict=True):
        x_11T = torch.from_numpy(by_hand(data))[None, None]
        frames = model.encode(x_11T)
        codes_KF = frames[0][0][0]
        assert one.shape == (-(-x_11T.shape[-1] // 320), codebooks) == tuple(codes_KF.T.shape)
        np.testing.assert_array_equal(one.ids.reshape(one.shape), codes_KF.T.numpy())
        np.testing.assert_array_equal(wave.samples, model.decode(frames)[0, 0].clamp(-1, 1).numpy())
        assert wave.rate == 24_000
        assert soundfile.info(io.BytesIO(tokenizer.dump(wave))).frames == 320 * one.shape[0]
    assert len(np.unique(tokens[0].ids.reshape(tokens[0].shape)[:, 0])) > 10, "the codes say something"


@torch.inference_mode()
def test_weights_in_the_layout_of_transformers(library: tuple[EncodecModel, Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.EncodecModel(transformers.EncodecConfig()).eval()
    state = theirs.state_dict()
    torch.manual_seed(1)
    for name, value in state.items():
        if name.endswith("codebook.embed"):
            value.normal_(std=0.02)
    save_file(state, tmp_path / "model.safetensors")
    tokenizer = EnCodec(EnCodec.Settings(path=str(tmp_path)))
    for data in FILES[:2]:
        (one,) = tokenizer.encode([tokenizer.load(data)])
        codes = theirs.encode(torch.from_numpy(by_hand(data))[None, None], bandwidth=6.0).audio_codes
        assert (one.ids.reshape(one.shape) == codes[0, 0].T.numpy()).mean() > 0.999
        got = tokenizer.decode([one])[0].samples
        want = theirs.decode(codes, [None]).audio_values[0, 0].clamp(-1, 1).numpy()
        np.testing.assert_allclose(got, want, atol=1e-4)
    assert tokenizer.spec.hash != EnCodec(EnCodec.Settings(path=str(library[1]))).spec.hash


def test_codes_do_not_depend_on_the_batch_and_the_hash_not_on_the_place(
    library: tuple[EncodecModel, Path], tmp_path: Path
) -> None:
    model, file = library
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    one, other = EnCodec(EnCodec.Settings(path=str(file))), EnCodec(EnCodec.Settings(path=str(tmp_path)))
    assert one.spec == other.spec
    samples = [one.load(data) for data in FILES[:4]]
    together, alone = one.encode(samples), [other.encode([sample])[0] for sample in samples[::-1]][::-1]
    assert all(a.shape == b.shape and np.array_equal(a.ids, b.ids) for a, b in zip(together, alone, strict=True))
    for other in ({"bandwidth": 3.0}, {"max_seconds": 5.0}):
        assert EnCodec(EnCodec.Settings(path=str(file), **other)).spec.hash != one.spec.hash


@pytest.mark.parametrize(
    ("lengths", "longest", "expected"),
    [
        ([], 100, []),
        ([5, 7, 5, 5], 0, [[0], [2], [3], [1]]),
        ([5, 7, 5, 5], 10, [[0, 2], [3], [1]]),
        ([5, 7, 5, 5, 0, 0], 1000, [[0, 2, 3], [1], [4, 5]]),
        ([500], 100, [[0]]),
    ],
)
def test_only_sounds_of_one_length_share_a_batch(lengths: list[int], longest: int, expected: list[list[int]]) -> None:
    assert list(same_length(lengths, longest)) == expected


@torch.inference_mode()
def test_batches_of_one_length_give_the_codes_in_order(
    library: tuple[EncodecModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, on the CPU: batches of one length, put back in the order of the samples."""
    # Two codebooks: of what they leave, the fixture's later ones quantize little but rounding.
    tokenizer = EnCodec(EnCodec.Settings(path=str(library[1]), bandwidth=1.5))
    samples = [tokenizer.load(data) for data in FILES]
    cut = min(len(sample.samples) for sample in samples)
    samples += [Waveform(sample.samples[:cut], 24_000) for sample in samples]
    alone = tokenizer.encode(samples)
    monkeypatch.setattr(encodec_units, "same_length", lambda lengths, _: list(same_length(lengths, 3 * cut)))
    for a, b in zip(alone, tokenizer.encode(samples), strict=True):
        assert a.shape == b.shape and (a.ids != b.ids).mean() < 1e-3


def test_a_gpu_is_in_the_hash_and_one_that_is_not_there_is_named(
    library: tuple[EncodecModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"device: cuda cannot be used here .*set device to cpu"):
            EnCodec(EnCodec.Settings(path=str(library[1]), device="cuda")).encode([Waveform(np.zeros(240), 24_000)])
    hashes = [EnCodec(EnCodec.Settings(path=str(library[1]), device=d)).spec.hash for d in ("cpu", "cuda", "cuda:3")]
    assert hashes[0] != hashes[1] == hashes[2]


def test_short_long_and_impossible_input(library: tuple[EncodecModel, Path]) -> None:
    tokenizer = EnCodec(EnCodec.Settings(path=str(library[1]), max_seconds=2.0))
    for length in (1, 319, 320, 321):
        (one,) = tokenizer.encode([Waveform(np.zeros(length, np.float32), 24_000)])
        assert one.shape == (-(-length // 320), 8)
        assert len(tokenizer.decode([one])[0].samples) == 320 * one.shape[0]
    assert tokenizer.decode([Tokens((0, 8), ids=np.zeros(0, np.int32))])[0].samples.shape == (0,)
    long = io.BytesIO()
    soundfile.write(long, np.zeros(50_000, np.float32), 16_000, format="WAV")
    with pytest.raises(BadSample, match="audio-too-long"):
        tokenizer.load(long.getvalue())
    with pytest.raises(ValueError, match="1024"):
        tokenizer.decode([Tokens((1, 8), ids=np.full(8, 1024, np.int32))])


def test_weights_that_are_missing_or_of_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path | str, match: str) -> None:
        with pytest.raises(UserError, match=match):
            EnCodec(EnCodec.Settings(path=str(path)))

    refused(tmp_path / "nowhere.th", "no such file of weights")
    refused(tmp_path, "no such file of weights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stereo = EncodecModel.encodec_model_48khz(pretrained=False)
    torch.save(stereo.state_dict(), tmp_path / "encodec_48khz.th")
    refused(tmp_path / "encodec_48khz.th", "do not fit the model")
    (tmp_path / "cut.th").write_bytes((tmp_path / "encodec_48khz.th").read_bytes()[:100_000])
    refused(tmp_path / "cut.th", "cannot be read as weights")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("nobody/no-such-encodec", "set path to its folder")
    with pytest.raises(UserError, match=r"bandwidth: .*must be one of"):
        validate({"path": "x", "bandwidth": 5}, EnCodec.Settings, "tokenize.yaml")
