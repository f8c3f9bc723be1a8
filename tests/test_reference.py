"""The reference in `docs/reference`: it is what the generator writes now, and it leaves out no field and no option."""

from __future__ import annotations

import re
from typing import Annotated

import pytest
import reference_command as command
import reference_configuration as configuration
import typer
import write_reference as reference
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from motet.core.configuration import Settings
from motet.core.described import check, described
from motet.orchestration import cli


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_what_the_generator_writes(name: str) -> None:
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert reference.PAGES[name]() == written, f"docs/reference/{name} is old: run `make docs`, and commit it"


def test_it_is_the_same_in_any_terminal_and_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {name: page() for name, page in reference.PAGES.items()}
    monkeypatch.setenv("COLUMNS", "40")
    assert pages == {name: page() for name, page in reference.PAGES.items()}
    assert not [page for page in pages.values() if str(reference.FOLDER.parents[1]) in page]


def settings_of(kind: type) -> set[type]:
    """Every class of settings that motet defines."""
    return {each for sub in kind.__subclasses__() for each in ({sub} | settings_of(sub))}


def test_every_class_of_settings_is_explained() -> None:
    configuration.page()  # imports them all
    known = {each for each in settings_of(Settings) if each.__module__.startswith("motet.")}
    assert len(known) > 20
    for each in known:
        check(each)


def test_every_field_of_a_file_is_in_the_table_of_its_place() -> None:
    """Walked another way: over the JSON schema that pydantic makes of each model."""
    page = configuration.page()
    for _, _, model in configuration.ROOTS:
        schema = model.model_json_schema()
        for each in [schema, *schema.get("$defs", {}).values()]:
            for name, field in each["properties"].items():
                rows = re.findall(rf"^\| `{name}` \| (.+?) \| (.+?) \| (.+) \|$", page, re.M)
                default = "required" if name in each.get("required", ()) else None
                assert any(words and (default or shown) == shown for _, shown, words in rows), (name, field)


def test_every_option_that_the_help_tells_is_in_the_reference() -> None:
    page = command.page()
    seen = 0
    for _, name, function in command.verbs(cli.app, "motet", ""):
        told = CliRunner().invoke(cli.app, [*name.split()[1:], "--help"], env={"COLUMNS": "250", "TERM": "dumb"})
        assert told.exit_code == 0, told.output
        section = page.split(f"### `{name}`\n")[1].split("\n##")[0]
        help_text = re.sub(r"Examples?:.*?(?=╭)", "", told.output, flags=re.S)
        for option in set(re.findall(r"^│ \*? *(--[a-z-]+)", help_text, re.M)) - {"--help"}:
            assert f"| `{option}` |" in section, (name, option)
            seen += 1
        assert function.__doc__ is not None
    assert seen > 60


def test_what_has_no_words_is_refused() -> None:
    class Silent(Settings):
        """Two of them.

        Attributes:
            told: this one.
        """

        told: int
        untold: int = 3

    class Strange(Settings):
        """One.

        Attributes:
            it: this one.
            other: nothing.
        """

        it: int

    with pytest.raises(LookupError, match="says nothing of untold"):
        check(Silent)
    with pytest.raises(LookupError, match="explains other, which is no field"):
        check(Strange)

    def dumb(count: Annotated[int, typer.Option()] = 1) -> None:
        """Do it.

        Example: `motet dumb`
        """

    with pytest.raises(LookupError, match="motet dumb: count: no help"):
        list(command.verb("motet dumb", dumb))
    dumb.__doc__ = "Do it."
    with pytest.raises(LookupError, match="no example"):
        list(command.verb("motet dumb", dumb))


def test_types_bounds_and_shared_words() -> None:
    class Inner(Settings):
        """Inside."""

    class Many(Settings):
        """Many.

        Attributes:
            a, b: how many. c: by name, and
                so on.
            d: shares. e: None = none of them.
        """

        a: Annotated[int, Field(ge=1, le=8)]
        b: Annotated[int, Field(gt=1)] = 2
        c: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
        d: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.5,)
        e: Inner | None = None

    assert [(each.kind, each.default, each.words) for each in described(Many)] == [
        ("whole number, from 1 to 8", None, "how many."),
        ("whole number, above 1", "2", "how many."),
        ("number for each name, at least 0", "{}", "by name, and so on."),
        ("list of numbers, each at least 0 and below 1", "[0.5]", "shares."),
        ("Inner or null", "null", "null = none of them."),
    ]
    assert issubclass(Many, BaseModel)
