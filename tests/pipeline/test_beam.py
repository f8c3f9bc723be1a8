"""Beam for real: its portable runner in this process, a job service and a worker pool in others, and kill -9."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from motet.core.configuration import dump_config
from motet.core.errors import UserError
from motet.pipeline.job.engines import EngineOptions
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.task import Result
from motet.pipeline.job.work import PartitionFailed

beam = pytest.importorskip("apache_beam")
pytestmark = pytest.mark.beam


def contents(out: Path) -> dict[str, bytes]:
    """All that decides what a reader sees."""
    return {str(p.relative_to(out)): p.read_bytes() for p in [out / "manifest.json", *sorted(out.glob("shards/*"))]}


@pytest.fixture
def undisturbed(corpus: Path, configure, tmp_path: Path) -> dict[str, bytes]:
    """What the local engine writes, in many small partitions."""
    tokenize_corpus(configure(partition_samples=3), corpus, tmp_path / "one")
    return contents(tmp_path / "one")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture
def serve() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a module of Beam's as a server in a process of its own, which listens when it is returned."""
    processes = []

    def start(module: str, option: str, port: int) -> subprocess.Popen:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the pool starts workers as `python`
        command = [sys.executable, "-m", module, f"{option}={port}"]
        process = subprocess.Popen(
            command, env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL, start_new_session=True
        )
        processes.append(process)
        end = time.monotonic() + 60
        while socket.socket().connect_ex(("localhost", port)) and time.monotonic() < end:
            time.sleep(0.05)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


JOBS = ("apache_beam.runners.portability.local_job_service_main", "--port")
POOL = ("apache_beam.runners.worker.worker_pool_main", "--service_port")


def on_services(jobs: int, pool: int) -> EngineOptions:
    extra = ("--runner=PortableRunner", f"--job_endpoint=localhost:{jobs}", "--environment_type=EXTERNAL")
    return EngineOptions(extra=(*extra, f"--environment_config=localhost:{pool}"))


def test_two_workers_write_the_bytes_of_the_local_engine(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    tokenize_corpus(configure(partition_samples=3), corpus, tmp_path / "beam", engine="beam", workers=2)
    assert contents(tmp_path / "beam") == undisturbed


def test_a_job_service_and_a_worker_pool_write_them_too(
    undisturbed, serve, corpus: Path, configure, tmp_path: Path
) -> None:
    jobs, pool = free_port(), free_port()
    serve(*JOBS, jobs)
    serve(*POOL, pool)
    config = configure(partition_samples=3)
    tokenize_corpus(config, corpus, tmp_path / "beam", engine="beam", options=on_services(jobs, pool))
    assert contents(tmp_path / "beam") == undisturbed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Beam's threads, when it is gone
def test_a_pipeline_that_is_lost_with_its_service_is_started_again(
    undisturbed, serve, corpus: Path, configure, tmp_path: Path, capfd
) -> None:
    """The job service is killed when the first partitions are committed, and comes back."""
    import threading

    out, jobs = tmp_path / "beam", free_port()
    service = serve(*JOBS, jobs)

    def kill_and_restart() -> None:
        while not list(out.glob("commits/*.json")):
            time.sleep(0.002)
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()
        serve(*JOBS, jobs)

    killer = threading.Thread(target=kill_and_restart)
    killer.start()
    extra = ("--runner=PortableRunner", f"--job_endpoint=localhost:{jobs}", "--environment_type=LOOPBACK")
    config = configure(partition_samples=1)
    tokenize_corpus(config, corpus, out, engine="beam", options=EngineOptions(extra=extra))
    killer.join()
    assert "going on with what is left" in capfd.readouterr().err
    tokenize_corpus(config, corpus, tmp_path / "local")
    assert contents(out) == contents(tmp_path / "local")


def children(pid: int) -> list[int]:
    try:
        return [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except OSError:
        return []


def test_a_killed_worker_process_costs_nothing(corpus: Path, configure, tmp_path: Path) -> None:
    out, config = tmp_path / "killed", tmp_path / "tokenize.yaml"
    settings = yaml.safe_load(dump_config(configure(partition_samples=1)))
    for entry in settings["corpus"]:
        entry["path"] = str(corpus / entry["path"])
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "motet.orchestration", "tokenize", str(config), "--out"]
    job = subprocess.Popen([*command, str(out), "--engine=beam", "--workers=2"], stderr=subprocess.PIPE)
    killed: set[int] = set()
    while job.poll() is None and len(killed) < 3:
        workers = {w for server in children(job.pid) for w in children(server)} - killed
        if workers and len(list(out.glob("commits/*.json"))) > len(killed):
            os.kill(next(iter(workers)), signal.SIGKILL)
            killed |= workers
        time.sleep(0.002)
    assert job.wait() == 0, job.communicate()
    assert killed, "the job was over before a worker could be killed"
    tokenize_corpus(configure(partition_samples=1), corpus, tmp_path / "local")
    assert contents(out) == contents(tmp_path / "local")


def test_the_transform_goes_into_a_pipeline_of_ones_own(
    undisturbed, corpus: Path, configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.testing.util import assert_that, equal_to

    from motet.pipeline.job.engines.beam import TokenizePartitions

    def own(work, tasks, workers, options) -> Iterator[Result]:
        flags = ["--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=2"]
        names = {task.commit for task in tasks}
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        done = pipeline | beam.Create(tasks) | TokenizePartitions(work)
        total = done | beam.Map(lambda named: named[1]) | beam.CombineGlobally(sum)
        assert_that(total, equal_to([sum(task.partition.size for task in tasks)]), "all the bytes")
        assert_that(done | beam.Keys(), equal_to(sorted(names)), "every commit once")
        result = pipeline.run()
        result.wait_until_finish()
        counters = {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}
        assert counters == {"partitions": len(tasks), "bytes": sum(task.partition.size for task in tasks)}
        yield from (Result(task.partition.entry.name, task.partition.size, 1) for task in tasks)

    monkeypatch.setattr("motet.pipeline.job.engines.beam.run", own)
    tokenize_corpus(configure(partition_samples=3), corpus, tmp_path / "beam", engine="beam")
    assert contents(tmp_path / "beam") == undisturbed


def test_equal_tasks_are_equal_bytes(corpus: Path, configure) -> None:
    import copy

    from motet.pipeline.dataset.header import ShardHeader
    from motet.pipeline.job.engines.beam import TaskCoder
    from motet.pipeline.job.partitions import partitions
    from motet.pipeline.job.task import Task

    for partition in partitions(configure(), corpus):
        task = Task(partition, ShardHeader((), {}, "h"), "k" * 16)
        coder = TaskCoder()
        assert coder.decode(coder.encode(task)) == task
        assert coder.encode(copy.deepcopy(coder.decode(coder.encode(task)))) == coder.encode(task)


@pytest.fixture
def failing(corpus: Path, configure, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A configuration of six texts, one a partition, whose tokenizer raises at the fourth."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/poisoned_for_beam.py").write_text(
        "from motet.tokenizers.text.bpe import BPE\n\n"
        "class Raises(BPE):\n"
        "    def load(self, data):\n"
        "        return 1 / (b'number 3' not in data) and super().load(data)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    rows = [f'{{"text": "This is number {i}."}}\n' for i in range(6)]
    (corpus / "six.jsonl").write_text("".join(rows), encoding="utf-8")
    return configure(
        corpus=[{"name": "six", "format": "text", "path": "six.jsonl"}],
        tokenizers={"text": {"use": "poisoned_for_beam:Raises", "path": str(tools / "bpe")}},
        partition_bytes=30,
    )


def test_a_partition_that_fails_is_told_as_by_the_local_engine(failing, corpus: Path, tmp_path: Path, capfd) -> None:
    with pytest.raises(PartitionFailed) as local:
        tokenize_corpus(failing, corpus, tmp_path / "local")
    with pytest.raises(PartitionFailed) as portable:
        tokenize_corpus(failing, corpus, tmp_path / "beam", engine="beam", workers=2)
    assert "six, partition 3" in str(local.value) and str(portable.value) == str(local.value)
    assert "Traceback" not in capfd.readouterr().err


def test_a_partition_that_fails_far_away_is_told_too(
    failing, serve, corpus: Path, tmp_path: Path, capfd, monkeypatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    jobs, pool = free_port(), free_port()
    serve(*JOBS, jobs)
    serve(*POOL, pool)
    with pytest.raises(PartitionFailed) as failed:
        tokenize_corpus(failing, corpus, tmp_path / "beam", engine="beam", options=on_services(jobs, pool))
    assert str(failed.value).startswith("six, partition 3 (six.jsonl): six.jsonl@90: bpe.load: ZeroDivisionError")
    assert str(failed.value).endswith("the same command goes on with the rest")
    assert "Traceback" not in capfd.readouterr().err
    assert "Traceback" in str(failed.value.__cause__), "for --debug"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--runner=FlonkRunner",), r"Unexpected pipeline runner: FlonkRunner. Valid values are .*FlinkRunner"),
        (("--direct_num_wokers=3",), "'--direct_num_wokers=3' is no option"),
        (("--direct_num_workers=three",), "argument --direct_num_workers: invalid int value: 'three'"),
        (("--runner=PortableRunner",), "--job_endpoint"),
        (("three",), "'three' is no option"),
    ],
)
def test_a_wrong_option_is_told(extra, message, corpus: Path, configure, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        tokenize_corpus(configure(), corpus, tmp_path / "out", engine="beam", options=EngineOptions(extra=extra))
    assert not list((tmp_path / "out/commits").glob("*"))


def test_the_command_ends_with_2_for_a_wrong_option(corpus: Path, configure, tmp_path: Path) -> None:
    (corpus / "tokenize.yaml").write_text(dump_config(configure()))
    command = [sys.executable, "-m", "motet.orchestration", "tokenize", "tokenize.yaml"]
    command += ["--out", str(tmp_path / "out"), "--engine=beam", "--", "--runner=FlonkRunner"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=corpus)
    assert done.returncode == 2 and "FlonkRunner" in done.stderr and len(done.stderr.splitlines()) == 1
