"""A run that was stopped anywhere, any way, is in the end the run that never was."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from motet.core.configuration import dump_config
from motet.core.errors import UserError
from motet.trainer.run import metrics
from motet.trainer.run.checkpoint import MODEL, OPTIMIZER, DamagedCheckpoint, latest
from motet.trainer.run.train import train

TRAIN = "import sys; from motet.trainer.config import load; from motet.trainer.run.train import train; train(load(sys.argv[1]), sys.argv[2])"
CLOCK = ("seconds", "tokens_per_second", "mfu")


class Crash(Exception):
    pass


def learnt(out: Path) -> list[dict]:
    """The rows without what the clock says."""
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in metrics.read(out)]


def tensors(out: Path) -> list[bytes]:
    return [file.read_bytes() for name in (MODEL, OPTIMIZER) for file in sorted((latest(out) / name).iterdir())]


@pytest.fixture
def undisturbed(train_config, dataset, tmp_path):
    """(configuration, folder) of a whole run of both objectives, every checkpoint kept."""
    config = train_config(
        data={"paths": [dataset]},
        objective={"kind": "transfusion"},
        steps=15,
        checkpoint_every=2,
        keep=100,
        evaluate_every=5,
        evaluate_rows=2,
    )
    train(config, tmp_path / "undisturbed")
    return config, tmp_path / "undisturbed"


def test_from_any_checkpoint(undisturbed, tmp_path):
    config, whole = undisturbed
    for path in sorted((whole / "checkpoints").iterdir()):
        out = tmp_path / path.name
        shutil.copytree(whole, out)
        for other in (out / "checkpoints").iterdir():
            if other.name > path.name:
                shutil.rmtree(other)
        train(config, out)
        assert learnt(out) == learnt(whole)
        assert tensors(out) == tensors(whole)


def test_crashes_at_random_steps(undisturbed, tmp_path):
    config, whole = undisturbed
    chance, crashes = random.Random(1), 0

    def crash(row):
        if chance.random() < 0.3:
            raise Crash

    while True:
        try:
            train(config, tmp_path / "run", on_step=crash)
            break
        except Crash:
            crashes += 1
    assert crashes >= 2
    assert learnt(tmp_path / "run") == learnt(whole)
    assert tensors(tmp_path / "run") == tensors(whole)


def test_kill_9_and_the_same_command(train_config, tmp_path):
    """Real processes, killed at random moments: while they read, step, write metrics or a checkpoint."""
    config = train_config(steps=250, checkpoint_every=1, rows=2, micro_rows=1)
    train(config, tmp_path / "undisturbed")
    (tmp_path / "train.yaml").write_text(dump_config(config))
    out, chance, reached = tmp_path / "run", random.Random(1), []
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "train.yaml"), str(out)]
    for _ in range(3):
        process = subprocess.Popen(command, start_new_session=True)
        before = len(reached) and reached[-1]
        while len(list(metrics.read(out))) <= before + 1 and process.poll() is None:
            time.sleep(0.02)
        time.sleep(chance.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over before it was killed"
        reached.append(len(list(metrics.read(out))))
    subprocess.run(command, check=True)
    assert reached == sorted(reached) and reached[-1] < 250
    assert learnt(out) == learnt(tmp_path / "undisturbed")
    assert tensors(out) == tensors(tmp_path / "undisturbed")


def test_a_row_cut_short_is_computed_again(undisturbed, tmp_path):
    config, whole = undisturbed
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(latest(tmp_path / "run"))
    path = tmp_path / "run" / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - 40)
    train(config, tmp_path / "run")
    assert learnt(tmp_path / "run") == learnt(whole)


def test_other_data_is_refused(train_config, documents, write_dataset, tmp_path):
    discrete = [d for d in documents if all(modality != "image" for modality, _ in d.spans)]
    paths = [write_dataset(some) for some in (discrete, discrete[:-3])]
    settings = {"steps": 4, "checkpoint_every": 2, "objective": {"kind": "transfusion"}}
    train(train_config(data={"paths": paths[:1]}, **settings), tmp_path / "run")
    with pytest.raises(UserError, match=r"the data is not what the run in .* began with"):
        train(train_config(data={"paths": paths[1:]}, **settings), tmp_path / "run")
    moved = shutil.copytree(paths[0], tmp_path / "elsewhere")
    assert train(train_config(data={"paths": [str(moved)]}, **settings), tmp_path / "run")["finished"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(undisturbed, tmp_path):
    config, whole = undisturbed
    shutil.copytree(whole, tmp_path / "run")
    newest = latest(tmp_path / "run")
    path = newest / OPTIMIZER / "00000.safetensors"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=str(path)):
        train(config, tmp_path / "run")
    shutil.rmtree(newest)
    train(config, tmp_path / "run")
    assert learnt(tmp_path / "run") == learnt(whole)


def test_a_run_goes_on_with_the_threads_it_began_with(train_config, tmp_path):
    config = train_config(threads=None, steps=4, checkpoint_every=2)
    before, used = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        with pytest.raises(Crash):
            train(config, tmp_path / "run", on_step=_crash_at(2))
        torch.set_num_threads(1)
        train(config, tmp_path / "run", on_step=lambda row: used.append(torch.get_num_threads()))
        assert set(used) == {2} and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_micro_batches_may_change_on_the_way(train_config, tmp_path):
    config = train_config(steps=8, checkpoint_every=4)
    train(config, tmp_path / "undisturbed")
    with pytest.raises(Crash):
        train(config, tmp_path / "run", on_step=_crash_at(5))
    train(train_config(steps=8, checkpoint_every=4, micro_rows=4), tmp_path / "run")
    for a, b in zip(learnt(tmp_path / "undisturbed"), learnt(tmp_path / "run"), strict=True):
        assert a["batch"] == b["batch"] and a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def _crash_at(step):
    def crash(row):
        if row["step"] == step:
            raise Crash

    return crash
