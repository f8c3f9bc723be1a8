"""All of a sound is read, or it is refused: files of unknown length, joined files, and formats that peers read too."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from motet.tokenizers import media, mpeg, sound_files
from motet.tokenizers.contract import BadSample

RATE = 16_000
TONE = (0.5 * np.sin(np.arange(RATE) * 0.1)).astype(np.float32)


def sound_as(form: str, samples: np.ndarray = TONE, rate: int = RATE, **options) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=form, **options)
    return out.getvalue()


def reason(data: bytes, *rest) -> str:
    with pytest.raises(BadSample) as caught:
        media.load_speech(data, *rest)
    assert "0x" not in caught.value.detail
    return caught.value.reason


def seconds(data: bytes) -> float:
    wave = media.load_speech(data)
    return len(wave.samples) / wave.rate


def put(data: bytes, form: str, *places: tuple[int, int]) -> bytes:
    """The file with these numbers at these places."""
    changed = bytearray(data)
    for at, value in places:
        struct.pack_into(form, changed, at, value)
    return bytes(changed)


def untagged(data: bytes) -> bytes:
    """An MP3 file without the frame that says how many there are, as streams and older writers have it."""
    size = mpeg.frame_size(data, 0)
    assert size is not None and (b"Xing" in data[:60] or b"Info" in data[:60])
    return data[size:]


# Lengths that a writer to a pipe could not know

SIZES = [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFDB]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_wav_and_rifx_with_a_placeholder_are_read_to_their_end(size, endian):
    whole = sound_as("WAV", endian=endian)
    at = whole.find(b"data")
    piped = put(whole, "<I" if endian == "LITTLE" else ">I", (at + 4, size), (4, size or 36))
    np.testing.assert_array_equal(media.load_speech(piped).samples, media.load_speech(whole).samples)


@pytest.mark.parametrize("size", [0, -1, (1 << 63) - 1])
@pytest.mark.parametrize("form", ["RF64", "BW64", "W64", "CAF"])
def test_the_64_bit_formats_with_a_placeholder_are_read_to_their_end(size, form):
    whole = sound_as({"BW64": "RF64"}.get(form, form))
    if form == "W64":
        piped = put(whole, "<q", (whole.find(sound_files.W64_DATA) + 16, size), (16, size))
    elif form == "CAF":
        piped = put(whole, ">q", (whole.find(b"data") + 4, size))
    else:
        piped = form.encode() + put(whole, "<q", (whole.find(b"ds64") + 16, size))[4:]
    if form == "CAF" and size > 0:
        assert seconds(piped) == 1
    np.testing.assert_array_equal(media.load_speech(piped).samples, media.load_speech(whole).samples)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_au_with_a_placeholder_is_read_to_its_end(size, endian):
    whole = sound_as("AU", endian=endian)
    assert seconds(put(whole, "<I" if endian == "LITTLE" else ">I", (8, size))) == 1


def test_chunks_before_the_samples_may_be_as_long_as_they_like_and_hold_any_word():
    whole = sound_as("WAV")
    comment = struct.pack("<4sI", b"LIST", 9020) + b"INFOICMT" + struct.pack("<I", 9008) + b"data\0\0\0\0" + bytes(9000)
    commented = whole[:36] + comment + whole[36:]
    assert seconds(commented) == 1
    assert seconds(put(commented, "<I", (36 + len(comment) + 4, 0xFFFFFFFF))) == 1
    for share in (0.3, 0.6, 0.99):
        assert reason(commented[: int(len(commented) * share)]) == "truncated-audio"


def test_a_wav_that_says_it_is_empty_is_so_if_only_chunks_follow():
    head = put(sound_as("WAV")[:44], "<I", (40, 0))
    assert reason(head) == "empty-audio"
    assert reason(head + struct.pack("<4sI", b"LIST", 4) + b"INFO") == "empty-audio"
    assert seconds(head + bytes(2 * RATE)) == 1  # a second of silence is no chunk


# Formats


@pytest.mark.parametrize("form", ["RF64", "W64", "CAF", "AU", "NIST", "AIFF", "WAVEX"])
@pytest.mark.parametrize("options", [{}, {"subtype": "PCM_24"}])
def test_what_libsndfile_reads_is_sound_and_cut_short_it_is_refused(form, options):
    whole = sound_as(form, **options)
    assert seconds(whole) == 1
    for end in (40, len(whole) // 4, len(whole) // 2, len(whole) - 100):
        assert reason(whole[:end]) in ("truncated-audio", "not-audio"), end


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_of_every_rate(rate, channels):
    samples = np.stack([TONE] * channels, axis=1)
    data = sound_as("MP3", samples, rate)
    for tagged in (data, b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + data + b"TAG" + bytes(125)):
        wave = media.load_speech(tagged)
        assert wave.rate == rate and len(wave.samples) == RATE
    assert reason(data[: len(data) // 2]) == "truncated-audio"


def test_utf16_and_other_riffs_are_no_sound():
    """UTF-16's mark looks like a frame of MPEG's layer I, and WebP and AVI are RIFF too."""
    for data in ("hello".encode("utf-16") * 500, b"RIFF\x10\0\0\0AVI LIST", b"RIFF\x10\0\0\0WEBPVP8 "):
        assert reason(data) == "not-audio"


# Joined files


@pytest.mark.parametrize("kind", [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_files_that_were_joined_are_read_to_the_last(kind):
    form, subtype = kind
    first, second = (sound_as(form, samples, subtype=subtype) for samples in (TONE, TONE[: RATE // 2]))
    assert seconds(first + second + first) == 2.5
    for data in (first[:-300] + second, first + second[:-300], first + first[: len(first) // 2]):
        assert reason(data) == "truncated-audio"
    assert reason(5 * first, 4.5) == "audio-too-long"
    wave = media.load_speech(first + second)
    np.testing.assert_array_equal(wave.samples[:RATE], media.load_speech(first).samples)
    np.testing.assert_array_equal(wave.samples[RATE:], media.load_speech(second).samples)


def test_joined_files_of_other_rates_and_channels_go_on_at_the_rate_of_the_first():
    stereo = np.stack([TONE[:8000], -TONE[:8000]], axis=1)
    for form in ("MP3", "OGG"):
        wave = media.load_speech(sound_as(form) + sound_as(form, stereo, 8_000) + sound_as(form, TONE, 48_000))
        assert wave.rate == RATE and abs(len(wave.samples) - RATE * (1 + 1 + 1 / 3)) < 4


def test_tags_between_joined_files_are_passed_over():
    id3, old = b"ID3\x03\0\0\0\0\0\x0a" + bytes(10), b"TAG" + bytes(125)
    for form in ("MP3", "OGG"):
        data = sound_as(form)
        assert seconds(data + old + data + (id3 if form == "MP3" else b"") + data) == 3
    assert seconds(id3 + sound_as("MP3") + old + id3 + sound_as("MP3") + b"APETAGEX" + bytes(300)) == 2
    assert seconds(sound_as("MP3") + np.random.default_rng(0).bytes(1 << 18)) == 1


def test_an_ogg_file_that_lacks_a_page_is_refused():
    data = sound_as("OGG", np.tile(TONE, 5))
    pages = list(sound_files._ogg_pages(data))
    begin, end, _ = pages[-3]
    assert reason(data[: begin + 100] + data[end:]) == "truncated-audio"


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
def test_mp3_without_a_count_of_its_frames_is_read_whole(mode):
    """The library guesses its length from the first frame's bitrate, and stops there: a third of this one."""
    loud = TONE + np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    samples = np.concatenate([np.zeros(RATE, np.float32), loud, 0.01 * loud, loud])
    data = untagged(sound_as("MP3", samples, bitrate_mode=mode))
    assert 4 <= seconds(data) < 4.2 and 8 <= seconds(data + data) < 8.3
    assert 5 <= seconds(sound_as("MP3") + data) < 5.2 and 5 <= seconds(data + sound_as("MP3")) < 5.2
    assert reason(data[:-20]) == "truncated-audio"  # nothing but the half frame tells
    wave, whole = (
        media.load_speech(data).samples,
        media.load_speech(sound_as("MP3", samples, bitrate_mode=mode)).samples,
    )
    best = max(
        float(np.corrcoef(wave[lag : lag + 3 * RATE], whole[RATE // 4 : RATE // 4 + 3 * RATE])[0, 1])
        for lag in range(RATE // 4, RATE // 4 + 1200)
    )
    assert best > 0.99


def test_numbers_that_any_bytes_may_hold_end_no_walk():
    """Broken, joined and repeated: whatever the bytes, an answer comes soon, and it is sound or a reason."""
    random = np.random.default_rng(1)
    files = [
        sound_as(f, TONE[:4000]) for f in ("WAV", "RF64", "W64", "CAF", "AU", "NIST", "AIFF", "OGG", "MP3", "FLAC")
    ]
    for _ in range(400):
        data = bytearray(files[random.integers(len(files))] + files[random.integers(len(files))])
        for _ in range(random.integers(1, 6)):
            at = random.integers(min(len(data) - 8, 200))
            data[at : at + 4] = random.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", random.bytes(4)])
        try:
            assert np.isfinite(media.load_speech(bytes(data)).samples).all()
        except BadSample as bad:
            assert " at 0x" not in bad.detail


# The limit


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000, 192_000])
def test_seconds_are_seconds_at_every_rate(rate):
    for form in ("FLAC", "WAV"):
        assert len(media.load_speech(sound_as(form, np.zeros(2 * rate), rate), 2.0).samples) == 2 * rate
        assert reason(sound_as(form, np.zeros(2 * rate + 1), rate), 2.0) == "audio-too-long"
