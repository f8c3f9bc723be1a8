"""A step's samples are told again from its cursor; a configuration's course is told before it is run."""

import json
from pathlib import Path

import numpy as np
import pytest

from motet.core.errors import UserError
from motet.pipeline.dataset.manifest import Manifest
from motet.trainer.data import order
from motet.trainer.data.loader import Loader
from motet.trainer.data.records import LostBatches
from motet.trainer.run import metrics
from motet.trainer.run.state import Run
from motet.trainer.run.train import train
from motet.trainer.use.plan import plan
from motet.trainer.use.trained import Trained
from motet.trainer.use.why import why


def test_the_samples_of_a_step_are_those_that_it_was_given(train_config, tmp_path, monkeypatch):
    given: dict[int, list[tuple]] = {}
    read = Loader.view

    def noted(self: Loader, step: int, *arguments):
        chosen = self.order.rows_of(step)
        ids = chosen.documents.sample_D2.astype(">u8")
        given[step] = [(r, ids[p.document].tobytes().hex(), *p[1:]) for r, row in enumerate(chosen.rows) for p in row]
        return read(self, step, *arguments)

    monkeypatch.setattr(Loader, "view", noted)
    config = train_config(
        steps=90,
        rows=8,
        micro_rows=8,
        data={"edits": [{"from_step": 50, "modality_weights": {"text": 0.5, "speech": 0.5}}]},
    )
    train(config, tmp_path / "run")
    assert metrics.cursor_of(tmp_path / "run", 89)["cursor"][0] > 256  # several windows
    (shards,) = (Manifest.load(path) for path in config.data.paths)
    there = {entry.file: shards.open_shard(entry) for entry in shards.shards}
    packed = []
    pack = order.Order._pack
    monkeypatch.setattr(order.Order, "_pack", lambda self, begin: packed.append(begin) or pack(self, begin))
    for step in (0, 3, 44, 70, 89):
        packed.clear()
        told = why(tmp_path / "run", step)
        assert len(packed) <= 2  # nothing is planned but the windows of the step
        assert [
            (p["row"], p["sample"], p["begin"], p["end"], p["flipped"], p["epoch"]) for p in told["pieces"]
        ] == given[step]
        assert told["batch"] == next(row["batch"] for row in metrics.read(tmp_path / "run") if row["step"] == step)
        for piece in told["pieces"]:
            batch = there[piece["shard"]].batch(piece["record_batch"])
            assert batch.column("sample_id")[piece["document"]].as_py().hex() == piece["sample"]
            assert batch.column("source")[piece["document"]].as_py() == piece["source"]
            assert piece["dataset"] == config.data.paths[0]
    to_come = why(tmp_path / "run", 95)
    assert to_come["batch"] is None and len({piece["row"] for piece in to_come["pieces"]}) == 8


def test_no_run_no_step(tmp_path, train_config):
    with pytest.raises(UserError, match=r"holds no training run .no train.yaml.; give the folder"):
        why(tmp_path, 3)
    train(train_config(steps=1), tmp_path / "run")
    with pytest.raises(UserError, match="step -1: steps count from 0"):
        why(tmp_path / "run", -1)


def test_a_forecast_is_what_training_then_sees(train_config, tmp_path):
    config = train_config(steps=40, rows=8, data={"weights": {"prompts": 1, "speeches": 3}})
    told = json.loads(json.dumps(plan(config, 30)))
    train(config.model_copy(update={"steps": 30}), tmp_path / "run")
    last = list(metrics.read(tmp_path / "run"))[-1]
    assert told["tokens"] == last["tokens"] and told["steps"] == 30
    assert told["padding"] == pytest.approx(1 - last["tokens"] / (30 * 8 * 128))
    assert sum(told["modalities"].values()) == pytest.approx(1)
    assert told["sources"]["speeches"]["share"] == pytest.approx(0.75, abs=0.03)
    assert told["sources"]["speeches"]["epochs"] > told["sources"]["prompts"]["epochs"] > 0
    assert set(told["imbalance"]) == {"1", "2", "4"} and told["imbalance"]["1"] == [1.0, 1.0]
    assert all(1 <= median <= worst < 1.5 for median, worst in told["imbalance"].values())
    assert plan(config, 1000)["steps"] == 40
    model = Trained.open(tmp_path / "run").model
    assert told["parameters"] == sum(weight.numel() for weight in model.parameters()) > told["active"]
    assert told["towers"] == list(model.towers)


def test_damaged_held_out_documents_are_left_out_of_evaluation_only(
    write_dataset, documents, train_config, tmp_path, caplog
):
    discrete = [d for d in documents if all(m != "image" for m, _ in d.spans)]
    path = Path(write_dataset(discrete, 30, ("image", "speech", "text")))
    config = train_config(
        data={"paths": [str(path)], "holdout": 0.3}, objective={"kind": "transfusion"}, evaluate_rows=64
    )
    run = Run.open(config, tmp_path / "run")
    whole = run.heldout_losses()
    shard = sorted((path / "shards").iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    run = Run.open(config, tmp_path / "run")
    assert run.heldout_losses() != whole and shard.name in caplog.text
    assert run.heldout_losses() == run.heldout_losses() and len(run.heldout_damage) == 1
    with pytest.raises(LostBatches):
        run.loader.order.corpus.read(np.arange(run.loader.order.corpus.records.begin[-1]))
