"""YAML and `--set` become typed settings; every mistake becomes one line that names the file, the field and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from motet.core.configuration import Settings, dump_config, load_config, override, validate
from motet.core.errors import UserError
from motet.core.notation import parsed, told

NAMED = st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs", "Cc"))


def bomb(each: str) -> str:
    """Ten values, each of which is nine times the one before it."""
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, 12):
        lines.append(f"a{i}: &a{i} " + each.format(", ".join([f"*a{i - 1}"] * 9)))
    return "\n".join(lines)


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
        (r'parts: [{name: a, "a\n\nb": 1}]', "parts.0.a b: unknown key; known are name, share"),
        ("seed: many", r"seed: .*integer.*found 'many'"),
        ("parts: [{share: 1}]", r"parts.0.name: Field required"),
        ("parts: [{name: a, share: -1}]", r"parts.0.share: .*greater than or equal to 0"),
        ("- a list", "expected a mapping of settings, found list"),
        ("", "expected a mapping of settings, found NoneType"),
        ("seed: [1", r"whole.yaml, line \d+: not valid YAML"),
        ("seed: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("seed: 1\nbest: null\nseed: 2", r"whole.yaml, line 3: not valid YAML: 'seed' stands in line 1 too"),
        ("parts:\n- {name: a, name: b}", r"whole.yaml, line 2: not valid YAML: 'name' stands in line 2 too"),
        ('{seed: 1, "seed": 2}', "'seed' stands in line 1 too"),
        ("seed: 2024-13-45", r"line 1: not valid YAML: '2024-13-45' is no timestamp; quote it"),
        ("seed: !!int ''", "is no int"),
        ("path: a\0b", "not valid YAML: character #x0000 at place 7"),
        (r'path: "a\0b"', "line 1: not valid YAML: a string with the character #x0000"),
        (r'path: "\ud800"', "a string with the character #xd800"),
        ("seed: " + 6000 * "1", "line 1: not valid YAML: a number of 6,000 characters"),
        ("seed: 0x" + 6000 * "f", "a number of 6,002 characters"),
        ("seed: 1" + 300_000 * ":1", "a number of 600,001 characters"),
        ("seed: " + 90_000 * "[", "nested more than 64 deep"),
        (90_000 * "- ", "nested more than 64 deep"),
        (90_000 * "{a: ", "nested more than 64 deep"),
        ("parts: &a [*a]", r"\*a stands inside itself"),
        ("path: " + (1 << 20) * "a", "whole.yaml: not valid YAML: 1,048,577 characters"),
        (bomb("[{}]"), "line 5: not valid YAML: more than 50,000 values"),
        (bomb("{{<<: [{}]}}"), "line 5: not valid YAML: more than 50,000 values"),
        ("parts: [" + 60_000 * "1," + "]", "more than 50,000 values"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_every_mistake_is_one_line_with_file_field_and_cure(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(written(tmp_path, text), Whole)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ("seed=[a", "--set seed=.a, line 1: not valid YAML: expected ',' or '.'"),
        ("seed={a: [1}", "not valid YAML"),
        ("seed=a: b: c", "not valid YAML: mapping values are not allowed here"),
        ("seed='", "not valid YAML"),
        ("seed=[1,\n\n2", "not valid YAML"),
        ("path=\tx\n- y", "not valid YAML"),
        ("seed=" + 6000 * "1", "a number of 6,000 characters"),
        ("best={name: a, name: b}", "'name' stands in line 1 too"),
        ("parts=" + bomb("[{}]").replace("\n", ", "), "not valid YAML"),
        (".".join(10_000 * "a") + "=1", "expected path.to.field=value"),
    ],
    ids=lambda value: value[:30],
)
def test_a_value_of_set_that_is_no_yaml_is_one_line(each, message):
    with pytest.raises(UserError, match=message) as caught:
        override({"seed": 1}, each)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_anchors_that_stay_small_are_written_out(tmp_path):
    text = "best: &one {name: a, share: 2}\nparts: [*one, {<<: *one, name: b}, {<<: [{name: x}, *one], name: c}]\n"
    config = load_config(written(tmp_path, text), Whole)
    assert config.parts == (Part(name="a", share=2), Part(name="b", share=2), Part(name="c", share=2))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**90), 10**90) | st.floats(allow_nan=False) | st.text(NAMED),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(NAMED), inner, max_size=3),
        max_leaves=20,
    )
)
def test_what_pyyaml_reads_is_read_alike(value):
    text = yaml.safe_dump(value, allow_unicode=True)
    assert parsed(text) == yaml.safe_load(text) == value


@settings(max_examples=300)
@given(st.text(st.sampled_from("ab:,[]{}&*<>|!?-#'\"\\ \n\t\0%@1")))
def test_whatever_the_text_there_is_a_value_or_one_line(text):
    try:
        parsed(text)
    except yaml.YAMLError as error:
        assert "\n" not in told(error) and told(error)


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
