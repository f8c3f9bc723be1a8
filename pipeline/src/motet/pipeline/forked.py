"""The server that processes are forked from, there again after a cleaner emptied the folder that its socket lies in.

    multiprocessing --> TMPDIR/pymp-*/listener-*, made once --(removed: old files of /tmp are)--> `ensure` --> another server

A job of days outlives what systemd-tmpfiles leaves alone in /tmp; only the next process that is started would notice.
"""

from __future__ import annotations

import os
from contextlib import suppress
from multiprocessing import forkserver, util
from threading import Lock
from typing import Any

_one = Lock()
server: Any = forkserver._forkserver  # the module tells nobody where it listens


def ensure() -> None:
    """Before a process is started: the folder is there, and in it the socket of a server, if one was started."""
    with _one:
        _ensure()


def _ensure() -> None:
    folder, address = util.get_temp_dir(), server._forkserver_address
    lost = address is not None and not util.is_abstract_socket_namespace(address) and not os.path.exists(address)
    if not os.path.isdir(folder):
        os.makedirs(folder, 0o700, exist_ok=True)
    if lost:
        with suppress(FileNotFoundError):  # of the socket, which it removes last
            server._stop()
        server._forkserver_address = None
    forkserver.ensure_running()
