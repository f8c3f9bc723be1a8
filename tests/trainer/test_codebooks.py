"""Frames of several codebooks as tokens: each way against one written out, and what a model then learns."""

import dataclasses
import shutil

import numpy as np
import pytest
import reference_batch as reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from whole import everything

from motet.core.errors import UserError
from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.trainer.config import ModelConfig, ObjectiveConfig
from motet.trainer.data.collate import Collate, Noise
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.order import Order
from motet.trainer.data.packed import Piece, Rows
from motet.trainer.data.records import Records
from motet.trainer.generate.generator import Generator, Sampling
from motet.trainer.model.mot import MoT
from motet.trainer.objective.losses import losses
from motet.trainer.run import metrics
from motet.trainer.run.train import train
from motet.trainer.use.evaluate import evaluate
from motet.trainer.use.trained import Trained
from motet.trainer.vocabulary import Towers, Vocabulary


def vocabulary_of(books):
    def spec(modality, codebooks):
        return TokenizerSpec("t", modality, "discrete", codebooks, 0, None, "x/x", modality * 4)

    return Vocabulary.of({"text": spec("text", (50,)), "speech": spec("speech", tuple(20 + k for k in range(books)))})


def words(random, n):
    return "text", Tokens((n,), ids=random.integers(0, 50, n).astype(np.int32))


def speech(random, frames, books):
    codes = np.stack([random.integers(0, 20 + k, frames) for k in range(books)], 1)
    return "speech", Tokens((frames, books), ids=codes.reshape(-1).astype(np.int32))


@dataclasses.dataclass
class Token:
    """One position: its ids, its modality, what the one before it is told in the whole vocabulary, and (codebook, id)s."""

    ids: list
    modality: str
    told: tuple | None
    further: list


def written_out(vocabulary, spans, stream):
    """All tokens of a document."""
    tokens = [Token([vocabulary.bos], "text", (vocabulary.bos, "text"), [])]
    for modality, span in spans:
        if modality == "text":
            for id_ in vocabulary.ids("text", span.ids).tolist():
                tokens.append(Token([id_], "text", (id_, "text"), []))
            continue
        frames, books = span.shape
        ids_FK = vocabulary.ids(modality, span.ids).reshape(frames, books).tolist()
        begin, end = vocabulary.begin[modality], vocabulary.end[modality]
        tokens.append(Token([begin], "text", (begin, "text"), []))
        early = stream == "delayed" and books > 1 and frames > 0
        if stream == "flat" or books == 1:
            tokens += [Token([id_], modality, (id_, modality), []) for frame in ids_FK for id_ in frame]
        elif stream == "first":
            tokens += [Token([frame[0]], modality, (frame[0], modality), []) for frame in ids_FK]
        else:
            for p in range(frames + books - 1 if frames else 0):
                codes = [(k, ids_FK[p - k][k]) for k in range(books) if 0 <= p - k < frames]
                told = (codes[0][1], modality) if codes[0][0] == 0 else (end, "text") if p == frames else None
                tokens.append(Token([id_ for _, id_ in codes], modality, told, [c for c in codes if c[0] > 0]))
        tokens.append(Token([end], "text", None if early else (end, "text"), []))
    tokens.append(Token([vocabulary.eos], "text", (vocabulary.eos, "text"), []))
    return tokens


@st.composite
def cases(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    books = draw(st.integers(1, 4))
    kinds = st.lists(st.tuples(st.sampled_from(["text", "speech"]), st.integers(0, 6)), max_size=4)
    documents = [
        [words(random, n) if kind == "text" else speech(random, n, books) for kind, n in draw(kinds)]
        for _ in range(draw(st.integers(1, 4)))
    ]
    clips = [(draw(st.integers(0, 12)), draw(st.integers(1, 30))) for _ in documents]
    return books, documents, clips, draw(st.sampled_from(["flat", "delayed", "first"]))


def rendered(books, documents, clips, stream):
    """(vocabulary, the tokens of each piece as they should be, the batch of one piece a row)."""
    vocabulary = vocabulary_of(books)
    tokens = [written_out(vocabulary, spans, stream) for spans in documents]
    table = reference.documents_of(vocabulary, documents)
    lengths = [
        len(span)
        if modality == "text" or stream == "flat" or books == 1
        else span.shape[0]
        if stream == "first"
        else span.shape[0] + books - 1
        if span.shape[0]
        else 0
        for spans in documents
        for modality, span in spans
    ]
    table = dataclasses.replace(
        table, length_S=np.array(lengths, np.int64), length_D=np.array([len(t) for t in tokens], np.int64)
    )
    pieces, expected = [], []
    for d, (begin, length) in enumerate(clips):
        begin = min(begin, len(tokens[d]) - 1)
        end = min(begin + length, len(tokens[d]))
        pieces.append((Piece(d, begin, end, False, 0),))
        expected.append(tokens[d][begin:end])
    renderer = Collate(vocabulary, Towers.of(vocabulary, {}), 30, Noise(0, 1), streams={"speech": stream})
    rows = Rows.of(table, pieces)
    return vocabulary, expected, renderer.batch(rows), renderer.counts(rows)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_batches_are_what_is_written_out(case):
    vocabulary, expected, batch, counts = rendered(*case)
    places = {place: grouped for grouped, place in enumerate(batch.place_T.tolist())}
    ids = [[id_] for id_ in batch.ids_T.tolist()]
    for row, id_ in zip(batch.further_row_J.tolist(), batch.further_ids_J.tolist(), strict=True):
        ids[row].append(id_)
    further = [[] for _ in ids]
    at = 0
    for begin, end, modality, count in batch.further_ranges:
        assert vocabulary.modalities[modality] == "speech"
        book = vocabulary.base["speech"].index(begin)
        for q in range(at, at + count):
            id_ = int(batch.further_labels_Q[q])
            assert begin <= id_ < end
            further[int(batch.further_label_row_Q[q])].append((book, id_))
        at += count
    assert at == len(batch.further_labels_Q)
    told = 0
    for r, tokens in enumerate(expected):
        for i, token in enumerate(tokens):
            here = places[30 * r + i]
            assert sorted(ids[here]) == sorted(token.ids)
            assert int(batch.position_T[here]) == i and int(batch.document_T[here]) == r + 1
            after = tokens[i + 1] if i + 1 < len(tokens) else Token([], "", None, [])
            label = (-100, -1) if after.told is None else (after.told[0], vocabulary.modalities.index(after.told[1]))
            assert (int(batch.labels_T[here]), int(batch.label_modality_T[here])) == label
            assert sorted(further[here]) == sorted(after.further)
            told += (after.told is not None) + len(after.further)
    assert sum(counts.values()) == told == len(batch.label_row_M) + len(batch.further_labels_Q)


def test_losses_and_gradients_are_those_of_a_head_for_each_codebook():
    random = np.random.default_rng(0)
    documents = [[words(random, 3), speech(random, 7, 3)], [speech(random, 4, 3), words(random, 5)]]
    vocabulary, _, batch, counts = rendered(3, documents, [(0, 30), (0, 30)], "delayed")
    model = MoT(ModelConfig(dim=32, layers=2, heads=2), ("text", "speech"), vocabulary.size).double()
    config = ObjectiveConfig(z_loss=1e-2, weights={"speech": 0.5})
    found = losses(model, batch, config, counts)
    found.total.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()

    several = torch.zeros(len(batch.ids_T), vocabulary.size, dtype=torch.float64)  # how often each id enters
    several[torch.arange(len(batch.ids_T)), batch.ids_T] += 1
    several[batch.further_row_J, batch.further_ids_J] += 1
    hidden = model.run(several @ model.embedding.weight, model.layout(batch))
    scores = hidden @ model.head.weight.T
    total, nats = torch.zeros((), dtype=torch.float64), {"text": 0.0, "speech": 0.0}
    terms = [
        (row, 0, vocabulary.size, int(batch.labels_T[row]), int(batch.label_modality_T[row]))
        for row in batch.label_row_M.tolist()
    ]
    at = 0
    for begin, end, modality, count in batch.further_ranges:
        for q in range(at, at + count):
            terms.append((int(batch.further_label_row_Q[q]), begin, end, int(batch.further_labels_Q[q]), modality))
        at += count
    for row, begin, end, label, modality in terms:
        own, name = scores[row, begin:end], vocabulary.modalities[modality]
        each = F.cross_entropy(own[None], torch.tensor([label - begin]))
        nats[name] += float(each.detach())
        total = total + (0.5 if name == "speech" else 1.0) * (each + 1e-2 * own.logsumexp(0) ** 2) / len(terms)
    total.backward()
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=1e-12)
    assert {name: float(value) for name, value in found.sums.items()} == pytest.approx(nats)
    assert int(found.counts["speech"]) == counts["speech"] == 11 * 3
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stream", ["delayed", "first"])
def test_it_trains_on_real_speech_goes_on_and_is_evaluated(stream, train_config, discrete_dataset, tmp_path):
    data = {"streams": {"speech": stream}}
    config = train_config(data=data, steps=60, checkpoint_every=30)
    corpus = Corpus(Records.of(config.data, config.data.paths), "train", 0.1)
    order = Order(corpus, config.data, config.rows, config.seed)
    flat = Corpus.open([discrete_dataset], "train", 0.1)
    assert everything(corpus).length_D.sum() < 0.8 * everything(flat).length_D.sum()
    read = order.rows_of(0).read(corpus)
    assert (read.length_R <= config.data.sequence).all()

    train(config, tmp_path / "run")
    rows = list(metrics.read(tmp_path / "run"))
    assert (
        np.mean([r["losses"]["speech"] for r in rows[-5:]]) < np.mean([r["losses"]["speech"] for r in rows[:5]]) - 0.2
    )
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000060")
    train(config, tmp_path / "run")
    assert [r["loss"] for r in metrics.read(tmp_path / "run")] == [r["loss"] for r in rows]

    found = evaluate(Trained.open(tmp_path / "run"))["modalities"]["speech"]["codebooks"]
    labels = [each["labels"] for each in found]
    assert labels[0] > 0 and (labels[1:] == [0, 0] if stream == "first" else min(labels) > 0.8 * max(labels))
    with pytest.raises(UserError, match=r"data\.streams\.speech"):
        train(train_config(steps=60, checkpoint_every=30), tmp_path / "run")


def test_a_stream_of_what_is_not_there_is_refused(train_config, tmp_path):
    with pytest.raises(
        UserError, match=r"data\.streams: image: first: the data has no codes of that; it has codes of text, speech"
    ):
        train(train_config(data={"streams": {"image": "first"}}), tmp_path)


def hidden_of(model, vocabulary, towers, spans, stream, tokens):
    """Hidden states of the first `tokens` tokens of a document, by training's own batch and forward pass."""
    books = len(vocabulary.base["speech"])
    table = reference.documents_of(vocabulary, [spans])
    whole = written_out(vocabulary, spans, stream)
    frames = [0 if m == "text" else t.shape[0] for m, t in spans]
    extra = books - 1 if stream == "delayed" else 0
    length_S = [len(t) if m == "text" else f + extra if f else 0 for (m, t), f in zip(spans, frames, strict=True)]
    table = dataclasses.replace(table, length_S=np.array(length_S, np.int64), length_D=np.array([len(whole)]))
    renderer = Collate(vocabulary, towers, len(whole), Noise(0, 1), streams={"speech": stream})
    batch = renderer.batch(Rows.of(table, [(Piece(0, 0, len(whole), False, 0),)]))
    found = torch.empty(len(whole), 32, dtype=torch.float64)
    with torch.no_grad():
        found[batch.place_T] = model(batch)
    return found[:tokens]


@pytest.mark.parametrize("stream", ["delayed", "first"])
@pytest.mark.parametrize("seed", range(3))
def test_the_likeliest_speech_is_what_whole_forward_passes_say(stream, seed):
    """Every code of every frame is the likeliest given all that came before it, the end where it is likelier than any."""
    vocabulary = vocabulary_of(3)
    towers = Towers.of(vocabulary, {})
    model = MoT(ModelConfig(dim=32, layers=2, heads=2), towers.names, vocabulary.size, seed=seed).double()
    end, bases = vocabulary.end["speech"], vocabulary.base["speech"]
    with torch.no_grad():
        model.head.weight[end] *= 3  # so that some end by themselves
    generator = Generator(model, vocabulary, towers, streams={"speech": stream})
    random = np.random.default_rng(seed)
    prompts = [[words(random, 3)], [speech(random, 4, 3), words(random, 2)], []]
    found = generator.continue_(prompts, "speech", limit=9, sampling=Sampling(temperature=0))
    for prompt, tokens in zip(prompts, found, strict=True):
        books = 3 if stream == "delayed" else 1
        assert tokens.shape == (len(tokens.ids) // books, books)
        frames, codes_FK = tokens.shape[0], tokens.ids.reshape(tokens.shape)
        if stream == "first":
            codes_FK = np.concatenate((codes_FK, np.zeros((frames, 2), np.int32)), 1)
        spans = [*prompt, ("speech", Tokens(codes_FK.shape, ids=codes_FK.reshape(-1)))]
        start = len(written_out(vocabulary, prompt, stream))  # eos gave way to the opening marker
        hidden = hidden_of(model, vocabulary, towers, spans, stream, start + frames + 3)
        scores = model.logits(hidden).detach()
        for f in range(frames):
            for k in range(books):
                own = scores[start - 1 + f + k, bases[k] : bases[k] + 20 + k]
                assert codes_FK[f, k] == int(own.argmax()), (f, k)
            if f:
                assert scores[start - 1 + f, end] <= scores[start - 1 + f, bases[0] : bases[0] + 20].max()
        if frames < 9:
            assert scores[start - 1 + frames, end] > scores[start - 1 + frames, bases[0] : bases[0] + 20].max()
