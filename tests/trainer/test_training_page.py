"""docs/training.md shows every field of a train.yaml, with its default."""

from pathlib import Path

import yaml

from motet.core.configuration import validate
from motet.trainer.config import TrainConfig

REQUIRED = {
    "data": {"paths": ["tokens"], "sequence": 2048},
    "model": {"dim": 1024, "layers": 24, "heads": 16},
    **{"steps": 20000, "rows": 64, "micro_rows": 8},
}


def test_the_whole_train_yaml_is_complete_and_has_the_defaults():
    page = (Path(__file__).parents[2] / "docs/training.md").read_text("utf-8")
    block = page.split("## The whole train.yaml")[1].split("```yaml\n")[1].split("```")[0]
    shown = validate(yaml.safe_load(block), TrainConfig, "docs/training.md")
    assert shown == validate(REQUIRED, TrainConfig, "here")
    assert yaml.safe_load(block) == shown.model_dump(mode="json")
