"""The rejects of a dataset, whether its job is done or was stopped: what `motet rejects` shows.

OUT with a manifest --> the rejects of its partitions, in the order of the plan, but for those that a job that is not finished
                        has done anew: of these, and of what else that job has committed, as they are now
OUT without one ------> those of every partition that was committed so far
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from motet.core.errors import UserError
from motet.pipeline.dataset.commits import CONFIG, Output
from motet.pipeline.dataset.manifest import NAME, Manifest, ShardEntry, rejected
from motet.pipeline.dataset.store import Store, store_of


def quarantine(place: str | Path) -> Iterator[dict[str, Any]]:
    """Every reject, as a dictionary of the columns of its file; UserError if there is no dataset.

    DamagedShard names a file that cannot be read.
    """
    store = store_of(place)
    present = store.names()
    if NAME not in present and CONFIG not in present:
        raise UserError(f"{place}: holds no token dataset; run `motet tokenize` into it first")
    finished = Manifest.load(place).shards if NAME in present else ()
    later = _unfinished(store, finished)
    for entry in (*(e for e in finished if (e.source, e.partition) not in later), *later.values()):
        yield from rejected(store, entry)


def _unfinished(store: Store, finished: tuple[ShardEntry, ...]) -> dict[tuple[str, int], ShardEntry]:
    """(source, partition): what a job that is not finished has committed; of several commits of a partition the youngest."""
    if finished and not all(entry.commit for entry in finished):
        return {}  # copied without the names of its commits: nothing tells which are younger
    output = Output(store)
    commits = output.unfinished(output.manifest())
    names = sorted(commits, key=lambda name: commits[name].modified)
    found = {(entry.source, entry.partition): entry for entry in output.entries(names).values()}
    return dict(sorted(found.items()))
