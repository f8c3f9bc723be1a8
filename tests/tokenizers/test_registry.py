"""Entry points and `module:Class` become classes and instances; broken plug-ins and typos become one clear line."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tomllib
from pathlib import Path

import pytest

from motet.core.errors import UserError
from motet.tokenizers import registry
from motet.tokenizers.text.bpe import BPE

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "custom_tokenizer"


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Install a distribution with these entry points: a folder on sys.path with real metadata, as pip leaves it."""

    def install(name: str, points: dict[str, str], **modules: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        rows = "".join(f"{key} = {target}\n" for key, target in points.items())
        (info / "entry_points.txt").write_text(f"[motet.tokenizers]\n{rows}")
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text(source)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


def fitted(folder: Path) -> Path:
    BPE.fit([b"to be or not to be"], folder / "bpe", {"vocabulary": 260})
    return folder


def test_the_built_in_tokenizers_are_on_offer_and_work():
    entries = {entry.name: entry for entry in registry.available()}
    assert set(entries) >= {"bpe", "vqgan", "encodec", "vae", "melrvq", "units"}
    assert all(entries[name].reason is None for name in ("bpe", "vqgan", "encodec", "vae", "melrvq", "units"))
    assert entries["bpe"].distribution == "motet-tokenizers"


def test_a_broken_plug_in_is_listed_with_its_reason_and_stops_nobody(plugins):
    plugins(
        "broken",
        {"needs": "broken_needs:T", "crashes": "broken_crashes:T", "none": "broken_none:T", "gone": "broken_gone:T"},
        broken_needs="import a_library_that_is_not_installed",
        broken_crashes="raise OSError('libfoo.so.1: cannot open shared object file\\nsecond line')",
        broken_none="class T: pass",
    )
    reasons = {entry.name: entry.reason for entry in registry.available()}
    assert reasons["needs"] == "ModuleNotFoundError: No module named 'a_library_that_is_not_installed'"
    assert reasons["crashes"] == "OSError: libfoo.so.1: cannot open shared object file second line"
    assert "not a subclass" in reasons["none"]
    assert "broken_gone" in reasons["gone"]
    assert reasons["bpe"] is None
    with pytest.raises(UserError, match="'crashes' is unavailable: OSError: libfoo"):
        registry.find("crashes")


def test_a_plug_in_is_found_by_its_entry_point(plugins, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    plugins("motet-series", {"series": "motet_series.series:Series"})
    assert registry.find("series").modality == "series"


def test_two_distributions_with_one_name_are_an_error_that_says_what_to_write(plugins):
    plugins("other", {"bpe": "motet.tokenizers.speech.units:Units"})
    with pytest.raises(
        UserError, match=r"claimed by motet.tokenizers.speech.units:Units and motet.tokenizers.text.bpe:BPE"
    ):
        registry.find("bpe")


@pytest.mark.parametrize(("typo", "meant"), [("vqgn", "vqgan"), ("mel-rvq", "melrvq"), ("unit", "units")])
def test_a_typo_is_answered_with_the_nearest_name(typo, meant):
    with pytest.raises(UserError, match=f"unknown tokenizer '{typo}'; did you mean '{meant}'"):
        registry.find(typo)


def test_a_name_like_nothing_is_answered_with_all_names():
    with pytest.raises(UserError, match=r"known are bpe, .*, or give module:Class"):
        registry.find("q")


@pytest.mark.parametrize("use", ["motet.tokenizers.text.bpe:Nothing", "no_such_module:T", "json:dumps", ":T", "a:"])
def test_a_module_class_that_is_none_is_an_error(use):
    with pytest.raises(UserError, match="unavailable"):
        registry.find(use)


def test_paths_are_taken_from_the_base(tmp_path):
    fitted(tmp_path)
    assert registry.build({"use": "bpe", "path": "bpe"}, tmp_path, "text").spec.codebooks == (259,)
    assert registry.build({"use": "motet.tokenizers.text.bpe:BPE", "path": "bpe"}, tmp_path).spec.name == "bpe"
    complete = registry.absolute({"use": "bpe", "path": "bpe"}, tmp_path)
    assert complete == {"use": "bpe", "path": str(tmp_path / "bpe"), "pattern": None, "max_unknown": 0.05}
    assert registry.absolute(complete, Path("/elsewhere")) == complete
    json.dumps(complete)


def test_the_id_of_a_model_on_a_hub_stays_as_it_is(tmp_path):
    assert registry.absolute({"use": "vqgan", "path": "someone/model"}, tmp_path)["path"] == "someone/model"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "bpe"}, "tokenizers.text: use: missing"),
        ({"use": "bpee", "path": "bpe"}, "tokenizers.text: use: unknown tokenizer 'bpee'; did you mean 'bpe'"),
        ({"use": "bpe", "pth": "bpe"}, "tokenizers.text: pth: unknown key; did you mean 'path'"),
        ({"use": "bpe"}, "tokenizers.text: path: Field required"),
        ({"use": "bpe", "path": "nowhere"}, "nowhere/tokenizer.json|nowhere does not exist"),
        ({"use": "melrvq", "path": "bpe"}, "'melrvq' makes speech tokens, not text"),
    ],
)
def test_wrong_settings_are_one_line_that_names_the_field(tmp_path, settings, message):
    fitted(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        registry.build(settings, tmp_path, "text")
    assert "\n" not in str(caught.value)


def test_the_entry_points_in_the_pyprojects_point_at_importable_classes(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    for project in (ROOT / "tokenizers", EXAMPLE):
        points = tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"][registry.GROUP]
        for target in points.values():
            assert registry.find(target).modality


def test_importing_the_registry_imports_none_of_the_libraries():
    import subprocess

    code = "import motet.tokenizers.registry, sys; print(sorted({'torch', 'tokenizers', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
