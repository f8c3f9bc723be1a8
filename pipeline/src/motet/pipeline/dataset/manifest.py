"""The manifest: what a token dataset holds, written last; statistics, training and verification start from it.

    commits (one per partition) --`Manifest.of`--> OUT/manifest.json --`Manifest.load`--> shards, counts, hashes

It holds nothing that differs from machine to machine (times, absolute paths, host names), so two datasets are equal if
their manifests are. Its last field is the hash of the rest (seal.py): a damaged manifest is refused, not believed.
"""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.pipeline.dataset import rejects
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.left_out import LeftOut
from motet.pipeline.dataset.seal import seal, unseal
from motet.pipeline.dataset.shard import Shard
from motet.pipeline.dataset.store import Store, store_of
from motet.tokenizers.contract import TokenizerSpec

FORMAT_VERSION = 1
NAME = "manifest.json"
SHARD = r"shards/[^/\x00]*[^./\x00][^/\x00]*"
"""What a shard's name looks like: right in `shards`, wherever else a name could lead."""
ADDED = {"unknown"}
"""Fields of a shard's entry that came after format 1 was first written: they are left out where they are empty."""
COMMITS = "commits.json"
"""Names the commits that a manifest was made of, which differ from machine to machine, and has the manifest's hash."""


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing that is read makes a cycle, and looking for some again and again takes longer than reading does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says of one partition's shard: a pure function of the partition's content and the tokenizers.

    Attributes:
        file: path below the dataset's folder; empty if every sample of the partition was rejected.
        source, partition: which corpus entry, and which of its partitions.
        rows, bytes, hash: of the file; hash is xxh3-128.
        batch_hashes, batch_rows: of every record batch; hashes are xxh3-64 of its message.
        batch_offsets: where each of these messages begins in the file, and where the last one ends.
        tokens, spans: by modality.
        sketch, repeated: its smallest content hashes and which of them several documents have (see sketch.py).
        longest: (tokens, sample id) of its longest documents.
        rejects: how many samples were rejected, by reason.
        inputs: path as configured, size in bytes and content hash of every file that was read.
        languages: (documents, tokens) by language, of those whose source tells it.
        unknown: (characters without a token, characters) by modality, where a vocabulary may lack some; left out where none may.
        commit: file name of the partition's commit, which has the exact histograms too; not part of the file.
    """

    file: str
    source: str
    partition: int
    rows: int
    bytes: int
    hash: str
    batch_hashes: tuple[str, ...]
    batch_rows: tuple[int, ...]
    batch_offsets: tuple[int, ...]
    tokens: dict[str, int]
    spans: dict[str, int]
    rejects: dict[str, int]
    inputs: tuple[dict[str, Any], ...]
    languages: dict[str, tuple[int, int]] = field(default_factory=dict)
    sketch: str = ""
    repeated: dict[str, int] = field(default_factory=dict)
    longest: tuple[tuple[int, str], ...] = ()
    unknown: dict[str, tuple[int, int]] = field(default_factory=dict)
    commit: str = ""

    @property
    def rejects_file(self) -> str:
        """The partition's quarantine, below the dataset's place; it is there if there are `rejects`."""
        return f"{rejects.FOLDER}/{self.commit.removesuffix('.json')}.arrow"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` reads it back."""
        return {name: value for name, value in vars(self).items() if name != "commit" and (value or name not in ADDED)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ShardEntry:
        """Inverse of `to_json` (JSON has no tuples)."""
        if data["file"] and not re.fullmatch(SHARD, data["file"]):
            raise ValueError(f"{data['file']!r:.80} cannot be a shard's name")
        entry = {**data, "longest": tuple(map(tuple, data["longest"]))}
        for name in ("batch_hashes", "batch_rows", "batch_offsets", "inputs"):
            entry[name] = tuple(data[name])
        for name in ADDED & data.keys():
            entry[name] = {modality: tuple(both) for modality, both in data[name].items()}
        if data["languages"]:
            entry["languages"] = {code: tuple(both) for code, both in data["languages"].items()}
        return cls(**entry)


@dataclass(frozen=True)
class Manifest:
    """A whole token dataset.

    Attributes:
        store: where it lies; not part of the file.
        modalities: the modality table that spans index.
        tokenizers: each modality's spec.
        settings_hash: over everything that decides the bytes, but the inputs.
        sources: corpus entries in their order.
        shards: one per partition, in the order of the partitions.
        codebooks: for each discrete modality that occurs, how often each id of each codebook does.
        lengths: for each source, how many documents have exactly this many tokens.
        span_lengths: likewise of spans, by source and modality.
        tables: for each source, the modality table of its shards: what their `span_modality` indexes.
        left_out: for each source that leaves something out, a row per kind; a file without this field tells of none.
    """

    store: Store
    modalities: tuple[str, ...]
    tokenizers: dict[str, TokenizerSpec]
    settings_hash: str
    sources: tuple[str, ...]
    shards: tuple[ShardEntry, ...]
    codebooks: dict[str, list[list[int]]]
    lengths: dict[str, dict[int, int]] = field(default_factory=dict)
    span_lengths: dict[str, dict[str, dict[int, int]]] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, tuple[LeftOut, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, place: str | Path) -> Manifest:
        """Read the manifest of the dataset at a folder or URI; UserError if there is none or it is of another version."""
        store = store_of(place)
        try:
            text = store.read(NAME)
        except FileNotFoundError:
            raise UserError(
                f"{place}: holds no token dataset (no {NAME}); run `motet tokenize` into it first"
            ) from None
        except OSError as error:
            raise UserError(f"{place}: {NAME} cannot be read: {error.strerror or error}") from None
        made_of = cls._commits(store)
        if made_of and made_of["manifest"] != content_hash(text):
            raise UserError(
                f"{place}: {NAME} is not what was written: damaged, or just being replaced; run `motet tokenize` again"
            )
        return cls.of(text, store, made_of["commits"] if made_of else ())

    @staticmethod
    def _commits(store: Store) -> dict[str, Any] | None:
        """What names the commits; None if there is none, as in a dataset that was copied without it, or it is damaged itself."""
        try:
            found = json.loads(store.read(COMMITS))
            return found if isinstance(found["manifest"], str) and isinstance(found["commits"], list) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    @_no_collection()
    def of(cls, text: bytes, store: Store, commits: Sequence[str] = ()) -> Manifest:
        """Inverse of `to_text`; `commits` names each shard's, if that is known."""
        where = f"{store}: {NAME}"
        try:
            data = unseal(text)
            if data["format_version"] != FORMAT_VERSION:
                raise UserError(f"{where}: format {data['format_version']}; this motet reads {FORMAT_VERSION}")
            if later := _later(data):  # whole, or its seal would not fit
                raise UserError(
                    f"{where}: has fields that this motet does not know ({', '.join(later)}): a later one wrote it; "
                    "install that one, or run this one's `motet tokenize` again, which re-makes it"
                )
            return cls(
                store=store,
                modalities=tuple(data["modalities"]),
                tokenizers={m: TokenizerSpec.from_json(spec) for m, spec in data["tokenizers"].items()},
                settings_hash=data["settings_hash"],
                sources=tuple(data["sources"]),
                shards=tuple(
                    ShardEntry.from_json({**entry, "commit": commit})
                    for entry, commit in zip(data["shards"], commits or repeat(""), strict=bool(commits))
                ),
                codebooks=data["codebooks"],
                tables=data["tables"],
                lengths={source: _numbers(counts) for source, counts in data["lengths"].items()},
                span_lengths={
                    source: {m: _numbers(counts) for m, counts in by.items()}
                    for source, by in data["span_lengths"].items()
                },
                left_out={s: tuple(map(LeftOut.from_json, rows)) for s, rows in data.get("left_out", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where}: is damaged: {error!r}; run `motet tokenize` again, it re-makes it") from None

    def to_text(self) -> str:
        """The file's text: equal manifests give equal bytes. One shard a line, so that it can be read and compared."""
        head = {
            "format_version": FORMAT_VERSION,
            "modalities": list(self.modalities),
            "tokenizers": {m: spec.to_json() for m, spec in sorted(self.tokenizers.items())},
            "settings_hash": self.settings_hash,
            "sources": list(self.sources),
            "tables": self.tables,
            "codebooks": self.codebooks,
            "lengths": self.lengths,
            "span_lengths": self.span_lengths,
        }
        if self.left_out:
            head["left_out"] = {source: [row.to_json() for row in rows] for source, rows in self.left_out.items()}
        lines = [f' "{key}": {json.dumps(value)},' for key, value in head.items()]
        shards = ",\n".join(f"  {json.dumps(entry.to_json(), ensure_ascii=False)}" for entry in self.shards)
        return seal("\n".join(["{", *lines, f' "shards": [\n{shards}\n ]', "}"])).decode()

    def save(self) -> None:
        """Write the manifest, then the names of the commits that it was made of."""
        text = self.to_text().encode()
        self.store.write(NAME, text)
        names = {"manifest": content_hash(text), "commits": [entry.commit for entry in self.shards]}
        self.store.write(COMMITS, json.dumps(names, indent=0).encode())

    def open_shard(self, entry: ShardEntry) -> Shard:
        """A shard whose file is what was written; DamagedShard names it if it is not."""
        try:
            with self.store.local(entry.file) as path:
                return Shard(path, entry, entry.hash, name=f"{self.store}/{entry.file}")
        except FileNotFoundError:
            raise DamagedShard(
                f"{self.store}/{entry.file}: is missing; the same `motet tokenize` writes it again"
            ) from None

    @property
    def name(self) -> str:
        """The last part of where it lies."""
        return str(self.store).rstrip("/").rsplit("/", 1)[-1]

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """Every reject, as a dictionary of the columns of its file, in the order of the partitions."""
        for entry in self.shards:
            yield from self.rejected(entry)

    def rejected(self, entry: ShardEntry) -> list[dict[str, Any]]:
        """The rejects of one partition; DamagedShard if they are missing or not what was written."""
        return rejected(self.store, entry)

    def rejects(self) -> dict[str, int]:
        """Rejected samples by reason, over all shards."""
        total: Counter[str] = Counter()
        for entry in self.shards:
            total.update(entry.rejects)
        return dict(sorted(total.items()))

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return sum(entry.rows for entry in self.shards)


def rejected(store: Store, entry: ShardEntry) -> list[dict[str, Any]]:
    """`Manifest.rejected`, of a partition that a manifest need not name yet.

    The hash stands in the commit, because what decoders say of a file may differ from machine to machine. It is checked
    before Arrow reads the file, which could end the process otherwise.
    """
    if not entry.rejects:
        return []
    where = f"{store}/{entry.rejects_file}"
    try:
        data = store.read(entry.rejects_file)
    except FileNotFoundError:
        raise DamagedShard(f"{where}: is missing; the same `motet tokenize` writes it again") from None
    try:
        commit = unseal(store.read(f"commits/{entry.commit}")) if entry.commit else {}
        sound = commit.get("quarantine", content_hash(data)) == content_hash(data)
    except FileNotFoundError:
        sound = True  # a dataset that was copied without its commits
    except ValueError:
        sound = False
    if not sound:
        raise DamagedShard(f"{where}: is not what was written; `motet tokenize --retry-rejects` makes it again")
    try:
        return rejects.of_bytes(data)
    except (ValueError, OSError) as error:
        raise DamagedShard(f"{where}: cannot be read: {error}") from None


def _later(data: Mapping[str, Any]) -> list[str]:
    """Fields of a manifest's rows that no motet up to this one has written."""
    rows = ((ShardEntry, data["shards"]), *((LeftOut, rows) for rows in data.get("left_out", {}).values()))
    return sorted({name for kind, some in rows for row in some for name in row.keys() - _names(kind)})


@cache
def _names(kind: type) -> frozenset[str]:
    return frozenset(each.name for each in fields(kind))


def _numbers(counts: Mapping[str, int]) -> dict[int, int]:
    """A histogram as JSON has it, whose keys are strings."""
    return {int(length): count for length, count in counts.items()}
