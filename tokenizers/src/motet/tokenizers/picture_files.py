"""Opening a picture file of which only the pixels and which way is up are wanted: its other metadata cannot refuse it.

    bytes --`opened`, one of FORMATS--> a picture, undecoded --Pillow's load--> pixels --`upright`-->

Pillow reads more than that: it gives up a file for a broken EXIF directory, for a megabyte of XMP or a colour profile, and
for more pixels than a limit of its own (`Unlimited`). What it gives up can be opened again `bare`.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from threading import Lock
from typing import IO

from PIL import ExifTags, Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from motet.tokenizers.contract import BadSample

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
ORIENTATION = int(ExifTags.Base.Orientation)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TELLING = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Where Pillow keeps what may tell the orientation."""
JPEG = b"\xff\xd8"
PNG = b"\x89PNG\r\n\x1a\n"
PNG_METADATA = (b"iCCP", b"iTXt", b"zTXt", b"tEXt", b"eXIf", b"pHYs", b"sRGB", b"gAMA", b"cHRM", b"tIME")
"""Chunks that say nothing of the pixels that are looked at; animation, palette and transparency stay."""
JPEG_METADATA = (*range(0xE0, 0xEE), 0xEF, 0xFE)
"""Segments that say nothing of the pixels: APP0 to APP15 without Adobe's APP14, which tells the colours, and comments."""


class Unlimited:
    """Pillow's limit on pixels is off inside, for who has one of its own; it is there again when the last thread leaves."""

    _lock, _inside, _limit = Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with Unlimited._lock:
            if not Unlimited._inside:
                Unlimited._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            Unlimited._inside += 1

    def __exit__(self, *_: object) -> None:
        with Unlimited._lock:
            Unlimited._inside -= 1
            if not Unlimited._inside:
                Image.MAX_IMAGE_PIXELS = Unlimited._limit


def opened(data: bytes) -> ImageFile.ImageFile:
    """A picture of which no pixel is decoded yet, of any size.

    Raises:
        BadSample: `not-an-image`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # a parser of hostile bytes: whatever it raises is the file's fault
        raise BadSample("not-an-image", f"starts with {data[:12]!r}") from None
    if isinstance(image, TiffImageFile):  # turns itself, and reads all directories for that, when it is loaded
        exif = _exif(orientation(image))
        image.getexif = lambda: exif  # type: ignore[method-assign]
    return image


def orientation(image: Image.Image) -> int:
    """Which of EXIF's ways a picture is turned, 1 to 8, XMP looked into too; of a PNG, only when it is loaded.

    Of an EXIF that Pillow cannot read, what stands in the first directory.
    """
    try:
        if isinstance(image, TiffImageFile):
            found = image.tag_v2.get(ORIENTATION, 1)
        else:
            found = image.getexif().get(ORIENTATION, 1) if TELLING & image.info.keys() else 1
        return found if found in TURNS else 1
    except Exception:
        exif = image.info.get("exif", b"")
        return _plain_orientation(exif) if isinstance(exif, bytes) else 1


def upright(image: Image.Image) -> Image.Image:
    """A loaded picture, turned as its orientation says."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def bare(data: bytes) -> bytes:
    """A PNG or JPEG without what says nothing of its pixels but its orientation; other formats, and if there is none, as it is."""
    if data.startswith(PNG):
        chunks = list(_chunks(data))
        metadata = [place for place in chunks if place[0] in PNG_METADATA]
        block = next((data[begin + 8 : end - 4] for kind, begin, end in metadata if kind == b"eXIf"), b"")
        kept = [data[begin:end] for kind, begin, end in chunks if kind not in PNG_METADATA]
        exif = _exif(_plain_orientation(block)).tobytes()[6:]  # without "Exif"
        chunk = b"eXIf" + exif
        kept.insert(1, struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        return PNG + b"".join(kept) if metadata else data
    if data.startswith(JPEG):
        segments = list(_segments(data))
        blocks = (data[begin + 4 : end] for marker, begin, end in segments if marker == 0xE1)
        block = next((block for block in blocks if block.startswith(b"Exif\0\0")), b"")
        kept = [data[begin:end] for marker, begin, end in segments if marker not in JPEG_METADATA]
        exif = _exif(_plain_orientation(block)).tobytes()
        head = JPEG + struct.pack(">HH", 0xFFE1, len(exif) + 2) + exif
        return head + b"".join(kept) + data[segments[-1][2] :] if len(kept) < len(segments) else data
    return data


def _exif(turned: int) -> Image.Exif:
    exif = Image.Exif()
    if turned in TURNS:
        exif[ORIENTATION] = turned
    return exif


def _plain_orientation(exif: bytes) -> int:
    """The orientation of an EXIF block, if its first directory can be followed so far."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        at = struct.unpack_from(f"{order}I", exif, 4)[0]
        for entry in range(struct.unpack_from(f"{order}H", exif, at)[0]):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", exif, at + 2 + 12 * entry)
            if (tag, kind, count) == (ORIENTATION, 3, 1):
                return int(value)
    except struct.error:
        pass
    return 1


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin, end) of every chunk of a PNG."""
    at = len(PNG)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, end
        at = end


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of every segment of a JPEG before its first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], at, end
        at = end


class _Once:
    """A file of which no more than its own size is read, in all."""

    def __init__(self, file: IO[bytes]):
        at = file.tell()
        self._file, self._left = file, file.seek(0, os.SEEK_END)
        file.seek(at)
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise OSError("its directory's values lie one over another")
        return self._file.read(size)


def _load_once(directory: ImageFileDirectory_v2, file: IO[bytes]) -> None:
    """Pillow copies every value of a directory (TIFF's, or EXIF's in any format), even if thousands of them are the same
    megabyte of the file: one of 2 MB can ask for 60 GB of memory. Real values do not overlap.
    """
    _load_directory(directory, _Once(file))  # type: ignore[arg-type]


_load_directory = ImageFileDirectory_v2.load
ImageFileDirectory_v2.load = _load_once  # type: ignore[assignment,method-assign]
