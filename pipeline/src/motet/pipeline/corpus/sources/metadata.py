"""Rows about media: metadata.jsonl, .csv (quoted, as pandas reads it), .tsv, .parquet; what their fields mean.

    file --`form`--> records with their places --`Meaning`--> the media that a row names | its parts, captions before media

Without `columns` a row is read as ImageFolder and AudioFolder of `datasets` do: `file_name` or `*_file_name` is a media file,
`file_names` or `*_file_names` a list of them; the caption is the first of CAPTIONS that the row has.
"""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from motet.core.errors import UserError
from motet.pipeline.corpus import files
from motet.pipeline.corpus.entry import Entry
from motet.pipeline.corpus.sources import jsonl
from motet.pipeline.corpus.sources.media import below
from motet.pipeline.corpus.sources.sample import MAX_FILE, empty, string
from motet.tokenizers.contract import BadSample

ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
CAPTIONS = ("text", "caption", "transcription", "transcript", "sentence")
BOM = b"\xef\xbb\xbf"
csv.field_size_limit(MAX_FILE)


class Meaning:
    """What the fields of an entry's rows are; names of media are below `folder`, the one that the rows lie in."""

    def __init__(self, entry: Entry, folder: str = "", root: str = "") -> None:
        self._columns, self._modality, self._language = entry.columns, entry.modality or "", entry.language
        self._folder, self._root = folder, root

    def __contains__(self, key: object) -> bool:
        """Whether a field is read; a caption's other names are not, if the row has the first."""
        if self._columns is not None:
            return key in self._columns or key == self._language
        return isinstance(key, str) and (is_media(key) or key == self._language)

    def caption(self, row: dict[str, Any]) -> str | None:
        """The field that is the caption, where no `columns` say it."""
        return None if self._columns else next((key for key in CAPTIONS if key in row), None)

    def named(self, row: dict[str, Any]) -> list[str]:
        """The media files of a row."""
        return [
            name for key, modality in self._fields(row) if modality != "text" for name in self._names(row.get(key), key)
        ]

    def parts(self, row: dict[str, Any], read: Callable[[str], bytes]) -> tuple[tuple[str, bytes], ...]:
        """A row as a sample; BadSample if a file that it names cannot be read, or if it names none."""
        found: list[tuple[str, bytes]] = []
        for key, modality in self._fields(row):
            value = row.get(key)
            if modality == "text":
                texts = value if isinstance(value, list) else [value]
                found += [("text", string(text, key)) for text in texts if not empty(text)]
            else:
                found += [(modality, read(name)) for name in self._names(value, key)]
        if not self._columns and all(modality == "text" for modality, _ in found):
            raise BadSample("no-file-name", "file_name is missing or is no string")
        if not found:
            raise BadSample("no-parts", f"{', '.join(self._columns or ())}: nothing in any of them")
        return tuple(found)

    def _fields(self, row: dict[str, Any]) -> Iterable[tuple[str, str]]:
        if self._columns:
            return self._columns.items()
        caption = self.caption(row)
        media = [(key, self._modality) for key in row if is_media(key)]
        return [(caption, "text"), *media] if caption is not None else media

    def _names(self, value: Any, key: str) -> list[str]:
        names = [name for name in (value if isinstance(value, list) else [value]) if not empty(name)]
        for name in names:
            if not isinstance(name, str):
                raise BadSample("no-file-name", f"{key} is a {type(name).__name__}, no file's name")
        names = [below(name, self._root) for name in names]
        return [posixpath.join(self._folder, name) for name in names]


class Fields(jsonl.Fields):
    """Counts what a `Meaning` does not read: the first caption of a row is read, its other names are not."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._meaning: Meaning = args[1]

    def count(self, row: dict[str, Any], place: str, offset: int | None = None) -> None:
        """See jsonl."""
        caption = self._meaning.caption(row)
        super().count({key: None for key in row if key != caption}, place, offset)


def is_media(key: str) -> bool:
    """Whether a field names media, as `datasets` has it."""
    return key in ("file_name", "file_names") or key.endswith(("_file_name", "_file_names"))


def form(path: str, size: int) -> jsonl.Form:
    """How the records of a .jsonl, .csv or .tsv file are told apart, and its header's names."""
    if path.lower().endswith((".jsonl", ".ndjson")):
        return jsonl.JSON
    tabs = path.lower().endswith(".tsv")
    records = jsonl.lines if tabs else quoted
    split = _tabs if tabs else _commas
    blocks = records(files.blocks(path, 0, size), 0)
    try:
        _, header = next(blocks)
        following = next(blocks, (size, b""))[0]
        names = split((header or b"").removeprefix(BOM))
    except (StopIteration, BadSample):
        names, following = [], size
    if not tabs and any("|" in name for name in names):
        raise UserError(
            f"{path}: its first line has '|' between values, not commas; if its lines are id|text of recordings in wavs/, and it has no "
            "header, say layout: ljspeech; otherwise write it with commas, and a header"
        )
    if not all(names) or len(set(names)) < len(names):
        raise UserError(
            f"{path}: its first line does not name every column once; write such a line, {{file_name,text}}"
        )

    def parse(record: bytes) -> dict[str, Any]:
        values = split(record)
        if len(values) != len(names):
            raise BadSample("bad-row", f"{len(values)} values for the {len(names)} columns of the first line")
        return dict(zip(names, values, strict=True))

    return jsonl.Form(records, parse, following)


def quoted(blocks: Iterable[bytes], begin: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """`jsonl.lines` of CSV, where a quoted value may have line ends in it."""
    held: list[bytes] = []
    start = size = 0
    is_open = too_long = False
    for offset, line in jsonl.lines(blocks, begin, blank=True):
        if not is_open:
            held, start, size, too_long = [], offset, 0, False
        if line is None or (size := size + len(line) + 1) > MAX_FILE:
            held, too_long = [], True
        elif not too_long:
            held.append(line)
        is_open = line is not None and _open(line, is_open)
        if not is_open:
            record = b"\n".join(held)
            if too_long or (record and not record.isspace()):
                yield start, None if too_long else record
    if is_open:
        yield start, None if too_long else b"\n".join(held)


def _open(line: bytes, is_open: bool) -> bool:
    """Whether a quoted value goes on after this line; a quote begins one only where a value begins."""
    at = 0
    last = line.rfind(b'"')
    while at <= last:
        if is_open:
            at = line.find(b'"', at) + 1
            if line[at : at + 1] == b'"':
                at += 1  # two are one within a value
                continue
            is_open = False
        elif line[at : at + 1] == b'"':
            is_open, at = True, at + 1
            continue
        comma = line.find(b",", at)
        if comma < 0:
            break
        at = comma + 1
    return is_open


def _commas(record: bytes) -> list[str]:
    try:
        if _open(record, False):
            raise BadSample("not-csv", "a quote is not closed; what follows it is lost")
        return next(csv.reader([record.decode().removesuffix("\r")]))
    except UnicodeDecodeError as error:
        raise BadSample("invalid-utf8", str(error)) from None
    except (csv.Error, StopIteration) as error:
        raise BadSample("not-csv", str(error)) from None


def _tabs(record: bytes) -> list[str]:
    try:
        values = record.decode().removesuffix("\r").split("\t")
    except UnicodeDecodeError as error:
        raise BadSample("invalid-utf8", str(error)) from None
    return [v[1:-1].replace('""', '"') if len(v) > 1 and v[0] == v[-1] == '"' else v for v in values]
