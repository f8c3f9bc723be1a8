"""The pure function at the heart of the room: partition -> shard bytes, statistics, rejects.

    samples --load--> --encode, a batch at a time, each modality on its own--> documents --`ShardWriter`--> a file

What comes out depends on the partition's content and the tokenizers only, so every engine, every retry and every
machine writes the same bytes. Memory is bounded by one batch of samples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from motet.core.hashing import content_hash
from motet.pipeline.corpus.sources import RawSample, read
from motet.pipeline.corpus.sources.sample import Partition
from motet.pipeline.dataset.counts import Counts
from motet.pipeline.dataset.header import ShardHeader
from motet.pipeline.dataset.left_out import LeftOut, Rest
from motet.pipeline.dataset.manifest import ShardEntry
from motet.pipeline.dataset.rejects import Reject
from motet.pipeline.dataset.shard import Document, ShardWriter, sample_id
from motet.pipeline.dataset.totals import Totals
from motet.tokenizers.contract import BadSample, Tokenizer, Tokens

BATCH = 128
"""Samples that are loaded and encoded together: a multiple of what tokenizers batch, small enough for memory."""
BATCH_BYTES = 64 << 20
"""Bytes of raw samples after which a batch ends early."""


class Guard:
    """Is told what comes next, before anything that may hang or kill the process; this one tells nobody.

    Attributes:
        careful: tokenizers first try every sample alone, so that it is known which one they do not survive.
        skip: samples (by their number in the partition) that are known to be so.
    """

    careful: bool = False
    skip: Mapping[int, BadSample] = MappingProxyType({})

    def at(self, sample: int | None, samples: int) -> None:
        """Next is `sample`, or `samples` together; 0 samples: nothing that has to end soon."""


class BrokenTokenizer(Exception):
    """A tokenizer failed otherwise than by BadSample, or returned what its spec does not allow: a bug in it."""


@dataclass(frozen=True)
class Outcome:
    """What became of a partition: the manifest's entry (its `file` and `commit` still empty), rejects, histograms, and what
    of it was left out.
    """

    entry: ShardEntry
    rejects: tuple[Reject, ...]
    totals: Totals
    left_out: tuple[LeftOut, ...] = ()


def tokenize(
    partition: Partition,
    tokenizers: Mapping[str, Tokenizer],
    header: ShardHeader,
    to: Path,
    guard: Guard = Guard(),  # noqa: B008 (it has no state)
) -> Outcome:
    """Tokenize a partition into the file `to`; a bad sample becomes a reject, anything else that fails is raised."""
    inputs: dict[str, tuple[int, str]] = {}

    def note(path: str, size: int, digest: str) -> None:
        inputs[path] = (size, digest)

    writer = ShardWriter(to, header, [partition.entry.name])
    counts = Counts({m: spec.codebooks for m, spec in header.tokenizers.items()})
    rejects: list[Reject] = []
    rest = Rest()
    samples, number = read(partition, note, rest), 0
    while batch := _batch(samples):
        outcomes = _encode(batch, number, tokenizers, partition.entry.name, guard)
        number += len(batch)
        for outcome in outcomes:
            if isinstance(outcome, Reject):
                rejects.append(outcome)
                continue
            writer.write(outcome)
            counts.document(outcome)
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
        batch_offsets=summary.batch_offsets,
        **counts.told(),
        languages=counts.languages,
        unknown=counts.unknown,
        rejects=dict(sorted(Counter(r.reason for r in rejects).items())),
        inputs=tuple({"path": p, "size": size, "hash": h} for p, (size, h) in sorted(inputs.items())),
    )
    return Outcome(entry, tuple(rejects), counts.totals, rest.rows)


def _batch(samples: Iterator[RawSample | Reject]) -> list[RawSample | Reject]:
    """The next samples, up to BATCH or BATCH_BYTES; none at the end."""
    batch: list[RawSample | Reject] = []
    size = 0
    while len(batch) < BATCH and size < BATCH_BYTES and (sample := next(samples, None)) is not None:
        batch.append(sample)
        size += 0 if isinstance(sample, Reject) else sum(len(data) for _, data in sample.parts)
    return batch


def _encode(
    batch: list[RawSample | Reject], first: int, tokenizers: Mapping[str, Tokenizer], source: str, guard: Guard
) -> Iterator[Document | Reject]:
    """One outcome per sample, in order; `first` is the number of the first. Each modality's samples are encoded together."""
    guard.at(None, 1)  # texts are read in no time
    loaded: list[Reject | list[tuple[str, Any]]] = [
        sample if isinstance(sample, Reject) else _load(sample, first + i, tokenizers, guard)
        for i, sample in enumerate(batch)
    ]
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, parts in enumerate(loaded):
        if not isinstance(parts, Reject):
            for j, (modality, _) in enumerate(parts):
                places[modality].append((i, j))
    spans: dict[tuple[int, int], Tokens] = {}
    for modality, at in places.items():
        values = [loaded[i][j][1] for i, j in at]  # type: ignore[index]
        where = f"{batch[at[0][0]].position} to {batch[at[-1][0]].position}"
        encoded = None
        if not guard.careful:
            guard.at(None, len(at))
            with suppress(BadSample):  # one of them; find out which
                encoded = _checked(tokenizers[modality], values, where)
        if encoded is None:
            sound = []
            for (i, j), value in zip(at, values, strict=True):
                if isinstance(loaded[i], Reject):
                    continue
                guard.at(first + i, 1)
                try:
                    _checked(tokenizers[modality], [value], batch[i].position)
                    sound.append((i, j))
                except BadSample as bad:
                    loaded[i] = _reject(batch[i], bad)  # type: ignore[arg-type]
            at = sound
            guard.at(None, len(at))
            encoded = _checked(tokenizers[modality], [loaded[i][j][1] for i, j in at], where)  # type: ignore[index]
        spans.update(zip(at, encoded, strict=True))
    guard.at(None, 0)
    for i, (sample, parts) in enumerate(zip(batch, loaded, strict=True)):
        if isinstance(sample, Reject) or isinstance(parts, Reject):
            yield parts  # type: ignore[misc]
        else:
            found = tuple((modality, spans[i, j]) for j, (modality, _) in enumerate(parts))
            identity = sample_id(source, sample.position, [data for _, data in sample.parts])
            yield Document(identity, source, found, sample.language)


def _checked(tokenizer: Tokenizer, samples: list[Any], where: str) -> list[Tokens]:
    """`tokenizer.encode(samples)`, held against its spec; BrokenTokenizer says where what it gave cannot be stored."""
    spec = tokenizer.spec
    try:
        encoded = tokenizer.encode(samples)
    except BadSample:
        raise
    except Exception as error:
        raise BrokenTokenizer(f"{where}: {spec.name}.encode: {type(error).__name__}: {error}") from error
    sizes = np.array(spec.codebooks or (0,))
    wrong = f"{len(encoded)} spans for {len(samples)} samples" if len(encoded) != len(samples) else ""
    for tokens in encoded:
        if spec.kind == "continuous":
            if tokens.latents is None or tokens.latents.shape != (len(tokens), spec.latent_dim):
                wrong = f"latents that are not [{len(tokens)}, {spec.latent_dim}] for a grid of {tokens.shape}"
        elif tokens.ids is None or tokens.ids.shape != (len(tokens),) or len(tokens) % len(sizes):
            wrong = f"ids that are not [{len(tokens)}] for a grid of {tokens.shape}, {len(sizes)} codebooks"
    if spec.kind == "discrete" and not wrong and encoded:
        ids_NK = np.concatenate([tokens.ids for tokens in encoded]).reshape(-1, len(sizes))
        if len(ids_NK) and (ids_NK.min() < 0 or (ids_NK.max(axis=0) >= sizes).any()):
            wrong = f"ids up to {ids_NK.max()} (the smallest is {ids_NK.min()}); its codebooks have {sizes.tolist()}"
    if wrong:
        raise BrokenTokenizer(f"{where}: {spec.name}.encode gave {wrong}; `motet tokenizer check` tells more")
    return encoded


def _load(
    sample: RawSample, number: int, tokenizers: Mapping[str, Tokenizer], guard: Guard
) -> Reject | list[tuple[str, Any]]:
    try:
        if number in guard.skip:
            raise guard.skip[number]
        parts = []
        for modality, data in sample.parts:
            if modality not in tokenizers:
                raise BadSample("no-tokenizer", f"the configuration has no tokenizer for '{modality}'")
            if guard.careful or modality != "text":  # telling takes as long as reading a short one
                guard.at(number, 1)
            parts.append((modality, tokenizers[modality].load(data)))
        return parts
    except BadSample as bad:
        return _reject(sample, bad)
    except Exception as error:
        name = tokenizers[modality].spec.name
        raise BrokenTokenizer(f"{sample.position}: {name}.load: {type(error).__name__}: {error}") from error


def _reject(sample: RawSample, bad: BadSample) -> Reject:
    content = content_hash(*(data for _, data in sample.parts))
    return Reject(sample.position, bad.reason, bad.detail, content, sample.parts)
