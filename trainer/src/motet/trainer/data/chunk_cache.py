"""The local cache of chunks of remote shards: a bounded folder of files that any number of threads and processes share.

    get(key) --there--> FOLDER/motet-chunks/KEY.chunk, memory-mapped; its time tells when it was last used
             --not----> `fetch` --> a file without a name --linked as--> KEY.chunk, memory-mapped
    as soon as too much was added without looking: a look at the folder --> the least recently used chunks go

A chunk appears whole or not at all, and whoever is killed leaves nothing: a file without a name goes with its process
(where a file system has none, a temporary name is evicted like a chunk, or when it is an hour old). No process waits for
another: each adds first and looks then, so the last look sees all. A look leaves 7/8 of the limit; the last 1/8 is what
32 processes may add unseen. A mapped chunk outlives its file. The reader checks the bytes, and calls `drop`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from motet.core.errors import UserError

FOLDER = "motet-chunks"
KEY = r"[0-9A-Za-z_-]{1,128}"
OURS = re.compile(KEY + r"\.(chunk|[0-9a-f]{32}\.partial)")  # nothing else is ever removed
HOUR = 3600 * 10**9
FULL = (errno.ENOSPC, errno.EDQUOT)
O_TMPFILE = getattr(os, "O_TMPFILE", 0)  # with 0, opening fails as on a file system that has none

log = logging.getLogger(__name__)


class ChunkCache:
    """Chunks by key in a folder, at most `limit` bytes; made at first use. UserError if it cannot be one."""

    def __init__(self, folder: Path, limit: int):
        if limit < 0:
            raise UserError(f"{folder}: a cache cannot have {limit} bytes; give it a limit of 0 or more")
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise UserError(f"{folder}: is a file; choose a folder for the cache")
        self._folder = Path(folder).absolute() / FOLDER
        self._kept, self._blind = limit - limit // 8, limit // 256
        self._unseen = limit + 1  # so that the first use looks at what earlier processes left
        self._lock = threading.Lock()  # of `_unseen` only
        self._told = False

    def get(self, key: str, fetch: Callable[[], bytes]) -> pa.Buffer:
        """The chunk's bytes, memory-mapped; `fetch` is called where they are not there yet, and its errors pass."""
        chunk = self._read(key)
        data = b"" if chunk else fetch()
        try:
            self._bound(self._store(key, data))
        except OSError as error:
            if not self._told:
                why = f"{self._folder}: the cache cannot be written ({error.strerror}), so chunks are fetched each time"
                log.warning("%s; free space there, or choose another folder", why)
            self._told = True
        return chunk or self._read(key) or pa.py_buffer(data)

    def drop(self, key: str) -> None:
        """Forget a chunk, because its bytes turned out damaged; the next get fetches again."""
        with suppress(OSError), self._opened() as folder:
            os.unlink(_name(key), dir_fd=folder)

    def _read(self, key: str) -> pa.Buffer | None:
        path = self._folder / _name(key)
        try:
            with pa.memory_map(str(path)) as file:
                chunk = file.read_buffer()  # stays mapped when the file is closed or unlinked
        except OSError:
            return None
        if not chunk:
            self.drop(key)  # somebody truncated it
        with suppress(OSError):  # the folder may be one that can only be read
            os.utime(path, ns=_now(), follow_symlinks=False)
        return chunk

    def _store(self, key: str, data: bytes) -> int:
        """Keep a chunk if the limit allows; the bytes added."""
        if not 0 < len(data) <= self._kept:
            return 0
        with self._opened() as folder:
            try:
                _write(folder, key, data)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._evict(at_least=len(data))
                _write(folder, key, data)
        return len(data)

    def _bound(self, added: int) -> None:
        with self._lock:
            self._unseen += added
            if self._unseen <= self._blind:
                return
            self._unseen = 0
        self._evict()

    def _evict(self, at_least: int = 0) -> None:
        """Look, and remove the least recently used; where the disk is full, `at_least` so many bytes."""
        files = []
        with self._opened() as folder, os.scandir(folder) as entries:
            for entry in entries:
                if OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # another process removed it
                        status = entry.stat(follow_symlinks=False)
                        files.append((status.st_mtime_ns, status.st_size, entry.name))
            total, old = sum(size for _, size, _ in files), time.time_ns() - HOUR
            most = min(self._kept, total - max(at_least, total // 8)) if at_least else self._kept
            for used, size, name in sorted(files):
                if total > most or (name.endswith(".partial") and used < old):
                    with suppress(PermissionError):  # another user's: the next one goes instead
                        with suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder)
                        total -= size

    @contextmanager
    def _opened(self) -> Iterator[int]:
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # never what a link points to
        try:
            yield folder
        finally:
            os.close(folder)


def _name(key: str) -> str:
    if not re.fullmatch(KEY, key):
        raise ValueError(f"{key!r} cannot be a chunk's key; use letters, digits, - and _")
    return f"{key}.chunk"


def _now() -> tuple[int, int]:
    return (now := time.time_ns()), now  # finer than the system's own stamps, so that the order of use is exact


def _write(folder: int, key: str, data: bytes) -> None:
    try:
        with open(os.open(".", O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=folder), "wb") as file:
            _fill(file, data)
            os.link(f"/proc/self/fd/{file.fileno()}", _name(key), dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        pass  # another thread or process was first
    except OSError as error:
        if error.errno in FULL:
            raise
        _write_named(folder, key, data)


def _write_named(folder: int, key: str, data: bytes) -> None:
    partial = f"{key}.{uuid.uuid4().hex}.partial"
    try:
        with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=folder), "wb") as file:
            _fill(file, data)
        os.rename(partial, _name(key), src_dir_fd=folder, dst_dir_fd=folder)
    except FileNotFoundError:
        pass  # evicted before it was whole
    except OSError:
        with suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise


def _fill(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.utime(file.fileno(), ns=_now())
