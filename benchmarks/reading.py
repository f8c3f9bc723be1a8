#!/usr/bin/env python3
"""What checking costs who reads shards: an epoch with the manifest's hashes, and without any.

    real text, tokenized once, its shard copied --copies--> a dataset
    in turns, checked (training: each record batch's message before it is parsed; gather: the whole file) and unchecked:
        training: `Corpus.open`, then every document once through `Loader`, as grouped batches: what a training run reads
        gather:   nothing but all tokens of every record batch as int64: the least that a reader can do, at memory speed
    --> medians, and their ratios

The pages are in memory (read once before). A reader that checks does so once per shard and process, so that this is the
first epoch's cost; later epochs pay nothing.

    python benchmarks/reading.py [--megabytes 500] [--repeats 7]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from motet.core.configuration import validate
from motet.pipeline.dataset.index import Index, to_bytes
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.shard import Shard
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus
from motet.tokenizers.text.bpe import BPE
from motet.trainer.config import DataConfig
from motet.trainer.data import records
from motet.trainer.data.collate import Noise
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.loader import Loader
from motet.trainer.data.order import Order
from motet.trainer.data.records import Records
from motet.trainer.vocabulary import Towers, Vocabulary

CORPUS = Path(__file__).resolve().parent.parent / "examples/corpus"
SEQUENCE, ROWS = 4096, 16


def dataset(folder: Path, megabytes: int) -> Manifest:
    """Shards of so many megabytes: the bundled speeches in documents of 1,500 characters, one shard under many names."""
    texts = [json.loads(line)["text"] for line in (CORPUS / "text/speeches.jsonl").read_text("utf-8").splitlines()]
    BPE.fit([text.encode() for text in texts], folder / "bpe", {"vocabulary": 8192})
    lines = (json.dumps({"text": text[at : at + 1500]}) for text in texts * 8 for at in range(0, len(text), 1500))
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = {
        "corpus": [{"name": "text", "format": "text", "path": "text.jsonl"}],
        "tokenizers": {"text": {"use": "bpe", "path": "bpe"}},
        "partition_bytes": 1 << 30,
    }
    manifest = tokenize_corpus(validate(config, TokenizeConfig, "reading"), folder, folder / "out").manifest
    (entry,) = manifest.shards
    shards = []
    for i in range(max(megabytes * 1_000_000 // entry.bytes, 1)):
        name = f"shards/copy-{i:04}.arrow"
        shutil.copy(folder / "out" / entry.file, folder / "out" / name)
        shards.append(dataclasses.replace(entry, file=name, partition=i))
    return dataclasses.replace(manifest, shards=tuple(shards))


def gather(manifest: Manifest) -> None:
    """All tokens of all shards, a record batch at a time."""
    for entry in manifest.shards:
        shard = manifest.open_shard(entry)
        for i in range(shard.num_batches):
            shard.batch(i).column("tokens").values.to_numpy().astype(np.int64)


def training(manifest: Manifest) -> None:
    """Every document once, as training reads it."""
    corpus = Corpus(Records([Index.of(pa.py_buffer(to_bytes(manifest)), manifest.store)], "the dataset"))
    vocabulary = Vocabulary.of(corpus.tokenizers)
    data = DataConfig(paths=("the dataset",), sequence=SEQUENCE, holdout=0.0)
    loader = Loader(Order(corpus, data, ROWS, 0), vocabulary, Towers.of(vocabulary, {}), Noise(0, 1000))
    for _ in loader.once(ROWS):
        pass


def unchecked(manifest: Manifest, entry: object) -> Shard:
    """`Manifest.open_shard` without a hash."""
    return Shard(Path(str(manifest.store)) / entry.file)  # type: ignore[attr-defined]


def seconds(work: Callable[[Manifest], None], manifest: Manifest) -> float:
    """Of one epoch."""
    start = time.perf_counter()
    work(manifest)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=7)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        manifest = dataset(Path(name), said.megabytes)
        tokens = sum(sum(entry.tokens.values()) for entry in manifest.shards)
        print(
            f"{platform.processor() or platform.machine()}, {len(manifest.shards)} shards of "
            f"{manifest.shards[0].bytes / 1e6:.1f} MB, medians of {said.repeats}"
        )
        for work in (training, gather):
            seconds(work, manifest)
            times = []
            for _ in range(said.repeats):
                with patch.object(Manifest, "open_shard", unchecked), patch.object(records, "intact", lambda *_: True):
                    without = seconds(work, manifest)
                times.append((seconds(work, manifest), without))
            checked, without = (statistics.median(side) for side in zip(*times, strict=True))
            cost = statistics.median(a / b - 1 for a, b in times)
            print(
                f"{work.__name__}: checked {tokens / checked / 1e6:,.1f} Mtok/s, unchecked {tokens / without / 1e6:,.1f} "
                f"Mtok/s: the first epoch costs {cost:+.1%}"
            )


if __name__ == "__main__":
    main()
