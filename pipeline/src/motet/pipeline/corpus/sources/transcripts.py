"""Transcripts that no header explains, in the layouts that speech corpora are published in: a folder's `layout`.

    ljspeech     metadata.csv      LJ001-0001|text|normalized text   wavs/LJ001-0001.wav
    librispeech  84-121123.trans.txt   84-121123-0000 TEXT           84-121123-0000.flac, beside the transcripts
    beside       0001.jpg, 0001.txt    the whole .txt                0001.jpg

    line or .txt --> {"file_name", "text", "normalized"?} --`metadata.Meaning`, as any row--> caption, then media

A transcript names a recording without its ending: it is the first of ENDINGS that lies there.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from motet.pipeline.corpus import files
from motet.pipeline.corpus.sources import jsonl
from motet.pipeline.corpus.sources.media import Media, inside
from motet.pipeline.corpus.sources.metadata import BOM
from motet.pipeline.corpus.sources.sample import Cut, Version
from motet.pipeline.corpus.sources.text import runs
from motet.tokenizers.contract import BadSample
from motet.tokenizers.media import utf16

NAMES = {"ljspeech": "metadata.csv", "librispeech": "*.trans.txt"}
"""The files that transcripts stand in, a line each."""
ENDINGS = {
    "ljspeech": (".wav", ".flac", ".ogg", ".opus", ".mp3"),
    "librispeech": (".flac", ".wav", ".ogg", ".opus", ".mp3"),
}
"""Of recordings; the publisher's own first."""
CAPTION = ".txt"
"""The ending of a caption that lies beside its media."""


def holds(layout: str, name: str) -> bool:
    """Whether a file holds transcripts, a line each."""
    last = name.rpartition("/")[2].lower()
    pattern = NAMES.get(layout, "")
    return last.endswith(pattern[1:]) if pattern.startswith("*") else last == pattern


def form(layout: str, folder: str, there: Callable[[str], bool]) -> jsonl.Form:
    """How the lines of a file of transcripts in `folder` are read; `there` says whether a file below the root is there."""
    split = _piped if layout == "ljspeech" else _spaced
    below = "wavs" if layout == "ljspeech" else ""

    def parse(line: bytes) -> dict[str, Any]:
        try:
            text = line.removeprefix(BOM).decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            raise BadSample("invalid-utf8", utf16(line) or str(error)) from None
        key, *texts = split(text)
        if not key:
            raise BadSample("bad-row", "the line does not begin with the name of a recording")
        named = [posixpath.join(below, f"{key}{ending}") for ending in ENDINGS[layout]]
        found = next((name for name in named if there(posixpath.join(folder, name))), named[0])
        return {"file_name": found, **dict(zip(("text", "normalized"), texts, strict=False))}

    return jsonl.Form(jsonl.lines, parse)


def looked_at(look: Callable[[str], files.Info | None]) -> Callable[[str], bool]:
    """`there` while a source is cut."""

    def there(name: str) -> bool:
        try:
            return inside(name) and look(name) is not None
        except OSError:
            return True  # whoever reads it says what it is

    return there


def planned(versions: tuple[Version, ...]) -> Callable[[str], bool]:
    """`there` when a partition is read: what was there when it was cut."""
    found = {name for name, size, _ in versions if size >= 0}
    return lambda name: files.printable(posixpath.normpath(name)) in found or files.printable(name) in found


def _piped(line: str) -> list[str]:
    values = line.split("|")  # a quote is a quote
    if len(values) not in (2, 3):
        raise BadSample("bad-row", f"{len(values)} values between '|'; a line is id|text or id|text|normalized text")
    return values


def _spaced(line: str) -> list[str]:
    key, text = (*line.split(maxsplit=1), "", "")[:2]
    return [key, text.rstrip()]


class Captions:
    """The .txt files of a folder, each the caption of the media that have its name up to the ending."""

    def __init__(self, infos: dict[str, files.Info]) -> None:
        texts = [name for name in infos if name.lower().endswith(CAPTION)]
        stems = {posixpath.splitext(name)[0] for name in infos if not name.lower().endswith(CAPTION)}
        self._infos = infos
        self._of = {stem: name for name in sorted(texts) if (stem := name[: -len(CAPTION)]) in stems}
        self.used: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._of)

    def of(self, name: str) -> str | None:
        """The caption's file of a media file; noted as used."""
        found = self._of.get(posixpath.splitext(name)[0])
        if found is not None:
            self.used.add(found)
        return found

    def cut(self, root: str, media: list[tuple[str, Version]], samples: int) -> Iterator[Cut]:
        """Runs of media files, with the versions of their captions."""
        for cut in runs(root, media, samples, None):
            names = dict.fromkeys(found for name in cut.files if (found := self.of(name)) is not None)
            own = [(files.printable(name), self._infos[name].size, self._infos[name].version) for name in names]
            yield replace(cut, versions=(*cut.versions, *own), size=cut.size + sum(size for _, size, _ in own))


def captions_of(versions: tuple[Version, ...]) -> dict[str, str]:
    """The endings of the captions that a partition was cut with, by what is before them."""
    cut = -len(CAPTION)
    return {name[:cut]: name[cut:] for name, _, _ in versions if name.lower().endswith(CAPTION)}


def row_of(name: str, captions: dict[str, str], media: Media) -> dict[str, Any]:
    """A media file and its caption as a row."""
    stem = posixpath.splitext(name)[0]
    ending = captions.get(files.printable(stem))
    if ending is None:
        return {"file_name": name}
    data = media.read(stem + ending).removeprefix(BOM)
    try:
        return {"text": data.decode(), "file_name": name}
    except UnicodeDecodeError as error:
        raise BadSample("invalid-utf8", f"{stem}{ending}: {utf16(data) or error}") from None
