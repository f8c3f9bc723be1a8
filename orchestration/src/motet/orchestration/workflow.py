"""A workflow: named steps, each a `motet` verb, each done once.

    WORKFLOW.yaml --`Workflow.load`--> steps in order of their needs --for each: fingerprint known and outputs there?-->
    skip | run as a process of its own --> record in OUT/workflow.sqlite

A step's fingerprint covers its command, the content of the files it reads and the fingerprints of the steps it needs, so
that a change is carried to everything that rests on it, and to nothing else. Verbs are idempotent themselves: a step that
was killed goes on where it was. Each step is a process, because a verb may take the memory, the signals and the libraries
of a process to itself, and because it is then the very command that a person would type.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated

from pydantic import Field
from sqlalchemy import DateTime, Engine, ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from motet.tokenizers.configuration import Settings, UserError, load_config
from motet.tokenizers.contract import content_hash

DATABASE = "workflow.sqlite"


class Step(Settings):
    """One step.

    Attributes:
        name: unique in the workflow.
        run: a `motet` command without the word motet; `{out}` stands for the output folder, `{here}` for the workflow's.
        reads: files and folders whose content decides the result, beside the command itself.
        makes: files and folders that are there when the step is done.
        needs: steps that come before.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    run: str
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class Workflow(Settings):
    """A whole workflow: `steps` in any order."""

    steps: Annotated[tuple[Step, ...], Field(min_length=1)]

    @classmethod
    def load(cls, path: Path) -> Workflow:
        """Read and check a workflow; UserError for an unknown need, a cycle, or a name used twice."""
        workflow = load_config(path, cls)
        names = [step.name for step in workflow.steps]
        for i, step in enumerate(workflow.steps):
            if names.count(step.name) > 1:
                raise UserError(f"{path}: steps.{i}.name: '{step.name}' is used twice; names are unique")
            for need in step.needs:
                if need not in names:
                    raise UserError(
                        f"{path}: steps.{i}.needs: no step is called '{need}'; there are {', '.join(names)}"
                    )
        try:
            workflow.ordered()
        except CycleError as error:
            raise UserError(f"{path}: steps need each other in a circle: {' -> '.join(error.args[1])}") from None
        return workflow

    def ordered(self) -> list[Step]:
        """Steps so that each comes after what it needs; the file's order otherwise."""
        by_name = {step.name: step for step in self.steps}
        return [by_name[n] for n in TopologicalSorter({s.name: s.needs for s in self.steps}).static_order()]


class _Base(DeclarativeBase):
    pass


class RunRecord(_Base):
    """One call of `motet run`."""

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    workflow: Mapped[str]
    started: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    ended: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    state: Mapped[str]


class StepRecord(_Base):
    """One step of one call: `state` is running, done, skipped or failed; a killed one stays running."""

    __tablename__ = "steps"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    name: Mapped[str]
    fingerprint: Mapped[str]
    state: Mapped[str]
    exit_code: Mapped[int | None]
    seconds: Mapped[float | None]


class StepFailed(Exception):
    """A step ended with an error; the message names it. `code` is its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def run_workflow(path: Path, out: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Bring a workflow's outputs up to date; the state of each step (`done` or `skipped`). Raises StepFailed."""
    workflow = Workflow.load(path)
    out.mkdir(parents=True, exist_ok=True)
    places = {"out": str(out.resolve()), "here": str(path.resolve().parent)}
    engine = create_engine(f"sqlite:///{out.resolve() / DATABASE}")
    _Base.metadata.create_all(engine)
    run = RunRecord(workflow=str(path.resolve()), started=datetime.now(UTC), state="running")
    with Session(engine, expire_on_commit=False) as session:
        session.add(run)
        session.commit()
    states: dict[str, str] = {}
    fingerprints: dict[str, str] = {}
    try:
        steps = workflow.ordered()
        for i, step in enumerate(steps):
            fingerprints[step.name] = _fingerprint(step, places, fingerprints)
            states[step.name] = _bring(
                step, fingerprints[step.name], places, engine, run.id, f"[{i + 1}/{len(steps)}]", say
            )
        run.state = "done"
    except StepFailed:
        run.state = "failed"
        raise
    finally:
        run.ended = datetime.now(UTC)
        run.state = "stopped" if run.state == "running" else run.state
        with Session(engine) as session:
            session.merge(run)
            session.commit()
        engine.dispose()
    return states


def _bring(
    step: Step,
    fingerprint: str,
    places: Mapping[str, str],
    engine: Engine,
    run_id: int,
    progress: str,
    say: Callable[[str], None],
) -> str:
    record = StepRecord(run_id=run_id, name=step.name, fingerprint=fingerprint, state="running")
    with Session(engine, expire_on_commit=False) as session:
        last = session.scalars(
            select(StepRecord)
            .where(StepRecord.name == step.name, StepRecord.state == "done")
            .order_by(StepRecord.id.desc())
        ).first()
        there = all(Path(made.format_map(places)).exists() for made in step.makes)
        if last is not None and last.fingerprint == fingerprint and there:
            record.state = "skipped"
        session.add(record)
        session.commit()
        if record.state == "skipped":
            say(f"{progress} {step.name}: done before")
            return "skipped"
        command = shlex.split(step.run.format_map(places))
        say(f"{progress} {step.name}: motet {shlex.join(command)}")
        start = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "motet.orchestration", *command]).returncode
        record.exit_code, record.seconds = code, time.monotonic() - start
        missing = [made for made in step.makes if not Path(made.format_map(places)).exists()]
        record.state = "failed" if code or missing else "done"
        session.commit()
        if code:
            raise StepFailed(
                f"step {step.name} ended with exit code {code}; mend it, the same command goes on there", code
            )
        if missing:
            raise StepFailed(f"step {step.name} was to make {', '.join(missing)}, but did not", 1)
        return "done"


def _fingerprint(step: Step, places: Mapping[str, str], known: Mapping[str, str]) -> str:
    contents = [
        content_hash(name, data) for place in step.reads for name, data in _files(Path(place.format_map(places)))
    ]
    return content_hash(step.run, list(step.makes), contents, [known[need] for need in sorted(step.needs)])


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a file, or of every file below a folder, in order."""
    if not path.exists():
        raise UserError(f"reads: {path} does not exist")
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        yield file.relative_to(path.parent).as_posix(), file.read_bytes()
