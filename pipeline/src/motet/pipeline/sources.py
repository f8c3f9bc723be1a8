"""From a partition to raw samples: bytes of every part, or the reason why there are none.

    Partition --`read`--> RawSample(position, parts of (modality, bytes)) | Reject(position, reason, detail)

Every line and every file of a partition gives exactly one of the two, so that documents + rejects = samples. Nothing is
decoded here. Formats:

    folder       metadata.jsonl rows {"file_name", "text"?}: caption, then media; or, without it, every media file
    interleaved  rows {"id"?, "parts": [{"text": ...} | {"image": path} | {<modality>: path}, ...]}
    text         rows with a text column, or plain .txt files
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.pipeline.plan import Partition, printable
from motet.pipeline.rejects import Reject
from motet.tokenizers.contract import BadSample, content_hash

MAX_FILE = 1 << 30


@dataclass(frozen=True)
class RawSample:
    """One sample; `position` says where it stands (file:line, or file), `parts` are (modality, bytes) in reading order.

    `language` is as its source tells it, or empty.
    """

    position: str
    parts: tuple[tuple[str, bytes], ...]
    language: str = ""


def read(partition: Partition, note: Callable[[str, bytes], None]) -> Iterator[RawSample | Reject]:
    """The samples of a partition in order; `note(path, bytes)` is told of everything that was read."""
    if partition.lines is None:
        modality = "text" if partition.entry.format == "text" else str(partition.entry.modality)
        for name in partition.files:
            yield _attempt(printable(name), b"", lambda name=name: ((modality, _file(partition.root, name, note)),))  # type: ignore[misc]
        return
    file, begin, end, number = partition.lines
    parts = {"folder": _captioned, "interleaved": _interleaved, "text": _text}[partition.entry.format]
    with open(file, "rb") as lines:
        lines.seek(begin)
        block = lines.read(end - begin)
    note(partition.versions[0][0], block)
    for i, line in enumerate(block.split(b"\n")):
        if not line.strip():
            continue  # a blank line is no sample
        position = f"{printable(Path(file).name)}:{number + i + 1}"
        yield _attempt(position, line, lambda line=line: parts(_row(line), partition, note))  # type: ignore[misc]


def _attempt(position: str, line: bytes, parts: Callable[[], tuple[tuple[str, bytes], ...]]) -> RawSample | Reject:
    try:
        return RawSample(position, parts())
    except BadSample as bad:
        return Reject(
            position, bad.reason, bad.detail, content_hash(line) if line else "", (("", line),) if line else ()
        )


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise BadSample("invalid-utf8", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise BadSample("not-json", str(error)) from None
    if not isinstance(row, dict):
        raise BadSample("not-an-object", f"a {type(row).__name__} where an object was expected")
    return row


def _captioned(row: dict[str, Any], partition: Partition, note: Callable[[str, bytes], None]) -> Any:
    """Caption, if there is one, then the media file."""
    name, caption = row.get("file_name"), row.get("text")
    if not isinstance(name, str) or not name:
        raise BadSample("no-file-name", "file_name is missing or is no string")
    media = (str(partition.entry.modality), _file(partition.root, name, note))
    return (media,) if caption is None else (("text", _string(caption, "text")), media)


def _interleaved(row: dict[str, Any], partition: Partition, note: Callable[[str, bytes], None]) -> Any:
    parts = row.get("parts")
    if not isinstance(parts, list) or not parts:
        raise BadSample("no-parts", "parts is missing, empty or no list")
    found = []
    for i, part in enumerate(parts):
        if not isinstance(part, dict) or len(part) != 1:
            raise BadSample("bad-part", f"parts.{i} is not one modality with its value")
        ((modality, value),) = part.items()
        value = _string(value, f"parts.{i}.{modality}")
        found.append((modality, value if modality == "text" else _file(partition.root, value.decode(), note)))
    return tuple(found)


def _text(row: dict[str, Any], partition: Partition, note: Callable[[str, bytes], None]) -> Any:
    column = partition.entry.column
    if column not in row:
        raise BadSample("no-text", f"no column '{column}'")
    return (("text", _string(row[column], column)),)


def _string(value: Any, where: str) -> bytes:
    if not isinstance(value, str):
        raise BadSample("not-a-string", f"{where} is a {type(value).__name__}")
    if not value:
        raise BadSample("empty-text", f"{where} is empty")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadSample("invalid-utf8", f"{where}: {error}") from None


def _file(root: Path, name: str, note: Callable[[str, bytes], None]) -> bytes:
    """A media file's bytes; its path is relative and leads to inside the corpus folder, links followed."""
    try:
        path = (root / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(root.resolve()):
            raise BadSample("outside-corpus", f"{name} leads out of the corpus folder")
        if not path.is_file():
            raise BadSample("missing-file", name)
        if path.stat().st_size > MAX_FILE:
            raise BadSample("file-too-large", f"{name}: {path.stat().st_size} bytes")
        data = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        raise BadSample("unreadable-file", f"{name}: {getattr(error, 'strerror', None) or error}") from None
    note(printable(name), data)
    return data
