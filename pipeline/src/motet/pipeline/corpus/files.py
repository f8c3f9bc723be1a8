"""Where input bytes lie: local paths by plain system calls; s3://, gs://, hf://, https:// and the like through fsspec.

    path or URI --`walk` | `entries` | `stat`--> names, sizes, versions --`read` | `blocks` | `opened`--> bytes, as many as promised

Every answer of a remote store is held against the length that it should have. What may pass (5xx, time-outs, resets, short
answers) is tried again, ever more slowly; if it does not pass, `Unreachable` fails the partition, never a sample, because
the same command will do it later. A refusal (an expired token, a missing permission) is told at once: `Refused`. Keys and
end points come from the cloud libraries' own environment variables and files, so a path can be sent to any worker.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from motet.core.errors import UserError

BLOCK = 1 << 20
"""Bytes read at a time from a local file."""
REMOTE_BLOCK = 8 << 20
"""Bytes asked for at a time from a remote one: enough that latency does not count."""
ATTEMPTS = 8
WAIT = 0.2
"""Seconds before the second attempt; doubled for every further one, up to 10."""
T = TypeVar("T")


class Unreachable(Exception):
    """A remote store does not answer, or not in full, however often it is asked."""


class Refused(UserError):
    """A remote store answers that we may not: trying again helps only when something else has changed."""


class Changed(Exception):
    """A local file is not as long as it was when the job was planned."""


@dataclass(frozen=True)
class Info:
    """Size in bytes, and what changes when the content does: ETag, or the time of its last change."""

    size: int
    version: str


def is_remote(path: str) -> bool:
    """Whether this is a URI."""
    return "://" in path


def absolute(base: Path, path: str) -> str:
    """A path of the configuration, relative to `base` unless it is a URI; ValueError or OSError if it can be none."""
    if path.startswith("file://"):
        path = path[7:]
    return path.rstrip("/") if is_remote(path) else str((base / path).resolve())


def join(root: str, name: str) -> str:
    """The path of a file below a folder."""
    return f"{root}/{name}" if is_remote(root) else os.path.join(root, name)


def printable(name: str) -> str:
    """A file's name as text that can be stored; a name need not be Unicode (its other bytes become escapes)."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def stat(path: str) -> Info | None:
    """Size and version of a file; None if there is no such file (a local folder counts as one, for messages)."""
    if is_remote(path):
        try:
            return _info(_ask(path, lambda fs, name: _file_info(fs, name)))
        except FileNotFoundError:
            return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return Info(status.st_size, str(status.st_mtime_ns))


def is_folder(path: str) -> bool:
    """Whether this is a folder: for a URI, whether objects have names that begin with it and a slash."""
    if is_remote(path):
        if re.match(r"https?://", path):
            return False  # the web has no folders; and asking would fetch a page
        try:
            info = _ask(path, lambda fs, name: fs.info(name))  # `isdir` of some stores says no when they do not answer
        except FileNotFoundError:
            return False
        return bool(info["type"] == "directory")
    return os.path.isdir(path)


def walk(root: str) -> dict[str, Info]:
    """Every file below a folder, by relative name, sorted; names that begin with a dot are left out. One listing."""
    found: dict[str, Info] = {}
    if is_remote(root):
        listed = _ask(root, lambda fs, name: (name, fs.find(name, detail=True)))
        for name, info in listed[1].items():
            found[name[len(listed[0]) :].lstrip("/")] = _info(info)
    else:
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path) and (info := stat(path)) is not None:
                    found[Path(path).relative_to(root).as_posix()] = info
    return {name: found[name] for name in sorted(found) if not name.rsplit("/", 1)[-1].startswith(".")}


def listing(root: str) -> Callable[[str], Info | None]:
    """A function like `stat` for names below `root` that asks a remote store once a folder, not once a file."""
    if not is_remote(root) or re.match(r"https?://", root):
        return lambda name: stat(join(root, name))
    folders: dict[str, dict[str, Info]] = {}

    def look(name: str) -> Info | None:
        folder, _, last = posixpath.normpath(name).rpartition("/")
        if folder not in folders:
            there = entries(join(root, folder).rstrip("/"))
            folders[folder] = {found: _info(info) for found, info in there.items() if info["type"] == "file"}
        return folders[folder].get(last)

    return look


def entries(folder: str) -> dict[str, dict[str, Any]]:
    """What lies right in a remote folder, by name; nothing if there is no such folder."""
    try:
        found = _ask(folder, lambda fs, place: fs.ls(place, detail=True))
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
        return _ranged(path, begin, end)
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
            yield _ranged(path, start, min(start + REMOTE_BLOCK, end))
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
        data = _ranged(self._path, self._at, min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _ranged(path: str, begin: int, end: int) -> bytes:
    if end <= begin:
        return b""

    def fetch(fs: Any, name: str) -> bytes:
        data = fs.cat_file(name, start=begin, end=end)
        if len(data) < end - begin:
            raise ConnectionError(f"{len(data)} bytes came of the {end - begin} from {begin}")
        if len(data) > end - begin:
            raise Refused(f"{path}: this server cannot send a part of a file; copy the file to a store that can")
        return data

    return _ask(path, fetch)


def _ask(path: str, question: Callable[[Any, str], T]) -> T:
    """`question(file system, name)`, asked again while what goes wrong may pass."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

    fs, name = _file_system(path)

    def attempt() -> T:
        try:
            return question(fs, name)
        except Exception as error:
            raise _judged(error, path) from error

    retrying = Retrying(
        retry=retry_if_exception_type(Unreachable),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(initial=WAIT, max=10, jitter=WAIT),
        reraise=True,
    )
    return retrying(attempt)


def _judged(error: Exception, path: str) -> Exception:
    """What a file system's exception means: missing, refused, for now unreachable, or a bug (itself)."""
    if isinstance(error, (FileNotFoundError, UserError)):
        return error
    status = _status(error)
    told = str(error) or type(error).__name__
    if status in (404, 410):
        return FileNotFoundError(path)
    refused = isinstance(error, PermissionError) or type(error).__name__ in (
        "NoCredentialsError",
        "TokenRetrievalError",
    )
    if refused or (status is not None and 400 <= status < 500 and status not in (408, 425, 429)):
        return Refused(
            f"{path}: the store refuses: {told}; renew the token or key, or have the permission given, then run the same "
            "command again: it goes on where it stopped"
        )
    module = type(error).__module__.split(".")[0]
    if isinstance(error, OSError | EOFError) or module in (
        "aiohttp",
        "botocore",
        "requests",
        "httpx",
        "gcsfs",
        "urllib3",
    ):
        return Unreachable(f"{path}: {told} (asked {ATTEMPTS} times); the same command goes on when the store is back")
    return error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an exception of any of the cloud libraries."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if type(error).__module__ != "aiohttp.http_exceptions":  # their code 400 is said of a broken answer, by us
            codes = getattr(error, "status", None), getattr(error, "code", None), getattr(response, "status_code", None)
            if (found := next((code for code in codes if isinstance(code, int)), None)) is not None:
                return found
        error = error.__cause__
    return None


def _file_system(path: str) -> tuple[Any, str]:
    """The file system of a URI and the name there; it remembers no listings, because a plan must see what is there now."""
    try:
        import fsspec

        fs, name = fsspec.core.url_to_fs(path, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {error}; pip install 'motet-pipeline[remote]' brings s3, gs, hf and https") from None
    return fs, name


def _file_info(fs: Any, name: str) -> dict[str, Any]:
    info = fs.info(name)
    if info.get("type") == "directory":
        raise FileNotFoundError(name)
    return info


def _info(info: dict[str, Any]) -> Info:
    if info.get("size") is None:
        raise Refused(f"{info.get('name')}: the server does not tell its size; copy the file to a store that does")
    keys = (
        "ETag",
        "etag",
        "generation",
        "md5Hash",
        "blob_id",
        "LastModified",
        "last_modified",
        "Last-Modified",
        "mtime",
    )
    return Info(int(info["size"]), next((str(info[key]) for key in keys if info.get(key) is not None), ""))
