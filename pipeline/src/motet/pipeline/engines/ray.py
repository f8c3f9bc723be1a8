"""Ray: an actor for each worker, wherever the cluster has room; needs the extra `motet-pipeline[ray]`.

    tasks --by the devices that their tokenizers need--> CPU actors | GPU actors, one task at a time each --> sizes

Encoders on a GPU are loaded once per actor, and text goes on beside them on the CPUs. Actors that die with their node are
started again elsewhere; a task may run twice, which its commit takes care of.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from motet.pipeline.engines import EngineOptions
from motet.pipeline.task import Task
from motet.pipeline.work import Work
from motet.tokenizers.errors import UserError

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # or `uv run` re-creates the environment for every job

import ray
from ray.exceptions import RayActorError, RayTaskError

RETRIES = 100
"""How often one task may lose its actor: a killed node takes many with it, and nothing that is done twice does harm."""


@ray.remote(max_restarts=-1, max_task_retries=RETRIES, scheduling_strategy="SPREAD")
class _Actor:
    def __init__(self, work: Work):
        self._worker = work.start()

    def do(self, task: Task) -> int:
        return self._worker.do(task)


def run(work: Work, tasks: Sequence[Task], workers: int, options: EngineOptions) -> Iterator[int]:
    """Sizes of the tasks as they are done, by actors of the cluster at `address`, or of the one that this process is in.

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
    except RayActorError as error:
        raise RuntimeError(f"Ray lost an actor {RETRIES} times over one partition: {error}") from None
    finally:
        if own:
            ray.shutdown()


def _done(work: Work, tasks: Sequence[Task], workers: int, options: EngineOptions) -> Iterator[int]:
    on_gpu = {m for m, settings in work.tokenizers.items() if str(settings.get("device", "cpu")).startswith("cuda")}
    cpu = deque(task for task in tasks if not on_gpu & set(task.header.modalities))
    gpu = deque(task for task in tasks if on_gpu & set(task.header.modalities))
    actors = [(actor, cpu) for actor in _actors(work, cpu, min(workers, len(cpu)), 0)]
    if gpu:
        room = int(ray.cluster_resources().get("GPU", 0) / options.gpus_per_worker)
        if not room:
            raise UserError(
                f"tokenizers.{min(on_gpu)}: device: the cluster has no GPU to give {options.gpus_per_worker:g} of"
            )
        actors += [(actor, gpu) for actor in _actors(work, gpu, min(room, len(gpu)), options.gpus_per_worker)]
    running = {actor.do.remote(queue.popleft()): (actor, queue) for actor, queue in actors}
    while running:
        (reference,), _ = ray.wait(list(running), num_returns=1)
        actor, queue = running.pop(reference)
        yield ray.get(reference)
        if queue:  # a task for each idle actor, never more: a slow cluster is not flooded
            running[actor.do.remote(queue.popleft())] = (actor, queue)


def _actors(work: Work, tasks: Sequence[Task], count: int, gpus: float) -> list[Any]:
    """Actors that load only what these tasks need."""
    used = {modality for task in tasks for modality in task.header.modalities}
    own = replace(work, tokenizers={m: s for m, s in work.tokenizers.items() if m in used})
    return [_Actor.options(num_gpus=gpus).remote(own) for _ in range(count)]  # type: ignore[attr-defined]
