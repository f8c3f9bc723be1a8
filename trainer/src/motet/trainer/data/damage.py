"""What a run has to do without: record batches that are damaged or missing, noted in its folder before others take their place.

    reading fails with LostBatches --ranks tell one another--> OUT/lost.jsonl, a line each --> `Order.leave_out` on every rank
    held-out documents --`without_damage`--> what is left of them

Each line says from which row on, so that the same steps come of it after every restart. Repairing the data changes nothing
for a run that has gone on without it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from motet.core import durable
from motet.trainer.data.order import Damage
from motet.trainer.data.records import Lost, LostBatches

LOST = "lost.jsonl"
T = TypeVar("T")

log = logging.getLogger(__name__)


def read(out: Path) -> list[Damage]:
    """The damage noted in the run folder `out`, in the order in which it was found."""
    if not (out / LOST).exists():
        return []
    lines = (out / LOST).read_text(encoding="utf-8").splitlines(keepends=True)
    told = [json.loads(line) for line in lines if line.endswith("\n")]  # motet 0.1 could be killed within a line
    return [Damage(each["row"], Lost(each["dataset"], each["first"], each["last"], each["why"])) for each in told]


def note(out: Path, found: Iterable[Damage]) -> None:
    """Add damage, durably: a kill leaves the old list or the new one."""
    lines = [json.dumps({"row": each.row, **each.lost._asdict()}) + "\n" for each in [*read(out), *found]]
    durable.write(out / LOST, "".join(lines))


def without_damage(work: Callable[[list[Damage]], T], known: list[Damage]) -> T:
    """`work(known)`, done again each time that it meets further damage, which is added to `known`; for passes over data that
    no other rank shares.
    """
    while True:
        try:
            return work(known)
        except LostBatches as error:
            log.warning("%s; going on with the documents that are left", error)
            known += [Damage(0, each) for each in error.lost]
