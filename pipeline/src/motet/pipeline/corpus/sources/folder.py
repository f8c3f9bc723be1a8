"""A folder of media: the ImageFolder / AudioFolder convention of `datasets`, in splits or not; or a metadata file alone.

    train/metadata.jsonl, .csv, .parquet --rows, with their media's versions--> captions, then media
    lines of transcripts, captions beside media, as `layout` says (`transcripts`) -----> the same
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
from motet.pipeline.corpus.sources import jsonl, metadata, parquet, transcripts
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
USES = ("modality", "columns", "layout", "language", "root")
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
    if entry.layout:
        return [entry.modality, "text"]
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
    if entry.layout and entry.language:
        raise UserError(f"{where}: language: layout '{entry.layout}' says no language; remove it")
    if entry.layout and not files.is_folder(root):
        raise UserError(
            f"{where}: layout: '{entry.layout}' is that of a folder, and {root} is none; name the folder as path"
        )
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
    rows = _rows_of(entry, infos, rest)
    found = _Rows(entry, config, root, where, infos)
    for name in rows:
        own = (files.printable(name), infos[name].size, infos[name].version)
        yield from found.cut(files.join(root, name), own, name.rpartition("/")[0])
    found.refuse_unknown()
    if not rows and entry.layout in transcripts.NAMES:
        raise UserError(
            f"{where}: layout: {root} holds no {transcripts.NAMES[entry.layout]}, as layout '{entry.layout}' has it"
        )
    if entry.columns and not rows and entry.layout != "beside":
        raise UserError(f"{where}: columns: {root} holds no {' or '.join(METADATA)}, whose columns they could be")
    captions = _captions(entry, infos, where) if entry.layout == "beside" else None
    loose = []
    foreign = FOREIGN.get(_modality(entry), ())
    told, folders = set(rows), {name.rpartition("/")[0] for name in rows}
    for name, info in infos.items():
        if name in found.named or name in told or (not entry.layout and _is_metadata(name)):
            continue
        if captions is not None and name.lower().endswith(transcripts.CAPTION):
            continue  # told below, once it is known which have media
        if name.lower().endswith(foreign) and (entry.layout or not any(_below(name, folder) for folder in folders)):
            kind, why, cure = _stranger(name, entry, infos)
        elif entry.layout in transcripts.NAMES or any(_below(name, folder) for folder in folders):
            why, cure = "no row of the metadata names it", "add a row, or move them out of the folder of the metadata"
            kind = f"{files.ending_of(name)} that no row names"
        elif not _modality(entry):
            kind, why, cure = _stranger(name, entry, infos)
        else:
            loose.append((name, (files.printable(name), info.size, info.version)))
            continue
        rest.add("file", kind, files.printable(name), why, cure, 1, info.size)
    if captions is None:
        yield from runs(root, loose, config.partition_samples, None)
        return
    yield from captions.cut(root, loose, config.partition_samples)
    for name in (name for name in infos if name.lower().endswith(transcripts.CAPTION) and name not in captions.used):
        kind, why = f"{files.ending_of(name)} beside no media", "nothing else has their name up to the ending"
        rest.add("file", kind, files.printable(name), why, "rename them as their media", 1, infos[name].size)


def _rows_of(entry: Entry, infos: dict[str, files.Info], rest: Rest) -> list[str]:
    """The files that hold rows, or lines of transcripts; of several metadata files in one folder the first is one."""
    if entry.layout:
        return [name for name in infos if transcripts.holds(entry.layout, name)]
    rows: dict[str, str] = {}
    for name in sorted(filter(_is_metadata, infos), key=_preference):
        folder = name.rpartition("/")[0]
        if folder in rows:
            kind, why, cure = "metadata beside other metadata", f"{rows[folder]} is read", "keep one of them"
            rest.add("file", kind, files.printable(name), why, cure, 1, infos[name].size)
        rows.setdefault(folder, name)
    return [name for _, name in sorted(rows.items())]


def _captions(entry: Entry, infos: dict[str, files.Info], where: str) -> transcripts.Captions:
    if wrong := sorted(entry.columns.keys() ^ {"text", "file_name"}) if entry.columns else []:
        raise UserError(f"{where}: columns: {wrong[0]}: layout 'beside' has text and file_name, and both are read")
    foreign = FOREIGN.get(_modality(entry), ())
    known = {
        name: info
        for name, info in infos.items()
        if name.lower().endswith(transcripts.CAPTION) or not name.lower().endswith(foreign)
    }
    captions = transcripts.Captions(known)
    if not captions:
        raise UserError(
            f"{where}: layout: no .txt of {entry.path} has the name of a media file; leave layout out, or rename them"
        )
    return captions


def _stranger(name: str, entry: Entry, infos: dict[str, files.Info]) -> tuple[str, str, str]:
    """(kind, why, cure) of a file that by its ending is no media of the entry."""
    kind, why, cure = files.ending_of(name), f"they are no {_modality(entry)}", "name them in an entry of their own"
    if not entry.layout and transcripts.holds("librispeech", name):
        return "transcripts *.trans.txt", why, "read them as captions with layout: librispeech"
    if not entry.layout and name.lower().endswith(transcripts.CAPTION):
        stem, foreign = name[: -len(transcripts.CAPTION)], FOREIGN.get(_modality(entry), ())
        beside = (stem + ending for ending in (*PICTURES, *SOUNDS) if not ending.endswith(foreign))
        if any(other in infos for other in beside):
            return f"{kind} beside media of their name", why, "read them as captions with layout: beside"
    return kind, why, cure


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
            layout = self._entry.layout
            there = transcripts.looked_at(self._look)
            form = transcripts.form(layout, folder, there) if layout else metadata.form(path, own[1])
            yield from jsonl.rows(path, own, self._root, self._config, names, form, self._look)

    def refuse_unknown(self) -> None:
        """UserError if no row has what says the files, or a column of the entry: it would be missing everywhere, silently."""
        there = ", ".join(sorted(self._keys)[:20])
        for column in self._entry.columns or ():
            if self._keys and column not in self._keys:
                raise UserError(
                    f"{self._where}: columns: no row of the metadata has '{column}'; there are {there:.400}"
                )
        if self._keys and not self._entry.columns and not any(map(metadata.is_media, self._keys)):
            cure = "say which fields are what, as columns: {caption: text, path: image}"
            raise UserError(
                f"{self._where}: path: no row of the metadata has 'file_name'; there are {there:.400}; {cure}"
            )

    def _look(self, name: str) -> files.Info | None:
        name = posixpath.normpath(name)
        known = self._infos.get(name) if self._infos is not None else None
        return known or self._listed(name)


def read(partition: Partition, note: Note, rest: Rest) -> Iterator[RawSample | Reject]:
    """See sources."""
    entry, media = partition.entry, Media(partition, note)
    if partition.span is None:
        meaning, captions = metadata.Meaning(entry), transcripts.captions_of(partition.versions)
        for name in partition.files:
            try:
                if entry.layout:
                    parts = meaning.parts(transcripts.row_of(name, captions, media), media.read)
                else:
                    parts = ((str(entry.modality), media.read(name)),)
                yield RawSample(files.printable(name), parts)
            except BadSample as bad:
                yield reject(files.printable(name), bad)
        return
    path, begin, end = partition.span
    (own, size, _), root = partition.versions[0], partition.root
    folder = "" if path == entry.path else path[len(root) + 1 :].rpartition("/")[0]
    meaning = metadata.Meaning(entry, folder, root)
    why, cure = "it is no part of a document", "name it under `columns`, as in {{{}: text, file_name: image}}"
    fields = metadata.Fields(rest, meaning, why, cure)

    def sample(row: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
        return meaning.parts(row, media.read)

    if not path.lower().endswith(".parquet"):
        there = transcripts.planned(partition.versions)
        form = transcripts.form(entry.layout, folder, there) if entry.layout else metadata.form(path, size)
        yield from jsonl.read(partition, note, sample, fields, form)
        return
    for number, row in parquet.rows_between(path, size, begin, end, None):
        try:
            if isinstance(row, BadSample):
                raise row
            fields.count(row, own, number)
            yield RawSample(f"{own}#{number}", sample(row), language_of(row, entry.language))
        except BadSample as bad:
            yield reject(f"{own}#{number}", bad)
    fields.close()


def _modality(entry: Entry) -> str:
    """That of media; empty if rows say it."""
    return entry.modality or ((entry.columns or {}).get("file_name", "") if entry.layout else "")


def _is_metadata(name: str) -> bool:
    return name.rpartition("/")[2].lower() in METADATA


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
