"""What lies at a local path: a file, nothing, or something that is no file; and what of it may pass.

    path --`stat`--> size and version | None: nothing is there | NoFile: a pipe, a dead link, a loop of links
                                      | Unanswered: the disk or the mount does not say

Opening a pipe waits for a writer for ever, so nothing is opened that was not looked at. "Not there" is what the file system
says, never what it does when it fails: a sample would be lost for good to a mount that was away for a minute.
"""

from __future__ import annotations

import errno
import os
import stat as kinds

from motet.pipeline.remote import Info

NOWHERE = (errno.ENOENT, errno.ENOTDIR)
PASSING = tuple(
    getattr(errno, name)
    for name in (
        "EIO",
        "ESTALE",
        "ETIMEDOUT",
        "ENOTCONN",
        "EHOSTDOWN",
        "EREMOTEIO",
        "ENOMEM",
        "EMFILE",
        "ENFILE",
        "ENODEV",
    )
    if hasattr(errno, name)
)
"""Errors of a disk, a mount or the machine, not of the file: the same command may read it later."""
NAMES = (
    (kinds.S_ISFIFO, "a pipe"),
    (kinds.S_ISSOCK, "a socket"),
    (kinds.S_ISBLK, "a device"),
    (kinds.S_ISCHR, "a device"),
)


class NoFile(OSError):
    """Something is there, and it is neither a file nor a folder."""


class Unanswered(Exception):
    """The disk, or what is mounted there, does not say; not an OSError, because nobody may take it for a bad sample."""


def stat(path: str) -> Info | None:
    """Size and version of a file or folder; None if nothing is there. NoFile, Unanswered, or an OSError (no permission)."""
    try:
        status = os.stat(path)
    except ValueError:
        return None  # no path at all
    except OSError as error:
        if error.errno in PASSING:
            raise unanswered(path, error) from None
        if error.errno == errno.ELOOP:
            raise NoFile(error.errno, "is a link that leads round in a loop", path) from None
        if error.errno not in (*NOWHERE, errno.ENAMETOOLONG):
            raise
        if os.path.islink(path):
            raise NoFile(error.errno, f"is a link to {os.readlink(path)!r}, where nothing is", path) from None
        return None
    if not kinds.S_ISREG(status.st_mode) and not kinds.S_ISDIR(status.st_mode):
        name = next((name for is_one, name in NAMES if is_one(status.st_mode)), "no file")
        raise NoFile(errno.EINVAL, f"is {name}, not a file", path)
    return Info(status.st_size, str(status.st_mtime_ns))


def unanswered(path: str, error: OSError) -> Unanswered:
    """The exception for one that may pass."""
    return Unanswered(
        f"{path}: cannot be read now: {error.strerror}; run the same command again when the disk, or what is mounted there, "
        "answers (if it never will, take the file out of the corpus)"
    )
