"""Beam: a transform that tokenizes, for the pipeline that `motet tokenize` makes or for your own; `motet-pipeline[beam]`.

    PCollection of tasks --Reshuffle--> a `Worker` per DoFn --`do(task)`--> PCollection of (commit name, bytes of input)

The runner is whichever Beam's own options name: Flink, Spark, Dataflow. Without any it is Beam's portable runner inside
this process, whose threads share `workers` workers, each with its own process. (Beam's default would be Prism, a program
that it downloads. And of a killed worker process of its own that portable runner never learns: it waits for ever.)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import pickle
import re
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from motet.core.configuration import Settings
from motet.core.errors import UserError
from motet.pipeline.dataset.manifest import rejected
from motet.pipeline.dataset.rejects import Reject
from motet.pipeline.job.engines import EngineOptions
from motet.pipeline.job.task import Result, Task, example
from motet.pipeline.job.work import PartitionFailed, Work, Worker, WorkerLost


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Beam logs from stderr, unless this program has arranged for logs: whole tracebacks of what we tell in one
    line, and at its import which clouds it lacks.
    """
    handler, root = logging.NullHandler(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


with _quiet():
    import apache_beam as beam
    import grpc
    from apache_beam.metrics import Metrics
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
    from apache_beam.runners import create_runner
    from apache_beam.runners.portability.portable_runner import PortableRunner

HERE = "FnApiRunner"
"""What Beam calls its portable runner that is Python only and runs in the process that starts it."""
SECONDS_BETWEEN_LOOKS = 2.0
OURS = {error.__name__: error for error in (PartitionFailed, WorkerLost)}
WHERE = re.escape(PartitionFailed.__module__)
FAILURE = re.compile(rf"^{WHERE}\.({'|'.join(OURS)}): (.*?)(?: \[while running|\n\n|\Z)", re.M | re.S)
"""Our errors in the text that every runner makes of an exception in a worker: its traceback, with more around it."""


class BeamFailed(Exception):
    """The pipeline failed for a reason of Beam's or its runner's."""


class _Here:
    """What threads that do a job's tasks share with its driver, where they are threads of the same process.

    Beam's portable runner deals out all tasks at the start, and an exception ends only the thread that raised it. So the
    workers go to whichever thread waits longest, and after the first failure nothing more is done.
    """

    def __init__(self, work: Work, workers: int):
        self.failures: list[Exception] = []
        self._started = [work.start() for _ in range(workers)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._started:
            self._idle.put(worker)

    def do(self, task: Task) -> Result | None:
        """`Worker.do`; None if a task has failed."""
        worker = self._idle.get()
        try:
            return None if self.failures else worker.do(task)
        except Exception as error:
            self.failures.append(error)
            self.close()
            return None
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End every worker, whatever it is at."""
        for worker in self._started:
            worker.close()

    def wait(self) -> None:
        """Until no thread uses a worker."""
        for worker in [self._idle.get() for _ in self._started]:
            self._idle.put(worker)


_here: dict[str, _Here] = {}
"""By the names of jobs: those that this process drives."""


class TokenizePartitions(beam.PTransform):
    """Tokenize and commit every task; PCollection of Task -> PCollection of (commit name, bytes of input).

    `motet.pipeline.job.job` makes the tasks and writes the manifest; what comes out here is committed.
    """

    def __init__(self, work: Work, job: str = ""):
        super().__init__()
        self._work, self._job = work, job

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """Spread the tasks over all workers, then do them."""
        beam.coders.registry.register_coder(Task, TaskCoder)
        return tasks | "Spread" >> beam.Reshuffle() | "Tokenize" >> beam.ParDo(_Tokenize(self._work, self._job))


class TaskCoder(beam.coders.Coder):
    """The same bytes for the same task, whoever made it, so that tasks can be keys too."""

    def encode(self, task: Task) -> bytes:
        """To bytes."""
        out = io.BytesIO()
        pickler = _Pickler(out, 5)
        pickler.fast = True  # without a memo, which tells equal strings from identical ones
        pickler.dump(task)
        return out.getvalue()

    def decode(self, data: bytes) -> Task:
        """From bytes that this job's driver made."""
        return pickle.loads(data)

    def is_deterministic(self) -> bool:
        """For Beam."""
        return True

    def to_type_hint(self) -> type[Task]:
        """For Beam."""
        return Task


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Settings by their values alone: they hold a set too, whose order differs from process to process."""
        return (type(value).model_validate, (value.model_dump(),)) if isinstance(value, Settings) else NotImplemented


class _Tokenize(beam.DoFn):
    def __init__(self, work: Work, job: str):
        self._work, self._job = work, job
        self._partitions = Metrics.counter("motet", "partitions")
        self._bytes = Metrics.counter("motet", "bytes")

    def setup(self) -> None:
        self._worker = _here.get(self._job) or self._work.start()

    def process(self, task: Task) -> Iterator[tuple[str, int]]:
        result = self._worker.do(task)
        if result is not None:
            self._partitions.inc()
            self._bytes.inc(result.size)
            yield task.commit, result.size

    def teardown(self) -> None:
        if isinstance(self._worker, Worker):
            self._worker.close()


def run(work: Work, tasks: Sequence[Task], workers: int, options: EngineOptions) -> Iterator[Result]:
    """What came of the tasks, as their commits are seen.

    A pipeline that fails although it got on, as when its machines are taken away, starts again with what is left.
    """
    beam_options = _options(options.extra, workers)
    unseen = {task.commit: task for task in tasks}
    left = list(tasks)
    while left:
        job = _Job(work, left, beam_options)
        here = _here[job.name] = _Here(work, workers)
        job.start()
        try:
            with _quiet():
                while job.is_alive():
                    job.join(SECONDS_BETWEEN_LOOKS)
                    new = [name for name in work.output.store.list("commits") if name in unseen]
                    yield from _results(work, [unseen.pop(name) for name in new])
            del _here[job.name]
        finally:
            stopped = here.failures[:1]
            here.failures.append(InterruptedError())
            here.close()
            here.wait()
        if stopped:
            raise stopped[0]
        if job.failure is None:
            break
        if isinstance(job.failure, NotImplementedError | grpc.FutureTimeoutError) and len(left) == len(tasks):
            raise UserError(f"Beam: --job_endpoint: {str(job.failure) or 'nobody answers there'}") from job.failure
        if told := FAILURE.search(str(job.failure)):
            raise OURS[told[1]](told[2]) from job.failure
        before, absent = len(left), work.output.missing(task.commit for task in left)
        left = [task for task in left if task.commit in absent]
        if left and len(left) == before:
            raise BeamFailed(_last_line(job.failure)) from job.failure
        print(f"tokenize: Beam: {_last_line(job.failure)}; going on with what is left", file=sys.stderr, flush=True)
    yield from _results(work, list(unseen.values()))


def _results(work: Work, tasks: Sequence[Task]) -> Iterator[Result]:
    """What committed tasks came to, as their commits say."""
    entries = work.output.entries([task.commit for task in tasks])
    for task in tasks:
        entry = entries[task.commit]
        lost = [] if entry.rows else rejected(work.output.store, entry)  # only of these a person may be told
        seen = example(Reject.of(lost[0])) if lost else ""
        yield Result(task.partition.entry.name, task.partition.size, entry.rows, entry.rejects, seen)


class _Job(threading.Thread):
    """A pipeline from start to end, so that its starter may look at the commits meanwhile."""

    def __init__(self, work: Work, tasks: Sequence[Task], options: PipelineOptions):
        super().__init__(name=f"motet-{uuid.uuid4().hex}", daemon=True)
        self.failure: Exception | None = None
        self._work, self._tasks, self._options = work, tasks, options

    def run(self) -> None:
        try:
            pipeline = beam.Pipeline(options=self._options)
            pipeline | beam.Create(self._tasks) | TokenizePartitions(self._work, self.name)
            pipeline.run().wait_until_finish()
        except Exception as error:
            self.failure = error


def _options(extra: Sequence[str], workers: int) -> PipelineOptions:
    """Beam's options from its command line; UserError for any that it does not take."""
    here = [f"--runner={HERE}", "--direct_running_mode=multi_threading", f"--direct_num_workers={2 * workers}"]
    said = io.StringIO()
    parsers: list[argparse.ArgumentParser] = []
    try:
        with contextlib.redirect_stderr(said), _quiet():
            options = PipelineOptions([*here, *extra])
            name = options.get_all_options(add_extra_args_fn=parsers.append)["runner"]
            unknown = parsers[0].parse_known_args(extra)[1]
            runner = create_runner(name)
            problems = PipelineOptionsValidator(options, runner).validate()
    except SystemExit:  # argparse, which has said why
        raise UserError(f"Beam: {said.getvalue().strip().splitlines()[-1].partition('error: ')[2]}") from None
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"Beam: --runner: {str(error).strip()}") from None
    if problems:
        raise UserError(f"Beam: {'; '.join(problems)}")
    if unknown and not (
        unknown[0].startswith("--") and isinstance(runner, PortableRunner)
    ):  # whose job service may know
        raise UserError(f"Beam: '{unknown[0]}' is no option of Beam's; its documentation lists those of every runner")
    return options


def _last_line(error: Exception) -> str:
    """What a failure says at its end, where tracebacks name the error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
