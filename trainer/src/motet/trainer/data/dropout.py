"""Guidance dropout: some captioned documents are learnt without their caption, so that generation can be guided.

    rows --pieces whose caption comes first, drawn by (seed, epoch, document)--> cut in two before what is captioned --> rows

What follows a caption (codes or latents, between its markers) then is a document of its own: it counts positions from 0
and sees no caption. Generation compares it with the captioned one (classifier-free guidance, arXiv 2207.12598), and its
prompt without a condition is the opening marker alone. No token comes or goes, so rows stay as full as they were.

Letters: P pieces, C those that may be cut, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from motet.core.hashing import content_hash
from motet.trainer.data import shuffle
from motet.trainer.data.packed import Rows


@dataclass(frozen=True)
class Dropout:
    """Which captions are dropped: a pure function of (seed, epoch, document), whatever stands beside it.

    Attributes:
        seed: training's.
        share: how often, of the times that a caption comes first.
    """

    seed: int = 0
    share: float = 0.0

    def cut(self, rows: Rows) -> Rows:
        """The same rows, the chosen pieces as two: up to the marker after the caption, and from there on."""
        if not self.share:
            return rows
        documents, piece_P5 = rows.documents, rows.piece_P5
        chosen_C = np.flatnonzero(documents.captioned_D[piece_P5[:, 0]] & (piece_P5[:, 3] == 0))
        document_C, begin_C, end_C, _, epoch_C = piece_P5[chosen_C].T
        marker_C = 1 + documents.length_S[documents.span_D[document_C]]  # `bos` and the caption stand before it
        drop_C = (begin_C < marker_C) & (marker_C < end_C) & self._drawn(documents.key_D[document_C], epoch_C)
        parts_P = np.ones(len(piece_P5), np.int64)
        parts_P[chosen_C[drop_C]] = 2
        before_P1 = np.concatenate(([0], np.cumsum(parts_P)))
        cut_P5, first_C = np.repeat(piece_P5, parts_P, axis=0), before_P1[chosen_C[drop_C]]
        cut_P5[first_C, 2] = cut_P5[first_C + 1, 1] = marker_C[drop_C]
        return Rows(documents, cut_P5, before_P1[rows.start_R1])

    def _drawn(self, key_C: np.ndarray, epoch_C: np.ndarray) -> np.ndarray:
        chance_C = np.empty(len(key_C))
        for epoch in np.unique(epoch_C).tolist():
            this_C = epoch_C == epoch
            random_C = shuffle.scramble(
                key_C[this_C] ^ np.uint64(int(content_hash("guidance", self.seed, epoch)[:16], 16))
            )
            chance_C[this_C] = (random_C >> np.uint64(11)) * 2.0**-53
        return chance_C < self.share
