"""The formats that corpora come in, one a file: how a source is cut, and how a partition is read.

    Entry --`cut`--> cuts --(`partitions`)--> Partition --`read`--> RawSample(position, parts of (modality, bytes)) | Reject

Every line, row, key or file of a partition gives exactly one of the two, so that documents + rejects = samples. Nothing is
decoded here. An empty caption is no part; a sample of which nothing is left is a reject. What no rule takes is told to a `Rest`. What a sample says wrong is a reject; a store that does not answer is an exception, because the same command
will read it later.

    text         JSON lines with a text column, or whole .txt and .md files; each also compressed; files, folders, patterns
    folder       rows of metadata.jsonl, .csv or .parquet: caption, then media; or, without them, every media file
    interleaved  rows {"id"?, "parts": [{"text": ...} | {"image": path} | {<modality>: path}, ...]}
    parquet      columns of strings, bytes, {bytes, path}, lists of them, or parallel lists
    webdataset   tar files whose members of one key are one sample
    nemo         rows {"audio_filepath", "text", "offset"?, "duration"?}: transcript, then the recording or its segment
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motet.core.errors import UserError
from motet.pipeline.corpus import files
from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.patterns import fixed_part
from motet.pipeline.corpus.sources.sample import Cut, Note, RawSample
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.dataset.rejects import Reject
from motet.pipeline.remote import know

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition

__all__ = ["Cut", "Note", "RawSample", "Reject", "absolute", "cut", "modalities", "needed", "read", "searched"]


def cut(entry: Entry, config: Cutting, where: str, rest: Rest | None = None) -> list[Cut]:
    """The cuts of the source, in their fixed order; `where` begins the messages for people. Files, folders, links and columns
    that the source leaves out are added to `rest`.
    """
    return list(_format(entry).cut(entry, config, where, Rest() if rest is None else rest))


def read(partition: Partition, note: Note, rest: Rest | None = None) -> Iterator[RawSample | Reject]:
    """The samples of a partition in order; `note` is told of everything that was read, `rest` of members and fields that were not."""
    know(partition.secrets)
    return _format(partition.entry).read(partition, note, Rest() if rest is None else rest)


def needed(entry: Entry, where: str) -> list[str]:
    """Modalities that cannot be without a tokenizer: they are in the source for certain."""
    return _format(entry).needed(entry, where)


def modalities(entry: Entry) -> list[str] | None:
    """Modalities that the source may have; None if its rows say."""
    return _format(entry).modalities(entry)


def refuse_unused(entry: Entry, where: str) -> None:
    """UserError for a field that says something and that the format does not use: it would be without effect, silently."""
    module = _format(entry)
    for name, field in type(entry).model_fields.items():
        if name in ("name", "format", "path", *module.USES) or getattr(entry, name) == field.default:
            continue
        cure = getattr(module, "INSTEAD", {}).get(name, "remove it").format(entry=entry)
        raise UserError(f"{where}: {name}: format '{entry.format}' does not use it; {cure}")


def absolute(entry: Entry, base: Path) -> Entry:
    """The entry with paths that mean the same everywhere; ValueError or OSError if one cannot be a path."""
    root = entry.root and files.absolute(base, entry.root)
    return entry.model_copy(update={"path": files.absolute(base, entry.path), "root": root})


def searched(entry: Entry) -> Path | None:
    """The local folder that is searched, whole, for files of the source, if one is."""
    if files.is_remote(entry.path):
        return None
    if Path(entry.path).is_dir():
        return Path(entry.path)
    return Path(fixed_part(entry.path)) if "**" in entry.path else None


def _format(entry: Entry) -> Any:
    return import_module(f"motet.pipeline.corpus.sources.{entry.format}")
