"""Engines rent out workers: each maps the same function over the same tasks, and knows nothing of tokens.

tasks --`run_all`--> local process pool | Ray actors --`Work.start().do(task)`--> commits
"""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

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
        from motet.pipeline.engines.ray import run as run_on_ray

        done = run_on_ray(work, tasks, workers, address)
    else:
        raise UserError(f"--engine {engine}: there are 'local' and 'ray'")
    with tqdm(
        total=sum(t.partition.size for t in tasks), unit="B", unit_scale=True, desc="tokenize", mininterval=0.5
    ) as bar:
        for size in done:
            bar.update(size)
