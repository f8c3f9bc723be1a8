"""A workflow's steps are processes: Ctrl-C lets them save, a killed workflow leaves none behind, a failed one is done anew."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from motet.core.configuration import validate
from motet.core.errors import UserError
from motet.orchestration.cli import app
from motet.orchestration.process import run_verb
from motet.orchestration.workflow import DATABASE, StepFailed, StepRecord, run_workflow
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus
from motet.tokenizers.registry import find

SPEECHES = Path(__file__).resolve().parents[2] / "examples/corpus/text/speeches.jsonl"
STEPS = 8

ROOT_COMMAND = typer.main.get_command(app)


def write(path: Path, settings: object) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def states(out: Path) -> list[str]:
    engine = create_engine(f"sqlite:///{out / DATABASE}")
    with Session(engine) as session:
        found = list(session.scalars(select(StepRecord.state).order_by(StepRecord.id)))
    engine.dispose()
    return found


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step that trains on real speeches, with steps long enough to be interrupted in."""
    folder = tmp_path_factory.mktemp("flow")
    lines = SPEECHES.read_text("utf-8").splitlines()[:4]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    find("bpe").fit([json.loads(line)["text"].encode() for line in lines], folder / "bpe", {"vocabulary": 300})
    corpus = {
        "corpus": [{"name": "speeches", "format": "text", "path": "text.jsonl"}],
        "tokenizers": {"text": {"use": "bpe", "path": "bpe"}},
    }
    tokenize_corpus(validate(corpus, TokenizeConfig, "corpus"), folder, folder / "tokens")
    train = {
        "data": {"paths": [str(folder / "tokens")], "sequence": 128, "holdout": 0.0, "long": "split"},
        "model": {"dim": 128, "layers": 4, "heads": 2},
        "objective": {"kind": "chameleon"},
        "optimizer": {"lr": 0.001},
        "steps": STEPS,
        "rows": 16,
        "micro_rows": 16,
        "checkpoint_every": STEPS,
        "evaluate_every": STEPS,
        "evaluate_rows": 1,
    }
    write(folder / "train.yaml", train)
    step = {"name": "train", "run": "train {here}/train.yaml --out {out}/run", "makes": ["{out}/run/checkpoints"]}
    return write(folder / "flow.yaml", {"steps": [step]})


def start(flow: Path, out: Path) -> subprocess.Popen[str]:
    """`motet run` in a process group of its own, as from a terminal: a shell may have told us to ignore Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "motet.orchestration", "run", str(flow), "--out", str(out)],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps(out: Path) -> list[int]:
    rows = out / "run/metrics.jsonl"
    return [json.loads(row)["step"] for row in rows.read_text("utf-8").splitlines()] if rows.exists() else []


def wait(process: subprocess.Popen[str], seen: Callable[[], bool]) -> None:
    while not seen():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_ctrl_c_lets_a_step_save_and_a_killed_workflow_leaves_none_behind(flow: Path, tmp_path: Path) -> None:
    interrupted = start(flow, tmp_path)
    wait(interrupted, lambda: len(steps(tmp_path)) >= 2)
    os.killpg(interrupted.pid, signal.SIGINT)
    told, _ = interrupted.communicate()
    assert interrupted.returncode == 130, told
    done = len(steps(tmp_path))
    assert f"stopped and saved after step {done} of {STEPS}" in told and "motet: interrupted" in told
    assert "Traceback" not in told and states(tmp_path) == ["stopped"]
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{done:06d}"]

    killed = start(flow, tmp_path)
    wait(killed, lambda: len(steps(tmp_path)) > done)
    killed.kill()  # the workflow alone; not its step
    told, _ = killed.communicate()  # ends when the step, which writes there too, has gone
    assert killed.returncode == -signal.SIGKILL and len(steps(tmp_path)) < STEPS, told
    assert states(tmp_path) == ["stopped", "running"]

    again = start(flow, tmp_path)
    told, _ = again.communicate()
    assert again.returncode == 0, told
    assert steps(tmp_path) == list(range(STEPS))
    assert states(tmp_path)[-1] == "done"


def test_what_a_failed_step_left_is_not_taken_for_what_was_done_before(flow: Path, tmp_path: Path) -> None:
    def fit(vocabulary: int, *makes: str) -> Path:
        run = f"tokenizer fit bpe --samples {flow.parent}/text.jsonl --out {{out}}/bpe --set vocabulary={vocabulary}"
        return write(tmp_path / "flow.yaml", {"steps": [{"name": "bpe", "run": run, "makes": ["{out}/bpe", *makes]}]})

    out = tmp_path / "out"
    assert run_workflow(fit(300), out, ROOT_COMMAND, print) == {"bpe": "done"}
    with pytest.raises(StepFailed):
        run_workflow(fit(400, "{out}/never"), out, ROOT_COMMAND, print)
    assert run_workflow(fit(300), out, ROOT_COMMAND, print) == {"bpe": "done"}, (
        "back at 300, but the outputs are those of 400"
    )
    [fitted] = (out / "bpe").glob("*.json")
    assert len(json.loads(fitted.read_text("utf-8"))["model"]["vocab"]) == 300
    assert run_workflow(fit(300), out, ROOT_COMMAND, print) == {"bpe": "skipped"}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("tokeniz corpus.yaml --out {out}/t", "'tokeniz'.*tokenize.*`motet --help`"),
        ("tokenizer fitt bpe", "'fitt'.*fit.*`motet tokenizer --help`"),
        ("train train.yaml --outt {out}/run", "--outt.*--out.*`motet train --help`"),
        ("train --out {out}/run", "'config'"),
        ("tokenize corpus.yaml --out {out}/t --workers two", "--workers"),
    ],
)
def test_wrong_words_are_told_before_the_first_step(tmp_path: Path, run: str, message: str) -> None:
    listing = {"name": "list", "run": "tokenizer list --json"}
    flow = write(tmp_path / "flow.yaml", {"steps": [listing, {"name": "late", "run": run, "needs": ["list"]}]})
    with pytest.raises(UserError, match=rf"flow.yaml: steps\.1\.run: .*{message}") as error:
        run_workflow(flow, tmp_path / "out", ROOT_COMMAND, print)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_exit_codes() -> None:
    assert run_verb(["--version"]) == 0
    assert run_verb(["stats", "no-such-dataset"]) == 2


def test_a_record_that_is_none(flow: Path, tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_text("this is somebody's diary, and no database at all")
    with pytest.raises(UserError, match=r"--out .*not a database") as error:
        run_workflow(flow, tmp_path, ROOT_COMMAND, print)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGTERM, 130, "step train ended with exit code 130"),
        (signal.SIGKILL, 1, "step train was killed by signal 9"),
    ],
)
def test_a_step_that_was_ended_from_outside_is_not_done(flow: Path, tmp_path: Path, number, code, told) -> None:
    workflow = start(flow, tmp_path)
    wait(workflow, lambda: len(steps(tmp_path)) >= 1)
    children = Path(f"/proc/{workflow.pid}/task/{workflow.pid}/children").read_text().split()
    [step] = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(step, number)
    said, _ = workflow.communicate()
    assert workflow.returncode == code and told in said and "Traceback" not in said
    assert states(tmp_path) == ["failed"] and len(steps(tmp_path)) < STEPS
