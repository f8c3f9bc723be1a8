"""Hostile files are refused with their reason, before they cost anything; sound ones come out as they should."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from motet.tokenizers import media
from motet.tokenizers.contract import BadSample, Waveform
from motet.tokenizers.image import pictures

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpus"
PICTURE = (CORPUS / "images/emoji/263a.webp").read_bytes()
SPEECH = (CORPUS / "speech/prompts/activated.ogg").read_bytes()


def reason(load, data: bytes, *rest) -> str:
    with pytest.raises(BadSample) as caught:
        load(data, *rest)
    return caught.value.reason


def picture_as(form: str, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(PICTURE)).convert(mode).save(out, form, **options)
    return out.getvalue()


def sound_as(form: str, samples: np.ndarray | None = None, rate: int = 16_000, **options) -> bytes:
    out = io.BytesIO()
    if samples is None:
        samples = media.load_speech(SPEECH).samples
    soundfile.write(out, samples, rate, format=form, **options)
    return out.getvalue()


def png_that_promises(width: int, height: int) -> bytes:
    """A small PNG whose header promises a huge picture, and whose pixels (zeros) really follow, well compressed."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(4_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# Pictures


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_cut_short_is_refused_in_every_format(form):
    whole = picture_as(form)
    assert media.load_image(whole).size == (96, 96)
    for share in (0.02, 0.3, 0.5, 0.9):
        assert reason(media.load_image, whole[: int(len(whole) * share)]) in ("truncated-image", "not-an-image")
    assert reason(media.load_image, picture_as("PNG")[:-400]) == "truncated-image"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty-file"),
        (b"\x00" * 64, "not-an-image"),
        (b"hello, I am text", "not-an-image"),
        (SPEECH, "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage", "not-an-image"),
        (b"\x89PNG\r\n\x1a\n", "not-an-image"),
    ],
)
def test_what_is_no_picture_is_refused(data, expected):
    assert reason(media.load_image, data) == expected


@pytest.mark.parametrize("side", [9_000, 40_000, 2**31 - 1])
def test_a_bomb_is_refused_from_its_header_without_decoding(side):
    bomb = png_that_promises(side, side)
    assert len(bomb) < 10_000
    tracemalloc.start()
    assert reason(media.load_image, bomb) in ("image-too-large", "not-an-image")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert reason(media.load_image, png_that_promises(9_000, 9_000)) == "image-too-large"


def test_the_limit_is_the_one_given():
    assert reason(media.load_image, PICTURE, 96 * 96 - 1) == "image-too-large"
    assert media.load_image(PICTURE, 96 * 96).size == (96, 96)


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((1, 1), (10, 20, 30, 255))
    out = io.BytesIO()
    clear.save(out, "PNG")
    loaded = media.load_image(out.getvalue())
    assert loaded.mode == "RGB"
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 1)) == (10, 20, 30)


def test_deep_grey_palettes_and_turned_photographs_come_out_right():
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(out, "PNG")
    assert media.load_image(out.getvalue()).getpixel((0, 0)) == (128, 128, 128)
    assert media.load_image(picture_as("GIF", "P")).size == (96, 96)
    assert media.load_image(picture_as("JPEG", "CMYK")).mode == "RGB"
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20)).save(out, "JPEG", exif=exif)
    assert media.load_image(out.getvalue()).size == (20, 40)


def test_png_out_and_in_is_lossless():
    picture = media.load_image(PICTURE)
    assert np.array_equal(np.asarray(media.load_image(media.dump_png(picture))), np.asarray(picture))
    assert media.dump_png(np.asarray(picture)) == media.dump_png(picture)


def photograph(size: tuple[int, int], form: str = "JPEG", **options) -> bytes:
    """A picture with a gradient, edges and texture, as a JPEG of this size."""
    texture = np.random.default_rng(0).integers(0, 60, (*size[::-1], 3))
    picture = np.asarray(Image.open(io.BytesIO(PICTURE)).convert("RGB").resize(size, Image.Resampling.BICUBIC))
    out = io.BytesIO()
    Image.fromarray((picture * 0.7 + texture).astype(np.uint8)).save(out, form, quality=90, **options)
    return out.getvalue()


def full_and_reduced(data: bytes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The square of a file from all its pixels, and from those that a reduced decoding gives."""
    image, filled = media.load_reduced(data, pictures.SPARE * size)
    full = pictures.square(media.load_image(data), size)
    return np.asarray(full, float), np.asarray(pictures.square(image, size, filled), float)


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (1000, 873), (512, 512), (135, 129), (4001, 131)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_decoded_at_a_reduced_scale_is_the_same_picture(size, options):
    data = photograph(size, **options)
    image, filled = media.load_reduced(data, 128)
    assert 128 <= min(image.size) < min(size) or min(size) < 256
    assert all(0 <= whole - part < 1 for whole, part in zip(image.size, filled, strict=True))
    full, reduced = full_and_reduced(data, 64)
    assert 10 * np.log10(255**2 / max(np.mean((full - reduced) ** 2), 1e-9)) > 40
    assert np.abs(full.mean((0, 1)) - reduced.mean((0, 1))).max() < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(640, 424), (640, 427), (642, 422)])
def test_a_turned_photograph_is_upright_at_a_reduced_scale_too(size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photograph(size, exif=exif)
    full, reduced = full_and_reduced(data, 64)
    assert 10 * np.log10(255**2 / max(np.mean((full - reduced) ** 2), 1e-9)) > 40
    image, _ = media.load_reduced(data, 64)
    if size == (640, 424):  # both sides are multiples of 4
        assert sorted(image.size) == [106, 160]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF"])
def test_other_formats_are_decoded_whole_and_small_jpegs_too(form):
    for data in (photograph((300, 200), form), photograph((127, 255))):
        image, filled = media.load_reduced(data, 64)
        assert image.size == filled and np.array_equal(np.asarray(image), np.asarray(media.load_image(data)))


def test_a_jpeg_cut_short_is_refused_at_every_scale():
    for options in ({}, {"progressive": True}):
        whole = photograph((640, 427), **options)
        for side in (16, 64, 128, 400):
            assert min(media.load_reduced(whole, side)[0].size) >= side
            for cut in (*(int(len(whole) * share) for share in (0.01, 0.3, 0.5, 0.9)), len(whole) - 400):
                assert reason(media.load_reduced, whole[:cut], side) in ("truncated-image", "not-an-image")
    assert reason(media.load_reduced, whole, 64, 640 * 427 - 1) == "image-too-large"


def test_every_picture_of_the_bundled_corpus_loads_as_the_plain_steps_say():
    for file in sorted((CORPUS / "images/emoji").glob("*.webp")):
        plain = Image.open(file).convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", plain.size, "white"), plain).convert("RGB")
        image, filled = media.load_reduced(file.read_bytes(), 128)
        assert np.array_equal(np.asarray(image), np.asarray(plain)), file.name
        resized = plain.resize((64, 64), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(pictures.square(image, 64, filled)), np.asarray(resized)), file.name


def overlapping_directory(values: int, size: int) -> bytes:
    """A TIFF (and as such an EXIF) whose directory has `values` values that are all the same `size` bytes."""
    own = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 64)]
    entries = [*own, *((40_000 + i, 7, size, 8) for i in range(values))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + directory + bytes(4)


def as_png(exif: bytes) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "PNG", exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("wrap", [bytes, as_png])
def test_a_directory_whose_values_overlap_costs_no_memory(wrap):
    """2,000 times the same megabyte: Pillow alone takes 2 GB for it."""
    data = wrap(overlapping_directory(2000, 1 << 20))
    tracemalloc.start()
    with contextlib.suppress(BadSample):  # a TIFF lacks what comes after; of a PNG the picture is sound
        assert media.load_image(data).size == (8, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20, f"{peak / 1e6:.0f} MB for a file of {len(data) / 1e6:.1f} MB"


def test_a_jpeg_of_thousands_of_passes_is_refused_without_decoding_it():
    """430 kB that take libjpeg 77 s; nothing but the count of its passes tells."""
    out = io.BytesIO()
    Image.new("L", (7900, 7900), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    assert media.load_image(data).size == (7900, 7900)
    assert reason(media.load_image, data[:-2] + 2000 * last + data[-2:]) == "image-too-large"


# Sound


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "AIFF", "MP3"])
def test_sound_cut_short_is_refused_in_every_format(form):
    whole = sound_as(form)
    assert len(media.load_speech(whole).samples) == 17_024
    for share in (0.1, 0.3, 0.5, 0.9):
        cut = whole[: int(len(whole) * share)]
        assert reason(media.load_speech, cut) in ("truncated-audio", "not-audio"), share


def test_every_sound_of_the_bundled_corpus_is_taken():
    for file in sorted((CORPUS / "speech/prompts").glob("*.ogg"))[::10]:
        wave = media.load_speech(file.read_bytes())
        assert wave.rate == 16_000 and wave.samples.dtype == np.float32


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty-file"),
        (b"\x00" * 1000, "not-audio"),
        (PICTURE, "not-audio"),
        (b"RIFF\x00\x00\x00\x00WAVE", "truncated-audio"),
        (b"OggS" + bytes(100), "truncated-audio"),
        (sound_as("WAV", np.zeros(0)), "empty-audio"),
        (sound_as("WAV", np.array([0.1, np.nan, 0.2]), subtype="FLOAT"), "not-finite-audio"),
        (sound_as("WAV", np.array([0.1, np.inf, 0.2]), subtype="FLOAT"), "not-finite-audio"),
        (sound_as("WAV", rate=10), "not-audio"),
    ],
)
def test_what_is_no_sound_is_refused(data, expected):
    assert reason(media.load_speech, data) == expected


def test_absurd_length_is_refused_without_decoding_it():
    hour = sound_as("FLAC", np.zeros(16_000 * 3600, np.int16))  # an hour of silence in a small file
    assert len(hour) < 400_000
    tracemalloc.start()
    assert reason(media.load_speech, hour) == "audio-too-long"
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    promising = bytearray(sound_as("FLAC"))
    promising[21:26] = bytes([(promising[21] & 0xF0) | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # 2^36 samples, by its header
    assert reason(media.load_speech, bytes(promising)) == "audio-too-long"
    assert reason(media.load_speech, SPEECH, 0.5) == "audio-too-long"


def test_a_wav_written_to_a_pipe_is_taken_whole():
    whole = bytearray(sound_as("WAV"))
    place = whole.find(b"data")
    whole[place + 4 : place + 8] = b"\xff\xff\xff\xff"
    assert len(media.load_speech(bytes(whole)).samples) == 17_024


def test_a_flac_written_to_a_pipe_is_taken_whole():
    """Its header says 0 samples: its writer could not go back to fill in how many there were."""
    whole = sound_as("FLAC", np.random.default_rng(0).uniform(-0.5, 0.5, 600_000).astype(np.float32))
    piped = bytearray(whole)
    piped[21:26] = bytes([piped[21] & 0xF0, 0, 0, 0, 0])
    assert np.array_equal(media.load_speech(bytes(piped)).samples, media.load_speech(whole).samples)
    assert reason(media.load_speech, bytes(piped), 30) == "audio-too-long"
    assert reason(media.load_speech, bytes(piped[: len(piped) // 2])) == "not-audio"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_header_that_leads_out_of_the_file_is_refused_without_a_traceback():
    """What soundfile cannot raise through libsndfile, Python prints: for each such file of a corpus."""
    data = sound_as("AIFF").replace(b"SSND", b"\xff\xff\xff\x7f")
    assert reason(media.load_speech, data) in ("not-audio", "empty-audio")


def test_channels_are_averaged_and_what_is_too_loud_is_clipped():
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    assert np.allclose(media.load_speech(sound_as("WAV", stereo, subtype="FLOAT")).samples, 0.125)
    assert media.load_speech(sound_as("WAV", np.full(100, 7.0), subtype="FLOAT")).samples.max() == 1.0


def test_resampling_and_writing_keep_length_and_pitch():
    time = np.arange(44_100) / 44_100
    wave = Waveform(np.sin(2 * np.pi * 440 * time).astype(np.float32) / 2, 44_100)
    low = media.load_speech(media.dump_wav(media.resample(wave, 16_000)))
    assert low.rate == 16_000 and len(low.samples) == 16_000
    assert np.abs(np.fft.rfft(low.samples)).argmax() == 440
    assert media.resample(low, 16_000) is low


# Text


def test_text_is_utf8_or_refused():
    assert media.load_text("grüße \u200d \0 😀".encode()) == "grüße \u200d \0 😀"
    assert reason(media.load_text, b"") == "empty-file"
    for broken in (b"abc\xff", b"\xc3", "\ud800".encode("utf-8", "surrogatepass"), b"\xc0\x80", "ü".encode("latin-1")):
        assert reason(media.load_text, broken) == "invalid-utf8"


def test_sound_of_several_blocks_and_channels_is_taken_whole():
    """More than BLOCK frames, which are decoded in parts; every channel counts as much as the others."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * media.BLOCK + 1000, 3)).astype(np.float32)
    for form in ("WAV", "FLAC"):
        data = sound_as(form, samples)
        wave = media.load_speech(data)
        want, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        assert wave.samples.shape == (len(samples),)
        np.testing.assert_allclose(wave.samples, want.mean(axis=1), atol=1e-6)
