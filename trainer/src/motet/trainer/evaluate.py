"""How good a checkpoint is on documents it never saw, beside what counting ids would give.

    held-out split --batches--> trained and untrained model --> nats by codebook --> OUT/evaluation.json, `table`
    training split --labels---> counts of ids ----------------> unigram entropy of the held-out labels

The unigram entropy is the loss of a model without context that knows how often each id is a label in the training split
(plus one), and is told the label's modality and codebook, which the trained model is not. `diffusion` is the squared
error of the predicted noise: 1 for a model that predicts none.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from motet.tokenizers.configuration import UserError

from .checkpoint import new_model, open_model
from .corpus import Corpus
from .folder import write_whole
from .objective import DIFFUSION, losses
from .plan import Plan
from .records import Records
from .render import Noise
from .stream import Stream, heldout_batches
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from rich.table import Table

    from .batch import GroupedBatch
    from .config import ObjectiveConfig
    from .model.mot import MoT

EVALUATION = "evaluation.json"
UNIGRAM_TOKENS = 10_000_000
"""How much of the training split is counted: more would change no digit that is shown."""


def evaluate(path: str | Path, rows: int = 512) -> dict[str, Any]:
    """Losses of a run folder's newest checkpoint, or of one checkpoint folder, on at most `rows` held-out packed rows.

    Returns, and writes into the run folder's evaluation.json: `step`, `checkpoint`, `rows`, and `modalities`: for each
    its number of `labels`, `loss` (nats per token), `bits`, `start` (the loss before training), `unigram` (entropy),
    and the same for each of its `codebooks`; `diffusion`: `latents`, `loss`, `start`, for a model of latents.
    UserError if there is no checkpoint or nothing was held out.
    """
    trained = open_model(Path(path))
    config, vocabulary = trained.config, trained.vocabulary
    records = Records.of(config.data, config.data.paths)
    vocabulary.check(records.tokenizers, "data.paths")
    unseen = Corpus(records, "heldout", config.data.holdout)
    noise_steps = config.objective.noise_steps
    batches = list(
        heldout_batches(unseen, vocabulary, trained.towers, config.data, config.micro_rows, noise_steps, rows)
    )
    if not batches:
        total = records.begin[-1]
        raise UserError(f"data.holdout: {config.data.holdout} holds out none of {total} documents; raise it")

    names, class_V = _classes(vocabulary)
    finer = [_relabel(batch, names, class_V) for batch in batches]
    if vocabulary.latent_modality:
        names = (*names, DIFFUSION)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    tallies = [
        heldout_tally(model.to(device), finer, config.objective, names)
        for model in (trained.model, new_model(config, vocabulary, trained.towers))
    ]
    plan = Plan(Corpus(records, "train", config.data.holdout), config.data.unweighed, config.rows, config.seed)
    seen = Stream(plan, vocabulary, trained.towers, Noise(config.seed, noise_steps))
    known_V = _label_counts(seen.once(1, UNIGRAM_TOKENS // config.data.sequence), vocabulary.size)
    unigram_K = _unigram_nats(_label_counts(batches, vocabulary.size), known_V, class_V)

    # Sums and counts by class: loss, start, unigram, labels.
    end_K, start_K, count_K = tallies[0][: len(names)], tallies[1][: len(names)], tallies[0][len(names) :]
    modalities = {}
    for modality in dict.fromkeys(name.partition(".")[0] for name in names if name != DIFFUSION):
        own = [i for i, name in enumerate(names) if name.partition(".")[0] == modality]
        modalities[modality] = _figures(end_K, start_K, unigram_K, count_K, own)
        if len(own) > 1:
            modalities[modality]["codebooks"] = [_figures(end_K, start_K, unigram_K, count_K, [i]) for i in own]
    evaluation: dict[str, Any] = {
        "step": trained.state.step,
        "checkpoint": trained.path.name,
        "rows": len(batches) * config.micro_rows,
        "modalities": modalities,
    }
    if DIFFUSION in names and count_K[-1]:
        loss, start = end_K[-1] / count_K[-1], start_K[-1] / count_K[-1]
        evaluation[DIFFUSION] = {"latents": int(count_K[-1]), "loss": loss, "start": start}
    write_whole(trained.path.parent.parent / EVALUATION, json.dumps(evaluation, indent=1) + "\n")
    return evaluation


def heldout_tally(
    model: MoT, batches: Iterable[GroupedBatch], objective: ObjectiveConfig, names: Sequence[str]
) -> list[float]:
    """Sums of the losses called `names` over `batches`, then how many terms each sum has."""
    device = model.embedding.weight.device
    tally = torch.zeros(2 * len(names), dtype=torch.float64, device=device)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            found = losses(model, batch.to(device), objective, {})
            tally += torch.stack([each[name].double() for each in (found.sums, found.counts) for name in names])
    model.train()
    return tally.tolist()


def means(names: Sequence[str], tally_2K: Sequence[float]) -> dict[str, float | None]:
    """Sums over counts, by name; None where nothing was counted."""
    sums, counts = tally_2K[: len(names)], tally_2K[len(names) :]
    return {name: total / n if n else None for name, total, n in zip(names, sums, counts, strict=True)}


def table(evaluation: dict[str, Any]) -> Table:
    """An evaluation for the terminal."""
    from rich.table import Table

    shown = Table(title=f"Held-out losses after {evaluation['step']} steps, nats per token")
    shown.add_column("modality", no_wrap=True)
    for column in ("labels", "before training", "loss", "bits", "unigram entropy", "below it by"):
        shown.add_column(column, justify="right")
    for modality, figures in evaluation["modalities"].items():
        shown.add_row(modality, *_cells(figures))
        for k, codebook in enumerate(figures.get("codebooks", ())):
            shown.add_row(f"  codebook {k}", *_cells(codebook), style="dim")
    if DIFFUSION in evaluation:
        d = evaluation[DIFFUSION]
        shown.add_row("noise (squared error)", f"{d['latents']:,}", f"{d['start']:.3f}", f"{d['loss']:.3f}", *"---")
    return shown


def _cells(figures: dict[str, Any]) -> list[str]:
    if not figures["labels"]:
        return ["0", *"-----"]
    numbers = [figures[key] for key in ("start", "loss", "bits", "unigram")]
    below = figures["unigram"] - figures["loss"]
    return [f"{figures['labels']:,}", *(f"{n:.3f}" for n in numbers), f"{below:.3f}" if below > 0 else "not below"]


def _figures(
    end_K: Sequence[float],
    start_K: Sequence[float],
    unigram_K: Sequence[float],
    count_K: Sequence[float],
    own: list[int],
) -> dict[str, Any]:
    """The figures of these classes together."""
    labels = int(sum(count_K[i] for i in own))
    if not labels:
        return {"labels": 0, "loss": None, "bits": None, "start": None, "unigram": None}
    loss, start, unigram = (sum(each[i] for i in own) / labels for each in (end_K, start_K, unigram_K))
    return {"labels": labels, "loss": loss, "bits": loss / math.log(2), "start": start, "unigram": unigram}


def _classes(vocabulary: Vocabulary) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the codebooks (`speech.0`; a modality with one has its own name), and the index of each id's."""
    names: list[str] = []
    class_V = np.zeros(vocabulary.size, np.int64)
    for modality in vocabulary.modalities:
        if modality == vocabulary.latent_modality:
            continue
        starts = vocabulary.base[modality]
        for k, start in enumerate(starts):
            class_V[start:] = len(names) + k  # as far as the next codebook, which overwrites the rest
        names += [f"{modality}.{k}" for k in range(len(starts))] if len(starts) > 1 else [modality]
    return tuple(names), class_V


def _relabel(batch: GroupedBatch, names: tuple[str, ...], class_V: np.ndarray) -> GroupedBatch:
    """The same batch, its labels sorted into classes instead of modalities, so that their losses are told apart."""
    class_T = torch.from_numpy(class_V)[batch.labels_T.clamp(min=0)]
    return dataclasses.replace(batch, modalities=names, label_modality_T=torch.where(batch.labels_T >= 0, class_T, -1))


def _label_counts(batches: Iterable[GroupedBatch], size: int) -> np.ndarray:
    counts_V = np.zeros(size, np.int64)
    for batch in batches:
        counts_V += np.bincount(batch.labels_T[batch.label_row_M].numpy(), minlength=size)
    return counts_V


def _unigram_nats(count_V: np.ndarray, known_V: np.ndarray, class_V: np.ndarray) -> list[float]:
    """Summed -log of each label's frequency among the known labels of its class (add-one), by class."""
    total_K = np.bincount(class_V, known_V + 1)
    nats_V = count_V * (np.log(total_K)[class_V] - np.log(known_V + 1))
    return np.bincount(class_V, nats_V).tolist()
