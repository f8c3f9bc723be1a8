"""Whether a token dataset is what was written: every hash and every invariant, damage told by place.

manifest --for each shard--> file hash -> record batch hashes -> spans, ids, latents within their bounds
                             -> counted again: tokens, spans, lengths -> the commit says the same --> problems
manifest --as a whole------> sources, partitions, codebook use, rejects agree with the commits --> problems
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from motet.pipeline.manifest import Manifest, ShardEntry
from motet.pipeline.shard import CURE, DamagedShard, Shard

BLOCK = 1 << 22


def verify(manifest: Manifest) -> Iterator[tuple[ShardEntry, list[str]]]:
    """(shard, its problems) for every shard in turn; an empty list is a sound shard."""
    for entry in manifest.shards:
        counts = Counts()
        problems = list(_shard(manifest, entry, counts)) if entry.file else []
        yield entry, [*problems, *_commit(manifest, entry, None if problems else counts)]


def whole(manifest: Manifest) -> list[str]:
    """Problems of the manifest as a whole: what no single shard can show."""
    found = []
    if set(manifest.modalities) != set(manifest.tokenizers):
        found.append("manifest.json: its modalities are not those of its tokenizers")
    numbers: dict[str, list[int]] = defaultdict(list)
    for entry in manifest.shards:
        numbers[entry.source].append(entry.partition)
    if any(partitions != list(range(len(partitions))) for partitions in numbers.values()):
        found.append("manifest.json: a source's partitions are not numbered from 0 without a gap")
    if list(numbers) != list(manifest.sources):
        found.append(f"manifest.json: shards of {', '.join(numbers)}; its sources are {', '.join(manifest.sources)}")
    commits = [commit for entry in manifest.shards if (commit := _committed(manifest, entry))]
    if len(commits) == len(manifest.shards):
        use: dict[str, Any] = {}
        for commit in commits:
            for modality, books in commit["codebooks"].items():
                arrays = [np.array(book, np.int64) for book in books]
                use[modality] = (
                    [a + b for a, b in zip(use[modality], arrays, strict=True)] if modality in use else arrays
                )
        if {m: [book.tolist() for book in books] for m, books in use.items()} != manifest.codebooks:
            found.append("manifest.json: its use of codebooks is not the sum of that of its shards")
    rejects = manifest.folder / "rejects.jsonl"
    if rejects.is_file():
        try:
            told = Counter(json.loads(line)["reason"] for line in rejects.read_text(encoding="utf-8").splitlines())
        except (ValueError, KeyError, TypeError):
            told = Counter({"(unreadable)": 1})
        if told != Counter(manifest.rejects()):
            found.append(f"rejects.jsonl: {dict(told)}; the manifest says {manifest.rejects()}")
    return found


def strangers(manifest: Manifest) -> list[str]:
    """Files under shards/ that the manifest does not name: harmless, left by an earlier or a killed run."""
    known = {entry.file for entry in manifest.shards}
    found = (f"shards/{path.name}" for path in sorted(manifest.folder.glob("shards/*")))
    return [name for name in found if name not in known]


@dataclass
class Counts:
    """What a shard's manifest entry says of its documents, counted again."""

    tokens: Counter[str] = field(default_factory=Counter)
    spans: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    span_lengths: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    codebooks: dict[str, list[np.ndarray]] = field(default_factory=dict)


def _shard(manifest: Manifest, entry: ShardEntry, counts: Counts) -> Iterator[str]:
    path = manifest.folder / entry.file
    if not path.is_file():
        yield f"{entry.file}: is missing"
        return
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    if path.stat().st_size != entry.bytes:
        yield f"{entry.file}: {path.stat().st_size} bytes, the manifest says {entry.bytes}"
    if changed := state.hexdigest() != entry.hash:
        yield f"{entry.file}: its bytes are not what was written; {CURE}"
    try:
        shard = Shard(path, entry.batch_hashes)
    except DamagedShard as damage:
        yield str(damage)
        return
    for modality, spec in shard.header.tokenizers.items():
        if manifest.tokenizers.get(modality) != spec:
            yield f"{entry.file}: {modality} was encoded by {spec.name} {spec.hash[:12]}, not by the manifest's tokenizer"
    rows = []
    for i in range(shard.num_batches):
        try:
            batch = shard.batch(i)
        except DamagedShard as damage:
            yield str(damage)
            continue
        rows.append(batch.num_rows)
        if not changed:  # what stands beside the data may be damaged too: no sense in reading on
            yield from (f"{entry.file}: record batch {i}: {problem}" for problem in _batch(batch, shard, counts))
            if set(batch.column("source").to_pylist()) != {entry.source}:
                yield f"{entry.file}: record batch {i}: documents of another source than {entry.source}"
    if sum(rows) != entry.rows:
        yield f"{entry.file}: {sum(rows)} sound documents, the manifest says {entry.rows}"
    elif tuple(rows) != entry.batch_rows:
        yield f"{entry.file}: record batches of {rows} documents, the manifest says {list(entry.batch_rows)}"
    for name in ("tokens", "spans", "lengths", "span_lengths"):
        counted, told = getattr(counts, name), getattr(entry, name)
        if not changed and counted != told:
            yield f"{entry.file}: {name}: {dict(counted)!s:.200}, the manifest says {told!s:.200}"


def _committed(manifest: Manifest, entry: ShardEntry) -> dict[str, Any] | None:
    """The commit that says the same of a partition as the manifest, if there is one."""
    for path in sorted((manifest.folder / "commits").glob(f"{entry.source}-{entry.partition:05d}-*.json")):
        try:
            commit = json.loads(path.read_text(encoding="utf-8"))
            if ShardEntry.from_json(commit["entry"]) == entry and {"rejects", "codebooks"} <= commit.keys():
                return commit
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _commit(manifest: Manifest, entry: ShardEntry, counts: Counts | None) -> Iterator[str]:
    """A dataset that was copied without its commits is whole without them."""
    if not (manifest.folder / "commits").is_dir():
        return
    where = entry.file or f"{entry.source}, partition {entry.partition}"
    commit = _committed(manifest, entry)
    if commit is None:
        yield f"{where}: no commit says the same of it as the manifest"
        return
    told = {m: books for m, books in commit["codebooks"].items() if np.any([np.any(book) for book in books])}
    if counts is not None and {m: [b.tolist() for b in books] for m, books in counts.codebooks.items()} != told:
        yield f"{where}: its use of codebooks is not what its commit says"
    if Counter(reject.get("reason") for reject in commit["rejects"]) != Counter(entry.rejects):
        yield f"{where}: its rejects are not those that its commit lists"


def _batch(batch: pa.RecordBatch, shard: Shard, counts: Counts) -> Iterator[str]:
    """Invariants between the columns of one record batch, which is counted too."""
    header = shard.header
    ends = batch.column("span_end")
    starts = ends.offsets.to_numpy()
    end_S = ends.values.to_numpy()
    begin_S = np.concatenate(([0], end_S[:-1]))
    begin_S[starts[:-1][np.diff(starts) > 0]] = 0
    length_S = end_S - begin_S
    modality_S = batch.column("span_modality").values.to_numpy()
    if (length_S < 0).any():
        yield "span ends fall"
        return
    if (modality_S >= len(header.modalities)).any():
        yield "a span of a modality that the header does not name"
        return
    shapes = batch.column("span_shape").values.to_pylist()
    if any(int(np.prod(shape)) != n for shape, n in zip(shapes, length_S.tolist(), strict=True)):
        yield "a span's grid is not its number of tokens"
    kinds = np.array([header.tokenizers[m].kind == "discrete" for m in header.modalities])
    discrete_S = kinds[modality_S]
    tokens = batch.column("tokens").values.to_numpy()
    if int(length_S[discrete_S].sum()) != len(tokens):
        yield f"{len(tokens)} ids for {int(length_S[discrete_S].sum())} discrete tokens"
        return
    owner_T = np.repeat(modality_S[discrete_S], length_S[discrete_S])
    within_T = np.arange(len(tokens)) - np.repeat(
        np.cumsum(length_S[discrete_S]) - length_S[discrete_S], length_S[discrete_S]
    )
    for code, modality in enumerate(header.modalities):
        books = header.tokenizers[modality].codebooks
        for k, size in enumerate(books):
            mine_T = (owner_T == code) & (within_T % len(books) == k)
            ids = tokens[mine_T]
            if (ids >= size).any():
                yield f"an id of {modality}, codebook {k}, is {int(ids.max())}; the codebook has {size}"
            elif len(ids):
                use = counts.codebooks.setdefault(modality, [np.zeros(n, np.int64) for n in books])
                use[k] += np.bincount(ids, minlength=size)
        lengths = length_S[modality_S == code].tolist()
        if lengths:
            counts.tokens[modality] += sum(lengths)
            counts.spans[modality] += len(lengths)
            counts.span_lengths[modality].update(lengths)
    last_D = np.where(np.diff(starts) > 0, end_S[np.maximum(starts[1:] - 1, 0)], 0) if len(end_S) else 0 * starts[1:]
    counts.lengths.update(last_D.tolist())
    if header.latent_dim:
        vectors = batch.column("latents").values
        if len(vectors) != int(length_S[~discrete_S].sum()):
            yield f"{len(vectors)} latents for {int(length_S[~discrete_S].sum())} continuous tokens"
        elif not np.isfinite(vectors.flatten().to_numpy().astype(np.float32)).all():
            yield "a latent is not a finite number"
