"""Training in processes that `torchrun`, or whatever sets its variables, has started: on one machine or on several.

    torchrun --nproc-per-node 4 -m motet.orchestration train train.yaml --out RUN --set launcher=torchrun
    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT --`connected`--> (rank, world) --> `train` in each process

How many there are is torchrun's to say; `workers` is not read. Rank 0 tells what a person should know.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from motet.core.errors import UserError
from motet.trainer.config import TrainConfig
from motet.trainer.run.metrics import Progress
from motet.trainer.run.train import train


def launch(config: TrainConfig, out: str | Path) -> dict[str, Any]:
    """`train`, each process its share; the same summary and errors in all of them."""
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(
            f"launcher: torchrun: {', '.join(missing)} not set: start it as torchrun --nproc-per-node N -m motet.orchestration "
            "train CONFIG --out RUN, or set launcher: local"
        )
    with connected() as (rank, world), Progress(config.steps) if rank == 0 else nullcontext() as progress:
        if progress is None:
            return train(config, out, rank, world, say=lambda text: None)
        return train(config, out, rank, world, on_step=progress, say=progress.say)


@contextmanager
def connected() -> Iterator[tuple[int, int]]:
    """(rank, world) of the processes that torchrun's variables tell of, connected by NCCL on GPUs, else by gloo."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        # What still holds a group keeps its threads, and those abort a process that ends.
        gc.collect()
        dist.destroy_process_group()
