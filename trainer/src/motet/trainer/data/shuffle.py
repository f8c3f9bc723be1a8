"""Shuffles as formulas: where a keyed permutation takes each position of an epoch, without a table of them.

    positions of an epoch --`draw`: a Feistel network with a key--> documents

Letters: N positions or documents.
"""

from __future__ import annotations

import numpy as np

from motet.trainer.data.compiled import compiled

BLOCK = 512
"""Documents that stay together where a shuffle moves blocks."""
ROUNDS = 6


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
