"""Which rows of a global batch each rank takes, so that all ranks have about as much to compute.

    rows --`costs`: tokens, and the pairs that attention looks at--> dearest first, each to the rank with least so far
         --> the dearest rank swaps a row with another as long as that helps --> shares

A step lasts as long as its slowest rank. Rows are whole and every rank takes as many, so that micro-batches stay equal
(longest processing time first, Graham 1969, with a bound on the count); what a global batch holds does not change.

Letters: R rows of the global batch, W ranks, N rows of each.
"""

from __future__ import annotations

import heapq

import numpy as np

from motet.trainer.data.compiled import compiled
from motet.trainer.data.packed import Rows


def costs(rows: Rows, pair: float) -> np.ndarray:
    """float64: what each row costs, in tokens; `pair` is what attention to one earlier token costs, in tokens."""
    length_P = (rows.piece_P5[:, 2] - rows.piece_P5[:, 1]).astype(np.float64)
    row_P = np.repeat(np.arange(len(rows)), np.diff(rows.start_R1))
    return np.bincount(row_P, length_P + pair * length_P * (length_P + 1) / 2, minlength=len(rows))


def shares(cost_R: np.ndarray, ranks: int) -> list[list[int]]:
    """The rows of each rank, in order; `ranks` divides their number."""
    each = len(cost_R) // ranks
    taken_WN, load_W = np.empty((ranks, each), np.int64), np.zeros(ranks)
    open_ranks = [(0.0, rank, 0) for rank in range(ranks)]
    for row in np.argsort(-cost_R, kind="stable").tolist():
        load, rank, rows = heapq.heappop(open_ranks)
        taken_WN[rank, rows] = row
        if rows + 1 < each:
            heapq.heappush(open_ranks, (load + float(cost_R[row]), rank, rows + 1))
    for rank in range(ranks):
        load_W[rank] = cost_R[taken_WN[rank]].sum()
    _swapped(taken_WN, load_W, np.ascontiguousarray(cost_R, np.float64))
    return np.sort(taken_WN, axis=1).tolist()


@compiled
def _swapped(taken_WN, load_W, cost_R):
    """Swap one row of the dearest rank so that the dearer of the two ends lowest, as long as that lowers it."""
    while True:
        dearest = np.argmax(load_W)
        best, other, a, b = load_W[dearest] * (1 - 1e-9), -1, 0, 0
        for w in range(len(taken_WN)):
            if w == dearest:
                continue
            for i in range(taken_WN.shape[1]):
                for j in range(taken_WN.shape[1]):
                    moved = cost_R[taken_WN[dearest, i]] - cost_R[taken_WN[w, j]]
                    dearer = max(load_W[dearest] - moved, load_W[w] + moved)
                    if dearer < best:
                        best, other, a, b = dearer, w, i, j
        if other < 0:
            return
        moved = cost_R[taken_WN[dearest, a]] - cost_R[taken_WN[other, b]]
        taken_WN[dearest, a], taken_WN[other, b] = taken_WN[other, b], taken_WN[dearest, a]
        load_W[dearest] -= moved
        load_W[other] += moved
