"""How many samples a source may lose: watched while a job runs, and held against the manifest when it is done.

Result of each task --`Watch.add`--> rejects so far, for progress | AllRejected, once nothing of a source comes through
manifest --`over`--> the sources of which more than `max_reject_fraction` was rejected
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from motet.pipeline.dataset.manifest import Manifest, ShardEntry
from motet.pipeline.job.task import Result, Task

ENOUGH = 256
"""Samples of a source that must have been rejected before it is given up."""


class AllRejected(Exception):
    """Every sample of a source was rejected, and so much of it is done that the limit will be passed."""


class Watch:
    """Adds up what becomes of the tasks of this run.

    A source is given up when no sample of it has become a document and the rejected ones are a larger share of its bytes than
    `limit` allows of its samples. What came of parts that were done before (their bytes, and the entries of their commits)
    counts: the same command again is no way past the limit.
    """

    def __init__(self, tasks: Iterable[Task], limit: float, done_before: Iterable[tuple[int, ShardEntry]] = ()):
        self.rejected = self._left = 0
        self._limit = limit
        self._total: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}
        self._passed: set[str] = set()
        for size, entry in done_before:
            self._total[entry.source] += size
            self._note(entry.source, size, entry.rows, entry.rejects)
        for task in tasks:
            self._total[task.partition.entry.name] += task.partition.size
            self._left += 1

    def add(self, result: Result) -> int:
        """The bytes of one more task; AllRejected if its source comes to nothing."""
        source = result.source
        self._note(source, result.size, result.documents, result.rejects)
        self.rejected += sum(result.rejects.values())
        self._left -= 1
        count = (reasons := self._reasons[source]).total()
        share = self._bytes[source] / max(self._total[source], 1)
        if source not in self._passed and count >= ENOUGH and share > self._limit and self._left:
            told = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common(3))
            raise AllRejected(
                f"{source}: all {count:,} samples so far were rejected ({told}), {share:.0%} of its bytes; stopped. "
                f"One of them is {result.example}. Correct the entry, or set max_reject_fraction: 1 to go on"
            )
        return result.size

    def _note(self, source: str, size: int, documents: int, rejects: Mapping[str, int]) -> None:
        self._reasons.setdefault(source, Counter()).update(rejects)
        self._bytes[source] += size
        if documents:
            self._passed.add(source)


def too_many(rejected: int, samples: int, limit: float) -> bool:
    """Whether this is more than `limit` of the samples. By their quotient, as 0.29 stands in a configuration: 0.29 times 100
    is less than 29.
    """
    return bool(samples) and rejected / samples > limit


def over(manifest: Manifest, limit: float) -> dict[str, tuple[int, int]]:
    """(rejected, samples) of each source that lost more than `limit` of its samples."""
    rejected, samples = Counter[str](), Counter[str]()
    for entry in manifest.shards:
        lost = sum(entry.rejects.values())
        rejected[entry.source] += lost
        samples[entry.source] += lost + entry.rows
    return {name: (rejected[name], samples[name]) for name in samples if too_many(rejected[name], samples[name], limit)}
