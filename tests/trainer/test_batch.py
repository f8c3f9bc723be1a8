"""Batches of any rows of any documents against their definition, and against the same made another way."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import reference_batch as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.trainer.data.batch import GroupedBatch
from motet.trainer.data.collate import Collate, Noise
from motet.trainer.data.dropout import Dropout
from motet.trainer.data.packed import Piece, Rows
from motet.trainer.vocabulary import Towers, Vocabulary

WIDTH = 3


def spec(modality: str, books: tuple[int, ...]) -> TokenizerSpec:
    kind = "discrete" if books else "continuous"
    return TokenizerSpec("t", modality, kind, books, 0 if books else WIDTH, None, "x/x", modality * 4)


DISCRETE = {"text": spec("text", (9,)), "image": spec("image", (5, 4)), "speech": spec("speech", (7, 3, 2))}
VOCABULARIES = [
    Vocabulary.of({"text": DISCRETE["text"]}),
    Vocabulary.of(DISCRETE),
    Vocabulary.of(DISCRETE | {"image": spec("image", ())}),
    Vocabulary.of(DISCRETE | {"speech": spec("speech", ())}),
]
TOWERS = [{}, {"image": "media", "speech": "media"}, {"speech": "text"}, {"image": "text", "speech": "text"}]


@dataclass(frozen=True)
class Case:
    """Some rows, and what they are to be rendered with."""

    vocabulary: Vocabulary
    towers: Towers
    rows: Rows
    sequence: int
    noise: Noise
    dropout: Dropout

    @property
    def renderer(self) -> Collate:
        return Collate(self.vocabulary, self.towers, self.sequence, self.noise, self.dropout)

    def batch(self) -> GroupedBatch:
        return self.renderer.batch(self.rows)


@st.composite
def cases(draw) -> Case:
    """Documents of spans of any modality and length, pieces cut anywhere, rows that are empty, full or in between."""
    vocabulary = draw(st.sampled_from(VOCABULARIES))
    mapping = draw(st.sampled_from(TOWERS)) if len(vocabulary.modalities) > 1 else {}
    values = np.random.default_rng(draw(st.integers(0, 9)))

    def span(modality: str, length: int) -> tuple[str, Tokens]:
        if modality == vocabulary.latent_modality:
            return modality, Tokens((length,), latents=values.standard_normal((length, WIDTH)).astype(np.float16))
        sizes = np.resize(vocabulary.tokenizers[modality].codebooks, length)  # a span may end within a frame
        return modality, Tokens((length,), ids=values.integers(0, sizes).astype(np.int32))

    spans = st.tuples(st.sampled_from(vocabulary.modalities), st.integers(0, 7))
    captioned = st.tuples(st.tuples(st.just("text"), st.integers(0, 7)), spans)
    drawn = draw(st.lists(st.lists(spans, max_size=4) | captioned, min_size=1, max_size=5))
    documents = reference.documents_of(vocabulary, [[span(*one) for one in spans] for spans in drawn])
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        row = []
        for _ in range(draw(st.integers(0, 4))):
            document = draw(st.integers(0, len(documents) - 1))
            begin, end = sorted(draw(st.integers(0, int(documents.length_D[document]))) for _ in range(2))
            if draw(st.booleans()):
                begin, end = 0, int(documents.length_D[document])
            row.append(Piece(document, begin, end, draw(st.booleans()), draw(st.integers(0, 2))))
        rows.append(tuple(row))
    longest = max(sum(piece.end - piece.begin for piece in row) for row in rows)
    sequence = max(longest + draw(st.integers(0, 3)), 1)
    noise = Noise(draw(st.integers(0, 3)), 1000)
    dropout = Dropout(draw(st.integers(0, 3)), draw(st.sampled_from([0.0, 0.5, 1.0])))
    return Case(vocabulary, Towers.of(vocabulary, mapping), Rows.of(documents, rows), sequence, noise, dropout)


@given(cases())
@settings(max_examples=300, deadline=None)
def test_a_batch_is_what_whole_array_operations_make_of_the_rows(case):
    found = case.batch()
    rows = reference.uncaptioned(case.rows, case.dropout)
    expected = reference.reference_batch(case.vocabulary, case.towers, rows, case.sequence, case.noise)
    for field in dataclasses.fields(GroupedBatch):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, torch.Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape), field.name
            assert one.numpy().tobytes() == other.numpy().tobytes(), field.name
        else:
            assert one == other, field.name


@given(cases())
@settings(deadline=None)
def test_counts_are_the_labels_and_latents_of_the_batch(case):
    names, batch = case.vocabulary.modalities, case.batch()
    labels = [int((batch.label_modality_T == m).sum()) for m in range(len(names))]
    expected = dict(zip(names, labels, strict=True))
    if case.vocabulary.latent_modality:
        expected["diffusion"] = len(batch.latent_row_N)
    assert case.renderer.counts(case.rows) == expected


@given(cases())
@settings(deadline=None)
def test_tokens_are_sorted_by_tower_and_keep_the_sequence_within(case):
    batch, T = case.batch(), len(case.rows.rows) * case.sequence
    tower_T = np.repeat(np.arange(len(batch.counts)), batch.counts)
    assert len(batch.counts) == len(case.towers) and len(tower_T) == T == batch.rows * batch.sequence
    assert batch.offsets_G.tolist() == np.cumsum(batch.counts).tolist() and batch.offsets_G.dtype == torch.int32
    order = list(zip(tower_T.tolist(), batch.place_T.tolist(), strict=True))
    assert order == sorted(order) and sorted(t for _, t in order) == list(range(T))


@given(cases())
@settings(deadline=None)
def test_labels_are_the_next_token_of_the_document_unless_a_latent_is_involved(case):
    batch = case.batch()
    order = batch.place_T.tolist()
    row_of = {t: row for row, t in enumerate(order)}
    document, block, ids = batch.document_T.tolist(), batch.block_T.tolist(), batch.ids_T.tolist()
    labelled = []
    for row, t in enumerate(order):
        following = row_of.get(t + 1, -1)
        last = following < 0 or document[row] != document[following]
        if document[row] == 0 or last or block[row] or block[following]:
            assert (batch.labels_T[row], batch.label_modality_T[row]) == (-100, -1)
        else:
            assert batch.labels_T[row] == ids[following] and batch.label_modality_T[row] >= 0
            labelled.append(row)
    assert batch.label_row_M.tolist() == labelled
    assert batch.latent_row_N.tolist() == [row for row in range(len(order)) if block[row]]


def in_sequence(batch: GroupedBatch, name: str) -> list[int]:
    """A column of the first row of a batch, in sequence order."""
    values = torch.empty_like(getattr(batch, name))
    values[batch.place_T] = getattr(batch, name)
    return values.tolist()


@pytest.mark.parametrize(("flipped", "cut"), [(False, True), (True, False)])
@pytest.mark.parametrize("vocabulary", [VOCABULARIES[1], VOCABULARIES[2]])
def test_what_follows_a_dropped_caption_is_a_document_of_its_own(vocabulary, flipped, cut):
    latent = vocabulary.latent_modality == "image"
    picture = Tokens((4,), latents=np.ones((4, WIDTH), np.float16)) if latent else Tokens((4,), ids=np.arange(4))
    documents = reference.documents_of(vocabulary, [[("text", Tokens((3,), ids=np.arange(3))), ("image", picture)]])
    rows = Rows.of(documents, [(Piece(0, 0, 11, flipped, 0),)])
    case = Case(vocabulary, Towers.of(vocabulary, {}), rows, 12, Noise(0, 1000), Dropout(0, 1.0))
    ids, document, position, label = (
        in_sequence(case.batch(), name) for name in ("ids_T", "document_T", "position_T", "labels_T")
    )
    if cut:
        assert document == [1] * 4 + [2] * 7 + [0] and position == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 0]
        assert (ids[0], ids[4], ids[9:11]) == (1, vocabulary.begin["image"], [vocabulary.end["image"], 2])
        assert label[3] == -100 and label[9] == vocabulary.eos
    else:
        assert document == [1] * 11 + [0] and position == [*range(11), 0]


def test_captions_are_dropped_as_often_as_told_whatever_stands_beside_them():
    vocabulary = VOCABULARIES[1]
    spans = [("text", Tokens((3,), ids=np.arange(3))), ("speech", Tokens((3,), ids=np.arange(3) % 2))]
    documents = reference.documents_of(vocabulary, [spans] * 4000)
    dropout = Dropout(5, 0.1)

    def dropped(numbers, epoch):
        rows = Rows.of(documents, [[Piece(d, 0, 10, False, epoch)] for d in numbers])
        return [d for d, row in zip(numbers, dropout.cut(rows).rows, strict=True) if len(row) == 2]

    first, second = (dropped(range(4000), epoch) for epoch in (0, 1))
    assert all(340 < len(found) < 460 for found in (first, second))  # 400 within 3 standard deviations
    assert 20 < len(set(first) & set(second)) < 65, "epochs are drawn anew"
    assert dropped(range(3999, -1, -7), 0) == [d for d in range(3999, -1, -7) if d in set(first)]


@pytest.mark.parametrize("lengths", [[5, 6], [5, 5, 1]])
def test_a_row_that_is_too_long_is_refused(lengths):
    vocabulary = VOCABULARIES[0]
    words = [("text", Tokens((10,), ids=np.arange(10) % 9))]
    rows = Rows.of(reference.documents_of(vocabulary, [words]), [tuple(Piece(0, 0, n, False, 0) for n in lengths), ()])
    with pytest.raises(ValueError, match="a row holds more than 10 tokens"):
        Case(vocabulary, Towers.of(vocabulary, {}), rows, 10, Noise(0, 1), Dropout()).batch()


@given(cases())
@settings(max_examples=20, deadline=None)
def test_to_moves_every_tensor(case):
    batch = case.batch()
    moved = batch.to("meta")
    for field in dataclasses.fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert after.device.type == "meta" and after.shape == before.shape and after.dtype == before.dtype
        else:
            assert after == before
