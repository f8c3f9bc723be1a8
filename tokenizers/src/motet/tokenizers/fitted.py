"""The folder of a fitted tokenizer: `config.json` (what it is, typed) and `model.safetensors` (its arrays); never a pickle.

And what a long fit tells the log meanwhile: how far it is, and about how long it will go on (`counted`, `left`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from motet.core.configuration import validate
from motet.core.errors import UserError

log = logging.getLogger(__name__)
SECONDS_BETWEEN = 5.0
Config = TypeVar("Config", bound=BaseModel)
Item = TypeVar("Item")


def save_fitted(out: Path, kind: str, config: BaseModel, arrays: dict[str, torch.Tensor]) -> None:
    """Write the folder of a fitted tokenizer of class `kind`."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"kind": kind, **config.model_dump(mode="json")}, indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
    save_file({name: array.contiguous() for name, array in arrays.items()}, out / "model.safetensors")


def left(seconds: float) -> str:
    """How long a fit will go on, for a person."""
    minutes = round(seconds / 60)
    return f"about {f'{minutes} min' if minutes else f'{seconds:.0f} s'} left"


def counted(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Pass the items on, and tell the log every few seconds how far they are."""
    begun = told = time.monotonic()
    for i, item in enumerate(items):
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN:
            told = now
            log.info("%d of %d %s, %s", i, len(items), what, left((now - begun) / i * (len(items) - i)))
        yield item


def load_fitted(
    path: Path, kind: str, config: type[Config], shapes: Mapping[str, tuple[str, ...]]
) -> tuple[Config, dict[str, torch.Tensor]]:
    """Read it back; `shapes` names its arrays, and each axis: by the field of the configuration that says how long it is, or
    by any other word.

    Raises:
        UserError: there is no such folder, it holds another kind of tokenizer, or its files are damaged or of two folders.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = path / "config.json"
    try:
        content: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        written_by = content.pop("kind", None)
    except FileNotFoundError:
        raise UserError(
            f"{kind}: path: {path} holds no fitted tokenizer (config.json); fit one with 'motet tokenizer fit {kind}'"
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{kind}: path: {place} cannot be read: {error}") from None
    if written_by != kind:
        raise UserError(f"{kind}: path: {path} holds a tokenizer of kind {written_by!r}, not {kind!r}")
    weights = path / "model.safetensors"
    try:
        arrays = load_file(weights)
    except FileNotFoundError:
        raise UserError(f"{kind}: path: {weights} does not exist; copy it beside config.json, or fit again") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{kind}: path: {weights} is damaged: {error}; copy it again, or fit again") from None
    found = validate(content, config, str(place))
    fits = arrays.keys() == shapes.keys() and all(
        arrays[name].dim() == len(axes)
        and all(size == getattr(found, axis, size) for size, axis in zip(arrays[name].shape, axes, strict=True))
        for name, axes in shapes.items()
    )
    if not fits:
        raise UserError(f"{kind}: path: {weights} does not fit its config.json; fit again")
    return found, arrays
