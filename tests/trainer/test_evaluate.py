"""Held-out losses beside the unigram entropy, ranks, bytes and sources: against sums written out label by label."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from whole import everything

from motet.core.errors import UserError
from motet.trainer.data.collate import Collate, Noise
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.loader import Loader, heldout_loader
from motet.trainer.data.order import Order
from motet.trainer.data.packed import Piece, Rows
from motet.trainer.objective.diffusion import Cosine
from motet.trainer.objective.losses import losses
from motet.trainer.run.checkpoint import latest
from motet.trainer.run.train import train
from motet.trainer.use.evaluate import evaluate, source_table, table
from motet.trainer.use.trained import Trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate") / "run"


@pytest.fixture
def config(train_config, dataset):
    return train_config(
        data={"paths": [dataset], "sequence": 256, "caption_first": 1.0},
        objective={"kind": "transfusion"},
        model={"dim": 64},
        steps=150,
        checkpoint_every=150,
    )


@pytest.fixture
def trained(config, run):
    train(config, run)
    return run


def labels_of(batches):
    return [label for batch in batches for label in batch.labels_T[batch.label_row_M].tolist()]


def test_figures_are_what_they_say(config, trained):
    byte_lengths = np.arange(256) % 5
    found = evaluate(Trained.open(trained), byte_lengths=byte_lengths)
    assert json.loads((trained / "evaluation.json").read_text()) == found
    assert (found["step"], found["checkpoint"]) == (150, "step-000150")

    model, vocabulary, towers = (getattr(Trained.open(trained), name) for name in ("model", "vocabulary", "towers"))
    train, unseen = (Corpus.open(config.data.paths, split, 0.1) for split in ("train", "heldout"))
    batches = list(heldout_loader(unseen, vocabulary, towers, config.data, 1000).once(config.micro_rows))
    kind = {i: ("text", 0) for i in range(vocabulary.base["text"][0] + 256)}
    kind |= {start + i: ("speech", k) for k, start in enumerate(vocabulary.base["speech"]) for i in range(256)}
    sizes = Counter(kind.values())

    order = Order(train, config.data, config.rows, config.seed)
    seen = Counter(labels_of(Loader(order, vocabulary, towers, Noise(0, 1000)).once(1)))
    seen_of = Counter()
    for label, n in seen.items():
        seen_of[kind[label]] += n
    unigram, loss, hits, hits_of_5 = (defaultdict(list) for _ in range(4))
    in_order = []
    for label in labels_of(batches):
        own = kind[label]
        unigram[own].append(-math.log((seen[label] + 1) / (seen_of[own] + sizes[own])))
    with torch.no_grad():
        for batch in batches:
            noisy = Cosine(1000).noisy(batch.latents_ND, batch.noise_ND, batch.time_N)
            patch_ND, _ = model.patches.into(noisy, batch.time_N, batch.pictures)
            scores = model.logits(model(batch, patch_ND)).log_softmax(-1)
            for row in batch.label_row_M.tolist():
                label = int(batch.labels_T[row])
                own = kind[label]
                in_order.append(-float(scores[row, label]))
                loss[own].append(in_order[-1])
                best = sorted((i for i in kind if kind[i] == own), key=lambda i: -scores[row, i])[:5]
                hits[own].append(label == best[0])
                hits_of_5[own].append(label in best)

    text, speech = found["modalities"]["text"], found["modalities"]["speech"]
    assert list(found["modalities"]) == ["text", "speech"] and "codebooks" not in text
    for figures, own in ((text, ("text", 0)), *((speech["codebooks"][k], ("speech", k)) for k in range(3))):
        assert figures["labels"] == len(loss[own])
        assert figures["loss"] == pytest.approx(sum(loss[own]) / len(loss[own]), rel=1e-4)
        assert figures["bits"] == pytest.approx(figures["loss"] / math.log(2))
        assert figures["unigram"] == pytest.approx(sum(unigram[own]) / len(unigram[own]), rel=1e-6)
        assert figures["start"] > math.log(vocabulary.size) - 0.5
        assert figures["top1"] == pytest.approx(sum(hits[own]) / len(hits[own]))
        assert figures["top5"] == pytest.approx(sum(hits_of_5[own]) / len(hits_of_5[own]))
    assert speech["labels"] == sum(codebook["labels"] for codebook in speech["codebooks"])
    base = vocabulary.base["text"][0]
    nats = [
        (label - base, n) for label, n in zip(labels_of(batches), in_order, strict=True) if base <= label < base + 256
    ]
    assert text["bytes"] == sum(int(byte_lengths[i]) for i, _ in nats) > 0
    bits = sum(n for _, n in nats) / math.log(2)
    assert text["bits_per_byte"] == pytest.approx(bits / text["bytes"], rel=1e-4)


def test_by_source_each_document_counts_as_if_it_stood_alone(config, trained):
    found = evaluate(Trained.open(trained))
    assert "bits_per_byte" not in found["modalities"]["text"]  # nobody told the bytes of ids
    model, vocabulary, towers = (getattr(Trained.open(trained), name) for name in ("model", "vocabulary", "towers"))
    unseen = Corpus.open(config.data.paths, "heldout", 0.1)
    documents = everything(unseen)
    renderer = Collate(vocabulary, towers, 256, Noise(0, 1000))
    sums, counts = defaultdict(float), Counter()
    for d, length in enumerate(documents.length_D.tolist()):
        batch = renderer.batch(Rows.of(documents, [[Piece(d, 0, min(length, 256), False, 0)]]))
        with torch.no_grad():
            alone = losses(model, batch, config.objective, {})
        for name, total in alone.sums.items():
            key = unseen.sources[documents.source_D[d]], name
            sums[key] += float(total)
            counts[key] += int(alone.counts[name])
    assert list(found["sources"]) == list(unseen.sources) == ["emoji", "families", "prompts", "speeches"]
    for (source, name), n in counts.items():
        figures = found["sources"][source].get(name)
        if n == 0:
            assert figures is None
            continue
        assert figures.get("labels", figures.get("latents")) == n
        assert figures["loss"] == pytest.approx(sums[source, name] / n, rel=1e-4)


def test_text_gets_below_unigram_and_diffusion_falls(config, trained):
    found = evaluate(Trained.open(latest(trained)))
    text = found["modalities"]["text"]
    assert text["loss"] < text["unigram"] < text["start"]
    assert found["diffusion"]["loss"] < 0.5 * found["diffusion"]["start"]


def test_the_table_shows_it(config, trained):
    from rich.console import Console

    console = Console(width=120, record=True)
    found = evaluate(Trained.open(trained), byte_lengths=np.ones(256, np.int64))
    console.print(table(found))
    console.print(source_table(found))
    shown = console.export_text()
    for word in ("text", "speech", "codebook 2", "noise", "unigram entropy", "bits per byte", "families", "top 5"):
        assert word in shown


def test_rows_bound_the_work(config, trained):
    assert evaluate(Trained.open(trained), rows=2)["rows"] == 2


def test_what_cannot_be_evaluated(train_config, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        evaluate(Trained.open(tmp_path))
    train(train_config(steps=1, data={"holdout": 0.0}), tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.holdout: 0\.0 holds out none"):
        evaluate(Trained.open(tmp_path / "run"))
