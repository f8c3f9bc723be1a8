"""How frames of several codebooks become the tokens of a span: one after another, shifted against each other, or in part.

    `data.streams` --`table`--> [every, extra] of each modality: a span of c stored codes has c / every + extra tokens

- `flat`: every code is a token; the codebooks take turns.
- `first`: a token is a frame's first code; the others are left out (one stream of speech units, as in MoT's setting).
- `delayed`: codebook k runs k frames late (MusicGen, arXiv 2306.05284, section 2.1), and token p has the codes k of
  frames p - k, as many as there are: F frames of K codebooks take F + K - 1 tokens. The token enters as the sum of its
  codes' embeddings. The token before it predicts them all: code 0 among all ids, so that it competes with the end marker,
  each other one among its own codebook's. Where codebook 0 has ended, the end marker is told at once, by the token with
  the last frame's code 0; the K - 1 tokens after it only bring the other codebooks to their end.

Letters: M modalities, F frames, K codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from motet.core.errors import UserError
from motet.tokenizers.contract import TokenizerSpec


def table(tokenizers: Mapping[str, TokenizerSpec], modalities: Sequence[str], streams: Mapping[str, str]) -> np.ndarray:
    """int64 [M, 2]: stored codes to a token, and tokens beyond that: flat (1, 0), first (K, 0), delayed (K, K - 1).

    UserError for a stream of a modality that the data has not, or has as latents.
    """
    for modality, kind in streams.items():
        if not (modality in tokenizers and tokenizers[modality].codebooks):
            known = ", ".join(m for m in modalities if m in tokenizers and tokenizers[m].codebooks)
            raise UserError(f"data.streams: {modality}: {kind}: the data has no codes of that; it has codes of {known}")
    rules_M2 = np.empty((len(modalities), 2), np.int64)
    for m, modality in enumerate(modalities):
        books = len(tokenizers[modality].codebooks) if modality in tokenizers else 1
        kind = streams.get(modality, "flat") if books > 1 else "flat"
        rules_M2[m] = {"flat": (1, 0), "first": (books, 0), "delayed": (books, books - 1)}[kind]
    return rules_M2


def spread(ids_FK: np.ndarray, rule_2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A span's ids of the vocabulary as tokens: (an id of each token, the places of tokens with further ids, those ids)."""
    every, extra = rule_2.tolist()
    none = np.empty(0, np.int64)
    if not extra or not len(ids_FK):
        return ids_FK[:, 0] if every > 1 else ids_FK.reshape(-1), none, none
    frames, books = ids_FK.shape
    tokens = [[ids_FK[p - k, k] for k in range(books) if 0 <= p - k < frames] for p in range(frames + extra)]
    places = [p for p, ids in enumerate(tokens) for _ in ids[1:]]
    return np.array([ids[0] for ids in tokens]), np.array(places), np.array([id_ for ids in tokens for id_ in ids[1:]])
