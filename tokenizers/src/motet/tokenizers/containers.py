"""The sound of video containers and AAC: MP4 (m4a, mov, 3gp), WebM and Matroska, ADTS -> waveform, by PyAV, an extra.

    file --`kind`--> its own structure is whole? --FFmpeg, the first audio stream--> one channel

libsndfile reads none of these. Without the extra `media` a file is the reject `no-decoder`, which says what to install.
"""

from __future__ import annotations

import io

import numpy as np

from motet.tokenizers import mpeg
from motet.tokenizers.contract import BadSample, Waveform

FORMATS = {"mp4": "mp4", "matroska": "matroska", "aac": "aac"}
MISSING = "needs PyAV: install motet-tokenizers[media], and tokenize again with --retry-rejects"


def kind(data: bytes) -> str | None:
    """Which container it is, if it is one."""
    if data[4:8] == b"ftyp":
        return "mp4"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    return "aac" if _adts_size(data, mpeg.after_tags(data, 0)) else None


def decoded(data: bytes, form: str, max_seconds: float) -> Waveform:
    """The first audio stream as one channel (the mean of all), at its own rate.

    Raises:
        BadSample: `no-decoder`, `no-audio-stream`, `truncated-audio`, `not-audio`, `audio-too-long`.
    """
    try:
        import av
    except ImportError:
        raise BadSample("no-decoder", f"{form}: {MISSING}") from None
    if {"mp4": _mp4_end, "matroska": _matroska_end, "aac": _aac_end}[form](data) > len(data):
        raise BadSample("truncated-audio", "the file ends before its own structure does")
    blocks, frames, rate = [], 0, 0
    try:
        with av.open(io.BytesIO(data), mode="r", format=FORMATS[form]) as file:
            if not file.streams.audio:
                raise BadSample("no-audio-stream", f"{form} without sound")
            stream = file.streams.audio[0]
            stream.codec_context.thread_count = 1  # the worker is one of many
            stream.codec_context.options = {"err_detect": "explode"}
            resampler = av.AudioResampler(format="fltp")
            for packet in file.demux(stream):
                for frame in packet.decode():
                    for part in resampler.resample(frame):
                        if rate not in (0, part.sample_rate):
                            raise BadSample("not-audio", f"a rate of {rate} Hz, then of {part.sample_rate} Hz")
                        rate = part.sample_rate
                        blocks.append(part.to_ndarray().mean(axis=0, dtype=np.float32))
                        frames += len(blocks[-1])
                        if frames > int(max_seconds * rate):
                            raise BadSample("audio-too-long", f"over {max_seconds:g} s at {rate} Hz")
    except (av.FFmpegError, ValueError) as error:
        reason = "truncated-audio" if frames else "not-audio"
        raise BadSample(reason, getattr(error, "strerror", None) or type(error).__name__) from None
    if not frames:
        raise BadSample("empty-audio")
    return Waveform(np.concatenate(blocks), rate)


def _mp4_end(data: bytes) -> int:
    """Where the last box ends; beyond the file if the one that tells what is in it is not there."""
    at, described = 0, False
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:  # up to the end
            size = len(data) - at
        described |= name == b"moov"
        at += max(size, 8)
    return at if described else len(data) + 1


def _matroska_end(data: bytes) -> int:
    """Where the segment ends; the file's end if its writer could not know."""
    at = 0
    while at + 12 <= len(data):
        name, at = data[at : at + 4], at + 4
        length = 9 - data[at].bit_length()
        if length > 8:
            return len(data) + 1
        size = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
        if size == (1 << 7 * length) - 1:
            return len(data)
        at += length + size
        if name == b"\x18\x53\x80\x67":
            return at
    return len(data) + 1


def _adts_size(data: bytes, at: int) -> int:
    """Bytes of the AAC frame at `at`; 0 if none is there."""
    if len(data) < at + 7 or data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0 or data[at + 2] >> 2 & 15 > 12:
        return 0
    size = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    return size if size > 7 else 0


def _aac_end(data: bytes) -> int:
    """Where the last frame ends."""
    at = mpeg.after_tags(data, 0)
    while at < len(data) and (size := _adts_size(data, at)):
        at += size
    return at
