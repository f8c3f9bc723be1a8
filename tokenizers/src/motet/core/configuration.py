"""Typed configuration for all rooms: YAML file -> `--set` overrides -> pydantic model, errors as one line with the cure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from motet.core.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of every typed setting in motet: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def load_config(path: str | Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file into `model`, after applying `path.to.field=value` overrides (values are YAML too)."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
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
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), sorted(_known_keys(model)), n=1, cutoff=0.5)
            raise UserError(
                f"{where}: {field}: unknown key" + (f"; did you mean '{near[0]}'?" if near else "; remove it")
            ) from None
        told = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {field or 'settings'}: {told} (found {first['input']!r:.80})") from None


def dump_config(config: BaseModel) -> str:
    """The complete configuration as YAML: reading it back gives an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def override(data: dict[str, Any], each: str) -> None:
    """Apply one `path.to.field=value` in place; list positions are numbers."""
    key, equals, text = each.partition("=")
    if not equals or not key:
        raise UserError(f"--set {each}: expected path.to.field=value")
    *parents, last = key.split(".")
    node: Any = data
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(last)] = yaml.safe_load(text)
        else:
            node[last] = yaml.safe_load(text)
    except (ValueError, IndexError, AttributeError, TypeError):
        raise UserError(f"--set {each}: there is no field '{key}' to set") from None


def _known_keys(model: type[BaseModel]) -> set[str]:
    """All keys of a model and of the models inside it: what a misspelt key may have meant."""
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        keys.add(name)
        pending = [field.annotation]
        while pending:
            kind = pending.pop()
            pending.extend(get_args(kind))
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not model:
                keys |= _known_keys(kind)
    return keys
