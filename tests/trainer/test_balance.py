import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.trainer.data.balance import costs, shares
from motet.trainer.data.packed import Rows
from motet.trainer.data.packing import best_fit


def rows_of(*rows: list[int]) -> Rows:
    """Rows of pieces of these lengths."""
    length_P = np.array([n for row in rows for n in row], int)
    none_P = np.zeros_like(length_P)
    return Rows(None, np.column_stack((none_P, none_P, length_P, none_P, none_P)), np.cumsum([0, *map(len, rows)]))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_row_has_one_rank_and_every_rank_as_many(ranks, each, random):
    cost_R = np.array([random.random() for _ in range(ranks * each)])
    found = shares(cost_R, ranks)
    assert sorted(row for rows in found for row in rows) == list(range(ranks * each))
    assert {len(rows) for rows in found} == {each}


def test_a_pair_of_tokens_costs_what_it_is_said_to_cost():
    pairs = 3 * 4 / 2 + 4 * 5 / 2  # a token sees itself and those before it in its document
    assert costs(rows_of([3, 4], []), 0.5) == pytest.approx([7 + 0.5 * pairs, 0])


def test_ranks_of_packed_rows_are_within_three_percent():
    random = np.random.default_rng(0)
    for step in range(20):
        length_P = np.clip(random.lognormal(5, 1.2, 400).astype(int) + 1, 1, 2048)
        row_P = best_fit(length_P, 2048)
        cost_R = costs(
            rows_of(*(length_P[row_P == r].tolist() for r in range(32))), 0.001
        )  # a document of 2,000 tokens costs twice what as many short ones do
        for ranks in (2, 4, 8):
            load = np.array([cost_R[mine].sum() for mine in shares(cost_R, ranks)])
            strided = np.array([cost_R[rank::ranks].sum() for rank in range(ranks)])
            assert load.max() / load.mean() < min(1.03, strided.max() / strided.mean()), step


def plain_shares(cost_R, ranks):
    """The same rule, written without compiled loops."""
    if ranks == 1:
        return [list(range(len(cost_R)))]
    taken, load = [[] for _ in range(ranks)], [0.0] * ranks
    for row in sorted(range(len(cost_R)), key=lambda r: (-cost_R[r], r)):
        rank = min((r for r in range(ranks) if len(taken[r]) < len(cost_R) // ranks), key=lambda r: (load[r], r))
        taken[rank].append(row)
        load[rank] += cost_R[row]
    load = [cost_R[rows].sum() for rows in taken]
    while True:
        dearest = int(np.argmax(load))
        found = min(
            (max(load[dearest] - (moved := cost_R[a] - cost_R[b]), load[w] + moved), w, i, j)
            for w in range(ranks)
            if w != dearest
            for i, a in enumerate(taken[dearest])
            for j, b in enumerate(taken[w])
        )
        if found[0] >= load[dearest] * (1 - 1e-9):
            return [sorted(rows) for rows in taken]
        _, w, i, j = found
        moved = cost_R[taken[dearest][i]] - cost_R[taken[w][j]]
        taken[dearest][i], taken[w][j] = taken[w][j], taken[dearest][i]
        load[dearest] -= moved
        load[w] += moved


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_shares_are_those_of_the_rule_written_plainly(ranks, each, seed):
    cost_R = np.random.default_rng(seed).lognormal(5, 1, ranks * each)
    assert shares(cost_R, ranks) == plain_shares(cost_R, ranks)
