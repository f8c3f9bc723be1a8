"""The reference of verbs: the functions behind the `motet` command, as Typer reads them -> usage, words, tables, examples.

    app --`verbs`--> (panel, "motet tokenizer fit", function) --`verb`--> one section;  cli's docstring ----> exit codes

Read from Typer's own account of each function, not from `--help`, whose text depends on the width of the terminal.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import typer
from reference_table import table
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo
from typer.utils import get_params_from_function

from motet.core.described import bounds, kind_of
from motet.orchestration import cli

HEAD = """# The command

<!-- Written by docs/make/write_reference.py from the help texts: change those, and run `make docs`. -->

Every verb of `motet`. `motet VERB --help` tells the same.
"""
EXAMPLES = re.compile(r"Examples?: ((?:`[^`]+`(?:, or|,)?\s*)+)$")


def page() -> str:
    """The whole page. Raises LookupError for an argument or option without words, or a verb without an example."""
    blocks = [HEAD.rstrip()]
    panel = ""
    for told, name, function in verbs(cli.app, "motet", ""):
        if told != panel:
            panel = told
            blocks.append(f"## {panel}")
        blocks += verb(name, function)
    blocks += ["## Before the verb", parameters("motet", cli.options), "## Exit codes", exit_codes()]
    return "\n\n".join(blocks) + "\n"


def verbs(app: typer.Typer, command: str, panel: str) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Each verb with its panel and its whole name, those of a group where `motet --help` lists the group."""
    found: list[tuple[str, str, Callable[..., Any]]] = []
    for info in app.registered_commands:
        function = info.callback
        assert function is not None
        found.append((_panel(info, panel), f"{command} {info.name or function.__name__.replace('_', '-')}", function))
    for group in app.registered_groups:
        assert group.typer_instance is not None
        found += verbs(group.typer_instance, f"{command} {group.name}", _panel(group, panel))
    order = list(dict.fromkeys(told for told, _, _ in found))
    yield from sorted(found, key=lambda each: order.index(each[0]))


def verb(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """One verb: what it does, how it is called, what it takes, examples."""
    told = inspect.cleandoc(function.__doc__ or "")
    examples = EXAMPLES.search(told)
    if examples is None:
        raise LookupError(f"{name}: its help has no example")
    yield f"### `{name}`"
    yield told[: examples.start()].strip()
    yield _code(usage(name, function))
    if rows := parameters(name, function):
        yield rows
    yield "For example:"
    yield _code(*(" ".join(each.split()) for each in re.findall(r"`([^`]+)`", examples[1])))


def usage(name: str, function: Callable[..., Any]) -> str:
    """The command line: arguments, required options, and that there are others."""
    words, more = [name], False
    for parameter, kind, info in _taken(function):
        if isinstance(info, ArgumentInfo):
            word = _called(parameter, info)
            words.append(word if info.default is ... or info.metavar else f"[{word}{'...' * _many(kind)}]")
        elif info.default is ...:
            words.append(f"{_called(parameter, info)} {parameter.upper()}")
        else:
            more = True
    return " ".join([*words, *["[OPTIONS]"] * more])


def parameters(name: str, function: Callable[..., Any]) -> str:
    """The table of arguments and options; empty if there are none."""
    rows = []
    for parameter, kind, info in _taken(function):
        if not info.help:
            raise LookupError(f"{name}: {parameter}: no help")
        rows.append((f"`{_called(parameter, info)}`", _value(kind, info), _default(info), info.help))
    return table(("", "value", "default", "what it is"), rows) if rows else ""


def exit_codes() -> str:
    """The table of exit codes, from the docstring of `cli`."""
    told = re.search(r"^Exit codes: (.+?)\.$", inspect.cleandoc(cli.__doc__ or ""), re.M | re.S)
    if told is None:
        raise LookupError("motet.orchestration.cli: its docstring tells no exit codes")
    return table(("code", "meaning"), [each.split(" ", 1) for each in " ".join(told[1].split()).split("; ")])


def _taken(function: Callable[..., Any]) -> Iterator[tuple[str, Any, ParameterInfo]]:
    """What a verb takes: the parameter's name, its type without None, and what Typer is told of it."""
    for parameter, meta in get_params_from_function(function).items():
        if meta.annotation is typer.Context:
            continue
        if not isinstance(meta.default, ParameterInfo):
            raise LookupError(f"{function.__name__}: {parameter}: no help")
        kind = meta.annotation
        if get_origin(kind) in (Union, UnionType):
            (kind,) = (arg for arg in get_args(kind) if arg is not NoneType)
        yield parameter, kind, meta.default


def _called(parameter: str, info: ParameterInfo) -> str:
    if isinstance(info, OptionInfo):
        return ", ".join(info.param_decls or [f"--{parameter.replace('_', '-')}"])
    return info.metavar or parameter.upper()


def _many(kind: Any) -> bool:
    return get_origin(kind) is list


def _value(kind: Any, info: ParameterInfo) -> str:
    if kind is bool:
        return "a flag"
    told = [kind_of(get_args(kind)[0] if _many(kind) else kind), *bounds(ge=info.min, le=info.max)]
    if _many(kind):
        told.append("any number of them" if isinstance(info, ArgumentInfo) else "may be given several times")
    return ", ".join(told)


def _default(info: ParameterInfo) -> str:
    if info.default is ...:
        return "required"
    if isinstance(info.show_default, str):
        return info.show_default
    return "" if info.default is None or info.default is False else f"`{info.default}`"


def _panel(info: Any, otherwise: str) -> str:
    """Where `motet --help` lists it; Typer marks what is not set with an object of its own."""
    return info.rich_help_panel if isinstance(info.rich_help_panel, str) else otherwise


def _code(*lines: str) -> str:
    return "\n".join(["```bash", *lines, "```"])
