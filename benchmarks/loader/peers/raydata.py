"""Parquet files in any order, then a buffer of 1000."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.base import BATCH, BUFFER, NO_PACKING, NO_STATE, Loader, Peer, shards

if TYPE_CHECKING:
    import numpy as np


class RayData(Peer):
    """Parquet files in any order, then a buffer of 1000."""

    needs = ("ray[data]==2.60.0", "pyarrow==25.0.0")
    imports = ("ray.data",)
    lacks: Mapping[str, str] = {"documents": NO_PACKING, "resume": NO_STATE, "kill": NO_STATE, "elastic": NO_STATE}

    def _ray(self) -> Any:
        """Ray, on a cluster of this process."""
        import ray

        if not ray.is_initialized():
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        return ray

    def write(self, arrays: Sequence[np.ndarray], folder: Path) -> None:
        """`write_parquet` of a tensor column: plain lists come back as objects, and slowly."""
        import numpy as np

        blocks = [np.stack(some) for _, some in shards(arrays)]
        self._ray().data.from_numpy(blocks).write_parquet(str(folder), row_group_size=1024, compression="zstd")

    def loader(self, folder: Path, seed: int, workers: int = 0, state: bytes | None = None) -> Loader:
        """`iter_batches` of the driver."""
        import torch

        ray = self._ray()
        dataset = ray.data.read_parquet(str(folder), shuffle=ray.data.FileShuffleConfig(seed=seed))
        batches = dataset.iter_batches(
            batch_size=BATCH, batch_format="numpy", local_shuffle_buffer_size=BUFFER, local_shuffle_seed=seed
        )
        return Loader(torch.from_numpy(batch["data"].astype("int64")) for batch in batches)
