"""Engines rent out workers: each maps the same function over the same tasks, and knows nothing of tokens.

tasks --`run_all`--> local process pool | Ray actors --`Work.start().do(task)`--> commits
"""

from __future__ import annotations

from collections.abc import Sequence

from motet.pipeline.progress import shown
from motet.pipeline.task import Task
from motet.pipeline.work import Work
from motet.tokenizers.configuration import UserError


def run_all(work: Work, tasks: Sequence[Task], engine: str, workers: int, address: str | None = None) -> None:
    """Do every task on `workers` workers of an engine (`local` or `ray`), with progress in bytes of input."""
    if not tasks:
        return
    if engine == "local":
        from motet.pipeline.engines.local import run

        done = run(work, tasks, workers)
    elif engine == "ray":
        try:
            from motet.pipeline.engines.ray import run as run_on_ray
        except ImportError as error:
            raise UserError(f"--engine ray: {error}; install motet-pipeline[ray]") from None
        done = run_on_ray(work, tasks, workers, address)
    else:
        raise UserError(f"--engine {engine}: there are 'local' and 'ray'")
    for _ in shown(done, sum(task.partition.size for task in tasks), "B", "tokenize"):
        pass
