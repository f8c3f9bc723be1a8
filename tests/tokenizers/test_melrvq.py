"""Mel-RVQ: codes of real speech are the nearest entries, sums of entries come back as speech, fits are repeatable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from motet.core.errors import UserError
from motet.tokenizers.contract import BadSample, Tokens, Waveform
from motet.tokenizers.media import dump_wav, load_speech, resample
from motet.tokenizers.speech.kmeans import assign, kmeans, perplexity
from motet.tokenizers.speech.mel import LogMel, MelConfig
from motet.tokenizers.speech.melrvq import MelRVQ

PROMPTS = Path(__file__).resolve().parents[2] / "examples/corpus/speech/prompts"
FILES = [file.read_bytes() for file in sorted(PROMPTS.glob("*.ogg"))[:60]]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("melrvq")
    measured = MelRVQ.fit([*FILES[10:], b"no sound"], out, {"size": 128})
    assert measured["tokens_per_second"] == 160 and measured["skipped"] == 1
    assert len(measured["perplexity"]) == 4 and min(measured["perplexity"]) > 80
    json.dumps(measured)
    return out


def build(path: Path, **settings) -> MelRVQ:
    return MelRVQ(MelRVQ.Settings(path=path, **settings))


def test_the_spec_says_what_was_fitted(fitted):
    spec = build(fitted).spec
    assert (spec.codebooks, spec.rate, spec.modality, spec.kind) == ((128,) * 4, 40.0, "speech", "discrete")


def test_codes_are_the_nearest_entries_of_what_is_left(fitted):
    tokenizer = build(fitted)
    wave = tokenizer.load(FILES[0])
    (tokens,) = tokenizer.encode([wave])
    assert tokens.shape == (-(-len(wave.samples) // 400), 4)
    left_TM = LogMel(MelConfig()).frames(wave).double()
    books_KSM = load_file(fitted / "model.safetensors")["codebooks"].double()
    for k, codes_T in enumerate(torch.from_numpy(tokens.ids.reshape(tokens.shape).astype(np.int64)).T):
        distance_TS = torch.cdist(left_TM, books_KSM[k])
        chosen_T = distance_TS.gather(1, codes_T[:, None])[:, 0]
        assert (chosen_T - distance_TS.min(1).values).max() < 1e-4
        left_TM = left_TM - books_KSM[k][codes_T]


def test_a_sounds_codes_do_not_depend_on_its_neighbours_or_the_batch(fitted):
    tokenizer = build(fitted)
    waves = [tokenizer.load(file) for file in FILES[:10]]
    together = tokenizer.encode(waves)
    for wave, tokens in zip(waves, together, strict=True):
        assert np.array_equal(tokenizer.encode([wave])[0].ids, tokens.ids)


def test_held_out_speech_comes_back_near(fitted):
    tokenizer, mel = build(fitted), LogMel(MelConfig())
    waves = [tokenizer.load(file) for file in FILES[:10]]
    back = tokenizer.decode(tokenizer.encode(waves))
    errors = []
    for wave, sound in zip(waves, back, strict=True):
        assert 0 <= len(sound.samples) - len(wave.samples) < 400
        errors.append((mel.frames(wave) - mel.frames(sound)).square().mean())
        silence = Waveform(np.zeros_like(wave.samples), wave.rate)
        assert errors[-1] < (mel.frames(wave) - mel.frames(silence)).square().mean() / 4
    assert 8.686 * float(torch.stack(errors).mean().sqrt()) < 7.0  # decibels; 5.9 when this was written
    assert load_speech(tokenizer.dump(back[0])).rate == 16_000


def test_frames_without_codes_come_back_nearly_as_they_were():
    mel = LogMel(MelConfig())
    wave = load_speech(FILES[3])
    frames_TM = mel.frames(wave)
    again_TM = mel.frames(mel.sound(frames_TM))
    assert again_TM.shape == frames_TM.shape
    assert 8.686 * float((again_TM - frames_TM).square().mean().sqrt()) < 4.0


@pytest.mark.parametrize("count", [1, 399, 400, 401, 5000])
def test_every_length_has_its_frames(count):
    mel = LogMel(MelConfig())
    generator = np.random.default_rng(0)
    frames_TM = mel.frames(Waveform(generator.normal(0, 0.1, count).astype(np.float32), 16_000))
    assert frames_TM.shape == (-(-count // 400), 80) and frames_TM.isfinite().all()
    assert len(mel.sound(frames_TM).samples) == frames_TM.shape[0] * 400


def test_silence_and_other_rates_are_sound(fitted):
    tokenizer = build(fitted)
    silence = tokenizer.load(dump_wav(Waveform(np.zeros(44_100, np.float32), 44_100)))
    (tokens,) = tokenizer.encode([silence])
    assert tokens.shape == (40, 4)
    assert np.abs(tokenizer.decode([tokens])[0].samples).max() < 0.05


def test_any_codes_decode_also_none(fitted):
    tokenizer = build(fitted)
    random = Tokens((25, 4), np.random.default_rng(0).integers(0, 128, 100).astype(np.int32))
    none = Tokens((0, 4), np.zeros(0, np.int32))
    sounds = tokenizer.decode([random, none])
    assert len(sounds[0].samples) == 10_000 and np.isfinite(sounds[0].samples).all()
    assert len(sounds[1].samples) == 0


def test_the_first_codebooks_decode_alone(fitted):
    """What is left to later ones is missing, and the rest is the same: they are residual."""
    tokenizer = build(fitted)
    (tokens,) = tokenizer.encode([tokenizer.load(FILES[0])])
    ids_TK = tokens.ids.reshape(tokens.shape)
    far = [
        float((tokenizer.frames_of(Tokens((len(part), k), ids=part.reshape(-1))) - tokenizer.frames_of(tokens)).norm())
        for k in (1, 2, 4)
        for part in (ids_TK[:, :k],)
    ]
    assert far[0] > far[1] > far[2] == 0
    (sound,) = tokenizer.decode([Tokens((len(ids_TK), 1), ids=ids_TK[:, 0])])
    (whole,) = tokenizer.decode([tokens])
    assert sound.samples.shape == whole.samples.shape


def test_a_fit_is_repeatable_to_the_byte_wherever_and_on_however_many_threads(fitted, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        MelRVQ.fit(FILES[10:], tmp_path / "again", {"size": 128})
    finally:
        torch.set_num_threads(before)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (fitted / name).read_bytes()
    assert build(tmp_path / "again", threads=2).spec == build(fitted).spec
    MelRVQ.fit(FILES[10:20], tmp_path / "seed", {"size": 16, "codebooks": 1, "seed": 1})
    MelRVQ.fit(FILES[10:20], tmp_path / "zero", {"size": 16, "codebooks": 1, "seed": 0})
    assert build(tmp_path / "seed").spec.hash != build(tmp_path / "zero").spec.hash
    assert build(fitted, max_seconds=10).spec.hash != build(fitted).spec.hash  # it changes what is refused


def test_options_of_fit_shape_the_codes(tmp_path):
    options = {"hop": 256, "window": 512, "mels": 40, "codebooks": 2, "size": 32, "sample_rate": 8000}
    MelRVQ.fit(FILES[:5], tmp_path, options)
    tokenizer = build(tmp_path)
    assert tokenizer.spec.rate == 8000 / 256 and tokenizer.spec.codebooks == (32, 32)
    assert tokenizer.decode(tokenizer.encode([tokenizer.load(FILES[0])]))[0].rate == 8000


def test_fewer_frames_than_entries_can_be_fitted(tmp_path):
    MelRVQ.fit([dump_wav(Waveform(np.ones(800, np.float32) / 2, 16_000))], tmp_path, {"size": 16})
    tokenizer = build(tmp_path)
    assert len(tokenizer.encode([tokenizer.load(FILES[0])])[0]) == 43 * 4


def test_too_long_a_sound_is_a_bad_sample(fitted):
    with pytest.raises(BadSample, match="audio-too-long"):
        build(fitted, max_seconds=1.0).load(FILES[0])


def test_folders_that_hold_something_else_are_errors_that_say_so(fitted, tmp_path):
    def message(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            build(path)
        return str(caught.value)

    assert "fit one with 'motet tokenizer fit melrvq'" in message(tmp_path / "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(fitted, copy)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors is damaged" in message(copy)
    (copy / "model.safetensors").unlink()
    assert "model.safetensors does not exist" in message(copy)
    save_file({"codebooks": torch.zeros(2, 4, 40)}, copy / "model.safetensors")
    assert "does not fit its config.json" in message(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"hopp": 3}))
    assert "hopp: unknown key; did you mean 'hop'" in message(copy)
    (copy / "config.json").write_text(json.dumps(config | {"kind": "units"}))
    assert "holds a tokenizer of kind 'units', not 'melrvq'" in message(copy)
    (copy / "config.json").write_text("[")
    assert "cannot be read" in message(copy)


def test_wrong_options_and_no_sound_are_errors(tmp_path):
    with pytest.raises(UserError, match="fit melrvq: codebook: unknown key; did you mean 'codebooks'"):
        MelRVQ.fit(FILES, tmp_path, {"codebook": 4})
    with pytest.raises(UserError, match="none of them is a sound file"):
        MelRVQ.fit([b"text"], tmp_path, {})


def test_kmeans_ends_at_means_of_their_own_points_with_no_cluster_empty():
    mel = LogMel(MelConfig())
    points_ND = torch.cat([mel.frames(load_speech(file)) for file in FILES[:4]])
    points_ND = torch.cat([points_ND, points_ND[:1].repeat(500, 1)])  # a random start puts many centroids on one point
    found_KD = kmeans(points_ND, 64, seed=3, rounds=200)
    ids_N, distance_N = assign(points_ND, found_KD)
    assert torch.bincount(ids_N, minlength=64).min() > 0
    means_KD = torch.stack([points_ND[ids_N == k].mean(0) for k in range(64)])
    assert torch.allclose(means_KD, found_KD, atol=1e-3)
    exact_N = torch.cdist(points_ND.double(), found_KD.double()).min(1).values.square()
    assert torch.allclose(distance_N.double(), exact_N, rtol=1e-3, atol=0.02)
    assert torch.equal(kmeans(points_ND, 64, seed=3, rounds=200), found_KD)


def test_perplexity_counts_the_codes_in_use():
    assert perplexity(torch.arange(20).repeat(5), 32) == pytest.approx(20)
    assert perplexity(torch.zeros(9, dtype=torch.int64), 32) == pytest.approx(1)


def plain_frames(samples: np.ndarray, rate: int, hop: int, window: int, mels: int) -> np.ndarray:
    """Log-mel frames as mel.py's docstring says them, sample by sample in numpy: centres at (t + 1/2) * hop, HTK's scale."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), mels + 2) / 2595) - 1)
    hertz_F1 = np.linspace(0, rate / 2, window // 2 + 1)[:, None]
    rising = (hertz_F1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz_F1) / (edges[2:] - edges[1:-1])
    bands_FM = np.maximum(0, np.minimum(rising, falling))
    hann = np.sin(np.pi * np.arange(window) / window) ** 2
    frames = []
    for t in range(-(-len(samples) // hop)):
        at = np.arange(window) + t * hop + hop // 2 - window // 2
        there = np.where((at >= 0) & (at < len(samples)), samples[np.clip(at, 0, len(samples) - 1)], 0.0)
        frames.append(np.log(np.maximum(np.abs(np.fft.rfft(there * hann)) @ bands_FM, 1e-5)))
    return np.stack(frames)


@pytest.mark.parametrize("options", [{}, {"sample_rate": 8000, "hop": 256, "window": 512, "mels": 40}])
def test_frames_are_those_of_a_plain_transform(options):
    config = MelConfig(**options)
    for file in FILES[:3]:
        wave = resample(load_speech(file), config.sample_rate)
        got_TM = LogMel(config).frames(load_speech(file)).numpy()
        want_TM = plain_frames(
            wave.samples.astype(np.float64), config.sample_rate, config.hop, config.window, config.mels
        )
        np.testing.assert_allclose(got_TM, want_TM, atol=1e-3)


def test_codebooks_of_another_shape_are_another_tokenizer(fitted, tmp_path):
    """The same numbers as 2 x 256 entries instead of 4 x 128, or as other types: codes differ, so the hash does."""
    shutil.copytree(fitted, tmp_path / "copy")
    books_KSM = load_file(fitted / "model.safetensors")["codebooks"]
    save_file({"codebooks": books_KSM.reshape(2, 256, -1)}, tmp_path / "copy/model.safetensors")
    assert build(tmp_path / "copy").spec.codebooks == (256, 256)
    assert build(tmp_path / "copy").spec.hash != build(fitted).spec.hash
