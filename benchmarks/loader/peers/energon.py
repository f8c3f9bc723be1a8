"""Megatron-Energon: tar files with an index beside them, raw samples cooked while they are read, a buffer of 1000."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.base import BATCH, BUFFER, LENGTH, Loader, Peer, shards, stack, uint16

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Energon(Peer):
    """Megatron-Energon: tar files with an index beside them, raw samples cooked while they are read, a buffer of 1000.

    Its default is a stream without an end. Here it does not repeat, so that there is an epoch to compare; a state that is
    saved when less than the buffer is left of such an epoch starts the epoch again, which the stream's does not.
    """

    needs = ("megatron-energon==7.4.1",)
    imports = ("megatron.energon",)
    lacks: Mapping[str, str] = {}
    algorithms = ("callback",)

    def write(self, arrays: Sequence[np.ndarray], folder: Path) -> None:
        """Plain tar files, then `energon prepare`."""
        for shard, some in shards(arrays):
            with tarfile.open(folder / f"{shard:06}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for i, each in enumerate(some):
                    member = tarfile.TarInfo(f"{shard}{i:09}.tok")
                    member.size = each.nbytes
                    tar.addfile(member, io.BytesIO(each.tobytes()))
        prepare = [Path(sys.executable).parent / "energon", "prepare", folder, "--non-interactive"]
        how = ["--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "1"]
        subprocess.run([*prepare, *how], check=True, stdout=sys.stderr)

    def _loader(self, folder: Path, seed: int, workers: int, packed: bool) -> Any:
        """Its data loader over one epoch."""
        import numpy as np
        import torch
        from megatron import energon

        @energon.edataclass
        class Tokens(energon.Sample):
            x: Any
            segments: Any = None

        @energon.stateless
        def cook(sample: dict[str, Any]) -> Tokens:
            return Tokens(**energon.basic_sample_keys(sample), x=uint16(sample["tok"]))

        class Encoder(energon.DefaultTaskEncoder):
            cookers = (energon.Cooker(cook),)
            decoder = None

            def select_samples_to_pack(self, samples: list[Tokens]) -> list[list[Tokens]]:
                bins: list[list[Tokens]] = []
                rooms = np.full(len(samples), LENGTH)
                for sample in sorted(samples, key=lambda sample: -len(sample.x)):
                    at = int((rooms >= len(sample.x)).argmax())
                    if at == len(bins):
                        bins.append([])
                    bins[at].append(sample)
                    rooms[at] -= len(sample.x)
                return bins

            @energon.stateless
            def pack_selected_samples(self, samples: list[Tokens]) -> Tokens:
                x, segments = np.zeros(LENGTH, np.uint16), np.zeros(LENGTH, np.int32)
                joined = np.concatenate([sample.x for sample in samples])
                x[: len(joined)] = joined
                segments[: len(joined)] = np.repeat(
                    np.arange(1, len(samples) + 1), [len(sample.x) for sample in samples]
                )
                return Tokens.derive_from(samples[0], x=x, segments=segments)

            def batch(self, samples: list[Tokens]) -> dict[str, Tensor]:
                batch = {"x": stack([sample.x for sample in samples])}
                if packed:
                    batch["segments"] = torch.from_numpy(np.stack([sample.segments for sample in samples]))
                return batch

        dataset = energon.get_train_dataset(
            folder,
            worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=workers, seed_offset=seed),
            batch_size=BATCH,
            packing_buffer_size=BUFFER if packed else None,
            shuffle_buffer_size=BUFFER,
            max_samples_per_sequence=None,
            task_encoder=Encoder(),
            repeat=False,
        )
        return energon.get_savable_loader(dataset, watchdog_timeout_seconds=None)

    def loader(self, folder: Path, seed: int, workers: int = 0, state: bytes | None = None) -> Loader:
        """`get_savable_loader` over `get_train_dataset` that does not repeat."""
        loader = self._loader(folder, seed, workers, packed=False)
        if state is not None:
            loader.restore_state_rank(pickle.loads(state))
        return Loader((batch["x"] for batch in loader), lambda: pickle.dumps(loader.save_state_rank()))

    def documents(self, folder: Path, seed: int, algorithm: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Its packing hooks; what to pack together is the user's to say: first-fit-decreasing over 1000 documents."""
        for batch in self._loader(folder, seed, 0, packed=True):
            yield batch["x"], batch["segments"]
