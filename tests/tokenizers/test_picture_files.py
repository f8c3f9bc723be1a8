"""A sound picture is taken whatever its metadata are, at any depth and size; what cannot be told to be a picture is refused."""

from __future__ import annotations

import io
import itertools
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import motet
from motet.tokenizers import media
from motet.tokenizers.contract import BadSample
from motet.tokenizers.image.vqgan import VQGAN

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo" / "weights" / "vqgan"
RAMP = np.tile(np.linspace(0, 65535, 64), (64, 1)).astype(np.uint16)
NOISE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def refused(data: bytes, *rest) -> BadSample:
    with pytest.raises(BadSample) as caught:
        media.load_image(data, *rest)
    assert " at 0x" not in caught.value.detail
    return caught.value


def saved(form: str, pixels: np.ndarray = NOISE, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def tiff(values: np.ndarray, bits: int, kind: int, white: int = 1, order: str = "<", **tags: int) -> bytes:
    """A TIFF of 64 x 64 grey values; `kind`: 1 unsigned, 2 signed, 3 floats; `white` 0: it is the least number."""
    data = values.tobytes()
    entries = [
        (256, 64),
        (257, 64),
        (258, bits),
        (259, 1),
        (262, white),
        (273, 8),
        (277, 1),
        (278, 64),
        (279, len(data)),
    ]
    entries += [(339, kind), *((int(tag[1:]), value) for tag, value in tags.items())]
    directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(entries))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


# More than 8 bits


def packed_12(values: np.ndarray) -> np.ndarray:
    first, second = values[:, 0::2], values[:, 1::2]
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)


RAMPS = {
    "PNG, 16 bits": saved("PNG", RAMP),
    "PGM, 16 bits": b"P5 64 64 65535\n" + RAMP.astype(">u2").tobytes(),
    "PGM, 12 bits": b"P5 64 64 4095\n" + (RAMP >> 4).astype(">u2").tobytes(),
    "PPM, 16 bits": b"P6 64 64 65535\n" + np.repeat(RAMP[:, :, None], 3, 2).astype(">u2").tobytes(),
    "JPEG 2000, 16 bits": saved("JPEG2000", RAMP),
    "TIFF, 12 bits": tiff(packed_12(RAMP >> 4), 12, 1),
    "TIFF, 16 bits": tiff(RAMP.astype("<u2"), 16, 1),
    "TIFF, 16 bits, big-endian": tiff(RAMP.astype(">u2"), 16, 1, order=">"),
    "TIFF, 16 bits, white is 0": tiff((65535 - RAMP).astype("<u2"), 16, 1, white=0),
    "TIFF, 16 bits with a sign": tiff((RAMP >> 1).astype("<i2"), 16, 2),
    "TIFF, 8 bits in 32": tiff((RAMP >> 8).astype("<i4"), 32, 2),
    "TIFF, 16 bits in 32": tiff(RAMP.astype("<i4"), 32, 2),
    "TIFF, 32 bits": tiff(RAMP.astype("<u4") << 16, 32, 1),
    "TIFF, 31 bits and a sign": tiff(RAMP.astype("<i4") << 15, 32, 2),
    "TIFF, floats": tiff((RAMP / 65535).astype("<f4"), 32, 3),
    "TIFF, floats, white is 0": tiff((1 - RAMP / 65535).astype("<f4"), 32, 3, white=0),
    "PFM": b"Pf\n64 64\n-1.0\n" + (RAMP / 65535).astype("<f4").tobytes(),
    "PFM, big-endian": b"Pf\n64 64\n1.0\n" + (RAMP / 65535).astype(">f4").tobytes(),
}


@pytest.mark.parametrize("name", RAMPS)
def test_a_deep_ramp_is_a_ramp_from_black_to_white(name):
    pixels = np.asarray(media.load_image(RAMPS[name]))
    assert pixels.shape == (64, 64, 3) and (pixels == pixels[:1, :, :1]).all()
    steps = np.diff(pixels[0, :, 0].astype(int))
    assert pixels[0, 0, 0] == 0 and pixels[0, -1, 0] == 255 and steps.min() >= 3 and steps.max() <= 5


@pytest.mark.parametrize(
    "data",
    [
        tiff((RAMP >> 6).astype("<i4"), 32, 2),  # up to 1023 of 65535: would be black
        tiff(np.full((64, 64), 100_000, "<i4"), 32, 2),
        tiff(RAMP.astype("<i4") - 32768, 32, 2),
        tiff((RAMP.astype(int) - 32768).astype("<i2"), 16, 2),
        tiff((RAMP / 257).astype("<f4"), 32, 3),
        tiff((RAMP / 65535 * 7.5 - 1).astype("<f4"), 32, 3),
        tiff(np.full((64, 64), np.nan, "<f4"), 32, 3),
        tiff(np.full((64, 64), np.inf, "<f4"), 32, 3),
        b"Pf\n64 64\n-1.0\n" + (RAMP / 1000).astype("<f4").tobytes(),
    ],
)
def test_numbers_without_a_white_are_refused_with_the_cure(data):
    """Elevations, distances and measurements: they came out white or black."""
    bad = refused(data)
    assert bad.reason == "unknown-white" and "; convert them to " in bad.detail


def test_of_16_bits_the_transparent_grey_is_white():
    data = saved("PNG", RAMP)
    body = b"tRNS" + struct.pack(">H", int(RAMP[0, 10]))
    clear = data[:33] + struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    plain, pixels = (np.asarray(media.load_image(each)) for each in (data, clear))
    assert (pixels[:, 10] == 255).all() and np.array_equal(np.delete(pixels, 10, 1), np.delete(plain, 10, 1))


# Metadata


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def in_png(exif: bytes) -> bytes:
    data = saved("PNG")
    return data[:33] + chunk(b"eXIf", exif) + data[33:]


def in_jpeg(exif: bytes) -> bytes:
    data = saved("JPEG", quality=95)
    block = b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def in_webp(exif: bytes) -> bytes:
    return saved("WEBP", lossless=True, exif=b"Exif\0\0" + exif)


def odd_exifs() -> list[bytes]:
    """Directories with an entry of every odd kind after (or before) one that turns the picture, or led to nowhere."""
    found = [b"II", b"II*", b"garbage" * 5, bytes(64), b"Exif\0\0II*\0\x08\0\0\0"]
    for order, magic in (("<", b"II*\0"), (">", b"MM\0*")):
        turned = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
        tags, kinds = (
            (0x010F, 0x011A, 0x0112, 0x8769, 0x8825, 0xA005, 0x02BC),
            (0, 2, 3, 5, 7, 10, 12, 13, 16, 99, 65535),
        )
        for tag, kind, count, value in itertools.product(tags, kinds, (0, 1, 100, 0xFFFFFFFF), (0, 8, 0xFFFFFFFF)):
            odd = struct.pack(f"{order}HHII", tag, kind, count, value)
            head = magic + struct.pack(f"{order}IH", 8, 2)
            found += [head + turned + odd + bytes(40), head + odd + turned + bytes(4)]
        for offset, entries in ((0, 1), (4, 1), (9, 1), (1000, 1), (0xFFFFFFFF, 1), (8, 0), (8, 50), (8, 65535)):
            found.append(magic + struct.pack(f"{order}IH", offset, entries) + turned + bytes(4))
    return found


@pytest.mark.parametrize("wrap", [in_png, in_jpeg, in_webp])
def test_a_broken_exif_costs_no_picture(wrap):
    plain = np.asarray(media.load_image(wrap(b"II*\0\x08\0\0\0\0\0")))
    assert plain.shape == NOISE.shape
    exifs = odd_exifs()
    turned = 0
    for exif in exifs:
        try:
            data = wrap(exif)
        except (OSError, ValueError):  # the writer refuses it
            continue
        pixels = np.asarray(media.load_image(data))
        assert any(np.array_equal(pixels, np.rot90(plain, turns)) for turns in (0, -1, 1)), exif
        turned += pixels.shape != plain.shape
    assert turned > len(exifs) // 4, "what can still be read of it holds"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_which_way_is_up_is_read_beside_what_pillow_refuses(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3_000_000)))
    for form, odd in (("PNG", text), ("JPEG", b"\xff\xe2\0\x0aMPF\0II*\0")):
        data = saved(form, exif=exif)
        at = 33 if form == "PNG" else 2
        want = np.asarray(media.load_image(data))
        assert np.array_equal(np.asarray(media.load_image(data[:at] + odd + data[at:])), want)
        assert (want.shape != NOISE.shape) == (orientation > 4)


BIG = bytes(3_000_000)
METADATA = {
    "profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(BIG)),
    "broken profile": chunk(b"iCCP", b"icc\0\0no zlib"),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(BIG)),
    "text": chunk(b"zTXt", b"words\0\0" + zlib.compress(BIG)),
    "much text": 70 * chunk(b"tEXt", b"words\0" + BIG[:1_000_000]),
    "wrong checksum": chunk(b"tEXt", b"words\0and words")[:-1] + b"?",
    "nothing": chunk(b"pHYs", b"")
    + chunk(b"gAMA", b"")
    + chunk(b"cHRM", b"1")
    + chunk(b"iTXt", b"")
    + chunk(b"sRGB", b""),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("at", [33, -12])
def test_metadata_of_any_size_cost_no_png(name, at):
    data = saved("PNG")
    odd = data[:at] + METADATA[name] + data[at:]
    assert np.array_equal(np.asarray(media.load_image(odd)), NOISE)
    assert at < 0 or refused(odd[:-400]).reason == "truncated-image"


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("options", [{"icc_profile": BIG}, {"xmp": BIG[:60_000]}])
def test_metadata_of_any_size_cost_no_other_picture(form, options):
    assert np.array_equal(
        np.asarray(media.load_image(saved(form, **options))), np.asarray(media.load_image(saved(form)))
    )


@pytest.mark.parametrize(
    "block", [b"ICC_PROFILE\0\x09\x01" + bytes(16), b"Photoshop 3.0\0", b"MPF\0II*\0", b"MPF\0", b""]
)
def test_odd_segments_cost_no_jpeg(block):
    data = saved("JPEG", quality=95)
    want = np.asarray(media.load_image(data))
    for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE):
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(block) + 2) + block
        assert np.array_equal(np.asarray(media.load_image(data[:2] + segment + data[2:])), want), marker


def test_a_tiff_whose_other_directories_are_broken_is_upright():
    for turned, shape in ((1, (64, 64, 3)), (6, (64, 64, 3))):
        for at in (0, 7, 1 << 31):
            pixels = np.asarray(media.load_image(tiff(RAMP.astype("<u2"), 16, 1, _274=turned, _34665=at, _34853=at)))
            assert pixels.shape == shape and (pixels[0, :, 0] == pixels[-1, :, 0]).all() == (turned == 1)


# Size


def flat_png(width: int, height: int) -> bytes:
    """A PNG of 1 bit a pixel, all black."""
    packer = zlib.compressobj(1)
    row = bytes(1 + -(-width // 8))
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_over_the_limit_is_refused_before_a_pixel_is_decoded(tmp_path):
    """200 million pixels in 30 kB, in every format that can hold them; an orientation at the end is no reason to decode."""
    png = flat_png(20_000, 10_000)
    whole = {"png": png, "turned": png[:-12] + chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0") + png[-12:]}
    for form, options in (
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
        ("JPEG", {"quality": 1}),
        ("JPEG2000", {}),
    ):
        side = (20_000, 5_000) if form == "JPEG2000" else (20_000, 10_000)
        Image.new("L", side).save(tmp_path / "large", form, **options)
        whole[form] = (tmp_path / "large").read_bytes()
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    program = """
import sys
from pathlib import Path
import motet
from motet.tokenizers import media
from motet.tokenizers.contract import BadSample
files = [Path(name).read_bytes() for name in sys.argv[1:]]
def peak():  # of this process alone, in kB; rusage's is that of the process it was forked from, if that was larger
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
media.load_image(b"P5 8 8 255\\n" + bytes(64))
before = peak()
for data in files:
    try:
        media.load_reduced(data, 128)
    except BadSample as bad:
        print(bad.reason)
print((peak() - before) // 1024)
"""
    command = [sys.executable, "-c", program, *(str(tmp_path / name) for name in whole)]
    path = os.pathsep.join(str(Path(each).resolve()) for each in motet.__path__)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(each).parent) for each in path.split(os.pathsep)),
    }
    *reasons, grown = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert reasons == ["image-too-large"] * len(whole) and int(grown) < 40, f"{grown} MiB"


def test_more_pixels_than_pillow_allows_are_loaded_where_the_limit_is_higher(monkeypatch):
    data = flat_png(20_000, 10_000)
    assert refused(data).reason == "image-too-large"
    assert refused(data, 200_000_000 - 1).detail == "20000 x 10000 is over 199999999 pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # somebody else's limit, in the same process
    assert media.load_image(saved("PNG")).size == (30, 20)
    for form in ("JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM"):
        assert media.load_image(saved(form)).size == (30, 20), form
    assert media.load_image(data, 200_000_000).size == (20_000, 10_000)
    assert Image.MAX_IMAGE_PIXELS == 100


# Other tools' exact codes


def test_all_pixels_are_decoded_if_it_is_asked_for():
    """As other tools do it, whose codes it then has; the two ways have two content hashes."""
    out = io.BytesIO()
    texture = np.random.default_rng(0).integers(0, 256, (427, 640, 3), dtype=np.uint8)
    Image.fromarray(texture).resize((1280, 854), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    whole, reduced = (VQGAN(VQGAN.Settings(path=str(DEMO), reduced=reduced)) for reduced in (False, True))
    plain = Image.open(out).convert("RGB")
    size = whole.size
    wide = round(1280 * size / 854)
    want = plain.resize((wide, size), Image.Resampling.LANCZOS).crop(
        ((wide - size) // 2, 0, (wide - size) // 2 + size, size)
    )
    assert np.array_equal(np.asarray(whole.load(out.getvalue())), np.asarray(want))
    assert not np.array_equal(np.asarray(reduced.load(out.getvalue())), np.asarray(want))
    assert whole.spec.hash != reduced.spec.hash == VQGAN(VQGAN.Settings(path=str(DEMO))).spec.hash
