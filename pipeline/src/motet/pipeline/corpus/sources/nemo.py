"""NeMo's manifests: rows {"audio_filepath", "text"?, "offset"?, "duration"?}: the transcript, then the recording.

A row with an `offset` (seconds) means the segment that begins there and is `duration` long; without one, the whole file,
whose `duration` then only describes it. A segment is cut by samples, without loss.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.sources import jsonl
from motet.pipeline.corpus.sources.media import Media, below
from motet.pipeline.corpus.sources.sample import MAX_FILE, Cut, Note, RawSample, empty, string
from motet.pipeline.corpus.sources.values import wav
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.dataset.rejects import Reject
from motet.tokenizers import sound_files
from motet.tokenizers.contract import BadSample

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition

USES = ("modality", "language", "root")
INSTEAD = {
    "column": "the transcript is the field 'text' of a row; rename it there",
    "columns": "rows are audio_filepath, text, offset, duration; format 'folder' reads other ones",
}

LONGEST = 24 * 3600.0
"""Seconds that a segment may begin at, or have."""


def needed(entry: Entry, where: str) -> list[str]:
    """See sources."""
    return [_modality(entry)]


def modalities(entry: Entry) -> list[str]:
    """See sources."""
    return ["text", _modality(entry)]


def cut(entry: Entry, config: Cutting, where: str, rest: Rest) -> Iterator[Cut]:
    """See sources."""
    root, found = jsonl.found(entry, where)
    for path, own in found:
        yield from jsonl.rows(path, own, root, config, lambda row: [row["audio_filepath"]])


def read(partition: Partition, note: Note, rest: Rest) -> Iterator[RawSample | Reject]:
    """See sources."""
    media, modality = Media(partition, note), _modality(partition.entry)
    last: tuple[str, bytes] = "", b""  # the segments of a recording follow each other
    whole: tuple[str, bytes] = "", b""  # the same, as segments are cut from it

    def parts(row: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
        nonlocal last, whole
        name, transcript = row.get("audio_filepath"), row.get("text")
        if not isinstance(name, str) or not name:
            raise BadSample("no-file-name", "audio_filepath is missing or is no string")
        name = below(name, partition.root)
        if name != last[0]:
            last = name, media.read(name)
        data = last[1]
        if row.get("offset") is not None:
            if name != whole[0]:
                whole = name, _whole(data)
            data = _segment(whole[1], _seconds(row, "offset"), _seconds(row, "duration"))
        sound = (modality, data)
        return (sound,) if empty(transcript) else (("text", string(transcript, "text")), sound)

    why, cure = "a manifest's row is audio_filepath, text, offset, duration", "rename it, or name it as `language`"
    used = {"audio_filepath", "text", "offset", "duration", partition.entry.language}
    yield from jsonl.read(partition, note, parts, jsonl.Fields(rest, used, why, cure))


def _modality(entry: Entry) -> str:
    return entry.modality or "speech"


def _seconds(row: dict[str, Any], field: str) -> float:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST:
        raise BadSample("bad-segment", f"{field} is {value!r:.40}, not seconds from 0 to {LONGEST:g}")
    return float(value)


def _whole(data: bytes) -> bytes:
    """A sound file whose header tells its length: as it is, or, if several were joined, decoded to one."""
    from motet.tokenizers.media import load_speech

    parts = list(sound_files.parts(data))
    if len(parts) < 2:
        return parts[0]
    sound = load_speech(data, LONGEST)
    return wav(sound.samples.astype("<f4").tobytes(), sound.rate, 1)


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
            if sound_files.cut_short(data) and begin + frames > file.frames:
                raise BadSample("truncated-audio", "the file ends early, within the segment")
            frames = min(frames, file.frames - begin)
            if frames * file.channels * 4 >= MAX_FILE:
                raise BadSample("file-too-large", f"a segment of {frames} samples of {file.channels} channels")
            file.seek(begin)
            samples = file.read(frames, dtype="float32", always_2d=True)
            if len(samples) < frames:
                raise BadSample("truncated-audio", f"{len(samples)} of the segment's {frames} frames")
            return wav(samples.astype("<f4").tobytes(), file.samplerate, file.channels)
    except soundfile.LibsndfileError as error:
        raise BadSample("not-audio", error.error_string) from None
