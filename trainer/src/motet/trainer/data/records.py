"""Record batches of token datasets: which documents they hold, and their bytes, checked when they are first touched.

    indexes --`Records.open`--> rows, places, hashes of every record batch (mapped) --`touch`--> addresses of its columns
    bytes of a record batch: a mapped shard of a folder, or a chunk of a remote one, fetched through the cache

Nothing is read but the index until a document is asked for, so that opening takes no longer for 10^9 documents than for
10^3. A record batch's message is hashed before it is parsed; its columns stay where they are mapped, known by their
addresses, which `columns` reads. Datasets are put in the order of their hashes: paths and their order mean nothing.

Letters: K record batches of all datasets, those of one source together; B those of one call; C columns; M entries of a
modality table; P parts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from motet.core.errors import UserError
from motet.pipeline.dataset import invariants
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.index import Index
from motet.pipeline.dataset.shard import CURE, WRONG
from motet.pipeline.dataset.store import Folder
from motet.pipeline.remote import ranged
from motet.tokenizers.contract import TokenizerSpec
from motet.trainer.data import codebooks, columns
from motet.trainer.data.chunk_cache import ChunkCache
from motet.trainer.data.mapped import Mapped
from motet.trainer.vocabulary import TEXT

if TYPE_CHECKING:
    from motet.trainer.config import DataConfig

FETCHES = 32
"""Chunks of remote shards that are fetched at a time."""
HELD = 1024
"""Chunks of remote shards that stay mapped between reads."""


class Lost(NamedTuple):
    """Record batches [first, last) of a dataset, by its hash, that are not what was written, and why that is said."""

    dataset: str
    first: int
    last: int
    why: str


class LostBatches(DamagedShard):
    """Some record batches cannot be had, however often they are read; `row` begins the window that needs them."""

    def __init__(self, lost: Sequence[Lost]):
        super().__init__("; ".join(dict.fromkeys(each.why for each in lost)))
        self.lost = tuple(lost)
        self.row = 0


@dataclass(frozen=True, eq=False)
class Part:
    """One source of one dataset: its record batches are [first, last) of all, its documents begin at `begin`.

    Attributes:
        source, dataset: by number in the `Records`. tokens: stored, by modality.
        known: its modality table in terms of the corpus's modalities. wide: its ids are uint32, not uint16.
        schema: of its record batches, sources as plain numbers.
    """

    index: Index
    source: int
    dataset: int
    first: int
    last: int
    begin: int
    documents: int
    tokens: dict[str, int]
    known: tuple[int, ...]
    wide: bool
    schema: pa.Schema


class Place(NamedTuple):
    """Where documents lie: record batch of this call, row in it, part of each; addresses of the columns.

    `held` keeps in place what the addresses point to; `mapped` are the shards of folders among it.
    """

    batch_N: np.ndarray
    row_N: np.ndarray
    part_N: np.ndarray
    address_BC: np.ndarray
    held: list[pa.Buffer]
    mapped: list[Mapped]

    def moved(self) -> bool:
        """Whether a shard was changed in its place meanwhile: what was read of it may be anything."""
        return any(mapped.changed() for mapped in self.mapped)


class Records:
    """All record batches of some datasets.

    Attributes:
        tokenizers: what encoded each modality. modalities: text first, then the others by name. sources: names, sorted.
        hashes: of the datasets, sorted. paths: where each of them lies.
        before_K1: int64; documents before each record batch: documents are numbered through, source by source.
        begin: the first document of each source, and their end.
        rule_M2: how codes of each modality become tokens: `codebooks.table`.
        parts: of the datasets' sources, in the order of their record batches. known_PM, wide_P: of each, see `Part`.
    """

    def __init__(
        self,
        indexes: Sequence[Index],
        paths: Sequence[str],
        cache: ChunkCache | None = None,
        streams: Mapping[str, str] | None = None,
    ):
        self.tokenizers = _agreed(indexes)
        order = sorted(range(len(indexes)), key=lambda d: indexes[d].hash)
        self.paths = tuple(paths[d] for d in order)
        indexes = [indexes[d] for d in order]
        self.modalities = (TEXT, *sorted(m for m in self.tokenizers if m != TEXT))
        self.rule_M2 = codebooks.table(self.tokenizers, self.modalities, streams or {})
        self.sources = tuple(sorted({source.name for index in indexes for source in index.sources}))
        self.hashes = tuple(index.hash for index in indexes)
        parts, rows, places, first = [], [], [], 0
        begin, documents = [0], 0
        for number, name in enumerate(self.sources):
            for dataset, index in enumerate(indexes):
                for s, source in enumerate(index.sources):
                    if source.name != name:
                        continue
                    mine_K = np.flatnonzero((index.source_F == s)[index.shard_K])
                    schema = source.header.schema()
                    part = Part(
                        index=index,
                        source=number,
                        dataset=dataset,
                        first=first,
                        last=first + len(mine_K),
                        begin=documents,
                        documents=int(index.rows_K[mine_K].sum()),
                        tokens=source.tokens,
                        known=tuple(self.modalities.index(m) for m in source.header.modalities),
                        wide=schema.field("tokens").type.value_type == pa.uint32(),
                        schema=pa.schema([f.with_type(pa.int16()) if f.name == "source" else f for f in schema]),
                    )
                    parts.append(part)
                    rows.append(index.rows_K[mine_K])
                    places.append(mine_K)
                    first, documents = part.last, documents + part.documents
            begin.append(documents)
        if not documents:
            raise UserError(f"data.paths: {', '.join(paths)}: holds no documents")
        self.before_K1 = np.concatenate(([0], np.cumsum(np.concatenate(rows, dtype=np.int64))))
        self.begin = tuple(begin)
        self.parts = tuple(parts)
        self.known_PM = np.zeros((len(parts), len(self.modalities)), np.uint8)
        for p, part in enumerate(parts):
            self.known_PM[p, : len(part.known)] = part.known
        self.wide_P = np.array([part.wide for part in parts])
        self._place_K = np.concatenate(places)
        self._address_KC = np.zeros((first, columns.COLUMNS), np.int64)  # pages that nobody writes take no memory
        self._mapped: dict[tuple[int, int], Mapped] = {}
        self._kept: list[pa.Buffer] = []  # of shards that were changed: another thread may be reading
        self._remote_P = np.array([not isinstance(part.index.store, Folder) for part in parts])
        self._cache, self._chunks, self._lock = cache, OrderedDict[int, pa.Buffer](), Lock()

    @classmethod
    def open(
        cls, paths: Sequence[str], cache: ChunkCache | None = None, streams: Mapping[str, str] | None = None
    ) -> Records:
        """The record batches of the token datasets at `paths`; UserError if a remote one has no `cache`."""
        return cls([Index.open(path) for path in paths], paths, cache, streams)

    @classmethod
    def of(cls, data: DataConfig, paths: Sequence[str]) -> Records:
        """The record batches of the datasets at `paths`, through the cache and as the streams that a configuration names."""
        return cls.open(paths, ChunkCache(Path(data.cache).expanduser(), int(data.cache_gigabytes * 1e9)), data.streams)

    @property
    def latent(self) -> int:
        """The modality that is given as latents, -1 if none is."""
        found = (i for i, m in enumerate(self.modalities) if m in self.tokenizers and self.tokenizers[m].latent_dim)
        return next(found, -1)

    @property
    def width(self) -> int:
        """Values of a latent vector; 0 without a continuous modality."""
        return self.tokenizers[self.modalities[self.latent]].latent_dim if self.latent >= 0 else 0

    def batch_of(self, document_N: np.ndarray) -> np.ndarray:
        """The record batch of each document, by number."""
        return np.searchsorted(self.before_K1, document_N, side="right") - 1

    def batches_of(self, lost: Lost) -> np.ndarray:
        """The numbers of these record batches; none if their dataset is not among these."""
        found = [
            np.arange(part.first, part.last)[(lost.first <= place_K) & (place_K < lost.last)]
            for part in self.parts
            if self.hashes[part.dataset] == lost.dataset
            for place_K in (self._place_K[part.first : part.last],)
        ]
        return np.concatenate([np.empty(0, np.int64), *found])

    def origin(self, document: int) -> tuple[str, str, int, int]:
        """(dataset, shard, record batch in it, row in that) of a document."""
        k = int(self.batch_of(np.array([document]))[0])
        part = next(part for part in self.parts if k < part.last)
        index, at = part.index, int(self._place_K[k])
        f = int(index.shard_K[at])
        nth = at - int(np.searchsorted(index.shard_K, f))
        return self.paths[part.dataset], index.file_F[f].as_py(), nth, document - int(self.before_K1[k])

    def touch(self, document_N: np.ndarray) -> Place:
        """Where documents lie. LostBatches names all record batches of them that are not whole."""
        batch_N = self.batch_of(document_N)
        row_N = document_N - self.before_K1[batch_N]
        touched_B, at_N = np.unique(batch_N, return_inverse=True)
        part_B = np.searchsorted([part.last for part in self.parts], touched_B, side="right")
        far_B = touched_B[self._remote_P[part_B]].tolist()
        shards = self._forget_changed(touched_B, part_B)
        while True:
            with self._lock:
                address_BC = self._address_KC[touched_B]
                held = [self._chunks[k] for k in far_B if k in self._chunks]
                for k in far_B:
                    if k in self._chunks:
                        self._chunks.move_to_end(k)
                missing_B = address_BC[:, columns.ID] == 0
                if not missing_B.any():
                    self._let_go()
                    mapped = [self._mapped[key] for key in shards if key in self._mapped]
                    return Place(at_N, row_N, part_B[at_N], address_BC, held, mapped)
            self._read(touched_B[missing_B].tolist(), part_B[missing_B].tolist())

    def _forget_changed(self, touched_B: np.ndarray, part_B: np.ndarray) -> list[tuple[int, int]]:
        """Forget what is known of shards that were changed in their place since they were mapped: reading on could end the
        process. What changes later than this, while the loops read, is known when they are done, if they end: `Place.moved`.
        Returns the shards of folders among these record batches.
        """
        found = []
        for p in np.unique(part_B[~self._remote_P[part_B]]).tolist():
            part = self.parts[p]
            shard_K, place_K = part.index.shard_K, self._place_K[part.first : part.last]
            for f in np.unique(shard_K[self._place_K[touched_B[part_B == p]]]).tolist():
                found.append(key := (part.dataset, f))
                if (mapped := self._mapped.get(key)) and mapped.changed():
                    with self._lock:
                        self._mapped.pop(key, None)
                        self._kept.append(mapped.buffer)
                        self._address_KC[part.first : part.last][shard_K[place_K] == f] = 0
        return found

    def _let_go(self) -> None:
        while len(self._chunks) > HELD:
            k, _ = self._chunks.popitem(last=False)
            self._address_KC[k] = 0

    def _read(self, numbers: list[int], parts: list[int]) -> None:
        """Bring these record batches within reach."""
        lost: list[Lost] = []

        def bring(k: int, p: int) -> None:
            part = self.parts[p]
            try:
                if self._remote_P[p]:
                    self._fetch(k, part)
                else:
                    self._know(k, part, self._message(k, part))
            except LostBatches as error:
                lost.extend(error.lost)

        if any(self._remote_P[p] for p in parts):
            with ThreadPoolExecutor(FETCHES) as pool:
                list(pool.map(bring, numbers, parts))
        else:
            for k, p in zip(numbers, parts, strict=True):
                bring(k, p)
        if lost:
            raise LostBatches(sorted(set(lost)))

    def _fetch(self, k: int, part: Part) -> None:
        """Map a chunk of a remote shard; one that is damaged in the cache or on its way is fetched once more."""
        index, at = part.index, int(self._place_K[k])
        cache = self._cache
        if cache is None:
            raise UserError(f"data.paths: {index.store}: a remote dataset needs data.cache, a folder for chunks of it")
        begin, end, digest = int(index.begin_K[at]), int(index.end_K[at]), int(index.hash_K[at])
        file = f"{index.store}/{index.file_F[int(index.shard_K[at])].as_py()}"
        key = f"{digest:016x}-{end - begin:x}"
        for attempt in range(2):
            try:
                message = cache.get(key, lambda: ranged(file, begin, end))
            except FileNotFoundError:
                raise self._gone(at, part, file) from None
            if intact(message, digest) or attempt:
                break
            cache.drop(key)
        try:
            self._know(k, part, message)
        except LostBatches:
            cache.drop(key)
            raise

    def _message(self, k: int, part: Part) -> pa.Buffer:
        """The bytes of a record batch of a folder, mapped."""
        index, at = part.index, int(self._place_K[k])
        f = int(index.shard_K[at])
        key = (part.dataset, f)
        if key not in self._mapped:
            assert isinstance(index.store, Folder)
            path = index.store.path / index.file_F[f].as_py()
            try:
                self._mapped[key] = Mapped.of(str(path))
            except FileNotFoundError:
                raise self._gone(at, part, str(path)) from None
            except OSError as error:
                raise LostBatches(
                    [self._lost(at, part, f"cannot be read: {error.strerror or error}; {CURE}")]
                ) from None
        return self._mapped[key].buffer[int(index.begin_K[at]) : int(index.end_K[at])]

    def _know(self, k: int, part: Part, message: pa.Buffer) -> None:
        """Check and parse a record batch, and note where its columns lie."""
        index, at = part.index, int(self._place_K[k])
        if message.size < index.end_K[at] - index.begin_K[at]:
            raise LostBatches([self._lost(at, part, f"is cut off: the file is too short; {CURE}")])
        if not intact(message, int(index.hash_K[at])):
            raise LostBatches([self._lost(at, part, f"is damaged: its bytes are not what was written; {CURE}")])
        header = index.sources[index.source_F[index.shard_K[at]]].header
        try:
            batch = invariants.parsed(message, part.schema)
            invariants.check(batch, int(index.rows_K[at]), header)  # the loops follow its offsets
        except invariants.Broken as error:
            raise LostBatches([self._lost(at, part, f"is wrong inside: {error}; {WRONG}")]) from None
        column_C = np.zeros(columns.COLUMNS, np.int64)
        lists = ("tokens", columns.TOKEN_AT, columns.TOKENS), ("span_end", columns.SPAN_AT, columns.SPAN_END)
        for field, offsets, values in lists:
            column_C[offsets], column_C[values] = _addresses(batch.column(field), 1, -1)
        (column_C[columns.SPAN_MODALITY],) = _addresses(batch.column("span_modality"), -1)
        if "latents" in part.schema.names:  # a list of lists: offsets, validity, offsets, ..., values
            column_C[columns.SHAPE_AT], column_C[columns.SHAPES] = _addresses(batch.column("span_shape"), 3, -1)
            column_C[columns.LATENT_AT], column_C[columns.LATENTS] = _addresses(batch.column("latents"), 1, -1)
        (column_C[columns.ID],) = _addresses(batch.column("sample_id"), -1)
        with self._lock:
            self._address_KC[k] = column_C
            if not isinstance(index.store, Folder):
                self._chunks[k] = message

    def _lost(self, at: int, part: Part, what: str) -> Lost:
        index = part.index
        f = int(index.shard_K[at])
        nth = at - int(np.searchsorted(index.shard_K, f))
        name = f"{index.store}/{index.file_F[f].as_py()}"
        return Lost(index.hash, at, at + 1, f"{name}: record batch {nth} {what}")

    def _gone(self, at: int, part: Part, name: str) -> LostBatches:
        """A missing shard costs all its record batches."""
        index = part.index
        f = int(index.shard_K[at])
        first, last = (int(k) for k in np.searchsorted(index.shard_K, (f, f + 1)))
        return LostBatches(
            [Lost(index.hash, first, last, f"{name}: is missing; the same `motet tokenize` writes it again")]
        )


def intact(message: pa.Buffer, digest: int) -> bool:
    """Whether these are the bytes that were written."""
    return xxhash.xxh3_64_intdigest(message) == digest


def _addresses(column: pa.Array, *which: int) -> list[int]:
    """Where these buffers of a column lie; one that is empty may be nowhere."""
    buffers = column.buffers()
    return [buffers[i].address if buffers[i] else 0 for i in which]


def _agreed(indexes: Sequence[Index]) -> dict[str, TokenizerSpec]:
    """The tokenizer of each modality; all datasets must have used the same."""
    agreed: dict[str, TokenizerSpec] = {}
    for index in indexes:
        for modality, spec in index.tokenizers.items():
            if agreed.setdefault(modality, spec).hash != spec.hash:
                raise UserError(
                    f"data.paths: {index.store}: {modality} was encoded by {spec.name} {spec.hash[:12]}, in another dataset by "
                    f"{agreed[modality].name} {agreed[modality].hash[:12]}; tokenize both with one tokenizer"
                )
    return agreed
