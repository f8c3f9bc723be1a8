"""What a power cut must not undo: bytes and names that are on the disk, not in its cache."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """To the disk: a file's bytes, or a folder's names, such as those that a rename made."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
