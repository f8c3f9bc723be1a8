"""Raw files in and out, where the input may be hostile: bytes -> checked picture, waveform or text; and back to files.

Nothing here trusts a file. What a header promises is checked before anything is decoded or allocated, only formats that
are known to be data are tried (no PostScript), and whatever a decoder objects to becomes a `BadSample` with its reason.
"""

from __future__ import annotations

import io
import os
import warnings

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from motet.core.errors import one_line
from motet.tokenizers import containers, deep, picture_files, sound_files
from motet.tokenizers.contract import BadSample, Waveform

LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000  # Hz
BLOCK = 1 << 18  # frames decoded at a time: what is held besides the mono result
LOADING = 2
"""Version of how a sound file becomes samples, in speech tokenizers' content hashes: raise it when those of any file may change."""
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
            (the header is sound, the pixels are not all there), `unknown-white` (numbers of which nothing says which one
            is white).
    """
    if not data:
        raise BadSample("empty-file")
    try:
        return _picture(data, side, max_pixels)
    except BadSample as bad:
        bare = picture_files.bare(data) if bad.reason in ("not-an-image", "truncated-image") else data
        if len(bare) == len(data):
            raise
    return _picture(bare, side, max_pixels)  # metadata that Pillow cannot read is no fault of the picture


def load_speech(data: bytes, max_seconds: float = 1800.0) -> Waveform:
    """Sound as one channel (the mean of all), float32 clipped to [-1, 1], at the file's own rate.

    Raises:
        BadSample: `empty-file`, `not-audio`, `empty-audio` (no samples), `audio-too-long` (over `max_seconds`, told from
            the header where it says so, and never more than that is decoded), `truncated-audio`, `not-finite-audio`
            (NaN or infinite samples); of video containers `no-decoder` (an extra is not installed) and `no-audio-stream`.
    """
    if not data:
        raise BadSample("empty-file")
    waves: list[Waveform] = []
    left = max_seconds
    if container := containers.kind(data):
        waves.append(containers.decoded(data, container, max_seconds))
    elif not sound_files.is_sound(data):
        raise BadSample("not-audio", f"starts with {data[:4]!r}")
    for part in () if container else sound_files.parts(data):
        waves.append(_decoded(part, left, max_seconds))
        left -= len(waves[-1].samples) / waves[-1].rate
    waves = [wave for wave in waves if len(wave.samples)]
    if not waves:
        raise BadSample("empty-audio")
    rate = waves[0].rate
    samples = waves[0].samples
    if len(waves) > 1:  # files that were joined: each may have a rate of its own
        samples = np.concatenate([resample(wave, rate).samples for wave in waves])
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


def _picture(data: bytes, side: int | None, max_pixels: int) -> tuple[Image.Image, tuple[float, float]]:
    """What `load_reduced` gives, of a file whose metadata Pillow can read."""
    with picture_files.Unlimited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata and large pictures: the size is judged below
        image = picture_files.opened(data)
        if image.width * image.height > max_pixels:
            raise BadSample("image-too-large", f"{image.width} x {image.height} is over {max_pixels} pixels")
        passes = data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") else 1
        if passes * image.width * image.height > PASSES * max_pixels:
            raise BadSample("image-too-large", f"{image.width} x {image.height} pixels in {passes} passes")
        try:
            filled = _reduce(image, side) if side else None
            image.load()
            turned = picture_files.upright(image)
            return _on_white(turned), filled or turned.size
        except BadSample:
            raise
        except Exception as error:  # a parser of hostile bytes: whatever it raises is the file's fault
            raise BadSample("truncated-image", one_line(error)) from None


def _reduce(image: Image.Image, side: int) -> tuple[float, float] | None:
    """Ask a JPEG's decoder for the least scale whose short side is `side` or more; what will be filled, if not all."""
    if not isinstance(image, JpegImageFile):
        return None
    width, height = image.size
    turned = picture_files.orientation(image) != 1
    if turned:  # upright, any edge could be the one filled in part: reduced only where none is
        scale = next((s for s in (8, 4, 2) if width % s == height % s == 0 and min(width, height) >= s * side), 1)
        side = min(width, height) // scale
    drafted = image.draft(None, (side, side))
    return None if turned or drafted is None else drafted[1][2:]


def _on_white(image: Image.Image) -> Image.Image:
    """Any mode as RGB: more than 8 bits by their highest, transparency laid on white."""
    if image.mode.startswith(("I", "F")):
        return deep.grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _decoded(data: bytes, seconds: float, allowed: float) -> Waveform:
    """One sound file as one channel, up to `seconds`, which are left of those `allowed`; it may be empty."""
    import soundfile

    cut_short, endless = sound_files.cut_short(data), sound_files.without_length(data)
    blocks, frames = [], 0
    try:
        with soundfile.SoundFile(_Sound(data)) as file:
            rate, promised = file.samplerate, file.frames
            if endless:  # FLAC without a length cannot seek, and soundfile would after each block
                file.seekable = lambda: False
            if cut_short:
                raise BadSample("truncated-audio", "the file ends before its own structure does")
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise BadSample("not-audio", f"a sampling rate of {rate} Hz")
            limit = int(seconds * rate)
            if promised > limit and not endless:
                raise BadSample("audio-too-long", f"{promised} frames at {rate} Hz is over {allowed:g} s")
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                frames += len(block)
                if frames > limit:
                    raise BadSample("audio-too-long", f"over {allowed:g} s at {rate} Hz")
                blocks.append(block[:, 0] if file.channels == 1 else block.mean(axis=1, dtype=np.float32))
                if frames == promised and file.seekable():
                    break  # a seekable file is read to its promised end and no further: spares the seeks of asking
    except soundfile.LibsndfileError as error:  # its whole text names the object that was opened by its address
        raise BadSample("truncated-audio" if cut_short else "not-audio", error.error_string) from None
    if frames < promised and not endless:
        raise BadSample("truncated-audio", f"{frames} of {promised} frames")
    return Waveform(blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros(0, np.float32), *blocks]), rate)


class _Sound(io.BytesIO):
    """Stays where it is when a broken header leads libsndfile to before the file's start: soundfile prints a traceback else."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()
