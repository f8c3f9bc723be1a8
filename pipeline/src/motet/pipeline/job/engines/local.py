"""The embedded engine: a thread of this process for each worker; the workers' own processes do the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue

from motet.pipeline.job.engines import EngineOptions
from motet.pipeline.job.task import Result, Task
from motet.pipeline.job.work import Work, Worker


def run(work: Work, tasks: Sequence[Task], workers: int, options: EngineOptions) -> Iterator[Result]:
    """What came of the tasks, as they are done, in any order."""
    started = [work.start() for _ in range(min(workers, len(tasks)))]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in started:
        idle.put(worker)

    def do(task: Task) -> Result:
        worker = idle.get()
        try:
            return worker.do(task)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(started)) as pool:
        futures = [pool.submit(do, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in started:
                worker.close()
