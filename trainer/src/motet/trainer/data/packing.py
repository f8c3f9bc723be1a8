"""Packing: which row each piece of a document stands in, and what tokens the pieces have.

    lengths of pieces --`best_fit`--> rows;   pieces and their documents' spans --`tally`--> tokens by modality

Letters: P pieces, R rows, S spans, D documents, M modalities, L lengths, F room left in a row, W words of 64 bits.
"""

from __future__ import annotations

import numpy as np

from motet.trainer.data.columns import MARKS
from motet.trainer.data.compiled import compiled


@compiled
def best_fit(length_P, sequence):
    """The row of each piece, int64: longest first, each into the fullest row that still has room (best fit decreasing).

    Rows are numbered as they are opened; no piece is longer than `sequence`.
    """
    pieces = len(length_P)
    row_P = np.empty(pieces, np.int64)
    first_L = np.zeros(sequence + 2, np.int64)  # pieces by length, in order within one: a counting sort
    for p in range(pieces):
        first_L[length_P[p] + 1] += 1
    for length in range(sequence + 1):
        first_L[length + 1] += first_L[length]
    order_P = np.empty(pieces, np.int64)
    for p in range(pieces):
        order_P[first_L[length_P[p]]] = p
        first_L[length_P[p]] += 1
    # After the sort, pieces of length l end at first_L[l].
    newest_F = np.full(sequence + 1, -1, np.int64)  # the newest row with so much room, and the one before it
    before_R = np.full(pieces, -1, np.int64)
    word_W = np.zeros(sequence // 64 + 1, np.uint64)  # which rooms there are, a bit each
    rows = 0
    for length in range(sequence, -1, -1):
        begin = first_L[length - 1] if length else 0
        for o in range(begin, first_L[length]):
            room = -1
            w = length >> 6
            bits = word_W[w] & (~np.uint64(0) << np.uint64(length & 63))
            while True:
                if bits:
                    room = w << 6
                    while not bits & np.uint64(1):
                        bits >>= np.uint64(1)
                        room += 1
                    break
                w += 1
                if w == len(word_W):
                    break
                bits = word_W[w]
            if room < 0:
                room, row = sequence, rows
                rows += 1
            else:
                row = newest_F[room]
                newest_F[room] = before_R[row]
                if newest_F[room] < 0:
                    word_W[room >> 6] &= ~(np.uint64(1) << np.uint64(room & 63))
            row_P[order_P[o]] = row
            left = room - length
            if left:
                before_R[row] = newest_F[left]
                newest_F[left] = row
                word_W[left >> 6] |= np.uint64(1) << np.uint64(left & 63)
    return row_P


@compiled
def tally(piece_P5, span_D, spans_D, modality_S, length_S, marked_M):
    """Tokens of each modality in pieces (int64 [M]); of those that `marked_M` tells, markers stand round a span as text."""
    tokens_M = np.zeros(len(marked_M), np.int64)
    for p in range(len(piece_P5)):
        d, begin, end, flipped = piece_P5[p, 0], piece_P5[p, 1], piece_P5[p, 2], piece_P5[p, 3]
        tokens_M[0] += end - begin
        at = 1
        for n in range(spans_D[d]):
            s = span_D[d] + (spans_D[d] - 1 - n if flipped else n)
            modality, length = modality_S[s], length_S[s]
            if marked_M[modality]:
                inside = min(at + 1 + length, end) - max(at + 1, begin)
                if inside > 0:
                    tokens_M[modality] += inside
                    tokens_M[0] -= inside
                at += MARKS
            at += length
    return tokens_M
