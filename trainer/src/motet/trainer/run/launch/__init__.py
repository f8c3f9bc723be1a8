"""Who starts the processes that run `train`: one file per launcher, each thin; `launch` picks by `config.launcher`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from motet.core.errors import UserError
from motet.trainer.config import TrainConfig


def launch(config: TrainConfig, out: str | Path) -> dict[str, Any]:
    """Train `config` in the run folder `out`, with progress for a person; the summary and errors of `train`."""
    if config.launcher == "ray":
        try:
            from motet.trainer.run.launch import ray_train
        except ImportError as error:
            raise UserError(f"launcher: ray: {error}; install motet-trainer[ray]") from None
        return ray_train.launch(config, out)
    from motet.trainer.run.launch import local, torchrun

    return (torchrun if config.launcher == "torchrun" else local).launch(config, out)
