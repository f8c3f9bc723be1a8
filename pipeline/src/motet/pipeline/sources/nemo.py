"""NeMo's manifests: rows {"audio_filepath", "text"?, "offset"?, "duration"?}: the transcript, then the recording.

A row with an `offset` (seconds) means the segment that begins there and is `duration` long; without one, the whole file,
whose `duration` then only describes it. A segment is cut by samples, without loss.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from motet.pipeline.config import Entry, TokenizeConfig
from motet.pipeline.rejects import Reject
from motet.pipeline.sources import jsonl
from motet.pipeline.sources.media import Media
from motet.pipeline.sources.sample import Note, Piece, RawSample, string
from motet.tokenizers.contract import BadSample

if TYPE_CHECKING:
    from motet.pipeline.plan import Partition

LONGEST = 24 * 3600.0
"""Seconds that a segment may have."""


def needed(entry: Entry, where: str) -> list[str]:
    """See sources."""
    return [_modality(entry)]


def modalities(entry: Entry) -> list[str]:
    """See sources."""
    return ["text", _modality(entry)]


def cut(entry: Entry, config: TokenizeConfig, where: str) -> Iterator[Piece]:
    """See sources."""
    root, found = jsonl.found(entry, where)
    for path, own in found:
        yield from jsonl.rows(path, own, root, config, lambda row: [row["audio_filepath"]])


def read(partition: Partition, note: Note) -> Iterator[RawSample | Reject]:
    """See sources."""
    media, modality = Media(partition, note), _modality(partition.entry)

    def parts(row: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
        name, transcript = row.get("audio_filepath"), row.get("text")
        if not isinstance(name, str) or not name:
            raise BadSample("no-file-name", "audio_filepath is missing or is no string")
        data = media.read(name)
        if row.get("offset") is not None:
            data = _segment(data, _seconds(row, "offset"), _seconds(row, "duration"))
        sound = (modality, data)
        return (("text", string(transcript, "text")), sound) if transcript else (sound,)

    yield from jsonl.read(partition, note, parts)


def _modality(entry: Entry) -> str:
    return entry.modality or "speech"


def _seconds(row: dict[str, Any], field: str) -> float:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST:
        raise BadSample("bad-segment", f"{field} is {value!r:.40}, not seconds from 0 to {LONGEST:g}")
    return float(value)


def _segment(data: bytes, offset: float, duration: float) -> bytes:
    """The samples of a sound file from `offset` on, as a WAV file of 32-bit floats; shorter if the file ends there."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            begin, frames = round(offset * file.samplerate), round(duration * file.samplerate)
            if not frames or begin >= file.frames:
                raise BadSample(
                    "bad-segment", f"{duration:g} s from {offset:g} s of {file.frames / file.samplerate:g} s"
                )
            file.seek(begin)
            samples = file.read(min(frames, file.frames - begin), dtype="float32", always_2d=True)
            out = io.BytesIO()
            soundfile.write(out, samples, file.samplerate, format="WAV", subtype="FLOAT")
    except soundfile.LibsndfileError as error:
        raise BadSample("not-audio", str(error)) from None
    return out.getvalue()
