#!/usr/bin/env python3
"""One corpus of real tokens in two shapes, for every loader of the benchmark; each row and document tells which one it is.

    the bundled speeches -> byte-level BPE -> ids, repeated or cut to --tokens
      -> rows.npy                   uint16 [rows, 2048]
      -> docs.npy, doc_ends.npy     uint16 [tokens], int64 [documents]: log-normal lengths of mean 200, at most 2048

The first two tokens of row or document i are i % 60000 and i // 60000, so that what a loader lost or repeated is counted.

    python benchmarks/loader/corpus.py OUT [--tokens 16000000]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SPEECHES = Path(__file__).resolve().parent.parent.parent / "examples/corpus/text/speeches.jsonl"
LENGTH, BASE = 2048, 60_000
MEAN, SIGMA, SHORTEST = 200, 1.0, 4  # of documents, in tokens


def tokens() -> np.ndarray:
    """The speeches once, as uint16 ids."""
    from motet.tokenizers.text.bpe import BPE

    texts = [json.loads(line)["text"] for line in SPEECHES.read_text("utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        BPE.fit([text.encode() for text in texts], Path(folder), {"vocabulary": 8192})
        found = BPE(BPE.Settings(path=Path(folder))).encode(texts)
    return np.concatenate([np.asarray(each.ids) for each in found]).astype(np.uint16)


def lengths(total: int, seed: int = 0) -> np.ndarray:
    """Of documents that come to at most `total` tokens."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, 2 * total // MEAN)
    found = drawn.astype(np.int64).clip(SHORTEST, LENGTH)
    return found[found.cumsum() <= total]


def head(index: np.ndarray) -> np.ndarray:
    """The two tokens that name each index."""
    return np.stack([index % BASE, index // BASE], 1).astype(np.uint16)


def index(head: Any) -> np.ndarray:
    """What `head` named: [n, 2] -> [n]."""
    head = np.asarray(head).astype(np.int64)
    return head[:, 0] + BASE * head[:, 1]


def write(folder: Path, total: int) -> None:
    """Make both shapes, if they are not there."""
    if (folder / "doc_ends.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    total -= total % (16 * LENGTH)  # whole batches of 16 rows: nobody has to drop a last one
    text = np.resize(tokens(), total)
    rows = text.reshape(-1, LENGTH).copy()
    rows[:, :2] = head(np.arange(len(rows)))
    np.save(folder / "rows.npy", rows)
    ends = lengths(total).cumsum()
    docs = text[: ends[-1]].copy()
    starts = np.concatenate([[0], ends[:-1]])
    docs[starts[:, None] + np.arange(2)] = head(np.arange(len(ends)))
    np.save(folder / "docs.npy", docs)
    np.save(folder / "doc_ends.npy", ends)


def documents(folder: Path) -> list[np.ndarray]:
    """The documents, as views of one array."""
    ends = np.load(folder / "doc_ends.npy")
    return np.split(np.load(folder / "docs.npy"), ends[:-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=16_000_000)
    said = parser.parse_args()
    write(said.out, said.tokens)
    print(f"{len(np.load(said.out / 'rows.npy', 'r'))} rows, {len(np.load(said.out / 'doc_ends.npy', 'r'))} documents")
