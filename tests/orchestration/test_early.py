"""What can be known before any weights load is said in two seconds; what was not done whole leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from motet.core import places
from motet.core.errors import UserError
from motet.tokenizers.registry import FITTED, available, find

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "examples/corpus"


def motet(*args: object) -> list[str]:
    return [sys.executable, "-m", "motet.orchestration", *map(str, args)]


def refused(*args: object) -> str:
    """What the command says; it loads no weights, which takes it some five seconds, and answers at once."""
    loaded = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stdout)); "
    script = loaded + f"sys.argv = {['motet', *map(str, args)]!r}; from motet.orchestration.cli import main; main()"
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout.strip() == "False", "torch was not needed to know this"
    assert time.monotonic() - begun < 10  # two seconds where nothing else runs
    return done.stderr


@pytest.fixture
def config(tmp_path: Path) -> Path:
    settings = {
        "corpus": [{"name": "a", "format": "folder", "path": str(CORPUS / "images/emoji"), "modality": "image"}],
        "tokenizers": {"text": {"use": "bpe", "path": "bpe"}, "image": {"use": "vqgan", "path": "./tools/vqgan"}},
    }
    (tmp_path / "tokenize.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "bpe").mkdir()
    return tmp_path / "tokenize.yaml"


def test_missing_weights_are_told_with_the_command_that_fits_them(config: Path, tmp_path: Path) -> None:
    told = refused("tokenize", config, "--out", tmp_path / "out")
    assert f"tokenizers.image: path: {tmp_path}/tools/vqgan does not exist" in told
    assert "motet tokenizer fit vqgan --samples FOLDER --out ./tools/vqgan" in told
    told = refused(
        "tokenize", config, "--out", tmp_path / "out", "--set", "tokenizers={text: {use: bpe, path: none/bpe}}"
    )
    assert "motet tokenizer fit bpe" in told, "a path of text is never the name of a model on a hub"
    told = refused(
        "tokenize", config, "--out", tmp_path / "out", "--set", "tokenizers.image={use: encodec, path: ~/none}"
    )
    assert f"{Path.home()}/none does not exist; correct it, or download the weights" in told
    assert not (tmp_path / "out").exists()


def test_which_tokenizers_can_be_fitted_is_known_without_them() -> None:
    own = {entry.name for entry in available() if entry.distribution == "motet-tokenizers"}
    assert {name for name in own if find(name).Fit is not None} == set(FITTED)


@pytest.mark.parametrize("verb", ["tokenize", "fit", "train", "generate", "sheet", "export", "stats", "view"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(verb: str, config: Path, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("here")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/plan.txt").write_text("keep me")
    folders = {
        "tokenize": ("tokenize", config, "--out"),
        "fit": ("tokenizer", "fit", "vqgan", "--samples", CORPUS / "images/emoji", "--out"),
        "train": ("train", ROOT / "examples/demo/chameleon.yaml", "--out"),
        "export": ("export", tmp_path / "run", "--out"),
    }
    if verb in folders:
        assert "is a file; choose a folder" in refused(*folders[verb], tmp_path / "a_file")
        assert f"{tmp_path}/a_file is no folder" in refused(*folders[verb], tmp_path / "a_file/deep/out")
        assert "cannot be written" in refused(*folders[verb], "/proc/motet")
    if verb in ("tokenize", "fit"):
        assert "holds" in refused(*folders[verb], tmp_path / "notes")
    files = {
        "generate": ("generate", tmp_path / "run", "--to", "image", "--text", "a", "--out"),
        "sheet": ("sheet", tmp_path / "run", "--out"),
        "stats": ("stats", tmp_path / "tokens", "--html"),
        "view": ("view", tmp_path / "tokens", "--html"),
    }
    if verb in files:
        assert f"{tmp_path}/notes: is a folder; name a file" in refused(*files[verb], tmp_path / "notes")
        assert "cannot be written" in refused(*files[verb], "/proc/motet/a.png")
    if verb == "generate":
        many = ("generate", tmp_path / "run", "--to", "text,image", "--text", "a", "--out")
        assert "is a file; choose a folder" in refused(*many, tmp_path / "a_file")
    assert [(tmp_path / "a_file").read_text(), (tmp_path / "notes/plan.txt").read_text()] == ["here", "keep me"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_file", "bpe", "notes", "tokenize.yaml"]


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/sys/kernel"), reason="root may write everywhere")
def test_looking_leaves_nothing(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    places.folder(tmp_path / "new/deep")
    places.file(tmp_path / "new/deep/a.png")
    assert not list(tmp_path.iterdir()) and tmp_path.stat().st_mtime_ns == before
    (tmp_path / "to").symlink_to("nowhere")
    places.folder(tmp_path / "to")
    with pytest.raises(UserError, match="cannot be written"):
        places.folder(Path("/sys/kernel/motet"))


def test_a_fit_tells_what_is_left_and_leaves_nothing_when_it_is_stopped(tmp_path: Path) -> None:
    """And what had been fitted there before stays."""
    out = tmp_path / "vqgan"
    out.mkdir()
    (out / "config.json").write_text("{}")
    options = ("--set", "steps=100000", "--set", "size=16", "--set", "channels=[8, 8]")
    process = subprocess.Popen(
        motet("tokenizer", "fit", "vqgan", "--samples", CORPUS / "images/emoji", "--out", out, *options),
        stderr=subprocess.PIPE,
        text=True,
        # What is started in the background ignores SIGINT, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stderr is not None
        line = ""
        while "step 50 of 100000" not in line:
            line = process.stderr.readline()
            assert line, "it ended"
        assert " left" in line and "about " in line
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "keeps nothing of what it began" in told and "goes on" not in told
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("config.json", "{}")]
    assert [p.name for p in tmp_path.iterdir()] == ["vqgan"]


def test_a_fit_replaces_what_was_fitted_before(tmp_path: Path) -> None:
    out = tmp_path / "bpe"
    samples = ("--samples", CORPUS / "text/speeches.jsonl", "--out", out, "--json")
    for size in (300, 400):
        done = subprocess.run(
            motet("tokenizer", "fit", "bpe", *samples, "--set", f"vocabulary={size}"), capture_output=True, check=True
        )
        assert json.loads(done.stdout)["vocabulary"] == size
        assert find("bpe")(find("bpe").Settings(path=out)).spec.codebooks == (size,)
    assert [p.name for p in tmp_path.iterdir()] == ["bpe"]
