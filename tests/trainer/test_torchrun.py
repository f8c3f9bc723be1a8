"""`motet train` under torchrun itself: several processes, one voice, one exit code."""

import json
import subprocess
import sys

import pytest

from motet.core.configuration import dump_config
from motet.core.errors import UserError
from motet.trainer.run import metrics
from motet.trainer.run.launch import launch
from motet.trainer.run.train import train

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def ran(config, folder) -> subprocess.CompletedProcess:
    (folder / "train.yaml").write_text(dump_config(config))
    command = [
        *TORCHRUN,
        "-m",
        "motet.orchestration",
        "train",
        folder / "train.yaml",
        "--out",
        folder / "run",
        "--json",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_torchrun_trains_as_one_process_does(train_config, tmp_path):
    settings = {"steps": 6, "checkpoint_every": 3, "micro_rows": 1}
    train(train_config(**settings), tmp_path / "one")
    done = ran(train_config(**settings, launcher="torchrun", sharding="shard"), tmp_path)
    assert done.returncode == 0, done.stderr
    (told,) = done.stdout.splitlines()
    assert json.loads(told)["finished"]
    for a, b in zip(metrics.read(tmp_path / "one"), metrics.read(tmp_path / "run"), strict=True):
        assert a["batch"] == b["batch"] and a["loss"] == pytest.approx(b["loss"], rel=1e-6)


def test_rows_that_the_processes_do_not_divide_are_refused(train_config, tmp_path):
    done = ran(train_config(rows=2, micro_rows=2, launcher="torchrun"), tmp_path)
    assert done.returncode != 0
    assert "rows 2 must be a multiple of micro_rows x ranks = 2 x 2" in done.stderr


def test_without_torchrun_it_says_how_to_start_it(train_config, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"RANK.* not set: start it as torchrun --nproc-per-node N"):
        launch(train_config(launcher="torchrun"), tmp_path / "run")
