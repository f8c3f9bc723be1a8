"""From pieces of documents to packed rows in sequence order.

    rows of pieces --`lay_out`--> segments (a marker, or the body of a span) --`render`--> `Packed` arrays, flat
                                                                            --`label_counts`--> labels by modality

A document is rendered as `bos`, for each span `begin` body `end` (a text span is its body alone), `eos`; a piece is a
stretch of that. A segment is one marker or one body, clipped to its piece. Tables of segments are small, so only the
last step touches tokens, and it does so in whole-array operations: ids and latents by their places, then offsets into
the vocabulary, positions and numbers by repetition.

Letters: P pieces, Z spans of those pieces, G segments, L tokens in all, N latents of width D.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from motet.tokenizers.contract import content_hash

from .batch import Packed
from .corpus import Documents
from .objective import DIFFUSION
from .plan import Piece, Rows
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Noise:
    """The diffusion noise of training, a pure function of (seed, epoch, document, span).

    Attributes:
        seed: training's, or a fixed one for evaluation, so that evaluations compare.
        steps: diffusion steps; times are 0..steps-1. A picture before its caption gets less than half of them, or the
            caption could not be learnt from it (Transfusion, arXiv 2408.11039, section 4.3.4).
    """

    seed: int
    steps: int

    def draw(self, epoch: int, document: int, span: int, shape: tuple[int, int], early: bool) -> tuple[int, np.ndarray]:
        """(diffusion step, standard normal float32 of this shape) of one picture; `document` is its key."""
        random = np.random.Generator(np.random.Philox(key=[self._key, epoch], counter=[0, span, document, 0]))
        time = int(random.random() * (self.steps // 2 if early else self.steps))
        return time, random.standard_normal(shape, np.float32)

    @cached_property
    def _key(self) -> int:
        return int(content_hash("noise", self.seed)[:16], 16)


@dataclass(frozen=True)
class Segments:
    """What stands in the rows, in reading order.

    Attributes:
        documents: what `document_P` and `span_G` count in.
        document_P, begin_P, end_P, epoch_P, flipped_P, row_P: the pieces and the rows that hold them.
        piece_G: the piece of each segment.
        span_G: its span in `documents` if it is a body, else -1.
        marker_G: the marker's id, pad for a body.
        modality_G: index into the vocabulary's modalities; text (0) for markers.
        closes_G: bool; the segment is the end marker of a continuous span, which is not learnt.
        skip_G: tokens of the segment before the piece begins.
        length_G: its tokens inside the piece.
        first_G: bool; the piece's first token stands in it.
    """

    documents: Documents
    document_P: np.ndarray
    begin_P: np.ndarray
    end_P: np.ndarray
    epoch_P: np.ndarray
    flipped_P: np.ndarray
    row_P: np.ndarray
    piece_G: np.ndarray
    span_G: np.ndarray
    marker_G: np.ndarray
    modality_G: np.ndarray
    closes_G: np.ndarray
    skip_G: np.ndarray
    length_G: np.ndarray
    first_G: np.ndarray


def lay_out(vocabulary: Vocabulary, chosen: Rows) -> Segments:
    """The segments of these rows."""
    documents, rows = chosen.documents, chosen.rows
    pieces = [piece for row in rows for piece in row]
    document_P, begin_P, end_P, flipped_P, epoch_P = np.array(pieces, np.int64).reshape(-1, len(Piece._fields)).T
    spans_P = documents.spans_D[document_P].astype(np.int64)

    # The spans of each piece's document, in reading order.
    piece_Z = np.repeat(np.arange(len(pieces)), spans_P)
    nth_Z = _count_within(spans_P)
    stored_Z = np.where(flipped_P[piece_Z] > 0, spans_P[piece_Z] - 1 - nth_Z, nth_Z)
    span_Z = documents.span_D[document_P[piece_Z]] + stored_Z
    known = np.array([vocabulary.modalities.index(m) for m in documents.modalities], np.int64)
    modality_Z = known[documents.modality_S[span_Z]]

    # Of each piece: bos, three segments per span (text has empty markers), eos.
    segments_P = 2 + 3 * spans_P
    first_P = np.cumsum(segments_P) - segments_P
    body_Z = first_P[piece_Z] + 2 + 3 * nth_Z
    G = int(segments_P.sum())
    length_G, span_G, modality_G = np.ones(G, np.int64), np.full(G, -1), np.zeros(G, np.int64)
    marker_G, closes_G = np.full(G, vocabulary.pad, np.int64), np.zeros(G, bool)
    length_G[body_Z], span_G[body_Z], modality_G[body_Z] = documents.length_S[span_Z], span_Z, modality_Z
    length_G[body_Z - 1] = length_G[body_Z + 1] = modality_Z != 0
    marker_G[first_P], marker_G[first_P + segments_P - 1] = vocabulary.bos, vocabulary.eos
    for mark, ids in ((-1, vocabulary.begin), (1, vocabulary.end)):
        marker_G[body_Z + mark] = np.array([0, *(ids[m] for m in vocabulary.modalities[1:])])[modality_Z]
    if vocabulary.latent_modality:
        closes_G[body_Z + 1] = modality_Z == vocabulary.modalities.index(vocabulary.latent_modality)

    piece_G = np.repeat(np.arange(len(pieces)), segments_P)
    stop_G = np.cumsum(length_G)
    at_G = stop_G - length_G
    at_G -= at_G[first_P][piece_G]
    from_G = np.clip(at_G, begin_P[piece_G], end_P[piece_G])
    until_G = np.clip(at_G + length_G, begin_P[piece_G], end_P[piece_G])
    keep_G = until_G > from_G
    return Segments(
        documents=documents,
        document_P=document_P,
        begin_P=begin_P,
        end_P=end_P,
        epoch_P=epoch_P,
        flipped_P=flipped_P,
        row_P=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        piece_G=piece_G[keep_G],
        span_G=span_G[keep_G],
        marker_G=marker_G[keep_G],
        modality_G=modality_G[keep_G],
        closes_G=closes_G[keep_G],
        skip_G=(from_G - at_G)[keep_G],
        length_G=(until_G - from_G)[keep_G],
        first_G=(from_G == begin_P[piece_G])[keep_G],
    )


def label_counts(segments: Segments, vocabulary: Vocabulary) -> dict[str, int]:
    """Labels of each modality in these rows, without reading a token; latents under `diffusion`.

    A token is a label unless it is the first of its piece, a latent, or follows one.
    """
    latent = vocabulary.modalities.index(vocabulary.latent_modality) if vocabulary.latent_modality else -1
    labels_G = np.where(segments.closes_G | (segments.modality_G == latent), 0, segments.length_G - segments.first_G)
    sums = np.bincount(segments.modality_G, labels_G, minlength=len(vocabulary.modalities)).astype(int).tolist()
    counts = dict(zip(vocabulary.modalities, sums, strict=True))
    if vocabulary.latent_modality:
        counts[DIFFUSION] = int(segments.length_G[segments.modality_G == latent].sum())
    return counts


def render(vocabulary: Vocabulary, rows: Rows, sequence: int, noise: Noise) -> Packed:
    """The rows as flat arrays in sequence order; places that no piece fills are padding."""
    s = lay_out(vocabulary, rows)
    T = len(rows.rows) * sequence
    length_P = s.end_P - s.begin_P
    column_P = np.cumsum(length_P) - length_P
    if len(length_P):
        new_row_P = np.concatenate(([True], s.row_P[1:] != s.row_P[:-1]))
        column_P -= np.maximum.accumulate(np.where(new_row_P, column_P, 0))
    target_L = np.repeat(s.row_P * sequence + column_P, length_P) + _count_within(length_P)

    within_L = _count_within(s.length_G)
    ids_L = np.repeat(s.marker_G, s.length_G)
    latent = vocabulary.modalities.index(vocabulary.latent_modality) if vocabulary.latent_modality else -1
    latent_G = (s.span_G >= 0) & (s.modality_G == latent)
    codes_G = (s.span_G >= 0) & ~latent_G
    codes_L = np.repeat(codes_G, s.length_G)
    if codes_G.any():
        # Id in the vocabulary: the tokenizer's own plus the base of its codebook, the codebooks taking turns.
        books_M = np.array([max(len(vocabulary.base[m]), 1) for m in vocabulary.modalities])
        base_MK = np.zeros((len(books_M), books_M.max()), np.int64)
        for m, modality in enumerate(vocabulary.modalities):
            base_MK[m, : len(vocabulary.base[modality])] = vocabulary.base[modality]
        modality_C = np.repeat(s.modality_G[codes_G], s.length_G[codes_G])
        book_C = (np.repeat(s.skip_G, s.length_G) + within_L)[codes_L] % books_M[modality_C]
        ids_L[codes_L] = s.documents.tokens_T[_places(s, codes_G)] + base_MK[modality_C, book_C]

    latents_ND, noise_ND, time_N = _latents(vocabulary, s, latent_G, noise)

    def place(values_L: np.ndarray, dtype: type, empty: int = 0) -> np.ndarray:
        values_T: np.ndarray = np.full(T, empty, dtype)
        values_T[target_L] = values_L
        return values_T

    return Packed(
        sequence=sequence,
        ids_T=place(ids_L, np.int64, vocabulary.pad),
        position_T=place(_count_within(length_P), np.int64),
        document_T=place(np.repeat(np.arange(1, len(length_P) + 1), length_P), np.int32),
        block_T=place(np.repeat(np.where(latent_G, np.cumsum(latent_G), 0), s.length_G), np.int32),
        modality_T=place(np.repeat(s.modality_G, s.length_G), np.uint8),
        latents_ND=latents_ND,
        noise_ND=noise_ND,
        time_N=time_N,
    )


def _latents(
    vocabulary: Vocabulary, s: Segments, latent_G: np.ndarray, noise: Noise
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(latents, noise, diffusion step) of the pictures in the rows."""
    documents, length_N = s.documents, s.length_G[latent_G]
    if not len(length_N):
        empty = np.empty((0, vocabulary.latent_dim), np.float32)
        return empty, empty.copy(), np.empty(0, np.int64)
    piece_N = s.piece_G[latent_G]
    document_N = s.document_P[piece_N]
    nth_N = s.span_G[latent_G] - documents.span_D[document_N]
    two_N = documents.spans_D[document_N] == 2
    other_N = np.where(two_N, documents.span_D[document_N] + 1 - nth_N, s.span_G[latent_G])
    leads_N = nth_N == s.flipped_P[piece_N]  # of two spans, the first as read
    early_N = two_N & leads_N & (documents.modality_S[other_N] == 0)
    columns = (s.epoch_P[piece_N], documents.key_D[document_N], nth_N, early_N, length_N)
    drawn = [
        noise.draw(epoch, document, nth, (length, vocabulary.latent_dim), early)
        for epoch, document, nth, early, length in zip(*(c.tolist() for c in columns), strict=True)
    ]
    return (
        documents.latents_VW[_places(s, latent_G)].astype(np.float32),
        np.concatenate([normal for _, normal in drawn]),
        np.repeat(np.array([time for time, _ in drawn], np.int64), length_N),
    )


def _places(s: Segments, chosen_G: np.ndarray) -> np.ndarray:
    """Where the ids or latents of the chosen bodies stand in `documents`, one after another."""
    start_G = s.documents.at_S[s.span_G[chosen_G]] + s.skip_G[chosen_G]
    length_G = s.length_G[chosen_G]
    return np.repeat(start_G, length_G) + _count_within(length_G)


def _count_within(length_X: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... anew in each run of these lengths."""
    return np.arange(int(length_X.sum())) - np.repeat(np.cumsum(length_X) - length_X, length_X)
