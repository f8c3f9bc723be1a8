import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from whole import everything

from motet.core.errors import UserError
from motet.pipeline.dataset.manifest import Manifest
from motet.trainer.config import DataConfig
from motet.trainer.data.corpus import Corpus, Documents
from motet.trainer.data.order import Order
from motet.trainer.data.packed import Rows
from motet.trainer.data.packing import best_fit
from motet.trainer.data.shuffle import draw, permuted


@pytest.fixture(scope="module")
def corpus(dataset) -> Corpus:
    return Corpus.open([dataset])


def config(**changes) -> DataConfig:
    return DataConfig(**{"paths": ["unused"], "sequence": 256, "long": "truncate", **changes})


def pieces(chosen: Rows) -> list[tuple]:
    """(number in the corpus, begin, end, flipped, epoch) of every piece, row after row."""
    number_D = chosen.documents.number_D.tolist()
    return [(number_D[p.document], *p[1:]) for row in chosen.rows for p in row]


def rows(chosen: Rows) -> list[list[tuple]]:
    """The same, row by row."""
    return [pieces(chosen.taken([r])) for r in range(len(chosen))]


def pictures(documents: Documents, document: int, flipped: bool) -> list[tuple[int, int]]:
    """Where continuous spans with their markers stand, counted one by one."""
    found, at = [], 1
    spans = range(documents.span_D[document], documents.span_D[document] + documents.spans_D[document])
    for span in reversed(spans) if flipped else spans:
        modality = documents.modalities[documents.modality_S[span]]
        width = int(documents.length_S[span]) + (0 if modality == "text" else 2)
        if modality == "image":
            found.append((at, at + width))
        at += width
    return found


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 4))
def test_an_epoch_draws_every_document_once_and_any_stretch_alone(documents, key, mixed):
    positions = -(-documents // 512) * 512 if mixed else documents
    whole = draw(0, positions, documents, mixed, np.uint64(key))
    assert sorted(whole[whole >= 0].tolist()) == list(range(documents))
    since, until = sorted((key % (positions + 1), (key >> 20) % (positions + 1)))
    assert draw(since, until, documents, mixed, np.uint64(key)).tolist() == whole[since:until].tolist()
    if mixed:  # blocks move together, so that few of them are open at a time
        for at in range(0, positions, mixed * 512):
            blocks = {d // 512 for d in whole[at : at + mixed * 512].tolist() if d >= 0}
            assert len(blocks) <= mixed


def test_the_shuffle_is_as_good_as_chance():
    order = draw(0, 1 << 15, 1 << 15, 0, np.uint64(7))
    eighth = order // (1 << 12)
    assert np.mean(eighth[1:] == eighth[:-1]) == pytest.approx(1 / 8, abs=0.01)
    assert np.mean(np.abs(np.diff(order)) <= 16) == pytest.approx(32 / (1 << 15), abs=0.001)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
    others = np.stack([draw(0, 1 << 15, 1 << 15, 0, np.uint64(key)) for key in range(20)])
    assert (others == np.arange(1 << 15)).mean() * (1 << 15) < 3  # a random permutation leaves one in place
    assert len({tuple(other[:4]) for other in others}) == 20


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 60))
@example([20, 20, 40, 5, 35], 40)
def test_best_fit_overfills_no_row_and_opens_none_in_vain(lengths, sequence):
    rows = best_fit(np.array(lengths, int), sequence)
    filled = np.bincount(rows, lengths) if lengths else np.empty(0)
    assert len(rows) == len(lengths) and (filled > 0).all()
    assert (filled <= sequence).all()
    assert len(filled) < 2 or np.sort(filled)[:2].sum() > sequence  # no two rows would have fitted into one


@pytest.mark.parametrize("sequence", [64, 256, 2048])
def test_an_epoch_has_every_document_once(corpus, sequence):
    order = Order(corpus, config(sequence=sequence), rows=4, seed=3)
    whole = list(range(len(everything(corpus))))
    once = [piece for chosen in order.once() for piece in pieces(chosen)]
    assert sorted(d for d, *_ in once) == whole
    assert {epoch for *_, epoch in once} == {0}
    # The same again in training's own steps, which go on into further epochs.
    later = next(window.begin.row for window in order.windows() if window.packed.piece_P5[:, 4].min() > 2)
    seen = Counter()
    for step in range(-(-later // 4)):
        seen.update((document, epoch) for document, *_, epoch in pieces(order.rows_of(step)))
    assert set(seen.values()) == {1}
    assert all(Counter(epoch for _, epoch in seen)[epoch] == len(whole) for epoch in range(3))


@pytest.mark.parametrize("long", ["truncate", "split"])
@pytest.mark.parametrize("sequence", [24, 64, 200])
def test_pieces_fit_and_never_cut_a_picture(corpus, long, sequence):
    order = Order(corpus, config(sequence=sequence, long=long, caption_first=0.5), rows=4, seed=1)
    covered = {}
    for chosen in order.once():
        for row in chosen.rows:
            assert 0 < sum(p.end - p.begin for p in row) <= sequence
            for p in row:
                covered.setdefault(int(chosen.documents.number_D[p.document]), []).append((p.begin, p.end))
                for start, stop in pictures(chosen.documents, p.document, p.flipped):
                    assert not start < p.begin < stop and not start < p.end < stop
    whole = everything(corpus)
    assert sorted(covered) == whole.number_D.tolist()
    for document, cuts in covered.items():
        length = whole.length_D[document]
        edges = sorted(cuts)
        assert edges[0][0] == 0
        if long == "split":
            assert [b for b, _ in edges[1:]] == [e for _, e in edges[:-1]] and edges[-1][1] == length
        else:
            assert len(edges) == 1 and edges[0][1] >= min(length, sequence - 18)


def test_a_row_too_short_for_a_picture_is_refused(corpus):
    with pytest.raises(UserError, match=r"data.sequence: a picture of 16 latents needs rows of 20 tokens or more"):
        Order(corpus, config(sequence=19), rows=4, seed=1).rows_of(0)
    Order(corpus, config(sequence=20), rows=4, seed=1).rows_of(0)


@pytest.mark.parametrize("weights", [{}, {"emoji": 3, "prompts": 1, "families": 0.5, "speeches": 0}])
@pytest.mark.parametrize("shuffle", [None, 1])
def test_any_step_is_the_same_wherever_one_starts(corpus, weights, shuffle):
    data = config(weights=weights, shuffle=shuffle, long="split", caption_first=0.3)
    running = Order(corpus, data, rows=8, seed=5)
    undisturbed = [rows(running.rows_of(step)) for step in range(150)]
    assert all(len(found) == 8 for found in undisturbed)
    assert running.cursor(149).row > 256  # several windows
    for step in (149, 3, 77, 0, 120):
        assert rows(Order(corpus, data, rows=8, seed=5).rows_of(step)) == undisturbed[step]
        resumed = Order(corpus, data, rows=8, seed=5)
        resumed.remember(running.cursor(step))
        assert rows(resumed.rows_of(step)) == undisturbed[step]
        assert len(json.dumps(running.cursor(step))) < 1024


def test_planning_goes_on_from_a_cursor_not_from_the_beginning(corpus, monkeypatch):
    cursor = Order(corpus, config(), rows=8, seed=0).cursor(500)
    fresh = Order(corpus, config(), rows=8, seed=0)
    fresh.remember(cursor)
    packed = []
    monkeypatch.setattr(fresh, "_window", lambda begin: packed.append(begin) or fresh._pack(begin))
    fresh.rows_of(500)
    assert cursor.row > 3000 and len(packed) <= 3


def test_the_number_of_rows_per_step_does_not_change_the_rows(corpus):
    few, many = (Order(corpus, config(), rows=n, seed=0) for n in (4, 12))
    assert [row for step in range(60) for row in rows(few.rows_of(step))] == [
        row for step in range(20) for row in rows(many.rows_of(step))
    ]


def test_the_order_of_paths_means_nothing(documents, write_dataset):
    half = len(documents) // 2
    paths = [write_dataset(documents[half:], 7, ("speech", "text", "image")), write_dataset(documents[:half], 33)]
    one, other = (Order(Corpus.open(order), config(), rows=8, seed=0) for order in (paths, paths[::-1]))
    for step in (0, 40):
        assert rows(one.rows_of(step)) == rows(other.rows_of(step))
    assert one.fingerprint(0) == other.fingerprint(0)


def test_seed_and_epoch_change_the_order(corpus):
    first, other = ([p[0] for chosen in Order(corpus, config(), 8, s).once() for p in pieces(chosen)] for s in (0, 1))
    assert first != other and sorted(first) == sorted(other)
    order, drawn = Order(corpus, config(), 64, 0), {}
    for step in range(12):
        for document, *_, epoch in pieces(order.rows_of(step)):
            drawn.setdefault(epoch, []).append(document)
    assert drawn[0] != drawn[1]


@settings(max_examples=10, deadline=None)
@given(
    st.fixed_dictionaries({s: st.floats(0.05, 1) for s in ("emoji", "families", "prompts", "speeches")}),
    st.sampled_from(["truncate", "split"]),
)
def test_token_shares_follow_the_weights(corpus, weights, long):
    order = Order(corpus, config(weights=weights, long=long), rows=8, seed=0)
    tokens = Counter()
    for step in range(100):
        chosen = order.rows_of(step)
        for row in chosen.rows:
            for p in row:
                tokens[corpus.sources[chosen.documents.source_D[p.document]]] += p.end - p.begin
    for source, weight in weights.items():
        assert tokens[source] / tokens.total() == pytest.approx(weight / sum(weights.values()), abs=0.02)


def test_a_source_of_weight_zero_is_left_out(corpus):
    order = Order(corpus, config(weights={"emoji": 1, "prompts": 1, "families": 0, "speeches": 0}), rows=8, seed=0)
    found = {corpus.sources[s] for step in range(20) for s in order.rows_of(step).documents.source_D.tolist()}
    assert found == {"emoji", "prompts"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"emojis": 1}, r"data.weights: emojis: the data has no such source; it has emoji, families"),
        ({"emoji": 1, "prompts": 1, "speeches": 1}, r"data.weights: source 'families' has no weight"),
        ({"emoji": 0, "prompts": 0, "speeches": 0, "families": 0}, r"data.weights: weights must be 0 or more"),
    ],
)
def test_wrong_weights_are_refused(corpus, weights, message):
    with pytest.raises(UserError, match=message):
        Order(corpus, config(weights=weights), rows=8, seed=0)


def test_a_weight_for_a_source_without_documents_is_refused(documents, write_dataset):
    path = Path(write_dataset([d for d in documents if d.source != "prompts"]))
    manifest = Manifest.load(path)
    empty = replace(manifest, sources=(*manifest.sources, "prompts"), tables={**manifest.tables, "prompts": ["text"]})
    (path / "manifest.json").write_text(empty.to_text())
    corpus = Corpus.open([str(path)])
    with pytest.raises(UserError, match=r"data.weights: prompts: this source holds no document to train on"):
        Order(corpus, config(weights=dict.fromkeys(corpus.sources, 1)), rows=8, seed=0)


@pytest.mark.parametrize("caption_first", [0.0, 0.5, 0.8, 1.0])
def test_captions_lead_as_often_as_asked(corpus, caption_first):
    order = Order(corpus, config(caption_first=caption_first), rows=8, seed=0)
    whole = everything(corpus)
    found = [p for step in range(80) for p in pieces(order.rows_of(step))]
    assert not any(flipped for document, _, _, flipped, _ in found if not whole.captioned_D[document])
    captioned = [flipped for document, _, _, flipped, _ in found if whole.captioned_D[document]]
    expected = 1 - caption_first
    assert abs(np.mean(captioned) - expected) <= 4 * (expected * caption_first / len(captioned)) ** 0.5
    if 0 < caption_first < 1:  # the same document stands both ways round in different epochs
        ways = {(document, flipped) for document, _, _, flipped, _ in found}
        assert len({d for d, _ in ways}) < len(ways)


def test_windows_leave_little_padding(corpus):
    order = Order(corpus, config(sequence=256, long="split"), rows=8, seed=0)
    assert (
        np.mean([1 - order.rows_of(step).length_R.sum() / (order.rows * order.data.sequence) for step in range(40)])
        < 0.03
    )


def test_no_batch_is_all_of_one_kind(corpus):
    order = Order(corpus, config(), rows=16, seed=0)
    for step in range(40):
        lengths = np.array([end - begin for _, begin, end, *_ in pieces(order.rows_of(step))])
        assert 0 < lengths[lengths > 200].sum() < 0.9 * lengths.sum()


def test_fingerprint_tells_orders_apart(corpus, documents, write_dataset):
    order = Order(corpus, config(), rows=8, seed=0)
    assert order.fingerprint(0) == Order(corpus, config(paths=["elsewhere"]), rows=8, seed=0).fingerprint(0)
    others = [
        Order(corpus, config(), rows=8, seed=1),
        Order(corpus, config(), rows=16, seed=0),
        Order(corpus, config(caption_first=0.4), rows=8, seed=0),
        Order(corpus, config(shuffle=3), rows=8, seed=0),
        Order(Corpus.open([write_dataset(documents[1:])]), config(), rows=8, seed=0),
    ]
    assert len({p.fingerprint(0) for p in [order, *others]}) == 6


def test_later_windows_make_up_for_what_earlier_ones_over_or_undertook(corpus):
    # Every document of these two sources is cut to 24 tokens; a window's share of speeches is 10 tokens more than a
    # multiple of that, so that windows which forget what went before take 10 too few, each of them.
    window = 256 * 24
    share = (40 * 24 + 10) / window
    weights = {"speeches": share, "prompts": 1 - share, "emoji": 0, "families": 0}
    order = Order(corpus, config(sequence=24, weights=weights), rows=8, seed=0)
    tokens = Counter()
    for _, found in zip(range(60), order.windows(), strict=False):
        for document, begin, end, *_ in found.packed.piece_P5.tolist():
            tokens[corpus.sources[found.packed.documents.source_D[document]]] += end - begin
        for source, total in tokens.items():
            assert abs(total - weights[source] * tokens.total()) <= 24
    assert tokens.total() > 50 * window


def test_the_permutation_is_the_one_that_runs_began_with():
    # Written down, because a run goes on with a later motet: another permutation is another ORDER_VERSION.
    assert draw(0, 12, 12, 0, np.uint64(1)).tolist() == [3, 9, 11, 0, 7, 8, 1, 2, 5, 6, 4, 10]
    assert draw(500, 508, 1000, 0, np.uint64(2**63 + 5)).tolist() == [544, 567, 67, 416, 555, 877, 375, 464]
    assert draw(1020, 1028, 3000, 2, np.uint64(7)).tolist() == [452, 2678, 108, 2694, 2211, 2269, 2530, 2101]
    assert [int(permuted(i, 2**40, np.uint64(9))) for i in range(2)] == [854946517129, 1043046551394]


def test_whatever_changes_the_order_or_the_tokens_is_in_the_fingerprint(corpus):
    changes = {
        "sequence": 128,
        "holdout": 0.1,
        "weights": dict.fromkeys(corpus.sources, 1),
        "modality_weights": {"text": 0.5, "image": 0.2, "speech": 0.3},
        "caption_first": 0.4,
        "guidance_dropout": 0.1,
        "streams": {"speech": "delayed"},
        "shuffle": 3,
        "long": "split",
    }
    same = {"paths": ["elsewhere"], "max_lost": 0.5, "cache": "/elsewhere", "cache_gigabytes": 1, "edits": []}
    assert {*changes, *same} == {*DataConfig.model_fields}

    def fingerprint(**change) -> str:
        return Order(corpus, config(**change), rows=8, seed=0).fingerprint(1)

    assert {fingerprint(**{field: value}) for field, value in same.items()} == {fingerprint()}
    assert len({fingerprint(), *(fingerprint(**{field: value}) for field, value in changes.items())}) == 10
