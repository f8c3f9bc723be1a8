"""Exactly once: what is committed stays, what is not is done again, nothing is half there, and nothing is deleted.

    tokenize -> a scratch file -> OUT/shards/<source>-<index>-<hash>.arrow, OUT/rejects/<source>-<index>-<key>.arrow
             -> OUT/commits/<source>-<index>-<key>.json, put if absent
    all partitions committed -> OUT/manifest.json -> OUT/commits.json, which says of whose commits it was made

A shard is named by its own hash and a commit by its partition's key, so that nothing ever replaces other content: a
worker that outlives its killed driver does no harm, nor do two drivers at once on an object store (on a folder the second
is refused). docs/recovery.md has every crash window. What no manifest names any more is removed by `motet gc` (`gc.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from motet.core import places
from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.pipeline.dataset import rejects
from motet.pipeline.dataset.left_out import LeftOut
from motet.pipeline.dataset.manifest import NAME, Manifest, ShardEntry
from motet.pipeline.dataset.rejects import Reject
from motet.pipeline.dataset.seal import seal, unseal
from motet.pipeline.dataset.store import Folder, Found, Store
from motet.pipeline.dataset.totals import Totals

CONFIG = "tokenize.yaml"
GONE = Found(-1, 0)
AT_ONCE = 256
"""Commits that are read ahead."""


@dataclass(frozen=True)
class Output:
    """The place that a tokenizing job writes to; can be sent to any worker."""

    store: Store
    keep_rejected: bool = False

    @contextmanager
    def claimed(self, sources: Iterable[str], config_text: str) -> Iterator[None]:
        """Make or re-open the place, for this job alone.

        UserError if it holds something else, cannot be written, or another job writes to it.
        """
        with ExitStack() as stack:
            self.check(sources)
            try:
                stack.enter_context(self.store.claimed())
                self.store.write(CONFIG, config_text.encode("utf-8", "backslashreplace"))
            except OSError as error:
                raise UserError(
                    f"--out {self.store}: cannot be written: {error.strerror or error}; choose another"
                ) from None
            yield

    def check(self, sources: Iterable[str]) -> None:
        """UserError if the place holds something else, or a folder cannot be written; nothing is written yet."""
        if isinstance(self.store, Folder):
            places.folder(self.store.path)
        try:
            self._refuse_foreign(set(sources))
        except OSError as error:
            raise UserError(f"--out {self.store}: cannot be read: {error.strerror or error}; choose another") from None

    def missing(self, names: Iterable[str]) -> set[str]:
        """Those of these commits that are not there, or whose shard or rejects are not there any more."""
        names = list(names)
        return set(names) - self.whole(names).keys()

    def whole(self, names: Sequence[str]) -> dict[str, ShardEntry]:
        """What these commits say of their shards, of those that are there with their shard and rejects."""
        present = self.store.list("commits")
        known = self.entries([name for name in names if name in present])
        shards, quarantine = self.store.list("shards"), self.store.list(rejects.FOLDER)

        def there(name: str, entry: ShardEntry) -> bool:
            if entry.rejects and quarantine_of(name) not in quarantine:
                return False
            return not entry.file or shards.get(entry.file.removeprefix("shards/"), GONE).size == entry.bytes

        return {name: entry for name, entry in known.items() if there(name, entry)}

    def unfinished(self, manifest: Manifest | None) -> dict[str, Found]:
        """Commits of a job that is not finished: those that `manifest` does not name, and that are younger than it."""
        named = {entry.commit for entry in manifest.shards} if manifest else set()
        written = self.store.list().get(NAME, Found(0, float("inf"))).modified if named else 0.0
        commits = self.store.list("commits")
        return {name: found for name, found in commits.items() if name not in named and found.modified > written}

    def commit(
        self,
        name: str,
        shard: Path,
        entry: ShardEntry,
        totals: Totals,
        rejected: Sequence[Reject],
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        """Keep what a partition came to: its scratch file `shard`, its rejects, and last the commit `name` that says so."""
        if entry.rows:
            entry = replace(entry, file=f"shards/{entry.source}-{entry.partition:05d}-{entry.hash[:12]}.arrow")
            self.store.put(shard, entry.file)
        quarantine = b""
        if rejected:
            quarantine = rejects.to_bytes(entry.source, rejected, self.keep_rejected)
            self.store.write(f"{rejects.FOLDER}/{quarantine_of(name)}", quarantine)
        told = {
            "entry": entry.to_json(),
            "totals": totals.to_json(),
            "quarantine": content_hash(quarantine),
            "left_out": [row.to_json() for row in left_out],
        }
        commit = seal(json.dumps(told, ensure_ascii=False))
        if not self.store.create(f"commits/{name}", commit) and self.missing([name]):
            self.store.write(f"commits/{name}", commit)  # one whose shard is gone or damaged

    def commits(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These commits: `entry`, `totals` and `left_out` of each, one after the other, because all are too much for memory."""
        return (commit for _, commit in self._read(names))

    def finished(self, names: Sequence[str]) -> Manifest | None:
        """The manifest, if it was made of exactly these commits."""
        manifest = self.manifest()
        return manifest if manifest and [entry.commit for entry in manifest.shards] == list(names) else None

    def manifest(self) -> Manifest | None:
        """The manifest, if it is whole and it is known of which commits it was made."""
        try:
            manifest = Manifest.load(str(self.store))
        except UserError:
            return None  # killed before it was written, or damaged: the commits themselves tell
        return manifest if all(entry.commit for entry in manifest.shards) else None

    def forget_rejected(self, names: Iterable[str]) -> None:
        """Take back the commits of partitions that have rejects, so that they are done again."""
        quarantine = self.store.list(rejects.FOLDER)
        for name in names:
            if quarantine_of(name) in quarantine:
                self.store.delete(f"commits/{name}")

    def entries(self, names: Sequence[str]) -> dict[str, ShardEntry]:
        """What commits say of their shards, from the manifest where it was made of them: one file instead of many."""
        manifest = self.manifest()
        known = {entry.commit: entry for entry in manifest.shards} if manifest else {}
        others = {name: commit["entry"] for name, commit in self._read([n for n in names if n not in known])}
        return {name: entry for name in names if (entry := known.get(name) or others.get(name))}

    def _refuse_foreign(self, sources: set[str]) -> None:
        present = self.store.names()
        if present and CONFIG not in present:
            raise UserError(f"--out {self.store}: holds something that is no token dataset; choose an empty folder")
        held = {name.rsplit("-", 2)[0] for name in self.store.list("commits")}
        if held and not held & sources:
            raise UserError(
                f"--out {self.store}: holds tokens of another corpus ({', '.join(sorted(held))}); choose another"
            )

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, commit) of those that can be read; many at a time where a store is far away."""
        with ThreadPoolExecutor(self.store.parallel) as pool:
            for begin in range(0, len(names), AT_ONCE):
                some = names[begin : begin + AT_ONCE]
                for name, data in zip(some, pool.map(self._commit, some), strict=True):
                    if data is not None:
                        yield name, data

    def _commit(self, name: str) -> dict[str, Any] | None:
        try:
            commit = unseal(self.store.read(f"commits/{name}"))
            entry = ShardEntry.from_json({**commit["entry"], "commit": name})
            left_out = tuple(map(LeftOut.from_json, commit.get("left_out", ())))
            return {"entry": entry, "totals": Totals.from_json(commit["totals"]), "left_out": left_out}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None


def quarantine_of(commit: str) -> str:
    """File name of the rejects beside a commit."""
    return f"{commit.removesuffix('.json')}.arrow"
