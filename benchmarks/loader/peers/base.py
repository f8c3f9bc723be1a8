"""What every loader of the benchmark has to offer.

    write(arrays, folder)                        uint16 arrays -> the peer's format, in SHARDS files where it lets us choose
    loader(folder, seed, workers, state)         -> Loader: one shuffled epoch of int64 tensors [16, 2048], and how to save
    documents(folder, seed, algorithm)           -> packed batches: tokens [16, 2048], segments [16, 2048] (0 is padding)

`needs` is what its environment is made of, nothing where this repository's own serves; `lacks` says why an action cannot be
asked of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

BATCH, LENGTH, SHARDS, BUFFER = 16, 2048, 8, 1000
COMMON = ["torch==2.14.1", "numpy", "psutil"]
NO_STATE = "no state to save: a run that was cut starts its epoch again"
NO_PACKING = "no packing of its own"


@dataclass
class Loader:
    """One epoch, and what to call between two batches for the state after the first of them."""

    batches: Iterator[Tensor]
    save: Callable[[], bytes] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches


class Peer(ABC):
    """What is common; a peer without packing has no algorithms."""

    needs: Sequence[str] = ()
    imports: Sequence[str] = ()  # before any clock starts
    lacks: Mapping[str, str] = {"documents": NO_PACKING}
    algorithms: Sequence[str] = ()

    @abstractmethod
    def write(self, arrays: Sequence[np.ndarray], folder: Path) -> None:
        """All arrays into a folder that exists and is empty."""

    @abstractmethod
    def loader(self, folder: Path, seed: int, workers: int = 0, state: bytes | None = None) -> Loader:
        """An epoch from its start, or from after the batch at which the state was saved."""

    def documents(self, folder: Path, seed: int, algorithm: str) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch of documents, packed by one of `algorithms` while it is read."""
        return iter(())


def shards(arrays: Sequence[np.ndarray]) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
    """As many equal runs of arrays as there are shards."""
    size = -(-len(arrays) // SHARDS)
    for shard in range(SHARDS):
        yield shard, arrays[shard * size : (shard + 1) * size]


def stack(rows: Sequence[Any]) -> Tensor:
    """Rows of uint16 -> int64 [rows, 2048]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack(rows).astype(np.int64))


def uint16(record: bytes) -> np.ndarray:
    """A record's tokens."""
    import numpy as np

    return np.frombuffer(record, np.uint16)
