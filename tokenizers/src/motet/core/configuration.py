"""Typed configuration for all rooms: YAML file -> `--set` overrides -> pydantic model, errors as one line with the cure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from motet.core import notation
from motet.core.errors import UserError
from motet.core.urls import censored

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of every typed setting in motet: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def load_config(path: str | Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file into `model`, after applying `path.to.field=value` overrides (values are YAML too)."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8") as file:
            data = notation.parsed(file.read(notation.LARGEST + 1))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}{notation.told(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    for each in overrides:
        override(data, each)
    return validate(data, model, str(path))


def validate(data: Any, model: type[Model], where: str) -> Model:
    """`data` as a `model`; the first problem becomes a UserError that names file, field and cure."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        field = _line(".".join(str(part) for part in first["loc"]))
        if first["type"] == "extra_forbidden":
            cure = _cure(model, [str(part) for part in first["loc"]])
            raise UserError(f"{where}: {field}: unknown key; {cure}") from None
        told = _line(first["msg"].removeprefix("Value error, "))
        raise UserError(
            f"{where}: {field or 'settings'}: {told} (found {censored(repr(first['input'])):.80})"
        ) from None


def dump_config(config: BaseModel) -> str:
    """The complete configuration as YAML: reading it back gives an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def override(data: dict[str, Any], each: str) -> None:
    """Apply one `path.to.field=value` in place; list positions are numbers."""
    key, equals, text = each.partition("=")
    shown = f"--set {_line(each):.80}"
    *parents, last = key.split(".")
    if not equals or not key or len(parents) >= notation.DEEPEST:
        raise UserError(f"{shown}: expected path.to.field=value")
    try:
        value = notation.parsed(text)
    except yaml.YAMLError as error:
        raise UserError(f"{shown}{notation.told(error)}; quote the value, or close what it opens") from None
    node: Any = data
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (ValueError, IndexError, AttributeError, TypeError):
        raise UserError(f"{shown}: there is no field '{_line(key):.80}' to set") from None


def _cure(model: type[BaseModel], place: Sequence[str]) -> str:
    """What an unknown key at `place` may have meant: a key like it, or those that are known there."""
    here = [model]
    for part in place[:-1]:
        inner = [kind for each in here for kind in _models(each, part)]
        here = inner or here  # the place in a list, or the name in a mapping
    known = dict.fromkeys(name for each in here for name in each.model_fields)
    for names in (known, _known_keys(model)):
        if near := difflib.get_close_matches(place[-1], sorted(names), n=1, cutoff=0.5):
            return f"did you mean '{near[0]}'?"
    return f"known are {', '.join(known)}"


def _models(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """The models that a field may hold."""
    found, pending = [], [model.model_fields[name].annotation] if name in model.model_fields else []
    while pending:
        kind = pending.pop()
        pending.extend(get_args(kind))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
    return found


def _known_keys(model: type[BaseModel]) -> set[str]:
    """All keys of a model and of the models inside it."""
    keys = set(model.model_fields)
    for name in model.model_fields:
        for inner in _models(model, name):
            if inner is not model:
                keys |= _known_keys(inner)
    return keys


def _line(text: str) -> str:
    """Text of a person's file as a part of one line."""
    return censored(" ".join(text.split()))
