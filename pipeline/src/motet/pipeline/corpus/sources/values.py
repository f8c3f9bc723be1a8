"""What a value of a Parquet column is: text, bytes, or a struct that holds or names them.

str (of pictures and sound, a path) | bytes | {bytes, path} | {data, mime} and the like | {array, sampling_rate} --`value_bytes`--> a part's bytes, or BadSample

A value that is there and that cannot be read makes its row a reject: a document without it would be another one.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np

from motet.core.urls import censored
from motet.pipeline.corpus.sources.media import Media
from motet.pipeline.corpus.sources.sample import MAX_FILE, empty, string
from motet.tokenizers.contract import BadSample

URL = re.compile(r"(https?|ftp|data):", re.I)
BINARY = ("image", "speech")
"""Modalities of which no string is a sample: one in their column names a file."""


def is_empty(value: Any) -> bool:
    """Whether nothing is there: null, an empty string, or a struct of such."""
    return all(map(is_empty, value.values())) if isinstance(value, dict) else empty(value)


def value_bytes(value: Any, where: str, media: Media, modality: str = "text") -> bytes:
    """The bytes of a value that is not empty; `where` names it for people."""
    if isinstance(value, dict):
        value = _held(value, where, media)
    elif isinstance(value, str) and modality in BINARY:
        value = _named(value, where, media)
    if isinstance(value, str):
        return string(value, where)
    if not isinstance(value, bytes):
        raise BadSample("not-bytes", f"{where} is a {type(value).__name__}, neither text nor bytes")
    if len(value) > MAX_FILE:
        raise BadSample("file-too-large", f"{where}: {len(value)} bytes")
    return value


def _held(value: dict[str, Any], where: str, media: Media) -> bytes:
    """What a struct holds: its `bytes`, or its one field of bytes, or a sound's samples, or the file that it names."""
    if isinstance(value.get("bytes"), bytes):
        return bytes(value["bytes"])
    if "bytes" not in value:
        held = [field for field, inner in value.items() if isinstance(inner, bytes)]
        if len(held) > 1:
            raise BadSample("two-at-a-place", f"{where}: {' and '.join(held)} both hold bytes")
        if held:
            return bytes(value[held[0]])
    if isinstance(value.get("array"), list) and "sampling_rate" in value:
        return _sound(value["array"], value["sampling_rate"], where)
    if not empty(value.get("path")):
        return _named(value["path"], f"{where}.path", media)
    there = ", ".join(field for field, inner in value.items() if not is_empty(inner))
    raise BadSample("no-bytes", f"{where} has {there}, but neither bytes nor a path; download what it means first")


def _named(value: Any, where: str, media: Media) -> bytes:
    name = string(value, where).decode()
    if URL.match(name):
        raise BadSample(
            "no-bytes",
            f"{where} is the URL {censored(name):.200}; download what lies there, and write its path in its place",
        )
    return media.read(name)


def _sound(array: list[Any], rate: Any, where: str) -> bytes:
    """A decoded sound, of one channel or a list of each, as a WAV file."""
    try:
        samples = np.array(array, "<f4")
    except (TypeError, ValueError) as error:
        raise BadSample("not-audio", f"{where}.array: {error}") from None
    samples = samples.T if samples.ndim == 2 and samples.shape[0] < samples.shape[1] else samples
    sound = samples.ndim in (1, 2) and samples.size and isinstance(rate, int) and 0 < rate < 1 << 24
    if not sound or samples.nbytes > MAX_FILE:
        raise BadSample("not-audio", f"{where}: an array of shape {samples.shape} at {rate!r:.20} Hz")
    return wav(samples.tobytes(), rate, 1 if samples.ndim == 1 else samples.shape[1])


def wav(samples: bytes, rate: int, channels: int) -> bytes:
    """32-bit floats as a WAV file. libsndfile would write the time of day into it, and the sample's identity with it."""
    kind = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, channels, rate, rate * channels * 4, channels * 4, 32)
    body = kind + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WAVE") + body
