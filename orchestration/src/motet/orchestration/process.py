"""A verb as a process of its own, which is told of this process's Ctrl-C once and does not outlive it.

    words --spawn--> `motet` words, in a process group of its own --> exit code

A group of its own, because a terminal sends Ctrl-C to every process of a group and we pass it on: told twice, training
stops at once instead of saving. Not outliving us, because a step left alone by a killed workflow would still hold its
folder when the same workflow is started again.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import typer

from motet.core.errors import UserError


def check_words(words: Sequence[str], root: Any) -> None:
    """UserError if `root`, the command `motet`, does not take these words: known before a workflow begins, not hours later."""
    command, at, rest = root, "motet", list(words)
    try:
        while rest and not rest[0].startswith("-") and hasattr(command, "resolve_command"):
            _, command, left = command.resolve_command(command.context_class(command, info_name=at), rest)
            at, rest = f"{at} {rest[0]}", left
        if "--help" not in rest and not hasattr(command, "resolve_command"):
            command.make_context(at, rest)
    except typer.TyperException as error:
        raise UserError(f"{error.format_message()} (`{at} --help` shows what there is)") from None


def run_verb(words: Sequence[str]) -> int:
    """Exit code of `motet` with these words; negative if a signal ended it. After a Ctrl-C it is waited for until it has
    saved what it saves, and then KeyboardInterrupt is raised.
    """
    process = multiprocessing.get_context("spawn").Process(target=_verb, args=(list(words),))
    process.start()
    assert process.pid is not None
    interrupted = False
    while process.exitcode is None:
        try:
            process.join()
        except KeyboardInterrupt:
            interrupted = True
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGINT)
    if interrupted:
        raise KeyboardInterrupt
    return process.exitcode


def _verb(words: list[str]) -> None:
    os.setpgid(0, 0)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    sys.argv = ["motet", *words]
    runpy.run_module("motet.orchestration", run_name="__main__")


def _leave_with_parent() -> None:
    """To a verb this is a kill, after which the same command goes on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
