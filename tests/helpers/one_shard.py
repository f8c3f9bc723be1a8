"""The manifest of a dataset of one shard, which a test has written."""

from collections.abc import Mapping
from pathlib import Path

from motet.pipeline.dataset.counts import Counts
from motet.pipeline.dataset.manifest import Manifest, ShardEntry
from motet.pipeline.dataset.shard import ShardSummary
from motet.pipeline.dataset.store import store_of
from motet.pipeline.dataset.totals import Sums
from motet.tokenizers.contract import TokenizerSpec


def manifest_of(
    folder: Path, file: str, summary: ShardSummary, specs: Mapping[str, TokenizerSpec], counts: Counts
) -> Manifest:
    """Written into `folder`, which has the shard `file` of source `a`: what was written of it, and counted."""
    entry = ShardEntry(
        file, "a", 0, summary.rows, summary.bytes, summary.hash, summary.batch_hashes, summary.batch_rows,
        summary.batch_offsets, rejects={}, inputs=(), **counts.told(),
    )  # fmt: skip
    sums = Sums()
    sums.add("a", counts.totals)
    own = (sums.codebooks, sums.lengths, sums.span_lengths)
    manifest = Manifest(store_of(folder), tuple(specs), specs, "h", ("a",), (entry,), *own, {"a": list(specs)})
    (folder / "manifest.json").write_text(manifest.to_text(), encoding="utf-8")
    return manifest
