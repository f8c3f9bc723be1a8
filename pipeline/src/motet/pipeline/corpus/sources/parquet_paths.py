"""Media that rows of a Parquet file name by path: a partition's key has their versions, as it has those that JSON lines name.

    footer --no null among the `bytes` of a row group--> nothing to look for
           --otherwise the leaves `path` alone--> (row, name) in order --`Named.upto`, a range of rows at a time--> versions

Bytes are never read for it. Where only some rows have bytes, the paths of those that have are asked for too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from motet.pipeline.corpus import files
from motet.pipeline.corpus.sources.jsonl import version
from motet.pipeline.corpus.sources.media import below
from motet.pipeline.corpus.sources.sample import Version
from motet.pipeline.corpus.sources.values import BINARY, URL, is_empty

WEB = re.compile(r"https?://")
LIST = re.compile(r"(\w+\.)?(element|item|array)")
"""What follows a column's name in the path of its leaf, if it is a list of plain values."""
ROWS = 4096
"""Whose paths are read at a time."""


class Named:
    """The media that the rows of a file name, in their order."""

    def __init__(
        self, path: str, size: int, columns: dict[str, str], root: str, look: Callable[[str], files.Info | None]
    ) -> None:
        self._names = _names(path, size, columns, bool(WEB.match(root)))
        self._root, self._look = root, look
        self._next = next(self._names, None)

    def upto(self, end: int) -> tuple[Version, ...]:
        """The versions of what the rows name that follow those told before, up to the row `end`."""
        found: dict[str, Version] = {}
        while self._next is not None and self._next[0] < end:
            name = below(self._next[1], self._root)
            if name not in found:
                found[name] = version(name, self._look)
            self._next = next(self._names, None)
        return tuple(found.values())


def _names(path: str, size: int, columns: dict[str, str], web: bool) -> Iterator[tuple[int, str]]:
    """(row, name). A file that breaks names nothing from there on: its rows will be rejects."""
    with files.opened(path, size) as file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            leaves = _leaves(parquet, columns)
            row = 0
            for group in range(parquet.num_row_groups):
                described = parquet.metadata.row_group(group)
                wanted = [leaf for leaf, beside in leaves.items() if _wanted(described, beside, web)]
                at = row
                if wanted:
                    for batch in parquet.iter_batches(ROWS, row_groups=[group], columns=wanted, use_threads=False):
                        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                            yield from ((at, name) for value in values for name in _strings(value))
                            at += 1
                row += described.num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
                raise


def _leaves(parquet: pq.ParquetFile, columns: dict[str, str]) -> dict[str, list[int]]:
    """Every leaf that names files: of strings of pictures or sound, with none; `path` of a struct, with the leaves beside it that hold bytes: `bytes`, or whatever is no string."""
    schema = parquet.schema
    all_of = [schema.column(i) for i in range(len(schema))]
    found: dict[str, list[int]] = {}
    for leaf in all_of:
        column, _, inner = leaf.path.partition(".")
        if column not in columns or leaf.logical_type.type != "STRING":
            continue
        if columns[column] in BINARY and (not inner or LIST.fullmatch(inner)):
            found[leaf.path] = []
        if inner != "path" and not inner.endswith(".path"):
            continue
        stem = leaf.path[: -len("path")]
        beside = {
            other.path[len(stem) :]: i
            for i, other in enumerate(all_of)
            if other.path.startswith(stem)
            and other.physical_type == "BYTE_ARRAY"
            and other.logical_type.type != "STRING"
        }
        found[leaf.path] = [beside["bytes"]] if "bytes" in beside else list(beside.values())
    return found


def _wanted(group: pq.RowGroupMetaData, beside: list[int], web: bool) -> bool:
    """Whether paths of a row group may be read: not all of its values have bytes.

    On the web every file is a request. There, paths count only where no value has bytes.
    """
    for i in beside:
        chunk = group.column(i)
        told = chunk.statistics if chunk.is_stats_set else None
        nulls = told.null_count if told is not None and told.has_null_count else None
        if nulls == 0 or (web and nulls != chunk.num_values):
            return False
    return True


def _strings(value: Any) -> Iterator[str]:
    """The paths in what is left of a column when only its leaf `path` is read."""
    if isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, str) and not is_empty(value) and not URL.match(value):
        yield value
