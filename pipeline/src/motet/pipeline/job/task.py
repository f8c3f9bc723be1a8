"""One unit of work, and how it is done: what every engine maps over the partitions.

Task --`do`: tokenize into a scratch file--> shard, rejects, commit
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from motet.core.urls import censored
from motet.pipeline.corpus.sources.sample import Partition
from motet.pipeline.dataset.commits import Output
from motet.pipeline.dataset.header import ShardHeader
from motet.pipeline.dataset.rejects import Reject
from motet.pipeline.job.tokenize import Guard, tokenize
from motet.tokenizers.contract import Tokenizer


@dataclass(frozen=True)
class Result:
    """What came of a task, for whoever watches the job.

    Attributes:
        source: whose samples they were.
        size: bytes of input.
        documents: samples that became documents.
        rejects: those that did not, by reason.
        example: one of those, for a person.
    """

    source: str
    size: int
    documents: int
    rejects: Mapping[str, int] = field(default_factory=dict)
    example: str = ""


@dataclass(frozen=True)
class Task:
    """A partition to tokenize; can be sent to any worker."""

    partition: Partition
    header: ShardHeader
    key: str

    @property
    def commit(self) -> str:
        """File name of its commit."""
        return f"{self.partition.entry.name}-{self.partition.index:05d}-{self.key}.json"

    def do(self, output: Output, tokenizers: Mapping[str, Tokenizer], guard: Guard) -> Result:
        """Tokenize the partition and commit what it came to."""
        with output.store.scratch() as scratch:
            outcome = tokenize(self.partition, tokenizers, self.header, scratch, guard)
            output.commit(self.commit, scratch, outcome.entry, outcome.totals, outcome.rejects, outcome.left_out)
        seen = example(outcome.rejects[0]) if outcome.rejects else ""
        return Result(self.partition.entry.name, self.partition.size, outcome.entry.rows, outcome.entry.rejects, seen)


def example(reject: Reject) -> str:
    """A rejected sample for a person: where it stands, what is said of it, how it looks."""
    data = b"".join(part for _, part in reject.parts)
    looks = data[:120].decode("utf-8", "ignore")
    if looks.replace("\n", " ").replace("\t", " ").isprintable() and len(looks.encode()) > len(data[:120]) - 4:
        looks = repr(looks)
    else:
        looks = f"{len(data):,} bytes that begin with {data[:8].hex(' ')}"
    looks = f": {looks}" if data else ""
    return censored(f"{reject.position} ({reject.reason}: {reject.detail:.200}){looks}")
