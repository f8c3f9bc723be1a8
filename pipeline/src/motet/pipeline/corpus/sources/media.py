"""Media files that rows name: inside the corpus folder, of a bearable size, told to `note`."""

from __future__ import annotations

import os
import posixpath
from stat import S_ISREG
from typing import TYPE_CHECKING

from motet.pipeline.corpus import files, local, tree
from motet.pipeline.corpus.sources.sample import MAX_FILE, Digest, Note
from motet.tokenizers.contract import BadSample

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition


def inside(name: str) -> bool:
    """Whether a name, as it is written, leads to inside the folder it starts from; links are looked at when it is read."""
    return (
        bool(name) and "://" not in name and not posixpath.isabs(name) and posixpath.normpath(f"/_/{name}")[:3] == "/_/"
    )


def below(name: str, root: str) -> str:
    """A path as it is below the root: metadata often have whole ones."""
    return name[len(root) + 1 :] if name.startswith(f"{root}/") else name


class Media:
    """The media files of one partition."""

    def __init__(self, partition: Partition, note: Note):
        self._root, self._note = partition.root, note
        self._sizes = {name: size for name, size, _ in partition.versions}
        self._remote = files.is_remote(self._root)
        self._allowed = () if self._remote else tree.bounds(self._root, partition.entry.root)

    def read(self, name: str) -> bytes:
        """A file's bytes; BadSample if it is missing, outside the root (links followed), too large or no file."""
        name = below(name, self._root)
        data = self._fetched(name) if self._remote else self._opened(name)
        digest = Digest()
        digest.update(data)
        self._note(files.printable(name), digest.size, digest.hash)
        return data

    def _fetched(self, name: str) -> bytes:
        if not inside(name):
            raise BadSample("outside-corpus", f"{name} leads out of the corpus folder")
        path = files.join(self._root, posixpath.normpath(name))
        size = self._sizes.get(files.printable(name))
        if size is None:  # not known when the job was planned
            info = files.stat(path)
            size = info.size if info else -1
        if size < 0:
            raise BadSample("missing-file", name)
        if size > MAX_FILE:
            raise BadSample("file-too-large", f"{name}: {size} bytes")
        try:
            return files.read(path, 0, size)
        except FileNotFoundError:
            raise BadSample("missing-file", name) from None

    def _opened(self, name: str) -> bytes:
        try:
            path = os.path.realpath(os.path.join(self._root, name))
            if not (inside(name) or name == ".") or not tree.within(path, self._allowed):
                raise BadSample("outside-corpus", f"{name} leads out of the corpus folder")
            local.stat(os.path.join(self._root, name))  # which tells a dead link from nothing
            status = os.stat(path)
            if not S_ISREG(status.st_mode):
                raise BadSample("missing-file", f"{name} is no file")
            if status.st_size > MAX_FILE:
                raise BadSample("file-too-large", f"{name}: {status.st_size} bytes")
            return files.read(path)
        except local.NoFile as error:
            raise BadSample("missing-file", f"{name} {error.strerror}") from None
        except (FileNotFoundError, NotADirectoryError):
            raise BadSample("missing-file", name) from None
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in local.PASSING:
                raise local.unanswered(os.path.join(self._root, name), error) from None
            raise BadSample("unreadable-file", f"{name}: {getattr(error, 'strerror', None) or error}") from None
