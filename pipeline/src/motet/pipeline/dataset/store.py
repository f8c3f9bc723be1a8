"""Where a dataset lies: a folder, or a URI of an object store. A file appears whole or not at all, whoever is killed.

    Output ---`create` | `write` | `put`---> `Folder`: temporary file, sync, rename        `Bucket`: one PUT through `remote`
    readers <--`read` | `list` | `local`---  the file itself, memory-mapped                a copy that needs no cleaning up

`create` is put-if-absent: of several writers exactly one wins (a hard link; on an object store `If-None-Match`). An object
store needs no temporary names: an upload that was cut off, in parts or not, never becomes an object.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from motet.core import durable
from motet.core.errors import UserError
from motet.pipeline.remote import ask

TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Found:
    """A file of a dataset: its size in bytes, and when it was written (seconds since 1970)."""

    size: int
    modified: float


class Store(ABC):
    """A dataset's place; names are relative to it, with `/`. Can be sent to any worker.

    Attributes:
        parallel: how many small files are best read at a time.
    """

    parallel: ClassVar[int] = 1

    @abstractmethod
    def names(self) -> set[str]:
        """What is there at all: files and folders right in the place; empty if it is not there yet."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The whole file; FileNotFoundError if there is none."""

    @abstractmethod
    def list(self, folder: str = "") -> dict[str, Found]:
        """The files right in a folder of the dataset, by name, sorted; none if there is no such folder."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of that name; whether this call did."""

    @abstractmethod
    def scratch(self) -> Any:
        """Context: the path of a new local file that `put` can take, and that is gone after the context."""

    @abstractmethod
    def put(self, path: Path, name: str) -> None:
        """Make a whole and synced scratch file the file `name`."""

    @abstractmethod
    def local(self, name: str) -> Any:
        """Context: a path on this machine with the file's bytes. FileNotFoundError if there is none."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""

    @abstractmethod
    def claimed(self) -> Any:
        """Context: makes the place, and keeps other jobs of this machine out; UserError if one is there."""


@dataclass(frozen=True)
class Folder(Store):
    """A folder of this machine, or one that all workers mount."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> set[str]:
        """See Store."""
        return {path.name for path in self.path.iterdir()} - {TEMPORARY} if self.path.exists() else set()

    def read(self, name: str) -> bytes:
        """See Store."""
        return (self.path / name).read_bytes()

    def list(self, folder: str = "") -> dict[str, Found]:
        """See Store."""
        found = {}
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    if entry.is_file():
                        status = entry.stat()
                        found[entry.name] = Found(status.st_size, status.st_mtime)
        except FileNotFoundError:
            return {}
        return dict(sorted(found.items()))

    def write(self, name: str, data: bytes) -> None:
        """See Store."""
        with self.scratch() as temporary:
            durable.write(self._place(name), data, temporary)

    def create(self, name: str, data: bytes) -> bool:
        """See Store. Where a file system has no hard links, the last of two writers wins."""
        place = self._place(name)
        with self.scratch() as temporary:
            durable.fill(temporary, data)
            try:
                os.link(temporary, place)
            except FileExistsError:
                return False
            except OSError:
                os.replace(temporary, place)
        durable.sync(place.parent)
        return True

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """See Store."""
        path = self.path / TEMPORARY / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def put(self, path: Path, name: str) -> None:
        """See Store."""
        durable.rename(path, self._place(name))

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See Store."""
        if not (self.path / name).is_file():
            raise FileNotFoundError(name)
        yield self.path / name

    def delete(self, name: str) -> None:
        """See Store."""
        (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """See Store. The lock goes with its process; what a killed job left in .tmp is removed, and what processes left that died
        in this one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / TEMPORARY).mkdir(exist_ok=True)
        lock = os.open(self.path / TEMPORARY, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another job is writing there; wait for it, or choose another") from None
            except OSError:
                pass  # a file system without locks: two jobs there may make each other fail, but write nothing wrong
            self._clean()
            yield
            self._clean()
        finally:
            os.close(lock)

    def _clean(self) -> None:
        for path in (self.path / TEMPORARY).iterdir():
            path.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        place = self.path / name
        place.parent.mkdir(exist_ok=True)
        return place


@dataclass(frozen=True)
class Bucket(Store):
    """A folder of an object store, by its URI. Keys, regions and end points come from the cloud's own environment."""

    uri: str
    parallel: ClassVar[int] = 32

    def __str__(self) -> str:
        return self.uri

    def names(self) -> set[str]:
        """See Store."""
        try:
            found = ask(self.uri, lambda fs, root: fs.ls(root, detail=False))
        except FileNotFoundError:
            return set()
        return {name.rstrip("/").rsplit("/", 1)[1] for name in found}

    def read(self, name: str) -> bytes:
        """See Store."""
        return ask(self._at(name), lambda fs, place: fs.cat_file(place))

    def list(self, folder: str = "") -> dict[str, Found]:
        """See Store."""
        try:
            place, infos = ask(self._at(folder), lambda fs, place: (place, fs.ls(place, detail=True)))
        except FileNotFoundError:
            return {}
        found = {
            info["name"].rsplit("/", 1)[1]: Found(info["size"], _seconds(info))
            for info in infos
            if info["type"] == "file" and info["name"].rstrip("/") != place
        }
        return dict(sorted(found.items()))

    def write(self, name: str, data: bytes) -> None:
        """See Store."""
        ask(self._at(name), lambda fs, place: fs.pipe_file(place, data))

    def create(self, name: str, data: bytes) -> bool:
        """See Store. One that was cut off and tried again may find its own file: then it says that it did not."""
        try:
            ask(self._at(name), lambda fs, place: fs.pipe_file(place, data, mode="create"))
        except FileExistsError:
            return False
        return True

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """See Store. The file has no name: a killed process leaves nothing on the machine's disk."""
        with _temporary() as file:
            yield Path(f"/dev/fd/{file.fileno()}")

    def put(self, path: Path, name: str) -> None:
        """See Store."""
        ask(self._at(name), lambda fs, place: fs.put_file(str(path), place))

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See Store."""
        with _temporary() as file:
            path = Path(f"/dev/fd/{file.fileno()}")
            ask(self._at(name), lambda fs, place: fs.get_file(place, str(path)))
            yield path

    def delete(self, name: str) -> None:
        """See Store."""
        try:
            ask(self._at(name), lambda fs, place: fs.rm_file(place))
        except FileNotFoundError:
            return

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """See Store. Nothing is locked: two jobs do the same work twice, and every commit has one winner."""
        yield

    def _at(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{name}".rstrip("/")


def _temporary() -> Any:
    """A file without a name in TMPDIR, which a cleaner may have removed since it was last used."""
    try:
        return tempfile.TemporaryFile(prefix="motet-")
    except FileNotFoundError:
        os.makedirs(tempfile.gettempdir(), 0o700, exist_ok=True)
        return tempfile.TemporaryFile(prefix="motet-")


def store_of(place: str | Path) -> Store:
    """The store of a folder or a URI (`s3://`, `gs://`, `hf://`; `file://` is a folder)."""
    text = str(place)
    if "://" not in text:
        return Folder(Path(text).resolve())
    return Folder(Path(text[7:]).resolve()) if text.startswith("file://") else Bucket(text)


def _seconds(info: dict[str, Any]) -> float:
    """When an object was written, as its store tells it; 0 where it does not."""
    for key in ("LastModified", "mtime", "last_modified", "created"):
        if (told := info.get(key)) is not None:
            return float(told if isinstance(told, int | float) else told.timestamp())
    return 0.0
