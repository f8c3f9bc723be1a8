"""What holds inside every record batch of a shard, whoever wrote it: checked once, here, for training, `view` and `verify`.

    a message --`parsed`--> pa.RecordBatch, uncompressed, in those bytes --`check`: columns --> offsets --> spans --> values--> `Spans`
                                                                              Broken: what is wrong, in words

A hash tells that the bytes are what somebody wrote, not that they make sense. Compiled loops follow offsets, span ends and
shapes by address, and embeddings are indexed by ids: what does not hold here would end a process, or train on nonsense.
Nothing is done per document or token in Python; ids and latents are gone through once.

Letters: D documents, S spans, T ids, V latents, K codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from motet.pipeline.dataset import messages

if TYPE_CHECKING:
    from motet.pipeline.dataset.header import ShardHeader

ALIGNED = 8
"""Bytes that every buffer of a message begins at a multiple of; it may be padded to a multiple of 64."""


class Broken(Exception):
    """A record batch whose columns contradict one another, or what its header says."""


@dataclass(frozen=True)
class Spans:
    """The spans of a record batch.

    Attributes:
        begin_D1: int64; the first span of each document, and their end.
        length_S: int64, tokens. modality_S: uint8. discrete_S: whether it has ids.
    """

    begin_D1: np.ndarray
    length_S: np.ndarray
    modality_S: np.ndarray
    discrete_S: np.ndarray


def parsed(message: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """The record batch of a message; Broken if it is none of this schema, or of anything but these bytes."""
    try:
        batch = pa.ipc.read_record_batch(messages.plain(message), schema)
    except (EOFError, OSError, ValueError, pa.ArrowException) as error:
        raise Broken(str(error)) from None
    within(batch, message)
    return batch


def within(batch: pa.RecordBatch, data: pa.Buffer) -> None:
    """Broken unless all that the record batch points to lies in `data`, where its hash was taken of it."""
    begin, end = data.address, data.address + data.size
    for column in batch.columns:
        names = column.dictionary.buffers() if isinstance(column, pa.DictionaryArray) else []
        for buffer in (*column.buffers(), *names):
            if buffer is None or not buffer.size:
                continue
            if not begin <= buffer.address <= end - buffer.size:
                raise Broken("it points out of the file")
            if buffer.address % ALIGNED:
                raise Broken("columns begin at odd addresses")


def check(batch: pa.RecordBatch, rows: int, header: ShardHeader) -> Spans:
    """Broken unless a record batch is a sound one of `rows` documents of shards with this header."""
    if not rows or batch.num_rows != rows:
        raise Broken(f"{batch.num_rows} documents, {rows} are expected")
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            raise Broken(f"{name}: {error}") from None
        if len(column) != rows:
            raise Broken(f"{name}: {len(column)} values for {rows} documents")
        _columns(name, column)
    spans = _spans(batch, header)
    _ids(batch.column("tokens"), spans, header)
    if header.latent_dim:
        bits_X = batch.column("latents").values.flatten().to_numpy().view(np.uint16)
        if len(bits_X) and int((bits_X & 0x7FFF).max()) >= 0x7C00:  # the exponent of infinities and NaN
            raise Broken("latents: one is not a finite number")
    return spans


def _columns(name: str, column: pa.Array) -> None:
    """Nothing is missing in it, its lists lie one after another without a gap, its values are as wide as the schema says."""
    if column.null_count:
        raise Broken(f"{name}: {column.null_count} values are missing")
    if pa.types.is_list(column.type):
        used = (column.offsets[0].as_py(), column.offsets[-1].as_py()) if len(column) else (0, 0)
        if used != (0, len(column.values)):
            raise Broken(f"{name}: its lists are not all of its values")
        _columns(name, column.values)
    elif pa.types.is_fixed_size_list(column.type):
        if len(column.values) != len(column) * column.type.list_size:
            raise Broken(f"{name}: vectors of another width than {column.type.list_size}")
        _columns(name, column.values)
    elif isinstance(column, pa.DictionaryArray):
        _columns(name, column.indices)
    else:
        buffer = column.buffers()[-1]
        size, needed = buffer.size if buffer else 0, len(column) * column.type.bit_width // 8
        if size >= needed + 64:
            raise Broken(f"{name}: {size} bytes for {len(column)} values of {column.type}")


def _spans(batch: pa.RecordBatch, header: ShardHeader) -> Spans:
    """Ends, modalities and grids of the spans fit together, and each document has the ids and latents of its spans."""
    column, modalities, shape = (batch.column(name) for name in ("span_end", "span_modality", "span_shape"))
    begin_D1 = column.offsets.to_numpy().astype(np.int64)
    for name, other in (("span_modality", modalities), ("span_shape", shape)):
        if not np.array_equal(other.offsets.to_numpy(), begin_D1):
            raise Broken(f"{name}: a document has another number of spans there than in span_end")
    end_S = column.values.to_numpy().astype(np.int64)
    begin_S = np.concatenate(([0], end_S[:-1]))[: len(end_S)]
    begin_S[begin_D1[:-1][np.diff(begin_D1) > 0]] = 0
    length_S = end_S - begin_S
    if (length_S < 0).any():
        raise Broken("span_end: span ends fall")
    modality_S = modalities.values.to_numpy()
    if (modality_S >= len(header.modalities)).any():
        raise Broken(f"span_modality: a span of modality {modality_S.max()}, which the header does not name")
    _grids(shape.values, length_S)
    discrete_S = np.array([header.tokenizers[m].kind == "discrete" for m in header.modalities], bool)[modality_S]
    for name, kind, mine_S in (("tokens", "ids", discrete_S), ("latents", "latents", ~discrete_S)):
        given_D = np.diff(batch.column(name).offsets.to_numpy()) if name in batch.schema.names else 0
        wanted_D = np.diff(np.concatenate(([0], np.cumsum(length_S * mine_S)))[begin_D1])
        if (given_D != wanted_D).any():
            raise Broken(f"{name}: a document has not as many {kind} as its spans are long")
    return Spans(begin_D1, length_S, modality_S, discrete_S)


def _grids(shape: pa.ListArray, length_S: np.ndarray) -> None:
    """Each span's grid has as many places as the span has tokens."""
    if not len(length_S):
        return
    offset_S1, axis_A = shape.offsets.to_numpy(), shape.values.to_numpy()
    if (np.diff(offset_S1) < 1).any():
        raise Broken("span_shape: a span has no grid")
    if (axis_A < 0).any():
        raise Broken("span_shape: a grid of negative size")
    # exact up to 2^53, and nothing wraps round beyond
    with np.errstate(over="ignore", invalid="ignore"):
        if (np.multiply.reduceat(axis_A.astype(np.float64), offset_S1[:-1]) != length_S).any():
            raise Broken("span_shape: a span's grid is not its number of tokens")


def _ids(column: pa.ListArray, spans: Spans, header: ShardHeader) -> None:
    """Spans are whole frames, and every id lies within its codebook."""
    books_M = [header.tokenizers[m].codebooks for m in header.modalities]
    for code, books in enumerate(books_M):
        if len(books) > 1 and (spans.length_S[spans.modality_S == code] % len(books)).any():
            name = header.modalities[code]
            raise Broken(f"tokens: a span of {name} is not a whole number of frames of {len(books)} codebooks")
    id_T, some_S = column.values.to_numpy(), spans.discrete_S & (spans.length_S > 0)
    if not len(id_T) or int(id_T.max()) < min(min(books) for books in books_M if books):
        return
    length_S, modality_S = spans.length_S[some_S], spans.modality_S[some_S]
    begin_S = np.cumsum(length_S) - length_S
    least_M = np.array([min(books, default=0) for books in books_M])
    suspect_S = np.maximum.reduceat(id_T, begin_S) >= least_M[modality_S]
    for code in np.unique(modality_S[suspect_S]).tolist():  # none, unless codebooks of a modality differ in size
        books = books_M[code]
        id_FK = id_T[np.repeat(suspect_S & (modality_S == code), length_S)].reshape(-1, len(books))
        for k, size in enumerate(books):
            if (top := int(id_FK[:, k].max())) >= size:
                name = header.modalities[code]
                raise Broken(f"tokens: an id of {name}, codebook {k}, is {top}; the codebook has {size}")
