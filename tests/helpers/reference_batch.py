"""Batches made another way: whole-array operations of numpy on a table of segments, then a sort by tower.

    documents written down as spans --`documents_of`--> `Documents`
    rows --`uncaptioned`--> rows, some captions by themselves
         --`reference_batch`--> the `GroupedBatch` that `Collate.batch` must give, bit by bit

Letters: P pieces, Z spans of those pieces, G segments (a marker, or the body of a span), L tokens in all, T places.
"""

from collections.abc import Sequence

import numpy as np
import torch

from motet.core.hashing import content_hash
from motet.tokenizers.contract import Tokens
from motet.trainer.data import shuffle
from motet.trainer.data.batch import GroupedBatch
from motet.trainer.data.collate import Noise
from motet.trainer.data.corpus import Documents
from motet.trainer.data.dropout import Dropout
from motet.trainer.data.packed import Rows
from motet.trainer.vocabulary import Towers, Vocabulary


def documents_of(vocabulary: Vocabulary, documents: Sequence[Sequence[tuple[str, Tokens]]], seed: int = 0) -> Documents:
    """A table of these documents, each a sequence of (modality, tokens); their sample ids are drawn."""
    names, latent = vocabulary.modalities, vocabulary.latent_modality
    spans = [span for document in documents for span in document]
    length_S = np.array([len(tokens) for _, tokens in spans], np.int64)
    latent_S = np.array([modality == latent for modality, _ in spans], bool)
    at_S = np.where(latent_S, _before(length_S * latent_S), _before(length_S * ~latent_S))
    spans_D = np.array([len(document) for document in documents], np.int64)
    marks = [2 + sum(len(tokens) + 2 * (m != "text") for m, tokens in document) for document in documents]
    return Documents(
        modalities=names,
        continuous=tuple(name == latent for name in names),
        number_D=np.arange(len(documents)),
        sample_D2=np.random.default_rng(seed).integers(0, 1 << 64, (len(documents), 2), np.uint64),
        source_D=np.zeros(len(documents), np.int16),
        length_D=np.array(marks, np.int64),
        span_D=_before(spans_D),
        spans_D=spans_D,
        modality_S=np.array([names.index(modality) for modality, _ in spans], np.uint8),
        length_S=length_S,
        at_S=at_S.astype(np.int64),
        height_S=np.where(latent_S, [tokens.shape[0] for _, tokens in spans], 0) if spans else at_S,
        tokens_T=np.concatenate([np.empty(0, np.int64), *(t.ids for m, t in spans if m != latent)]).astype(np.int64),
        latents_VW=np.concatenate(
            [np.empty((0, vocabulary.latent_dim), np.float16), *(t.latents for m, t in spans if m == latent)]
        ),
    )


def uncaptioned(rows: Rows, dropout: Dropout) -> Rows:
    """The rows with the pieces cut that guidance dropout cuts, one piece after another."""
    documents, cut = rows.documents, []
    for row in rows.rows:
        cut.append([])
        for piece in row:
            first = int(documents.span_D[piece.document])
            kinds = documents.modality_S[first : first + int(documents.spans_D[piece.document])].tolist()
            key = int(documents.key_D[piece.document]) ^ int(
                content_hash("guidance", dropout.seed, piece.epoch)[:16], 16
            )
            chance = int(shuffle.scramble(np.array([key], np.uint64))[0]) / 2**64
            marker = 1 + int(documents.length_S[first]) if kinds else 0
            captioned = len(kinds) == 2 and kinds[0] == 0 and kinds[1] > 0 and not piece.flipped
            if captioned and chance < dropout.share and piece.begin < marker < piece.end:
                cut[-1] += [piece._replace(end=marker), piece._replace(begin=marker)]
            else:
                cut[-1].append(piece)
    return Rows.of(documents, cut)


def reference_batch(vocabulary: Vocabulary, towers: Towers, rows: Rows, sequence: int, noise: Noise) -> GroupedBatch:
    """The rows as one batch."""
    documents, names = rows.documents, vocabulary.modalities
    latent = names.index(vocabulary.latent_modality) if vocabulary.latent_modality else -1
    pieces = [piece for row in rows.rows for piece in row]
    document_P, begin_P, end_P, flipped_P, epoch_P = np.array(pieces, np.int64).reshape(-1, 5).T
    spans_P = documents.spans_D[document_P]

    # The spans of each piece's document, in reading order.
    piece_Z = np.repeat(np.arange(len(pieces)), spans_P)
    nth_Z = _count_within(spans_P)
    stored_Z = np.where(flipped_P[piece_Z] > 0, spans_P[piece_Z] - 1 - nth_Z, nth_Z)
    span_Z = documents.span_D[document_P[piece_Z]] + stored_Z
    known = np.array([names.index(m) for m in documents.modalities], np.int64)
    modality_Z = known[documents.modality_S[span_Z]]

    # Of each piece: bos, three segments per span (text has empty markers), eos; then what lies inside the piece.
    segments_P = 2 + 3 * spans_P
    first_P = _before(segments_P)
    body_Z = first_P[piece_Z] + 2 + 3 * nth_Z
    G = int(segments_P.sum())
    length_G, span_G, modality_G = np.ones(G, np.int64), np.full(G, -1), np.zeros(G, np.int64)
    marker_G = np.full(G, vocabulary.pad, np.int64)
    length_G[body_Z], span_G[body_Z], modality_G[body_Z] = documents.length_S[span_Z], span_Z, modality_Z
    length_G[body_Z - 1] = length_G[body_Z + 1] = modality_Z != 0
    marker_G[first_P], marker_G[first_P + segments_P - 1] = vocabulary.bos, vocabulary.eos
    for mark, ids in ((-1, vocabulary.begin), (1, vocabulary.end)):
        marker_G[body_Z + mark] = np.array([0, *(ids[m] for m in names[1:])])[modality_Z]
    piece_G = np.repeat(np.arange(len(pieces)), segments_P)
    at_G = _before(length_G)
    at_G -= at_G[first_P][piece_G]
    from_G = np.clip(at_G, begin_P[piece_G], end_P[piece_G])
    until_G = np.clip(at_G + length_G, begin_P[piece_G], end_P[piece_G])
    skip_G, length_G, keep_G = from_G - at_G, until_G - from_G, until_G > from_G
    piece_G, span_G, modality_G, marker_G, skip_G, length_G = (
        x[keep_G] for x in (piece_G, span_G, modality_G, marker_G, skip_G, length_G)
    )

    # Tokens one after another, then to their places; what no piece fills is padding.
    T = len(rows.rows) * sequence
    row_P = np.repeat(np.arange(len(rows.rows)), [len(row) for row in rows.rows])
    length_P = end_P - begin_P
    column_P = _before(length_P)
    column_P -= column_P[np.searchsorted(row_P, row_P)]
    target_L = np.repeat(row_P * sequence + column_P, length_P) + _count_within(length_P)
    latent_G = (span_G >= 0) & (modality_G == latent)
    codes_G = (span_G >= 0) & ~latent_G
    ids_L = np.repeat(marker_G, length_G)
    books_M = np.array([max(len(vocabulary.base[m]), 1) for m in names])
    base_MK = np.zeros((len(names), books_M.max()), np.int64)
    for m, name in enumerate(names):
        base_MK[m, : len(vocabulary.base[name])] = vocabulary.base[name]
    modality_C = np.repeat(modality_G[codes_G], length_G[codes_G])
    nth_C = np.repeat(skip_G[codes_G], length_G[codes_G]) + _count_within(length_G[codes_G])
    stored_C = documents.tokens_T[_places(documents, span_G, skip_G, length_G, codes_G)]
    ids_L[np.repeat(codes_G, length_G)] = stored_C + base_MK[modality_C, nth_C % books_M[modality_C]]

    def place(values_L: np.ndarray, dtype: type, empty: int = 0) -> np.ndarray:
        values_T = np.full(T, empty, dtype)
        values_T[target_L] = values_L
        return values_T

    ids_T = place(ids_L, np.int64, vocabulary.pad)
    document_T = place(np.repeat(np.arange(1, len(pieces) + 1), length_P), np.int32)
    block_T = place(np.repeat(np.where(latent_G, np.cumsum(latent_G), 0), length_G), np.int32)
    modality_T = place(np.repeat(modality_G, length_G), np.int8)

    # Labels: the next token of the document, unless a latent is involved.
    labels_T, label_modality_T = np.full(T, -100, np.int64), np.full(T, -1, np.int8)
    latent_T = block_T > 0
    follows_T = (document_T[1:] == document_T[:-1]) & (document_T[1:] > 0) & ~latent_T[1:] & ~latent_T[:-1]
    np.copyto(labels_T[:-1], ids_T[1:], where=follows_T)
    np.copyto(label_modality_T[:-1], modality_T[1:], where=follows_T)

    tower_T = np.asarray(towers.of_modality)[modality_T]
    place_T = np.argsort(tower_T, kind="stable")
    counts = np.bincount(tower_T, minlength=len(towers))

    def sort(values_T: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values_T[place_T])

    drawn = _noise(vocabulary, documents, noise, document_P, flipped_P, epoch_P, piece_G, span_G, length_G, latent_G)
    return GroupedBatch(
        rows=len(rows.rows),
        sequence=sequence,
        modalities=names,
        ids_T=sort(ids_T),
        position_T=sort(place(_count_within(length_P), np.int64)),
        document_T=sort(document_T),
        block_T=sort(block_T),
        place_T=torch.from_numpy(place_T),
        offsets_G=torch.from_numpy(counts.cumsum().astype(np.int32)),
        counts=tuple(counts.tolist()),
        labels_T=sort(labels_T),
        label_modality_T=sort(label_modality_T),
        label_row_M=torch.from_numpy(np.flatnonzero(label_modality_T[place_T] >= 0)),
        further_row_J=torch.empty(0, dtype=torch.int64),
        further_ids_J=torch.empty(0, dtype=torch.int64),
        further_label_row_Q=torch.empty(0, dtype=torch.int64),
        further_labels_Q=torch.empty(0, dtype=torch.int64),
        further_ranges=(),
        latent_row_N=torch.from_numpy(np.flatnonzero(latent_T[place_T])),
        latents_ND=torch.from_numpy(
            documents.latents_VW[_places(documents, span_G, skip_G, length_G, latent_G)].astype(np.float32)
        ),
        noise_ND=torch.from_numpy(drawn[0]),
        time_N=torch.from_numpy(drawn[1]),
        pictures=tuple(
            (height := int(documents.height_S[span]), length // height)
            for span, length in zip(span_G[latent_G].tolist(), length_G[latent_G].tolist(), strict=True)
        ),
        latent_modality=vocabulary.latent_modality,
    )


def _noise(
    vocabulary, documents, noise, document_P, flipped_P, epoch_P, piece_G, span_G, length_G, latent_G
) -> tuple[np.ndarray, np.ndarray]:
    """(noise, diffusion step) of the latents: of each picture from a generator of its own."""
    piece_N, length_N = piece_G[latent_G], length_G[latent_G]
    document_N = document_P[piece_N]
    nth_N = span_G[latent_G] - documents.span_D[document_N]
    two_N = documents.spans_D[document_N] == 2
    other_N = np.where(two_N, documents.span_D[document_N] + 1 - nth_N, span_G[latent_G])
    leads_N = nth_N == flipped_P[piece_N]  # of two spans, the first as read
    early_N = two_N & leads_N & (documents.modality_S[other_N] == 0)
    normals, times = [np.empty((0, vocabulary.latent_dim), np.float32)], [np.empty(0, np.int64)]
    columns = (epoch_P[piece_N], documents.key_D[document_N], nth_N, early_N, length_N)
    for epoch, document, nth, early, length in zip(*(c.tolist() for c in columns), strict=True):
        random = np.random.Generator(np.random.Philox(key=[noise._key, epoch], counter=[0, nth, document, 0]))
        times.append(np.full(length, int(random.random() * (noise.steps // 2 if early else noise.steps))))
        normals.append(random.standard_normal((length, vocabulary.latent_dim), np.float32))
    return np.concatenate(normals), np.concatenate(times)


def _places(documents, span_G, skip_G, length_G, chosen_G) -> np.ndarray:
    """Where the ids or latents of the chosen bodies stand in `documents`, one after another."""
    start_G = documents.at_S[span_G[chosen_G]] + skip_G[chosen_G]
    return np.repeat(start_G, length_G[chosen_G]) + _count_within(length_G[chosen_G])


def _before(length_X: np.ndarray) -> np.ndarray:
    """The sum of those before each."""
    return np.cumsum(length_X) - length_X


def _count_within(length_X: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... anew in each run of these lengths."""
    return np.arange(int(length_X.sum())) - np.repeat(_before(length_X), length_X)
