"""The process that tokenizes: it notes what it is about to do, so that its owner knows what it died of.

    Assignment --> `Task.do` --> Done | Failed
                  |--> shared memory: at sample 17 ... at 128 samples ...

Notes are three numbers in memory that both see: a message for each would cost more than reading a small picture.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, MutableSequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from motet.pipeline.dataset.commits import Output
from motet.pipeline.job.task import Result, Task
from motet.pipeline.job.tokenize import BrokenTokenizer, Guard
from motet.tokenizers.contract import BadSample, TokenizerSpec
from motet.tokenizers.registry import absolute, build

KEPT_MEMORY = ((-3, 32 << 20), (-1, 256 << 20))
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes; see `keep_freed_memory`."""


@dataclass(frozen=True)
class Assignment:
    """A partition to do; `careful` and `skip` as in Guard."""

    task: Task
    careful: bool
    skip: Mapping[int, BadSample]


@dataclass(frozen=True)
class Done:
    """The partition is committed."""

    result: Result


@dataclass(frozen=True)
class Failed:
    """The partition cannot be done, and would not be the next time."""

    reason: str


@dataclass(frozen=True)
class Death:
    """The process is gone or hangs: at which sample, if that is known, and how."""

    sample: int | None
    reason: str
    detail: str


class Noted(Guard):
    """Notes it where the owner sees it: `[how many notes so far, the sample or -1, samples]`."""

    def __init__(self, assignment: Assignment, notes: MutableSequence[int]):
        self.careful, self.skip, self._notes = assignment.careful, assignment.skip, notes

    def at(self, sample: int | None, samples: int) -> None:
        """See Guard."""
        self._notes[:] = [self._notes[0] + 1, -1 if sample is None else sample, samples]


def describe(
    settings: dict[str, dict[str, Any]], base: Path, environment: dict[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, TokenizerSpec]]:
    """(complete settings with absolute paths, specs) of each modality's tokenizer; UserError if one cannot be built."""
    os.environ.update(environment)
    complete = {m: absolute(s, base, m) for m, s in settings.items()}
    return complete, {m: build(s, base, m).spec for m, s in sorted(complete.items())}


def serve(
    settings: dict[str, dict[str, Any]],
    output: Output,
    pipe: Connection,
    notes: MutableSequence[int],
    environment: dict[str, str],
) -> None:
    """Do what comes through the pipe until it closes or the owner is gone, in the owner's environment of now."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's, who ends this process
    threading.Thread(target=_leave_with_owner, daemon=True).start()
    keep_freed_memory()
    tokenizers = None
    while True:
        try:
            assignment: Assignment = pipe.recv()
        except EOFError:
            return
        try:
            if tokenizers is None:
                tokenizers = {m: build(s, Path("/"), m) for m, s in settings.items()}
                gc.freeze()  # or every collection goes through all that torch and the vocabulary are made of
            for modality, spec in assignment.task.header.tokenizers.items():
                if tokenizers[modality].spec != spec:
                    raise BrokenTokenizer(
                        f"{modality}: a worker's {spec.name} is not the one that the job was planned with"
                    )
            result = assignment.task.do(output, tokenizers, Noted(assignment, notes))
        except Exception as error:
            known = type(error).__module__.startswith("motet.")
            pipe.send(Failed(str(error) if known else f"{type(error).__name__}: {error}"))
        else:
            pipe.send(Done(result))


def keep_freed_memory() -> None:
    """Let this process take the memory that it has just freed, and not ask the system for new pages, which are zeroed first.

    glibc gives blocks back that are larger than what it has seen freed, and all that is free at the end of the heap. Networks
    free and take megabytes at every layer: a quarter of a small encoder's time went into page faults. Elsewhere nothing happens.
    """
    with suppress(AttributeError):  # another C library
        for option, value in KEPT_MEMORY:
            ctypes.CDLL(None).mallopt(option, value)


def _leave_with_owner() -> None:
    """A killed owner cannot end its process."""
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    os._exit(1)
