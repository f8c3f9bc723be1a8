"""Seven loaders behind one interface, each written as a user of that library would, with its fastest plain settings.

    write(arrays, folder)                        uint16 arrays -> the peer's format, in SHARDS files where it lets us choose
    loader(folder, seed, workers, state)         -> Loader: one shuffled epoch of int64 tensors [16, 2048], and how to save
    documents(folder, seed, algorithm)           -> packed batches: tokens [16, 2048], segments [16, 2048] (0 is padding)

This file knows nothing of motet, and imports a peer's library only where that peer is used: all peers cannot live in one
environment. `needs` is what its environment is made of, `lacks` says why an action cannot be asked of it.
"""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
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


class Grain(Peer):
    """ArrayRecord files and a full shuffle, read without threads: on two cores 77 Mtok/s, with the default sixteen 27."""

    needs = ("grain==0.2.18", "array-record==0.8.6")
    imports = ("grain", "grain.experimental")
    lacks: Mapping[str, str] = {}
    algorithms = ("first-fit", "best-fit", "concat-split")
    bins = 64

    def write(self, arrays: Sequence[np.ndarray], folder: Path) -> None:
        """A record per array, uncompressed."""
        from array_record.python.array_record_module import ArrayRecordWriter

        for shard, some in shards(arrays):
            writer = ArrayRecordWriter(str(folder / f"{shard}.array_record"), "group_size:1,uncompressed")
            for each in some:
                writer.write(each.tobytes())
            writer.close()

    def _source(self, folder: Path, seed: int) -> Any:
        """The arrays in the epoch's order."""
        import grain

        files = sorted(map(str, folder.glob("*.array_record")))
        return grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files)).shuffle(seed).map(_uint16)

    def loader(self, folder: Path, seed: int, workers: int = 0, state: bytes | None = None) -> Loader:
        """Its `ElasticIterator`: the fastest of its ways here, and the one that allows another number of workers later."""
        import grain
        import torch
        from grain.experimental import ElasticIterator

        processes = grain.MultiprocessingOptions(num_workers=workers) if workers else None
        one, inline = grain.sharding.ShardOptions(0, 1), grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        source = self._source(folder, seed)
        dataset = ElasticIterator(source, BATCH, one, read_options=inline, multiprocessing_options=processes)
        iterator = iter(dataset)
        if state is not None:
            iterator.set_state(pickle.loads(state))
        batches = (torch.from_numpy(batch.astype("int64")) for batch in iterator)
        return Loader(batches, lambda: pickle.dumps(iterator.get_state()))

    def documents(self, folder: Path, seed: int, algorithm: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Its own packing, with 64 open bins where there are bins."""
        import grain
        import torch
        from grain import experimental

        source = self._source(folder, seed).map(_field)
        source = source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        length = {"x": LENGTH}
        if algorithm == "concat-split":
            packed = experimental.ConcatThenSplitIterDataset(source, length_struct=length)
        else:
            kind = "FirstFitPackIterDataset" if algorithm == "first-fit" else "BestFitPackIterDataset"
            packed = getattr(experimental, kind)(source, length_struct=length, num_packing_bins=self.bins)
        for batch in packed.batch(BATCH):
            yield torch.from_numpy(batch["x"].astype("int64")), torch.from_numpy(batch["x_segment_ids"])


def _uint16(record: bytes) -> np.ndarray:
    """A record's tokens."""
    import numpy as np

    return np.frombuffer(record, np.uint16)


def _field(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """As Grain's packing wants them."""
    return {"x": tokens}


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
            .map(lambda sample: _uint16(sample["tok"]))
            .batched(BATCH, collation_fn=stack)
        )
        return Loader(iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=workers) if workers else dataset))


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
            return Tokens(**energon.basic_sample_keys(sample), x=_uint16(sample["tok"]))

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


PEERS: dict[str, Peer] = {
    "litdata": LitData(),
    "mosaic": Mosaic(),
    "grain": Grain(),
    "webdataset": WebDataset(),
    "energon": Energon(),
    "huggingface": HuggingFace(),
    "raydata": RayData(),
}
