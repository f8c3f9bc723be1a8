"""`datasets`, map-style over mapped Arrow files, with torchdata's stateful loader."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peers.base import BATCH, LENGTH, SHARDS, Loader, Peer

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class HuggingFace(Peer):
    """`datasets`, map-style over mapped Arrow files, with torchdata's stateful loader."""

    needs = ("datasets==5.2.0", "torchdata==0.11.0", "pyarrow==25.0.0")
    imports = ("datasets", "torchdata.stateful_dataloader")

    def write(self, arrays: Sequence[np.ndarray], folder: Path) -> None:
        """`save_to_disk`."""
        import datasets
        import numpy as np
        import pyarrow

        flat = pyarrow.array(np.concatenate(arrays))
        tokens = pyarrow.FixedSizeListArray.from_arrays(flat, LENGTH)
        features = datasets.Features({"tokens": datasets.List(datasets.Value("uint16"), length=LENGTH)})
        table = pyarrow.table({"tokens": tokens})
        datasets.Dataset(table).cast(features).save_to_disk(folder, num_shards=SHARDS)

    def loader(self, folder: Path, seed: int, workers: int = 0, state: bytes | None = None) -> Loader:
        """A batch of indices at a time, drawn by torch's random sampler."""
        import datasets
        import torch
        from torch.utils.data import BatchSampler, Dataset, RandomSampler
        from torchdata.stateful_dataloader import StatefulDataLoader

        table = datasets.load_from_disk(folder).with_format("numpy")

        class Rows(Dataset):
            def __getitem__(self, indices: list[int]) -> Tensor:
                return torch.from_numpy(table[indices]["tokens"].astype("int64"))

            def __len__(self) -> int:
                return len(table)

        order = RandomSampler(range(len(table)), generator=torch.Generator().manual_seed(seed))
        sampler = BatchSampler(order, BATCH, drop_last=False)
        loader = StatefulDataLoader(Rows(), batch_size=None, sampler=sampler, num_workers=workers)
        if state is not None:
            loader.load_state_dict(pickle.loads(state))
        return Loader(iter(loader), lambda: pickle.dumps(loader.state_dict()))
