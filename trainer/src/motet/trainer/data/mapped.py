"""A shard of a folder, mapped, and whether the file was changed in its place since.

    path --`Mapped.of`--> bytes, as the file system has them --`changed`, before and after every read--> map and check it again

Pages of a file that was cut since it was mapped are not there any more: touching one ends the process (SIGBUS). So it is
asked for size and time before every read; and after it, because the rest of a page that was cut reads as zeros, and a file may be
written over. A cut within the milliseconds of a read, one of a file that is removed next, or a disk that fails then, still ends
the process: only a copy of everything would be safe from that, and copying each record batch for every document of it costs more
than all else.
"""

from __future__ import annotations

import os
from stat import S_ISREG
from typing import NamedTuple

import pyarrow as pa


class Mapped(NamedTuple):
    """`buffer` are the bytes of the file `path`, which had this `status` just before it was mapped."""

    path: str
    buffer: pa.Buffer
    status: os.stat_result

    @classmethod
    def of(cls, path: str) -> Mapped:
        """FileNotFoundError if it is missing, OSError if it cannot be read or is no file."""
        status = os.stat(path)
        if not S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise OSError("it is no file")
        return cls(path, pa.memory_map(path).read_buffer(), status)

    def changed(self) -> bool:
        """Whether it was. Another file of its name does no harm: what is mapped stays what it was."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        was = self.status
        if (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns):
            return False
        return (now.st_dev, now.st_ino) == (was.st_dev, was.st_ino)
