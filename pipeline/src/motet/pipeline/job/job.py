"""One tokenizing job from configuration to manifest.

    TokenizeConfig --`partitions`--> tasks --those without a commit--> engine.map(do) --> commits --> manifest.json

Running it again does only what is missing: a partition whose files, settings or tokenizers changed has another key. What
it was made of before stays until `motet gc`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.core.configuration import dump_config
from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.pipeline.corpus import sources
from motet.pipeline.corpus.entry import Entry
from motet.pipeline.dataset import index
from motet.pipeline.dataset.commits import Output
from motet.pipeline.dataset.header import FORMAT_VERSION, ShardHeader
from motet.pipeline.dataset.left_out import Rest, planned
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.rejects import LOST_REST
from motet.pipeline.dataset.store import Folder, Store, store_of
from motet.pipeline.dataset.totals import Sums
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.engines import EngineOptions, engine_of, run_all
from motet.pipeline.job.limits import Watch, over, too_many
from motet.pipeline.job.partitions import partitions
from motet.pipeline.job.task import Task
from motet.pipeline.job.work import Work, described
from motet.tokenizers.contract import TokenizerSpec
from motet.tokenizers.registry import present


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
        """More samples were rejected than the configuration allows, of the corpus or of one of its sources; an unknown number is
        more than any share but all.
        """
        lost = too_many(self.rejected, self.samples, self.max_reject_fraction) or bool(self.over)
        return lost or (self.broken_files > 0 and self.max_reject_fraction < 1)

    @property
    def over(self) -> dict[str, tuple[int, int]]:
        """(rejected, samples) of each source that lost more than the configuration allows."""
        return over(self.manifest, self.max_reject_fraction)

    @property
    def broken_files(self) -> int:
        """Files of many samples that break somewhere: what follows there is lost, and nobody knows how much that is."""
        return self.manifest.rejects().get(LOST_REST, 0)


def tokenize_corpus(
    config: TokenizeConfig,
    base: Path,
    out: str | Path,
    engine: str = "local",
    workers: int = 1,
    options: EngineOptions | None = None,
    retry_rejects: bool = False,
) -> JobResult:
    """Tokenize a corpus to the folder or URI `out`; paths in `config` are relative to `base`.

    With `retry_rejects`, partitions that have rejects are done again too.

    Raises UserError for a wrong configuration before anything is written, and AllRejected once nothing of a source comes through.
    """
    store = store_of(out)
    output = Output(store, config.keep_rejected)
    output.check(entry.name for entry in config.corpus)
    for modality, tokenizer in config.tokenizers.items():
        present(tokenizer, base, modality)
    run = engine_of(engine)
    rests = {entry.name: Rest() for entry in config.corpus}
    plan = partitions(config, base, rests)
    unread = {name: rest.rows for name, rest in rests.items() if rest.rows}
    settings, specs = described(config.tokenizers, base)
    complete = config.model_copy(
        update={
            "corpus": tuple(sources.absolute(entry, base) for entry in config.corpus),
            "tokenizers": settings,
        }
    )
    if isinstance(store, Folder):
        _apart(store.path, complete)
    entry_names = tuple(entry.name for entry in config.corpus)
    headers = {entry.name: _header(entry, specs) for entry in config.corpus}
    tasks = [Task(p, headers[p.entry.name], p.key(headers[p.entry.name].settings_hash)) for p in plan]
    names = [task.commit for task in tasks]
    with output.claimed(entry_names, dump_config(complete)):
        if retry_rejects:
            output.forget_rejected(names)
        there = output.whole(names)
        missing = [task for task in tasks if task.commit not in there]
        used = {modality for task in missing for modality in task.header.modalities}
        work = Work({m: settings[m] for m in settings if m in used}, output, config.sample_seconds)
        before = ((task.partition.size, there[task.commit]) for task in tasks if task.commit in there)
        watch = Watch(missing, config.max_reject_fraction, before)
        run_all(run, work, missing, workers, options or EngineOptions(), watch)

        manifest = None if missing else output.finished(names)
        if (
            manifest is None
            or (manifest.sources, manifest.tokenizers) != (entry_names, specs)
            or {name: told for name, rows in manifest.left_out.items() if (told := planned(rows))} != unread
            or not index.whole(store)
        ):
            manifest = _manifest(store, config, headers, specs, output.commits(names), rests)
            whole = len(manifest.shards) == len(tasks)
            assert whole, "an engine returned without an error, but did not commit every partition"
            index.write(manifest)
            manifest.save()
        elif output.unfinished(manifest):
            manifest.save()  # as it is, but younger than what a job committed that was given up
    return JobResult(manifest, len(missing), len(tasks), sum(manifest.rejects().values()), config.max_reject_fraction)


def _apart(out: Path, config: TokenizeConfig) -> None:
    """UserError if what is written would be found as a part of the corpus the next time."""
    for entry in config.corpus:
        folder = sources.searched(entry)
        if folder is not None and out.is_relative_to(folder):
            raise UserError(f"--out {out}: lies inside the corpus folder {folder}; choose one beside it")


def _header(entry: Entry, specs: dict[str, TokenizerSpec]) -> ShardHeader:
    """What a source's shards say of themselves: only the tokenizers that it may use, so that another one's change
    leaves its shards as they are.
    """
    used = sources.modalities(entry)
    own = {m: specs[m] for m in specs if used is None or m in used}
    identity = content_hash(FORMAT_VERSION, {m: spec.to_json() for m, spec in own.items()})
    return ShardHeader(tuple(own), own, identity)


def _manifest(
    store: Store,
    config: TokenizeConfig,
    headers: dict[str, ShardHeader],
    specs: dict[str, TokenizerSpec],
    commits: Iterable[dict[str, Any]],
    rests: dict[str, Rest],
) -> Manifest:
    sums, shards = Sums(), []
    for commit in commits:
        shards.append(commit["entry"])
        sums.add(commit["entry"].source, commit["totals"])
        for row in commit["left_out"]:
            rests[commit["entry"].source].take(row)
    return Manifest(
        store=store,
        modalities=tuple(specs),
        tokenizers=specs,
        settings_hash=content_hash(FORMAT_VERSION, {m: spec.to_json() for m, spec in specs.items()}),
        sources=tuple(entry.name for entry in config.corpus),
        shards=tuple(shards),
        codebooks=sums.codebooks,
        lengths=sums.lengths,
        span_lengths=sums.span_lengths,
        tables={name: list(header.modalities) for name, header in headers.items()},
        left_out={name: rest.rows for name, rest in rests.items() if rest.rows},
    )
