"""Scores of what a model generates for held-out documents, each beside the score of real media: what to hold it against.

    held-out pairs --`follow`--> tokens --decode--> media --`judges`--> `Score` --> OUT/scores.json, `table`

Real media are decoded from their own tokens, so that a score tells of the model and not of its tokenizers.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from motet.orchestration import judges
from motet.orchestration.heldout import Pair, follow, heldout_pairs
from motet.orchestration.samples import Sampler
from motet.tokenizers.contract import Tokens
from motet.trainer.folder import write_whole
from motet.trainer.generate import Sampling

if TYPE_CHECKING:
    from rich.table import Table

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


def score(run: Path, to: Sequence[str], count: int, sampling: Sampling) -> dict[str, Any]:
    """Generate `count` samples of each modality in `to` from held-out documents, and judge them.

    Returns, and writes into the run folder's scores.json: `step`, `checkpoint`, how was drawn (`sampling`), `scores`.
    UserError if a judge's package is missing, or no document of the kind was held out.
    """
    for modality in to:
        judges.require(modality)
    sampler = Sampler(run)
    found = []
    for modality in to:
        pairs = heldout_pairs(sampler.trained, "speech" if modality == "speech" else "image", count)
        made = list(follow(sampler.generator, pairs, modality, sampling))
        found.append(_JUDGES[modality](sampler, pairs, made))
    scores = {
        "step": sampler.trained.state.step,
        "checkpoint": sampler.trained.path.name,
        "sampling": dataclasses.asdict(sampling),
        "scores": [dataclasses.asdict(each) for each in found],
    }
    write_whole(sampler.trained.path.parent.parent / SCORES, json.dumps(scores, indent=1) + "\n")
    return scores


def table(scores: dict[str, Any]) -> Table:
    """Scores for the terminal."""
    from rich.table import Table

    shown = Table(title=f"Held-out documents after {scores['step']} steps")
    for column in ("task", "measure", "documents", "model", "beside it", "of"):
        shown.add_column(column, justify="right" if column in ("documents", "model", "beside it") else "left")
    for each in scores["scores"]:
        better = "less is better" if each["less"] else "more is better"
        numbers = f"{each['count']:,}", f"{each['value']:.3f}", f"{each['reference']:.3f}"
        shown.add_row(each["task"], f"{each['measure']}; {better}", *numbers, each["against"])
    return shown


def _judge_pictures(sampler: Sampler, pairs: Sequence[Pair], made: Sequence[Tokens]) -> Score:
    """Half of the captions make pictures that are held against the other half's real ones, as that half's real ones are.

    The distance falls with the number of pictures, so both have the same.
    """
    half = len(pairs) // 2
    features = judges.picture_features(_pictures(sampler, [*made[:half], *(pair.media for pair in pairs[: 2 * half])]))
    made_ND, real_ND, other_ND = features[:half], features[half : 2 * half], features[2 * half :]
    return Score(
        TASKS["image"],
        f"{judges.FRECHET}, n={half}",
        True,
        half,
        judges.frechet(made_ND, other_ND),
        judges.frechet(real_ND, other_ND),
        "real pictures of the same captions: as near as can be",
    )


def _judge_captions(sampler: Sampler, pairs: Sequence[Pair], made: Sequence[Tokens]) -> Score:
    decode = sampler.tokenizers["text"].decode
    true = decode([pair.text for pair in pairs])
    return Score(
        TASKS["text"],
        judges.CHRF,
        False,
        len(pairs),
        judges.chrf(decode(made), true),
        judges.chrf([*true[1:], *true[:1]], true),
        "the true captions of other pictures: by chance",
    )


def _judge_speech(sampler: Sampler, pairs: Sequence[Pair], made: Sequence[Tokens]) -> Score:
    true = sampler.tokenizers["text"].decode([pair.text for pair in pairs])
    decode = sampler.tokenizers["speech"].decode
    return Score(
        TASKS["speech"],
        judges.WORD_ERRORS,
        True,
        len(pairs),
        judges.word_error_rate(decode(made), true),
        judges.word_error_rate(decode([pair.media for pair in pairs]), true),
        "the real recordings: as well as can be heard",
    )


_JUDGES = {"image": _judge_pictures, "text": _judge_captions, "speech": _judge_speech}


def _pictures(sampler: Sampler, tokens: Sequence[Tokens]) -> list[Image.Image]:
    tokenizer = sampler.tokenizers["image"]
    return [Image.open(io.BytesIO(tokenizer.dump(sample))) for sample in tokenizer.decode(tokens)]
