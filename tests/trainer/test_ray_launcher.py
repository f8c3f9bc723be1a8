"""Two processes share each global batch, and Ray Train starts the same loop: the same bytes, killed or not."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from motet.core.configuration import dump_config
from motet.core.errors import UserError
from motet.trainer.config import DataConfig
from motet.trainer.data.collate import Noise
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.loader import Loader
from motet.trainer.data.order import Order
from motet.trainer.run import metrics
from motet.trainer.run.checkpoint import MODEL, OPTIMIZER, latest
from motet.trainer.run.launch import launch, ray_train
from motet.trainer.run.train import train
from motet.trainer.vocabulary import Towers, Vocabulary


def learnt(out: Path) -> list[dict]:
    clock = ("seconds", "tokens_per_second", "mfu")
    return [{key: value for key, value in row.items() if key not in clock} for row in metrics.read(out)]


def tensors(out: Path) -> list[bytes]:
    return [file.read_bytes() for name in (MODEL, OPTIMIZER) for file in sorted((latest(out) / name).iterdir())]


def ray_workers() -> list[int]:
    """Ray Train workers among the descendants of this process."""
    parent, name = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            name[int(stat.parent.name)] = (stat.parent / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent[int(stat.parent.name)] = int(fields[1])
    found = []
    for process in name:
        ancestor = process
        while ancestor not in (0, os.getpid()):
            ancestor = parent.get(ancestor, 0)
        if ancestor and "RayTrainWorker" in name[process]:
            found.append(process)
    return found


@pytest.fixture(scope="module")
def shared(train_config, tmp_path_factory):
    """(settings, folder of a run in one process, folder of the same run in two processes without Ray)."""
    root = tmp_path_factory.mktemp("shared")
    settings = {"steps": 120, "checkpoint_every": 20, "rows": 4, "micro_rows": 1}
    train(train_config(**settings), root / "one")
    from ranks import ranks  # Ray's workers import this file, and have no such path

    both = ranks([train_config(**settings)] * 2, root, root / "two")
    assert [code for code, _ in both] == [0, 0], both
    return settings, root / "one", root / "two"


def test_two_processes_share_each_global_batch(shared):
    _, one, two = shared
    for a, b in zip(learnt(one), learnt(two), strict=True):
        assert (a["step"], a["batch"], a["tokens"], a["lr"]) == (b["step"], b["batch"], b["tokens"], b["lr"])
    for a, b in zip(learnt(one)[:10], learnt(two)[:10], strict=True):  # sums in another order drift apart slowly
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


@pytest.mark.ray
def test_one_worker_gives_the_local_losses_to_the_byte(train_config, tmp_path):
    settings = {"steps": 8, "checkpoint_every": 4}
    train(train_config(**settings), tmp_path / "local")
    summary = launch(train_config(**settings, launcher="ray"), tmp_path / "ray")
    assert summary["finished"] and summary["step"] == 8
    assert learnt(tmp_path / "ray") == learnt(tmp_path / "local")
    assert tensors(tmp_path / "ray") == tensors(tmp_path / "local")
    assert not (tmp_path / "ray" / "train.ray").exists()


@pytest.mark.ray
def test_two_workers_give_the_bytes_of_two_processes_though_one_is_killed(shared, train_config, tmp_path):
    settings, _, two = shared
    killed = []

    def kill():
        while len(list(metrics.read(tmp_path / "ray"))) < 25:
            time.sleep(0.02)
        killed.extend(ray_workers()[:1])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = launch(train_config(**settings, launcher="ray", workers=2), tmp_path / "ray")
    killer.join()
    assert killed and summary["finished"] and 0 < summary["resumed_from"] < 120
    assert learnt(tmp_path / "ray") == learnt(two)
    assert tensors(tmp_path / "ray") == tensors(two)


def loop_of_ones_own(task: dict) -> None:
    """Somebody's own training loop in a Ray Train worker: what each step gave this rank, as a hash of its rows."""
    from ray.train import get_context

    corpus = Corpus.open([task["tokens"]], "train", holdout=0.02)
    vocabulary = Vocabulary.of(corpus.tokenizers)
    order = Order(corpus, DataConfig(paths=[task["tokens"]], sequence=128), rows=8, seed=0)
    loader = Loader(order, vocabulary, Towers.of(vocabulary, {}), Noise(seed=0, steps=1000))
    rank, world = get_context().get_world_rank(), get_context().get_world_size()
    found = []
    for step in range(40):
        for batch in loader.micro_batches(step, rank, world, micro_rows=8 // world):
            found.append(metrics.hash_of_rows(batch, loader.view(step, rank, world).rows))
    (Path(task["out"]) / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.ray
def test_the_stream_in_a_ray_train_worker_gives_the_same_global_batches(discrete_dataset, tmp_path, monkeypatch):
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    (tmp_path / "alone").mkdir()
    task = {"tokens": discrete_dataset, "out": str(tmp_path / "alone")}
    alone = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr("ray.train.get_context", lambda: alone)
        loop_of_ones_own(task)
    ray.init(address="local", num_cpus=3, include_dashboard=False)
    try:
        TorchTrainer(
            loop_of_ones_own,
            train_loop_config={**task, "out": str(tmp_path)},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(name="own", storage_path=str(tmp_path / "ray")),
        ).fit()
    finally:
        ray.shutdown()
    expected, *ranks = (json.loads((tmp_path / name).read_text()) for name in ("alone/0.json", "0.json", "1.json"))
    assert [metrics.wrapped(a + b) for a, b in zip(*ranks, strict=True)] == expected and len(set(expected)) == 40


def test_a_refusal_comes_back_as_what_it_is(train_config, tmp_path, monkeypatch):
    """A worker gives it to the driver as a value (an exception would make Ray try again), which raises it."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray_train, "get_context", lambda: context)
    config = train_config(launcher="ray", objective={"kind": "transfusion"})
    task = {"config": config.model_dump(mode="json"), "out": str(tmp_path / "run"), "threads": 1}
    answer = json.loads(json.dumps(ray_train.work(task)))
    with pytest.raises(UserError, match="the data has none; use chameleon"):
        ray_train.summary_of(answer)
    (tmp_path / "run/train.yaml").write_text(dump_config(config))
    with pytest.raises(UserError, match="set it back to go on"):
        launch(train_config(launcher="ray"), tmp_path / "run")
