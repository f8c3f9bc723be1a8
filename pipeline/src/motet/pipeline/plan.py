"""Plan, then do: the corpus cut into partitions by what it is, never by workers or engines.

    corpus entries --`partitions`--> Partition (files and ranges, in a fixed order, with versions) --`Partition.key`--> commit

A partition is the unit of work, of retry and of a shard. Lines of a JSONL file are cut into ranges of bytes at line
ends; a folder without metadata is cut into ranges of its sorted files. The version of a file is its size and
modification time; both go into the partition's key, so that a changed file is tokenized again, and only it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.pipeline.config import Entry, TokenizeConfig
from motet.tokenizers.configuration import UserError
from motet.tokenizers.contract import content_hash

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Partition:
    """A range of one source.

    Attributes:
        entry: the source; its paths are absolute here.
        root: folder that media paths start from and must stay in.
        index: place among the source's partitions.
        lines: (JSONL file, first byte, end byte, number of the first line), or None.
        files: media files, relative to `root`, if there is no JSONL.
        versions: (path relative to root, as `printable`; size; modification time in ns) of every file that is read; size -1
            if it is missing.
    """

    entry: Entry
    root: Path
    index: int
    lines: tuple[str, int, int, int] | None
    files: tuple[str, ...]
    versions: tuple[tuple[str, int, int], ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.entry.name}, partition {self.index} ({self.versions[0][0]})"

    @property
    def size(self) -> int:
        """Bytes that will be read, for progress."""
        lines = self.lines[2] - self.lines[1] if self.lines else 0
        media = self.versions[1:] if self.lines else self.versions
        return lines + sum(max(size, 0) for _, size, _ in media)

    def key(self, settings_hash: str) -> str:
        """Equal exactly if tokenizing again would give the same bytes (16 hex digits)."""
        entry = self.entry.model_dump(mode="json", exclude={"path", "root"})
        return content_hash(settings_hash, entry, self.index, self.lines and self.lines[1:], self.versions)[:16]


def partitions(config: TokenizeConfig, base: Path) -> list[Partition]:
    """The whole plan; UserError for anything in the configuration that does not exist."""
    plan: list[Partition] = []
    names: set[str] = set()
    for i, entry in enumerate(config.corpus):
        where = f"corpus.{i} ({entry.name})"
        if entry.name in names:
            raise UserError(f"{where}: name: another entry is called so too; choose a name of its own")
        names.add(entry.name)
        try:
            path = (base / entry.path).resolve()
            if not path.exists():
                raise UserError(f"{where}: path: {path} does not exist; paths are relative to the configuration file")
        except (OSError, ValueError) as error:
            raise UserError(f"{where}: path: {entry.path!r} cannot be a path: {error}") from None
        if not os.access(path, os.R_OK):
            raise UserError(f"{where}: path: {path} cannot be read; check its permissions")
        for modality in _needed(entry, path, where):
            if modality not in config.tokenizers:
                raise UserError(f"{where}: there is no tokenizer for '{modality}'; add one under tokenizers")
        found = list(_source(entry, path, base, config, where))
        if not found:
            raise UserError(f"{where}: path: {path} holds nothing to tokenize; correct it or remove the entry")
        plan.extend(found)
    return plan


def printable(name: str) -> str:
    """A file's name as text that can be stored; a name need not be Unicode (its other bytes become escapes)."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _needed(entry: Entry, path: Path, where: str) -> list[str]:
    """Modalities that cannot be missing: those the entry says, and text if a folder's first row has a caption."""
    if entry.format != "folder":
        return ["text"] if entry.format == "text" else []
    if entry.modality is None:
        raise UserError(f"{where}: modality: a folder needs one, for example image")
    try:
        with open(path / METADATA, "rb") as lines:
            captioned = json.loads(lines.readline()).get("text") is not None
    except (OSError, ValueError, AttributeError, RecursionError):
        captioned = False  # no metadata, or a first row that will be rejected
    return [entry.modality, *(["text"] if captioned else [])]


def _source(entry: Entry, path: Path, base: Path, config: TokenizeConfig, where: str) -> Iterator[Partition]:
    samples, size = config.partition_samples, config.partition_bytes
    if entry.format == "folder":
        if not path.is_dir():
            raise UserError(f"{where}: path: {path} is a file; format 'folder' needs a folder")
        if (path / METADATA).is_file():
            yield from _lines(entry, path, path / METADATA, samples, size)
        else:
            files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
            yield from _files(entry, path, files, samples, None)
        return
    if entry.format == "text" and (path.is_dir() or path.suffix == ".txt"):
        root = path if path.is_dir() else path.parent
        found = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        yield from _files(entry, root, [p.relative_to(root).as_posix() for p in found], samples, size)
        return
    if path.is_dir():
        raise UserError(f"{where}: path: {path} is a folder; format '{entry.format}' needs a JSONL file")
    root = (base / entry.root).resolve() if entry.root else path.parent
    if not root.is_dir():
        raise UserError(f"{where}: root: {root} is no folder")
    yield from _lines(entry, root, path, samples if entry.format == "interleaved" else None, size)


def _lines(entry: Entry, root: Path, path: Path, samples: int | None, size: int) -> Iterator[Partition]:
    """Ranges of a JSONL file that end at line ends, with the media that its lines name."""
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    own = (printable(name), *_version(path)[1:])
    index = begin = first = end = number = 0
    media: list[str] = []
    with open(path, "rb") as lines:
        for line in lines:
            if number > first and (end - begin + len(line) > size or number - first == samples):
                versions = (own, *(_version(root, name) for name in media))
                yield Partition(entry, root, index, (str(path), begin, end, first), (), versions)
                index, begin, first, media = index + 1, end, number, []
            media += media_of(entry, line)
            end, number = end + len(line), number + 1
    if number > first:
        versions = (own, *(_version(root, name) for name in media))
        yield Partition(entry, root, index, (str(path), begin, end, first), (), versions)


def _files(entry: Entry, root: Path, files: list[str], samples: int, size: int | None) -> Iterator[Partition]:
    """Ranges of files: at most `samples` of them, and at most `size` bytes, if that matters, unless one alone is larger."""
    index = begin = total = 0
    versions = [_version(root, name) for name in files]
    for i, (_, own, _) in enumerate(versions):
        if i > begin and (i - begin == samples or (size is not None and total + own > size)):
            yield Partition(entry, root, index, None, tuple(files[begin:i]), tuple(versions[begin:i]))
            index, begin, total = index + 1, i, 0
        total += own
    if files:
        yield Partition(entry, root, index, None, tuple(files[begin:]), tuple(versions[begin:]))


def media_of(entry: Entry, line: bytes) -> list[str]:
    """The media files that a JSONL line names: what decides, beside the line itself, what becomes of it."""
    if entry.format == "text":
        return []
    try:
        row: Any = json.loads(line)
        if entry.format == "folder":
            names = [row["file_name"]]
        else:
            names = [v for part in row["parts"] for m, v in part.items() if m != "text"] if "parts" in row else []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # the line will be rejected when it is read
    return [name for name in names if isinstance(name, str)]


def _version(root: Path, name: str = "") -> tuple[str, int, int]:
    try:
        status = os.stat(root / name)
    except (OSError, ValueError):
        return printable(name), -1, 0
    return printable(name), status.st_size, status.st_mtime_ns
