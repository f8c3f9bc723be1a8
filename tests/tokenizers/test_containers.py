"""The sound of video containers: read whole or refused, and without the decoder a word that says what to install."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from motet.tokenizers import containers, media
from motet.tokenizers.contract import BadSample

TONE = (0.5 * np.sin(np.arange(32_000) * 0.1)).astype(np.float32)
KINDS = [
    ("ipod", "aac", 16_000),
    ("mp4", "aac", 48_000),
    ("webm", "libopus", 48_000),
    ("matroska", "libopus", 48_000),
    ("adts", "aac", 16_000),
]


def encoded(form: str, codec: str, rate: int, to: Path | None = None, **options: str) -> bytes:
    """Two seconds of 16,000 samples each in a container."""
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(to or out, "w", format=form, options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        context = stream.codec_context
        context.open()
        frame = av.AudioFrame.from_ndarray(TONE[None, :], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        fitting = av.AudioResampler(context.format, "mono", rate, context.frame_size)
        for part in (*fitting.resample(frame), *fitting.resample(None), None):
            for packet in stream.encode(part):
                file.mux(packet)
    return to.read_bytes() if to else out.getvalue()


def reason(data: bytes, *rest) -> str:
    with pytest.raises(BadSample) as caught:
        media.load_speech(data, *rest)
    return caught.value.reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_is_read_whole_or_refused(kind):
    data = encoded(*kind)
    wave = media.load_speech(data)
    assert wave.rate == kind[2] and 2 <= len(wave.samples) / wave.rate < 2.15
    spectrum = np.abs(np.fft.rfft(wave.samples[: 2 * wave.rate]))
    assert abs(spectrum.argmax() / 2 - 16_000 * 0.1 / (2 * np.pi)) < 1
    for share in (0.1, 0.5, 0.9):
        assert reason(data[: int(len(data) * share)]) in ("truncated-audio", "not-audio"), share
    assert reason(data, 1.0) == "audio-too-long"


def test_an_mp4_whose_index_comes_first_and_whose_end_is_missing_is_refused(tmp_path):
    data = encoded("mp4", "aac", 16_000, tmp_path / "fast.mp4", movflags="faststart")
    assert data.index(b"moov") < data.index(b"mdat") and len(media.load_speech(data).samples) >= 32_000
    assert reason(data[:-200]) == "truncated-audio"


@pytest.mark.parametrize(
    "data", [b"\0\0\0\x1cftypM4A " + bytes(100), b"\x1a\x45\xdf\xa3" + bytes(100), b"\xff\xf1\x60\x40\x3f\xdf\xfc" * 9]
)
def test_without_the_decoder_it_says_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadSample, match=r"no-decoder: \w+: needs PyAV: install motet-tokenizers\[media\]"):
        media.load_speech(data)
    assert containers.kind(b"RIFF") is None


def test_hostile_containers_are_refused():
    pytest.importorskip("av")
    random = np.random.default_rng(0)
    for head in (
        b"\0\0\0\x1cftypM4A ",
        b"\x1a\x45\xdf\xa3\x84" + bytes(4) + b"\x18\x53\x80\x67\x01" + b"\xff" * 7,
        b"\0\0\0\x08ftyp\0\0\0\0moov",
    ):
        for size in (0, 10, 5000):
            assert reason(head + random.bytes(size)) in (
                "truncated-audio",
                "not-audio",
                "empty-audio",
                "no-audio-stream",
            )
