"""Checkpoints written beside training: a step waits for a copy in memory, not for a disk.

    weights, moments --`begin`: a copy--> a thread on each rank: its files, their hashes, sync
    every rank's thread has ended (`ready`) --`finish`, after a later step--> state.json, one rename: the checkpoint exists

One checkpoint is under way at a time; the next one waits for it. A save that fails (a full disk) stops nothing: it is told, and
the checkpoint before it stands. So many in a row as `failed_saves` do stop the run, and so does the last one of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from motet.core.errors import UserError
from motet.trainer.run import checkpoint, shares
from motet.trainer.run.checkpoint import MODEL, OPTIMIZER, State
from motet.trainer.run.parallel import gathered
from motet.trainer.run.shares import Part


class Saver:
    """Saves a run's checkpoints under its folder `out`; all ranks call its methods at the same steps.

    Args:
        out: the run folder. keep: how many of the latest checkpoints stay.
        failures: saves in a row that may fail. say: called with what a person should know.
        rank, world: this process among all.
    """

    def __init__(self, out: Path, keep: int, failures: int, say: Callable[[str], None], rank: int = 0, world: int = 1):
        self._out, self._keep, self._failures, self._say = out, keep, failures, say
        self._rank, self._world = rank, world
        self._thread = ThreadPoolExecutor(1, "saving")
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._under_way: tuple[State, Future[dict[str, str]]] | None = None
        self._failed = 0
        self._refusal: UserError | None = None

    def begin(self, state: State, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Copy what this rank holds, and write the copy while training goes on. UserError if too many saves have failed."""
        self.finish()
        partial = checkpoint.place(self._out, state.step).with_suffix(".partial")
        cleared = self._rank == 0 and _tried(lambda: checkpoint.clear(partial, (MODEL, OPTIMIZER)))
        if self._fails(state, gathered(cleared, self._world)):
            return
        parts = {
            name: self._copied(name, shares.own(tensors, self._rank, self._world))
            for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer))
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._under_way = state, self._thread.submit(self._write, partial, parts)

    @property
    def ready(self) -> bool:
        """Whether this rank has written all of its part of a checkpoint, which is not yet one."""
        return self._under_way is not None and self._under_way[1].done()

    def finish(self) -> None:
        """The checkpoint that is under way becomes one, if it can; waits for its writing. UserError as `begin`."""
        if self._under_way is None:
            return
        state, written = self._under_way
        self._under_way = None
        told = gathered(_tried(written.result), self._world)
        if self._fails(state, told):
            return
        files = {name: value for each in told for name, value in each.items()}
        whole = replace(state, files=dict(sorted(files.items())))
        done = self._rank == 0 and _tried(lambda: checkpoint.commit(self._out, whole, self._keep))
        if not self._fails(state, gathered(done, self._world)):
            self._failed = 0

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """After the last step: what is under way is a checkpoint, or UserError says why not."""
        with self._thread:  # a thread that writes is waited for, whatever stops the run
            if kind is None:
                self.finish()
        if kind is None and self._failed and self._refusal is not None:
            raise self._refusal

    def _write(self, partial: Path, parts: Mapping[str, Mapping[str, Part]]) -> dict[str, str]:
        """Name -> hash of the files that this rank has written."""
        files = {}
        for name, own in parts.items():
            file = f"{name}/{self._rank:05d}{shares.SUFFIX}"
            shares.write(partial / file, own)
            files[file] = checkpoint.settled(partial / file)
        return files

    def _copied(self, kind: str, parts: Mapping[str, Part]) -> dict[str, Part]:
        """The parts in memory that the next step does not touch, which is kept from one save to the next."""
        copies = {}
        for name, part in parts.items():
            buffer = self._buffers.get((kind, name))
            if buffer is None:
                pinned = part.values.device.type == "cuda"
                buffer = torch.empty(part.values.shape, dtype=part.values.dtype, pin_memory=pinned)
                self._buffers[kind, name] = buffer
            buffer.copy_(part.values, non_blocking=True)
            copies[name] = Part(buffer, part.begin)
        return copies

    def _fails(self, state: State, told: Sequence[Any]) -> bool:
        """Whether the save failed on a rank; told, and UserError if that was one too many."""
        bad = [each for each in told if isinstance(each, Exception)]
        if not bad:
            return False
        if not isinstance(bad[0], OSError):
            raise bad[0]
        self._failed += 1
        path = bad[0].filename or checkpoint.place(self._out, state.step)
        words = f"{path}: the checkpoint of step {state.step} cannot be written ({bad[0].strerror or bad[0]})"
        self._refusal = UserError(f"{words}; make room, then the same command goes on from the checkpoint before it")
        if self._failed > self._failures:
            raise self._refusal
        self._say(f"{words}; going on, {self._failures - self._failed} more in a row may fail")
        return True


def _tried(work: Callable[[], object]) -> object:
    """What it returns, or the exception that it raises."""
    try:
        return work()
    except Exception as error:
        return error
