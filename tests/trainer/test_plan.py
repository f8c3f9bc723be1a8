from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from motet.tokenizers.configuration import UserError
from motet.trainer.config import DataConfig
from motet.trainer.corpus import Corpus
from motet.trainer.plan import Plan, best_fit


@pytest.fixture(scope="module")
def corpus(dataset) -> Corpus:
    return Corpus.read([dataset])


def config(**changes) -> DataConfig:
    return DataConfig(**{"paths": ["unused"], "sequence": 256, "long": "truncate", **changes})


def names(corpus: Corpus, rows) -> list:
    """Rows without the corpus's own numbering."""
    return [[(corpus.sample_D2[p.document].tobytes(), *p[1:]) for p in row] for row in rows]


def pictures(corpus: Corpus, document: int, flipped: bool) -> list[tuple[int, int]]:
    """Where continuous spans with their markers stand, counted one by one."""
    found, at = [], 1
    spans = range(corpus.span_D[document], corpus.span_D[document] + corpus.spans_D[document])
    for span in reversed(spans) if flipped else spans:
        modality = corpus.modalities[corpus.modality_S[span]]
        width = int(corpus.length_S[span]) + (0 if modality == "text" else 2)
        if modality == "image":
            found.append((at, at + width))
        at += width
    return found


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
    plan = Plan(corpus, config(sequence=sequence), rows=4, seed=3)
    once = [piece for row in plan.once() for piece in row]
    assert sorted(p.document for p in once) == list(range(len(corpus)))
    assert {p.epoch for p in once} == {0}
    # The same again in training's own steps, which go on into further epochs.
    seen = Counter()
    step = 0
    while len({epoch for _, epoch in seen}) < 4:
        seen.update((p.document, p.epoch) for row in plan.rows_of(step) for p in row)
        step += 1
    assert set(seen.values()) == {1}
    assert all(Counter(epoch for _, epoch in seen)[epoch] == len(corpus) for epoch in range(3))


@pytest.mark.parametrize("long", ["truncate", "split"])
@pytest.mark.parametrize("sequence", [24, 64, 200])
def test_pieces_fit_and_never_cut_a_picture(corpus, long, sequence):
    plan = Plan(corpus, config(sequence=sequence, long=long, caption_first=0.5), rows=4, seed=1)
    covered = {}
    for row in plan.once():
        assert 0 < sum(p.end - p.begin for p in row) <= sequence
        for p in row:
            covered.setdefault(p.document, []).append((p.begin, p.end))
            for start, stop in pictures(corpus, p.document, p.flipped):
                assert not start < p.begin < stop and not start < p.end < stop
    assert sorted(covered) == list(range(len(corpus)))
    for document, cuts in covered.items():
        length = corpus.length_D[document]
        edges = sorted(cuts)
        assert edges[0][0] == 0
        if long == "split":
            assert [b for b, _ in edges[1:]] == [e for _, e in edges[:-1]] and edges[-1][1] == length
        else:
            assert len(edges) == 1 and edges[0][1] >= min(length, sequence - 18)


def test_a_row_too_short_for_a_picture_is_refused(corpus):
    with pytest.raises(UserError, match=r"data.sequence: a picture of 16 latents needs rows of 20 tokens or more"):
        Plan(corpus, config(sequence=19), rows=4, seed=1)
    Plan(corpus, config(sequence=20), rows=4, seed=1).rows_of(0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(0, 5))
def test_any_step_is_the_same_wherever_one_starts(corpus, steps, seed):
    running = Plan(corpus, config(), rows=8, seed=seed)
    undisturbed = [running.rows_of(step) for step in range(61)]
    fresh = Plan(corpus, config(), rows=8, seed=seed)
    for step in steps:
        assert fresh.rows_of(step) == undisturbed[step]
        assert len(undisturbed[step]) == 8


def test_the_number_of_rows_per_step_does_not_change_the_rows(corpus):
    few, many = (Plan(corpus, config(), rows=rows, seed=0) for rows in (4, 12))
    assert [row for step in range(6) for row in few.rows_of(step)] == [
        r for step in range(2) for r in many.rows_of(step)
    ]


def test_order_rests_on_content_not_on_how_shards_are_cut(corpus, documents, write_dataset):
    half = len(documents) // 2
    paths = [write_dataset(documents[half:], 7, ("speech", "text", "image")), write_dataset(documents[:half], 33)]
    other = Corpus.read(paths)
    for step in (0, 3):
        expected, found = (Plan(c, config(), rows=8, seed=0).rows_of(step) for c in (corpus, other))
        assert names(other, found) == names(corpus, expected)


def test_seed_and_epoch_change_the_order(corpus):
    first = [p.document for row in Plan(corpus, config(), 8, 0).once() for p in row]
    assert first != [p.document for row in Plan(corpus, config(), 8, 1).once() for p in row]
    plan = Plan(corpus, config(), len(list(Plan(corpus, config(), 1, 0).once())), 0)
    assert [p.document for row in plan.rows_of(0) for p in row] != [p.document for row in plan.rows_of(1) for p in row]


@settings(max_examples=10, deadline=None)
@given(
    st.fixed_dictionaries({s: st.floats(0.05, 1) for s in ("emoji", "families", "prompts", "speeches")}),
    st.sampled_from(["truncate", "split"]),
)
def test_token_shares_follow_the_weights(corpus, weights, long):
    plan = Plan(corpus, config(weights=weights, long=long), rows=8, seed=0)
    tokens = Counter()
    for step in range(100):
        for row in plan.rows_of(step):
            for p in row:
                tokens[corpus.sources[corpus.source_D[p.document]]] += p.end - p.begin
    for source, weight in weights.items():
        assert tokens[source] / tokens.total() == pytest.approx(weight / sum(weights.values()), abs=0.02)


def test_a_source_of_weight_zero_is_left_out(corpus):
    plan = Plan(corpus, config(weights={"emoji": 1, "prompts": 1, "families": 0, "speeches": 0}), rows=8, seed=0)
    documents = [p.document for step in range(20) for row in plan.rows_of(step) for p in row]
    assert {corpus.sources[corpus.source_D[d]] for d in documents} == {"emoji", "prompts"}


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
        Plan(corpus, config(weights=weights), rows=8, seed=0)


def test_a_weight_for_a_source_without_documents_is_refused(corpus):
    source = corpus.sources.index("prompts")
    kept = np.flatnonzero(corpus.source_D != source)
    columns = {f.name: getattr(corpus, f.name)[kept] for f in fields(corpus) if f.name.endswith(("_D", "_D2"))}
    with pytest.raises(UserError, match=r"data.weights: prompts: this source holds no document to train on"):
        Plan(replace(corpus, **columns), config(weights=dict.fromkeys(corpus.sources, 1)), rows=8, seed=0)


@pytest.mark.parametrize("caption_first", [0.0, 0.5, 0.8, 1.0])
def test_captions_lead_as_often_as_asked(corpus, caption_first):
    plan = Plan(corpus, config(caption_first=caption_first), rows=8, seed=0)
    pieces = [p for step in range(80) for row in plan.rows_of(step) for p in row]
    assert not any(p.flipped for p in pieces if not corpus.captioned_D[p.document])
    captioned = [p.flipped for p in pieces if corpus.captioned_D[p.document]]
    expected = 1 - caption_first
    assert abs(np.mean(captioned) - expected) <= 4 * (expected * caption_first / len(captioned)) ** 0.5
    if 0 < caption_first < 1:  # the same document stands both ways round in different epochs
        ways = {(p.document, p.flipped) for p in pieces}
        assert len({d for d, _ in ways}) < len(ways)


def test_windows_leave_little_padding(corpus):
    plan = Plan(corpus, config(sequence=256, long="split"), rows=8, seed=0)
    assert np.mean([plan.padding(step) for step in range(40)]) < 0.03


def test_no_batch_is_all_of_one_kind(corpus):
    plan = Plan(corpus, config(), rows=16, seed=0)
    longest = np.sort(corpus.length_D)[-40:].sum() / corpus.length_D.sum()
    for step in range(20):
        lengths = np.array([p.end - p.begin for row in plan.rows_of(step) for p in row])
        assert 0 < lengths[lengths > 200].sum() < (longest + 0.3) * lengths.sum()


def test_fingerprint_tells_orders_apart(corpus, documents, write_dataset):
    plan = Plan(corpus, config(), rows=8, seed=0)
    assert plan.fingerprint == Plan(corpus, config(paths=["elsewhere"]), rows=8, seed=0).fingerprint
    others = [
        Plan(corpus, config(), rows=8, seed=1),
        Plan(corpus, config(), rows=16, seed=0),
        Plan(corpus, config(caption_first=0.4), rows=8, seed=0),
        Plan(Corpus.read([write_dataset(documents[1:])]), config(), rows=8, seed=0),
    ]
    assert len({p.fingerprint for p in [plan, *others]}) == 5
