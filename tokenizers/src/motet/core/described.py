"""Settings in words: a model -> for each field its type and bounds, its default, and what its class says of it.

    class X(Settings):                                 `described(X)`
        \"""...                                             |
        Attributes:                                        v
            rows, columns: how many.   ------>  rows: whole number, at least 1; default 4; "how many."
        \"""
        rows: Annotated[int, Field(ge=1)] = 4

The docstring is the only place where a field is explained: `motet tokenizer describe` prints it, and the reference in `docs/` is
made of it. A plug-in may leave words out; of what motet brings, `check` wants them all.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from motet.core.configuration import Settings

PLAIN = {
    int: ("whole number", "whole numbers"),
    float: ("number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    Path: ("path", "paths"),
}
"""Types by their name for one value and for several."""
LISTED = r"^ {4}(\w+(?:, \w+)*):"
"""An entry of `Attributes:` that begins a line."""


@dataclass(frozen=True)
class Described:
    """One field.

    Attributes:
        name: as YAML and `--set` have it.
        kind: type and bounds, in words.
        default: as in YAML; None where the field must be given.
        words: what the class says of it, in Markdown; empty if it says nothing.
    """

    name: str
    kind: str
    default: str | None
    words: str


def described(model: type[BaseModel], named: Callable[[type], str] = lambda kind: kind.__name__) -> list[Described]:
    """All fields of a model, in order; `named` says how a model among its types is called."""
    words: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, Settings):
            words |= _words(owner)
    return [
        Described(name, kind_of(Annotated[field.annotation, field], named), _default(field), words.get(name, ""))
        for name, field in model.model_fields.items()
    ]


def check(model: type[BaseModel]) -> None:
    """Raises LookupError if a field has no words, or if words belong to no field."""
    place = f"{model.__module__}.{model.__qualname__}"
    listed = {name for names in re.findall(LISTED, _section(model), re.M) for name in names.split(", ")}
    if strange := listed - set(model.model_fields):
        raise LookupError(f"{place}: its docstring explains {', '.join(sorted(strange))}, which is no field")
    if missing := [field.name for field in described(model) if not field.words]:
        raise LookupError(f"{place}: its docstring says nothing of {', '.join(missing)} (Attributes:)")


def prose(model: type) -> str:
    """What a class says of itself as a whole: its docstring up to `Attributes:`."""
    return re.split(r"^Attributes:$", inspect.cleandoc(model.__doc__ or ""), flags=re.M)[0].strip()


def kind_of(annotation: Any, named: Callable[[type], str] = lambda kind: kind.__name__) -> str:
    """A type in words, and its bounds after that."""
    return ", ".join(_kind(annotation, named, False))


def bounds(
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    min_length: int | None = None,
    pattern: str | None = None,
) -> Iterator[str]:
    """Limits of a value in words."""
    if ge is not None and le is not None:
        yield f"from {_number(ge)} to {_number(le)}"
    else:
        if ge is not None:
            yield f"at least {_number(ge)}"
        if gt is not None:
            yield f"above {_number(gt)}"
        if le is not None:
            yield f"at most {_number(le)}"
    if lt is not None:
        yield f"below {_number(lt)}"
    if min_length is not None:
        yield "not empty" if min_length == 1 else f"at least {min_length} of them"
    if pattern is not None:
        yield f"like `{pattern}`"


def _kind(annotation: Any, named: Callable[[type], str], several: bool) -> list[str]:
    """A type in words, `several` of it for the elements of a list; then its bounds, those of its parts last."""
    annotation, limits = _bare(annotation)
    origin, args = get_origin(annotation), get_args(annotation)
    inner: list[str] = []
    if origin in (Union, UnionType):
        options = [_kind(arg, named, several) for arg in args if arg is not NoneType]
        kind = " or ".join([kind for kind, *_ in options] + ["null"] * (NoneType in args))
        inner = [told for _, *limits_of in options for told in limits_of]
    elif origin is Literal:
        *most, last = (f"`{value}`" for value in args)
        kind = f"{', '.join(most)} or {last}" if most else last
    elif origin in (list, tuple):
        kind, *inner = _kind(args[0], named, True)
        kind = f"{len(args)} {kind}" if origin is tuple and args[-1] is not Ellipsis else f"list of {kind}"
        inner = [f"each {' and '.join(inner)}"] if inner else []
    elif origin is dict and args[1] is Any:
        kind = "settings"
    elif origin is dict:
        kind, *inner = _kind(args[1], named, False)
        kind += " for each name"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = named(annotation)
    else:
        kind = PLAIN.get(annotation, [getattr(annotation, "__name__", str(annotation))] * 2)[several]
    return [kind, *bounds(**limits), *inner]


def _bare(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """A type without its metadata, and the limits found there."""
    limits: dict[str, Any] = {}
    while get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        limits |= dict(_limits(metadata))
    return annotation, limits


def _limits(metadata: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for each in metadata:
        if isinstance(each, FieldInfo):
            yield from _limits(each.metadata)
            continue
        for limit in inspect.signature(bounds).parameters:
            if (value := getattr(each, limit, None)) is not None:
                yield limit, value


def _words(model: type[BaseModel]) -> dict[str, str]:
    """What a class's own docstring says of its fields: `name: words`, or `name, name: words`, on a line or after a sentence."""
    found: dict[str, str] = {}
    name = "|".join(map(re.escape, model.model_fields))
    _, *parts = re.split(rf"(?:^ {{4}}|(?<=\. ))((?:{name})(?:, (?:{name}))*):(?= )", _section(model), flags=re.M)
    for names, words in zip(parts[::2], parts[1::2], strict=True):
        told = re.sub(r"\bNone\b", "null", " ".join(words.split()))  # as YAML has it
        found |= dict.fromkeys(names.split(", "), told)
    return found


def _section(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__dict__.get("__doc__") or "").partition("\nAttributes:\n")[2]


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "{}"
    return value if isinstance(value, str) and value else json.dumps(value)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
