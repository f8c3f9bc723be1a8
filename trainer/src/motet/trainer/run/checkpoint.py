"""Checkpoints: everything a run needs to go on as if nothing had happened.

    weights, moments, `State` --`save`--> step-000123.partial/ --fsync, rename--> step-000123/ --`latest`, `load`--> back

A folder named `step-000123` (123 steps are done) is complete, because it got that name last, by one rename; whatever is
killed before leaves a `.partial`, which is never read and goes with the next save. Each file's hash stands in `state.json`, which carries its own:
bytes that changed since are named, not used. Tensors are safetensors: nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor

from motet.core import durable
from motet.core.errors import UserError, one_line
from motet.core.hashing import content_hash
from motet.trainer.config import TrainConfig
from motet.trainer.data.order import Cursor
from motet.trainer.model.mot import MoT
from motet.trainer.vocabulary import Towers, Vocabulary

FORMAT_VERSION = 2
"""Another value means that an older motet could not go on from what this one writes, or the other way round."""
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
NAME = re.compile(r"step-(\d{6,})")


class DamagedCheckpoint(UserError):
    """A checkpoint's bytes are not what was written; the message names the file and the way on."""


@dataclass(frozen=True)
class State:
    """What a checkpoint knows besides tensors: JSON.

    Attributes:
        step: steps done; the next one's number. cursor: of a window of documents before its batch.
        tokens: trained on so far.
        fingerprint: of the order up to there: which data, in which order.
        threads: CPU threads of the process that wrote it.
        vocabulary: `Vocabulary.to_json`. config: the complete `TrainConfig`.
        files: hash of each file beside this one.
        tokenizers: settings of each modality's tokenizer, as far as the data says them: not in format 1.
        version: of the format; checkpoints of before it was noted have the first.
    """

    step: int
    tokens: int
    fingerprint: str
    cursor: Cursor
    threads: int
    vocabulary: dict[str, Any]
    config: dict[str, Any]
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    tokenizers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    version: int = FORMAT_VERSION


def save(out: Path, state: State, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], keep: int) -> Path:
    """Write the checkpoint of `state.step` under the run folder `out`, then drop all but the last `keep`."""
    folder = out / "checkpoints"
    final = folder / f"step-{state.step:06d}"
    partial = final.with_suffix(".partial")
    _remove_partial(folder)
    partial.mkdir(parents=True)
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
        save_file({key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}, partial / name)
    data = dataclasses.asdict(
        dataclasses.replace(state, files={name: _hash(partial / name) for name in (MODEL, OPTIMIZER)})
    )
    text = json.dumps({**data, "hash": content_hash(data)}, indent=1)
    (partial / STATE).write_text(text, encoding="utf-8")
    for name in (MODEL, OPTIMIZER, STATE, "."):
        durable.sync(partial / name)
    durable.rename(partial, final)
    for old in _complete(out)[:-keep]:
        _drop(old)
    return final


def latest(out: Path) -> Path | None:
    """The newest complete checkpoint of the run folder `out`, if there is one."""
    complete = _complete(out)
    return complete[-1] if complete else None


def checkpoint_of(path: Path) -> Path:
    """A run folder's newest checkpoint, or the checkpoint that `path` is itself; UserError if there is none."""
    found = path if (path / STATE).is_file() or NAME.fullmatch(path.name) else latest(path)
    if found is None or not found.is_dir():
        raise UserError(f"{path}: holds no checkpoint; train first, or name a run folder or one of its checkpoints")
    return found


def read_state(path: Path) -> State:
    """The `state.json` of the checkpoint `path`, checked against its hash; DamagedCheckpoint."""
    try:
        data = json.loads((path / STATE).read_bytes())
        told, version = data.pop("hash"), data.get("version", 1)
        if version not in (1, FORMAT_VERSION):
            raise UserError(f"{path / STATE}: checkpoint format {version}; this motet reads 1 and {FORMAT_VERSION}")
        state = State(**{**data, "cursor": Cursor.from_json(data["cursor"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, STATE, f"cannot be read ({type(error).__name__})") from None
    if content_hash(data) != told:
        raise _damaged(path, STATE, "is not what was written")
    return state


def load(path: Path, state: State, name: str) -> dict[str, Tensor]:
    """The tensors of one file (`MODEL` or `OPTIMIZER`) of the checkpoint `path`, checked; DamagedCheckpoint."""
    try:
        intact = _hash(path / name) == state.files.get(name)
    except OSError as error:
        raise _damaged(path, name, f"cannot be read ({type(error).__name__})") from None
    if not intact:
        raise _damaged(path, name, "is not what was written")
    return load_file(path / name)


def fill(model: MoT, path: Path, state: State) -> None:
    """Give `model` the weights of the checkpoint `path`; UserError if a model of another shape, or another motet, wrote it."""
    try:
        model.load_state_dict(load(path, state, MODEL))
    except RuntimeError as error:
        raise UserError(
            f"{path / MODEL}: another version of motet wrote it, whose weights have other names or shapes ({one_line(error)} ...); use "
            "that version, or train anew"
        ) from None


def new_model(config: TrainConfig, vocabulary: Vocabulary, towers: Towers) -> MoT:
    """The model of a run before its first step: a pure function of the configuration and the vocabulary."""
    try:
        return MoT(config.model, towers.names, vocabulary.size, vocabulary.latent_dim, config.seed)
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def _complete(out: Path) -> list[Path]:
    found = [p for p in (out / "checkpoints").glob("step-*") if NAME.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name.partition("-")[2]))


def _damaged(path: Path, name: str, what: str) -> DamagedCheckpoint:
    others = [p.name for p in _complete(path.parent.parent) if p != path]
    then = f"the run then goes on from {others[-1]}" if others else "the run then starts anew"
    return DamagedCheckpoint(f"{path / name}: damaged checkpoint: {what}; remove {path} ({then})")


def _drop(path: Path) -> None:
    """Remove a checkpoint so that no half of it ever bears its name."""
    gone = path.with_suffix(".partial")
    path.rename(gone)
    shutil.rmtree(gone)


def _remove_partial(folder: Path) -> None:
    for leftover in folder.glob("step-*.partial"):
        shutil.rmtree(leftover)


def _hash(path: Path) -> str:
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            state.update(chunk)
    return state.hexdigest()
