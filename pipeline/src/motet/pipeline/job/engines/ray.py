"""Ray: an actor for each worker, wherever the cluster has room; needs the extra `motet-pipeline[ray]`.

    tasks --by the devices that their tokenizers need--> CPU actors | GPU actors, one task at a time each --> results

Encoders on a GPU are loaded once per actor, and text goes on beside them on the CPUs. An actor that is lost with its node
is replaced by another one, wherever there is room; a task may run twice, which its commit takes care of.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from motet.core.errors import UserError
from motet.pipeline.job.engines import EngineOptions
from motet.pipeline.job.task import Result, Task
from motet.pipeline.job.work import KEPT, Work, WorkerLost

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # or `uv run` re-creates the environment for every job

import ray
from ray.exceptions import RayActorError, RayTaskError

MOST_LOSSES = 100
"""Actors that may be lost in one job: a killed node takes many with it, a cluster that kills them all has another problem."""


@ray.remote(scheduling_strategy="SPREAD")
class _Actor:
    def __init__(self, work: Work):
        self._worker = work.start()

    def do(self, task: Task) -> Result:
        return self._worker.do(task)


def run(work: Work, tasks: Sequence[Task], workers: int, options: EngineOptions) -> Iterator[Result]:
    """What came of the tasks as they are done, by actors of the cluster at `address`, or of the one that this process is in.

    If there is none, one is started on this machine, for this job.
    """
    address = options.address or os.environ.get("RAY_ADDRESS")
    own = not ray.is_initialized()
    if own and address:
        ray.init(address=address, log_to_driver=False)
    elif own:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        yield from _done(work, tasks, workers, options)
    except RayTaskError as error:
        raise error.cause from None
    finally:
        if own:
            ray.shutdown()


class _Seat:
    """Room for one actor, which takes its tasks from a queue, one at a time: a slow cluster is not flooded."""

    def __init__(self, work: Work, queue: deque[Task], gpus: float):
        used = {modality for task in queue for modality in task.header.modalities}
        self._work = replace(work, tokenizers={m: s for m, s in work.tokenizers.items() if m in used})
        self._queue, self._gpus = queue, gpus
        self._actor: Any = None

    def begin(self) -> Any:
        """Send the next task, to another actor if the last one is lost; the reference of what comes of it."""
        if self._actor is None:
            self._actor = _Actor.options(num_gpus=self._gpus).remote(self._work)  # type: ignore[attr-defined]
        self._task = self._queue.popleft()
        return self._actor.do.remote(self._task)

    def lose(self) -> None:
        """The actor is gone: its task is the next one."""
        self._queue.appendleft(self._task)
        self.close()

    def close(self) -> None:
        """End the actor: another one may wait for its room."""
        ray.kill(self._actor)
        self._actor = None

    @property
    def idle(self) -> bool:
        """Nothing is left to do."""
        return not self._queue


def _done(work: Work, tasks: Sequence[Task], workers: int, options: EngineOptions) -> Iterator[Result]:
    on_gpu = {m for m, settings in work.tokenizers.items() if str(settings.get("device", "cpu")).startswith("cuda")}
    cpu = deque(task for task in tasks if not on_gpu & set(task.header.modalities))
    gpu = deque(task for task in tasks if on_gpu & set(task.header.modalities))
    seats = [_Seat(work, cpu, 0) for _ in range(min(workers, len(cpu)))]
    if gpu:
        room = int(ray.cluster_resources().get("GPU", 0) / options.gpus_per_worker)
        if not room:
            raise UserError(
                f"tokenizers.{min(on_gpu)}: device: the cluster has no GPU to give {options.gpus_per_worker:g} of"
            )
        seats += [_Seat(work, gpu, options.gpus_per_worker) for _ in range(min(room, len(gpu)))]
    running = {seat.begin(): seat for seat in seats}
    losses = 0
    while running:
        (reference,), _ = ray.wait(list(running), num_returns=1)
        seat = running.pop(reference)
        try:
            yield ray.get(reference)
        except RayActorError as error:
            losses += 1
            if losses > MOST_LOSSES:
                raise WorkerLost(f"Ray lost {losses} actors in this job, the last by: {error}; {KEPT}") from None
            seat.lose()
        if seat.idle:
            seat.close()
        else:
            running[seat.begin()] = seat
