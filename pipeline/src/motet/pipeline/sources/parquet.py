"""Parquet as `datasets` writes it: columns of strings, of bytes, of {bytes, path}; or parallel lists of them.

    file --row groups, cut into row ranges--> rows, a few at a time --`columns`, in their order--> parts of one sample

Lists are interleaved as in OBELICS (arXiv 2306.16527): the lists of a row have equal lengths, and at each place at most one
of them holds something. Where bytes are missing, `path` is read, below the entry's `root`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from motet.pipeline import files
from motet.pipeline.config import Entry, TokenizeConfig
from motet.pipeline.rejects import Reject
from motet.pipeline.sources.media import Media
from motet.pipeline.sources.sample import MAX_FILE, Digest, Note, Piece, RawSample, language_of, reject, string
from motet.tokenizers.configuration import UserError
from motet.tokenizers.contract import BadSample

if TYPE_CHECKING:
    from motet.pipeline.plan import Partition

ROWS = 16
"""Rows decoded at a time: a few pictures or recordings each."""
MOST_ROWS = 1 << 26
"""Of a row group; a damaged file may promise any number."""
GUESSES = {"image": ("image", "img", "picture", "jpg", "png"), "speech": ("audio", "speech", "sound", "wav")}


def needed(entry: Entry, where: str) -> list[str]:
    """See sources."""
    if not entry.columns:
        raise UserError(f"{where}: columns: {_proposal(entry)}")
    return sorted(set(entry.columns.values()))


def modalities(entry: Entry) -> list[str]:
    """See sources."""
    return sorted(set((entry.columns or {}).values()))


def cut(entry: Entry, config: TokenizeConfig, where: str) -> Iterator[Piece]:
    """See sources. A partition lies in one row group, whose bytes are read whole."""
    if files.is_folder(entry.path):
        raise UserError(f"{where}: path: {entry.path} is a folder; name its files: {entry.path}/*.parquet")
    folder, infos = files.listed(entry.path)
    root = entry.root or folder
    wanted = [*(entry.columns or ()), *([entry.language] if entry.language else ())]
    for name, info in infos.items():
        path = files.join(folder, name)
        own = (files.printable(name), info.size, info.version)
        with files.opened(path) as file:
            try:
                found = pq.ParquetFile(file)
                schema, metadata = found.schema_arrow, found.metadata
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UserError(f"{where}: path: {path} is no Parquet file: {_line(error)}") from None
        for column in wanted:
            if column not in schema.names:
                raise UserError(f"{where}: columns: {path} has no column '{column}': {_proposal(entry)}")
        begin = 0
        for group in range(metadata.num_row_groups):
            rows, size = metadata.row_group(group).num_rows, metadata.row_group(group).total_byte_size
            if not 0 <= rows <= MOST_ROWS:
                raise UserError(f"{where}: path: {path} is no Parquet file: a row group of {rows} rows")
            parts = -(-rows // config.partition_samples)
            for i in range(parts):
                first, last = begin + i * rows // parts, begin + (i + 1) * rows // parts
                yield Piece(root=root, span=(path, first, last), versions=(own,), size=size // parts)
            begin += rows


def read(partition: Partition, note: Note) -> Iterator[RawSample | Reject]:
    """See sources."""
    assert partition.span is not None
    path, begin, end = partition.span
    entry, name, media = partition.entry, partition.versions[0][0], Media(partition, note)
    assert entry.columns
    names = [*entry.columns, *([entry.language] if entry.language else ())]
    number, digest = begin, Digest()
    try:
        with files.opened(path) as file:
            for row in _rows(pq.ParquetFile(file), list(dict.fromkeys(names)), begin, end):
                sample = _sample(f"{name}#{number}", row, entry, media)
                for _, data in sample.parts:
                    digest.update(data)
                number += 1
                yield sample
    except (pa.ArrowException, OSError, ValueError) as error:
        if getattr(error, "errno", None):
            raise  # of the disk, not of the file
        for lost in range(number, end):
            yield reject(f"{name}#{lost}", BadSample("broken-parquet", _line(error)))
    note(name, digest.size, digest.hash)


def _rows(file: pq.ParquetFile, columns: list[str], begin: int, end: int) -> Iterator[dict[str, pa.Scalar]]:
    """The rows from `begin` on, which lie in one row group."""
    at = group = 0
    while at + file.metadata.row_group(group).num_rows <= begin:
        at += file.metadata.row_group(group).num_rows
        group += 1
    for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns):
        for i in range(max(begin - at, 0), min(batch.num_rows, end - at)):
            yield {column: batch.column(column)[i] for column in columns}
        at += batch.num_rows
        if at >= end:
            return
    raise ValueError(f"its row group {group} ends at row {at}, not at {end}")


def _sample(position: str, row: dict[str, pa.Scalar], entry: Entry, media: Media) -> RawSample | Reject:
    """One row as a sample."""
    assert entry.columns
    try:
        values = {column: row[column].as_py() for column in entry.columns}
        lists = {c: v for c, v in values.items() if isinstance(v, list)}
        parts: list[tuple[str, bytes]] = []
        if lists:
            if len({len(value) for value in lists.values()}) > 1:
                lengths = ", ".join(f"{c} {len(v)}" for c, v in lists.items())
                raise BadSample("uneven-lists", f"lists of one row have the same length; these have {lengths}")
            for place in range(len(next(iter(lists.values())))):
                here = {c: v[place] for c, v in lists.items() if not _empty(v[place])}
                if len(here) > 1:
                    raise BadSample("two-at-a-place", f"{' and '.join(here)} both hold something at place {place}")
                parts += [(entry.columns[c], _bytes(v, f"{c}.{place}", media)) for c, v in here.items()]
        else:
            parts = [(entry.columns[c], _bytes(v, c, media)) for c, v in values.items() if not _empty(v)]
        if not parts:
            raise BadSample("no-parts", f"{', '.join(entry.columns)}: nothing in any of them")
        field = entry.language
        language = language_of({field: row[field].as_py()}, field) if field else ""
        return RawSample(position, tuple(parts), language)
    except BadSample as bad:
        return reject(position, bad)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        return reject(position, BadSample("invalid-row", _line(error)))


def _empty(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("bytes") is None and not value.get("path")
    return value is None or value == ""


def _bytes(value: Any, where: str, media: Media) -> bytes:
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        value = data if data is not None else media.read(string(path, f"{where}.path").decode())
    if isinstance(value, str):
        return string(value, where)
    if not isinstance(value, bytes):
        raise BadSample("not-bytes", f"{where} is a {type(value).__name__}, neither text nor bytes")
    if len(value) > MAX_FILE:
        raise BadSample("file-too-large", f"{where}: {len(value)} bytes")
    return value


def _proposal(entry: Entry) -> str:
    """What the columns are, and a guess that can be pasted."""
    found = files.expand(entry.path)
    try:
        with files.opened(found[0]) as file:
            schema = pq.ParquetFile(file).schema_arrow
    except (IndexError, OSError, pa.ArrowException) as error:
        return (
            f"say which columns are what, as {{caption: text, image: image}}; the file cannot be read: {_line(error)}"
        )
    guess = {}
    for field in schema:
        inner = (
            field.type.value_type if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) else field.type
        )
        if pa.types.is_string(inner) or pa.types.is_large_string(inner):
            guess[field.name] = "text"
        elif pa.types.is_struct(inner) or pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
            named = (m for m, words in GUESSES.items() if any(word in field.name.lower() for word in words))
            guess[field.name] = next(named, "image")
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)
    pasted = ", ".join(f"{c}: {m}" for c, m in guess.items())
    return f"say which columns are what, in reading order, perhaps {{{pasted}}}; there are {there}"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
