"""The rejects of a dataset, whether its job is done or was stopped: what `motet rejects` shows.

OUT with a manifest --> the rejects of its partitions, in the order of the plan
OUT without one ------> those of every partition that was committed so far
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from motet.core.errors import UserError
from motet.pipeline.dataset import rejects
from motet.pipeline.dataset.commits import CONFIG
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.manifest import NAME, Manifest
from motet.pipeline.dataset.store import store_of


def quarantine(place: str | Path) -> Iterator[dict[str, Any]]:
    """Every reject, as a dictionary of the columns of its file; UserError if there is no dataset.

    DamagedShard names a file that cannot be read.
    """
    store = store_of(place)
    if NAME in (present := store.names()):
        yield from Manifest.load(place).quarantine()
        return
    if CONFIG not in present:
        raise UserError(f"{place}: holds no token dataset; run `motet tokenize` into it first")
    for name in store.list(rejects.FOLDER):
        try:
            yield from rejects.of_bytes(store.read(f"{rejects.FOLDER}/{name}"))
        except (ValueError, OSError) as error:
            raise DamagedShard(f"{store}/{rejects.FOLDER}/{name}: cannot be read: {error}") from None
