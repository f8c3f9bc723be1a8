"""Exactly once on a plain file system: what is committed stays, what is not is done again, and nothing is half there.

    tokenize -> OUT/.tmp/<random> -> rename to OUT/shards/<source>-<index>-<hash>.arrow -> OUT/commits/<source>-<index>-<key>.json
    all partitions committed -> OUT/manifest.json (a rename too) -> what the manifest does not name is removed

| killed                              | what is there                    | what the same command does                      |
|-------------------------------------|----------------------------------|-------------------------------------------------|
| before the configuration is there   | an empty folder, or .tmp in it   | goes on                                         |
| while tokenizing                    | a file in .tmp                   | removes it, tokenizes the partition again        |
| between shard and commit            | a shard without a commit         | writes the same bytes under the same name, commits |
| between the last commit and manifest| all commits                      | writes the manifest                              |
| after the manifest                  | old shards, perhaps              | removes them                                     |

A shard is named by its own hash and a commit by its partition's key, so a rename never replaces other content, and a
worker that outlives its killed driver for a moment does no harm. Two drivers at once are refused: the first holds a lock
on OUT/.tmp, which goes with its process.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from motet.pipeline.manifest import NAME, Manifest, ShardEntry
from motet.pipeline.task import Task
from motet.pipeline.tokenize import Outcome, tokenize
from motet.tokenizers.configuration import UserError
from motet.tokenizers.contract import Tokenizer

TEMPORARY = ".tmp"
CONFIG = "tokenize.yaml"
PARTS = ("shards", "commits")


class Output:
    """The output folder of a tokenizing job."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def claimed(self, sources: Iterable[str], config_text: str) -> Iterator[None]:
        """Make or re-open the folder, for this job alone.

        UserError if it holds something else, cannot be written, or another job writes to it.
        """
        lock = None
        try:
            try:
                lock = self._open(sorted(sources))
                for path in (self.folder / TEMPORARY).iterdir():
                    path.unlink(missing_ok=True)  # of a job that was killed; only this class writes there
                self._write(CONFIG, config_text)
                for name in PARTS:
                    (self.folder / name).mkdir(exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"--out {self.folder}: cannot be written: {error.strerror or error}; choose another"
                ) from None
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def _open(self, sources: list[str]) -> int:
        """Refuse a folder that is not for these sources, then lock it; the lock's descriptor."""
        self.folder.mkdir(parents=True, exist_ok=True)
        present = {p.name for p in self.folder.iterdir()}
        if present - {TEMPORARY} and CONFIG not in present:
            raise UserError(f"--out {self.folder}: holds something that is no token dataset; choose an empty folder")
        held = {c.name.rsplit("-", 2)[0] for c in self._commits()}
        if held and not held & set(sources):
            raise UserError(
                f"--out {self.folder}: holds tokens of another corpus ({', '.join(sorted(held))}); choose another"
            )
        (self.folder / TEMPORARY).mkdir(exist_ok=True)
        lock = os.open(self.folder / TEMPORARY, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(
                f"--out {self.folder}: another job is writing there; wait for it, or choose another"
            ) from None
        except OSError:
            pass  # a file system without locks: two jobs there may make each other fail, but write nothing wrong
        return lock

    def committed(self, task: Task) -> dict[str, Any] | None:
        """The commit of this task, if there is one and its shard is there too."""
        try:
            commit = json.loads((self.folder / "commits" / task.commit_name).read_text(encoding="utf-8"))
            file, size = commit["entry"]["file"], commit["entry"]["bytes"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        whole = not file or ((self.folder / file).is_file() and (self.folder / file).stat().st_size == size)
        return commit if whole else None

    def do(self, task: Task, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Tokenize a partition and commit it: what every engine maps over the plan."""
        temporary = self.folder / TEMPORARY / uuid.uuid4().hex
        try:
            outcome = tokenize(task.partition, tokenizers, task.header, temporary)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        entry = replace(outcome.entry, commit=task.commit_name)
        if entry.rows:
            entry = replace(entry, file=f"shards/{entry.source}-{entry.partition:05d}-{entry.hash[:12]}.arrow")
            os.replace(temporary, self.folder / entry.file)
            _sync(self.folder / "shards")
        else:
            temporary.unlink()
        self._write_commit(task, entry, outcome)

    def finish(self, manifest: Manifest, commits: Iterable[dict[str, Any]], keep: set[str]) -> None:
        """Write the rejects and the manifest, then remove shards and commits that it does not name."""
        lines = [
            json.dumps({"source": c["entry"]["source"], **reject}, ensure_ascii=False) + "\n"
            for c in commits
            for reject in c["rejects"]
        ]
        self._write("rejects.jsonl", "".join(lines))
        self._write(NAME, manifest.to_text())
        files = {entry.file for entry in manifest.shards}
        for path in (*self.folder.glob("shards/*.arrow"), *self._commits()):
            if f"shards/{path.name}" not in files and path.name not in keep:
                path.unlink()

    def _commits(self) -> list[Path]:
        return sorted(self.folder.glob("commits/*.json"))

    def _write_commit(self, task: Task, entry: ShardEntry, outcome: Outcome) -> None:
        commit = {
            "entry": entry.to_json(),
            "rejects": [asdict(r) for r in outcome.rejects],
            "totals": outcome.totals.to_json(),
        }
        self._write(f"commits/{task.commit_name}", json.dumps(commit, ensure_ascii=False))

    def _write(self, name: str, text: str) -> None:
        """Durable and atomic: temporary file, sync, rename, sync of the folder.

        Half a surrogate pair, as hostile names may have, is written as its escape, which is also how JSON writes it.
        """
        temporary = self.folder / TEMPORARY / uuid.uuid4().hex
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)
        _sync((self.folder / name).parent)


def _sync(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
