"""Packed rows as segments, and their tokens in grouped order: the two loops of the collate, compiled.

    pieces --`lay_out`--> segments --`count`--> tokens and labels of each modality, so that room can be made for them
                                   --`write`--> each token's id, position, document, label, ... in its place

A document is rendered as `bos`, for each span `begin` body `end` (a text span is its body alone), `eos`; a piece is a
stretch of that, and a segment is one marker or one body, clipped to its piece. A segment has one modality, so its tokens
stand side by side in their row and among their tower's tokens too: `write` keeps the next free place of each tower, and
gives each segment the places from there on.

Letters: P pieces, Z segments, C their columns, R rows, S spans of the documents, M modalities of the vocabulary, K
codebooks, G towers, T tokens of the batch, N of them latents.
"""

from __future__ import annotations

import numpy as np

from motet.trainer.data.batch import NO_LABEL
from motet.trainer.data.compiled import compiled

PIECE, KIND, MODALITY, SPAN, FIRST, SKIP, LENGTH = range(7)
"""Columns of a table of segments: its piece; what it is; modality; span in the documents, -1 for a marker; the marker's
id, or where its first id or latent stands in the documents; tokens of the span before that; tokens."""
COLUMNS = 7
MARKER, CODES, LATENTS = range(3)
"""Kinds of segments."""
TEXT = 0
"""Text among the modalities, and the modality of markers."""


@compiled
def lay_out(piece_P5, span_D, spans_D, modality_S, length_S, at_S, known_M, mark_M2, latent):
    """The segments of pieces, int64 [Z, C]; those without a token are left out.

    `known_M` says which modality of the vocabulary each one of the documents is, `latent` which is given as latents (-1:
    none). `mark_M2` are the ids that open and close a span of each modality, for text those of a document.
    """
    most = 0
    for p in range(len(piece_P5)):
        most += 2 + 3 * spans_D[piece_P5[p, 0]]
    segment_ZC = np.empty((most, COLUMNS), np.int64)
    z = 0
    for p in range(len(piece_P5)):
        document, begin, end, flipped = piece_P5[p, 0], piece_P5[p, 1], piece_P5[p, 2], piece_P5[p, 3]
        spans, at = spans_D[document], 1
        z = _add(segment_ZC, z, p, begin, end, 0, 1, MARKER, TEXT, -1, mark_M2[TEXT, 0])
        for n in range(spans):
            span = span_D[document] + (spans - 1 - n if flipped else n)
            modality, length = known_M[modality_S[span]], length_S[span]
            if modality != TEXT:
                z = _add(segment_ZC, z, p, begin, end, at, 1, MARKER, TEXT, -1, mark_M2[modality, 0])
                at += 1
            kind = LATENTS if modality == latent else CODES
            z = _add(segment_ZC, z, p, begin, end, at, length, kind, modality, span, at_S[span])
            at += length
            if modality != TEXT:
                z = _add(segment_ZC, z, p, begin, end, at, 1, MARKER, TEXT, -1, mark_M2[modality, 1])
                at += 1
        z = _add(segment_ZC, z, p, begin, end, at, 1, MARKER, TEXT, -1, mark_M2[TEXT, 1])
    return segment_ZC[:z]


@compiled
def _add(segment_ZC, z, piece, begin, end, at, length, kind, modality, span, first):
    """Make segment z of what lies inside [begin, end) of the document's tokens [at, at + length); the next one's number."""
    skip, stop = max(begin - at, 0), min(end - at, length)
    if stop <= skip:
        return z
    segment_ZC[z, PIECE] = piece
    segment_ZC[z, KIND] = kind
    segment_ZC[z, MODALITY] = modality
    segment_ZC[z, SPAN] = span
    segment_ZC[z, FIRST] = first + skip
    segment_ZC[z, SKIP] = skip
    segment_ZC[z, LENGTH] = stop - skip
    return z + 1


@compiled
def count(segment_ZC, length_S, rule_M2):
    """(tokens of each modality, labels of each, labels of each one's further codebooks [M, K], further codes in tokens).

    A label is what `write` gives the token before to predict; further ones are not among the second.
    """
    modalities = len(rule_M2)
    token_M, label_M = np.zeros(modalities, np.int64), np.zeros(modalities, np.int64)
    further_MK = np.zeros((modalities, max(rule_M2[:, 0])), np.int64)
    codes = 0
    for z in range(len(segment_ZC)):
        kind, modality, length = segment_ZC[z, KIND], segment_ZC[z, MODALITY], segment_ZC[z, LENGTH]
        token_M[modality] += length
        follows = z > 0 and segment_ZC[z - 1, PIECE] == segment_ZC[z, PIECE] and segment_ZC[z - 1, KIND] != LATENTS
        if kind == LATENTS:
            continue
        every, extra = rule_M2[modality]
        if kind == CODES and extra:
            frames = length_S[segment_ZC[z, SPAN]] - extra
            skip = segment_ZC[z, SKIP]
            for p in range(skip, skip + length):
                first, last = _present(p, frames, every)
                codes += last - first
                if p > skip or follows:
                    label_M[modality] += p < frames
                    label_M[TEXT] += p == frames
                    for k in range(max(first, 1), last + 1):
                        further_MK[modality, k] += 1
        else:
            label_M[modality] += length - 1
            if follows and not (kind == MARKER and _delayed(segment_ZC, z - 1, rule_M2)):
                label_M[modality] += 1
    return token_M, label_M, further_MK, codes


@compiled
def _present(p, frames, books):
    """The first and the last codebook that token p of a delayed span has codes of."""
    return max(0, p - frames + 1), min(books - 1, p)


@compiled
def _delayed(segment_ZC, z, rule_M2):
    """Whether segment z is the delayed codes of a span: its end was told before it ended."""
    return segment_ZC[z, KIND] == CODES and rule_M2[segment_ZC[z, MODALITY], 1] > 0


# fmt: off
@compiled
def write(
    segment_ZC, length_S, start_R1, sequence, tower_M, next_G, base_MK, books_M, rule_M2, mark_M2, pad, stored_T,
    ids_T, position_T, document_T, block_T, place_T, labels_T, label_modality_T, label_row_M, latent_row_N,
    further_row_J, further_ids_J, next_MK, further_label_row_Q, further_labels_Q,
):
    # fmt: on
    """Fill the columns of a `GroupedBatch`, segment by segment and row by row.

    `start_R1` is the first piece of each row, and their number; `next_G` the first place of each tower, `next_MK` that of
    each further codebook's labels. No row holds more than `sequence` tokens. An id is the tokenizer's own, from
    `stored_T`, plus the base of its codebook in `base_MK`; a modality's codebooks, `books_M` of them, take turns where
    `rule_M2` does not say otherwise.
    """
    ids_T[:] = pad
    position_T[:] = 0
    document_T[:] = 0
    block_T[:] = 0
    labels_T[:] = NO_LABEL
    label_modality_T[:] = -1
    z = pictures = latents = further = 0
    for row in range(len(start_R1) - 1):
        place, stop = row * sequence, (row + 1) * sequence  # in sequence order
        for p in range(start_R1[row], start_R1[row + 1]):
            position, before = 0, -1  # `before`: where the token stands that has the next one as its label
            while z < len(segment_ZC) and segment_ZC[z, PIECE] == p:
                kind, modality, length = segment_ZC[z, KIND], segment_ZC[z, MODALITY], segment_ZC[z, LENGTH]
                first, skip = segment_ZC[z, FIRST], segment_ZC[z, SKIP]
                begin = next_G[tower_M[modality]]
                end = begin + length
                next_G[tower_M[modality]] = end
                _count_up(place_T[begin:end], place)
                _count_up(position_T[begin:end], position)
                document_T[begin:end] = p + 1
                if kind == LATENTS:
                    pictures += 1
                    block_T[begin:end] = pictures
                    _count_up(latent_row_N[latents : latents + length], begin)
                    latents += length
                    before = -1
                elif kind == CODES and rule_M2[modality, 1]:
                    books = rule_M2[modality, 0]
                    frames = length_S[segment_ZC[z, SPAN]] - rule_M2[modality, 1]
                    code_FK = stored_T[first - skip : first - skip + frames * books].reshape(frames, books)
                    for i in range(length):
                        token, here = skip + i, begin + i
                        lowest, highest = _present(token, frames, books)
                        for k in range(lowest, highest + 1):
                            id_ = code_FK[token - k, k] + base_MK[modality, k]
                            if k == lowest:
                                ids_T[here] = id_
                            else:
                                further_row_J[further], further_ids_J[further] = here, id_
                                further += 1
                            if before >= 0 and k == 0:
                                labels_T[before], label_modality_T[before] = id_, modality
                            elif before >= 0:
                                further_label_row_Q[next_MK[modality, k]] = before
                                further_labels_Q[next_MK[modality, k]] = id_
                                next_MK[modality, k] += 1
                        if before >= 0 and token == frames:
                            labels_T[before], label_modality_T[before] = mark_M2[modality, 1], TEXT
                        before = here
                    before = -1  # the end has been told
                else:
                    own_L = ids_T[begin:end]
                    if kind == MARKER:
                        own_L[0] = first
                    else:
                        base_K = base_MK[modality, : books_M[modality]]
                        _offset(own_L, stored_T[first - skip :], skip, rule_M2[modality, 0], base_K)
                    if before >= 0:
                        labels_T[before], label_modality_T[before] = own_L[0], modality
                    labels_T[begin : end - 1] = own_L[1:]
                    label_modality_T[begin : end - 1] = modality
                    before = end - 1
                place += length
                position += length
                z += 1
        begin, end = next_G[tower_M[TEXT]], next_G[tower_M[TEXT]] + stop - place  # padding
        _count_up(place_T[begin:end], place)
        next_G[tower_M[TEXT]] = end
    labels = 0
    for t in range(len(label_modality_T)):
        if label_modality_T[t] >= 0:
            label_row_M[labels] = t
            labels += 1


@compiled
def _count_up(value_L, first):
    """first, first + 1, ..."""
    for i in range(len(value_L)):
        value_L[i] = first + i


@compiled
def _offset(id_L, stored_L, skip, every, base_K):
    """Ids of the vocabulary, of a span's own ids from its `skip`th token on: all of them, or one of `every`."""
    if every > 1:
        for i in range(len(id_L)):
            id_L[i] = stored_L[(skip + i) * every] + base_K[0]
        return
    books = len(base_K)
    for k in range(books):
        for i in range((k - skip) % books, len(id_L), books):
            id_L[i] = stored_L[skip + i] + base_K[k]
