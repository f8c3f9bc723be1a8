"""The configuration file: defaults, round trip, and what each mistake gets."""

import pytest
import yaml

from motet.core.configuration import dump_config
from motet.core.errors import UserError
from motet.trainer.config import MAY_CHANGE, DataConfig, TrainConfig, load

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
