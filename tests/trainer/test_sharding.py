"""Ranks that hold shares of the weights learn what one process learns, and any number of them goes on from a checkpoint."""

import shutil
from pathlib import Path

import pytest
import torch
from ranks import ranks

from motet.core.errors import UserError
from motet.trainer.model.mot import MoT
from motet.trainer.objective.learner import Learner
from motet.trainer.run import checkpoint, metrics
from motet.trainer.run.checkpoint import DamagedCheckpoint
from motet.trainer.run.sharding import spread
from motet.trainer.run.state import Run
from motet.trainer.run.train import train
from motet.trainer.use.trained import Trained

AGAIN = """
from torch.distributed.tensor import DTensor
from motet.trainer.run.saving import Saver
from motet.trainer.run.sharding import spread
from motet.trainer.run.state import Run
run = Run.open(config, out, rank, world)
run.heldout_losses()
assert all(isinstance(weight, DTensor) == run.sharded for weight in run.model.parameters())
with Saver(out.with_name(f"again-{world}"), 1, 0, print, rank, world) as saver:
    run.save(saver, run.loader.order.cursor(run.step))
"""
EXPERTS = {
    "steps": 20,
    "rows": 12,
    "micro_rows": 1,
    "model": {"experts": {"text": {"count": 2}}, "norm": "before"},
}


def same(one: Path, other: Path) -> None:
    """The same batches, losses and norms, but for the order of sums; held-out losses too."""
    rows = [list(metrics.read(path)) for path in (one, other)]
    for a, b in zip(*rows, strict=True):
        assert (a["step"], a["batch"], a["tokens"], a["lr"]) == (b["step"], b["batch"], b["tokens"], b["lr"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
        assert a.get("heldout", {}) == pytest.approx(b.get("heldout", {}), rel=1e-5)


def files(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*.safetensors")}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return Trained.open(path).model.state_dict()


@pytest.fixture(scope="module")
def two(train_config, tmp_path_factory) -> tuple[Path, Path]:
    """(a run of one process, the same on two ranks that share the weights): three towers, experts in one of them."""
    root = tmp_path_factory.mktemp("two")
    train(train_config(**EXPERTS), root / "one")
    found = ranks([train_config(**EXPERTS, sharding="shard")] * 2, root, root / "two")
    assert [code for code, _ in found] == [0, 0], found
    return root / "one", root / "two"


@pytest.fixture(scope="module")
def pictures(train_config, dataset, tmp_path_factory) -> tuple[dict, Path, Path]:
    """(settings, a run of one process, the same on 2 x 2 ranks up to its middle): a U-Net round three towers."""
    root = tmp_path_factory.mktemp("pictures")
    settings = {
        **{"steps": 20, "rows": 12, "micro_rows": 1, "checkpoint_every": 10, "keep": 2, "evaluate_every": 5},
        "evaluate_rows": 3,
        "data": {"paths": [dataset]},
        "objective": {"kind": "transfusion"},
        "model": {"unet": {"patch": 2, "channels": [8, 16], "blocks": 1}},
    }
    train(train_config(**settings), root / "one")
    found = ranks([train_config(**settings, sharding="hybrid", shards=2)] * 4, root, root / "four")
    assert [code for code, _ in found] == [0] * 4, found
    return settings, root / "one", root / "four"


def test_two_shares_are_one_model(two):
    one, both = two
    same(one, both)
    for name, weight in weights(one).items():
        assert torch.allclose(weight, weights(both)[name], rtol=0, atol=1e-5), name


def test_two_groups_of_two_shares_are_one_model(pictures):
    _, one, four = pictures
    same(one, four)


def test_two_whole_models_are_one_too(pictures, train_config, tmp_path):
    """Each rank has all weights, and gradients are added up: the head and the U-Net, outside of the layers, with them."""
    settings, one, _ = pictures
    found = ranks([train_config(**settings)] * 2, tmp_path, tmp_path / "run")
    assert [code for code, _ in found] == [0, 0], found
    same(one, tmp_path / "run")


def test_layers_may_travel_in_bfloat16(pictures, train_config, tmp_path):
    settings = {**pictures[0], "steps": 6, "checkpoint_every": 6, "precision": "bfloat16", "recompute": "layer"}
    train(train_config(**settings), tmp_path / "one")
    found = ranks([train_config(**settings, sharding="shard")] * 2, tmp_path, tmp_path / "two")
    assert [code for code, _ in found] == [0, 0], found
    for a, b in zip(metrics.read(tmp_path / "one"), metrics.read(tmp_path / "two"), strict=True):
        assert a["batch"] == b["batch"] and a["loss"] == pytest.approx(b["loss"], rel=2e-3)
    stored = Trained.open(tmp_path / "two").model.state_dict().values()
    assert all(weight.dtype is torch.float32 for weight in stored)


def test_the_same_ranks_write_the_same_bytes_about_equally_many(two, train_config, tmp_path):
    _, both = two
    found = ranks([train_config(**EXPERTS, sharding="shard")] * 2, tmp_path, tmp_path / "again")
    assert [code for code, _ in found] == [0, 0], found
    once, again = (files(checkpoint.latest(path)) for path in (both, tmp_path / "again"))
    assert once == again
    for kind in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        sizes = [len(data) for name, data in once.items() if name.startswith(kind)]
        assert len(sizes) == 2 and max(sizes) <= 1.03 * min(sizes)


def test_any_number_of_ranks_goes_on_from_the_shares_of_four(pictures, train_config, tmp_path):
    settings, one, four = pictures
    for name, ways in {"one": [{}], "three": [{"sharding": "shard"}] * 3}.items():
        out = Path(shutil.copytree(four, tmp_path / name / "run"))
        shutil.rmtree(checkpoint.latest(out))
        assert checkpoint.latest(out).name == "step-000010"
        configs = [train_config(**settings, **way) for way in ways]
        found = ranks(configs, tmp_path / name, out, AGAIN)
        assert [code for code, _ in found] == [0] * len(ways), found
        copied = weights(tmp_path / name / f"again-{len(ways)}")
        assert all(torch.equal(weight, copied[each]) for each, weight in weights(checkpoint.latest(out)).items())
        if name == "one":
            assert train(configs[0], out)["finished"]
            same(one, out)


def test_groups_that_do_not_divide_the_ranks_are_refused(train_config):
    config = train_config(micro_rows=1, sharding="hybrid", shards=3)
    with torch.device("meta"):
        learner = Learner(MoT(config.model, ["text"], 10, seed=None), config.objective)
    with pytest.raises(UserError, match="shards: 3 ranks that share the weights do not divide the 2 ranks"):
        spread(learner, config, torch.device("cpu"), 2)


def test_damage_of_any_rank_is_named(two, train_config, tmp_path):
    _, both = two
    for name in sorted(files(checkpoint.latest(both))):
        out = Path(shutil.copytree(both, tmp_path / name.replace("/", "-")))
        path = checkpoint.latest(out) / name
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 16
        path.write_bytes(data)
        with pytest.raises(DamagedCheckpoint, match=f"{name}: damaged checkpoint"):
            Run.open(train_config(**EXPERTS), out)
