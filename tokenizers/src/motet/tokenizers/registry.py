"""Finding and building tokenizers: a name -> an entry point `module:Class` -> the class -> an instance from settings.

Every installed distribution may offer tokenizers in the entry-point group `motet.tokenizers`. A class is imported only
when it is asked for; one that cannot be imported is listed with its reason and stops nobody else.
"""

from __future__ import annotations

import difflib
import importlib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from motet.core.configuration import validate
from motet.core.errors import UserError, one_line
from motet.tokenizers.contract import Tokenizer

GROUP = "motet.tokenizers"
FITTED = ("bpe", "melrvq", "units", "vae", "vqgan")
"""Those of motet's own tokenizers that can be fitted, known without importing them."""
ON_DISK = ("bpe", "melrvq", "units")
"""Those whose path is never the name of a model on a hub."""


@dataclass(frozen=True)
class Entry:
    """One tokenizer on offer.

    Attributes:
        name: what a configuration writes after `use:`.
        target: the class as `module:Class`.
        distribution: the installed distribution that brings it.
        reason: why it cannot be used, in one line; None if it can.
    """

    name: str
    target: str
    distribution: str
    reason: str | None = None


class UnavailableError(Exception):
    """A `module:Class` that cannot be imported or is no tokenizer; the message is the reason, in one line."""


def available() -> list[Entry]:
    """All tokenizers on offer, by name; imports each to say which of them work."""
    return [Entry(e.name, e.target, e.distribution, _reason(e.target)) for e in _offers()]


def find(use: str) -> type[Tokenizer]:
    """The class of a tokenizer, by registry name or as `module:Class`.

    Raises:
        UserError: nothing has that name (names the nearest), two distributions claim it, or it cannot be imported.
    """
    if ":" in use:
        targets = {use}
    else:
        offers = _offers()
        targets = {offer.target for offer in offers if offer.name == use}
        if not targets:
            names = sorted({offer.name for offer in offers})
            near = difflib.get_close_matches(use, names, n=1, cutoff=0.5)
            cure = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}, or give module:Class"
            raise UserError(f"unknown tokenizer '{use}'; {cure}")
        if len(targets) > 1:
            raise UserError(
                f"tokenizer '{use}' is claimed by {' and '.join(sorted(targets))}; write one of these instead"
            )
    try:
        return _load(targets.pop())
    except UnavailableError as error:
        raise UserError(f"tokenizer '{use}' is unavailable: {error}") from error


def modules(uses: Iterable[str]) -> list[str]:
    """The modules of those tokenizers that are on offer, none of them imported."""
    targets = {offer.name: offer.target for offer in _offers()}
    return sorted({targets.get(use, use).partition(":")[0] for use in uses if ":" in targets.get(use, use)})


def build(settings: Mapping[str, Any], base: Path, modality: str | None = None) -> Tokenizer:
    """The tokenizer that `settings` describe: `{"use": name, ...fields of its Settings}`.

    Relative paths in the settings are taken from the folder `base`.

    Raises:
        UserError: unknown tokenizer or key, missing weights, or a tokenizer of another modality than `modality`.
    """
    kind = _kind(settings, modality)
    if modality is not None and kind.modality != modality:
        raise UserError(f"{_where(modality)}: use: '{settings['use']}' makes {kind.modality} tokens, not {modality}")
    complete = absolute(settings, base, modality)
    del complete["use"]
    return kind(validate(complete, kind.Settings, _where(modality)))  # type: ignore[call-arg]


def present(settings: Mapping[str, Any], base: Path, modality: str | None = None) -> None:
    """UserError if the weights of one of motet's own tokenizers are certainly not there; nothing is imported to know that."""
    use, path = settings.get("use"), settings.get("path")
    if not isinstance(path, str) or use not in {o.name for o in _offers() if o.distribution == "motet-tokenizers"}:
        return
    place = (base / Path(path).expanduser()).absolute()
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and use not in ON_DISK  # as models are on a hub
    if not place.exists() and not named:
        raise UserError(f"{_where(modality)}: path: {place} does not exist; {cure(str(use), path)}")


def cure(use: str, path: str | Path) -> str:
    """What to do where the weights of one of motet's own tokenizers are missing."""
    if use in FITTED:
        return f"correct it, or fit one: motet tokenizer fit {use} --samples FOLDER --out {shlex.quote(str(path))}"
    return "correct it, or download the weights there"


def absolute(settings: Mapping[str, Any], base: Path, modality: str | None = None) -> dict[str, Any]:
    """The same settings, complete with defaults and with absolute paths, ready to be written as YAML."""
    kind = _kind(settings, modality)
    given = {key: value for key, value in settings.items() if key != "use"}
    checked = validate(given, kind.Settings, _where(modality)).model_dump(mode="json")
    for name, field in kind.Settings.model_fields.items():
        value = checked[name]
        is_path = _is_path(field.annotation)
        if isinstance(value, str) and (is_path or name == "path"):
            place = (base / Path(value).expanduser()).absolute()
            if is_path or place.exists():  # a plain string that is no file may be the id of a model on a hub
                checked[name] = str(place)
    return {"use": settings["use"], **checked}


def _offers() -> list[Entry]:
    """What the installed distributions offer, nothing imported yet; the same offer seen twice counts once."""
    offers = {
        Entry(point.name, point.value, point.dist.name if point.dist else "unknown")
        for point in entry_points(group=GROUP)
    }
    return sorted(offers, key=lambda offer: (offer.name, offer.target, offer.distribution))


def _reason(target: str) -> str | None:
    try:
        _load(target)
    except UnavailableError as error:
        return str(error)
    return None


def _load(target: str) -> type[Tokenizer]:
    module_name, _, class_name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a plug-in's import may fail in any way, and none of them may stop the others
        raise UnavailableError(one_line(error)) from error
    if not (isinstance(found, type) and issubclass(found, Tokenizer)):
        raise UnavailableError(f"{target} is not a subclass of motet.tokenizers.contract.Tokenizer")
    return found


def _kind(settings: Mapping[str, Any], modality: str | None) -> type[Tokenizer]:
    if not isinstance(settings.get("use"), str):
        raise UserError(f"{_where(modality)}: use: missing; name a tokenizer ('motet tokenizer list' shows all)")
    try:
        return find(settings["use"])
    except UserError as error:
        raise UserError(f"{_where(modality)}: use: {error}") from error


def _where(modality: str | None) -> str:
    return f"tokenizers.{modality}" if modality else "tokenizer"


def _is_path(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return any(_is_path(option) for option in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, Path)
