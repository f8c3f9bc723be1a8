"""Two ranks, and one of them cannot read, or cannot write: both go on with the same batches, or both stop with the same words."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import commands, ranks

from motet.trainer.run import metrics
from motet.trainer.run.train import train

FULL = """
import json, subprocess, sys
disk, commands = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=True)
ranks = [subprocess.Popen(command) for command in json.loads(commands)]
sys.exit(max(rank.wait(timeout=120) for rank in ranks))
"""


@pytest.fixture
def copies(discrete_dataset, tmp_path) -> list[Path]:
    return [Path(shutil.copytree(discrete_dataset, tmp_path / name)) for name in ("zero", "one")]


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
    found = ranks(configs, tmp_path, tmp_path / "out")
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
    found = ranks(
        [train_config(data={"paths": [str(copy)]}, micro_rows=1) for copy in copies], tmp_path, tmp_path / "out"
    )
    assert [code for code, _ in found] == [3, 3]
    last = {told.splitlines()[-1] for _, told in found}
    assert len(last) == 1 and "is missing; " in (told := last.pop()) and "data.max_lost: 0.10 %" in told


def test_an_index_that_one_rank_cannot_read_stops_both(train_config, copies, tmp_path):
    (copies[1] / "manifest.json").write_text("{")
    found = ranks(
        [train_config(data={"paths": [str(copy)]}, micro_rows=1) for copy in copies], tmp_path, tmp_path / "out"
    )
    assert [code for code, _ in found] == [3, 3]
    assert len({told.splitlines()[-1] for _, told in found}) == 1 and "manifest.json" in found[0][1]


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0, reason="no namespaces here"
)
def test_a_full_disk_is_told_and_then_stops_both(train_config, discrete_dataset, tmp_path):
    (tmp_path / "disk").mkdir()
    config = train_config(steps=400, micro_rows=1, model={"dim": 64}, failed_saves=1)
    started = json.dumps(commands([config, config], tmp_path, tmp_path / "disk/out"))
    ran = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", FULL, tmp_path / "disk", started], capture_output=True, text=True
    )
    assert ran.returncode == 3
    for words in ("going on, 0 more in a row may fail", "make room, then the same command goes on"):
        assert ran.stdout.count(words) == 2, ran.stdout
    assert ran.stdout.count("No space left on device") == 4
