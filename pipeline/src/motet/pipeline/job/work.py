"""What an engine sends to its workers, and a worker: it owns the process that tokenizes, and outlives its crashes.

    Worker.do(task) --pipe--> child process: build tokenizers once, `Task.do` --"at sample 17"--> the worker, which waits
    the child dies, or is at one thing for too long --> killed, another one goes on --> twice at one sample: that is a reject

Decoders are C code over hostile bytes: one that crashes, is killed for its memory or never ends costs its sample, not the
job. The process that owns a worker loads no tokenizer, nor does the one that plans. Children are forked from a server that
has imported what they need, so that another one is there in a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from motet.core.errors import UserError
from motet.pipeline import forked
from motet.pipeline.dataset.commits import Output
from motet.pipeline.job.child import Assignment, Death, Done, Failed, describe, serve
from motet.pipeline.job.task import Result, Task
from motet.tokenizers.contract import BadSample, TokenizerSpec
from motet.tokenizers.registry import modules

CONTEXT = multiprocessing.get_context("forkserver")
TICK = 1.0
"""Seconds between two looks at what a process is at."""
NOTHING = [0, -1, 0]
"""What a process notes that has not begun: see child.Noted."""
AGAIN = retry(
    retry=retry_if_exception_type((BrokenProcessPool, EOFError, ConnectionError)),
    wait=wait_exponential(0.05, max=1),
    stop=stop_after_attempt(8),
    reraise=True,
)
"""A process that cannot be started because the server that it is forked from was killed that moment: there will be a new one.

Not at once: one that is being torn down refuses connections, but is not known to have ended yet.
"""
MOST_DEATHS = 8
"""Deaths in a row that no sample explains, after which a partition is given up."""


class PartitionFailed(Exception):
    """A partition cannot be tokenized, for a reason that is no bad sample."""


class WorkerLost(Exception):
    """A partition kills every worker that tries it; what was committed stays."""


@dataclass(frozen=True)
class Work:
    """What workers need; can be sent anywhere.

    Attributes:
        tokenizers: settings of every modality's tokenizer (absolute paths).
        output: where to commit.
        sample_seconds: a process that is silent for so long over one sample is killed.
    """

    tokenizers: dict[str, dict[str, Any]]
    output: Output
    sample_seconds: float

    def start(self) -> Worker:
        """A worker; its process starts with its first task."""
        return Worker(self)


class Worker:
    """Tokenizes partitions and commits them, one at a time, in a process of its own."""

    def __init__(self, work: Work):
        self._work = work
        self._process: Any = None
        self._pipe: Connection | None = None
        self._notes: Any = None
        self._closed = False
        self._lock = Lock()

    def do(self, task: Task) -> Result:
        """Tokenize and commit one partition; what came of it.

        PartitionFailed says which partition and why, if it cannot be done; WorkerLost if it kills every process.
        """
        skip: dict[int, BadSample] = {}
        suspect, deaths = None, 0
        while True:
            outcome = self._attempt(Assignment(task, deaths > 0, skip))
            if isinstance(outcome, Done):
                return outcome.result
            self._end()
            if isinstance(outcome, Failed):
                raise PartitionFailed(f"{task.partition.name}: {outcome.reason}; {KEPT}")
            if outcome.sample is not None and outcome.sample == suspect:
                skip[suspect], suspect, deaths = BadSample(outcome.reason, outcome.detail), None, 0
                continue
            suspect, deaths = outcome.sample, deaths + 1
            if deaths == MOST_DEATHS:
                raise WorkerLost(f"{task.partition.name}: kills its process: {outcome.detail}; {KEPT}")

    def close(self) -> None:
        """End the process, whatever it is at; from any thread. What is committed is kept."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _begin(self) -> None:
        with self._lock:
            if self._closed:
                raise WorkerLost("the job has ended")
            if self._process is None:
                self._start()

    @AGAIN
    def _start(self) -> None:
        forked.ensure()
        ours, theirs = CONTEXT.Pipe()
        with theirs:
            notes = CONTEXT.RawArray("q", NOTHING)
            settings = (self._work.tokenizers, self._work.output, theirs, notes, dict(os.environ))
            process = CONTEXT.Process(target=serve, args=settings)
            process.start()
        self._process, self._pipe, self._notes = process, ours, notes

    def _end(self) -> None:
        with self._lock:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._pipe.close()  # type: ignore[union-attr]
            self._process = self._pipe = None

    def _attempt(self, assignment: Assignment) -> Done | Failed | Death:
        self._begin()
        assert self._pipe is not None
        self._notes[:] = NOTHING
        try:
            self._pipe.send(assignment)
            noted, since = NOTHING, time.monotonic()
            while not self._pipe.poll(min(TICK, self._work.sample_seconds)):
                if (now := self._notes[:]) != noted:
                    noted, since = now, time.monotonic()
                elif (allowed := noted[2] * self._work.sample_seconds) and time.monotonic() - since > allowed:
                    return Death(self._sample(), "decoder-timeout", f"no result after {allowed:g} s")
            answer: Done | Failed = self._pipe.recv()
            return answer
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return Death(self._sample(), "decoder-crashed", f"the process ended by {how}")

    def _sample(self) -> int | None:
        """The sample that the process is, or was, at."""
        return self._notes[1] if self._notes[1] >= 0 else None


KEPT = "committed partitions are kept, the same command goes on with the rest"


def described(
    settings: dict[str, dict[str, Any]], base: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, TokenizerSpec]]:
    """(complete settings with absolute paths, specs) of each modality's tokenizer, built in a process of its own.

    UserError if one of them cannot be built, or ends the process.
    """
    prepare(modules(str(s.get("use")) for s in settings.values()))
    try:
        return _describe(settings, base)
    except (BrokenProcessPool, EOFError, ConnectionError) as error:
        raise UserError(
            f"tokenizers: building them ends the process ({type(error).__name__})"
            '; a script that calls motet does so below `if __name__ == "__main__":`'
        ) from None


@AGAIN
def _describe(
    settings: dict[str, dict[str, Any]], base: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, TokenizerSpec]]:
    forked.ensure()
    with ProcessPoolExecutor(1, CONTEXT, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        return pool.submit(describe, settings, base, dict(os.environ)).result()


def prepare(modules: Iterable[str]) -> None:
    """Let the server that processes are forked from import these modules, beside what this process does."""
    CONTEXT.set_forkserver_preload(["motet.pipeline.job.child", *modules])
    forked.ensure()
