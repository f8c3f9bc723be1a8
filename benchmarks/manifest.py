"""The manifest of 100,000 shards: how long it takes to make, write, load and tell statistics from.

    python -m benchmarks.manifest [--shards 100000] [--vocabulary 131072] [--commits 1000]

Each shard is as one of a text corpus in partitions of 8 MiB: 4,000 documents of lognormal length, ids of a Zipf law. What
commits say is made by the same `Counts` that tokenizing uses; all times are of one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from motet.pipeline.dataset import index
from motet.pipeline.dataset.commits import Output
from motet.pipeline.dataset.counts import Counts
from motet.pipeline.dataset.manifest import NAME, Manifest, ShardEntry
from motet.pipeline.dataset.seal import seal
from motet.pipeline.dataset.shard import Document
from motet.pipeline.dataset.statistics import statistics
from motet.pipeline.dataset.store import store_of
from motet.pipeline.dataset.totals import Sums
from motet.tokenizers.contract import TokenizerSpec, Tokens

DOCUMENTS = 4000
TEMPLATES = 8


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long it took, and the most memory that the process had so far."""
    begin = time.perf_counter()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:64}{time.perf_counter() - begin:9.2f} s   {memory:6.2f} GiB at most", flush=True)


def counted(random: np.random.Generator, vocabulary: int) -> Counts:
    """What is counted while one shard is written."""
    counts = Counts({"text": (vocabulary,)})
    lengths = np.maximum(random.lognormal(5.7, 1, DOCUMENTS).astype(int), 1)
    ids = ((random.zipf(1.2, lengths.sum()) - 1) % vocabulary).astype(np.int32)
    for text in np.split(ids, np.cumsum(lengths)[:-1]):
        counts.document(Document(random.bytes(16), "web", (("text", Tokens((len(text),), ids=text)),), "en"))
    return counts


def entries(shards: int, counts: list[Counts], random: np.random.Generator) -> Iterator[ShardEntry]:
    """Entries as those of real shards, each with hashes of its own."""
    for i in range(shards):
        template = counts[i % len(counts)]
        name = f"web-{i:05d}-{random.bytes(6).hex()}"
        hashes = np.sort(random.integers(0, 2**64 * 64 // DOCUMENTS, 64, np.uint64, endpoint=True)).astype(">u8")
        yield ShardEntry(
            file=f"shards/{name}.arrow",
            source="web",
            partition=i,
            rows=DOCUMENTS,
            bytes=random.integers(1 << 22, 1 << 23).item(),
            hash=random.bytes(16).hex(),
            batch_hashes=tuple(random.bytes(8).hex() for _ in range(8)),
            batch_rows=(512,) * 7 + (416,),
            batch_offsets=tuple(range(4096, 4096 + 9 * 524_288, 524_288)),
            rejects={"not-json": 1},
            inputs=({"path": f"web/{i:05d}.jsonl", "size": 8 << 20, "hash": random.bytes(16).hex()},),
            languages=template.languages,
            commit=f"{name}.json",
            **{**template.told(), "sketch": hashes.tobytes().hex()},
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--vocabulary", type=int, default=1 << 17)
    parser.add_argument("--commits", type=int, default=1000, help="commit files that are written and read")
    settings = parser.parse_args()
    random = np.random.default_rng(0)
    begin = time.perf_counter()
    counts = [counted(random, settings.vocabulary) for _ in range(TEMPLATES)]
    tokens = sum(c.told()["tokens"]["text"] for c in counts)
    print(f"counting, making the ids included: {(time.perf_counter() - begin) / tokens * 1e9:.1f} ns a token")
    spec = TokenizerSpec("bpe", "text", "discrete", (settings.vocabulary,), 0, None, "text/plain", "0" * 32)
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(folder)
        (Path(folder) / ".tmp").mkdir()
        with timed(f"(making {settings.shards:,} entries for this benchmark)"):
            made = tuple(entries(settings.shards, counts, random))
        some = made[: settings.commits]
        for i, entry in enumerate(some):
            commit = {"entry": entry.to_json(), "totals": counts[i % TEMPLATES].totals.to_json()}
            place = Path(folder) / "commits" / entry.commit
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(seal(json.dumps(commit)))
        size = sum(file.stat().st_size for file in (Path(folder) / "commits").iterdir()) / len(some)
        sums = Sums()
        with timed(f"{len(some):,} commits of {size / 1e3:.0f} kB read and summed"):
            for _, commit in Output(store)._read([entry.commit for entry in some]):
                sums.add(commit["entry"].source, commit["totals"])
        manifest = Manifest(store, ("text",), {"text": spec}, "0" * 32, ("web",), made, sums.codebooks, sums.lengths)
        manifest = replace(manifest, span_lengths=sums.span_lengths)
        with timed("manifest written"):
            index.write(manifest)
            manifest.save()
        print(f"{(Path(folder) / NAME).stat().st_size / 1e6:.0f} MB, {len(made):,} shards")
        with timed("manifest loaded"):
            loaded = Manifest.load(folder)
        assert loaded.shards == made
        with timed("statistics"):
            found = statistics(loaded)
        assert found.documents == DOCUMENTS * len(made)
        print(f"duplicates rest on {found.duplicates.hashes:,} hashes")


if __name__ == "__main__":
    main()
