"""What a dataset no longer needs: files that neither its manifest nor an unfinished job stands on.

    commits of the manifest + commits written after it (of a job that is not finished) --> the shards and rejects they name
    everything else below shards/, rejects/, commits/, older than `older_than` hours --`collect`--> deleted

Commits go last, so that a killed collection leaves orphans at most. On a folder no job can run meanwhile (the lock); on an object
store nobody knows, hence the age.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from motet.core.errors import UserError
from motet.pipeline.dataset.commits import Output
from motet.pipeline.dataset.manifest import NAME
from motet.pipeline.dataset.rejects import FOLDER as REJECTS
from motet.pipeline.dataset.store import Store


@dataclass(frozen=True)
class Orphans:
    """Files that can go, with their sizes in bytes, and how many commits of an unfinished job are kept."""

    files: dict[str, int]
    unfinished: int


def orphans(store: Store, older_than: float) -> Orphans:
    """What `collect` would delete: `older_than` hours old at least."""
    output = Output(store)
    manifest = output.manifest()
    if manifest is None and not store.list("commits") and NAME in store.names():
        raise UserError(
            f"{store}: was copied without its commits, so that nobody knows what it stands on; it is used as it is, or "
            "`motet tokenize` makes it anew elsewhere"
        )
    named = {entry.commit for entry in manifest.shards} if manifest else set()
    unfinished = output.unfinished(manifest)
    entries = output.entries(sorted(named | unfinished.keys()))
    kept = {f"commits/{name}" for name in entries} | {entry.file for entry in entries.values()}
    kept |= {f"{REJECTS}/{name.removesuffix('.json')}.arrow" for name, entry in entries.items() if entry.rejects}
    latest = time.time() - older_than * 3600
    found = {}
    for folder, ending in (("shards", ".arrow"), (REJECTS, ".arrow"), ("commits", ".json")):
        for name, file in store.list(folder).items():
            path = f"{folder}/{name}"
            if name.endswith(ending) and path not in kept and file.modified <= latest:
                found[path] = file.size
    return Orphans(found, len(unfinished))


def collect(store: Store, older_than: float) -> Orphans:
    """Delete the orphans; UserError if the place is no dataset, or a job is writing to it."""
    if not {"commits", NAME} & store.names():
        raise UserError(f"{store}: holds no token dataset")
    with store.claimed():
        found = orphans(store, older_than)
        for path in found.files:
            store.delete(path)
    return found
