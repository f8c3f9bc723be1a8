"""Training in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from motet.trainer.config import TrainConfig
from motet.trainer.run.metrics import Progress
from motet.trainer.run.train import train


def launch(config: TrainConfig, out: str | Path) -> dict[str, Any]:
    """`train`, with a progress bar or lines."""
    with Progress(config.steps) as progress:
        return train(config, out, on_step=progress, say=progress.say)
