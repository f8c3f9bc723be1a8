"""Two ranks, and one of them cannot read, or cannot write: both go on with the same batches, or both stop with the same words."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from motet.core.configuration import dump_config
from motet.trainer.run import metrics
from motet.trainer.run.train import train

RANK = """
import sys, torch.distributed as dist
from motet.trainer.config import load
from motet.trainer.run.train import train
config, out, meeting, rank = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
try:
    print(train(load(config), out, int(rank), 2, say=lambda text: print("said:", text))["step"])
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(3)
finally:
    dist.destroy_process_group()  # a thread that is still there as Python ends would abort it
"""
FULL = """
import subprocess, sys
from pathlib import Path
disk, *command = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=True)
ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
sys.exit(max(rank.wait(timeout=120) for rank in ranks))
"""


def ranks(configs: list, folder: Path) -> list[tuple[int, str]]:
    """(exit code, output) of two ranks of one run, each with its own configuration: its own copy of the data."""
    started = []
    for rank, config in enumerate(configs):
        file = folder / f"{rank}.yaml"
        file.write_text(dump_config(config))
        command = [sys.executable, "-c", RANK, str(file), str(folder / "out"), str(folder / "meeting"), str(rank)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    return [(process.wait(timeout=120), process.stdout.read()) for process in started]


@pytest.fixture
def copies(discrete_dataset, tmp_path) -> list[Path]:
    return [Path(shutil.copytree(discrete_dataset, tmp_path / name)) for name in ("zero", "one")]


def test_gradients_of_two_ranks_are_those_of_one(train_config, dataset, tmp_path):
    """Also of what works outside of the wrapped forward pass: the head, and the U-Net round the transformer."""
    config = train_config(
        steps=6,
        micro_rows=1,
        data={"paths": [dataset]},
        objective={"kind": "transfusion"},
        model={"unet": {"patch": 2, "channels": [8, 16], "blocks": 1}, "experts": {"text": {"count": 2}}},
    )
    (tmp_path / "both").mkdir()
    assert [code for code, _ in ranks([config, config], tmp_path / "both")] == [0, 0]
    train(config, tmp_path / "one")
    both, one = (list(metrics.read(path)) for path in (tmp_path / "both" / "out", tmp_path / "one"))
    for a, b in zip(both, one, strict=True):
        assert a["batch"] == b["batch"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def damage(copy: Path, how: str) -> str:
    shard = sorted((copy / "shards").iterdir())[1]
    if how == "flip":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 4
        shard.write_bytes(data)
    else:
        shard.unlink()
    return shard.name


def batches(out: Path) -> list[str]:
    return [row["batch"] for row in metrics.read(out)]


@pytest.mark.parametrize("how", ["flip", "delete"])
@pytest.mark.parametrize("where", [[1], [0, 1]])
def test_what_one_rank_misses_is_left_out_on_both(train_config, copies, tmp_path, how, where):
    names = {damage(copies[rank], how) for rank in where}
    configs = [train_config(data={"paths": [str(copy)], "max_lost": 1}, micro_rows=1) for copy in copies]
    found = ranks(configs, tmp_path)
    assert [code for code, _ in found] == [0, 0], found
    told = [json.loads(line) for line in (tmp_path / "out/lost.jsonl").read_text().splitlines()]
    assert told and all(any(name in each["why"] for name in names) for each in told)
    assert all(each["why"].split(";")[0] in found[0][1] for each in told)
    # One process that has only what rank 1 has sees the same, and so does one that goes on from the middle.
    train(configs[1], tmp_path / "alone")
    assert batches(tmp_path / "alone") == batches(tmp_path / "out")
    half = train_config(data={"paths": [str(copies[1])], "max_lost": 1}, micro_rows=1, steps=6)
    shutil.rmtree(tmp_path / "alone/checkpoints")
    train(configs[1], tmp_path / "alone")
    assert batches(tmp_path / "alone") == batches(tmp_path / "out")
    assert half.steps < configs[1].steps


def test_more_than_may_be_lost_stops_both_with_the_same_words(train_config, copies, tmp_path):
    damage(copies[0], "delete")
    found = ranks([train_config(data={"paths": [str(copy)]}, micro_rows=1) for copy in copies], tmp_path)
    assert [code for code, _ in found] == [3, 3]
    last = {told.splitlines()[-1] for _, told in found}
    assert len(last) == 1 and "is missing; " in (told := last.pop()) and "data.max_lost: 0.10 %" in told


def test_an_index_that_one_rank_cannot_read_stops_both(train_config, copies, tmp_path):
    (copies[1] / "manifest.json").write_text("{")
    found = ranks([train_config(data={"paths": [str(copy)]}, micro_rows=1) for copy in copies], tmp_path)
    assert [code for code, _ in found] == [3, 3]
    assert len({told.splitlines()[-1] for _, told in found}) == 1 and "manifest.json" in found[0][1]


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0, reason="no namespaces here"
)
def test_a_full_disk_stops_both(train_config, discrete_dataset, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "train.yaml").write_text(dump_config(train_config(steps=400, micro_rows=1, model={"dim": 64})))
    command = [sys.executable, "-c", RANK, tmp_path / "train.yaml", tmp_path / "disk/out", tmp_path / "meeting"]
    ran = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", FULL, tmp_path / "disk", *command], capture_output=True, text=True
    )
    assert ran.returncode == 3
    assert ran.stdout.count("No space left on device") == 2
