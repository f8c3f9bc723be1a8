"""Whether a place can be written, asked before the hours of work that are to be written there.

path --`folder` | `file`--> nothing, or a UserError that names the option and the cure; nothing is left behind
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from motet.core.errors import UserError


def folder(path: Path, option: str = "--out") -> None:
    """UserError if files cannot be written into this folder, which need not be there yet."""
    if path.is_file():
        raise UserError(f"{option} {path}: is a file; choose a folder")
    _writable(path, f"{option} {path}")


def file(path: Path, option: str = "--out") -> None:
    """UserError if this file cannot be written, or replaced."""
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file, as {path / 'a'}")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written; choose another")
    _writable(path.parent, f"{option} {path}")


def _writable(path: Path, where: str) -> None:
    path = path.absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise UserError(f"{where}: cannot be written: {there} is no folder; choose another")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"{where}: cannot be written: {error.strerror or error}; choose another") from None
