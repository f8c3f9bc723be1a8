"""What every format's file shares: what a source is cut into, and what reading gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import xxhash

from motet.core.hashing import content_hash
from motet.pipeline.corpus.entry import Entry
from motet.pipeline.dataset.rejects import Reject
from motet.tokenizers.contract import BadSample

READING = 2
"""Raised when the same bytes are read as other samples than before: it is a part of every partition's key."""

MAX_FILE = 1 << 30
"""Bytes of a sample's largest part: a media file, a text file, a line."""

Note = Callable[[str, int, str], None]
"""Is told of everything that was read: its name, its bytes, their hash."""
Version = tuple[str, int, str]
"""(name, as `printable`; size, -1 if missing; what changes with the content) of a file that is read."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A part of a source, as its format cuts it.

    Attributes:
        root: folder or URI that names start from; media must stay in it.
        span: (file, begin, end) of a file that holds many samples, in the format's own unit; None if there is none.
        files: files that are a sample each, relative to `root`, if there is no span.
        versions: of every file that is read; the span's first.
        size: bytes that will be read, for progress.
    """

    root: str
    span: tuple[str, int, int] | None = None
    files: tuple[str, ...] = ()
    versions: tuple[Version, ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class Partition(Cut):
    """A cut of one source, which is a job's unit of work. Can be sent to any worker.

    Attributes:
        entry: the source; its paths are absolute and public here.
        index: place among the source's partitions.
        secrets: what its URIs lack to be read, as `remote.secrets_of` has it; part of nothing that is stored.
    """

    entry: Entry
    index: int
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.entry.name}, partition {self.index} ({self.versions[0][0]})"

    def key(self, settings_hash: str) -> str:
        """Equal exactly if tokenizing again would give the same bytes (16 hex digits)."""
        unset = {"layout"} if self.entry.layout is None else set()  # fields that came later leave older keys alone
        entry = self.entry.model_dump(mode="json", exclude={"path", "root"} | unset)
        columns = list(self.entry.columns or ())  # their order is the reading order
        where = (columns, self.index, self.span and self.span[1:], self.versions)
        return content_hash(READING, settings_hash, entry, *where)[:16]


@dataclass(frozen=True)
class RawSample:
    """One sample before anything is decoded.

    Attributes:
        position: where it stands: a file, or file@place.
        parts: (modality, bytes) in reading order.
        language: as its source tells it, or empty.
    """

    position: str
    parts: tuple[tuple[str, bytes], ...]
    language: str = ""


class Digest:
    """The content hash of a stream, and its length."""

    def __init__(self) -> None:
        self.size, self._state = 0, xxhash.xxh3_128()

    def update(self, data: bytes) -> bytes:
        """The next bytes, given back."""
        self.size += len(data)
        self._state.update(data)
        return data

    @property
    def hash(self) -> str:
        """Hex, of all so far."""
        return self._state.hexdigest()


def reject(position: str, bad: BadSample, content: bytes = b"") -> Reject:
    """A sample that was refused before it could be read as one; `content` is what stands for it in the source."""
    parts = (("", content),) if content else ()
    return Reject(position, bad.reason, bad.detail, content_hash(content) if content else "", parts)


def empty(value: Any) -> bool:
    """Whether a caption says nothing: then it is no part, in every format, and costs its picture nothing."""
    return value is None or value == "" or value == b""


def string(value: Any, where: str) -> bytes:
    """A JSON string's bytes."""
    if not isinstance(value, str):
        raise BadSample("not-a-string", f"{where} is a {type(value).__name__}")
    if not value:
        raise BadSample("empty-text", f"{where} is empty")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadSample("invalid-utf8", f"{where}: {error}") from None


def language_of(row: dict[str, Any], field: str | None) -> str:
    """What the row says of its language; empty if nothing, or nothing that could be one."""
    value = row.get(field) if field else None
    return value if isinstance(value, str) and len(value) <= 64 and value.isprintable() else ""
