"""A run's folder: one configuration's, and one process's at a time.

    OUT/train.yaml         the complete configuration: starts the same run again
    OUT/metrics.jsonl      one row per step (`metrics`)         OUT/tensorboard/   the same, for TensorBoard
    OUT/checkpoints/       what a killed run goes on from (`checkpoint`)
    OUT/lost.jsonl         damaged data (`data.damage`)         OUT/curves.svg     its losses, plotted at the end
    OUT/evaluation.json    held-out losses (`use.evaluate`)     OUT/train.lock     held while a process trains here

A folder that holds anything else is not touched.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from motet.core import durable
from motet.core.configuration import dump_config, load_config
from motet.core.errors import UserError
from motet.trainer.config import MAY_CHANGE, TrainConfig

CONFIG, LOCK = "train.yaml", "train.lock"


@contextmanager
def claimed(out: Path, config: TrainConfig) -> Iterator[None]:
    """While this is open, `out` is the folder of the run of `config`, and of no other process.

    UserError if it cannot be written, holds something else, is another configuration's, or is being trained in. The
    system gives the lock back however the process ends.
    """
    check(out, config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / LOCK, "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is training here; wait for it, or choose another --out") from None
        yield


def keep(out: Path, config: TrainConfig) -> None:
    """Note the configuration that the run goes on with: once the data has been found to fit it."""
    durable.write(out / CONFIG, dump_config(config))


def check(out: Path, config: TrainConfig) -> None:
    """UserError if `out` holds anything but a run that `config` may go on with."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder as --out")
    if not (out / CONFIG).exists():
        strange = [p.name for p in out.iterdir() if not p.name.startswith("train.")] if out.exists() else []
        if strange:
            raise UserError(f"{out}: holds {strange[0]}, but no training run; choose an empty or a new folder as --out")
        return
    for field, (had, asked) in changes(out, config).items():
        if field not in MAY_CHANGE:
            raise UserError(
                f"{out / CONFIG}: {field}: the run in this folder has {had!r}, the configuration asks for {asked!r}; "
                "set it back to go on, or choose another --out"
            )


def changes(out: Path, config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """What differs between the run in `out` and `config`: dotted field -> (had, asked). Empty for a new folder."""
    if not (out / CONFIG).exists():
        return {}
    had, asked = (_flat(c.model_dump(mode="json")) for c in (load_config(out / CONFIG, TrainConfig), config))
    return {
        field: (had.get(field), asked.get(field))
        for field in [*asked, *(had.keys() - asked.keys())]
        if had.get(field) != asked.get(field)
    }


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
