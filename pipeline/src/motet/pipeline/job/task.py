"""One unit of work: a partition, what its shard says of itself, and the key of its commit."""

from __future__ import annotations

from dataclasses import dataclass

from motet.pipeline.corpus.sources.sample import Partition
from motet.pipeline.dataset.shard import ShardHeader


@dataclass(frozen=True)
class Task:
    """A partition to tokenize; can be sent to any worker."""

    partition: Partition
    header: ShardHeader
    key: str

    @property
    def name(self) -> str:
        """What its commit and its rejects are called, without an ending."""
        return f"{self.partition.entry.name}-{self.partition.index:05d}-{self.key}"

    @property
    def commit_name(self) -> str:
        """File name of the commit."""
        return f"{self.name}.json"

    @property
    def rejects_name(self) -> str:
        """File name of the rejects, where there are any."""
        return f"{self.name}.arrow"
