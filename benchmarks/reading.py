#!/usr/bin/env python3
"""What checking costs a reader: an epoch over shards with the manifest's hashes, and without any.

    real text, tokenized once, its shard copied --copies--> a folder
    in turns: open every shard, gather all tokens of every record batch as int64, as a batch of training holds them
        checked:    as `Manifest.open_shard` does: the whole file's hash before anything is parsed
        unchecked:  the same file without hashes
    --> medians, and their ratio

The pages are in memory (read once before). A reader that checks does so once per shard and process, so that this is the
first epoch's cost; later epochs pay nothing.

    python benchmarks/reading.py [--megabytes 500] [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from motet.pipeline.config import TokenizeConfig
from motet.pipeline.job import tokenize_corpus
from motet.pipeline.shard import Shard
from motet.tokenizers.bpe import BPE
from motet.tokenizers.configuration import validate

CORPUS = Path(__file__).resolve().parent.parent / "examples/corpus"


def epoch(files: list[Path], batch_hashes: tuple[str, ...] | None, file_hash: str | None) -> float:
    """Seconds to read all tokens of all files."""
    start = time.perf_counter()
    for file in files:
        shard = Shard(file, batch_hashes, file_hash)
        for i in range(shard.num_batches):
            shard.batch(i).column("tokens").values.to_numpy().astype(np.int64)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=7)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
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
        files = [folder / f"{i}.arrow" for i in range(max(said.megabytes * 1_000_000 // entry.bytes, 1))]
        for file in files:
            shutil.copy(folder / "out" / entry.file, file)
        epoch(files, None, None)
        times = [(epoch(files, entry.batch_hashes, entry.hash), epoch(files, None, None)) for _ in range(said.repeats)]
        checked, unchecked = (statistics.median(side) for side in zip(*times, strict=True))
        tokens = sum(entry.tokens.values()) * len(files)
        cost = statistics.median(a / b - 1 for a, b in times)
        print(
            f"{platform.processor() or platform.machine()}, {len(files)} shards of {entry.bytes / 1e6:.1f} MB, medians of {said.repeats}"
        )
        print(
            f"checked {tokens / checked / 1e6:,.0f} Mtok/s, unchecked {tokens / unchecked / 1e6:,.0f} Mtok/s: the first epoch costs {cost:+.1%}"
        )


if __name__ == "__main__":
    main()
