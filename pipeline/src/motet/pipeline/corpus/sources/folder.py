"""A folder of media: the ImageFolder / AudioFolder convention of `datasets`, in splits or not; or a metadata file alone.

    train/metadata.jsonl, .csv, .parquet --rows, with their media's versions--> captions, then media
    media below no such file --------------sorted by path, those of another kind told--> a document each

Names in a row are relative to its metadata file's folder. A file that lies beside or below a metadata file and that no row
names is left out.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from motet.core.errors import UserError
from motet.pipeline.corpus import files, tree
from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.sources import jsonl, metadata, parquet
from motet.pipeline.corpus.sources.media import Media
from motet.pipeline.corpus.sources.sample import Cut, Note, RawSample, Version, language_of, reject
from motet.pipeline.corpus.sources.text import LINES, WHOLE, runs
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.dataset.rejects import Reject
from motet.tokenizers.contract import BadSample

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""In one folder the first of them is read."""
USES = ("modality", "columns", "language", "root")
INSTEAD = {
    "column": "name the fields of the metadata as `columns`, for example {{{entry.column}: text, file_name: image}}"
}
OTHER = (
    *WHOLE,
    *LINES,
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
    ".xml",
    ".html",
    ".py",
    ".parquet",
    ".arrow",
    ".tar",
    ".zip",
    ".gz",
)
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".m4a", ".aac")
FOREIGN = {"image": OTHER + SOUNDS, "speech": OTHER + PICTURES}
"""Endings of files that cannot be of a modality; of others, and of modalities that are not known here, every file is tried."""


def needed(entry: Entry, where: str) -> list[str]:
    """See sources. Text is needed if the first row has a caption."""
    if entry.columns:
        return sorted(set(entry.columns.values()))
    if entry.modality is None:
        raise UserError(f"{where}: modality: a folder needs one, for example image")
    paths = [entry.path] if _is_rows(entry.path) else [files.join(entry.path, name) for name in METADATA]
    for path in paths:
        info = files.stat(path)
        if info is not None:
            row = _first(path, info)
            caption = metadata.Meaning(entry).caption(row)
            return [entry.modality, *(["text"] if caption and row[caption] else [])]
    return [entry.modality]


def modalities(entry: Entry) -> list[str]:
    """See sources."""
    return sorted(set(entry.columns.values())) if entry.columns else ["text", str(entry.modality)]


def cut(entry: Entry, config: Cutting, where: str, rest: Rest) -> Iterator[Cut]:
    """See sources."""
    root = entry.path
    if not files.is_folder(root):
        path = root if _is_rows(root) else files.join(root, METADATA[0])  # a web address is never a folder
        if (info := files.stat(path)) is None:
            raise UserError(
                f"{where}: path: {root} is a file or nothing; format 'folder' needs a folder or its metadata file"
            )
        root = root if path != root else entry.root or root.rpartition("/")[0]
        name = path[len(root) + 1 :] if path.startswith(f"{root}/") else path.rpartition("/")[2]
        one = _Rows(entry, config, root, where, None)
        yield from one.cut(path, (files.printable(name), info.size, info.version), "")
        one.refuse_unknown()
        return
    infos = tree.walk(root, rest, entry.root)
    rows: dict[str, str] = {}
    for name in sorted((name for name in infos if name.rpartition("/")[2].lower() in METADATA), key=_preference):
        folder = name.rpartition("/")[0]
        if folder in rows:
            why = f"{rows[folder]} is read"
            rest.add(
                "file",
                "metadata beside other metadata",
                files.printable(name),
                why,
                "keep one of them",
                1,
                infos[name].size,
            )
        rows.setdefault(folder, name)
    found = _Rows(entry, config, root, where, infos)
    for folder, name in sorted(rows.items()):
        own = (files.printable(name), infos[name].size, infos[name].version)
        yield from found.cut(files.join(root, name), own, folder)
    found.refuse_unknown()
    if entry.columns and not rows:
        raise UserError(f"{where}: columns: {root} holds no {' or '.join(METADATA)}, whose columns they could be")
    loose = []
    foreign = FOREIGN.get(entry.modality or "", ())
    for name, info in infos.items():
        if name in found.named or name.rpartition("/")[2].lower() in METADATA:
            continue
        if any(_below(name, folder) for folder in rows):
            why, cure = "no row of the metadata names it", "add a row, or move them out of the folder of the metadata"
            kind = f"{files.ending_of(name)} that no row names"
        elif name.lower().endswith(foreign) or not entry.modality:
            why, cure = f"they are no {entry.modality}", "name them in an entry of their own"
            kind = files.ending_of(name)
        else:
            loose.append((name, (files.printable(name), info.size, info.version)))
            continue
        rest.add("file", kind, files.printable(name), why, cure, 1, info.size)
    yield from runs(root, loose, config.partition_samples, None)


class _Rows:
    """Cuts metadata files; remembers which files and which fields their rows name."""

    def __init__(self, entry: Entry, config: Cutting, root: str, where: str, infos: dict[str, files.Info] | None):
        self._entry, self._config, self._root, self._where, self._infos = entry, config, root, where, infos
        self._listed = files.listing(root)
        self.named: set[str] = set()
        self._keys: set[str] = set()

    def cut(self, path: str, own: Version, folder: str) -> Iterator[Cut]:
        """One file, whose names are below `folder`."""
        meaning = metadata.Meaning(self._entry, folder, self._root)

        def names(row: dict[str, Any]) -> list[str]:
            self._keys.update(row)
            found = meaning.named(row)
            self.named.update(map(posixpath.normpath, found))
            return found

        if path.lower().endswith(".parquet"):
            yield from parquet.named_rows(path, own, self._root, self._config, names, self._look, self._where)
        else:
            form = metadata.form(path, own[1])
            yield from jsonl.rows(path, own, self._root, self._config, names, form, self._look)

    def refuse_unknown(self) -> None:
        """UserError for a column that no row has: its captions would be missing, silently."""
        for column in self._entry.columns or ():
            if self._keys and column not in self._keys:
                there = ", ".join(sorted(self._keys)[:20])
                raise UserError(f"{self._where}: columns: no row of the metadata has '{column}'; there are {there}")

    def _look(self, name: str) -> files.Info | None:
        name = posixpath.normpath(name)
        known = self._infos.get(name) if self._infos is not None else None
        return known or self._listed(name)


def read(partition: Partition, note: Note, rest: Rest) -> Iterator[RawSample | Reject]:
    """See sources."""
    entry, media = partition.entry, Media(partition, note)
    if partition.span is None:
        for name in partition.files:
            try:
                yield RawSample(files.printable(name), ((str(entry.modality), media.read(name)),))
            except BadSample as bad:
                yield reject(files.printable(name), bad)
        return
    path, begin, end = partition.span
    (own, size, _), root = partition.versions[0], partition.root
    folder = "" if path == entry.path else path[len(root) + 1 :].rpartition("/")[0]
    meaning = metadata.Meaning(entry, folder, root)
    why, cure = "it is no part of a document", "name it under `columns`, as in {{{}: text, file_name: image}}"
    fields = metadata.Fields(rest, meaning, why, cure)

    def parts(row: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
        return meaning.parts(row, media.read)

    if not path.lower().endswith(".parquet"):
        yield from jsonl.read(partition, note, parts, fields, metadata.form(path, size))
        return
    for number, row in parquet.rows_between(path, size, begin, end, None):
        try:
            if isinstance(row, BadSample):
                raise row
            fields.count(row, own, number)
            yield RawSample(f"{own}#{number}", parts(row), language_of(row, entry.language))
        except BadSample as bad:
            yield reject(f"{own}#{number}", bad)
    fields.close()


def _is_rows(path: str) -> bool:
    return path.lower().endswith(metadata.ENDINGS)


def _preference(name: str) -> tuple[str, int]:
    folder, _, last = name.rpartition("/")
    return folder, METADATA.index(last.lower())


def _below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _first(path: str, info: files.Info) -> dict[str, Any]:
    """The first row of a metadata file; empty if there is none, or one that will be rejected."""
    if path.lower().endswith(".parquet"):
        first = next(parquet.rows_between(path, info.size, 0, 1, None), (0, None))[1]
        return first if isinstance(first, dict) else {}
    try:
        form = metadata.form(path, info.size)
        record = next(form.records(files.blocks(path, form.begin, info.size), form.begin), (0, None))[1]
        return form.parse(record) if record else {}
    except (BadSample, files.Changed):
        return {}
