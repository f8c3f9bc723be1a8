"""The part of a manifest that training needs, as one Arrow file that maps: it opens as fast for 10^9 documents as for 10^3.

    Manifest --`to_bytes`--> OUT/index.arrow: a row a shard, lists of its record batches; seal --`Index.open`--> numpy views

A record batch is known by where its message lies in its file, its hash and its documents, so that a reader fetches, checks
and parses it alone: no footer, no other request. The file is an Arrow stream with 16 bytes behind it, the xxh3-128 of all
before, which is checked before Arrow reads anything. A dataset without it is read from its manifest.

Letters: F shards, K record batches of all of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from motet.core.errors import UserError, one_line
from motet.pipeline.dataset import messages
from motet.pipeline.dataset.header import ShardHeader
from motet.pipeline.dataset.manifest import SHARD, Manifest
from motet.pipeline.dataset.store import Folder, Store, store_of
from motet.tokenizers.contract import TokenizerSpec

FORMAT_VERSION = 1
NAME = "index.arrow"
SEAL = 16
METADATA_KEY = b"motet"


def _lists(type_: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", type_, nullable=False))


SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("source", pa.int16(), nullable=False),
        pa.field("rows", _lists(pa.int32()), nullable=False),
        pa.field("begin", _lists(pa.int64()), nullable=False),
        pa.field("end", _lists(pa.int64()), nullable=False),
        pa.field("hash", _lists(pa.uint64()), nullable=False),
    ]
)


@dataclass(frozen=True)
class Source:
    """One corpus entry of a dataset: its name, what its shards say of themselves, documents, and tokens by modality."""

    name: str
    header: ShardHeader
    documents: int
    tokens: dict[str, int]


@dataclass(frozen=True, eq=False)
class Index:
    """A dataset as training sees it; the arrays are views of the mapped file.

    Attributes:
        store: where the dataset lies. hash: of this index: equal for equal datasets.
        tokenizers: each modality's spec. sources: in the corpus's order.
        file_F: paths below the dataset's place. source_F: int16, index into `sources`.
        shard_K: int32, the shard of each record batch; those of one shard stand together, in order.
        rows_K: int32, documents. begin_K, end_K: int64, where the message lies in its file. hash_K: uint64, its xxh3-64.
    """

    store: Store
    hash: str
    tokenizers: dict[str, TokenizerSpec]
    sources: tuple[Source, ...]
    file_F: pa.StringArray
    source_F: np.ndarray
    shard_K: np.ndarray
    rows_K: np.ndarray
    begin_K: np.ndarray
    end_K: np.ndarray
    hash_K: np.ndarray

    @classmethod
    def open(cls, place: str | Path) -> Index:
        """The index of the dataset at a folder or URI; UserError if there is no dataset, or the file is damaged."""
        store = store_of(place)
        try:
            if isinstance(store, Folder):
                data = pa.memory_map(str(store.path / NAME)).read_buffer()
            else:
                data = pa.py_buffer(store.read(NAME))
        except FileNotFoundError:
            data = pa.py_buffer(to_bytes(Manifest.load(place)))
        except OSError as error:
            raise UserError(f"{place}: {NAME} cannot be read: {error.strerror or error}") from None
        return cls.of(data, store)

    @classmethod
    def of(cls, data: pa.Buffer, store: Store) -> Index:
        """Inverse of `to_bytes`."""
        where = f"{store}: {NAME}"
        view = memoryview(data)
        digest = xxhash.xxh3_128(view[:-SEAL])
        if len(view) < SEAL or digest.digest() != bytes(view[-SEAL:]):
            raise UserError(f"{where}: is damaged; delete it, and the same `motet tokenize` writes it again")
        try:
            told, batch = _read(data)
            specs = {m: TokenizerSpec.from_json(spec) for m, spec in told["tokenizers"].items()}
            sources = []
            for source in told["sources"]:
                table = tuple(source["table"])
                header = ShardHeader(table, {m: specs[m] for m in table}, "")
                sources.append(Source(source["name"], header, source["documents"], source["tokens"]))
            _check(batch, sources)
        except (EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise UserError(
                f"{where}: is wrong inside: {one_line(error)}; delete it, and the same `motet tokenize` writes it again"
            ) from None
        batches_F = np.diff(batch.column("rows").offsets.to_numpy())
        shard_K = np.repeat(np.arange(len(batches_F), dtype=np.int32), batches_F)
        columns = {name: batch.column(name).values.to_numpy() for name in ("rows", "begin", "end", "hash")}
        return cls(
            store=store,
            hash=digest.hexdigest(),
            tokenizers=specs,
            sources=tuple(sources),
            file_F=batch.column("file"),
            source_F=batch.column("source").to_numpy(),
            shard_K=shard_K,
            **{f"{name}_K": column for name, column in columns.items()},
        )


def _read(data: pa.Buffer) -> tuple[dict[str, Any], pa.RecordBatch]:
    """What the schema tells, and the one record batch."""
    with pa.BufferReader(data) as file:
        messages_of = pa.ipc.MessageReader.open_stream(file)
        schema = pa.ipc.read_schema(messages_of.read_next_message())
        told = json.loads((schema.metadata or {})[METADATA_KEY])
        if told["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {told['format_version']}; this motet reads {FORMAT_VERSION}")
        if not schema.equals(SCHEMA):
            raise ValueError("its columns are not those of this format")
        return told, pa.ipc.read_record_batch(messages.uncompressed(messages_of.read_next_message()), schema)


def _check(batch: pa.RecordBatch, sources: Sequence[Source]) -> None:
    """ValueError unless places, rows and names are such as can be: readers follow them."""
    batch.validate(full=True)
    lists = [batch.column(name) for name in ("rows", "begin", "end", "hash")]
    if any(column.null_count for column in (*batch.columns, *(column.values for column in lists))):
        raise ValueError("values are missing")
    if any(
        not column.offsets.equals(lists[0].offsets) or len(column.values) != len(lists[0].values) for column in lists
    ):
        raise ValueError("a shard has not as many places as record batches")
    source_F, rows_K, begin_K, end_K = (c.to_numpy() for c in (batch.column("source"), *(c.values for c in lists[:3])))
    if ((source_F < 0) | (source_F >= len(sources))).any():
        raise ValueError("a shard of a source that it does not name")
    if (rows_K < 1).any() or (begin_K < 0).any() or (end_K <= begin_K).any():
        raise ValueError("a record batch without documents or bytes")
    if not pc.all(pc.match_substring_regex(batch.column("file"), f"^{SHARD}$"), min_count=0).as_py():
        raise ValueError("a shard outside of shards")


def whole(store: Store) -> bool:
    """Whether the place has an index, and its bytes are what was written."""
    try:
        Index.of(pa.py_buffer(store.read(NAME)), store)
    except (FileNotFoundError, UserError):
        return False
    return True


def write(manifest: Manifest) -> None:
    """Write the index where the manifest's dataset lies; before the manifest, which says that all is there."""
    manifest.store.write(NAME, to_bytes(manifest))


def to_bytes(manifest: Manifest) -> bytes:
    """The index of a manifest: equal manifests give equal bytes."""
    entries = [entry for entry in manifest.shards if entry.file]  # none where all was rejected
    number = {name: i for i, name in enumerate(manifest.sources)}
    documents: Counter[str] = Counter()
    tokens: dict[str, Counter[str]] = {name: Counter() for name in manifest.sources}
    for entry in entries:
        documents[entry.source] += entry.rows
        tokens[entry.source].update(entry.tokens)

    columns = {
        "file": [entry.file for entry in entries],
        "source": [number[entry.source] for entry in entries],
        "rows": [entry.batch_rows for entry in entries],
        "begin": [entry.batch_offsets[:-1] for entry in entries],
        "end": [entry.batch_offsets[1:] for entry in entries],
        "hash": [[int(h, 16) for h in entry.batch_hashes] for entry in entries],
    }
    told = {
        "format_version": FORMAT_VERSION,
        "tokenizers": {m: spec.to_json() for m, spec in sorted(manifest.tokenizers.items())},
        "sources": [
            {
                "name": name,
                "table": manifest.tables[name],
                "documents": documents[name],
                "tokens": dict(sorted(tokens[name].items())),
            }
            for name in manifest.sources
        ],
    }
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(told, sort_keys=True).encode()})
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    body = sink.getvalue().to_pybytes()
    return body + xxhash.xxh3_128_digest(body)
