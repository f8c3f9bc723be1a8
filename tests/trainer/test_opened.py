"""One way from a configuration to its data: what a run could train on, everything else that asks for its data can open."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.manifest import Manifest
from motet.trainer.config import DataConfig
from motet.trainer.data import damage
from motet.trainer.data.balance import costs, shares
from motet.trainer.data.loader import Loader
from motet.trainer.data.opened import Opened
from motet.trainer.data.order import Cursor, Damage, Order
from motet.trainer.data.records import Lost
from motet.trainer.generate.generator import Sampling
from motet.trainer.run import metrics
from motet.trainer.run.state import Run
from motet.trainer.run.train import train
from motet.trainer.use.evaluate import evaluate
from motet.trainer.use.media.pairs import heldout_pairs
from motet.trainer.use.media.sheet import label
from motet.trainer.use.plan import plan
from motet.trainer.use.trained import Trained
from motet.trainer.use.why import why

LATENTS = {"kind": "transfusion"}


def flip(dataset: Path, source: str) -> None:
    """One bit of a source's first shard."""
    entry = next(entry for entry in Manifest.load(dataset).shards if entry.source == source)
    with open(dataset / entry.file, "r+b") as file:
        file.seek((entry.batch_offsets[0] + entry.batch_offsets[1]) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))


def test_a_run_with_an_edit_that_brings_a_source_is_evaluated_told_and_shown(
    train_config, documents, write_dataset, tmp_path
):
    emoji = write_dataset([d for d in documents if d.source in ("emoji", "prompts")])
    later = write_dataset([d for d in documents if d.source in ("speeches", "families")])
    config = train_config(
        data={
            "paths": [emoji],
            "weights": {"emoji": 1, "prompts": 1},
            "edits": [
                {
                    "from_step": 2,
                    "paths": [later],
                    "weights": {"emoji": 1, "prompts": 1, "speeches": 2, "families": 1},
                }
            ],
        },
        objective={"kind": "transfusion"},
        steps=4,
    )
    train(config, tmp_path / "run")
    trained = Trained.open(tmp_path / "run")
    assert evaluate(trained)["sources"].keys() == {"emoji", "prompts"}  # what an edit brings is for training only
    assert heldout_pairs(trained, "image", 3) and heldout_pairs(trained, "speech", 2)
    assert "190 documents (emoji, prompts)" in label(trained, Sampling(), 3)
    assert plan(config, 4)["sources"].keys() == {"emoji", "prompts", "speeches", "families"}
    assert why(tmp_path / "run", 3)["pieces"]


def test_what_a_run_survived_its_evaluation_survives_and_so_does_what_was_damaged_since(
    train_config, documents, write_dataset, tmp_path, caplog
):
    dataset = Path(write_dataset([d for d in documents if d.source in ("speeches", "prompts")], rows_per_shard=20))
    config = train_config(data={"paths": [str(dataset)], "max_lost": 0.5, "holdout": 0.3}, objective=LATENTS, steps=6)
    whole = train(config, tmp_path / "whole") and evaluate(Trained.open(tmp_path / "whole"))
    flip(dataset, "prompts")
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / damage.LOST).exists()
    found = evaluate(Trained.open(tmp_path / "run"))
    assert 0 < found["modalities"]["speech"]["labels"] < whole["modalities"]["speech"]["labels"]
    flip(dataset, "speeches")
    caplog.clear()
    again = evaluate(Trained.open(tmp_path / "run"))
    assert "going on with the documents that are left" in caplog.text
    assert 0 < again["modalities"]["text"]["labels"] < found["modalities"]["text"]["labels"]


def test_more_than_may_be_lost_is_refused_again_and_again_until_the_data_is_whole(
    train_config, documents, write_dataset, tmp_path
):
    dataset = Path(write_dataset([d for d in documents if d.source in ("speeches", "prompts")]))
    config = train_config(data={"paths": [str(dataset)]}, objective=LATENTS, steps=4)
    train(config, tmp_path / "undisturbed")
    flip(dataset, "prompts")
    for _ in range(2):
        with pytest.raises(DamagedShard, match=r"more than data\.max_lost: 0\.10 %"):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run" / damage.LOST).exists()
    flip(dataset, "prompts")
    train(config, tmp_path / "run")
    ours, theirs = ([row["batch"] for row in metrics.read(tmp_path / name)] for name in ("run", "undisturbed"))
    assert ours == theirs


def test_a_run_that_goes_on_with_a_lower_limit_is_held_to_it(train_config, documents, write_dataset, tmp_path):
    dataset = Path(write_dataset([d for d in documents if d.source in ("speeches", "prompts")]))
    flip(dataset, "prompts")
    train(train_config(data={"paths": [str(dataset)], "max_lost": 1}, objective=LATENTS, steps=4), tmp_path)
    with pytest.raises(DamagedShard, match=r"lost\.jsonl: without what it names .* are lost"):
        Run.open(train_config(data={"paths": [str(dataset)], "max_lost": 0.01}, objective=LATENTS, steps=4), tmp_path)


NOTES = """
import sys
from pathlib import Path
from motet.trainer.data import damage
from motet.trainer.data.order import Damage
from motet.trainer.data.records import Lost
out = Path(sys.argv[1])
for number in range(len(damage.read(out)), 10**6):
    damage.note(out, [Damage(number, Lost("d" * 32, number, number + 1, "w" * 3000))])
    print(number, flush=True)
"""


def test_damage_that_was_noted_is_never_forgotten_whenever_a_process_is_killed(tmp_path):
    noted = -1
    for turn in range(6):
        process = subprocess.Popen([sys.executable, "-c", NOTES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        noted = int(process.stdout.readline())
        time.sleep(0.05 + 0.03 * turn)
        os.kill(process.pid, signal.SIGKILL)
        told, _ = process.communicate()
        noted = max([noted, *map(int, told.split())])
        rows = [each.row for each in damage.read(tmp_path)]
        assert rows == list(range(len(rows))) and len(rows) > noted
    assert noted > 20


def test_a_kill_while_damage_is_written_leaves_the_old_list(tmp_path, monkeypatch):
    first, second = (Damage(row, Lost("d" * 32, row, row + 1, "gone")) for row in range(2))
    damage.note(tmp_path, [first])

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        damage.note(tmp_path, [second])
    assert damage.read(tmp_path) == [first]


def test_a_step_asks_once_for_its_rows(dataset, monkeypatch):
    loader = Loader.open(DataConfig(paths=[dataset], sequence=128), rows=8, seed=1)
    asked, rows_of = [], Order.rows_of
    monkeypatch.setattr(Order, "rows_of", lambda self, step: asked.append(step) or rows_of(self, step))
    view = loader.view(3, 1, 4, 2)
    assert asked == [3]
    assert view.rows == shares(costs(rows_of(loader.order, 3), loader.pair), 4)[1]
    assert view.counts.keys() == {"text", "image", "speech", "diffusion"}


def test_a_loader_of_ones_own_goes_on_from_a_cursor_that_was_written_as_json(dataset):
    data = DataConfig(paths=[dataset], sequence=128)
    loader = Loader.open(data, rows=8, seed=1)
    cursor = json.loads(json.dumps(loader.order.cursor(40)))
    other = Loader.open(data, rows=8, seed=1)
    other.order.remember(Cursor.from_json(cursor))
    for a, b in zip(loader.micro_batches(40), other.micro_batches(40), strict=True):
        assert (a.ids_T == b.ids_T).all() and (a.place_T == b.place_T).all()
    assert Opened.of(data, 8, 1).order.rows_of(40).rows == loader.order.rows_of(40).rows
