"""The columns of record batches, read by compiled loops: a document would cost microseconds of Python.

    documents --`survey`--> identity, rendered length
              --`outline`--> their spans --`copy`--> their tokens, one document after another

Record batches are known by the addresses of their columns (`records`), which hashes and bounds were checked for before.

Letters: N documents, B record batches, C their columns, M modalities, S spans, T tokens, P parts, W values of a latent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numba.core import cgutils, types
from numba.extending import intrinsic

from motet.trainer.data.compiled import compiled

MARKS = 2
"""Markers round a document (bos, eos), and round a span that is not text (begin, end)."""
ID, TOKEN_AT, TOKENS, SPAN_AT, SPAN_END, SPAN_MODALITY, SHAPE_AT, SHAPES, LATENT_AT, LATENTS = range(10)
"""Columns of a table of addresses: values, and (_AT) the int32 offsets of lists into them."""
COLUMNS = 10

pointer: Any = intrinsic


@pointer
def _pointer(context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), code


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
