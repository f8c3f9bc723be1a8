"""One unit of work, and how it is done: what every engine maps over the partitions.

Task --`do`: tokenize into a scratch file--> shard, rejects, commit
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from motet.pipeline.corpus.sources.sample import Partition
from motet.pipeline.dataset.commits import Output
from motet.pipeline.dataset.shard import ShardHeader
from motet.pipeline.job.tokenize import Guard, tokenize
from motet.tokenizers.contract import Tokenizer


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

    def do(self, output: Output, tokenizers: Mapping[str, Tokenizer], guard: Guard) -> None:
        """Tokenize the partition and commit what it came to."""
        with output.store.scratch() as scratch:
            outcome = tokenize(self.partition, tokenizers, self.header, scratch, guard)
            output.commit(self.commit, scratch, outcome.entry, outcome.totals, outcome.rejects, outcome.left_out)
