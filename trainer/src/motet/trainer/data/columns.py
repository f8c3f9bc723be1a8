"""The loops over documents, compiled: what would cost a microsecond of Python a document and modality.

    positions --`draw`--> documents --`survey`--> identity, rendered length --`best_fit`--> rows --`tally`--> tokens by modality
                          documents --`outline`--> their spans --`copy`--> their tokens, one document after another

Record batches are known by the addresses of their columns (`records`), which hashes and bounds were checked for before.
Every function here releases the interpreter's lock and is compiled once per machine (numba keeps it beside the package).

Letters: N documents, B record batches, C their columns, M modalities, S spans, T tokens, P pieces, W values of a latent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit
from numba.core import cgutils, types
from numba.extending import intrinsic

BLOCK = 512
"""Documents that stay together where a shuffle moves blocks."""
MARKS = 2
"""Markers round a document (bos, eos), and round a span that is not text (begin, end)."""
ID, TOKEN_AT, TOKENS, SPAN_AT, SPAN_END, SPAN_MODALITY, SHAPE_AT, SHAPES, LATENT_AT, LATENTS = range(10)
"""Columns of a table of addresses: values, and (_AT) the int32 offsets of lists into them."""
COLUMNS = 10
ROUNDS = 6

pointer: Any = intrinsic
compiled: Any = njit(cache=True, nogil=True, error_model="numpy")


@pointer
def _pointer(context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), code


@compiled
def mix(word):
    """A one-to-one scrambling of a uint64 (the finalizer of splitmix64)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@compiled
def scramble(word_N):
    """`mix` of each: random bits that depend on the input alone."""
    mixed_N = np.empty(len(word_N), np.uint64)
    for n in range(len(word_N)):
        mixed_N[n] = mix(word_N[n])
    return mixed_N


@compiled
def permuted(i, n, key):
    """Where a keyed permutation of 0..n-1 takes i: a Feistel network over the next power of two, walked until below n."""
    bits = 2
    while (1 << bits) < n:
        bits += 1
    low = bits // 2
    high = bits - low
    low_mask, high_mask = (
        (np.uint64(1) << np.uint64(low)) - np.uint64(1),
        (np.uint64(1) << np.uint64(high)) - np.uint64(1),
    )
    x = np.uint64(i)
    while True:
        left, right = x >> np.uint64(low), x & low_mask
        for r in range(ROUNDS):
            word = mix(key + np.uint64(r + 1) * np.uint64(0x9E3779B97F4A7C15))
            if r % 2:
                right ^= mix(word ^ left) & low_mask
            else:
                left ^= mix(word ^ right) & high_mask
        x = (left << np.uint64(low)) | right
        if x < np.uint64(n):
            return np.int64(x)


@compiled
def draw(begin, end, documents, mixed, key):
    """int64: the document at each position begin..end-1 of an epoch of `documents`; -1 where a position holds none.

    `mixed` blocks of 512 documents are shuffled together, and the blocks among themselves; 0: all documents are.
    """
    found_N = np.empty(end - begin, np.int64)
    if mixed == 0:
        for n in range(end - begin):
            found_N[n] = permuted(begin + n, documents, key)
        return found_N
    blocks = (documents + BLOCK - 1) // BLOCK
    for n in range(end - begin):
        group, at = (begin + n) // (mixed * BLOCK), (begin + n) % (mixed * BLOCK)
        together = min(mixed, blocks - group * mixed)
        at = permuted(at, together * BLOCK, key ^ mix(np.uint64(group + 1)))
        found = permuted(group * mixed + at // BLOCK, blocks, key) * BLOCK + at % BLOCK
        found_N[n] = found if found < documents else -1
    return found_N


@compiled
def _swapped(word):
    """The bytes of a uint64 the other way round: sample ids are big-endian."""
    out = np.uint64(0)
    for _ in range(8):
        out = (out << np.uint64(8)) | (word & np.uint64(0xFF))
        word >>= np.uint64(8)
    return out


@compiled
def rendered(codes, rule_2):
    """Tokens of a span of so many stored codes or latents, by its modality's row of `codebooks.table`."""
    return codes // rule_2[0] + rule_2[1] if codes else 0


@compiled
def stored(tokens, rule_2):
    """Inverse of `rendered`."""
    return (tokens - rule_2[1]) * rule_2[0] if tokens else 0


@compiled
def survey(batch_N, row_N, part_N, address_BC, known_PM, rule_M2):
    """(sample ids uint64 [N, 2], rendered lengths int64 [N], spans int64 [N], ids stored int64 [N],
    latents stored int64 [N]) of documents.

    `known_PM` maps the modality table of each part to 0 = text, 1, ...; `rule_M2` is `codebooks.table` of these.
    """
    N = len(batch_N)
    id_N2 = np.empty((N, 2), np.uint64)
    length_N, spans_N = np.empty(N, np.int64), np.empty(N, np.int64)
    ids_N, latents_N = np.empty(N, np.int64), np.zeros(N, np.int64)
    for n in range(N):
        column_C, row = address_BC[batch_N[n]], row_N[n]
        id_2 = carray(_pointer(column_C[ID] + 16 * row), 2, dtype=np.uint64)
        id_N2[n, 0], id_N2[n, 1] = _swapped(id_2[0]), _swapped(id_2[1])
        at_2 = carray(_pointer(column_C[TOKEN_AT] + 4 * row), 2, dtype=np.int32)
        ids_N[n] = at_2[1] - at_2[0]
        if column_C[LATENT_AT] != 0:
            at_2 = carray(_pointer(column_C[LATENT_AT] + 4 * row), 2, dtype=np.int32)
            latents_N[n] = at_2[1] - at_2[0]
        span_2 = carray(_pointer(column_C[SPAN_AT] + 4 * row), 2, dtype=np.int32)
        first, spans = span_2[0], span_2[1] - span_2[0]
        end_S = carray(_pointer(column_C[SPAN_END] + 4 * first), spans, dtype=np.int32)
        modality_S = carray(_pointer(column_C[SPAN_MODALITY] + first), spans, dtype=np.uint8)
        begin, length = 0, MARKS
        for s in range(spans):
            modality = known_PM[part_N[n], modality_S[s]]
            length += rendered(end_S[s] - begin, rule_M2[modality])
            begin = end_S[s]
            if modality != 0:
                length += MARKS
        length_N[n], spans_N[n] = length, spans
    return id_N2, length_N, spans_N, ids_N, latents_N


@compiled
def outline(batch_N, row_N, part_N, address_BC, known_PM, rule_M2, modality_S, length_S):
    """Fill the spans of documents, one after another."""
    s = 0
    for n in range(len(batch_N)):
        column_C, row = address_BC[batch_N[n]], row_N[n]
        span_2 = carray(_pointer(column_C[SPAN_AT] + 4 * row), 2, dtype=np.int32)
        first, spans = span_2[0], span_2[1] - span_2[0]
        end_S = carray(_pointer(column_C[SPAN_END] + 4 * first), spans, dtype=np.int32)
        stored_S = carray(_pointer(column_C[SPAN_MODALITY] + first), spans, dtype=np.uint8)
        begin = 0
        for j in range(spans):
            modality_S[s] = known_PM[part_N[n], stored_S[j]]
            length_S[s] = rendered(end_S[j] - begin, rule_M2[modality_S[s]])
            begin = end_S[j]
            s += 1


# fmt: off
@compiled
def copy(
    batch_N, row_N, part_N, address_BC, rule_M2, wide_P, latent, width, spans_N,
    modality_S, length_S, at_S, height_S, tokens_T, latents_TW,
):
    # fmt: on
    """Fill the tokens of documents whose spans are known, one after another, where each span's begin, and rows of latents.

    `wide_P`: whether a part's ids are uint32, else uint16. `latent` is the modality that is given as latents of `width` values (-1: none).
    """
    s = token = vector = 0
    for n in range(len(batch_N)):
        column_C, row = address_BC[batch_N[n]], row_N[n]
        id_at, vector_at = token, vector
        first = carray(_pointer(column_C[SPAN_AT] + 4 * row), 1, dtype=np.int32)[0]
        for j in range(spans_N[n]):
            if modality_S[s] == latent:
                shape_at = np.int64(carray(_pointer(column_C[SHAPE_AT] + 4 * (first + j)), 1, dtype=np.int32)[0])
                height_S[s] = carray(_pointer(column_C[SHAPES] + 4 * shape_at), 1, dtype=np.int32)[0]
                at_S[s] = vector_at
                vector_at += length_S[s]
            else:
                at_S[s] = id_at
                id_at += stored(length_S[s], rule_M2[modality_S[s]])
            s += 1
        ids = id_at - token
        if ids:
            at = np.int64(carray(_pointer(column_C[TOKEN_AT] + 4 * row), 1, dtype=np.int32)[0])
            if wide_P[part_N[n]]:
                id32_T = carray(_pointer(column_C[TOKENS] + 4 * at), ids, dtype=np.uint32)
                for t in range(ids):
                    tokens_T[token + t] = id32_T[t]
            else:
                id16_T = carray(_pointer(column_C[TOKENS] + 2 * at), ids, dtype=np.uint16)
                for t in range(ids):
                    tokens_T[token + t] = id16_T[t]
            token += ids
        vectors = vector_at - vector
        if vectors:
            at = np.int64(carray(_pointer(column_C[LATENT_AT] + 4 * row), 1, dtype=np.int32)[0])
            value_X = carray(_pointer(column_C[LATENTS] + 2 * width * at), vectors * width, dtype=np.uint16)
            for v in range(vectors):
                for w in range(width):
                    latents_TW[vector + v, w] = value_X[v * width + w]
            vector += vectors


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
