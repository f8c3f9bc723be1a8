"""How good a checkpoint is on documents it never saw, beside what counting ids would give.

    held-out split --batches--> trained and untrained model --> nats and rank of each label, error of each latent
    training split --labels---> counts of ids ----------------> unigram entropy of each held-out label
    -> means by modality, codebook and source --> OUT/evaluation.json, `table`

The unigram entropy is the loss of a model without context that knows how often each id is a label in the training split
(plus one), and is told the label's modality and codebook, which the trained model is not. `top1` and `top5` are told them
too: how often the label is the likeliest, or one of the five likeliest ids of its codebook. `diffusion` is the squared
error of what is predicted of a latent; for noise, 1 of a model that predicts none. Bits per byte compare models whose
tokenizers differ: they are the nats of text ids over the bytes which these ids stand for; markers stand for none, and are
left out.

Letters: M labels, N latents, V ids of the vocabulary, S sources.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from motet.core import durable
from motet.core.errors import UserError
from motet.trainer.data import damage
from motet.trainer.data.batch import DIFFUSION
from motet.trainer.data.collate import Noise
from motet.trainer.data.damage import without_damage
from motet.trainer.data.loader import Loader, heldout_loader
from motet.trainer.data.opened import Opened
from motet.trainer.data.order import Damage
from motet.trainer.data.packed import Rows
from motet.trainer.objective.losses import losses
from motet.trainer.run.checkpoint import new_model
from motet.trainer.use.trained import Trained
from motet.trainer.vocabulary import TEXT, Vocabulary

if TYPE_CHECKING:
    from rich.table import Table

    from motet.trainer.config import ObjectiveConfig
    from motet.trainer.data.batch import GroupedBatch
    from motet.trainer.model.mot import MoT

EVALUATION = "evaluation.json"
UNIGRAM_TOKENS = 10_000_000
"""How much of the training split is counted: more would change no digit that is shown."""


def evaluate(trained: Trained, rows: int = 512, byte_lengths: np.ndarray | None = None) -> dict[str, Any]:
    """Losses of a run's model on at most `rows` held-out packed rows.

    `byte_lengths` (int64 [text ids]) are the bytes that each of the text tokenizer's ids stands for (`byte_lengths` of the
    tokenizer); without them there are no bits per byte.

    Returns, and writes into evaluation.json in the run's folder: `step`, `checkpoint`, `rows`, and `modalities`: for each
    its number of `labels`, `loss` (nats per token), `bits`, `start` (the loss before training), `unigram` (entropy),
    `top1` and `top5` (shares of the labels), and the same for each of its `codebooks`; text also `bytes` and
    `bits_per_byte`; `diffusion`: `latents`, `loss`, `start`, for a model of latents; `sources`: for each the `labels` and
    `loss` of every modality, the `latents` and `loss` of `diffusion`.
    What is damaged is left out, with a warning. UserError if nothing was held out, or the model is not of a run.
    """
    training, vocabulary, towers = trained.of_run(), trained.vocabulary, trained.towers
    config, noise_steps = training.config, trained.objective.noise_steps
    data = Opened.of(config.data.unweighed, config.rows, config.seed)
    known = [Damage(0, each.lost) for each in damage.read(training.home)]

    def unseen(left_out: list[Damage]) -> tuple[list[Rows], list[GroupedBatch]]:
        loader = heldout_loader(data.heldout, vocabulary, towers, config.data, noise_steps, left_out)
        read = list(loader.rows_once(config.micro_rows, rows))
        return read, [loader.batch(each) for each in read]

    read, batches = without_damage(unseen, known)
    if not read:
        total = data.begun_with.begin[-1]
        raise UserError(f"data.holdout: {config.data.holdout} holds out none of {total} documents; raise it")
    books = _codebooks(vocabulary)
    ranges = [each for of_modality in books.values() for each in of_modality]
    label_M, source_M, source_N = _labels(read, batches)
    end, start = (
        _measure(model, batches, config.objective, ranges)
        for model in (trained.model, new_model(config, vocabulary, towers))
    )

    def counted(left_out: list[Damage]) -> np.ndarray:
        data.order.leave_out(left_out)
        seen = Loader(data.order, vocabulary, towers, Noise(config.seed, noise_steps))
        return _unigram_nats(seen.once(1, UNIGRAM_TOKENS // config.data.sequence), vocabulary.size, ranges)

    unigram_V = without_damage(counted, known)
    columns = {
        "loss": end.nats_M,
        "start": start.nats_M,
        "unigram": unigram_V[label_M],
        "top1": end.rank_M < 1,
        "top5": end.rank_M < 5,
    }

    modalities = {}
    for modality, own in books.items():
        modalities[modality] = _figures(columns, _among(label_M, own))
        if len(own) > 1:
            modalities[modality]["codebooks"] = [_figures(columns, _among(label_M, [each])) for each in own]
    if byte_lengths is not None and vocabulary.base[TEXT]:
        modalities[TEXT] |= _bits_per_byte(end.nats_M, label_M - vocabulary.base[TEXT][0], byte_lengths)
    sources = {}
    for number, source in enumerate(data.begun_with.sources):
        own_M, own_N = source_M == number, source_N == number
        of_source = {m: _loss(end.nats_M[own_M & _among(label_M, own)], "labels") for m, own in books.items()}
        of_source[DIFFUSION] = _loss(end.error_N[own_N], "latents")
        sources[source] = {name: figures for name, figures in of_source.items() if figures["loss"] is not None}
    evaluation: dict[str, Any] = {
        "step": training.state.step,
        "checkpoint": trained.path.name,
        "rows": len(batches) * config.micro_rows,
        "modalities": modalities,
        "sources": sources,
    }
    if len(end.error_N):
        evaluation[DIFFUSION] = {**_loss(end.error_N, "latents"), "start": float(start.error_N.mean())}
    durable.write(training.home / EVALUATION, json.dumps(evaluation, indent=1) + "\n")
    return evaluation


def table(evaluation: dict[str, Any]) -> Table:
    """An evaluation by modality, for the terminal."""
    from rich.box import SIMPLE
    from rich.table import Table

    shown = Table(title=f"Held-out losses after {evaluation['step']} steps, nats per token", box=SIMPLE)
    shown.add_column("modality", no_wrap=True)
    for column in ("labels", "untrained", "loss", "unigram entropy", "below it by", "top 1", "top 5"):
        shown.add_column(column, justify="right")
    for modality, figures in evaluation["modalities"].items():
        shown.add_row(modality, *_cells(figures))
        for k, codebook in enumerate(figures.get("codebooks", ())):
            shown.add_row(f"  codebook {k}", *_cells(codebook), style="dim")
    if DIFFUSION in evaluation:
        d = evaluation[DIFFUSION]
        shown.add_row("noise", f"{d['latents']:,}", f"{d['start']:.3f}", f"{d['loss']:.3f}", *"----")
    text = evaluation["modalities"].get(TEXT, {})
    if text.get("bits_per_byte") is not None:
        shown.caption = f"text: {text['bits_per_byte']:.3f} bits per byte, over {text['bytes']:,} bytes"
    return shown


def source_table(evaluation: dict[str, Any]) -> Table:
    """The same losses by source, for the terminal."""
    from rich.table import Table

    names = [*evaluation["modalities"], *([DIFFUSION] if DIFFUSION in evaluation else [])]
    shown = Table("source", title="By source: loss (labels)")
    for name in names:
        shown.add_column("noise" if name == DIFFUSION else name, justify="right")
    for source, found in evaluation["sources"].items():
        cells = (
            f"{f['loss']:.3f} ({f.get('labels', f.get('latents')):,})" if (f := found.get(name)) else "-"
            for name in names
        )
        shown.add_row(source, *cells)
    return shown


def _cells(figures: dict[str, Any]) -> list[str]:
    if not figures["labels"]:
        return ["0", *"------"]
    numbers = [figures[key] for key in ("start", "loss", "unigram")]
    below = figures["unigram"] - figures["loss"]
    hits = [f"{figures[key]:.1%}" for key in ("top1", "top5")]
    return [
        f"{figures['labels']:,}",
        *(f"{n:.3f}" for n in numbers),
        f"{below:.3f}" if below > 0 else "not below",
        *hits,
    ]


@dataclass(frozen=True)
class _Measured:
    """What a model makes of each label and of each latent, in the order of the batches."""

    nats_M: np.ndarray
    rank_M: np.ndarray
    error_N: np.ndarray


def _measure(
    model: MoT, batches: Iterable[GroupedBatch], objective: ObjectiveConfig, ranges: Sequence[tuple[int, int]]
) -> _Measured:
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    model.to(device).eval()
    with torch.no_grad():
        found = [losses(model, batch.to(device), objective, {}, ranges) for batch in batches]
    columns = ([getattr(each, name) for each in found] for name in ("nats_M", "rank_M", "error_N"))
    return _Measured(*(torch.cat(column).double().cpu().numpy() for column in columns))


def _labels(read: Sequence[Rows], batches: Sequence[GroupedBatch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(each label's id, its document's source, each latent's source), int64, in the order of the batches."""
    found = []
    for rows, batch in zip(read, batches, strict=True):
        source_P = rows.documents.source_D[rows.piece_P5[:, 0]].astype(np.int64)
        label_row_M = torch.cat((batch.label_row_M, batch.further_label_row_Q))
        source_of = [source_P[batch.document_T[at].numpy() - 1] for at in (label_row_M, batch.latent_row_N)]
        found.append((torch.cat((batch.labels_T[batch.label_row_M], batch.further_labels_Q)).numpy(), *source_of))
    label_M, source_M, source_N = (np.concatenate(column) for column in zip(*found, strict=True))
    return label_M, source_M, source_N


def _figures(columns: Mapping[str, np.ndarray], own_M: np.ndarray) -> dict[str, Any]:
    """The means over these labels."""
    labels = int(own_M.sum())
    figures: dict[str, Any] = {name: float(each[own_M].mean()) if labels else None for name, each in columns.items()}
    bits = figures["loss"] / math.log(2) if labels else None
    return {"labels": labels, "loss": figures.pop("loss"), "bits": bits, **figures}


def _loss(terms: np.ndarray, what: str) -> dict[str, Any]:
    return {what: len(terms), "loss": float(terms.mean()) if len(terms) else None}


def _bits_per_byte(nats_M: np.ndarray, text_M: np.ndarray, byte_lengths: np.ndarray) -> dict[str, Any]:
    """`text_M`: the text tokenizer's own id of each label; of labels that are no text, a number outside its vocabulary."""
    own_M = (text_M >= 0) & (text_M < len(byte_lengths))
    total = int(byte_lengths[text_M[own_M]].sum())
    return {"bytes": total, "bits_per_byte": float(nats_M[own_M].sum()) / math.log(2) / total if total else None}


def _among(label_M: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which labels lie in one of these ranges, [M]."""
    return np.logical_or.reduce([(begin <= label_M) & (label_M < end) for begin, end in ranges])


def _codebooks(vocabulary: Vocabulary) -> dict[str, list[tuple[int, int]]]:
    """[begin, end) of the ids of each codebook of each modality that is given as ids; text's begins with the markers."""
    begin = {m: list(vocabulary.base[m]) for m in vocabulary.modalities if m != vocabulary.latent_modality}
    begin[TEXT] = [0]
    edges = [*sorted(at for each in begin.values() for at in each), vocabulary.size]
    return {modality: [(at, edges[edges.index(at) + 1]) for at in each] for modality, each in begin.items()}


def _unigram_nats(batches: Iterable[GroupedBatch], size: int, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """-log of each id's frequency (plus one) among the labels of its codebook in these batches: float64 [V]."""
    count_V = np.ones(size, np.int64)
    for batch in batches:
        for labels in (batch.labels_T[batch.label_row_M], batch.further_labels_Q):
            count_V += np.bincount(labels.numpy(), minlength=size)
    nats_V = -np.log(count_V)
    for begin, end in ranges:
        nats_V[begin:end] += np.log(count_V[begin:end].sum())
    return nats_V
