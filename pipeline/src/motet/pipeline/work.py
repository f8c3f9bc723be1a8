"""What an engine sends to its workers: how to build the tokenizers, and where to commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.pipeline.commit import Output
from motet.pipeline.task import Task
from motet.tokenizers.contract import Tokenizer
from motet.tokenizers.registry import build


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
        """Tokenize and commit one partition; how many bytes of input it had, for progress."""
        self.output.do(task, self.tokenizers)
        return task.partition.size
