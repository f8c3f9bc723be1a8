"""A folder of media of one modality: the ImageFolder / AudioFolder convention.

metadata.jsonl {"file_name", "text"?, ...} --rows, with their media's versions--> caption, then media
no metadata.jsonl --------------------------every file, sorted by its path------> media
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from motet.core.errors import UserError
from motet.pipeline.corpus import files
from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.sources import jsonl
from motet.pipeline.corpus.sources.media import Media
from motet.pipeline.corpus.sources.sample import Cut, Note, RawSample, reject, string
from motet.pipeline.corpus.sources.text import runs
from motet.pipeline.dataset.rejects import Reject
from motet.tokenizers.contract import BadSample

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition

METADATA = "metadata.jsonl"


def needed(entry: Entry, where: str) -> list[str]:
    """See sources. Text is needed if the first row has a caption."""
    if entry.modality is None:
        raise UserError(f"{where}: modality: a folder needs one, for example image")
    return [entry.modality, *(["text"] if jsonl.first_row(files.join(entry.path, METADATA)).get("text") else [])]


def modalities(entry: Entry) -> list[str]:
    """See sources."""
    return ["text", str(entry.modality)]


def cut(entry: Entry, config: Cutting, where: str) -> Iterator[Cut]:
    """See sources."""
    root, path = entry.path, files.join(entry.path, METADATA)
    info = files.stat(path)
    if info is not None:
        own = (METADATA, info.size, info.version)
        yield from jsonl.rows(path, own, root, config, lambda row: [row["file_name"]])
        return
    if not files.is_folder(root):
        raise UserError(f"{where}: path: {root} is a file or nothing; format 'folder' needs a folder")
    found = [(name, (files.printable(name), info.size, info.version)) for name, info in files.walk(root).items()]
    yield from runs(root, found, config.partition_samples, None)


def read(partition: Partition, note: Note) -> Iterator[RawSample | Reject]:
    """See sources."""
    media, modality = Media(partition, note), str(partition.entry.modality)
    if partition.span is None:
        for name in partition.files:
            try:
                yield RawSample(files.printable(name), ((modality, media.read(name)),))
            except BadSample as bad:
                yield reject(files.printable(name), bad)
        return

    def parts(row: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
        name, caption = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not name:
            raise BadSample("no-file-name", "file_name is missing or is no string")
        data = (modality, media.read(name))
        return (data,) if caption is None else (("text", string(caption, "text")), data)

    yield from jsonl.read(partition, note, parts)
