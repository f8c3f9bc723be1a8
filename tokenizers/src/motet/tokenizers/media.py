"""Raw files in and out, where the input may be hostile: bytes -> checked picture, waveform or text; and back to files.

Nothing here trusts a file. What a header promises is checked before anything is decoded or allocated, only formats that
are known to be data are tried (no PostScript), and whatever a decoder objects to becomes a `BadSample` with its reason.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from motet.core.errors import one_line
from motet.tokenizers.contract import BadSample, Waveform

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
SOUND_SIGNATURES = (b"RIFF", b"fLaC", b"OggS", b"FORM", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")  # and MP3
LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000  # Hz
BLOCK = 1 << 18  # frames decoded at a time: what is held besides the mono result
PASSES = 100
"""Times `max_pixels` that a progressive JPEG may go over: it may ask for thousands of passes, cameras write about ten."""


def load_image(data: bytes, max_pixels: int = 64_000_000) -> Image.Image:
    """A picture as RGB, upright, transparency laid on white; of an animation its first frame.

    Raises what `load_reduced` does.
    """
    return load_reduced(data, None, max_pixels)[0]


def load_reduced(
    data: bytes, side: int | None, max_pixels: int = 64_000_000
) -> tuple[Image.Image, tuple[float, float]]:
    """The same, but a JPEG is decoded at the least of 1/8, 1/4, 1/2 and 1/1 whose short side is still `side` or more.

    JPEG's 8 x 8 blocks are transformed straight into smaller ones, which costs a fraction of decoding all pixels.

    Returns:
        The picture, and how much of its width and height the file's own pixels fill: 427 rows at 1/2 are 214, of which
        213.5 are filled. Who resizes the whole 214 shifts the picture (26 dB from the full decode instead of 37).

    Raises:
        BadSample: `empty-file`, `not-an-image`, `image-too-large` (more than `max_pixels`, told from the header, before
            any pixel is decoded; or a JPEG whose passes over all its pixels come to PASSES times that), `truncated-image`
            (the header is sound, the pixels are not all there).
    """
    if not data:
        raise BadSample("empty-file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata and large pictures: the size is judged below
        try:
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        except Image.DecompressionBombError as error:
            raise BadSample("image-too-large", str(error)) from None
        except Exception as error:  # a parser of hostile bytes: whatever it raises is the file's fault
            raise BadSample("not-an-image", one_line(error)) from None
        if image.width * image.height > max_pixels:
            raise BadSample("image-too-large", f"{image.width} x {image.height} is over {max_pixels} pixels")
        passes = data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") else 1
        if passes * image.width * image.height > PASSES * max_pixels:
            raise BadSample("image-too-large", f"{image.width} x {image.height} pixels in {passes} passes")
        try:
            filled = _reduce(image, side) if side else None
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _on_white(image), filled or image.size
        except Exception as error:  # the same, one layer deeper
            raise BadSample("truncated-image", one_line(error)) from None


def load_speech(data: bytes, max_seconds: float = 1800.0) -> Waveform:
    """Sound as one channel (the mean of all), float32 clipped to [-1, 1], at the file's own rate.

    Raises:
        BadSample: `empty-file`, `not-audio`, `empty-audio` (no samples), `audio-too-long` (over `max_seconds`, told from
            the header where it says so, and never more than that is decoded), `truncated-audio`, `not-finite-audio`
            (NaN or infinite samples).
    """
    import soundfile

    if not data:
        raise BadSample("empty-file")
    if not data.startswith(SOUND_SIGNATURES):
        raise BadSample("not-audio", f"starts with {data[:4]!r}")
    cut_short, endless = _cut_short(data), _endless(data)
    try:
        with soundfile.SoundFile(_Sound(data)) as file:
            rate, promised = file.samplerate, file.frames
            if endless:  # FLAC without a length cannot seek, and soundfile would after each block
                file.seekable = lambda: False
            if cut_short:
                raise BadSample("truncated-audio", "the file ends before its own structure does")
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise BadSample("not-audio", f"a sampling rate of {rate} Hz")
            limit = int(max_seconds * min(rate, 48_000))
            if promised > limit and not endless:
                raise BadSample("audio-too-long", f"{promised} frames at {rate} Hz is over {max_seconds:g} s")
            blocks, frames = [], 0
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                frames += len(block)
                if frames > limit:
                    raise BadSample("audio-too-long", f"over {max_seconds:g} s at {rate} Hz")
                blocks.append(block[:, 0] if file.channels == 1 else block.mean(axis=1, dtype=np.float32))
                if frames == promised and file.seekable():
                    break  # a seekable file is read to its promised end and no further: spares the seeks of asking
    except soundfile.LibsndfileError as error:
        raise BadSample("truncated-audio" if cut_short else "not-audio", one_line(error)) from None
    if frames < promised and not endless:
        raise BadSample("truncated-audio", f"{frames} of {promised} frames")
    if not frames:
        raise BadSample("empty-audio")
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    finite = np.isfinite(samples)
    if not finite.all():
        raise BadSample("not-finite-audio", f"{int((~finite).sum())} samples are NaN or infinite")
    return Waveform(np.clip(samples, -1.0, 1.0, out=samples), rate)


def utf16(data: bytes) -> str:
    """That bytes are UTF-16 or UTF-32, and what to do about it; empty if they do not look so."""
    head = data[:4096]
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    halves = [half.count(0) / len(half) if half else 0.0 for half in (head[::2], head[1::2])]
    wide = len(head) >= 8 and max(halves) > 0.4 and (min(halves) < 0.1 or head.count(0) > 0.6 * len(head))
    if not marked and not (wide and head.strip(b"\0")):
        return ""
    kind = "UTF-32" if head.count(0) > 0.6 * len(head) else "UTF-16"
    return f"this is {kind}; write it as UTF-8, as iconv -f {kind} -t UTF-8 does"


def load_text(data: bytes) -> str:
    """Text from UTF-8, byte for byte (a byte-order mark stays).

    Raises:
        BadSample: `empty-file`, `invalid-utf8`.
    """
    if not data:
        raise BadSample("empty-file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSample("invalid-utf8", utf16(data) or f"byte {error.start}: {error.reason}") from None


def resample(wave: Waveform, rate: int) -> Waveform:
    """The same sound at `rate` Hz."""
    if wave.rate == rate:
        return wave
    import soxr

    samples = soxr.resample(wave.samples, wave.rate, rate).astype(np.float32)
    return Waveform(np.clip(samples, -1.0, 1.0), rate)


def dump_png(image: Image.Image | np.ndarray) -> bytes:
    """A picture (PIL, or uint8 `[height, width, 3]`) as a PNG file."""
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, "PNG")
    return out.getvalue()


def dump_wav(wave: Waveform) -> bytes:
    """Sound as a 16-bit PCM WAV file."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.clip(wave.samples, -1.0, 1.0), wave.rate, format="WAV", subtype="PCM_16")
    return out.getvalue()


def _reduce(image: Image.Image, side: int) -> tuple[float, float] | None:
    """Ask a JPEG's decoder for the least scale whose short side is `side` or more; what will be filled, if not all."""
    if not isinstance(image, JpegImageFile):
        return None
    width, height = image.size
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    if turned:  # upright, any edge could be the one filled in part: reduced only where none is
        scale = next((s for s in (8, 4, 2) if width % s == height % s == 0 and min(width, height) >= s * side), 1)
        side = min(width, height) // scale
    drafted = image.draft(None, (side, side))
    return None if turned or drafted is None else drafted[1][2:]


def _on_white(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16-bit grey by its high byte, transparency laid on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _cut_short(data: bytes) -> bool:
    """Whether a WAV, AIFF or Ogg file ends before its own structure does."""
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        return _wav_end(data) > len(data)
    if data.startswith(b"FORM"):
        return 8 + int.from_bytes(data[4:8], "big") > len(data)
    if data.startswith(b"OggS"):
        position, last = 0, False
        while position + 27 <= len(data) and data[position : position + 4] == b"OggS":
            segments = data[position + 26]
            table = data[position + 27 : position + 27 + segments]
            last = bool(data[position + 5] & 4)  # this page ends its stream
            position += 27 + segments + sum(table)
        return position > len(data) or not last
    return False


def _wav_end(data: bytes) -> int:
    """Where the `data` chunk of a WAV file ends, by its header; the file's own end if the header leaves it open."""
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"data":
            return len(data) if _endless(data) else position + 8 + size
        position += 8 + size + size % 2
    return position + 8  # it ends before the sound begins


def _endless(data: bytes) -> bool:
    """Whether this WAV or FLAC was written to a pipe: its header could not know the length, says 0 or the largest number."""
    if data.startswith(b"fLaC"):
        return not int.from_bytes(data[21:26], "big") & ((1 << 36) - 1)
    place = data.find(b"data", 12, 4096) if data.startswith(b"RIFF") else -1
    return place > 0 and data[place + 4 : place + 8] in (b"\0\0\0\0", b"\xff\xff\xff\xff")


class _Sound(io.BytesIO):
    """Stays where it is when a broken header leads libsndfile to before the file's start: soundfile prints a traceback else."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


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
