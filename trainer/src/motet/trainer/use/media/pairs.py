"""Captioned documents that a run never saw, and what its model makes of them.

    held-out split --documents of a text and one picture or recording--> `heldout_pairs` --either half as the prompt-->
    `follow` --> tokens, beside those that really stand there

They are drawn, not selected: of the held-out documents in the order of evaluation, those with the least content hash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from motet.core.errors import UserError
from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.trainer.data import damage
from motet.trainer.data.corpus import Documents
from motet.trainer.data.damage import without_damage
from motet.trainer.data.loader import EVALUATION_SEED, heldout_order
from motet.trainer.data.opened import Opened
from motet.trainer.data.order import Damage
from motet.trainer.generate.generator import Generator, Sampling
from motet.trainer.use.media.samples import BATCH
from motet.trainer.use.trained import Trained
from motet.trainer.vocabulary import TEXT

WORDS = 64
"""Most text ids of a generated caption."""


@dataclass(frozen=True)
class Pair:
    """A held-out document: a text, and the picture or recording (`modality`) that it belongs to."""

    modality: str
    text: Tokens
    media: Tokens


def heldout_pairs(trained: Trained, modality: str, count: int) -> list[Pair]:
    """The first `count` held-out documents of a text and one span of `modality`, or all if there are fewer.

    UserError if there is none.
    """
    training = trained.of_run()
    data = training.config.data
    corpus = Opened.of(data.unweighed, 1, EVALUATION_SEED).heldout
    if modality not in corpus.modalities[1:]:
        known = ", ".join(corpus.modalities[1:])
        raise UserError(f"{modality}: the model knows no such modality beside text; it knows {known}")

    def found(left_out: list[Damage]) -> list[Pair]:
        hash_N, number_N = np.empty(0, np.uint64), np.empty(0, np.int64)
        for rows in heldout_order(corpus, data, left_out).once():
            pair_D = _pairs(rows.documents, modality)
            hash_N = np.concatenate([hash_N, rows.documents.sample_D2[pair_D, 0]])
            number_N = np.concatenate([number_N, rows.documents.number_D[pair_D]])
            if len(number_N) >= count:
                break
        documents = corpus.read(number_N[np.argsort(hash_N, kind="stable")[:count]])
        return [_pair(documents, d, corpus.tokenizers[modality]) for d in range(len(documents))]

    pairs = without_damage(found, [Damage(0, each.lost) for each in damage.read(training.home)])
    if not pairs:
        raise UserError(f"data.holdout: {data.holdout} holds out no document of a text and one {modality}; raise it")
    return pairs


def follow(generator: Generator, pairs: Sequence[Pair], to: str, sampling: Sampling) -> Iterator[Tokens]:
    """What the model has follow on the other half of each pair: `to` is the pairs' modality, or text.

    A picture has the shape of the real one; speech lasts at most as long as the longest real recording of its batch.
    """
    for begin in range(0, len(pairs), BATCH):
        some = pairs[begin : begin + BATCH]
        own = replace(sampling, seed=sampling.seed + begin)  # or every batch would begin with the same noise
        if to == TEXT:
            yield from generator.continue_([[(p.modality, p.media)] for p in some], TEXT, limit=WORDS, sampling=own)
            continue
        prompts = [[(TEXT, p.text)] for p in some]
        if to == "image":
            yield from generator.continue_(prompts, to, shape=some[0].media.shape, sampling=own)
        else:
            longest = max(p.media.shape[0] for p in some)
            yield from generator.continue_(prompts, to, limit=longest, sampling=own)


def _pairs(documents: Documents, modality: str) -> np.ndarray:
    """The numbers in the table of the documents that are a text and one span of `modality`, in either order."""
    two_D = np.flatnonzero(documents.spans_D == 2)
    kinds_D2 = documents.modality_S[documents.span_D[two_D][:, None] + np.arange(2)]
    return two_D[(np.sort(kinds_D2, axis=1) == (0, documents.modalities.index(modality))).all(1)]


def _pair(documents: Documents, d: int, spec: TokenizerSpec) -> Pair:
    found = {}
    for span in range(int(documents.span_D[d]), int(documents.span_D[d]) + 2):
        name = documents.modalities[documents.modality_S[span]]
        at, length = int(documents.at_S[span]), int(documents.length_S[span])
        if name == spec.modality and spec.kind == "continuous":
            found[name] = Tokens(_grid(spec, length), latents=documents.latents_VW[at : at + length])
        else:
            shape = (length,) if name == TEXT else _grid(spec, length)
            found[name] = Tokens(shape, ids=documents.tokens_T[at : at + length].astype(np.int32))
    return Pair(spec.modality, found[TEXT], found[spec.modality])


def _grid(spec: TokenizerSpec, tokens: int) -> tuple[int, ...]:
    """Pictures are square; of the rest the last axis is the codebook."""
    if spec.modality == "image":
        return math.isqrt(tokens), math.isqrt(tokens)
    books = max(len(spec.codebooks), 1)
    return tokens // books, books
