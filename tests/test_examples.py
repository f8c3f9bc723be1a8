"""The scripts in examples/scripts, run as a reader runs them, one after another into one folder, and what came of each.

CHECKS: script -> what must be true of its output --`ran`--> those that it needs first, each once --> the check
"""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from PIL import Image

from motet.pipeline.dataset.manifest import Manifest

SCRIPTS = Path(__file__).parents[1] / "examples" / "scripts"
AFTER = {"generate": "train_and_resume", "plan_and_why": "train_and_resume"}  # all others need the dataset alone
FIRST = "tokenize_and_look"

Ran = Callable[[str], tuple[str, Path]]


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A function: script -> what it printed, and the folder; it runs each script once, after those that it needs."""
    out = tmp_path_factory.mktemp("examples") / "out"
    told: dict[str, str] = {}

    def run(name: str) -> tuple[str, Path]:
        if name not in told:
            if name != FIRST:
                run(AFTER.get(name, FIRST))
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
            command = [sys.executable, str(SCRIPTS / f"{name}.py"), str(out)]
            done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            told[name] = done.stdout
        return told[name], out

    return run


def picture(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def seconds(path: Path) -> float:
    samples, rate = soundfile.read(path)
    return len(samples) / rate


def tokenize_and_look(told: str, out: Path) -> None:
    assert "219 samples, 0 rejected, 3 of 3 partitions done now" in told
    assert (out / "look/emoji-0.txt").read_text("utf-8") == "grinning face"
    assert (out / "look/prompts-0.txt").read_text("utf-8") == "Activated."
    assert picture(out / "look/emoji-1.png") == (64, 64)
    assert seconds(out / "look/prompts-1.wav") == pytest.approx(1.064, abs=0.05)


def own_tokenizer(told: str, out: Path) -> None:
    assert "every check passed" in told and "FAIL" not in told
    assert "96 documents, " in told
    assert picture(out / "palette/after.png") == (192, 192)


def shards_elsewhere(told: str, out: Path) -> None:
    for entry in Manifest.load(out / "tokens").shards:  # there is one for each source
        assert f"{entry.source} ┆ {entry.rows} ┆ {sum(entry.tokens.values())}" in " ".join(told.split())
    assert "image: tokens 7-71 in a grid of [8, 8], vqgan" in told
    assert told.count("torch.int64") == 2
    assert "import motet" not in (source := (SCRIPTS / "shards_elsewhere.py").read_text("utf-8"))
    assert "from motet" not in source


def loader_in_plain_pytorch(told: str, out: Path) -> None:
    assert "the same losses to the last bit: True" in told
    first, last = (float(word) for word in told.split("30 steps: ")[1].split(" nats")[0].split(" to "))
    assert last < first - 1
    ranks = told.split("rank 0 of 2 has rows ")[1].splitlines()[0].split(" of the global batch, rank 1 ")
    assert sorted(row for rank in ranks for row in ast.literal_eval(rank)) == list(range(8))
    either, alone = (line.partition(": ")[2] for line in told.splitlines()[-2:])
    assert either == alone and "speech" in alone


def train_and_resume(told: str, out: Path) -> None:
    assert "stopped: 18 of 24 steps, finished: False" in told
    assert "resumed from step 18, finished: True" in told
    assert "24 of 24 steps have the same batch, losses and gradient norm to the last bit" in told
    assert "the files of weights are equal: True" in told


def generate(told: str, out: Path) -> None:
    assert {picture(out / f"generated/picture-{i}.png") for i in (0, 1)} == {(64, 64)}
    assert (out / "generated/caption.txt").read_bytes()
    assert 0 < seconds(out / "generated/speech.wav") < 2.1
    assert [line.split()[1] for line in told.splitlines() if "interleaved" in line] == ["text,", "image,", "speech,"]
    assert "draws the same pictures from the same seed: True" in told


def plan_and_why(told: str, out: Path) -> None:
    assert told.count("<- much too often") == 1
    assert "the run that was never stopped learned from the same pieces there: True" in told
    html = (out / "why.html").read_text("utf-8")
    assert html.count("data:image/png") + html.count("data:audio/wav") == 12


CHECKS = {
    each.__name__: each
    for each in (
        tokenize_and_look,
        own_tokenizer,
        shards_elsewhere,
        loader_in_plain_pytorch,
        train_and_resume,
        generate,
        plan_and_why,
    )
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_script_does_what_it_says(name: str, ran: Ran) -> None:
    CHECKS[name](*ran(name))


def test_every_script_is_run_here_listed_and_says_how_to_run_it() -> None:
    scripts = sorted(SCRIPTS.glob("*.py"))
    assert {path.stem for path in scripts} == set(CHECKS)
    listed = (SCRIPTS.parent / "README.md").read_text("utf-8")
    for path in scripts:
        said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        assert f"python examples/scripts/{path.name} OUT" in said and "on one core" in said, path
        assert f"(scripts/{path.name})" in listed, path
