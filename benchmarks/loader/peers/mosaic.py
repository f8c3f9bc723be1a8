"""MosaicML Streaming: MDS files and the py1e shuffle."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peers.base import BATCH, SHARDS, Loader, Peer, stack

if TYPE_CHECKING:
    import numpy as np


class Mosaic(Peer):
    """MosaicML Streaming: MDS files and the py1e shuffle."""

    needs = ("mosaicml-streaming==0.13.0",)
    imports = ("streaming",)

    def write(self, arrays: Sequence[np.ndarray], folder: Path) -> None:
        """`MDSWriter`, one column."""
        from streaming import MDSWriter

        limit = 2 * sum(map(len, arrays)) // SHARDS + (1 << 16)
        with MDSWriter(out=str(folder), columns={"tokens": "ndarray:uint16"}, size_limit=limit) as writer:
            for each in arrays:
                writer.write({"tokens": each})

    def loader(self, folder: Path, seed: int, workers: int = 0, state: bytes | None = None) -> Loader:
        """`StreamingDataset` and `StreamingDataLoader`, nothing remote."""
        from streaming import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(
            local=str(folder), shuffle=True, shuffle_algo="py1e", shuffle_seed=seed, batch_size=BATCH
        )
        loader = StreamingDataLoader(
            dataset,
            batch_size=BATCH,
            num_workers=workers,
            collate_fn=lambda samples: stack([sample["tokens"] for sample in samples]),
        )
        if state is not None:
            loader.load_state_dict(pickle.loads(state))
        return Loader(iter(loader), lambda: pickle.dumps(loader.state_dict()))
