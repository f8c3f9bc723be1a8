"""The embedded engine: processes on this machine, or this process itself for one worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from motet.pipeline.task import Task
from motet.pipeline.work import Work, Worker, WorkerLost

_worker: Worker | None = None


def run(work: Work, tasks: Sequence[Task], workers: int, address: str | None, here: Worker) -> Iterator[int]:
    """Sizes of the tasks as they are done, in any order.

    When a worker is killed, for want of memory most likely, half as many go on; WorkerLost names a partition that kills
    a worker which is alone.
    """
    if workers <= 1:
        yield from map(here.do, tasks)
        return
    left = list(tasks)
    while left:
        before = len(left)
        for task in _pool(work, list(left), workers):
            left.remove(task)
            yield task.partition.size
        if left and workers == 1 and len(left) == before:
            raise WorkerLost(
                f"{left[0].partition.name}: kills its worker process (out of memory?); committed partitions are kept, "
                "the same command goes on with the rest"
            )
        workers = max(workers // 2, 1)
        if left:
            print(f"tokenize: a worker process was killed; going on with {workers}", file=sys.stderr, flush=True)


def _pool(work: Work, tasks: Sequence[Task], workers: int) -> Iterator[Task]:
    """Tasks as they are done by one pool of processes; all, or, if one of the processes is killed, those done before."""
    context = multiprocessing.get_context("spawn")  # forked children inherit torch's threads and locks
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(work,)) as pool:
        futures = {pool.submit(_do, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                if not isinstance(future.exception(), BrokenProcessPool):
                    future.result()
                    yield futures[future]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(work: Work) -> None:
    global _worker
    threading.Thread(target=_leave_with_driver, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's: it lets workers finish what they are at
    _worker = work.start()


def _leave_with_driver() -> None:
    """A killed driver cannot stop its workers; they would wait for work for ever."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


def _do(task: Task) -> int:
    assert _worker is not None
    return _worker.do(task)
