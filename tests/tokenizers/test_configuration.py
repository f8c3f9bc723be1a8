"""YAML and `--set` become typed settings; every mistake becomes one line that names the file, the field and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from motet.core.configuration import Settings, dump_config, load_config, validate
from motet.core.errors import UserError


class Part(Settings):
    name: str
    share: float = Field(1.0, ge=0)


class Whole(Settings):
    parts: tuple[Part, ...] = ()
    by_name: dict[str, Part] = Field(default_factory=dict)
    best: Part | None = None
    seed: int = 0
    path: Path = Path("here")


def written(folder: Path, text: str) -> Path:
    file = folder / "whole.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_becomes_settings_and_comes_back_equal(tmp_path):
    file = written(tmp_path, "parts: [{name: ä, share: 0.5}, {name: b}]\nby_name: {x: {name: c}}\nseed: 3\n")
    config = load_config(file, Whole)
    assert config.parts[0].name == "ä" and config.by_name["x"].share == 1.0 and config.path == Path("here")
    assert load_config(written(tmp_path, dump_config(config)), Whole) == config


def test_overrides_reach_into_lists_and_mappings_and_are_yaml(tmp_path):
    file = written(tmp_path, "parts: [{name: a}, {name: b}]\n")
    sets = ["parts.1.share=2.5", "by_name.x.name=new", "seed=7", "best={name: z, share: 0}", "parts.0.name=null"]
    config = load_config(file, Whole, sets[:4])
    assert config.parts[1].share == 2.5 and config.by_name["x"].name == "new"
    assert config.seed == 7 and config.best == Part(name="z", share=0)
    with pytest.raises(UserError, match=r"parts\.0\.name: .*found None"):
        load_config(file, Whole, sets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1", "whole.yaml: sed: unknown key; did you mean 'seed'"),
        ("parts: [{name: a, shar: 1}]", r"whole.yaml: parts.0.shar: unknown key; did you mean 'share'"),
        ("by_name: {x: {name: a, nome: b}}", "by_name.x.nome: unknown key; did you mean 'name'"),
        ("qqqq: 1", "qqqq: unknown key; remove it"),
        ("seed: many", r"seed: .*integer.*found 'many'"),
        ("parts: [{share: 1}]", r"parts.0.name: Field required"),
        ("parts: [{name: a, share: -1}]", r"parts.0.share: .*greater than or equal to 0"),
        ("- a list", "expected a mapping of settings, found list"),
        ("", "expected a mapping of settings, found NoneType"),
        ("seed: [1", r"whole.yaml, line \d+: not valid YAML"),
        ("seed: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_every_mistake_is_one_line_with_file_field_and_cure(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(written(tmp_path, text), Whole)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml: no such configuration file"):
        load_config(tmp_path / "none.yaml", Whole)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path, Whole)
    (tmp_path / "latin.yaml").write_bytes("name: ü".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.yaml: cannot be read"):
        load_config(tmp_path / "latin.yaml", Whole)


@pytest.mark.parametrize("override", ["seed", "=3", "parts.9.name=x", "parts.first.name=x", "seed.deep.er=1"])
def test_overrides_that_reach_nothing_are_named(tmp_path, override):
    with pytest.raises(UserError, match="--set"):
        load_config(written(tmp_path, "parts: [{name: a}]\nseed: 1"), Whole, [override])


def test_settings_do_not_change_after_reading():
    config = validate({"seed": 1}, Whole, "here")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2
