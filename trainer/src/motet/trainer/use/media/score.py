"""Scores of what a model generates for held-out documents, each beside the score of real media: what to hold it against.

    held-out pairs --`follow`--> tokens --decode--> media --`judges`--> `Score` --> OUT/scores.json, `lines`

Real media are decoded from their own tokens, so that a score tells of the model and not of its tokenizers.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from motet.core import durable
from motet.tokenizers.contract import Tokens
from motet.trainer.generate.generator import Sampling
from motet.trainer.use.media import judges
from motet.trainer.use.media.pairs import Pair, follow, heldout_pairs
from motet.trainer.use.media.samples import Sampler
from motet.trainer.use.trained import Trained

SCORES = "scores.json"
TASKS = {
    "image": "a picture from its caption",
    "text": "a caption from its picture",
    "speech": "speech from its text",
}


@dataclass(frozen=True)
class Score:
    """One measure of one task.

    Attributes:
        task: what was generated from what. measure: its name; whether `less` is better.
        count: held-out documents. value: of what the model made.
        reference: the same measure of `against`.
    """

    task: str
    measure: str
    less: bool
    count: int
    value: float
    reference: float
    against: str


def score(trained: Trained, to: Sequence[str], count: int, sampling: Sampling) -> dict[str, Any]:
    """Generate `count` samples of each modality in `to` from held-out documents, and judge them.

    Returns, and writes into scores.json in the run's folder: `step`, `checkpoint`, how was drawn (`sampling`), `scores`.
    UserError if a judge's package is missing, or no document of the kind was held out.
    """
    for modality in to:
        judges.require(modality)
    sampler, training = Sampler(trained), trained.of_run()
    found = []
    for modality in to:
        pairs = heldout_pairs(trained, "speech" if modality == "speech" else "image", count)
        made = list(follow(sampler.generator, pairs, modality, sampling))
        found += _JUDGES[modality](sampler, pairs, made)
    scores = {
        "step": training.state.step,
        "checkpoint": trained.path.name,
        "sampling": dataclasses.asdict(sampling),
        "scores": [dataclasses.asdict(each) for each in found],
    }
    durable.write(training.home / SCORES, json.dumps(scores, indent=1) + "\n")
    return scores


def lines(scores: dict[str, Any]) -> list[str]:
    """Scores for the terminal, a line each."""
    return [
        f"{each['task']}: {each['measure']} ({'less' if each['less'] else 'more'} is better), {each['count']:,} documents: "
        f"{each['value']:.4g}; {each['against']}: {each['reference']:.4g}"
        for each in scores["scores"]
    ]


def _judge_pictures(sampler: Sampler, pairs: Sequence[Pair], made: Sequence[Tokens]) -> list[Score]:
    """One half's captions make pictures that are held against the other half's real ones, as that half's real ones are."""
    half = len(pairs) // 2
    features = judges.picture_features(_pictures(sampler, [*made[:half], *(pair.media for pair in pairs[: 2 * half])]))
    made_ND, real_ND, other_ND = features[:half], features[half : 2 * half], features[2 * half :]
    return [
        Score(
            TASKS["image"],
            f"{name}, n={half}",
            True,
            half,
            distance(made_ND, other_ND),
            distance(real_ND, other_ND),
            "real pictures instead",
        )
        for name, distance in ((judges.FRECHET, judges.frechet), (judges.KERNEL, judges.kernel))
    ]


def _judge_captions(sampler: Sampler, pairs: Sequence[Pair], made: Sequence[Tokens]) -> list[Score]:
    decode = sampler.tokenizers["text"].decode
    true = decode([pair.text for pair in pairs])
    value, chance = judges.chrf(decode(made), true), judges.chrf([*true[1:], *true[:1]], true)
    return [Score(TASKS["text"], judges.CHRF, False, len(pairs), value, chance, "true captions of other pictures")]


def _judge_speech(sampler: Sampler, pairs: Sequence[Pair], made: Sequence[Tokens]) -> list[Score]:
    true = sampler.tokenizers["text"].decode([pair.text for pair in pairs])
    decode = sampler.tokenizers["speech"].decode
    value = judges.word_error_rate(decode(made), true)
    real = judges.word_error_rate(decode([pair.media for pair in pairs]), true)
    return [Score(TASKS["speech"], judges.WORD_ERRORS, True, len(pairs), value, real, "the real recordings")]


_JUDGES = {"image": _judge_pictures, "text": _judge_captions, "speech": _judge_speech}


def _pictures(sampler: Sampler, tokens: Sequence[Tokens]) -> list[Image.Image]:
    tokenizer = sampler.tokenizers["image"]
    return [Image.open(io.BytesIO(tokenizer.dump(sample))) for sample in tokenizer.decode(tokens)]
