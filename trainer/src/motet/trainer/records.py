"""Record batches of token datasets: which documents they hold, and their bytes, checked when they are first touched.

    indexes --`Records.open`--> rows, places, hashes of every record batch (mapped) --`touch`--> addresses of its columns

Nothing is read but the index until a document is asked for, so that opening takes no longer for 10^9 documents than for
10^3. A record batch's message is hashed before it is parsed, and again never; its columns stay in the mapped file, known by
their addresses, which `loops` reads. Datasets are put in the order of their hashes: paths and their order mean nothing.

Letters: K record batches of all datasets, those of one source together; C columns; M entries of a modality table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from motet.pipeline.index import Index
from motet.pipeline.shard import CURE, DamagedShard
from motet.pipeline.store import Folder
from motet.tokenizers.configuration import UserError
from motet.tokenizers.contract import TokenizerSpec

from . import loops
from .vocabulary import TEXT


@dataclass(frozen=True, eq=False)
class Part:
    """One source of one dataset: its record batches are [first, last) of all.

    Attributes:
        known: its modality table in terms of the corpus's modalities. wide: its ids are uint32, not uint16.
        schema: of its record batches, sources as plain numbers.
    """

    index: Index
    first: int
    last: int
    known: tuple[int, ...]
    wide: bool
    schema: pa.Schema


class Place(NamedTuple):
    """Where documents lie: record batch, row in it, part of each; addresses of the columns of all record batches."""

    batch_N: np.ndarray
    row_N: np.ndarray
    part_N: np.ndarray
    address_KC: np.ndarray


class Records:
    """All record batches of the datasets at `paths`.

    Attributes:
        tokenizers: what encoded each modality. modalities: text first, then the others by name. sources: names, sorted.
        hashes: of the datasets, sorted.
        tokens: stored tokens of each source, by modality.
        before_K1: int64; documents before each record batch: documents are numbered through, source by source.
        begin: the first document of each source, and their end.
        parts: of the datasets' sources, in the order of their record batches. known_PM, wide_P: of each, see `Part`.
    """

    def __init__(self, indexes: Sequence[Index], paths: str):
        self.tokenizers = _agreed(indexes)
        indexes = sorted(indexes, key=lambda index: index.hash)
        self.modalities = (TEXT, *sorted(m for m in self.tokenizers if m != TEXT))
        self.sources = tuple(sorted({source.name for index in indexes for source in index.sources}))
        self.hashes = tuple(index.hash for index in indexes)
        self.tokens: dict[str, dict[str, int]] = {name: {} for name in self.sources}
        parts, rows, places, first, at = [], [], [], [0], 0
        for name in self.sources:
            for index in indexes:
                for s, source in enumerate(index.sources):
                    if source.name != name:
                        continue
                    mine_K = np.flatnonzero((index.source_F == s)[index.shard_K])
                    schema = source.header.schema()
                    known = tuple(self.modalities.index(m) for m in source.header.modalities)
                    wide = schema.field("tokens").type.value_type == pa.uint32()
                    plain = pa.schema([f.with_type(pa.int16()) if f.name == "source" else f for f in schema])
                    last = at + len(mine_K)
                    parts.append(Part(index, at, last, known, wide, plain))
                    rows.append(index.rows_K[mine_K])
                    places.append(mine_K)
                    at = last
                    for modality, tokens in source.tokens.items():
                        self.tokens[name][modality] = self.tokens[name].get(modality, 0) + tokens
            first.append(at)
        rows_K = np.concatenate(rows, dtype=np.int64) if rows else np.empty(0, np.int64)
        if not rows_K.sum():
            raise UserError(f"data.paths: {paths}: holds no documents")
        self.before_K1 = np.concatenate(([0], np.cumsum(rows_K)))
        self.begin = tuple(self.before_K1[first].tolist())
        self.parts = tuple(parts)
        self.known_PM = np.zeros((len(parts), len(self.modalities)), np.uint8)
        for p, part in enumerate(parts):
            self.known_PM[p, : len(part.known)] = part.known
        self.wide_P = np.array([part.wide for part in parts])
        self._place_K = np.concatenate(places)
        self._address_KC = np.zeros((len(rows_K), loops.COLUMNS), np.int64)  # pages that nobody writes take no memory
        self._kept: dict[tuple[int, int], pa.Buffer] = {}

    @classmethod
    def open(cls, paths: Sequence[str]) -> Records:
        """The record batches of the token datasets at `paths`."""
        return cls([Index.open(path) for path in paths], ", ".join(paths))

    @property
    def latent(self) -> int:
        """The modality that is given as latents, -1 if none is."""
        found = (i for i, m in enumerate(self.modalities) if m in self.tokenizers and self.tokenizers[m].latent_dim)
        return next(found, -1)

    @property
    def width(self) -> int:
        """Values of a latent vector; 0 without a continuous modality."""
        return self.tokenizers[self.modalities[self.latent]].latent_dim if self.latent >= 0 else 0

    def touch(self, document_N: np.ndarray) -> Place:
        """Where documents lie; DamagedShard names a record batch that is not whole."""
        batch_N = np.searchsorted(self.before_K1, document_N, side="right") - 1
        for k in np.unique(batch_N[self._address_KC[batch_N, loops.ID] == 0]).tolist():
            self._read(k)
        return Place(batch_N, document_N - self.before_K1[batch_N], self._part_of(batch_N), self._address_KC)

    def _part_of(self, batch_N: np.ndarray) -> np.ndarray:
        return np.searchsorted([part.last for part in self.parts], batch_N, side="right")

    def _read(self, k: int) -> None:
        part = self.parts[int(self._part_of(np.array([k]))[0])]
        index, at = part.index, int(self._place_K[k])
        f = int(index.shard_K[at])
        begin, end = int(index.begin_K[at]), int(index.end_K[at])
        name = f"{index.store}/{index.file_F[f].as_py()}"
        message = self._file(part, f, name)[begin:end]
        nth = at - int(np.searchsorted(index.shard_K, f))
        if message.size != end - begin or not intact(message, int(index.hash_K[at])):
            raise DamagedShard(f"{name}: record batch {nth} is damaged: its bytes are not what was written; {CURE}")
        try:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(message), part.schema)
            batch.validate()  # the loops follow its offsets
        except (ValueError, pa.ArrowException) as error:
            raise DamagedShard(f"{name}: record batch {nth} cannot be read: {error}; {CURE}") from None
        column_C = self._address_KC[k]
        lists = ("tokens", loops.TOKEN_AT, loops.TOKENS), ("span_end", loops.SPAN_AT, loops.SPAN_END)
        for field, offsets, values in lists:
            buffers = batch.column(field).buffers()
            column_C[offsets], column_C[values] = buffers[1].address, buffers[-1].address
        column_C[loops.SPAN_MODALITY] = batch.column("span_modality").buffers()[-1].address
        if "latents" in part.schema.names:
            buffers = batch.column("latents").buffers()
            column_C[loops.LATENT_AT], column_C[loops.LATENTS] = buffers[1].address, buffers[-1].address
        column_C[loops.ID] = batch.column("sample_id").buffers()[-1].address  # last: now it is known

    def _file(self, part: Part, f: int, name: str) -> pa.Buffer:
        key = (id(part.index), f)
        if key not in self._kept:
            store = part.index.store
            if not isinstance(store, Folder):
                raise UserError(f"data.paths: {store}: training reads folders; copy the dataset to one")
            try:
                self._kept[key] = pa.memory_map(str(store.path / part.index.file_F[f].as_py())).read_buffer()
            except FileNotFoundError:
                raise DamagedShard(f"{name}: is missing; the same `motet tokenize` writes it again") from None
            except OSError as error:
                raise DamagedShard(f"{name}: cannot be read: {error.strerror or error}; {CURE}") from None
        return self._kept[key]


def intact(message: pa.Buffer, digest: int) -> bool:
    """Whether these are the bytes that were written."""
    return xxhash.xxh3_64_intdigest(message) == digest


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
