"""Engines rent out workers: each maps the same function over the same tasks, and knows nothing of tokens.

tasks --`run_all`--> this process | local process pool | Ray actors --`Worker.do(task)`--> commits
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from motet.pipeline.progress import shown
from motet.pipeline.task import Task
from motet.pipeline.work import Work, Worker
from motet.tokenizers.configuration import UserError

Engine = Callable[[Work, Sequence[Task], int, str | None, Worker], Iterator[int]]
"""(what workers load, tasks, workers, address, a worker in this process) -> sizes of the tasks as they are done."""


def engine_of(name: str) -> Engine:
    """The engine called `local` or `ray`; UserError if there is none, or it is not installed."""
    if name == "local":
        from motet.pipeline.engines.local import run

        return run
    if name == "ray":
        try:
            from motet.pipeline.engines.ray import run as run_on_ray
        except ImportError as error:
            raise UserError(f"--engine ray: {error}; install motet-pipeline[ray]") from None
        return run_on_ray
    raise UserError(f"--engine {name}: there are 'local' and 'ray'")


def run_all(engine: Engine, work: Work, tasks: Sequence[Task], workers: int, address: str | None, here: Worker) -> None:
    """Do every task on `workers` workers, with progress in bytes of input; `here` is a worker in this process."""
    if tasks:
        done = engine(work, tasks, workers, address, here)
        for _ in shown(done, sum(task.partition.size for task in tasks), "B", "tokenize"):
            pass
