"""The reference of settings: each configuration file's model, and the models inside it -> headings and tables.

    TokenizeConfig, TrainConfig, Workflow --`sections`--> a heading a place (`data.edits.N`), a table of its fields
    every built-in tokenizer -----------------------------> its Settings, and the options of its `fit`

The words are those of the docstrings (`motet.core.described`); nothing is explained here that is not explained there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from reference_table import table

from motet.core.described import check, described, prose
from motet.orchestration.workflow import Workflow
from motet.pipeline.job.config import TokenizeConfig
from motet.tokenizers.registry import GROUP, find
from motet.trainer.config import MAY_CHANGE, ModelConfig, TrainConfig
from motet.trainer.presets import SHAPES

HEAD = """# Configuration

<!-- Written by docs/make/write_reference.py from the docstrings: change those, and run `make docs`. -->

Every field of every configuration file. The files are YAML; a key that is not listed here is an error. A heading is the place of
its fields in the file, so that `data` and `sequence` together are what `--set data.sequence=4096` sets; N is a position in
a list, counted from 0, and NAME a name of your choice. "Required" fields have no default. Relative paths count from the
folder of the file that they stand in. The complete configuration, defaults included, is written beside what a command makes.
"""
ROOTS = (
    ("Tokenizing", "The file of [`motet tokenize`](command.md#motet-tokenize).", TokenizeConfig),
    ("Training", "The file of [`motet train`](command.md#motet-train) and `motet plan`.", TrainConfig),
    ("Workflows", "The file of [`motet run`](command.md#motet-run).", Workflow),
)
TOKENIZERS = """## Tokenizers

What stands under `tokenizers` in the file of `motet tokenize`, beside `use: NAME`, for each built-in tokenizer; and what
[`motet tokenizer fit`](command.md#motet-tokenizer-fit) takes with `--set`. `motet tokenizer describe NAME` tells the same, of plug-ins too."""


def page() -> str:
    """The whole page. Raises LookupError for a field without words."""
    blocks = [HEAD.rstrip()]
    for title, told, model in ROOTS:
        blocks += [f"## {title}", told, *sections(model)]
    blocks.append(TOKENIZERS)
    for name in sorted(_built_in()):
        blocks += tokenizer(name)
    return "\n\n".join(blocks) + "\n"


def sections(root: type[BaseModel]) -> Iterator[str]:
    """The fields of a file, then those of each model inside it, in the order in which they are first named."""
    places = dict(_places(root, ""))
    for model, place in places.items():
        if place:
            yield f"### `{place}`"
        yield prose(model)
        yield fields(model, places)
        if model is ModelConfig:
            yield (
                "`preset: NAME` stands for `dim`, `layers` and `heads` of a size in arXiv 2411.04996; "
                "what is given beside it stays as it is given."
            )
            yield table(
                ("preset", "`dim`", "`layers`", "`heads`"),
                [(f"`{name}`", *map(str, shape)) for name, shape in SHAPES.items()],
            )
        if model is TrainConfig:
            may = ", ".join(f"`{name}`" for name in sorted(MAY_CHANGE, key=lambda name: ("." in name, name)))
            yield f"A run may be continued with other values of {may}, and of nothing else."


def tokenizer(name: str) -> Iterator[str]:
    """A built-in tokenizer: what it is, its settings, the options of fitting it."""
    kind = find(name)
    yield f"### `{name}`"
    yield f"Modality: `{kind.modality}`. {prose(kind)}"
    yield prose(kind.Settings)
    yield fields(kind.Settings, {})
    if kind.Fit is not None:
        yield f"Options of `motet tokenizer fit {name}`:"
        yield fields(kind.Fit, {})


def fields(model: type[BaseModel], places: dict[type, str]) -> str:
    """The table of one model; a model among its types is a link to the place where it stands."""
    check(model)
    rows = [
        (f"`{field.name}`", field.kind, "required" if field.default is None else f"`{field.default}`", field.words)
        for field in described(model, lambda kind: f"[settings](#{slug(places[kind])})")
    ]
    return table(("field", "value", "default", "what it is"), rows)


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")


def _built_in() -> list[str]:
    return [point.name for point in entry_points(group=GROUP) if point.value.startswith("motet.")]


def _places(model: type[BaseModel], place: str) -> Iterator[tuple[type[BaseModel], str]]:
    """A model and those inside it, each with its path in the file."""
    yield model, place
    for name, field in model.model_fields.items():
        for kind, step in _models(field.annotation, ""):
            yield from _places(kind, f"{place}.{name}{step}".strip("."))


def _models(annotation: Any, step: str) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, step
    inside = {list: ".N", tuple: ".N", dict: ".NAME"}.get(get_origin(annotation), "")  # type: ignore[arg-type]
    for part in get_args(annotation):
        yield from _models(part, step + inside)
