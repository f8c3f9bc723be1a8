"""Text: JSON lines with a text column, or files that are a document each; either as it is, or .gz, .bz2, .xz, .zst, .zstd.

    books.jsonl --byte ranges--> lines -->| one document each
    books.jsonl.zst --whole-----> lines -->|
    *.txt, *.md.gz --runs of files-------->|

Cutting seeks to where partitions begin and reads a line's end there, not the file: it may have 10 TB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from motet.core.errors import UserError
from motet.pipeline.corpus import files, tree
from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.patterns import listed
from motet.pipeline.corpus.sources import jsonl
from motet.pipeline.corpus.sources.media import Media
from motet.pipeline.corpus.sources.sample import MAX_FILE, Cut, Note, RawSample, Version, reject, string
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.dataset.rejects import Reject
from motet.tokenizers.contract import BadSample
from motet.tokenizers.media import utf16

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition

WHOLE = (".txt", ".text", ".md", ".markdown")
LINES = (".jsonl", ".ndjson", ".json")
USES = ("column", "language", "root")
INSTEAD = {"columns": "name the one field that is the document as `column`"}

ARCHIVE = r"\.(tar(\.\w+)?|tgz|tbz2|txz|zip|7z|rar)$"


def needed(entry: Entry, where: str) -> list[str]:
    """See sources."""
    return ["text"]


def modalities(entry: Entry) -> list[str]:
    """See sources."""
    return ["text"]


def cut(entry: Entry, config: Cutting, where: str, rest: Rest) -> Iterator[Cut]:
    """See sources."""
    if files.is_folder(entry.path):
        root, infos = entry.path, {}
        for name, info in tree.walk(root, rest, entry.root).items():
            if _whole_or_lines(name) is not None:
                infos[name] = info
            else:
                why = f"text is {', '.join(WHOLE + LINES)}, each also compressed"
                cure = "name them by a pattern as the path of an entry of their own, if they are text"
                rest.add("file", files.ending_of(name), files.printable(name), why, cure, size=info.size)
    else:
        root, infos = listed(entry.path)
        if archive := next((name for name in infos if re.search(ARCHIVE, name, re.I)), None):
            raise UserError(
                f"{where}: path: {files.join(root, archive)} is an archive, not text; unpack it, or read a .tar with format webdataset"
            )
    versions = [(name, (files.printable(name), info.size, info.version)) for name, info in infos.items()]
    for whole, group in groupby(versions, key=lambda found: _is_whole(root, *found)):
        if whole:
            yield from runs(root, list(group), config.partition_samples, config.partition_bytes)
            continue
        for name, own in group:
            path, size = files.join(root, name), own[1]
            if jsonl.compression(name) == ".zst" and not files.is_remote(path):
                jsonl.refuse_wide(path, size)
            ends = [0, size] if jsonl.compression(name) else jsonl.cuts(path, size, config.partition_bytes)
            for begin, end in pairwise(ends):
                yield Cut(root=root, span=(path, begin, end), versions=(own,), size=end - begin)


def _whole_or_lines(name: str) -> bool | None:
    """Whether a file is one document (True) or one a line, by its ending in any case; None if that says neither."""
    plain = name.lower().removesuffix(jsonl.compression(name))
    return True if plain.endswith(WHOLE) else False if plain.endswith(LINES) else None


def _is_whole(root: str, name: str, own: Version) -> bool:
    """The same of a file that the path itself names, whatever it is called: then its first bytes say whether it is JSON lines."""
    known = _whole_or_lines(name)
    if known is not None or jsonl.compression(name):
        return bool(known)
    begin = files.read(files.join(root, name), 0, min(own[1], 64)).removeprefix(b"\xef\xbb\xbf").lstrip()
    return not begin.startswith(b"{")


def runs(root: str, found: list[tuple[str, Version]], samples: int, size: int | None) -> Iterator[Cut]:
    """Runs of files: at most `samples` of them, and at most `size` bytes, if that matters, unless one alone is larger."""
    begin = total = 0

    def cut_off(end: int) -> Cut:
        names, versions = zip(*found[begin:end], strict=True)
        return Cut(root=root, files=names, versions=versions, size=total)

    for i, (_, (_, own, _)) in enumerate(found):
        if i > begin and (i - begin == samples or (size is not None and total + own > size)):
            yield cut_off(i)
            begin, total = i, 0
        total += own
    if found:
        yield cut_off(len(found))


def read(partition: Partition, note: Note, rest: Rest) -> Iterator[RawSample | Reject]:
    """See sources."""
    if partition.span is None:
        media = Media(partition, note)
        for name in partition.files:
            try:
                yield RawSample(files.printable(name), (("text", _whole(media.read(name), name)),))
            except BadSample as bad:
                yield reject(files.printable(name), bad)
        return
    column = partition.entry.column

    def parts(row: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
        if column not in row:
            raise BadSample("no-text", f"no column '{column}'")
        return (("text", string(row[column], column)),)

    why, cure = f"a document is the field '{column}'", "name it as `column`, or as `language`"
    used = {column, partition.entry.language}
    yield from jsonl.read(partition, note, parts, jsonl.Fields(rest, used, why, cure))


def _whole(data: bytes, name: str) -> bytes:
    if jsonl.compression(name):
        data = _decompressed(data, name)
    if told := utf16(data):
        raise BadSample("invalid-utf8", told)
    return data


def _decompressed(data: bytes, name: str) -> bytes:
    blocks, size = [], 0
    for block in jsonl.decompressed([data], name):
        blocks.append(block)
        size += len(block)
        if size > MAX_FILE:
            raise BadSample("file-too-large", f"{name} decompresses to more than {MAX_FILE} bytes")
    return b"".join(blocks)
