"""`TokensLoader` over chunks; "full" is a permutation within each chunk, chunks in any order."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peers.base import BATCH, LENGTH, SHARDS, Loader, Peer

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class LitData(Peer):
    """`TokensLoader` over chunks; "full" is a permutation within each chunk, chunks in any order."""

    needs = ("litdata==0.2.76", "pyarrow==25.0.0")
    imports = ("litdata",)
    lacks: Mapping[str, str] = {}
    algorithms = ("concat",)

    def write(self, arrays: Sequence[np.ndarray], folder: Path) -> None:
        """`optimize` with one worker process."""
        import litdata
        import torch

        litdata.optimize(
            torch.from_numpy,
            inputs=list(arrays),
            output_dir=str(folder),
            chunk_bytes=2 * sum(map(len, arrays)) // SHARDS + LENGTH,
            item_loader=litdata.TokensLoader(block_size=LENGTH),
            num_workers=1,
            verbose=False,
        )

    def loader(self, folder: Path, seed: int, workers: int = 0, state: bytes | None = None) -> Loader:
        """`StreamingDataset` with `item_shuffle_window="full"`, and its own data loader."""
        import litdata

        dataset = litdata.StreamingDataset(
            str(folder),
            item_loader=litdata.TokensLoader(block_size=LENGTH),
            shuffle=True,
            seed=seed,
            item_shuffle_window="full",
        )
        loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)
        if state is not None:
            loader.load_state_dict(pickle.loads(state))
        return Loader((batch.long() for batch in loader), lambda: pickle.dumps(loader.state_dict()))

    def documents(self, folder: Path, seed: int, algorithm: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks cut out of the concatenated documents, which does not tell where one ends: all is one segment."""
        import torch

        for batch in self.loader(folder, seed):
            yield batch, torch.ones_like(batch)
