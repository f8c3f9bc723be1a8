"""Checkpoints: everything a run needs to go on as if nothing had happened.

    weights, moments, `State` --`saving`--> step-000123.partial/ --`commit`: rename--> step-000123/ --`latest`, `load`--> back

    step-000123/model/*.safetensors       the weights, a file a rank: what it holds of them, and which part that is
    step-000123/optimizer/*.safetensors   likewise the moments            step-000123/state.json   `State`

A folder named `step-000123` (123 steps are done) is complete, because it got that name last, by one rename; whatever is
killed before leaves a `.partial`, which is never read and goes with the next save. Every rank writes its own shares and any
number of ranks reads them (`shares`); nothing is unpickled. Each file's hash stands in `state.json`, which carries its own: bytes that changed since are named, not used.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from motet.core import durable
from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.trainer.config import TrainConfig
from motet.trainer.data.order import Cursor
from motet.trainer.model.mot import MoT
from motet.trainer.run import shares
from motet.trainer.run.parallel import together
from motet.trainer.vocabulary import Towers, Vocabulary

FORMAT_VERSION = 3
"""Of what is written. 1 and 2, a single file each of weights and moments, are read as well."""
MODEL, OPTIMIZER, STATE = "model", "optimizer", "state.json"
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


def place(out: Path, step: int) -> Path:
    """Where the checkpoint of a step of the run `out` is, or will be."""
    return out / "checkpoints" / f"step-{step:06d}"


def clear(partial: Path, parts: Iterable[str]) -> None:
    """A new folder for a checkpoint in the making, and for each of its parts; what a kill has left over goes."""
    for leftover in [*partial.parent.glob("step-*.partial"), *partial.parent.glob("step-*.old")]:
        shutil.rmtree(leftover)
    for name in parts:
        (partial / name).mkdir(parents=True)


def settled(path: Path) -> str:
    """Bring a file to the disk; its hash."""
    durable.sync(path)
    return _hash(path)


def commit(out: Path, state: State, keep: int) -> None:
    """Make a checkpoint of the files that `state` names, which are there and on the disk, then drop all but the last `keep`."""
    final = place(out, state.step)
    partial = final.with_suffix(".partial")
    data = dataclasses.asdict(state)
    durable.fill(partial / STATE, json.dumps({**data, "hash": content_hash(data)}, indent=1))
    for name in (MODEL, OPTIMIZER, "."):
        durable.sync(partial / name)
    if final.exists():  # of the same step, written before by a run that went back behind it
        _drop(final, ".old")
    durable.rename(partial, final)
    for old in _complete(out)[:-keep]:
        _drop(old)


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
        if version not in (1, 2, FORMAT_VERSION):
            raise UserError(f"{path / STATE}: checkpoint format {version}; this motet reads 1 to {FORMAT_VERSION}")
        state = State(**{"version": 1, **data, "cursor": Cursor.from_json(data["cursor"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, STATE, f"cannot be read ({type(error).__name__})") from None
    if content_hash(data) != told:
        raise _damaged(path, STATE, "is not what was written")
    return state


def load(path: Path, state: State, name: str, tensors: Mapping[str, Tensor], rank: int = 0, world: int = 1) -> None:
    """Read `tensors`, whole or each rank's shares, from `MODEL` or `OPTIMIZER` of the checkpoint `path`, in place.

    All ranks call it, and check the files' hashes between them. DamagedCheckpoint; UserError if a model of another shape, or
    another motet, wrote it.
    """
    folder = path / name if state.version > 2 else path
    files = [file for file in state.files if file.partition("/")[0].removesuffix(".safetensors") == name]
    with together(world):
        for file in files[rank::world]:
            try:
                intact = _hash(path / file) == state.files[file]
            except OSError as error:
                raise _damaged(path, file, f"cannot be read ({type(error).__name__})") from None
            if not intact:
                raise _damaged(path, file, "is not what was written")
        stored = shares.shapes(folder)
        wanted = {key: tensor.shape for key, tensor in tensors.items()}
        strange = sorted(key for key in wanted if stored.get(key) != wanted[key])
        strange += sorted(stored.keys() - wanted.keys()) if state.version > 2 else []
        if strange:
            raise UserError(
                f"{path / name}: another version of motet wrote it, whose weights have other names or shapes ({strange[0]}: "
                f"{_shape(stored.get(strange[0]))} there, {_shape(wanted.get(strange[0]))} here); use that version, or train anew"
            )
    shares.read(folder, tensors, world)


def new_model(config: TrainConfig, vocabulary: Vocabulary, towers: Towers, filled: bool = True) -> MoT:
    """The model of a run before its first step, a pure function of the configuration and the vocabulary; or its shapes alone."""
    seed = config.seed if filled else None
    try:
        return MoT(config.model, towers.names, vocabulary.size, vocabulary.latent_dim, seed)
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def _complete(out: Path) -> list[Path]:
    found = [p for p in (out / "checkpoints").glob("step-*") if NAME.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name.partition("-")[2]))


def _damaged(path: Path, name: str, what: str) -> DamagedCheckpoint:
    others = [p.name for p in _complete(path.parent.parent) if p != path]
    then = f"the run then goes on from {others[-1]}" if others else "the run then starts anew"
    return DamagedCheckpoint(f"{path / name}: damaged checkpoint: {what}; remove {path} ({then})")


def _shape(size: torch.Size | None) -> str:
    return "nothing" if size is None else str(list(size))


def _drop(path: Path, suffix: str = ".partial") -> None:
    """Remove a checkpoint so that no half of it ever bears its name."""
    gone = path.with_suffix(suffix)
    path.rename(gone)
    shutil.rmtree(gone)


def _hash(path: Path) -> str:
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            state.update(chunk)
    return state.hexdigest()
