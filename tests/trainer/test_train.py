"""A run from its configuration to its folder: what it learns, what it writes, what it refuses."""

import json
import math
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from motet.core.errors import UserError
from motet.pipeline.dataset.header import DamagedShard
from motet.trainer.config import load
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.loader import heldout_loader
from motet.trainer.data.order import Order
from motet.trainer.objective.losses import losses
from motet.trainer.run import metrics
from motet.trainer.run.checkpoint import latest
from motet.trainer.run.launch import launch
from motet.trainer.run.optimizer import learning_rate
from motet.trainer.run.state import Run
from motet.trainer.run.train import train
from motet.trainer.use.trained import Trained


def rows_of(out) -> list[dict]:
    return list(metrics.read(Path(out)))


def learnt(out) -> list[dict]:
    """The rows without what the clock says."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second", "mfu")} for row in rows_of(out)]


def average(rows: list[dict], name: str) -> float:
    values = [row["losses"][name] for row in rows if row["losses"][name] is not None]
    return sum(values) / len(values)


def test_next_token_losses_fall(train_config, tmp_path):
    config = train_config(steps=90, evaluate_every=30)
    summary = train(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert summary["finished"] and [row["step"] for row in rows] == list(range(90))
    for name in ("text", "speech"):
        assert average(rows[-10:], name) < average(rows[:5], name) - 0.25
    assert rows[89]["heldout"]["text"] < rows[29]["heldout"]["text"]


def test_next_token_and_diffusion_losses_fall(train_config, dataset, tmp_path):
    config = train_config(steps=60, data={"paths": [dataset], "caption_first": 0.7}, objective={"kind": "transfusion"})
    train(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert average(rows[-10:], "text") < average(rows[:5], "text") - 0.5
    assert average(rows[-15:], "diffusion") < 0.7 * average(rows[:10], "diffusion")


def test_a_row_tells_what_the_step_did(train_config, tmp_path):
    config = train_config(steps=4)
    seen = []
    train(config, tmp_path / "run", on_step=seen.append)
    rows = rows_of(tmp_path / "run")
    assert rows == json.loads(json.dumps(seen))
    order = Order(Corpus.open(config.data.paths, "train", config.data.holdout), config.data, config.rows, config.seed)
    tokens = [sum(p.end - p.begin for row in order.rows_of(step).rows for p in row) for step in range(4)]
    assert [row["tokens"] for row in rows] == [sum(tokens[: i + 1]) for i in range(4)]
    assert [row["lr"] for row in rows] == [learning_rate(i, 4, config.optimizer) for i in range(4)]
    assert len({row["batch"] for row in rows}) == 4
    assert all(row["tokens_per_second"] > 0 and row["grad_norm"] > 0 for row in rows)
    assert load(tmp_path / "run" / "train.yaml") == config
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_micro_batches_add_up_to_the_global_batch(train_config, tmp_path):
    runs = {}
    for micro_rows in (1, 2, 4):
        train(train_config(steps=6, micro_rows=micro_rows), tmp_path / str(micro_rows))
        runs[micro_rows] = rows_of(tmp_path / str(micro_rows))
    for other in (1, 2):
        for a, b in zip(runs[4], runs[other], strict=True):
            assert a["batch"] == b["batch"]
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_a_finished_run_says_so_and_does_nothing(train_config, tmp_path, capsys):
    launch(train_config(steps=3), tmp_path / "run")
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    capsys.readouterr()
    summary = launch(train_config(steps=3), tmp_path / "run")
    assert summary["finished"] and summary["resumed_from"] == 3
    assert "finished, all 3 steps: nothing to do" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == files


def test_progress_is_plain_lines_in_a_log(train_config, tmp_path, capsys):
    launch(train_config(steps=3), tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1/3: text ") and lines[-1].startswith("step 3/3: text ")
    assert all("\r" not in line and "speech" in line and "tokens/s" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"optimizer": {"lr": 0.1}}, "optimizer.lr: the run in this folder has 0.003, the configuration asks for 0.1"),
        ({"steps": 5}, "steps: the run in this folder has 3"),
        ({"data": {"holdout": 0.2}}, "data.holdout"),
        ({"model": {"towers": {"speech": "text"}}}, "model.towers.speech"),
    ],
)
def test_a_folder_belongs_to_one_configuration(train_config, tmp_path, change, told):
    train(train_config(steps=3), tmp_path / "run")
    with pytest.raises(UserError, match="choose another --out") as error:
        train(train_config(**{"steps": 3, **change}), tmp_path / "run")
    assert told in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it")
def test_eight_bits_are_refused_where_nothing_multiplies_them(train_config, tmp_path):
    with pytest.raises(UserError, match="precision: float8: this machine has no GPU that multiplies in eight bits"):
        train(train_config(precision="float8"), tmp_path)


def test_other_folders_are_left_alone(train_config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex, but no training run"):
        train(train_config(), tmp_path / "mine")
    with pytest.raises(UserError, match="is a file"):
        train(train_config(), tmp_path / "mine" / "thesis.tex")
    with pytest.raises(UserError, match="cannot be written"):
        train(train_config(), "/proc/run")


def test_one_process_trains_in_a_folder(train_config, tmp_path):
    def again(row):
        with pytest.raises(UserError, match="another process is training here"):
            train(train_config(steps=1), tmp_path / "run")

    train(train_config(steps=1), tmp_path / "run", on_step=again)


@pytest.mark.parametrize("which", ["chameleon", "transfusion", "weights", "towers", "nothing"])
def test_objective_and_data_must_fit(train_config, dataset, tmp_path, which):
    config, told = {
        "chameleon": (train_config(data={"paths": [dataset]}), "image is given as latents; use transfusion"),
        "transfusion": (train_config(objective={"kind": "transfusion"}), "the data has none; use chameleon"),
        "weights": (
            train_config(objective={"weights": {"image": 2}}),
            "objective.weights: image: the data has no such",
        ),
        "towers": (train_config(model={"towers": {"image": "text"}}), "model.towers: image: the data has no such"),
        "nothing": (train_config(data={"paths": [str(tmp_path)]}), str(tmp_path)),
    }[which]
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run")
    assert told in str(error.value)


def test_a_flipped_byte_in_a_shard_is_refused_by_name(train_config, documents, write_dataset, tmp_path):
    root = Path(write_dataset(documents))
    shard = sorted(root.glob("shards/speeches-*"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    config = train_config(data={"paths": [str(root)]}, objective={"kind": "transfusion"})
    with pytest.raises(DamagedShard, match=shard.name):
        train(config, tmp_path / "run")


def test_divergence_is_told_and_not_saved(train_config, tmp_path):
    config = train_config(optimizer={"lr": 1e30, "warmup": 0, "clip": None}, checkpoint_every=1)
    with pytest.raises(UserError, match="diverged; lower the rate"):
        train(config, tmp_path / "run")
    for row in rows_of(tmp_path / "run"):
        assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(train_config, tmp_path, number):
    config = train_config(steps=12, checkpoint_every=1000)
    out = tmp_path / "run"
    said = []
    before = signal.getsignal(number)
    summary = train(
        config,
        out,
        on_step=lambda row: os.kill(os.getpid(), number) if row["step"] == 4 else None,
        say=said.append,
    )
    assert not summary["finished"] and 5 <= summary["step"] < 12
    assert said[-1] == f"stopped and saved after step {summary['step']} of 12; the same command goes on from there"
    assert latest(out).name == f"step-{summary['step']:06d}"
    assert signal.getsignal(number) == before
    train(config, out)
    train(config, tmp_path / "undisturbed")
    assert learnt(out) == learnt(tmp_path / "undisturbed")


def test_the_learning_rate_climbs_and_falls(train_config):
    optimizer = train_config(optimizer={"lr": 1.0, "warmup": 4, "final": 0.1}).optimizer
    rates = [learning_rate(step, 20, optimizer) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[19] == pytest.approx(0.1)
    linear = optimizer.model_copy(update={"schedule": "linear"})
    assert learning_rate(12, 21, linear) == pytest.approx(0.55)
    constant = optimizer.model_copy(update={"schedule": "constant"})
    assert {learning_rate(step, 20, constant) for step in range(4, 20)} == {1.0}


def test_only_matrices_decay(train_config, dataset, tmp_path):
    config = train_config(
        data={"paths": [dataset]},
        objective={"kind": "transfusion"},
        model={"unet": {"patch": 2, "channels": [8, 16], "blocks": 1}, "experts": {"text": {"count": 2}}},
    )
    run = Run.open(config, tmp_path)
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    for weight in run.model.parameters():
        weight.grad = torch.zeros_like(weight)
    run.optimizer.step()  # of a gradient of nought: what changes has decayed
    own = {"embedding.weight", "norm", "patches.norm.weight", *(name for name in before if name.endswith("_norm"))}
    for name, weight in run.model.named_parameters():
        left = weight.detach()
        if name in own or weight.dim() == 1:
            assert torch.equal(left, before[name]), name
        else:
            assert torch.allclose(left, before[name] * (1 - 3e-3 * 0.1), rtol=1e-6), name
    assert {"head.weight", "blocks.1.router", "patches.project_in.weight"} <= before.keys() - own


def test_the_curves_are_a_picture(train_config, tmp_path):
    train(train_config(steps=4, evaluate_every=2), tmp_path / "run")
    svg = metrics.curves(tmp_path / "run").read_text()
    assert "<svg" in svg and svg.count('id="axes_') == 2


def test_bfloat16_products(train_config, tmp_path):
    train(train_config(steps=4, precision="bfloat16"), tmp_path / "bf16")
    train(train_config(steps=4), tmp_path / "float32")
    for a, b in zip(rows_of(tmp_path / "bf16"), rows_of(tmp_path / "float32"), strict=True):
        assert a["loss"] != b["loss"] and a["loss"] == pytest.approx(b["loss"], rel=0.02)
    assert all(w.dtype is torch.float32 for w in Trained.open(tmp_path / "bf16").model.parameters())


def test_steps_are_those_of_adamw_written_out(train_config, tmp_path):
    """The rate of each step, the gradient of that step alone, clipped as a whole, and Adam's moments."""
    settings = {"lr": 0.02, "betas": [0.9, 0.95], "warmup": 2, "weight_decay": 0.5, "clip": 0.2, "final": 0.1}
    config = train_config(steps=4, checkpoint_every=100, optimizer=settings)
    plain = Run.open(config, tmp_path / "plain")
    weights = {name: weight.data for name, weight in plain.model.named_parameters()}
    moments = {name: [torch.zeros_like(weight), torch.zeros_like(weight)] for name, weight in weights.items()}
    norms = []
    for step, rate in enumerate((0.02 / 3, 0.04 / 3, 0.02, 0.002)):
        plain.model.zero_grad()
        for batch in plain.loader.micro_batches(step, micro_rows=2):
            losses(plain.model, batch, config.objective, plain.loader.view(step, micro_rows=2).counts).total.backward()
        gradient = {name: weight.grad for name, weight in plain.model.named_parameters()}
        norms.append(math.sqrt(sum(float(each.double().square().sum()) for each in gradient.values())))
        for name, weight in weights.items():
            first, second = moments[name]
            clipped = gradient[name] * (0.2 / norms[-1])
            first += 0.1 * (clipped - first)
            second += 0.05 * (clipped**2 - second)
            if weight.dim() > 1 and "norm" not in name and name != "embedding.weight":
                weight -= rate * 0.5 * weight
            corrected = (second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
            weight -= rate * first / (1 - 0.9 ** (step + 1)) / corrected
    assert min(norms) > 0.3  # every step is clipped
    train(config, tmp_path / "run")
    assert [row["grad_norm"] for row in rows_of(tmp_path / "run")] == pytest.approx(norms, rel=1e-3)
    for name, weight in Trained.open(tmp_path / "run").model.named_parameters():
        assert torch.allclose(weight, weights[name], rtol=0, atol=2e-4), name


def test_held_out_losses_are_of_the_first_held_out_rows(train_config, tmp_path):
    config = train_config(steps=4, evaluate_every=2, evaluate_rows=3, checkpoint_every=2)
    train(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows if "heldout" in row] == [1, 3]
    for done in (2, 4):
        trained = Trained.open(tmp_path / "run" / "checkpoints" / f"step-{done:06d}")
        unseen = Corpus.open(config.data.paths, "heldout", config.data.holdout)
        loader = heldout_loader(unseen, trained.vocabulary, trained.towers, config.data, 1000)
        nats, labels = Counter(), Counter()
        with torch.no_grad():
            for batch in loader.once(1, 3):
                found = losses(trained.model, batch, config.objective, {})
                nats.update({name: float(each) for name, each in found.sums.items()})
                labels.update({name: int(each) for name, each in found.counts.items()})
        assert rows[done - 1]["heldout"].keys() == {"text", "speech"} == nats.keys()
        for name, loss in rows[done - 1]["heldout"].items():
            assert loss == pytest.approx(nats[name] / labels[name], rel=1e-5)


def test_rows_are_on_the_disk_before_the_checkpoint_that_they_lead_to(train_config, tmp_path, monkeypatch):
    synced, named, fsync, replace = [0], [], os.fsync, os.replace

    def sync(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/metrics.jsonl"):
            synced.append(len(rows_of(tmp_path / "run")))
        fsync(descriptor)

    def renamed(old, new, **options):
        if Path(new).name.startswith("step-") and Path(new).suffix != ".partial":
            named.append((Path(new).name, synced[-1]))
        replace(old, new, **options)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", renamed)
    train(train_config(steps=5, checkpoint_every=2), tmp_path / "run")
    assert [name for name, _ in named] == ["step-000002", "step-000004", "step-000005"]
    assert all(rows >= int(name[-6:]) for name, rows in named)
