"""Files that are there whole or not at all, and that a power cut does not undo.

data --`write`: a partial file, sync--> `rename` over the old one, sync of the folder --> the new file
"""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: str | bytes, partial: Path | None = None) -> None:
    """Write or replace a file: whoever reads it finds the old one or the new one, whenever this is killed.

    `partial` is where it is until then, on the same file system; by default beside it.
    """
    partial = partial or path.with_name(path.name + ".partial")
    fill(partial, data)
    rename(partial, path)


def fill(path: Path, data: str | bytes) -> None:
    """Write a file that nobody reads yet, and bring its bytes to the disk."""
    with open(path, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())


def rename(partial: Path, final: Path) -> None:
    """Give a file or a folder, whose bytes are on the disk, its name."""
    os.replace(partial, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """To the disk: a file's bytes, or a folder's names, such as those that a rename made."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
