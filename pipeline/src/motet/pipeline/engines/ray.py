"""Ray: one actor per worker, each with its tokenizers loaded once; needs the extra `motet-pipeline[ray]`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from motet.pipeline.task import Task
from motet.pipeline.work import Work, Worker, WorkerLost

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # or `uv run` re-creates the environment for every job

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.actor_pool import ActorPool


@ray.remote(max_restarts=3, max_task_retries=3, scheduling_strategy="SPREAD")
class _Actor:
    def __init__(self, work: Work):
        self._worker = work.start()

    def do(self, task: Task) -> int:
        return self._worker.do(task)


def run(work: Work, tasks: Sequence[Task], workers: int, address: str | None, here: Worker) -> Iterator[int]:
    """Sizes of the tasks as they are done, by actors of the cluster at `address`, or of the one that this process is in.

    If there is none, one is started on this machine, for this job.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    own = not ray.is_initialized()
    if own and address:
        ray.init(address=address, log_to_driver=False)
    elif own:
        ray.init(address="local", num_cpus=max(workers, 1), include_dashboard=False, log_to_driver=False)
    try:
        actors = [_Actor.remote(work) for _ in range(max(workers, 1))]  # type: ignore[attr-defined]
        yield from ActorPool(actors).map_unordered(lambda actor, task: actor.do.remote(task), list(tasks))
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise WorkerLost(
            f"a Ray actor was lost (out of memory?): {error}; committed partitions are kept, "
            "the same command goes on with the rest"
        ) from None
    finally:
        if own:
            ray.shutdown()
