"""How many tokens a window takes of each source: weights, and edits of them at a step, as a formula.

    datasets + weights + edits --`eras`--> `Era`: groups of sources --`wanted(tokens so far)`--> tokens of each group

An era lasts from one edit to the next; its shares count from where it begins. Sources without weights go through their
epochs together, as one group. With weights by source, a window takes of each what brings its tokens nearest to its share
of all tokens so far. With weights by modality, the window takes the mix of sources nearest to the corpus's own that
brings every modality nearest to its share, which is found by iterative scaling (Darroch and Ratcliff 1972).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from motet.core.errors import UserError
from motet.trainer.data import columns
from motet.trainer.data.records import Part, Records
from motet.trainer.data.shuffle import BLOCK

if TYPE_CHECKING:
    from motet.trainer.config import DataConfig

ROUNDS = 300
"""Of iterative scaling, at most."""


@dataclass(frozen=True)
class Group:
    """Sources that go through their epochs together.

    Attributes:
        parts: of each source and dataset. positions: of an epoch of each, those that hold no document too.
        weight: its share of the tokens, where sources have weights; else what the corpus's own mix would give it.
        tokens: the mean at a position, roughly. share_M: of each modality in them, roughly.
    """

    parts: tuple[Part, ...]
    positions: tuple[int, ...]
    weight: float
    tokens: float
    share_M: tuple[float, ...]

    @property
    def whole(self) -> int:
        """Positions of one epoch."""
        return sum(self.positions)


@dataclass(frozen=True)
class Era:
    """What holds from one edit to the next.

    Attributes:
        since: the first row of the run that it may begin at.
        parts: all that there are, in order, whether or not a group draws on them.
        groups: what is drawn on. modalities: wanted share of each modality; empty: sources have the weights.
    """

    since: int
    parts: tuple[Part, ...]
    groups: tuple[Group, ...]
    modalities: tuple[float, ...]

    def wanted(self, tokens_G: Sequence[int], tokens_M: Sequence[int], window: int) -> list[float]:
        """Tokens to take of each group in a window of `window` tokens, after so many by group and by modality."""
        if not self.modalities:
            total = sum(tokens_G) + window
            return [group.weight * total - taken for group, taken in zip(self.groups, tokens_G, strict=True)]
        total = sum(tokens_M) + window
        need_M = [max(share * total - had, 0.0) for share, had in zip(self.modalities, tokens_M, strict=True)]
        found_G, _ = scaled([group.weight * window for group in self.groups], [g.share_M for g in self.groups], need_M)
        return [float(round(found)) for found in found_G]  # so that the last bits of a library's powers do not matter


def eras(records: Records, data: DataConfig, rows: int) -> tuple[Era, ...]:
    """What the configuration says from step 0, and from each of its edits on; `rows` make a step."""
    later = {path for edit in data.edits for path in edit.paths}
    there = {d for d, path in enumerate(records.paths) if path not in later}
    by_source, by_modality = data.weights, data.modality_weights
    found = [_era(records, there, 0, by_source, by_modality, data.shuffle, "data")]
    for i, edit in enumerate(data.edits):
        there |= {d for d, path in enumerate(records.paths) if path in edit.paths}
        if edit.weights or edit.modality_weights:
            by_source, by_modality = edit.weights, edit.modality_weights
        where = f"data.edits[{i}]"
        found.append(_era(records, there, edit.from_step * rows, by_source, by_modality, data.shuffle, where))
    return tuple(found)


def scaled(
    prior_G: Sequence[float], share_GM: Sequence[Sequence[float]], wanted_M: Sequence[float]
) -> tuple[list[float], list[float]]:
    """(amounts of each group nearest to `prior_G` that give these amounts of each modality, what they do give).

    Nearest is meant as relative entropy. Where no mix gives what is wanted, the amounts come near it.
    """
    found_G, near = list(prior_G), 1e-7 * sum(wanted_M)

    def given() -> list[float]:
        return [
            math.fsum(x * share_M[m] for x, share_M in zip(found_G, share_GM, strict=True))
            for m in range(len(wanted_M))
        ]

    given_M = given()
    for _ in range(ROUNDS):
        if all(abs(have - want) <= near for have, want in zip(given_M, wanted_M, strict=True)):
            break
        factor_M = [want / have if have else 1.0 for have, want in zip(given_M, wanted_M, strict=True)]
        found_G = [
            x * math.prod(factor**share for factor, share in zip(factor_M, share_M, strict=True))
            for x, share_M in zip(found_G, share_GM, strict=True)
        ]
        given_M = given()
    return found_G, given_M


def _era(
    records: Records,
    there: set[int],
    since: int,
    by_source: Mapping[str, float],
    by_modality: Mapping[str, float],
    shuffle: int | None,
    where: str,
) -> Era:
    parts = tuple(part for part in records.parts if part.dataset in there and part.documents)
    named: dict[str, list[Part]] = {}
    for part in parts:
        named.setdefault(records.sources[part.source], []).append(part)

    def group(chosen: Sequence[Part], weight: float) -> Group:
        positions = tuple(_positions(part, shuffle) for part in chosen)
        tokens_M = [sum(column) for column in zip(*(_rendered(records, part) for part in chosen), strict=True)]
        total = sum(tokens_M)
        return Group(tuple(chosen), positions, weight, total / sum(positions), tuple(n / total for n in tokens_M))

    if by_modality:
        amounts = {name: sum(map(sum, (_rendered(records, p) for p in some))) for name, some in named.items()}
        total = sum(amounts.values())
        groups = tuple(group(some, amounts[name] / total) for name, some in named.items())
        shares = _shares(by_modality, records.modalities, "modality", f"{where}.modality_weights")
        return _attainable(Era(since, parts, groups, shares), records, named, f"{where}.modality_weights")
    if not by_source:
        return Era(since, parts, (group(parts, 1.0),), ())
    for name in records.sources:
        if name not in named and by_source.get(name):
            raise UserError(f"{where}.weights: {name}: this source holds no document to train on; give it weight 0")
    weight_S = _shares(
        by_source, [*named, *(by_source.keys() & set(records.sources) - named.keys())], "source", f"{where}.weights"
    )
    weighed = zip(named.values(), weight_S, strict=False)
    return Era(since, parts, tuple(group(some, weight) for some, weight in weighed if weight), ())


def _shares(weights: Mapping[str, float], names: Sequence[str], kind: str, where: str) -> tuple[float, ...]:
    """The weight of each name, as a share of all; UserError if a name is not known, or has none."""
    for name in weights:
        if name not in names:
            raise UserError(f"{where}: {name}: the data has no such {kind}; it has {', '.join(names)}")
    for name in names:
        if name not in weights:
            raise UserError(f"{where}: {kind} '{name}' has no weight; give it one (0 leaves it out)")
    total = math.fsum(weights.values())
    if total <= 0:
        raise UserError(f"{where}: weights must be 0 or more, and one of them more than 0")
    return tuple(weights[name] / total for name in names)


def _attainable(era: Era, records: Records, names: Mapping[str, object], where: str) -> Era:
    """The era, with the mix of sources that its shares come to; UserError if there is none."""
    prior = [group.weight for group in era.groups]
    mix_G, given_M = scaled(prior, [group.share_M for group in era.groups], era.modalities)
    for m, (want, have) in enumerate(zip(era.modalities, given_M, strict=True)):
        if abs(want - have) > 0.005:
            told = ", ".join(f"{name} {g.share_M[m]:.1%}" for name, g in zip(names, era.groups, strict=True))
            raise UserError(
                f"{where}: {records.modalities[m]}: a share of {want:.1%} cannot be had from these sources, which come to "
                f"{have:.1%} at best; of each this modality is (markers count as text): {told}"
            )
    groups = zip(era.groups, mix_G, strict=True)
    kept = tuple(
        Group(g.parts, g.positions, round(mix, 9), g.tokens, g.share_M) for g, mix in groups if round(mix, 9) > 0
    )
    return Era(era.since, era.parts, kept, era.modalities)


def _positions(part: Part, shuffle: int | None) -> int:
    return -(-part.documents // BLOCK) * BLOCK if shuffle else part.documents


def _rendered(records: Records, part: Part) -> list[int]:
    """Tokens by modality with their markers, which are text's, as if each document had one span that is not text."""
    found = [part.tokens.get(modality, 0) for modality in records.modalities]
    found[0] += part.documents * columns.MARKS * (2 if any(found[1:]) else 1)
    return found
