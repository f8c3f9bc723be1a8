"""What an engine sends to its workers: how to build the tokenizers, and where to commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.pipeline.commit import Output
from motet.pipeline.task import Task
from motet.pipeline.tokenize import BrokenTokenizer
from motet.tokenizers.contract import Tokenizer
from motet.tokenizers.registry import build


class PartitionFailed(Exception):
    """A partition cannot be tokenized, for a reason that is no bad sample."""


class WorkerLost(Exception):
    """A partition kills every worker that tries it; what was committed stays."""


@dataclass(frozen=True)
class Work:
    """Settings of every modality's tokenizer (absolute paths), and the output folder; can be sent anywhere."""

    tokenizers: dict[str, dict[str, Any]]
    out: Path

    def start(self) -> Worker:
        """Load the tokenizers; once per process."""
        return Worker({m: build(s, Path("/"), m) for m, s in self.tokenizers.items()}, Output(self.out))


@dataclass(frozen=True)
class Worker:
    """A process that tokenizes partitions and commits them."""

    tokenizers: Mapping[str, Tokenizer]
    output: Output

    def do(self, task: Task) -> int:
        """Tokenize and commit one partition; how many bytes of input it had, for progress.

        PartitionFailed says which partition and why, if it cannot be done.
        """
        try:
            for modality, spec in task.header.tokenizers.items():
                if self.tokenizers[modality].spec != spec:
                    raise BrokenTokenizer(
                        f"{modality}: a worker's {spec.name} is not the one that the job was planned with"
                    )
            self.output.do(task, self.tokenizers)
        except Exception as error:
            told = str(error) if isinstance(error, BrokenTokenizer) else f"{type(error).__name__}: {error}"
            raise PartitionFailed(
                f"{task.partition.name}: {told}; committed partitions are kept, the same command goes on with the rest"
            ) from error
        return task.partition.size
