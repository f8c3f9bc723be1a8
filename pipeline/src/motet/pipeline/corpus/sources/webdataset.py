"""WebDataset: tar files in which the members of one key (their path up to the first dot of its last part) are a sample.

    shards/{000..127}.tar --a tar is a partition--> members as they come --> key "0001": 0001.txt, 0001.jpg --> text, then media

`columns` says which extensions are what, in reading order; by default .txt is text, pictures and sound are theirs, and text
comes first. An extension of several parts counts as its last, if the others only say what it is: 0001.image.png. Of a .json,
the entry's `column` is the text, if there is no .txt, and `language` its language. Other members and fields are left out.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from motet.core.errors import UserError
from motet.pipeline.corpus import files
from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.patterns import listed
from motet.pipeline.corpus.sources.jsonl import Fields, row
from motet.pipeline.corpus.sources.sample import (
    MAX_FILE,
    Cut,
    Digest,
    Note,
    RawSample,
    empty,
    language_of,
    reject,
    string,
)
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.dataset.rejects import LOST_REST, Reject
from motet.tokenizers.contract import BadSample

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition

PICTURES = (
    "jpg",
    "jpeg",
    "jfif",
    "png",
    "webp",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "avif",
    "jp2",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
)
SOUNDS = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "m4a", "aac", "caf", "au", "w64", "rf64", "sph")
COLUMNS = {
    "txt": "text",
    "json": "text",
    **dict.fromkeys(PICTURES, "image"),
    **dict.fromkeys(SOUNDS, "speech"),
}
SAYING = {"image", "img", "picture", "photo", "audio", "sound", "speech", "text", "caption"}
"""Parts of an extension that say what the member is, and not which one of several."""
USES = ("column", "columns", "language")
INSTEAD = {"modality": "`columns` says the modality of each extension", "root": "members lie in the tar"}


COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zstd", ".lz4")
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
"""How files begin that are called .tar and are none."""


def needed(entry: Entry, where: str) -> list[str]:
    """See sources."""
    return sorted(set((entry.columns or {}).values()))


def modalities(entry: Entry) -> list[str]:
    """See sources."""
    return sorted(set((entry.columns or COLUMNS).values()))


def cut(entry: Entry, config: Cutting, where: str, rest: Rest) -> Iterator[Cut]:
    """See sources."""
    if files.is_folder(entry.path):
        raise UserError(f"{where}: path: {entry.path} is a folder; name its files: {entry.path}/*.tar")
    root, infos = listed(entry.path)
    for name, info in infos.items():
        if name.lower().endswith(COMPRESSED):
            raise UserError(
                f"{where}: path: {files.join(root, name)} is compressed, and cannot be read from the middle; unpack it to .tar, as "
                "by gunzip, bunzip2, unxz or unzstd (what is in it is compressed already, or becomes small as tokens)"
            )
        own = (files.printable(name), info.size, info.version)
        yield Cut(root=root, span=(files.join(root, name), 0, info.size), versions=(own,), size=info.size)


def read(partition: Partition, note: Note, rest: Rest) -> Iterator[RawSample | Reject]:
    """See sources. What stands before the place where a tar breaks is read; the rest is one reject."""
    assert partition.span is not None
    name, digest = partition.versions[0][0], Digest()
    key, members, seen = "", dict[str, bytes | BadSample](), set[str]()
    entry = partition.entry
    why, cure = "it is no part of a document", "name it as `column`, as `language`, or remove the .txt beside it"
    fields = Fields(rest, {entry.language}, why, cure, " of .json")
    with files.opened(partition.span[0], partition.versions[0][1], files.REMOTE_BLOCK) as file:
        try:
            for member_key, extension, data in _members(file, entry, name, rest):
                if member_key != key:
                    if members:
                        yield _sample(f"{name}/{key}", members, entry, fields)
                    key, members = member_key, {}
                    if key in seen:
                        data = BadSample("repeated-key", f"{key} stands in this tar before, with other keys between")
                    seen.add(key)
                elif extension in members:
                    data = BadSample("repeated-key", f"{key}.{extension} stands there twice")
                members[extension] = digest.update(data) if isinstance(data, bytes) else data
            broken = None
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            file.seek(0)
            head = file.read(8)
            other = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")
            told = f"a {other} file, no tar; unpack it first" if other else error or type(error).__name__
            broken = BadSample(LOST_REST, f"broken-tar: {told}; nobody knows how much follows")
    if members:
        yield _sample(f"{name}/{key}", members, entry, fields)
    fields.close()
    if broken is not None:
        yield reject(f"{name}@end", broken)
    note(name, digest.size, digest.hash)


def _sample(position: str, members: dict[str, bytes | BadSample], entry: Entry, fields: Fields) -> RawSample | Reject:
    """One sample of the members of a key, by their extensions."""
    columns = entry.columns or COLUMNS
    order = {extension: i for i, extension in enumerate(columns)} if entry.columns else {}
    parts, language = [], ""
    try:
        for extension, data in sorted(members.items(), key=lambda m: order.get(m[0], columns.get(m[0]) != "text")):
            if isinstance(data, BadSample):
                raise data
            if extension == "json":
                told = row(data)
                language = language_of(told, entry.language)
                # metadata beside a .txt often have the caption once more
                read = extension in columns and entry.column in told and (entry.columns or "txt" not in members)
                fields.count({name: None for name in told if not (read and name == entry.column)}, f"{position}.json")
                if not read or empty(told[entry.column]):
                    continue
                data = string(told[entry.column], entry.column)
            if extension in columns and not (columns[extension] == "text" and empty(data)):
                parts.append((columns[extension], data))
        if not parts:
            raise BadSample(
                "no-parts", f"nothing in {', '.join(sorted(members))} that is known; `columns` names others"
            )
    except BadSample as bad:
        return reject(position, bad, b"".join(data for data in members.values() if isinstance(data, bytes)))
    return RawSample(position, tuple(parts), language)


def _members(file: BinaryIO, entry: Entry, name: str, rest: Rest) -> Iterator[tuple[str, str, bytes | BadSample]]:
    """(key, extension in lower case, content) of every file in a tar, in order; an exception where it breaks.

    The content of what the entry does not want stays unread, is given as empty, and told to `rest`.
    """
    wanted = {*(entry.columns or COLUMNS), "json"}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it remembers all of them
            folder, slash, base = files.printable(member.name).rpartition("/")
            stem, dot, extension = base.partition(".")
            if member.isdir():
                continue
            if not dot or not stem:  # as the format itself has it
                kind = "hidden members" if dot else "members without an extension"
                cure = "write them into the tar as <key>.<extension>"
                rest.add("member", kind, f"{name}/{base}", "no key and extension", cure, size=max(member.size, 0))
                continue
            extension = extension.lower()
            if extension not in wanted and not entry.columns and set(extension.split(".")[:-1]) <= SAYING:
                last = extension.rpartition(".")[2]
                extension = last if last in COLUMNS and last != "json" else extension
            data: bytes | BadSample = b""
            if extension not in wanted:
                kind, cure = f"members .{extension[:64]}", f"name it under `columns`, as in {{{extension[:64]}: image}}"
                why = "`columns` does not name it" if entry.columns else "it is none of the usual extensions"
                rest.add("member", kind, f"{name}/{stem}.{extension}", why, cure, size=max(member.size, 0))
            elif member.issparse() or not member.isreg():
                data = BadSample("not-a-file", f"{member.name} is a link, a device or sparse")
            elif not 0 <= member.size <= MAX_FILE:
                data = BadSample("file-too-large", f"{member.name}: {member.size} bytes")
            else:
                content = tar.extractfile(member)
                assert content is not None
                data = content.read()
            yield f"{folder}{slash}{stem}", extension, data
        # tarfile takes whatever is no header for the end
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError(f"neither a header nor the end at byte {tar.offset}")
