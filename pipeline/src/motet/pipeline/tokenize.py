"""The pure function at the heart of the room: partition -> shard bytes, statistics, rejects.

    samples --load--> --encode, a chunk at a time, each modality in one batch--> documents --`ShardWriter`--> a file

What comes out depends on the partition's content and the tokenizers only, so every engine, every retry and every
machine writes the same bytes. Memory is bounded by one chunk of samples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from motet.pipeline.manifest import ShardEntry
from motet.pipeline.plan import Partition
from motet.pipeline.shard import Document, ShardHeader, ShardWriter, sample_id
from motet.pipeline.sources import RawSample, Reject, read
from motet.tokenizers.contract import BadSample, Tokenizer, Tokens, content_hash

CHUNK = 128
"""Samples that are loaded and encoded together: a multiple of what tokenizers batch, small enough for memory."""


@dataclass(frozen=True)
class Outcome:
    """What became of a partition: the manifest's entry (its `file` still empty), rejects, use of every code."""

    entry: ShardEntry
    rejects: tuple[Reject, ...]
    codebooks: dict[str, list[list[int]]]


def tokenize(partition: Partition, tokenizers: Mapping[str, Tokenizer], header: ShardHeader, to: Path) -> Outcome:
    """Tokenize a partition into the file `to`; a bad sample becomes a reject, anything else that fails is raised."""
    inputs: dict[str, tuple[int, str]] = {}

    def note(path: str, data: bytes) -> None:
        inputs[path] = (len(data), content_hash(data))

    writer = ShardWriter(to, header, [partition.entry.name])
    tokens, spans, lengths = Counter[str](), Counter[str](), Counter[int]()
    span_lengths: dict[str, Counter[int]] = defaultdict(Counter)
    use = {m: [np.zeros(size, np.int64) for size in s.codebooks] for m, s in header.tokenizers.items() if s.codebooks}
    rejects: list[Reject] = []
    samples = read(partition, note)
    while chunk := list(islice(samples, CHUNK)):
        for outcome in _encode(chunk, tokenizers, partition.entry.name):
            if isinstance(outcome, Reject):
                rejects.append(outcome)
                continue
            writer.write(outcome)
            lengths[sum(len(t) for _, t in outcome.spans)] += 1
            for modality, span in outcome.spans:
                tokens[modality] += len(span)
                spans[modality] += 1
                span_lengths[modality][len(span)] += 1
                if span.ids is not None:
                    for k, counts in enumerate(use[modality]):
                        counts += np.bincount(span.ids[k :: len(use[modality])], minlength=len(counts))
    summary = writer.close()
    entry = ShardEntry(
        file="",
        source=partition.entry.name,
        partition=partition.index,
        rows=summary.rows,
        bytes=summary.bytes,
        hash=summary.hash,
        batch_hashes=summary.batch_hashes,
        batch_rows=summary.batch_rows,
        tokens=dict(sorted(tokens.items())),
        spans=dict(sorted(spans.items())),
        lengths=dict(sorted(lengths.items())),
        span_lengths={m: dict(sorted(h.items())) for m, h in sorted(span_lengths.items())},
        rejects=dict(sorted(Counter(r.reason for r in rejects).items())),
        inputs=tuple({"path": p, "size": size, "hash": h} for p, (size, h) in sorted(inputs.items())),
    )
    return Outcome(entry, tuple(rejects), {m: [c.tolist() for c in counts] for m, counts in use.items()})


def _encode(
    chunk: list[RawSample | Reject], tokenizers: Mapping[str, Tokenizer], source: str
) -> Iterator[Document | Reject]:
    """One outcome per sample, in order. Each modality's samples are encoded in one batch."""
    loaded: list[Reject | list[tuple[str, Any]]] = []
    for sample in chunk:
        loaded.append(sample if isinstance(sample, Reject) else _load(sample, tokenizers))
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, parts in enumerate(loaded):
        if not isinstance(parts, Reject):
            for j, (modality, _) in enumerate(parts):
                places[modality].append((i, j))
    spans: dict[tuple[int, int], Tokens] = {}
    for modality, at in places.items():
        values = [loaded[i][j][1] for i, j in at]  # type: ignore[index]
        try:
            encoded = tokenizers[modality].encode(values)
        except BadSample:
            encoded = None  # one of them; find out which
        for n, (i, j) in enumerate(at):
            if isinstance(loaded[i], Reject):
                continue
            try:
                spans[i, j] = encoded[n] if encoded else tokenizers[modality].encode([values[n]])[0]
            except BadSample as bad:
                loaded[i] = _reject(chunk[i], bad)  # type: ignore[arg-type]
    for i, (sample, parts) in enumerate(zip(chunk, loaded, strict=True)):
        if isinstance(sample, Reject) or isinstance(parts, Reject):
            yield parts  # type: ignore[misc]
        else:
            found = tuple((modality, spans[i, j]) for j, (modality, _) in enumerate(parts))
            identity = sample_id(source, sample.position, [data for _, data in sample.parts])
            yield Document(identity, source, found)


def _load(sample: RawSample, tokenizers: Mapping[str, Tokenizer]) -> Reject | list[tuple[str, Any]]:
    try:
        parts = []
        for modality, data in sample.parts:
            if modality not in tokenizers:
                raise BadSample("no-tokenizer", f"the configuration has no tokenizer for '{modality}'")
            parts.append((modality, tokenizers[modality].load(data)))
        return parts
    except BadSample as bad:
        return _reject(sample, bad)


def _reject(sample: RawSample, bad: BadSample) -> Reject:
    return Reject(sample.position, bad.reason, bad.detail, content_hash(*(data for _, data in sample.parts)))
