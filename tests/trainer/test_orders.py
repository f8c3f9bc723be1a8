"""Whatever happens to a run, its global batches are those of one process that was never disturbed.

The run: sessions of some ranks each, that stop after some steps, go on from the cursor of a checkpoint (as JSON), with paths in
another order, and between two sessions edits of the weights, further datasets or the loss of record batches. The oracle: one
plan of the final configuration, from step 0, in one process. Ten thousand such histories:
`python -m pytest tests/trainer/test_orders.py --hypothesis-profile=long`.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.core.errors import UserError
from motet.trainer.config import DataConfig
from motet.trainer.data.balance import costs, shares
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.order import Cursor, Damage, Order
from motet.trainer.data.records import Lost, Records

ROWS = 48
SOURCES = ("emoji", "families", "prompts", "speeches")
WEIGHTS = st.one_of(
    st.fixed_dictionaries({"weights": st.fixed_dictionaries({s: st.sampled_from([0.2, 1.0, 3.0]) for s in SOURCES})}),
    st.sampled_from(
        [{}, *({"modality_weights": {"text": t, "image": i, "speech": 1 - t - i}} for t, i in ((0.5, 0.2), (0.6, 0.3)))]
    ),
)


@pytest.fixture(scope="module")
def datasets(documents, write_dataset) -> list[str]:
    """Three: what a run begins with, and two that come later; every one has documents of all sources."""
    return [write_dataset(documents[i::3], 30) for i in range(3)]


@st.composite
def histories(draw: st.DrawFn) -> dict:
    """Sessions (ranks, steps) and what is changed before each but the first."""
    sessions = draw(st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 7)), min_size=1, max_size=4))
    changes, later = [], [1, 2]
    for _ in sessions[1:]:
        kind = draw(st.sampled_from(["nothing", "weights", "dataset", "both", "loss"]))
        paths = [later.pop(0)] if kind in ("dataset", "both") and later else []
        weights = draw(WEIGHTS) if kind in ("weights", "both") else {}
        changes.append((draw(st.integers(0, 3)), paths, weights, kind == "loss"))
    begin = draw(WEIGHTS)
    return {
        "sessions": sessions,
        "changes": changes,
        "data": {
            "sequence": draw(st.sampled_from([48, 64])),
            "long": draw(st.sampled_from(["split", "truncate"])),
            "shuffle": draw(st.sampled_from([None, 1])),
            "caption_first": 0.4,
            **begin,
        },
        "seed": draw(st.integers(0, 3)),
        "turned": draw(st.booleans()),
    }


def order_of(records: Records, data: DataConfig, seed: int, losses: list[Damage]) -> Order:
    order = Order(Corpus(records, "train", 0.05), data, ROWS, seed)
    order.leave_out(losses)
    return order


def global_batch(order: Order, step: int, ranks: int) -> list[tuple]:
    """The pieces of a step's rows, put together of what each rank takes."""
    chosen = order.rows_of(step)
    parts = shares(costs(chosen, 0.01), ranks)
    assert len({len(part) for part in parts}) == 1
    rows = dict((r, chosen.rows[r]) for part in parts for r in part)
    sample_D2 = chosen.documents.sample_D2
    return [tuple((tuple(sample_D2[p.document].tolist()), *p[1:]) for p in rows[r]) for r in range(ROWS)]


@settings(deadline=None, max_examples=max(200, settings.default.max_examples))
@given(history=histories())
def test_any_history_gives_the_batches_of_one_undisturbed_process(datasets, history):
    data = DataConfig(paths=[datasets[0]], **history["data"])
    losses: list[Damage] = []
    step, checkpoint, seen = 0, None, []
    order = order_of(Records.open(data.paths), data, history["seed"], losses)
    for n, (ranks, steps) in enumerate(history["sessions"]):
        if n:
            ahead, paths, weights, loss = history["changes"][n - 1]
            at = max([step + ahead, 1, *(edit.from_step + 1 for edit in data.edits)])
            if paths or weights:
                edit = {"from_step": at, "paths": [datasets[p] for p in paths], **weights}
                data = DataConfig.model_validate({**data.model_dump(), "edits": [*data.model_dump()["edits"], edit]})
            if loss:  # one of the two record batches of emoji, the same one if it is lost again
                hash_ = Records.open([datasets[0]]).hashes[0]
                row = order._window_at(step * ROWS + ROWS - 1).end.row  # a window that nobody has begun
                losses.append(Damage(row, Lost(hash_, 0, 1, "made up")))
        paths = data.all_paths[::-1] if history["turned"] and n % 2 else data.all_paths
        order = order_of(Records.open(paths), data, history["seed"], losses)
        if checkpoint:
            row, *taken = json.loads(checkpoint)["cursor"]
            assert len(json.dumps(json.loads(checkpoint)["cursor"])) <= 1024
            assert json.loads(checkpoint)["fingerprint"] == order.fingerprint(step)
            order.remember(Cursor(row, *map(tuple, taken)))
        for _ in range(steps):
            seen.append(global_batch(order, step, ranks))
            checkpoint = json.dumps({"cursor": order.cursor(step), "fingerprint": order.fingerprint(step + 1)})
            step += 1
    oracle = order_of(Records.open(data.all_paths), data, history["seed"], losses)
    for at, batch in enumerate(seen):
        assert batch == global_batch(oracle, at, 1)


def test_a_silent_change_of_data_is_not_taken_for_the_same(datasets):
    def fingerprint(step: int, **changes) -> str:
        data = DataConfig(**{"paths": datasets[:1], "sequence": 64, **changes})
        return Order(Corpus(Records.open(data.all_paths), "train", 0.05), data, ROWS, 0).fingerprint(step)

    edit, other = {"from_step": 5, "paths": datasets[1:2]}, {"from_step": 5, "paths": datasets[2:]}
    assert fingerprint(5) == fingerprint(5, edits=[edit]) == fingerprint(5, edits=[other])
    assert len({fingerprint(6), fingerprint(6, edits=[edit]), fingerprint(6, edits=[other])}) == 3
    assert fingerprint(6, edits=[edit]) == fingerprint(6, edits=[edit, {**other, "from_step": 6}])
    assert fingerprint(0) != fingerprint(0, paths=datasets[1:2])


def test_edits_stand_in_order_and_weigh_one_way():
    with pytest.raises(ValueError, match="in the order of their steps"):
        DataConfig(paths=["a"], sequence=64, edits=[{"from_step": 5}, {"from_step": 5}])
    with pytest.raises(ValueError, match="weights or modality_weights, not both"):
        DataConfig(paths=["a"], sequence=64, weights={"a": 1}, modality_weights={"text": 1})


def test_a_share_that_no_mix_can_have_is_refused(dataset):
    data = DataConfig(paths=[dataset], sequence=64, modality_weights={"text": 0.01, "image": 0.98, "speech": 0.01})
    with pytest.raises(
        UserError, match=r"data.modality_weights: text: a share of 1.0% cannot be had .* at best; .*emoji"
    ):
        Order(Corpus.open([dataset]), data, 8, 0)


@pytest.mark.parametrize("weights", [{"text": 0.5, "image": 0.2, "speech": 0.3}, {"text": 1, "image": 0, "speech": 0}])
def test_modalities_have_their_share(dataset, weights):
    data = DataConfig(paths=[dataset], sequence=128, long="split", modality_weights=weights)
    corpus = Corpus.open([dataset])
    order = Order(corpus, data, 64, 0)
    cursor = order.cursor(1000)
    for wanted, had in zip((weights[m] for m in corpus.modalities), cursor.modalities, strict=True):
        assert had / sum(cursor.modalities) == pytest.approx(wanted, abs=0.001)
