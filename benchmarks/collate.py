#!/usr/bin/env python3
"""What the collate costs on one core, for 65,536 tokens: a batch grouped by tower, counts of labels, hash of the rows.

    documents made up, in memory --best fit--> packed rows
        batch:  `Collate.batch`, as one batch of all rows, and row by row; drawing the noise alone, which is part of it
        numpy:  the same batch by whole-array operations (tests/trainer/reference_batch.py)
        counts: `Collate.counts`
        hash:   `hash_of_rows`

Texts are of 200 tokens on average, pictures of 256 codes or latents of 16 values, with captions of 25 tokens, speech of
8 codebooks x 40 frames, with transcripts of 30 tokens.

    python benchmarks/collate.py [--repeats 30]
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.trainer.data.collate import Collate, Noise
from motet.trainer.data.packed import Piece, Rows
from motet.trainer.data.packing import best_fit
from motet.trainer.run.metrics import hash_of_rows
from motet.trainer.vocabulary import Towers, Vocabulary

TOKENS, SEQUENCE = 1 << 16, 2048
REFERENCE = Path(__file__).resolve().parent.parent / "tests/trainer/reference_batch.py"


def vocabulary_of(**books: tuple[int, ...]) -> Vocabulary:
    """Modalities with these codebooks; one without any is given as latents of 16 values."""
    specs = {
        name: TokenizerSpec(name, name, "discrete" if of else "continuous", of, 0 if of else 16, None, "x/x", name)
        for name, of in books.items()
    }
    return Vocabulary.of(specs)


def rows_of(vocabulary: Vocabulary, documents_of: Callable) -> Rows:
    """Packed rows: a document of each kind that the vocabulary knows, in turns, until all rows are full."""
    random = np.random.default_rng(0)

    def codes(modality: str, frames: int) -> tuple[str, Tokens]:
        books = vocabulary.tokenizers[modality].codebooks
        return modality, Tokens((frames, len(books)), ids=random.integers(0, books, (frames, len(books))).reshape(-1))

    def picture() -> tuple[str, Tokens]:
        if vocabulary.latent_modality:
            return "image", Tokens((16, 16), latents=random.standard_normal((256, 16)).astype(np.float16))
        return codes("image", 256)

    made, tokens = [], 0
    while tokens < 1.2 * TOKENS:
        kinds = [[codes("text", int(np.clip(random.lognormal(4.9, 0.9), 8, SEQUENCE - 2)))]]
        if "image" in vocabulary.modalities:
            kinds.append([codes("text", int(random.integers(15, 35))), picture()])
        if "speech" in vocabulary.modalities:
            kinds.append([codes("text", int(random.integers(20, 40))), codes("speech", 40)])
        made += kinds
        tokens += sum(len(span) for document in kinds for _, span in document)
    documents = documents_of(vocabulary, made)
    length_D = documents.length_D.tolist()
    rows: dict[int, list[Piece]] = {}
    for d, row in enumerate(best_fit(documents.length_D, SEQUENCE).tolist()):
        flipped = len(made[d]) == 2 and d % 4 == 0
        rows.setdefault(row, []).append(Piece(d, 0, length_D[d], flipped, 0))
    return Rows.of(documents, [tuple(rows[r]) for r in sorted(rows)][: TOKENS // SEQUENCE])


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The median, after two times that do not count."""
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[2:])


def measured(vocabulary: Vocabulary, reference: Any, repeats: int) -> str:
    """Milliseconds of everything that the host does for 64k tokens."""
    towers, noise = Towers.of(vocabulary, {}), Noise(0, 1000)
    rows = rows_of(vocabulary, reference.documents_of)
    renderer = Collate(vocabulary, towers, SEQUENCE, noise)
    batch, singly = renderer.batch(rows), [rows.taken([r]) for r in range(len(rows))]
    numbers, pictures = list(range(batch.rows)), int(batch.block_T.max())
    noise_ND = np.empty((256, 16), np.float32)
    work = {
        "batch": lambda: renderer.batch(rows),
        "row by row": lambda: [renderer.batch(row) for row in singly],
        "of it noise": lambda: [noise.draw(0, i, 1, False, noise_ND) for i in range(pictures)],
        "numpy": lambda: reference.reference_batch(vocabulary, towers, rows, SEQUENCE, noise),
        "counts": lambda: renderer.counts(rows),
        "hash": lambda: hash_of_rows(batch, numbers),
    }
    found = ", ".join(f"{what} {milliseconds(run, repeats):.2f}" for what, run in work.items())
    return f"({len(rows.piece_P5)} pieces, {pictures} pictures as latents): {found}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    spec = importlib.util.spec_from_file_location("reference_batch", REFERENCE)
    assert spec and spec.loader
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {TOKENS} tokens in rows of {SEQUENCE}, medians of {repeats}, ms"
    )
    speech = (512,) * 8
    mixes = {
        "text": vocabulary_of(text=(32768,)),
        "text, speech, pictures as codes": vocabulary_of(text=(32768,), speech=speech, image=(8192,)),
        "text, speech, pictures as latents": vocabulary_of(text=(32768,), speech=speech, image=()),
    }
    for name, vocabulary in mixes.items():
        print(f"{name} {measured(vocabulary, reference, repeats)}")


if __name__ == "__main__":
    main()
