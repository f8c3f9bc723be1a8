"""Units: nearest clusters of normalized cepstra with repeats removed; loudness and colour of the voice matter little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from motet.core.errors import UserError
from motet.tokenizers.contract import Tokens, Waveform
from motet.tokenizers.media import load_speech
from motet.tokenizers.speech.mel import LogMel
from motet.tokenizers.speech.units import Features, Units, UnitsConfig

PROMPTS = Path(__file__).resolve().parents[2] / "examples/corpus/speech/prompts"
FILES = [file.read_bytes() for file in sorted(PROMPTS.glob("*.ogg"))[:60]]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("units")
    measured = Units.fit([*FILES, b"no sound"], out, {"size": 100})
    assert measured["skipped"] == 1 and 10 < measured["units_per_second"] < 25 and measured["perplexity"] > 70
    return out


@pytest.fixture(scope="module")
def units(fitted) -> Units:
    return Units(Units.Settings(path=fitted))


def test_no_unit_follows_itself_and_expanded_they_are_the_nearest_clusters(units, fitted):
    wave = units.load(FILES[5])
    (tokens,) = units.encode([wave])
    assert tokens.shape == (len(tokens.ids), 1) and tokens.ids.dtype == np.int32
    assert (np.diff(tokens.ids) != 0).all()
    config = UnitsConfig()
    features_TD = Features(config)(LogMel(config).frames(wave))
    nearest_T = torch.cdist(features_TD, load_file(fitted / "model.safetensors")["centroids"]).argmin(1)
    changes = torch.cat([torch.tensor([True]), nearest_T[1:] != nearest_T[:-1]])
    assert nearest_T[changes].tolist() == tokens.ids.tolist()
    assert len(tokens) < len(nearest_T)


def test_the_spec_has_one_codebook_and_no_rate(units):
    assert (units.spec.codebooks, units.spec.rate, units.spec.name) == ((100,), None, "units")


def test_units_do_not_change_with_loudness(units):
    wave = units.load(FILES[5])
    quiet = Waveform(wave.samples * np.float32(0.5), wave.rate)
    loud_tokens, quiet_tokens = units.encode([wave, quiet])
    assert len(np.intersect1d(loud_tokens.ids, quiet_tokens.ids)) > 0.7 * len(np.unique(loud_tokens.ids))


def test_durations_add_up_to_speech_of_about_the_length(units):
    waves = [units.load(file) for file in FILES[:15]]
    back = units.decode(units.encode(waves))
    original = sum(len(wave.samples) for wave in waves)
    assert sum(len(sound.samples) for sound in back) == pytest.approx(original, rel=0.15)
    assert all(np.isfinite(sound.samples).all() and sound.rate == 16_000 for sound in back)


def test_decoded_speech_has_its_frames_in_the_right_places(units):
    """The mean frames of units are nearer to the sound than the mean frame of all: the way back says something."""
    mel = LogMel(UnitsConfig())
    frames_TM = mel.frames(units.load(FILES[5]))
    nearest_T = torch.cdist(Features(UnitsConfig())(frames_TM), units._centroids_SD).argmin(1)
    error = (units._frames_SM[nearest_T] - frames_TM).square().mean()
    assert error < 0.7 * (frames_TM.mean(0) - frames_TM).square().mean()


@pytest.mark.parametrize("count", [1, 640, 641])
def test_the_shortest_sounds_have_units(units, count):
    (tokens,) = units.encode([Waveform(np.full(count, 0.1, np.float32), 16_000)])
    assert 1 <= len(tokens) <= 2


def test_any_units_decode_also_none(units):
    random = Tokens((50, 1), np.random.default_rng(0).integers(0, 100, 50).astype(np.int32))
    sounds = units.decode([random, Tokens((0, 1), np.zeros(0, np.int32))])
    assert len(sounds[0].samples) >= 50 * 640 and len(sounds[1].samples) == 0


def test_a_fit_is_repeatable(fitted, tmp_path):
    Units.fit(FILES, tmp_path, {"size": 100})
    assert (tmp_path / "model.safetensors").read_bytes() == (fitted / "model.safetensors").read_bytes()
    assert Units(Units.Settings(path=tmp_path, threads=2)).spec == Units(Units.Settings(path=fitted)).spec


def test_wrong_folders_and_options_are_errors(fitted, tmp_path):
    with pytest.raises(UserError, match="fit one with 'motet tokenizer fit units'"):
        Units(Units.Settings(path=tmp_path))
    with pytest.raises(UserError, match="fit units: units: unknown key"):
        Units.fit(FILES, tmp_path, {"units": 500})
    with pytest.raises(UserError, match="none of them is a sound file"):
        Units.fit([b""], tmp_path, {})


def test_features_are_normalized_cepstra_and_their_slopes_by_a_plain_computation():
    config = UnitsConfig()
    frames_TM = LogMel(config).frames(load_speech(FILES[5]))
    levels = frames_TM.double().numpy()
    mirrored = np.fft.fft(np.concatenate([levels, levels[:, ::-1]], axis=1), axis=1)[:, 1 : config.cepstra + 1]
    turn = np.exp(-1j * np.pi * np.arange(1, config.cepstra + 1) / (2 * config.mels))
    cepstra = (mirrored * turn).real / 2 * (2 / config.mels) ** 0.5  # the orthonormal cosine transform (DCT-II)
    padded = np.concatenate([cepstra[:1]] * 2 + [cepstra] + [cepstra[-1:]] * 2)
    slopes = np.stack([np.polyfit(np.arange(5), padded[t : t + 5], 1)[0] for t in range(len(cepstra))])
    both = np.concatenate([cepstra, slopes], axis=1)
    want = (both - both.mean(0)) / both.std(0)
    np.testing.assert_allclose(Features(config)(frames_TM).numpy(), want, atol=2e-4)


def test_a_units_mean_frame_and_duration_are_those_of_its_own_frames(fitted):
    """Counted sound by sound: where one sound ends and the next begins with the same unit, that is two runs."""
    config, arrays = UnitsConfig(), load_file(fitted / "model.safetensors")
    sums, count, runs = np.zeros((100, config.mels)), np.zeros(100), np.zeros(100)
    for file in FILES:
        frames_TM = LogMel(config).frames(load_speech(file))
        units = torch.cdist(Features(config)(frames_TM), arrays["centroids"]).argmin(1).tolist()
        for t, (unit, frame) in enumerate(zip(units, frames_TM.double().numpy(), strict=True)):
            sums[unit] += frame
            count[unit] += 1
            runs[unit] += t == 0 or units[t - 1] != unit
    np.testing.assert_allclose(arrays["durations"].numpy(), count / runs, rtol=1e-5)
    np.testing.assert_allclose(arrays["frames"].numpy(), sums / count[:, None], atol=1e-3)
