"""Where input bytes lie: local paths by plain system calls; s3://, gs://, hf://, https:// and the like through fsspec.

    path or URI --`entries` | `stat` (`tree` has all below a folder)--> names, sizes, versions --`read` | `blocks` | `opened`--> bytes, as many as promised

Remote files are asked for by `remote`, which tries again while that may help.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from motet.pipeline.corpus import local
from motet.pipeline.remote import Info, ask, concealed, info_of, is_remote, ranged

BLOCK = 1 << 20
"""Bytes read at a time from a local file."""
REMOTE_BLOCK = 8 << 20
"""Bytes asked for at a time from a remote one: enough that latency does not count."""


class Changed(Exception):
    """A local file is not as long as it was when the job was planned."""


def absolute(base: Path, path: str) -> str:
    """A path of the configuration, relative to `base` unless it is a URI; ValueError or OSError if it can be none.

    Of a URI that gives access itself, the public part: `remote` keeps the rest.
    """
    if path.startswith("file://"):
        path = path[7:]
    if is_remote(path):
        return concealed(path).rstrip("/")
    return os.path.realpath(base / path)  # of a loop of links the link itself


def join(root: str, name: str) -> str:
    """The path of a file below a folder."""
    return f"{root}/{name}" if is_remote(root) else os.path.join(root, name)


def printable(name: str) -> str:
    """A file's name as text that can be stored; a name need not be Unicode (its other bytes become escapes)."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def ending_of(name: str) -> str:
    """The kind of a file by its name, for a person: without regard to case, as far as the last dot."""
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return (
        f"files ending in .{printable(ending.lower())}"
        if dot and stem and len(ending) <= 16
        else "files without an ending"
    )


def stat(path: str) -> Info | None:
    """Size and version of a file; None if there is no such file (a local folder counts as one, for messages). What is no file,
    or cannot be asked, is an exception: see `local`.
    """
    if is_remote(path):
        try:
            return info_of(ask(path, lambda fs, name: _file_info(fs, name)))
        except FileNotFoundError:
            return None
    return local.stat(path)


def is_folder(path: str) -> bool:
    """Whether this is a folder: for a URI, whether objects have names that begin with it and a slash."""
    if is_remote(path):
        if re.match(r"https?://", path):
            return False  # the web has no folders; and asking would fetch a page
        try:
            info = ask(path, lambda fs, name: fs.info(name))  # `isdir` of some stores says no when they do not answer
        except FileNotFoundError:
            return False
        return bool(info["type"] == "directory")
    return os.path.isdir(path)


def listing(root: str) -> Callable[[str], Info | None]:
    """A function like `stat` for names below `root` that asks a remote store once a folder, not once a file."""
    if not is_remote(root) or re.match(r"https?://", root):
        return lambda name: stat(join(root, name))
    folders: dict[str, dict[str, Info]] = {}

    def look(name: str) -> Info | None:
        folder, _, last = posixpath.normpath(name).rpartition("/")
        if folder not in folders:
            there = entries(join(root, folder).rstrip("/"))
            folders[folder] = {found: info_of(info) for found, info in there.items() if info["type"] == "file"}
        return folders[folder].get(last)

    return look


def entries(folder: str) -> dict[str, dict[str, Any]]:
    """What lies right in a remote folder, by name; nothing if there is no such folder."""
    try:
        found = ask(folder, lambda fs, place: fs.ls(place, detail=True))
    except FileNotFoundError:
        return {}
    names = {info["name"].rstrip("/").rsplit("/", 1)[-1]: info for info in found}
    return {name: names[name] for name in sorted(names) if name}


def read(path: str, begin: int = 0, end: int | None = None) -> bytes:
    """Bytes of a file, all of them or a range; as many as asked for, or an exception. FileNotFoundError if missing."""
    if is_remote(path):
        if end is None:
            info = stat(path)
            if info is None:
                raise FileNotFoundError(path)
            end = info.size
        return ranged(path, begin, end)
    with open(path, "rb") as file:
        file.seek(begin)
        data = file.read() if end is None else file.read(end - begin)
    if end is not None and len(data) != end - begin:
        raise Changed(f"{path}: ends at byte {begin + len(data)}, not at {end}: it was changed; run the command again")
    return data


def blocks(path: str, begin: int, end: int) -> Iterator[bytes]:
    """A range of a file, a block at a time."""
    if is_remote(path):
        for start in range(begin, end, REMOTE_BLOCK):
            yield ranged(path, start, min(start + REMOTE_BLOCK, end))
        return
    with open(path, "rb") as file:
        file.seek(begin)
        while begin < end:
            block = file.read(min(BLOCK, end - begin))
            if not block:
                raise Changed(f"{path}: ends at byte {begin}, not at {end}: it was changed; run the command again")
            begin += len(block)
            yield block


def opened(path: str, size: int, block: int = 1 << 18) -> BinaryIO:
    """A file of `size` bytes that can be read anywhere; of a remote one, ranges of at least `block` bytes are fetched as
    they are read.
    """
    if is_remote(path):
        return io.BufferedReader(_Remote(path, size), block)
    if (now := os.path.getsize(path)) != size:
        raise Changed(f"{path}: has {now} bytes, not {size}: it was changed; run the command again")
    return open(path, "rb")


class _Remote(io.RawIOBase):
    """Ranges of a remote file."""

    def __init__(self, path: str, size: int):
        self._path, self._size, self._at = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = ranged(self._path, self._at, min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _file_info(fs: Any, name: str) -> dict[str, Any]:
    info = fs.info(name)
    if info.get("type") == "directory":
        raise FileNotFoundError(name)
    return info
