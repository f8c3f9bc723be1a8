"""Whether a token dataset is what was written: every hash and every invariant, damage told by place.

manifest --for each shard--> file hash -> record batch hashes -> spans, ids, latents within their bounds --> problems
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import xxhash

from motet.pipeline.manifest import Manifest, ShardEntry
from motet.pipeline.shard import DamagedShard, Shard

BLOCK = 1 << 22


def verify(manifest: Manifest) -> Iterator[tuple[ShardEntry, list[str]]]:
    """(shard, its problems) for every shard in turn; an empty list is a sound shard."""
    for entry in manifest.shards:
        yield entry, list(_shard(manifest, entry)) if entry.file else []


def strangers(manifest: Manifest) -> list[str]:
    """Files under shards/ that the manifest does not name: harmless, left by an earlier or a killed run."""
    known = {entry.file for entry in manifest.shards}
    found = (f"shards/{path.name}" for path in sorted(manifest.folder.glob("shards/*")))
    return [name for name in found if name not in known]


def _shard(manifest: Manifest, entry: ShardEntry) -> Iterator[str]:
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
    if state.hexdigest() != entry.hash:
        yield f"{entry.file}: its bytes are not what was written"
    try:
        shard = manifest.open_shard(entry)
    except DamagedShard as damage:
        yield str(damage)
        return
    for modality, spec in shard.header.tokenizers.items():
        if manifest.tokenizers.get(modality) != spec:
            yield f"{entry.file}: {modality} was encoded by {spec.name} {spec.hash[:12]}, not by the manifest's tokenizer"
    rows = 0
    for i in range(shard.num_batches):
        try:
            batch = shard.batch(i)
        except DamagedShard as damage:
            yield str(damage)
            continue
        rows += batch.num_rows
        yield from (f"{entry.file}: record batch {i}: {problem}" for problem in _batch(batch, shard))
    if rows != entry.rows:
        yield f"{entry.file}: {rows} sound documents, the manifest says {entry.rows}"


def _batch(batch: pa.RecordBatch, shard: Shard) -> Iterator[str]:
    """Invariants between the columns of one record batch."""
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
        for k, size in enumerate(header.tokenizers[modality].codebooks):
            mine_T = (owner_T == code) & (within_T % len(header.tokenizers[modality].codebooks) == k)
            if (tokens[mine_T] >= size).any():
                yield f"an id of {modality}, codebook {k}, is {int(tokens[mine_T].max())}; the codebook has {size}"
    if header.latent_dim:
        vectors = batch.column("latents").values
        if len(vectors) != int(length_S[~discrete_S].sum()):
            yield f"{len(vectors)} latents for {int(length_S[~discrete_S].sum())} continuous tokens"
        elif not np.isfinite(vectors.flatten().to_numpy().astype(np.float32)).all():
            yield "a latent is not a finite number"
