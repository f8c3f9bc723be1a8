"""Tar files, shards shuffled, then a buffer of 1000."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peers.base import BATCH, BUFFER, NO_PACKING, NO_STATE, SHARDS, Loader, Peer, shards, stack, uint16

if TYPE_CHECKING:
    import numpy as np


class WebDataset(Peer):
    """Tar files, shards shuffled, then a buffer of 1000."""

    needs = ("webdataset==1.0.2",)
    imports = ("webdataset",)
    lacks: Mapping[str, str] = {"documents": NO_PACKING, "resume": NO_STATE, "kill": NO_STATE, "elastic": NO_STATE}

    def write(self, arrays: Sequence[np.ndarray], folder: Path) -> None:
        """`TarWriter`, a member per array."""
        import webdataset

        for shard, some in shards(arrays):
            with webdataset.TarWriter(str(folder / f"{shard:06}.tar")) as writer:
                for i, each in enumerate(some):
                    writer.write({"__key__": f"{shard}{i:09}", "tok": each.tobytes()})

    def loader(self, folder: Path, seed: int, workers: int = 0, state: bytes | None = None) -> Loader:
        """`WebLoader` around it only if there are workers."""
        import webdataset

        dataset = (
            webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=SHARDS, seed=seed)
            .shuffle(BUFFER, seed=seed)
            .map(lambda sample: uint16(sample["tok"]))
            .batched(BATCH, collation_fn=stack)
        )
        return Loader(iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=workers) if workers else dataset))
