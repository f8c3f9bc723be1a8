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


def test_torchrun_trains_as_one_process_does(train_config, tmp_path):
    settings = {"steps": 6, "checkpoint_every": 3, "micro_rows": 1}
    train(train_config(**settings), tmp_path / "one")
    (tmp_path / "train.yaml").write_text(dump_config(train_config(**settings, launcher="torchrun", sharding="shard")))
    command = [*TORCHRUN, "-m", "motet.orchestration", "train", tmp_path / "train.yaml", "--out", tmp_path / "run"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (told,) = done.stdout.splitlines()
    assert json.loads(told)["finished"]
    for a, b in zip(metrics.read(tmp_path / "one"), metrics.read(tmp_path / "run"), strict=True):
        assert a["batch"] == b["batch"] and a["loss"] == pytest.approx(b["loss"], rel=1e-6)


def test_rows_that_the_processes_do_not_divide_are_refused(train_config, tmp_path):
    with pytest.raises(UserError, match="rows 2 must be a multiple of micro_rows x ranks = 2 x 2"):
        train(train_config(rows=2, micro_rows=2), tmp_path / "run", rank=1, world=2)


def test_without_torchrun_it_says_how_to_start_it(train_config, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"RANK.* not set: start it as torchrun --nproc-per-node N"):
        launch(train_config(launcher="torchrun"), tmp_path / "run")
