"""The configuration file: defaults, round trip, and what each mistake gets."""

import pytest
import yaml

from motet.core.configuration import dump_config
from motet.core.errors import UserError
from motet.trainer.config import (
    MAY_CHANGE,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    load,
)
from motet.trainer.run import folder

SMALL = {
    "data": {"paths": ["tokens"], "sequence": 64},
    "model": {"dim": 32, "layers": 2, "heads": 2},
    "steps": 10,
    "rows": 4,
    "micro_rows": 2,
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **changes}))
        return path

    return write


def test_what_is_written_beside_a_run_reads_back_equal(write, tmp_path):
    config = load(write(optimizer={"lr": 0.01, "betas": [0.9, 0.99]}))
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load(again) == config


def test_paths_count_from_the_file_and_uris_stay(write, tmp_path):
    config = load(write(data={"paths": ["tokens", "/else/where", "s3://bucket/tokens"], "sequence": 64}))
    assert config.data.paths == [str(tmp_path / "tokens"), "/else/where", "s3://bucket/tokens"]


def test_overrides(write):
    config = load(write(), ["optimizer.lr=0.5", "data.weights={a: 1}", "model.towers={image: text}"])
    assert (config.optimizer.lr, config.data.weights, config.model.towers) == (0.5, {"a": 1.0}, {"image": "text"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"step": 3}, "step: unknown key; did you mean 'steps'"),
        ({"model": {"dim": 32, "layers": 2, "heads": 2, "qk_norms": True}}, "model.qk_norms: unknown key"),
        ({"model": {"dim": 32, "layers": 2, "heads": 3}}, "dim 32 must be a multiple of 2 * heads = 6"),
        ({"model": {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 3}}, "multiple of kv_heads 3"),
        ({"rows": 6, "micro_rows": 4}, "rows 6 must be a multiple of micro_rows x workers = 4 x 1"),
        ({"workers": 2}, "set launcher: ray"),
        ({"data": {"paths": [], "sequence": 64}}, "data.paths"),
        ({"data": {"paths": ["t"], "sequence": 64, "holdout": 1.0}}, "data.holdout"),
        ({"precision": "float16"}, "precision"),
        ({"steps": 0}, "steps"),
    ],
)
def test_mistakes_name_the_field(write, changes, told):
    with pytest.raises(UserError) as error:
        load(write(**changes))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_what_may_change_is_what_exists():
    there = {*TrainConfig.model_fields, *(f"data.{name}" for name in DataConfig.model_fields)}
    assert there >= MAY_CHANGE


OTHERWISE = {
    "data": {
        "sequence": 32,
        "holdout": 0.1,
        "weights": {"a": 1},
        "modality_weights": {"text": 1},
        "caption_first": 0.4,
        "guidance_dropout": 0.1,
        "streams": {"speech": "delayed"},
        "shuffle": 3,
        "long": "split",
    },
    "model": {
        "dim": 64,
        "layers": 3,
        "heads": 4,
        "kv_heads": 1,
        "ffn": 96,
        "towers": {"image": "text"},
        "untied": ["ffn"],
        "experts": {"text": {"count": 2}},
        "cross_layers": [0],
        "unet": {},
        "norm": "before",
        "norm_eps": 1e-5,
        "qk_norm": False,
        "rope_theta": 500.0,
    },
    "objective": {
        "kind": "transfusion",
        "z_loss": 0.1,
        "weights": {"text": 2},
        "diffusion": "flow",
        "diffusion_weight": 1.0,
        "noise_steps": 100,
    },
    "optimizer": {
        "lr": 0.5,
        "betas": [0.9, 0.99],
        "eps": 1e-6,
        "weight_decay": 0.2,
        "clip": None,
        "warmup": 5,
        "schedule": "linear",
        "final": 0.5,
    },
    "": {"steps": 20, "rows": 8, "start": "llama", "seed": 1, "threads": 3, "precision": "bfloat16"},
}
"""Another value of every field that decides what a run learns."""


@pytest.mark.parametrize(("block", "field"), [(block, field) for block, some in OTHERWISE.items() for field in some])
def test_a_run_does_not_go_on_with_another_value_of_what_decides_its_losses(tmp_path, block, field):
    folder.keep(tmp_path, TrainConfig.model_validate(SMALL))
    change = {field: OTHERWISE[block][field]}
    other = TrainConfig.model_validate({**SMALL, **({block: {**SMALL.get(block, {}), **change}} if block else change)})
    with pytest.raises(UserError, match=rf"{block}{'.' * bool(block)}{field}.*: the run in this folder has"):
        folder.check(tmp_path, other)


def test_every_field_either_may_change_or_is_known_not_to():
    there = {*TrainConfig.model_fields}
    for block, kind in (("data", DataConfig), ("model", ModelConfig), ("objective", ObjectiveConfig)):
        there = there - {block} | {f"{block}.{name}" for name in kind.model_fields}
    there = there - {"optimizer"} | {f"optimizer.{name}" for name in OptimizerConfig.model_fields}
    fixed = {f"{block}.{field}".lstrip(".") for block, some in OTHERWISE.items() for field in some}
    assert there == fixed | MAY_CHANGE and not fixed & MAY_CHANGE
