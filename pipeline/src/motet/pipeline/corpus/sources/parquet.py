"""Parquet as `datasets` writes it: columns of strings, of bytes, of {bytes, path}; or parallel lists of them.

    file --row groups, cut into row ranges--> rows, a few at a time --`columns`, in their order--> parts of one sample

Lists are interleaved as in OBELICS (arXiv 2306.16527): the lists of a row have equal lengths, and at each place at most one
of them holds something. Where bytes are missing, `path` is read, below the entry's `root`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from motet.core.errors import UserError, one_line
from motet.pipeline.corpus import files
from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.patterns import listed
from motet.pipeline.corpus.sources.media import Media
from motet.pipeline.corpus.sources.sample import MAX_FILE, Cut, Digest, Note, RawSample, language_of, reject, string
from motet.pipeline.dataset.rejects import Reject
from motet.tokenizers.contract import BadSample

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition

BATCH = 1 << 20
"""Bytes of rows that are decoded at a time, more or less."""
BUFFER = 1 << 20
"""Bytes of a column that are read at a time from a local file: else pyarrow reads all that a row group has at once."""
CUTS = 4
"""Into how many a row group is cut at most: each of them reads it from its start."""
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


def cut(entry: Entry, config: Cutting, where: str) -> Iterator[Cut]:
    """See sources. Of a row group only the wanted columns are read, a batch at a time."""
    if files.is_folder(entry.path):
        raise UserError(f"{where}: path: {entry.path} is a folder; name its files: {entry.path}/*.parquet")
    folder, infos = listed(entry.path)
    root = entry.root or folder
    wanted = [*(entry.columns or ()), *([entry.language] if entry.language else ())]
    for name, info in infos.items():
        path = files.join(folder, name)
        own = (files.printable(name), info.size, info.version)
        with files.opened(path, info.size) as file:
            try:
                found = pq.ParquetFile(file)
                schema, metadata = found.schema_arrow, found.metadata
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UserError(f"{where}: path: {path} is no Parquet file: {one_line(error)}") from None
        for column in wanted:
            if column not in schema.names:
                raise UserError(f"{where}: columns: {path} has no column '{column}': {_proposal(entry)}")
            if schema.names.count(column) > 1:
                raise UserError(
                    f"{where}: columns: {path} has {schema.names.count(column)} columns '{column}', and nothing tells which is "
                    "meant; write the file anew with names of their own"
                )
        for first, last, size in _cuts(metadata, wanted, entry, config, f"{where}: path: {path}"):
            yield Cut(root=root, span=(path, first, last), versions=(own,), size=size)


def _cuts(
    metadata: pq.FileMetaData, wanted: list[str], entry: Entry, config: Cutting, where: str
) -> Iterator[tuple[int, int, int]]:
    """(first row, end row, bytes) of runs of small row groups, and of parts of large ones.

    Text is cut by its bytes, media by samples, as everywhere.
    """

    def parts(rows: int, size: int) -> int:
        if set((entry.columns or {}).values()) <= {"text"}:
            return -(-size // config.partition_bytes)
        return -(-rows // config.partition_samples)

    first = begin = run = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        columns = (group.column(c) for c in range(group.num_columns))
        rows = group.num_rows
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".", 1)[0] in wanted)
        if not 0 <= rows <= MOST_ROWS or size < 0:
            raise UserError(f"{where} is no Parquet file: a row group of {rows} rows and {size} bytes")
        if begin > first and parts(begin + rows - first, run + size) > 1:
            yield first, begin, run
            first, run = begin, 0
        count = min(parts(rows, size), CUTS, rows)
        for part in range(1, count):
            last = begin + part * rows // count
            yield first, last, size // count
            first = last
        run += size if count < 2 else size // count
        begin += rows
    if begin > first:
        yield first, begin, run


def read(partition: Partition, note: Note) -> Iterator[RawSample | Reject]:
    """See sources."""
    assert partition.span is not None
    path, begin, end = partition.span
    entry, name, media = partition.entry, partition.versions[0][0], Media(partition, note)
    columns = list(dict.fromkeys([*(entry.columns or ()), *([entry.language] if entry.language else ())]))
    number, digest = begin, Digest()
    with files.opened(path, partition.versions[0][1]) as file:
        try:
            buffer = files.REMOTE_BLOCK if files.is_remote(path) else BUFFER
            parquet = pq.ParquetFile(file, buffer_size=buffer, pre_buffer=False)
            ends = list(accumulate(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)))
        except (pa.ArrowException, OSError, ValueError) as error:
            _of_the_file(error)
            parquet, ends = None, [end]
        for group, last in enumerate(ends):
            if last <= begin or number >= end:
                continue
            try:
                start = last - parquet.metadata.row_group(group).num_rows if parquet else begin
                for row in _rows(parquet, group, columns, number - start, min(last, end) - start):
                    sample = _sample(f"{name}#{number}", row, entry, media)
                    if isinstance(sample, RawSample):
                        for _, data in sample.parts:
                            digest.update(data)
                    number += 1
                    yield sample
            except (pa.ArrowException, OSError, ValueError) as error:
                _of_the_file(error)
                for lost in range(number, min(last, end)):
                    yield reject(f"{name}#{lost}", BadSample("broken-parquet", one_line(error)))
                number = min(last, end)
    note(name, digest.size, digest.hash)


def _rows(file: pq.ParquetFile, group: int, columns: list[str], begin: int, end: int) -> Iterator[dict[str, Any]]:
    """The rows from `begin` to `end` of a row group, as Python values; BadSample in place of one that cannot be such."""
    described = file.metadata.row_group(group)
    size = max(1, min(1024, BATCH * described.num_rows // max(described.total_byte_size, 1)))
    at = 0
    for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
        part = batch.slice(max(begin - at, 0), max(min(batch.num_rows, end - at) - max(begin - at, 0), 0))
        values = [_values(part.column(column)) for column in columns]
        for row in zip(*values, strict=True):
            yield dict(zip(columns, row, strict=True))
        at += batch.num_rows
        if at >= end:
            return
    raise ValueError(f"row group {group} ends after {at} rows")


def _values(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (UnicodeDecodeError, pa.ArrowException):
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return BadSample("invalid-utf8", str(error))
    except pa.ArrowException as error:
        return BadSample("invalid-row", one_line(error))


def _of_the_file(error: Exception) -> None:
    """Raises it, if it is the disk's or the network's and not what Parquet says of damaged bytes."""
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
        raise error


def _sample(position: str, row: dict[str, Any], entry: Entry, media: Media) -> RawSample | Reject:
    """One row as a sample."""
    assert entry.columns
    try:
        for value in row.values():
            if isinstance(value, BadSample):
                raise value
        values = {column: row[column] for column in entry.columns}
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
        return RawSample(position, tuple(parts), language_of(row, entry.language))
    except BadSample as bad:
        return reject(position, bad)


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
    try:
        folder, infos = listed(entry.path)
        name, info = next(iter(infos.items()))
        with files.opened(files.join(folder, name), info.size) as file:
            schema = pq.ParquetFile(file).schema_arrow
    except (StopIteration, OSError, pa.ArrowException) as error:
        return f"say which columns are what, as {{caption: text, image: image}}; the file cannot be read: {one_line(error)}"
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
