"""Workflows: each step done once, again when what it rests on has changed, and on from a kill at any moment."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from motet.core.configuration import load_config
from motet.core.errors import UserError
from motet.orchestration.cli import app
from motet.orchestration.workflow import DATABASE, RunRecord, StepFailed, StepRecord, Workflow, run_workflow
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus

ROOT = Path(__file__).resolve().parents[2]
SPEECHES = ROOT / "examples/corpus/text/speeches.jsonl"

ROOT_COMMAND = typer.main.get_command(app)


def write(path: Path, *steps: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump({"steps": list(steps)}), encoding="utf-8")
    return path


def silent(line: str) -> None:
    pass


def states(out: Path) -> list[tuple[str, str]]:
    """(step, state) of every record, oldest first."""
    engine = create_engine(f"sqlite:///{out / DATABASE}")
    with Session(engine) as session:
        found = [(r.name, r.state) for r in session.scalars(select(StepRecord).order_by(StepRecord.id))]
    engine.dispose()
    return found


def speeches(path: Path, begin: int, end: int) -> None:
    lines = SPEECHES.read_text("utf-8").splitlines()[begin:end]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """Fit -> tokenize -> verify on two real speeches, and a step that needs none of them."""
    speeches(tmp_path / "text.jsonl", 0, 2)
    config = {
        "corpus": [{"name": "speeches", "format": "text", "path": "text.jsonl"}],
        "tokenizers": {"text": {"use": "bpe", "path": "set by the workflow"}},
    }
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return write(
        tmp_path / "line.yaml",
        {
            "name": "verify",
            "run": "verify {out}/tokens",
            "needs": ["tokenize"],
        },
        {
            "name": "tokenize",
            "run": "tokenize {here}/corpus.yaml --out {out}/tokens --set tokenizers.text.path={out}/bpe",
            "reads": ["{here}/corpus.yaml", "{here}/text.jsonl"],
            "makes": ["{out}/tokens/manifest.json"],
            "needs": ["fit"],
        },
        {
            "name": "fit",
            "run": "tokenizer fit bpe --samples {here}/sample.jsonl --out {out}/bpe --set vocabulary=300",
            "reads": ["{here}/sample.jsonl"],
            "makes": ["{out}/bpe"],
        },
        {"name": "alone", "run": "tokenizer --help"},
    )


def test_steps_are_done_once_and_again_when_what_they_rest_on_changes(line: Path, tmp_path: Path) -> None:
    out = tmp_path / "the outputs"
    speeches(tmp_path / "sample.jsonl", 0, 2)
    said: list[str] = []
    first = run_workflow(line, out, ROOT_COMMAND, said.append)
    assert first == dict.fromkeys(("fit", "tokenize", "verify", "alone"), "done")
    assert [line.split()[1].rstrip(":") for line in said if "motet " in line].index("fit") < 2
    order = [name for name, _ in states(out)]
    assert order.index("fit") < order.index("tokenize") < order.index("verify")

    before = (out / "tokens/manifest.json").stat().st_mtime_ns
    assert set(run_workflow(line, out, ROOT_COMMAND, silent).values()) == {"skipped"}
    assert (out / "tokens/manifest.json").stat().st_mtime_ns == before

    with open(tmp_path / "text.jsonl", "a", encoding="utf-8") as corpus:  # the corpus grows
        corpus.write(json.dumps({"id": "new", "text": "And so, my fellow citizens."}) + "\n")
    assert run_workflow(line, out, ROOT_COMMAND, silent) == {
        "fit": "skipped",
        "tokenize": "done",
        "verify": "done",
        "alone": "skipped",
    }
    manifest = json.loads((out / "tokens/manifest.json").read_text("utf-8"))
    assert sum(shard["rows"] for shard in manifest["shards"]) == 3

    speeches(tmp_path / "sample.jsonl", 2, 4)  # other samples: all but the step that needs none
    assert run_workflow(line, out, ROOT_COMMAND, silent) == {
        "fit": "done",
        "tokenize": "done",
        "verify": "done",
        "alone": "skipped",
    }

    (out / "tokens/manifest.json").unlink()  # an output is gone
    assert run_workflow(line, out, ROOT_COMMAND, silent) == {
        "fit": "skipped",
        "tokenize": "done",
        "verify": "skipped",
        "alone": "skipped",
    }


def test_another_command_is_another_step(tmp_path: Path) -> None:
    flow = write(tmp_path / "a.yaml", {"name": "one", "run": "tokenizer --help"})
    assert run_workflow(flow, tmp_path / "out", ROOT_COMMAND, silent) == {"one": "done"}
    write(flow, {"name": "one", "run": "--version"})
    assert run_workflow(flow, tmp_path / "out", ROOT_COMMAND, silent) == {"one": "done"}


def motet(*args: str | Path) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    command = [str(Path(sys.executable).with_name("motet")), *map(str, args)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_goes_on_after_a_kill_in_the_middle_of_a_step(line: Path, tmp_path: Path) -> None:
    speeches(tmp_path / "sample.jsonl", 0, 2)
    text = "".join(json.loads(row)["text"] for row in SPEECHES.read_text("utf-8").splitlines())
    pieces = [{"id": str(i), "text": text[i * 800 : (i + 1) * 800]} for i in range(1500)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(piece) + "\n" for piece in pieces), encoding="utf-8")
    config = yaml.safe_load((tmp_path / "corpus.yaml").read_text("utf-8")) | {"partition_bytes": 10_000}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    out = tmp_path / "out"
    killed = motet("run", line, "--out", out)
    while not list(out.glob("tokens/commits/*.json")):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (out / "tokens/manifest.json").exists(), "the kill came too late to show anything"
    assert ("tokenize", "running") in states(out)
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("tokens/commits/*.json")}

    again = motet("run", line, "--out", out)
    told, _ = again.communicate()
    assert again.returncode == 0, told
    match = re.search(r"(\d+) of (\d+) partitions done now", told)
    assert "fit: done before" in told and match
    assert int(match[1]) + len(kept) == int(match[2])
    assert {name: (out / "tokens/commits" / name).stat().st_mtime_ns for name in kept} == kept

    job = load_config(tmp_path / "corpus.yaml", TokenizeConfig, [f"tokenizers.text.path={out / 'bpe'}"])
    tokenize_corpus(job, tmp_path, tmp_path / "undisturbed")
    assert (tmp_path / "undisturbed/manifest.json").read_bytes() == (out / "tokens/manifest.json").read_bytes()


def test_a_failed_step_stops_the_run_and_gives_its_exit_code(tmp_path: Path) -> None:
    flow = write(
        tmp_path / "flow.yaml",
        {"name": "good", "run": "--version"},
        {"name": "bad", "run": "stats {out}/nothing-here", "needs": ["good"]},
        {"name": "never", "run": "--version", "needs": ["bad"]},
    )
    with pytest.raises(StepFailed, match="step bad ended with exit code 2") as failed:
        run_workflow(flow, tmp_path / "out", ROOT_COMMAND, silent)
    assert failed.value.code == 2
    assert states(tmp_path / "out") == [("good", "done"), ("bad", "failed")]
    engine = create_engine(f"sqlite:///{tmp_path / 'out' / DATABASE}")
    with Session(engine) as session:
        [run] = session.scalars(select(RunRecord))
        assert run.state == "failed" and run.ended is not None
    engine.dispose()

    write(flow, {"name": "good", "run": "--version"}, {"name": "bad", "run": "--version", "needs": ["good"]})
    assert run_workflow(flow, tmp_path / "out", ROOT_COMMAND, silent) == {"good": "skipped", "bad": "done"}

    process = motet("run", write(flow, {"name": "bad", "run": "verify {out}/nothing-here"}), "--out", tmp_path / "o")
    told, _ = process.communicate()
    assert process.returncode == 2 and "step bad ended with exit code 2" in told and "Traceback" not in told


def test_a_step_that_does_not_make_what_it_promised_has_failed(tmp_path: Path) -> None:
    flow = write(tmp_path / "flow.yaml", {"name": "idle", "run": "--version", "makes": ["{out}/page.html"]})
    with pytest.raises(StepFailed, match=r"step idle was to make .*/out/page.html, but did not") as failed:
        run_workflow(flow, tmp_path / "out", ROOT_COMMAND, silent)
    assert failed.value.code == 1


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"name": "a", "needs": ["b"]}, {"name": "b", "needs": ["a"]}], "in a circle: .*a.* -> .*b"),
        ([{"name": "a", "needs": ["a"]}], "in a circle"),
        ([{"name": "a"}, {"name": "b", "needs": ["c"]}], r"steps\.1\.needs: no step is called 'c'; there are a, b"),
        ([{"name": "a"}, {"name": "a"}], r"steps\.\d\.name: 'a' is used twice"),
        ([{"name": "a", "need": ["b"]}], "did you mean 'needs'"),
        ([{"name": "a/b"}], "name"),
        ([], "steps"),
    ],
)
def test_a_wrong_workflow(tmp_path: Path, steps: list[dict[str, object]], message: str) -> None:
    flow = write(tmp_path / "flow.yaml", *({"run": "--version", **step} for step in steps))
    with pytest.raises(UserError, match=message) as error:
        Workflow.load(flow, ROOT_COMMAND)
    assert str(error.value).startswith(str(flow)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"run": "--version", "reads": ["{here}/none.txt"]}, "none.txt does not exist"),
        ({"run": "tokenize {her}/a.yaml"}, r"\{her\}"),
        ({"run": "tokenize 'a.yaml"}, "quot"),
    ],
)
def test_a_wrong_step_is_the_users_error(tmp_path: Path, step: dict[str, object], message: str) -> None:
    flow = write(tmp_path / "flow.yaml", {"name": "a", **step})
    with pytest.raises(UserError, match=f"step a: .*{message}"):
        run_workflow(flow, tmp_path / "out", ROOT_COMMAND, silent)


def test_an_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    flow = write(tmp_path / "flow.yaml", {"name": "a", "run": "--version"})
    with pytest.raises(UserError, match="--out"):
        run_workflow(flow, flow / "out", ROOT_COMMAND, silent)


def test_the_demos_workflow_is_sound() -> None:
    workflow = Workflow.load(ROOT / "examples/demo/workflow.yaml", ROOT_COMMAND)
    names = [step.name for step in workflow.ordered()]
    assert all(names.index(need) < names.index(step.name) for step in workflow.steps for need in step.needs)
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for step in workflow.steps:
        words, reads, _ = step.placed({"out": "demo", "here": str(ROOT / "examples/demo")})
        assert all(path.exists() for path in reads if "weights" not in path.parts), step.name
        command = verbs[words[0]]
        while hasattr(command, "commands"):
            command, words = command.commands[words[1]], words[1:]
        command.make_context(words[0], words[1:])


def test_every_file_below_a_folder_that_is_read_counts_with_its_name_and_so_does_what_is_made(tmp_path: Path) -> None:
    step: dict[str, object] = {"name": "one", "run": "--version", "reads": ["{here}/raw"]}
    flow = write(tmp_path / "flow.yaml", step)
    (tmp_path / "raw/deep").mkdir(parents=True)
    speeches(tmp_path / "raw/first.jsonl", 0, 1)
    speeches(tmp_path / "raw/deep/second.jsonl", 1, 2)

    def state() -> str:
        return run_workflow(flow, tmp_path / "out", ROOT_COMMAND, silent)["one"]

    assert [state(), state()] == ["done", "skipped"]
    speeches(tmp_path / "raw/deep/second.jsonl", 2, 3)
    assert [state(), state()] == ["done", "skipped"]
    (tmp_path / "raw/first.jsonl").rename(tmp_path / "raw/third.jsonl")
    assert [state(), state()] == ["done", "skipped"]
    write(flow, {**step, "makes": ["{here}/raw"]})
    assert [state(), state()] == ["done", "skipped"]
