#!/usr/bin/env python3
"""What the order of training costs: a restart, whatever the corpus holds, and planning, packing and reading.

    one shard of 2^19 short documents, under as many names as it takes --> datasets of 10^4 to 10^9 documents
        restart: a new process, packages imported: open, plan, go on from a cursor in mid-epoch, first batch
        memory:  private memory of that process over what it had before, beyond what is mapped
    one shard of real text in documents of 200 tokens on average, under 40 names --> a dataset
        packed:  rows of 2,048 tokens, int64, planned, packed and read in one thread; padding

The pages are in memory, and so are the loops that numba compiles once a machine.

    python benchmarks/stream.py [--most 9] [--repeats 5]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from motet.pipeline.index import NAME, to_bytes
from motet.pipeline.manifest import Manifest, ShardEntry
from motet.pipeline.shard import Document, ShardHeader, ShardWriter, sample_id
from motet.pipeline.store import store_of
from motet.tokenizers.contract import TokenizerSpec, Tokens

SPEC = TokenizerSpec("bytes", "text", "discrete", (8192,), 0, None, "text/plain", "0" * 32)
SHARD = 1 << 19
SPEECHES = Path(__file__).resolve().parent.parent / "examples/corpus/text/speeches.jsonl"


def shard(folder: Path, name: str, lengths: np.ndarray, ids: np.ndarray) -> ShardEntry:
    """One shard of documents of these lengths, cut out of `ids` one after another, again and again."""
    (folder / "shards").mkdir(parents=True)
    path = folder / "shards" / f"{name}.arrow"
    writer, at = ShardWriter(path, ShardHeader(("text",), {"text": SPEC}, ""), [name]), 0
    for i, n in enumerate(lengths.tolist()):
        at = 0 if at + n > len(ids) else at
        document = Tokens((n,), ids=ids[at : at + n])
        writer.write(Document(sample_id(name, str(i), [i.to_bytes(8, "little")]), name, (("text", document),)))
        at += n
    told = dataclasses.asdict(writer.close())
    tokens = {"text": int(lengths.sum())}
    return ShardEntry(
        f"shards/{name}.arrow", name, 0, tokens=tokens, spans={"text": len(lengths)}, rejects={}, inputs=(), **told
    )


def dataset(folder: Path, entry: ShardEntry, shards: int) -> None:
    """The shard under so many names."""
    entries = []
    for i in range(shards):
        file = entry.file if i == 0 else f"shards/{i:05}.arrow"
        if i:
            os.link(folder / entry.file, folder / file)
        entries.append(dataclasses.replace(entry, file=file, partition=i))
    tables = {entry.source: ["text"]}
    specs = {"text": SPEC}
    manifest = Manifest(
        store_of(folder), ("text",), specs, "", (entry.source,), tuple(entries), {"text": []}, tables=tables
    )
    (folder / NAME).write_bytes(to_bytes(manifest))


def private() -> int:
    """Bytes of this process that no file stands behind."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Anonymous:"))


def restart(folder: str) -> None:
    """In a process of its own: prints seconds to the first batch, and bytes."""
    from motet.trainer.config import DataConfig
    from motet.trainer.corpus import Corpus
    from motet.trainer.plan import Cursor, Plan
    from motet.trainer.render import Noise
    from motet.trainer.stream import Stream
    from motet.trainer.vocabulary import Towers, Vocabulary

    before, began = private(), time.perf_counter()
    corpus = Corpus.open([folder], "train", 0.01)
    vocabulary = Vocabulary.of(corpus.tokenizers)
    plan = Plan(corpus, DataConfig(paths=[folder], sequence=2048), 16, 0)
    documents = corpus.records.begin[-1]
    plan.remember(Cursor(documents // 256 // 16 * 16, (documents // 2,), (documents * 5,)))
    stream = Stream(plan, vocabulary, Towers.of(vocabulary, {}), Noise(0, 1000))
    stream.micro_batches(documents // 256 // 16, 0, 1, 16)
    print(json.dumps({"seconds": time.perf_counter() - began, "bytes": private() - before}))


def packed(folder: str, steps: int) -> tuple[float, float, float]:
    """(tokens a second planned and packed, as rows of int64, padding) over so many global batches of 64 rows."""
    from motet.trainer.config import DataConfig
    from motet.trainer.corpus import Corpus
    from motet.trainer.plan import Plan
    from motet.trainer.render import Noise
    from motet.trainer.stream import Stream
    from motet.trainer.vocabulary import Towers, Vocabulary

    corpus = Corpus.open([folder], "train", 0.0)
    vocabulary = Vocabulary.of(corpus.tokenizers)
    plan = Plan(corpus, DataConfig(paths=[folder], sequence=2048), 64, 0)
    stream = Stream(plan, vocabulary, Towers.of(vocabulary, {}), Noise(0, 1000))
    stream.micro_batches(0, 0, 1, 64)
    began = time.perf_counter()
    for step in range(steps):
        plan.rows_of(step)
    planned = time.perf_counter() - began
    began = time.perf_counter()
    for step in range(steps // 8):
        stream.micro_batches(step, 0, 1, 64)
    grouped = time.perf_counter() - began
    padding = statistics.fmean(plan.padding(step) for step in range(16))
    tokens = 64 * 2048
    return steps * tokens / planned, steps // 8 * tokens / grouped, padding


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["restart"]:
        restart(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=9, help="powers of ten of documents")
    parser.add_argument("--repeats", type=int, default=5)
    said = parser.parse_args()
    random = np.random.default_rng(0)
    ids = np.frombuffer(SPEECHES.read_bytes(), np.uint8).astype(np.int32)
    print(f"{platform.processor() or platform.machine()}, medians of {said.repeats}")
    with tempfile.TemporaryDirectory() as name:
        for power in range(4, said.most + 1):
            folder = Path(name) / str(power)
            documents = min(10**power, SHARD)
            entry = shard(folder, "short", random.integers(4, 12, documents), ids)
            dataset(folder, entry, -(-(10**power) // documents))
            command = [sys.executable, __file__, "restart", str(folder)]
            found = [json.loads(subprocess.check_output(command)) for _ in range(said.repeats + 1)][1:]
            seconds, memory = (statistics.median(f[key] for f in found) for key in ("seconds", "bytes"))
            print(f"restart, 10^{power} documents: {seconds:.3f} s to the first batch, {memory / 1e6:.0f} MB")
        folder = Path(name) / "packed"
        lengths = np.clip(random.lognormal(4.9, 0.9, SHARD // 8), 8, 2046).astype(int)
        dataset(folder, shard(folder, "text", lengths, ids), 40)
        found = [packed(str(folder), 400) for _ in range(said.repeats)]
        planned, grouped, padding = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"documents of {lengths.mean():.0f} tokens: planned, read and packed {planned / 1e6:.1f} Mtok/s, as grouped "
            f"batches {grouped / 1e6:.1f} Mtok/s, padding {padding:.2%}"
        )


if __name__ == "__main__":
    main()
