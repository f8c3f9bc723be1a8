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
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from sqlalchemy import DateTime, Engine, ForeignKey, create_engine, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from motet.core.configuration import Settings, load_config
from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.orchestration.process import check_words, run_verb

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

    def placed(self, places: Mapping[str, str]) -> tuple[list[str], list[Path], list[Path]]:
        """The command's words, what it reads and what it makes, with `{out}` and `{here}` filled in.

        The command is split first, so that a folder's name may hold spaces. Raises UserError, without the file's name.
        """
        try:
            words = [word.format_map(places) for word in shlex.split(self.run)]
            reads, makes = ([Path(p.format_map(places)) for p in group] for group in (self.reads, self.makes))
        except KeyError as error:
            raise UserError(
                f"step {self.name}: {{{error.args[0]}}} stands for nothing; there are {{out}} and {{here}}"
            ) from None
        except (ValueError, IndexError) as error:
            raise UserError(
                f"step {self.name}: cannot be read: {error}; a brace that is meant is written twice"
            ) from None
        return words, reads, makes


class Workflow(Settings):
    """A whole workflow.

    Attributes:
        steps: in any order; `needs` decides which comes first.
    """

    steps: Annotated[tuple[Step, ...], Field(min_length=1)]

    @classmethod
    def load(cls, path: Path, root: Any) -> Workflow:
        """Read and check a workflow, its steps against the command `root`; UserError for an unknown need, a cycle, a name used twice, or words that cannot be read."""
        workflow = load_config(path, cls)
        names = [step.name for step in workflow.steps]
        for i, step in enumerate(workflow.steps):
            try:
                words, _, _ = step.placed({"out": "", "here": ""})
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            try:
                check_words(words, root)
            except UserError as error:
                raise UserError(f"{path}: steps.{i}.run: {error}") from None
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
    """One step of one call: `state` is running, done, skipped, failed or stopped (Ctrl-C); a killed one stays running."""

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


def run_workflow(path: Path, out: Path, root: Any, say: Callable[[str], None]) -> dict[str, str]:
    """Bring a workflow's outputs up to date, by verbs of the command `root`; the state of each step (`done` or `skipped`). Raises StepFailed."""
    workflow = Workflow.load(path, root)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}; choose another") from None
    places = {"out": str(out.resolve()), "here": str(path.resolve().parent)}
    engine = create_engine(f"sqlite:///{out.resolve() / DATABASE}")
    try:
        _Base.metadata.create_all(engine)
    except DatabaseError as error:
        raise UserError(f"--out {out}: {DATABASE}: {error.orig}; choose another folder") from None
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
        last = session.scalars(  # the last that touched the outputs, however it ended
            select(StepRecord)
            .where(StepRecord.name == step.name, StepRecord.state != "skipped")
            .order_by(StepRecord.id.desc())
        ).first()
        command, _, makes = step.placed(places)
        there = all(made.exists() for made in makes)
        if last is not None and (last.state, last.fingerprint) == ("done", fingerprint) and there:
            record.state = "skipped"
        session.add(record)
        session.commit()
        if record.state == "skipped":
            say(f"{progress} {step.name}: done before")
            return "skipped"
        say(f"{progress} {step.name}: motet {shlex.join(command)}")
        start = time.monotonic()
        try:
            code = run_verb(command)
        except KeyboardInterrupt:
            record.state = "stopped"
            session.commit()
            raise
        record.exit_code, record.seconds = code, time.monotonic() - start
        missing = [str(made) for made in makes if not made.exists()]
        record.state = "failed" if code or missing else "done"
        session.commit()
        if code:
            how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code} (9: out of memory?)"
            raise StepFailed(f"step {step.name} {how}; mend it, the same command goes on there", max(code, 1))
        if missing:
            raise StepFailed(f"step {step.name} was to make {', '.join(missing)}, but did not", 1)
        return "done"


def _fingerprint(step: Step, places: Mapping[str, str], known: Mapping[str, str]) -> str:
    _, reads, _ = step.placed(places)
    for path in reads:
        if not path.exists():
            raise UserError(f"step {step.name}: reads: {path} does not exist")
    contents = [content_hash(name, data) for path in reads for name, data in _files(path)]
    return content_hash(step.run, list(step.makes), contents, [known[need] for need in sorted(step.needs)])


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a file, or of every file below a folder, in order."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        yield file.relative_to(path.parent).as_posix(), file.read_bytes()
