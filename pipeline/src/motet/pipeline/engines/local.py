"""The embedded engine: processes on this machine, or this process itself for one worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from motet.pipeline.task import Task
from motet.pipeline.work import Work, Worker

_worker: Worker | None = None


class WorkerLost(Exception):
    """A worker process was killed; what it had committed stays."""


def run(work: Work, tasks: Sequence[Task], workers: int) -> Iterator[int]:
    """Sizes of the tasks as they are done, in any order."""
    if workers <= 1:
        worker = work.start()
        yield from map(worker.do, tasks)
        return
    context = multiprocessing.get_context("spawn")  # forked children inherit torch's threads and locks
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(work,)) as pool:
        futures = {pool.submit(_do, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise WorkerLost(
                "a worker process was killed (out of memory?); committed partitions are kept, "
                "the same command goes on with the rest"
            ) from None
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
