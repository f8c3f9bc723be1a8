"""Engines rent out processes: each maps the same function over the same tasks, and knows nothing of tokens.

tasks --`run_all`--> threads of this process | Ray actors | Beam's workers, each with a `Worker` --`do(task)`--> commits
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module

from motet.core.errors import UserError
from motet.pipeline.job.limits import Watch
from motet.pipeline.job.task import Result, Task
from motet.pipeline.job.work import Work
from motet.pipeline.progress import shown

ENGINES = ("local", "ray", "beam")


@dataclass(frozen=True)
class EngineOptions:
    """What only some engines ask.

    Attributes:
        address: Ray's cluster.
        gpus_per_worker: Ray: the share of a GPU that a worker with a tokenizer on `cuda` gets.
        extra: Beam's own options, as they stand on its command lines.
    """

    address: str | None = None
    gpus_per_worker: float = 1.0
    extra: tuple[str, ...] = ()


Engine = Callable[[Work, Sequence[Task], int, EngineOptions], Generator[Result]]
"""(what workers need, tasks, workers, options) -> what came of the tasks, as they are done."""


def engine_of(name: str) -> Engine:
    """The engine called so; UserError if there is none, or it is not installed."""
    if name not in ENGINES:
        raise UserError(f"--engine {name}: there are {', '.join(ENGINES)}")
    try:
        return import_module(f"motet.pipeline.job.engines.{name}").run
    except ImportError as error:
        raise UserError(f"--engine {name}: {error}; install motet-pipeline[{name}]") from None


def run_all(
    engine: Engine, work: Work, tasks: Sequence[Task], workers: int, options: EngineOptions, watch: Watch
) -> None:
    """Do every task on `workers` workers, with progress in bytes of input and rejects; AllRejected as `watch` says."""
    if tasks:
        with closing(engine(work, tasks, workers, options)) as done:
            sizes = (watch.add(result) for result in done)
            total = sum(task.partition.size for task in tasks)
            for _ in shown(
                sizes, total, "B", "tokenize", lambda: f"{watch.rejected:,} rejected" * bool(watch.rejected)
            ):
                pass
