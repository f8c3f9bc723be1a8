"""Held-out losses beside the unigram entropy, both against sums written out label by label."""

import json
import math
from collections import Counter, defaultdict

import pytest
import torch

from motet.tokenizers.configuration import UserError
from motet.trainer.checkpoint import latest, open_model
from motet.trainer.corpus import Corpus
from motet.trainer.diffusion import Cosine
from motet.trainer.evaluate import evaluate, table
from motet.trainer.plan import Plan
from motet.trainer.render import Noise
from motet.trainer.stream import Stream, heldout_batches
from motet.trainer.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate") / "run"


@pytest.fixture
def config(train_config, dataset):
    return train_config(
        data={"paths": [dataset], "sequence": 256},
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
    found = evaluate(trained)
    assert json.loads((trained / "evaluation.json").read_text()) == found
    assert (found["step"], found["checkpoint"]) == (150, "step-000150")

    model, vocabulary, towers = (getattr(open_model(trained), name) for name in ("model", "vocabulary", "towers"))
    train, unseen = (Corpus.open(config.data.paths, split, 0.1) for split in ("train", "heldout"))
    batches = list(heldout_batches(unseen, vocabulary, towers, config.data, config.micro_rows, 1000))
    kind = {i: ("text", 0) for i in range(vocabulary.base["text"][0] + 256)}
    kind |= {start + i: ("speech", k) for k, start in enumerate(vocabulary.base["speech"]) for i in range(256)}
    sizes = Counter(kind.values())

    plan = Plan(train, config.data, config.rows, config.seed)
    seen = Counter(labels_of(Stream(plan, vocabulary, towers, Noise(0, 1000)).once(1)))
    seen_of = Counter()
    for label, n in seen.items():
        seen_of[kind[label]] += n
    unigram, loss = defaultdict(list), defaultdict(list)
    for label in labels_of(batches):
        own = kind[label]
        unigram[own].append(-math.log((seen[label] + 1) / (seen_of[own] + sizes[own])))
    with torch.no_grad():
        for batch in batches:
            noisy = Cosine(1000).noisy(batch.latents_ND, batch.noise_ND, batch.time_N)
            scores = model.logits(model(batch, noisy)).log_softmax(-1)
            for row in batch.label_row_M.tolist():
                label = int(batch.labels_T[row])
                loss[kind[label]].append(-float(scores[row, label]))

    text, speech = found["modalities"]["text"], found["modalities"]["speech"]
    assert list(found["modalities"]) == ["text", "speech"] and "codebooks" not in text
    for figures, own in ((text, ("text", 0)), *((speech["codebooks"][k], ("speech", k)) for k in range(3))):
        assert figures["labels"] == len(loss[own])
        assert figures["loss"] == pytest.approx(sum(loss[own]) / len(loss[own]), rel=1e-4)
        assert figures["bits"] == pytest.approx(figures["loss"] / math.log(2))
        assert figures["unigram"] == pytest.approx(sum(unigram[own]) / len(unigram[own]), rel=1e-6)
        assert figures["start"] > math.log(vocabulary.size) - 0.5
    assert speech["labels"] == sum(codebook["labels"] for codebook in speech["codebooks"])


def test_text_gets_below_unigram_and_diffusion_falls(config, trained):
    found = evaluate(latest(trained))
    text = found["modalities"]["text"]
    assert text["loss"] < text["unigram"] < text["start"]
    assert found["diffusion"]["loss"] < 0.5 * found["diffusion"]["start"]


def test_the_table_shows_it(config, trained):
    from rich.console import Console

    console = Console(width=120, record=True)
    console.print(table(evaluate(trained)))
    shown = console.export_text()
    assert all(word in shown for word in ("text", "speech", "codebook 2", "noise", "unigram entropy"))


def test_rows_bound_the_work(config, trained):
    assert evaluate(trained, rows=2)["rows"] == 2


def test_what_cannot_be_evaluated(train_config, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        evaluate(tmp_path)
    train(train_config(steps=1, data={"holdout": 0.0}), tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.holdout: 0\.0 holds out none"):
        evaluate(tmp_path / "run")
