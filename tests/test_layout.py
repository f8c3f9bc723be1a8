"""The layout of the workspace: names, layers, and a command that answers without loading the rooms."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ROOMS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["uv"]["workspace"]["members"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_import_tokenizers_from_the_root_is_the_library_of_that_name() -> None:
    """The room's folder `tokenizers/` lies in the root, but is no package."""
    told = run(sys.executable, "-c", "import tokenizers; print(tokenizers.__file__, tokenizers.Tokenizer.__module__)")
    assert "site-packages" in told.stdout and not told.stdout.startswith(str(ROOT / "tokenizers"))


def test_motet_is_a_namespace_that_the_rooms_share() -> None:
    for room in ROOMS:
        assert (ROOT / room / "src/motet" / room / "__init__.py").is_file()
        assert not (ROOT / room / "src/motet/__init__.py").exists()
        held = {p.name for p in (ROOT / room / "src/motet").iterdir()} - {"__pycache__"}
        assert held == ({room, "core"} if room == "tokenizers" else {room})


def test_a_room_declares_the_rooms_that_it_imports() -> None:
    """What deptry cannot see: to it they are all `motet`."""
    for room in ROOMS:
        sources = "\n".join(path.read_text("utf-8") for path in (ROOT / room / "src").rglob("*.py"))
        found = re.findall(r"^\s*(?:from|import) motet\.(\w+)", sources, re.M)
        imported = {"tokenizers" if name == "core" else name for name in found} - {room}
        declared = tomllib.loads((ROOT / room / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
        assert {name for name in declared if name.startswith("motet-")} == {f"motet-{name}" for name in imported}


def test_imports_run_one_way() -> None:
    assert "0 broken" in run(BIN / "lint-imports", "--no-cache").stdout


def test_help_loads_no_heavy_library() -> None:
    script = """
import json, sys
sys.argv = ["motet", "--help"]
from motet.orchestration.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    told = run(sys.executable, "-c", script).stdout
    assert "tokenize" in told
    loaded = set(json.loads(told.splitlines()[-1]))
    heavy = {"torch", "ray", "pyarrow", "numpy", "diffusers", "transformers", "encodec", "matplotlib", "sqlalchemy"}
    assert not loaded & heavy


def test_version() -> None:
    project = tomllib.loads((ROOT / "orchestration/pyproject.toml").read_text("utf-8"))["project"]
    assert run(BIN / "motet", "--version").stdout.strip() == project["version"]


def test_the_command_is_a_module_too() -> None:
    assert "tokenize" in run(sys.executable, "-m", "motet.orchestration", "--help").stdout
