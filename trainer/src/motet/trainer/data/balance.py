"""Which rows of a global batch each rank takes, so that all ranks have about as much to compute.

    rows --`costs`: tokens, and the pairs that attention looks at--> dearest first, each to the rank with least so far
         --> the dearest rank swaps a row with another as long as that helps --> shares

A step lasts as long as its slowest rank. Rows are whole and every rank takes as many, so that micro-batches stay equal
(longest processing time first, Graham 1969, with a bound on the count); what a global batch holds does not change.
"""

from __future__ import annotations

import heapq

import numpy as np

from motet.trainer.data.packed import Rows


def costs(rows: Rows, pair: float) -> np.ndarray:
    """float64: what each row costs, in tokens; `pair` is what attention to one earlier token costs, in tokens."""
    length_P = (rows.piece_P5[:, 2] - rows.piece_P5[:, 1]).astype(np.float64)
    row_P = np.repeat(np.arange(len(rows)), np.diff(rows.start_R1))
    return np.bincount(row_P, length_P + pair * length_P * (length_P + 1) / 2, minlength=len(rows))


def shares(cost_R: np.ndarray, ranks: int) -> list[list[int]]:
    """The rows of each rank, in order; `ranks` divides their number."""
    if ranks == 1:
        return [list(range(len(cost_R)))]
    taken: list[list[int]] = [[] for _ in range(ranks)]
    open_ranks = [(0.0, rank) for rank in range(ranks)]
    for row in np.argsort(-cost_R, kind="stable").tolist():
        load, rank = heapq.heappop(open_ranks)
        taken[rank].append(row)
        if len(taken[rank]) < len(cost_R) // ranks:
            heapq.heappush(open_ranks, (load + float(cost_R[row]), rank))
    load_R = np.array([cost_R[rows].sum() for rows in taken])
    while _swap(taken, load_R, cost_R):
        pass
    return [sorted(rows) for rows in taken]


def _swap(taken: list[list[int]], load_R: np.ndarray, cost_R: np.ndarray) -> bool:
    """Swap one row of the dearest rank so that the dearer of the two ends lowest; whether that lowers it."""
    dearest = int(load_R.argmax())
    best, found = float(load_R[dearest]) * (1 - 1e-9), None
    for other in range(len(taken)):
        if other == dearest:
            continue
        moved_AB = cost_R[taken[dearest]][:, None] - cost_R[taken[other]][None, :]
        dearer_AB = np.maximum(load_R[dearest] - moved_AB, load_R[other] + moved_AB)
        a, b = np.unravel_index(dearer_AB.argmin(), dearer_AB.shape)
        if dearer_AB[a, b] < best:
            best, found = float(dearer_AB[a, b]), (other, int(a), int(b), float(moved_AB[a, b]))
    if found is None:
        return False
    other, a, b, moved = found
    taken[dearest][a], taken[other][b] = taken[other][b], taken[dearest][a]
    load_R[dearest] -= moved
    load_R[other] += moved
    return True
