"""Document shard, format version 1: one uncompressed Arrow IPC file of documents, memory-mapped when read.

    documents -> `ShardWriter` -> bytes on disk + a `ShardSummary` for the manifest -> `Shard` (checked, zero-copy)

A document is a list of spans; a span is a run of one modality's tokens as its tokenizer gave them. All discrete ids
of a document stand in one list `tokens` in reading order, all latents in one list `latents`; `span_end` counts both
kinds (a latent vector is one token). Nothing that differs between machines (paths, times, hosts) is written, so equal
documents give equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash

from motet.pipeline.dataset import invariants, messages
from motet.pipeline.dataset.header import DamagedShard, ShardHeader
from motet.tokenizers.contract import Tokens

ROWS_PER_BATCH = 512
WRONG = "another tool, or somebody, wrote it so; delete the file, and the same `motet tokenize` writes a sound one"
CURE = "delete the file, and the same `motet tokenize` writes it again"


@dataclass(frozen=True)
class Document:
    """One sample's tokens: `spans` are (modality, tokens) in reading order; `sample_id` is 16 bytes (see sample_id).

    `language`, where the source tells it, is counted while a shard is written; it is not stored in the shard.
    """

    sample_id: bytes
    source: str
    spans: tuple[tuple[str, Tokens], ...]
    language: str = ""


def sample_id(source: str, position: str, content: Sequence[bytes]) -> bytes:
    """16 bytes: xxh3-64 of the content, then xxh3-64 of source name and position.

    The content comes first and alone, so that equal samples share eight bytes wherever they stand: held-out splits and
    duplicate counts need only this column.
    """
    state = xxhash.xxh3_64()
    for part in content:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    where = xxhash.xxh3_64_digest(source.encode() + b"\0" + position.encode())
    return state.digest() + where


def record_batch(documents: Sequence[Document], header: ShardHeader, sources: Sequence[str]) -> pa.RecordBatch:
    """Documents as one Arrow record batch; `sources` is the file's whole dictionary of source names."""
    schema = header.schema()
    index = {m: i for i, m in enumerate(header.modalities)}
    ids: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    ends: list[int] = []
    modalities: list[int] = []
    shapes: list[int] = []
    id_ends, shape_ends, span_ends, vector_ends = [0], [0], [0], [0]
    for document in documents:
        at = discrete = continuous = 0
        for modality, tokens in document.spans:
            at += len(tokens)
            ends.append(at)
            modalities.append(index[modality])
            shapes.extend(tokens.shape)
            shape_ends.append(len(shapes))
            if tokens.ids is not None:
                ids.append(tokens.ids)
                discrete += len(tokens.ids)
            if tokens.latents is not None:
                vectors.append(tokens.latents)
                continuous += len(tokens.latents)
        span_ends.append(len(ends))
        id_ends.append(id_ends[-1] + discrete)
        vector_ends.append(vector_ends[-1] + continuous)

    def lists(name: str, offsets: Sequence[int], values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=schema.field(name).type)

    token = schema.field("tokens").type.value_type
    flat = np.concatenate(
        ids or [np.empty(0, np.int32)], dtype=str(token), casting="unsafe"
    )  # checked against the codebooks
    shape = pa.ListArray.from_arrays(
        pa.array(shape_ends, pa.int32()), pa.array(shapes, pa.int32()), type=schema.field("span_shape").type.value_type
    )
    name_index = {s: i for i, s in enumerate(sources)}
    columns = {
        "sample_id": pa.array([d.sample_id for d in documents], pa.binary(16)),
        "tokens": lists("tokens", id_ends, pa.array(flat)),
        "span_end": lists("span_end", span_ends, pa.array(ends, pa.int32())),
        "span_modality": lists("span_modality", span_ends, pa.array(modalities, pa.uint8())),
        "span_shape": lists("span_shape", span_ends, shape),
        "source": pa.DictionaryArray.from_arrays(
            pa.array([name_index[d.source] for d in documents], pa.int16()), pa.array(list(sources), pa.utf8())
        ),
    }
    if header.latent_dim:
        width = header.latent_dim
        halves = np.concatenate(vectors).reshape(-1) if vectors else np.empty(0, np.float16)
        vector_type = schema.field("latents").type.value_type
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(halves.astype(np.float16)), type=vector_type)
        assert len(fixed) * width == len(halves)
        columns["latents"] = lists("latents", vector_ends, fixed)
    return pa.RecordBatch.from_arrays([columns[f.name] for f in schema], schema=schema)


@dataclass(frozen=True)
class ShardSummary:
    """What the writer knows of the bytes that it wrote: xxh3-128 of the file, xxh3-64 of every record batch's message.

    Messages lie one after another: message i is [batch_offsets[i], batch_offsets[i + 1]) of the file.
    """

    rows: int
    bytes: int
    hash: str
    batch_hashes: tuple[str, ...]
    batch_rows: tuple[int, ...]
    batch_offsets: tuple[int, ...]


class Batches(Protocol):
    """What is known of the record batches of a file: a `ShardSummary`, or the manifest's entry."""

    @property
    def batch_hashes(self) -> tuple[str, ...]:
        """xxh3-64 of each message."""

    @property
    def batch_offsets(self) -> tuple[int, ...]:
        """Where each message begins, and where the last one ends."""

    @property
    def batch_rows(self) -> tuple[int, ...]:
        """Documents in each."""


class ShardWriter:
    """Writes documents into one file; memory stays at one record batch."""

    def __init__(self, path: Path, header: ShardHeader, sources: Sequence[str]):
        self._path, self._header, self._sources = path, header, tuple(sources)
        self._file = _HashingFile(path)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), header.schema())
        self._pending: list[Document] = []
        self._hashes: list[str] = []
        self._rows: list[int] = []
        self._offsets = [0]

    def write(self, document: Document) -> None:
        """Add one document."""
        self._pending.append(document)
        if len(self._pending) == ROWS_PER_BATCH:
            self._flush()

    def close(self) -> ShardSummary:
        """Finish the file and make it durable."""
        if self._pending:
            self._flush()
        self._writer.close()
        self._file.close()
        return ShardSummary(
            rows=sum(self._rows),
            bytes=self._file.size,
            hash=self._file.hash.hexdigest(),
            batch_hashes=tuple(self._hashes),
            batch_rows=tuple(self._rows),
            batch_offsets=tuple(self._offsets),
        )

    def _flush(self) -> None:
        batch = record_batch(self._pending, self._header, self._sources)
        self._writer.write_batch(batch)  # the first time with the names of the sources before it
        message = batch.serialize()
        self._hashes.append(xxhash.xxh3_64_hexdigest(message))
        self._rows.append(len(self._pending))
        self._offsets[-1:] = [self._file.size - message.size, self._file.size]
        self._pending = []


class _HashingFile:
    """A file that hashes what is written to it, so that the hash never needs a second read."""

    def __init__(self, path: Path):
        self._raw = open(path, "wb")  # noqa: SIM115 (closed by close)
        self.hash, self.size, self.closed = xxhash.xxh3_128(), 0, False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.hash.update(view)
        self.size += view.nbytes
        return self._raw.write(view)

    def flush(self) -> None:
        self._raw.flush()

    def close(self) -> None:
        if not self.closed:
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            self.closed = True

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


class Shard:
    """A memory-mapped shard. Record batches are checked against the manifest's hashes when first touched.

    With `file_hash` the whole file is checked before any of it is parsed: Arrow trusts the lengths and types that stand
    beside the data, so a flipped bit among them could give wrong tokens, or end the process.
    """

    def __init__(
        self,
        path: Path,
        batches: Batches | None = None,
        file_hash: str | None = None,
        name: str | None = None,
    ):
        self.path = name or str(path)
        try:
            whole = pa.memory_map(str(path)).read_buffer()
            self._whole = whole
            if file_hash is not None and xxhash.xxh3_128_hexdigest(whole) != file_hash:
                raise DamagedShard(f"{self.path}: is damaged: its bytes are not what was written; {CURE}")
            self._file = pa.ipc.open_file(whole)
            names, self._blocks = messages.blocks(whole)
            for begin, end in names:  # the sources', read with the first record batch
                messages.plain(whole[begin:end])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DamagedShard(f"{self.path}: not a readable shard: {error}; {CURE}") from None
        self.header = ShardHeader.of(self._file.schema, self.path)
        if not self._file.schema.equals(self.header.schema()):
            raise DamagedShard(f"{self.path}: its columns are not those that its header asks for; {CURE}")
        self._told = batches if file_hash is None else None  # each byte is hashed once
        if batches is not None and len(batches.batch_hashes) != self._file.num_record_batches:
            told = len(batches.batch_hashes)
            raise DamagedShard(f"{self.path}: {self._file.num_record_batches} record batches, the manifest has {told}")
        self._rows = batches.batch_rows if batches is not None else None
        if batches is not None and self._blocks != list(pairwise(batches.batch_offsets)):
            raise DamagedShard(f"{self.path}: its record batches do not lie where the manifest says; {WRONG}")
        self._batches: dict[int, tuple[pa.RecordBatch, invariants.Spans]] = {}

    @property
    def num_batches(self) -> int:
        """How many record batches the file holds."""
        return self._file.num_record_batches

    def batch(self, i: int) -> pa.RecordBatch:
        """Record batch `i`, zero-copy; DamagedShard if it is not what was written, or not sound."""
        if i not in self._batches:
            begin, end = self._blocks[i]
            message = self._whole[begin:end]
            if self._told is not None and xxhash.xxh3_64_hexdigest(message) != self._told.batch_hashes[i]:
                raise DamagedShard(
                    f"{self.path}: record batch {i} is damaged: its bytes are not what was written; {CURE}"
                )
            try:
                messages.plain(message)
                batch = self._file.get_batch(i)
                invariants.within(batch, self._whole)
                rows = batch.num_rows if self._rows is None else self._rows[i]
                self._batches[i] = batch, invariants.check(batch, rows, self.header)
            except (OSError, ValueError, pa.ArrowException, invariants.Broken) as error:
                raise DamagedShard(f"{self.path}: record batch {i} is wrong inside: {error}; {WRONG}") from None
        return self._batches[i][0]

    def spans(self, i: int) -> invariants.Spans:
        """The spans of record batch `i`."""
        self.batch(i)
        return self._batches[i][1]

    def documents(self) -> Iterator[Document]:
        """All documents in order; token arrays are views of the mapped file."""
        for i in range(self.num_batches):
            batch = self.batch(i)
            for row in range(batch.num_rows):
                yield document_at(batch, row, self.header)


def document_at(batch: pa.RecordBatch, row: int, header: ShardHeader) -> Document:
    """One row of a record batch as a Document; its arrays are views of the batch."""

    def values(name: str) -> pa.Array:
        return batch.column(name)[row].values

    ends = values("span_end").to_numpy()
    modalities = values("span_modality").to_numpy()
    shapes = values("span_shape").to_pylist()
    ids = values("tokens").to_numpy()
    latents = None
    if header.latent_dim:
        vectors = values("latents")
        latents = vectors.flatten().to_numpy().reshape(-1, header.latent_dim)
    spans, begin, at_id, at_latent = [], 0, 0, 0
    for end, code, shape in zip(ends, modalities, shapes, strict=True):
        modality, n = header.modalities[code], int(end) - begin
        if header.tokenizers[modality].kind == "discrete":
            spans.append((modality, Tokens(tuple(shape), ids=ids[at_id : at_id + n])))
            at_id += n
        else:
            assert latents is not None
            spans.append((modality, Tokens(tuple(shape), latents=latents[at_latent : at_latent + n])))
            at_latent += n
        begin = int(end)
    return Document(batch.column("sample_id")[row].as_py(), batch.column("source")[row].as_py(), tuple(spans))
