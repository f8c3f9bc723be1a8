"""Documents as a person sees them: decoded back from their tokens into one HTML page that stands alone.

manifest --`spread` | `pick`--> documents (checked) --each modality's tokenizer: decode, dump--> templates/view.html
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from motet.core.errors import UserError
from motet.pipeline.dataset.manifest import Manifest, ShardEntry
from motet.pipeline.dataset.plots import colours
from motet.pipeline.dataset.shard import Document, document_at
from motet.pipeline.dataset.stats_page import environment
from motet.tokenizers.contract import Tokenizer, Tokens

IDS_SHOWN = 64
HEX = 32
"""Hexadecimal digits of a sample id."""


def spread(manifest: Manifest, count: int) -> list[Document]:
    """`count` documents, evenly spread over every source; the same ones each time."""
    sources = [s for s in manifest.sources if any(e.source == s and e.rows for e in manifest.shards)]
    found = []
    for i, source in enumerate(sources):
        entries = [e for e in manifest.shards if e.source == source and e.rows]
        rows = sum(e.rows for e in entries)
        share = min(count // len(sources) + (i < count % len(sources)), rows)
        for n in range(share):
            at = n * rows // share
            for entry in entries:
                if at < entry.rows:
                    break
                at -= entry.rows
            found.append(_document(manifest, entry, at))
    return found


def pick(manifest: Manifest, prefixes: Sequence[str]) -> list[Document]:
    """The documents whose sample ids (hex) begin so; UserError for a beginning that none or several have."""
    wanted = [_digits(prefix) for prefix in prefixes]
    found: list[list[tuple[ShardEntry, int, str]]] = [[] for _ in prefixes]
    nearest = [(-1, "")] * len(prefixes)
    for entry in manifest.shards:
        if not entry.rows:
            continue
        shard, first = manifest.open_shard(entry), 0
        for i in range(shard.num_batches):
            batch = shard.batch(i)
            digit_NH = _sample_digits(batch)
            for p, digit_H in enumerate(wanted):
                same_N = np.cumprod(digit_NH[:, : len(digit_H)] == digit_H, axis=1).sum(axis=1)
                row = int(same_N.argmax())
                nearest[p] = max(nearest[p], (int(same_N[row]), _hex(batch, row)))
                rows = np.flatnonzero(same_N == len(digit_H)).tolist()
                found[p] += [(entry, first + row, _hex(batch, row)) for row in rows]
            first += batch.num_rows
    for prefix, places, (_, near) in zip(prefixes, found, nearest, strict=True):
        if not places:
            hint = f"the nearest is {near}" if near else "the dataset has no documents"
            raise UserError(f"sample {prefix}: no document's id begins so; {hint}")
        if len(places) > 1:
            some = ", ".join(sorted(sample for _, _, sample in places)[:3])
            raise UserError(f"sample {prefix}: {len(places):,} documents' ids begin so ({some}, ...); give more of it")
    return [_document(manifest, entry, row) for ((entry, row, _),) in found]


def page(manifest: Manifest, documents: Sequence[Document], tokenizers: Mapping[str, Tokenizer]) -> str:
    """The page that shows these documents."""
    name = manifest.name
    sources = [
        (source, [{"sample": d.sample_id.hex(), "spans": list(_spans(d, tokenizers))} for d in group])
        for source, group in groupby(documents, lambda d: d.source)
    ]
    return environment.get_template("view.html").render(
        title=f"{name}: documents",
        name=name,
        shown=len(documents),
        documents=manifest.documents,
        sources=sources,
        colours=colours(sorted(manifest.tokenizers)),
    )


def _spans(document: Document, tokenizers: Mapping[str, Tokenizer]) -> Iterator[dict[str, Any]]:
    for modality, tokens in document.spans:
        yield {
            "modality": modality,
            "shape": " × ".join(map(str, tokens.shape)),
            "tokens": len(tokens),
            "ids": None if tokens.ids is None else " ".join(map(str, tokens.ids[:IDS_SHOWN].tolist())),
            "more": tokens.ids is not None and len(tokens) > IDS_SHOWN,
            **_decoded(tokens, tokenizers[modality]),
        }


def _decoded(tokens: Tokens, tokenizer: Tokenizer) -> dict[str, Any]:
    (sample,) = tokenizer.decode([tokens])
    data, media_type = tokenizer.dump(sample), tokenizer.spec.media_type
    kind = media_type.partition("/")[0]
    if kind == "text":
        return {"kind": kind, "media_type": media_type, "text": data.decode("utf-8", "replace")}
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return {"kind": kind, "media_type": media_type, "url": url, "bytes": len(data)}


def _document(manifest: Manifest, entry: ShardEntry, row: int) -> Document:
    shard = manifest.open_shard(entry)
    for i, rows in enumerate(entry.batch_rows):
        if row < rows:
            return document_at(shard.batch(i), row, shard.header)
        row -= rows
    raise IndexError(row)


def _digits(prefix: str) -> np.ndarray:
    """The beginning of a sample id as numbers 0..15."""
    if len(prefix) > HEX or not set(prefix.lower()) <= set("0123456789abcdef"):
        raise UserError(f"sample {prefix}: not an id; give the first of its {HEX} hexadecimal digits")
    return np.array([int(digit, 16) for digit in prefix], np.uint8)


def _sample_digits(batch: pa.RecordBatch) -> np.ndarray:
    """Every sample id of a record batch as numbers 0..15: uint8 [rows, 32]."""
    column = batch.column("sample_id")
    byte_NB = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, HEX // 2)[column.offset :][: len(column)]
    return np.stack((byte_NB >> 4, byte_NB & 15), axis=2).reshape(-1, HEX)


def _hex(batch: pa.RecordBatch, row: int) -> str:
    return str(batch.column("sample_id")[row].as_py().hex())
