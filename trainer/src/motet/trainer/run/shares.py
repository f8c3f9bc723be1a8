"""Named tensors of which every rank holds a share, as safetensors: each rank writes a file, any number of ranks reads them.

    tensors on a rank --`own`--> what it has to write, and where that begins --`write`--> folder/00003.safetensors
    folder/*.safetensors --`read`--> tensors of any ranks, in place

A header says where in the whole tensor each part begins, as torch's distributed checkpoints say it (`DCP_SHARDING_INFO`), and
torch's reader is used. Its writer is not: that one writes the same tensors as other bytes each time, and its ranks have to
talk, which a thread beside the training loop must not do. What several ranks have, one of them writes.
"""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Part:
    """A rank's share of a tensor: its values, where they are, and the index in the whole that they begin at."""

    values: Tensor
    begin: tuple[int, ...]


def own(tensors: Mapping[str, Tensor], rank: int, world: int) -> dict[str, Part]:
    """What rank `rank` of `world` writes of these tensors: together, the ranks write each value once, and about equally much."""
    parts, written = {}, [0] * world
    for i, (name, tensor) in enumerate(tensors.items()):
        if isinstance(tensor, DTensor):
            coordinate = tensor.device_mesh.get_coordinate()
            copies = tensor.device_mesh.size(0) if tensor.device_mesh.ndim == 2 else 1
            if coordinate is None or (copies > 1 and coordinate[0] != i % copies):
                continue
            (chunk,) = tensor.__create_chunk_list__()
            part = Part(tensor.to_local().detach(), tuple(chunk.offsets))
        else:
            least = written.index(min(written))
            written[least] += tensor.nbytes
            if least != rank:
                continue
            part = Part(tensor.detach(), (0,) * tensor.dim())
        if part.values.numel():
            parts[name] = part
    return parts


def write(path: Path, parts: Mapping[str, Part]) -> None:
    """One rank's file; parts must be contiguous, and on the CPU. OSError."""
    said = {name: {"saved_offsets": part.begin} for name, part in parts.items()}
    try:
        save_file({name: part.values for name, part in parts.items()}, path, {"DCP_SHARDING_INFO": json.dumps(said)})
    except SafetensorError as error:  # its name for an OSError
        raise OSError(errno.EIO, str(error), str(path)) from None


def shapes(folder: Path) -> dict[str, torch.Size]:
    """What is in a folder: the shape of each whole tensor."""
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: each.size for name, each in stored.items() if isinstance(each, TensorStorageMetadata)}


def read(folder: Path, tensors: Mapping[str, Tensor], world: int) -> None:
    """Fill tensors, whole or this rank's shares, with what is in a folder; all ranks call it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is meant, with one rank
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world == 1)
