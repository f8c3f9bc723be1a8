"""Documents of parts in reading order: rows {"id"?, "parts": [{"text": ...} | {"image": path} | {<modality>: path}, ...]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.sources import jsonl
from motet.pipeline.corpus.sources.media import Media
from motet.pipeline.corpus.sources.sample import Cut, Note, RawSample, empty, string
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.dataset.rejects import Reject
from motet.tokenizers.contract import BadSample

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition


USES = ("language", "root")
INSTEAD = {
    "modality": "each part of a row says its own",
    "column": "the text of a row stands in its parts",
    "columns": "each part of a row says its own modality",
}


def needed(entry: Entry, where: str) -> list[str]:
    """See sources."""
    return []


def modalities(entry: Entry) -> None:
    """See sources."""
    return None


def cut(entry: Entry, config: Cutting, where: str, rest: Rest) -> Iterator[Cut]:
    """See sources."""
    root, found = jsonl.found(entry, where)
    for path, own in found:
        yield from jsonl.rows(path, own, root, config, _named)


def _named(row: dict[str, Any]) -> list[Any]:
    return [value for part in row["parts"] for modality, value in part.items() if modality != "text"]


def read(partition: Partition, note: Note, rest: Rest) -> Iterator[RawSample | Reject]:
    """See sources."""
    media = Media(partition, note)

    def parts(row: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
        given = row.get("parts")
        if not isinstance(given, list) or not given:
            raise BadSample("no-parts", "parts is missing, empty or no list")
        found = []
        for i, part in enumerate(given):
            if not isinstance(part, dict) or len(part) != 1:
                raise BadSample("bad-part", f"parts.{i} is not one modality with its value")
            ((modality, value),) = part.items()
            if modality == "text" and empty(value):
                continue
            text = string(value, f"parts.{i}.{modality}")
            found.append((modality, text if modality == "text" else media.read(value)))
        if not found:
            raise BadSample("no-parts", "every part is an empty text")
        return tuple(found)

    why, cure = "a document is made of `parts`", "write it into `parts`, or name it as `language`"
    used = {"id", "parts", partition.entry.language}
    yield from jsonl.read(partition, note, parts, jsonl.Fields(rest, used, why, cure))
