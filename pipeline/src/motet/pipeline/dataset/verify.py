"""Whether a token dataset is what was written: every hash and every invariant, damage told by place.

manifest --for each shard, several at once--> file hash -> record batch hashes -> spans, ids, latents within their bounds
                             -> counted again (counts.py) -> manifest, commit, rejects say the same --> problems
manifest --as a whole------> sources, partitions; its histograms are the sums of those counted --> problems

Processes, not threads: numpy's counting holds the interpreter's lock (measured: two threads are no faster than one).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal

import numpy as np
import pyarrow as pa
import xxhash

from motet.core.hashing import content_hash
from motet.pipeline import forked
from motet.pipeline.dataset import index, rejects
from motet.pipeline.dataset.counts import Counts
from motet.pipeline.dataset.header import DamagedShard, ShardHeader
from motet.pipeline.dataset.invariants import Spans
from motet.pipeline.dataset.manifest import Manifest, ShardEntry
from motet.pipeline.dataset.seal import unseal
from motet.pipeline.dataset.shard import CURE, Shard
from motet.pipeline.dataset.totals import Sums, Totals

Checked = tuple[list[str], Totals | None]
"""A shard's problems, and its histograms if it is sound."""
Check = Callable[[ShardEntry], Checked]

SMALL = 1 << 29
"""Bytes that one process checks in the time that it takes to start others."""


class Verification:
    """Checks a dataset: `shards` first, then `whole`, which knows what was counted.

    With more than one of `workers` it starts processes; None: as many as there are cores, if it is worth that.
    """

    def __init__(self, manifest: Manifest, workers: int | None = None):
        small = sum(entry.bytes for entry in manifest.shards) < SMALL
        self.manifest, self._workers = manifest, workers or (1 if small else len(os.sched_getaffinity(0)))
        self._sums: Sums | None = Sums()

    def shards(self) -> Iterator[tuple[ShardEntry, list[str]]]:
        """(shard, its problems) for every shard, in the manifest's order; an empty list is a sound shard."""
        light = replace(self.manifest, shards=(), codebooks={}, lengths={}, span_lengths={})
        check = partial(_check, light, bool(light.store.list("commits")))
        entries = self.manifest.shards
        results = map(check, entries) if self._workers == 1 else _parallel(check, entries, self._workers)
        for entry, (problems, totals) in zip(entries, results, strict=True):
            if totals is None:
                self._sums = None  # what is not known cannot be summed
            elif self._sums is not None:
                try:
                    self._sums.add(entry.source, totals)
                except ValueError:  # codebooks of another size, which was told by name
                    self._sums = None
            yield entry, problems

    def whole(self) -> list[str]:
        """Problems of the manifest as a whole: what no single shard can show."""
        return list(_whole(self.manifest, self._sums))


def _parallel(check: Check, entries: Sequence[ShardEntry], workers: int) -> Iterator[Checked]:
    """`check` of every entry, in order, in processes; where damage ends one, it is told of the shard that does it."""
    pool, ahead = _pool(workers), iter(entries)
    pending: deque[tuple[ShardEntry, Future[Checked]]] = deque()
    try:
        while True:
            pending.extend(
                (entry, _submitted(pool, check, entry)) for entry in islice(ahead, 2 * workers - len(pending))
            )
            if not pending:
                return
            entry, future = pending.popleft()
            try:
                yield future.result()
            except BrokenProcessPool:  # by this shard or by one of those that were begun beside it
                yield _alone(check, entry)
                pool = _pool(workers)
                pending = deque((other, _submitted(pool, check, other)) for other, _ in pending)
    finally:  # also when it is interrupted: what has not begun is not begun any more
        pool.shutdown(wait=False, cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, check: Check, entry: ShardEntry) -> Future[Checked]:
    """A pool of which a process has ended already says so in the same way as one of which it ends later."""
    try:
        return pool.submit(check, entry)
    except BrokenProcessPool as error:
        broken: Future[Checked] = Future()
        broken.set_exception(error)
        return broken


def _alone(check: Check, entry: ShardEntry) -> Checked:
    with _pool(1) as pool:
        try:
            return pool.submit(check, entry).result()
        except BrokenProcessPool:
            return [f"{entry.file}: reading it ends the process; {CURE}"], None


def _pool(workers: int) -> ProcessPoolExecutor:
    """Ctrl-C is for the process that waits, not for these."""
    context = get_context("forkserver")  # Arrow's threads do not outlive a fork
    context.set_forkserver_preload([__name__])
    forked.ensure()
    return ProcessPoolExecutor(workers, context, initializer=signal, initargs=(SIGINT, SIG_IGN))


def strangers(manifest: Manifest) -> list[str]:
    """Files that the manifest does not name: harmless, left by an earlier or a killed run; `motet gc` removes them."""
    known = {entry.file for entry in manifest.shards} | {f"commits/{entry.commit}" for entry in manifest.shards}
    known |= {entry.rejects_file for entry in manifest.shards if entry.rejects}
    folders = ("shards", "commits", rejects.FOLDER)
    found = (f"{folder}/{name}" for folder in folders for name in manifest.store.list(folder))
    return [name for name in found if name not in known]


def _whole(manifest: Manifest, sums: Sums | None) -> Iterator[str]:
    if set(manifest.modalities) != set(manifest.tokenizers):
        yield "manifest.json: its modalities are not those of its tokenizers"
    numbers: dict[str, list[int]] = defaultdict(list)
    for entry in manifest.shards:
        numbers[entry.source].append(entry.partition)
    if any(partitions != list(range(len(partitions))) for partitions in numbers.values()):
        yield "manifest.json: a source's partitions are not numbered from 0 without a gap"
    if list(numbers) != list(manifest.sources):
        yield f"manifest.json: shards of {', '.join(numbers)}; its sources are {', '.join(manifest.sources)}"
    with suppress(FileNotFoundError):  # a dataset that was copied without it is whole
        if manifest.store.read(index.NAME) != index.to_bytes(manifest):
            yield f"{index.NAME}: does not say the same as the manifest; delete it, and `motet tokenize` writes it again"
    for name in ("codebooks", "lengths", "span_lengths"):
        if sums is not None and getattr(sums, name) != getattr(manifest, name):
            yield f"manifest.json: its {name} are not the sum of those of its shards"


def _check(manifest: Manifest, with_commits: bool, entry: ShardEntry) -> Checked:
    counts = Counts({m: spec.codebooks for m, spec in manifest.tokenizers.items()})
    problems = list(_shard(manifest, entry, counts)) if entry.file else []
    totals = None if problems else counts.totals
    if with_commits:  # a dataset that was copied without its commits is whole without them
        problems += _commit(manifest, entry, totals)
    return [*problems, *_rejects(manifest, entry)], totals


def _shard(manifest: Manifest, entry: ShardEntry, counts: Counts) -> Iterator[str]:
    try:
        with manifest.store.local(entry.file) as path:
            yield from _file(manifest, entry, path, counts)
    except FileNotFoundError:
        yield f"{entry.file}: is missing"


def _file(manifest: Manifest, entry: ShardEntry, path: Path, counts: Counts) -> Iterator[str]:
    if path.stat().st_size != entry.bytes:
        yield f"{entry.file}: {path.stat().st_size} bytes, the manifest says {entry.bytes}"
    if _file_hash(path) != entry.hash:  # and Arrow must not read on: it trusts what stands beside the data
        yield f"{entry.file}: its bytes are not what was written; {CURE}"
        return
    try:
        shard = Shard(path, entry, name=f"{manifest.store}/{entry.file}")
    except DamagedShard as damage:
        yield str(damage)
        return
    if list(shard.header.modalities) != manifest.tables.get(entry.source):
        yield f"{entry.file}: a modality table of {shard.header.modalities}, not its source's in the manifest"
    other = False
    for modality, spec in shard.header.tokenizers.items():
        if manifest.tokenizers.get(modality) != spec:
            other = True
            yield f"{entry.file}: {modality} was encoded by {spec.name} {spec.hash[:12]}, not by the manifest's tokenizer"
    rows = []
    for i in range(shard.num_batches):
        try:
            batch = shard.batch(i)
        except DamagedShard as damage:
            yield str(damage)
            continue
        rows.append(batch.num_rows)
        if not other:
            _count(batch, shard.spans(i), shard.header, counts)
            if set(batch.column("source").to_pylist()) != {entry.source}:
                yield f"{entry.file}: record batch {i}: documents of another source than {entry.source}"
    if sum(rows) != entry.rows:
        yield f"{entry.file}: {sum(rows)} sound documents, the manifest says {entry.rows}"
    elif tuple(rows) != entry.batch_rows:
        yield f"{entry.file}: record batches of {rows} documents, the manifest says {list(entry.batch_rows)}"
    for name, counted in counts.told().items():
        told = getattr(entry, name)
        if not other and counted != told:
            yield f"{entry.file}: {name}: {counted!s:.200}, the manifest says {told!s:.200}"


def _file_hash(path: Path) -> str:
    """xxh3-128 of a file, mapped: the pages are still there when its record batches are read."""
    with pa.memory_map(str(path)) as file:
        return xxhash.xxh3_128_hexdigest(file.read_buffer())


def _commit(manifest: Manifest, entry: ShardEntry, totals: Totals | None) -> Iterator[str]:
    """The commit says the same as the manifest, and what it says beyond is so."""
    where = entry.file or f"{entry.source}, partition {entry.partition}"
    try:
        commit = unseal(manifest.store.read(f"commits/{entry.commit}"))
        same = ShardEntry.from_json({**commit["entry"], "commit": entry.commit}) == entry
        told, quarantine = Totals.from_json(commit["totals"]), commit["quarantine"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        cure = f"; delete commits/{entry.commit}, and the same `motet tokenize` writes it again" if entry.commit else ""
        yield f"{where}: no commit says the same of it as the manifest{cure}"
        return
    if totals is not None and not totals.same(told):
        yield f"{where}: its lengths and its use of codebooks are not what its commit says"
    if not entry.rejects and quarantine != content_hash(b""):
        yield f"{where}: its commit tells of rejects, the manifest of none"


def _rejects(manifest: Manifest, entry: ShardEntry) -> Iterator[str]:
    """The quarantine holds as many as the manifest says, for the same reasons."""
    try:
        found = Counter(reject["reason"] for reject in manifest.rejected(entry))
    except (DamagedShard, OSError, KeyError) as damage:
        yield f"{entry.rejects_file}: {damage}"
    else:
        if found != entry.rejects:
            yield f"{entry.rejects_file}: {dict(found)}; the manifest says {entry.rejects}"


def _count(batch: pa.RecordBatch, spans: Spans, header: ShardHeader, counts: Counts) -> None:
    """Count a sound record batch."""
    owner_T = np.repeat(spans.modality_S[spans.discrete_S], spans.length_S[spans.discrete_S])
    tokens = batch.column("tokens").values.to_numpy()
    for code, modality in enumerate(header.modalities):
        if header.tokenizers[modality].codebooks:
            counts.ids(modality, tokens[owner_T == code])
        counts.spans(modality, spans.length_S[spans.modality_S == code])
    before_S1 = np.concatenate(([0], np.cumsum(spans.length_S)))
    counts.documents(_bytes(batch.column("sample_id")), np.diff(before_S1[spans.begin_D1]))


def _bytes(column: pa.Array) -> bytes:
    """Of a column of fixed-size binary: all its rows, one after the other."""
    width = column.type.byte_width
    return bytes(memoryview(column.buffers()[1])[width * column.offset :][: width * len(column)])
