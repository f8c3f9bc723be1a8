"""What a run has to do without: record batches that are damaged or missing, noted in its folder before others take their place.

    reading fails with LostBatches --ranks tell one another--> OUT/lost.jsonl, a line a loss --> `Plan.lose` on every rank

Each line says from which row on, so that the same steps come of it after every restart. Repairing the data changes nothing
for a run that has gone on without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from motet.trainer.data.order import Loss
from motet.trainer.data.records import Lost

LOST = "lost.jsonl"


def read(out: Path) -> list[Loss]:
    """The losses of the run folder `out`; a last line cut short by a kill was never acted upon and is left out."""
    if not (out / LOST).exists():
        return []
    lines = (out / LOST).read_text(encoding="utf-8").splitlines(keepends=True)
    told = [json.loads(line) for line in lines if line.endswith("\n")]
    return [Loss(each["row"], Lost(each["dataset"], each["first"], each["last"], each["why"])) for each in told]


def note(out: Path, losses: Iterable[Loss]) -> None:
    """Add losses, durably."""
    known = read(out)
    with open(out / LOST, "w", encoding="utf-8") as file:
        for loss in [*known, *losses]:
            file.write(json.dumps({"row": loss.row, **loss.lost._asdict()}) + "\n")
        file.flush()
        os.fsync(file.fileno())
