"""One tokenizing job from configuration to manifest.

    TokenizeConfig --`partitions`--> plan --those without a commit--> engine.map(do) --> commits --> manifest.json

Running it again does only what is missing: a partition whose files, settings or tokenizers changed has another key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.pipeline.commit import Output
from motet.pipeline.config import Entry, TokenizeConfig
from motet.pipeline.engines import engine_of, run_all
from motet.pipeline.manifest import Manifest, ShardEntry
from motet.pipeline.plan import METADATA, partitions
from motet.pipeline.shard import FORMAT_VERSION, ShardHeader
from motet.pipeline.task import Task
from motet.pipeline.totals import Sums, Totals
from motet.pipeline.work import Work, Worker
from motet.tokenizers.configuration import UserError, dump_config
from motet.tokenizers.contract import TokenizerSpec, content_hash
from motet.tokenizers.registry import absolute, build


@dataclass(frozen=True)
class JobResult:
    """What a job came to: `manifest`, how many partitions this call did, samples and rejects in all."""

    manifest: Manifest
    done: int
    partitions: int
    rejected: int
    max_reject_fraction: float

    @property
    def samples(self) -> int:
        """Documents and rejects together: every sample of the corpus."""
        return self.manifest.documents + self.rejected

    @property
    def too_many_rejects(self) -> bool:
        """More samples were rejected than the configuration allows."""
        return self.rejected > self.max_reject_fraction * self.samples


def tokenize_corpus(
    config: TokenizeConfig,
    base: Path,
    out: Path,
    engine: str = "local",
    workers: int = 1,
    address: str | None = None,
) -> JobResult:
    """Tokenize a corpus into the folder `out`; paths in `config` are relative to `base`.

    Raises UserError for a wrong configuration before anything is written.
    """
    run = engine_of(engine)
    out = out.resolve()
    plan = partitions(config, base)
    settings = {m: absolute(s, base, m) for m, s in config.tokenizers.items()}
    tokenizers = {m: build(s, base, m) for m, s in settings.items()}
    specs = {m: t.spec for m, t in sorted(tokenizers.items())}
    complete = config.model_copy(
        update={
            "corpus": tuple(_absolute_entry(entry, base) for entry in config.corpus),
            "tokenizers": settings,
        }
    )
    _apart(out, complete)
    output = Output(out)
    with output.claimed([entry.name for entry in config.corpus], dump_config(complete)):
        headers = {entry.name: _header(entry, specs) for entry in config.corpus}
        tasks = [Task(p, headers[p.entry.name], p.key(headers[p.entry.name].settings_hash)) for p in plan]
        missing = [task for task in tasks if output.committed(task) is None]
        used = {modality for task in missing for modality in task.header.modalities}
        work = Work({m: settings[m] for m in settings if m in used}, out)
        run_all(run, work, missing, workers, address, Worker(tokenizers, output))

        commits = [c for task in tasks if (c := output.committed(task)) is not None]
        assert len(commits) == len(tasks), "an engine returned without an error, but did not commit every partition"
        manifest = _manifest(out, config, specs, commits)
        output.finish(manifest, commits, {task.commit_name for task in tasks})
    return JobResult(manifest, len(missing), len(tasks), sum(manifest.rejects().values()), config.max_reject_fraction)


def _apart(out: Path, config: TokenizeConfig) -> None:
    """UserError if what is written would be found as a part of the corpus the next time."""
    for entry in config.corpus:
        folder = Path(entry.path)
        searched = folder.is_dir() and not (entry.format == "folder" and (folder / METADATA).is_file())
        if searched and out.is_relative_to(folder):
            raise UserError(f"--out {out}: lies inside the corpus folder {folder}; choose one beside it")


def _header(entry: Entry, specs: dict[str, TokenizerSpec]) -> ShardHeader:
    """What a source's shards say of themselves: only the tokenizers that it may use, so that another one's change
    leaves its shards as they are.
    """
    used = {"text": ["text"], "folder": ["text", str(entry.modality)], "interleaved": list(specs)}[entry.format]
    own = {m: specs[m] for m in specs if m in used}
    identity = content_hash(FORMAT_VERSION, {m: spec.to_json() for m, spec in own.items()})
    return ShardHeader(tuple(own), own, identity)


def _absolute_entry(entry: Entry, base: Path) -> Entry:
    paths = {"path": str((base / entry.path).resolve()), "root": entry.root and str((base / entry.root).resolve())}
    return entry.model_copy(update=paths)


def _manifest(
    folder: Path, config: TokenizeConfig, specs: dict[str, TokenizerSpec], commits: list[dict[str, Any]]
) -> Manifest:
    sums = Sums()
    for commit in commits:
        sums.add(commit["entry"]["source"], Totals.from_json(commit["totals"]))
    return Manifest(
        folder=folder,
        modalities=tuple(specs),
        tokenizers=specs,
        settings_hash=content_hash(FORMAT_VERSION, {m: spec.to_json() for m, spec in specs.items()}),
        sources=tuple(entry.name for entry in config.corpus),
        shards=tuple(ShardEntry.from_json(commit["entry"]) for commit in commits),
        codebooks=sums.codebooks,
        lengths=sums.lengths,
        span_lengths=sums.span_lengths,
    )
