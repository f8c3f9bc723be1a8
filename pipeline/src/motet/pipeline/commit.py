"""Exactly once on a plain file system: what is committed stays, what is not is done again, and nothing is half there.

    tokenize -> OUT/.tmp/<random> -> rename to OUT/shards/<source>-<index>-<hash>.arrow -> OUT/commits/<source>-<index>-<key>.json
    all partitions committed -> OUT/manifest.json (a rename too) -> what the manifest does not name is removed

| killed                              | what is there                    | what the same command does                      |
|-------------------------------------|----------------------------------|-------------------------------------------------|
| while tokenizing                    | a file in .tmp                   | removes it, tokenizes the partition again        |
| between shard and commit            | a shard without a commit         | writes the same bytes under the same name, commits |
| between the last commit and manifest| all commits                      | writes the manifest                              |
| after the manifest                  | old shards, perhaps              | removes them                                     |

A shard is named by its own hash and a commit by its partition's key, so a rename never replaces other content, and two
drivers at once only do the same thing twice.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
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


class Output:
    """The output folder of a tokenizing job."""

    def __init__(self, folder: Path):
        self.folder = folder

    def prepare(self, sources: Iterable[str], config_text: str) -> None:
        """Make or re-open the folder; UserError if it holds something else or cannot be written."""
        names = sorted(sources)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            present = {p.name for p in self.folder.iterdir()}
            if present and CONFIG not in present and present != {TEMPORARY}:
                raise UserError(
                    f"--out {self.folder}: holds something that is no token dataset; choose an empty folder"
                )
            held = {c.name.rsplit("-", 2)[0] for c in self._commits()}
            if held and not held & set(names):
                raise UserError(
                    f"--out {self.folder}: holds tokens of another corpus ({', '.join(sorted(held))}); choose another"
                )
            shutil.rmtree(self.folder / TEMPORARY, ignore_errors=True)
            for name in ("shards", "commits", TEMPORARY):
                (self.folder / name).mkdir(exist_ok=True)
            self._write(CONFIG, config_text)
        except OSError as error:
            raise UserError(
                f"--out {self.folder}: cannot be written: {error.strerror or error}; choose another"
            ) from None

    def committed(self, task: Task) -> dict[str, Any] | None:
        """The commit of this task, if there is one and its shard is there too."""
        try:
            commit = json.loads((self.folder / "commits" / task.commit_name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        file = commit["entry"]["file"]
        whole = not file or (
            (self.folder / file).is_file() and (self.folder / file).stat().st_size == commit["entry"]["bytes"]
        )
        return commit if whole else None

    def do(self, task: Task, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Tokenize a partition and commit it: what every engine maps over the plan."""
        temporary = self.folder / TEMPORARY / uuid.uuid4().hex
        outcome = tokenize(task.partition, tokenizers, task.header, temporary)
        entry = outcome.entry
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
        for path in (*self.folder.glob("shards/*"), *self._commits()):
            if f"shards/{path.name}" not in files and path.name not in keep:
                path.unlink()

    def _commits(self) -> list[Path]:
        return sorted(self.folder.glob("commits/*.json"))

    def _write_commit(self, task: Task, entry: ShardEntry, outcome: Outcome) -> None:
        commit = {
            "entry": entry.to_json(),
            "rejects": [asdict(r) for r in outcome.rejects],
            "codebooks": outcome.codebooks,
        }
        self._write(f"commits/{task.commit_name}", json.dumps(commit, ensure_ascii=False))

    def _write(self, name: str, text: str) -> None:
        """Durable and atomic: temporary file, sync, rename, sync of the folder."""
        temporary = self.folder / TEMPORARY / uuid.uuid4().hex
        temporary.parent.mkdir(exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
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
