"""Ray: one actor per worker, each with its tokenizers loaded once; needs the extra `motet-pipeline[ray]`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from motet.pipeline.task import Task
from motet.pipeline.work import Work

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # or `uv run` re-creates the environment for every job

import ray
from ray.util.actor_pool import ActorPool


@ray.remote(max_restarts=3, max_task_retries=3)
class _Actor:
    def __init__(self, work: Work):
        self._worker = work.start()

    def do(self, task: Task) -> int:
        return self._worker.do(task)


def run(work: Work, tasks: Sequence[Task], workers: int, address: str | None) -> Iterator[int]:
    """Sizes of the tasks as they are done; a Ray cluster is started on this machine if there is no address."""
    own = not ray.is_initialized()
    if own and address:
        ray.init(address=address, log_to_driver=False)
    elif own:
        ray.init(num_cpus=max(workers, 1), include_dashboard=False, log_to_driver=False)
    try:
        actors = [_Actor.remote(work) for _ in range(max(workers, 1))]  # type: ignore[attr-defined]
        yield from ActorPool(actors).map_unordered(lambda actor, task: actor.do.remote(task), list(tasks))
    finally:
        if own:
            ray.shutdown()
