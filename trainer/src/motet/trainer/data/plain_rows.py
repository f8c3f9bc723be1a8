"""Documents of one length as rows of ids: for corpora that were cut into rows before, and need a shuffle and nothing else.

    batch i --its positions in the epochs--> documents by a keyed permutation --read many at a time--> int64 [rows, length]

No markers, no packing, no mixture: what `Order` and `Loader` are for. The state is the number of the next batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.trainer.data import shuffle
from motet.trainer.data.corpus import Corpus

AHEAD = 1 << 19
"""Tokens that are read at a time."""


class TokenRows:
    """Shuffled batches of a corpus of equally long documents, for ever; every epoch has each document once.

    Args:
        corpus: the documents, all of them. rows: documents in a batch. seed: of the shuffle.

    UserError if the first documents differ in length; whoever reads another one later raises it too.
    """

    def __init__(self, corpus: Corpus, rows: int, seed: int):
        self.corpus, self.rows, self.seed = corpus, rows, seed
        self.documents = int(corpus.records.begin[-1])
        self.length = len(corpus.read(np.arange(1)).tokens_T)
        self._together = max(AHEAD // max(rows * self.length, 1), 1)
        self._read = lru_cache(maxsize=2)(self._chunk)

    def batch(self, number: int) -> Tensor:
        """Batch `number` (from 0): int64 [rows, length]; a view of what was read with its neighbours."""
        chunk, at = divmod(number, self._together)
        return self._read(chunk)[at]

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """All batches from `start` on."""
        while True:
            yield self.batch(start)
            start += 1

    def _chunk(self, chunk: int) -> Tensor:
        many = self.rows * self._together
        at, end, found = chunk * many, (chunk + 1) * many, []
        while at < end:
            epoch, first = divmod(at, self.documents)
            last = min(first + end - at, self.documents)
            key = np.uint64(int(content_hash("rows", self.seed, epoch)[:16], 16))
            found.append(shuffle.draw(first, last, self.documents, 0, key))
            at += last - first
        documents = self.corpus.read(np.concatenate(found))
        if len(documents.tokens_T) != many * self.length or (np.diff(documents.length_D) != 0).any():
            raise UserError(f"documents of different lengths, the first has {self.length} ids: pack them with `Order`")
        return torch.from_numpy(documents.tokens_T).view(self._together, self.rows, self.length)
