"""`motet plan`: what a configuration will see, before anything is paid for: the model's size, mixture, padding, epochs, balance.

    train.yaml + indexes --order of the first steps--> shares of sources and modalities, padding, epochs, cost per rank

The order is training's own, so what it says of these steps is what they will be; what it says of the whole run is their mean,
carried on.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from motet.trainer.config import TrainConfig
from motet.trainer.data.balance import costs, shares
from motet.trainer.data.opened import Opened
from motet.trainer.data.order import by_modality
from motet.trainer.model.flops import pair_cost, parameters
from motet.trainer.vocabulary import Towers, Vocabulary

if TYPE_CHECKING:
    from rich.table import Table

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def plan(config: TrainConfig, steps: int) -> dict[str, Any]:
    """What the first `steps` steps (at most the run's) hold.

    Returns `steps`, `tokens` (without padding), `padding` (a fraction), `run_tokens` (of all steps, as these go on);
    `towers`, `parameters` and `active` (those that one token can meet) of the model;
    `sources`: of each its `documents` and `tokens` there are, its `share` of the tokens that are seen, and `epochs` in the
    whole run; `modalities`: the `share` of each; `imbalance`: for every number of ranks that the rows divide into, the cost
    of the dearest rank over the mean, as [median, worst] of the steps. UserError as training would raise it.
    """
    data, order = config.data, Opened.of(config.data, config.rows, config.seed).order
    records = order.corpus.records
    vocabulary = Vocabulary.of(records.tokenizers)
    towers = Towers.of(vocabulary, config.model.towers).names
    size = parameters(config.model, towers, vocabulary.size, vocabulary.latent_dim)
    pair = pair_cost(config.model, vocabulary.size)
    steps = min(steps, config.steps)
    worlds = [world for world in RANKS if config.rows % (world * config.micro_rows) == 0]
    by_source: Counter[str] = Counter()
    seen_M = np.zeros(len(records.modalities), np.int64)
    dearest: dict[int, list[float]] = {world: [] for world in worlds}
    for step in range(steps):
        chosen = order.rows_of(step)
        piece_P5 = chosen.piece_P5
        length_P = piece_P5[:, 2] - piece_P5[:, 1]
        source_P = chosen.documents.source_D[piece_P5[:, 0]]
        for number, tokens in enumerate(np.bincount(source_P, length_P).astype(int).tolist()):
            by_source[records.sources[number]] += tokens
        seen_M += by_modality(chosen.documents, piece_P5)
        cost_R = costs(chosen, pair)
        for world in worlds:
            cost_W = np.array([cost_R[mine].sum() for mine in shares(cost_R, world)])
            dearest[world].append(float(cost_W.max() / cost_W.mean()))
    tokens = int(seen_M.sum())
    sources = {}
    for number, name in enumerate(records.sources):
        parts = [part for part in records.parts if part.source == number]
        documents, stored = sum(part.documents for part in parts), sum(sum(part.tokens.values()) for part in parts)
        sources[name] = {
            "documents": documents,
            "tokens": stored,
            "share": by_source[name] / tokens,
            "epochs": by_source[name] * config.steps / steps / max(stored, 1),
        }
    return {
        "steps": steps,
        "tokens": tokens,
        "padding": 1 - tokens / (steps * config.rows * data.sequence),
        "run_tokens": tokens * config.steps // steps,
        "towers": towers,
        "parameters": size.total,
        "active": size.active,
        "sources": sources,
        "modalities": {m: int(n) / tokens for m, n in zip(records.modalities, seen_M, strict=True)},
        "imbalance": {world: [float(np.median(found)), max(found)] for world, found in dearest.items()},
    }


def tables(told: dict[str, Any]) -> list[Table]:
    """The same for a terminal."""
    from rich.table import Table

    def shown(*columns: str) -> Table:
        table = Table(box=None, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left")
        return table

    sources = shown("source", "documents", "tokens", "share seen", "epochs in the run")
    for name, source in told["sources"].items():
        sources.add_row(
            name,
            f"{source['documents']:,}",
            f"{source['tokens']:,}",
            f"{source['share']:.2%}",
            f"{source['epochs']:.2f}",
        )
    modalities = shown("modality", "share seen")
    for name, share in told["modalities"].items():
        modalities.add_row(name, f"{share:.2%}")
    ranks = shown("ranks", "dearest over mean", "at worst")
    for world, (median, worst) in told["imbalance"].items():
        ranks.add_row(str(world), f"{median:.3f}", f"{worst:.3f}")
    return [sources, modalities, ranks]
