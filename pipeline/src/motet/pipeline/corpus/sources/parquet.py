"""Parquet as `datasets` writes it: columns of strings, of bytes, of {bytes, path}; lists of them, or parallel lists.

    file --row groups, cut into row ranges--> rows, a few at a time --`columns`, in their order--> parts of one sample

A list is read whole where its column stands. Several are interleaved as in OBELICS (arXiv 2306.16527), where the first of them
stands: the lists of a row have equal lengths, and at each place at most one of them holds something. Where bytes are missing,
`path` is read, below the entry's `root`. `values` says what a value is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from motet.core.errors import UserError, one_line
from motet.pipeline.corpus import files
from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.patterns import listed
from motet.pipeline.corpus.sources.jsonl import version
from motet.pipeline.corpus.sources.media import Media
from motet.pipeline.corpus.sources.parquet_paths import Named
from motet.pipeline.corpus.sources.sample import Cut, Digest, Note, RawSample, Version, language_of, reject
from motet.pipeline.corpus.sources.values import is_empty, value_bytes
from motet.pipeline.dataset.left_out import Rest
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
USES = ("columns", "language", "root")
INSTEAD = {
    "column": "name it under `columns`: {{{entry.column}: text}}",
    "modality": "`columns` says the modality of each",
}
GUESSES = {"image": ("image", "img", "picture", "jpg", "png"), "speech": ("audio", "speech", "sound", "wav")}


def needed(entry: Entry, where: str) -> list[str]:
    """See sources."""
    if not entry.columns:
        raise UserError(f"{where}: columns: {_proposal(entry)}")
    return sorted(set(entry.columns.values()))


def modalities(entry: Entry) -> list[str]:
    """See sources."""
    return sorted(set((entry.columns or {}).values()))


def cut(entry: Entry, config: Cutting, where: str, rest: Rest) -> Iterator[Cut]:
    """See sources. Of a row group only the wanted columns are read, a batch at a time."""
    if files.is_folder(entry.path):
        raise UserError(f"{where}: path: {entry.path} is a folder; name its files: {entry.path}/*.parquet")
    folder, infos = listed(entry.path)
    root = entry.root or folder
    look = files.listing(root)
    wanted = [*(entry.columns or ()), *([entry.language] if entry.language else ())]
    for name, info in infos.items():
        path = files.join(folder, name)
        own = (files.printable(name), info.size, info.version)
        with files.opened(path, info.size) as file:
            found = _opened(file, f"{where}: path: {path}")
            schema, metadata = found.schema_arrow, found.metadata
        for column in wanted:
            if column not in schema.names:
                raise UserError(f"{where}: columns: {path} has no column '{column}': {_proposal(entry)}")
            if schema.names.count(column) > 1:
                raise UserError(
                    f"{where}: columns: {path} has {schema.names.count(column)} columns '{column}', and nothing tells which is "
                    "meant; write the file anew with names of their own"
                )
        _left_out(metadata, set(wanted), own[0], rest)
        named = Named(path, info.size, entry.columns or {}, root, look)
        for first, last, size in _cuts(metadata, wanted, entry, config, f"{where}: path: {path}"):
            media = named.upto(last)
            yield Cut(root=root, span=(path, first, last), versions=(own, *media), size=size + _size(media))


def _opened(file: Any, where: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{where} is no Parquet file: {one_line(error)}") from None


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


def named_rows(
    path: str,
    own: Version,
    root: str,
    config: Cutting,
    named: Callable[[dict[str, Any]], list[str]],
    look: Callable[[str], files.Info | None],
    where: str,
) -> Iterator[Cut]:
    """Ranges of the rows of a file that name media, as `jsonl.rows` cuts them."""
    with files.opened(path, own[1]) as file:
        _opened(file, f"{where}: path: {path}")
    begin = end = 0
    media: dict[str, Version] = {}
    for number, row in rows_between(path, own[1], 0, None, None):
        if number - begin == config.partition_samples:
            yield Cut(
                root=root, span=(path, begin, number), versions=(own, *media.values()), size=_size(media.values())
            )
            begin, media = number, {}
        try:
            names = named(row) if isinstance(row, dict) else []
        except BadSample:
            names = []  # the row will be rejected when it is read
        media.update((name, version(name, look)) for name in names if name not in media)
        end = number + 1
    if end > begin:
        yield Cut(root=root, span=(path, begin, end), versions=(own, *media.values()), size=_size(media.values()))


def _size(media: Iterable[Version]) -> int:
    return sum(max(size, 0) for _, size, _ in media)


def _left_out(metadata: pq.FileMetaData, wanted: set[str], name: str, rest: Rest) -> None:
    """Tell of the columns that are not read, from the footer alone."""
    sizes: dict[str, int] = {}
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for chunk in (group.column(c) for c in range(group.num_columns)):
            column = chunk.path_in_schema.split(".", 1)[0]
            sizes[column] = sizes.get(column, 0) + max(chunk.total_compressed_size, 0)
    for column, size in sizes.items():
        if column not in wanted:
            kind, cure = f"column '{column[:64]}'", f"add it to `columns`, with its modality: {column[:64]}: text"
            rest.add("column", kind, name, "`columns` does not name it", cure, metadata.num_rows, size)


def read(partition: Partition, note: Note, rest: Rest) -> Iterator[RawSample | Reject]:
    """See sources."""
    assert partition.span is not None
    path, begin, end = partition.span
    entry, (name, size, _), media, digest = partition.entry, partition.versions[0], Media(partition, note), Digest()
    columns = list(dict.fromkeys([*(entry.columns or ()), *([entry.language] if entry.language else ())]))
    for number, row in rows_between(path, size, begin, end, columns):
        position = f"{name}#{number}"
        sample = reject(position, row) if isinstance(row, BadSample) else _sample(position, row, entry, media)
        if isinstance(sample, RawSample):
            for _, data in sample.parts:
                digest.update(data)
        yield sample
    note(name, digest.size, digest.hash)


def rows_between(
    path: str, size: int, begin: int, end: int | None, columns: list[str] | None
) -> Iterator[tuple[int, dict[str, Any] | BadSample]]:
    """(number, row) of the rows from `begin` to `end`; BadSample in place of each that the file's damage costs."""
    number = begin
    with files.opened(path, size) as file:
        try:
            buffer = files.REMOTE_BLOCK if files.is_remote(path) else BUFFER
            parquet = pq.ParquetFile(file, buffer_size=buffer, pre_buffer=False)
            ends = list(accumulate(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)))
            columns = columns if columns is not None else list(parquet.schema_arrow.names)
        except (pa.ArrowException, OSError, ValueError) as error:
            _of_the_file(error)
            yield from ((lost, BadSample("broken-parquet", one_line(error))) for lost in range(begin, end or begin))
            return
        end = end if end is not None else (ends or [0])[-1]
        for group, last in enumerate(ends):
            if last <= begin or number >= end:
                continue
            try:
                start = last - parquet.metadata.row_group(group).num_rows
                for row in _rows(parquet, group, columns or [], number - start, min(last, end) - start):
                    number += 1
                    yield number - 1, row
            except (pa.ArrowException, OSError, ValueError) as error:
                _of_the_file(error)
                for lost in range(number, min(last, end)):
                    yield lost, BadSample("broken-parquet", one_line(error))
                number = min(last, end)


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
        for column, value in values.items():
            if column not in lists:
                if not is_empty(value):
                    parts.append((entry.columns[column], value_bytes(value, column, media, entry.columns[column])))
            elif len(lists) == 1:
                parts += [
                    (entry.columns[column], value_bytes(each, f"{column}.{place}", media, entry.columns[column]))
                    for place, each in enumerate(value)
                    if not is_empty(each)
                ]
            elif column == next(iter(lists)):
                parts += _interleaved(lists, entry.columns, media)
        if not parts:
            raise BadSample("no-parts", f"{', '.join(entry.columns)}: nothing in any of them")
        return RawSample(position, tuple(parts), language_of(row, entry.language))
    except BadSample as bad:
        return reject(position, bad)


def _interleaved(lists: dict[str, list[Any]], columns: dict[str, str], media: Media) -> Iterator[tuple[str, bytes]]:
    """The parts of the parallel lists of a row."""
    if len({len(value) for value in lists.values()}) > 1:
        lengths = ", ".join(f"{c} {len(v)}" for c, v in lists.items())
        raise BadSample("uneven-lists", f"several lists of one row have the same length; these have {lengths}")
    for place in range(len(next(iter(lists.values())))):
        here = {c: v[place] for c, v in lists.items() if not is_empty(v[place])}
        if len(here) > 1:
            raise BadSample("two-at-a-place", f"{' and '.join(here)} both hold something at place {place}")
        for column, value in here.items():
            yield columns[column], value_bytes(value, f"{column}.{place}", media, columns[column])


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
