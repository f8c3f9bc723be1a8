"""Training on Ray Train: it places the workers, connects them (gloo, or NCCL on GPUs), and starts them again.

    driver: `launch` --TorchTrainer--> on each worker: `work` --> `train(config, out, rank, world)`

The run folder must be one that all workers see. What a restarted worker goes on from is the run's own checkpoint: Ray
is told of none, because reporting one stalls the loop until the controller polls (2 s a call, when it was measured), and because a
run would silently resume under a reused name. Each `fit` has a name of its own.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

# Read when Ray starts: look after workers five times a second, and run them in this environment, not in a copy by uv.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer

from motet.core.configuration import validate
from motet.core.errors import UserError
from motet.pipeline.dataset.header import DamagedShard
from motet.trainer.config import TrainConfig
from motet.trainer.run.checkpoint import DamagedCheckpoint
from motet.trainer.run.folder import check
from motet.trainer.run.launch import own_ray
from motet.trainer.run.metrics import Progress
from motet.trainer.run.train import train

RESTARTS = 3
STORAGE = "train.ray"
"""Where in the run folder Ray Train keeps its own notes of one `fit`."""
REFUSALS = (DamagedCheckpoint, UserError, DamagedShard)
"""What starting again would not cure."""


def launch(config: TrainConfig, out: str | Path) -> dict[str, Any]:
    """`train` on `config.workers` Ray workers, in the cluster at RAY_ADDRESS or in one made here for the occasion."""
    out = Path(out).resolve()
    check(out, config)
    threads = config.threads or max(torch.get_num_threads() // config.workers, 1)
    started = not ray.is_initialized()
    if started and os.environ.get("RAY_ADDRESS"):
        ray.init()
    elif started:
        ray.init(
            address="local",
            num_cpus=config.workers * threads + 1,
            include_dashboard=False,
            runtime_env={"worker_process_setup_hook": f"{own_ray.__name__}.{own_ray.settle.__name__}"},
        )
    try:
        gpus = ray.cluster_resources().get("GPU", 0) >= config.workers
        trainer = TorchTrainer(
            work,  # type: ignore[arg-type]  # 2.60 returns what it returns
            train_loop_config={"config": config.model_dump(mode="json"), "out": str(out), "threads": threads},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.workers, use_gpu=gpus, resources_per_worker={"CPU": threads, "GPU": int(gpus)}
            ),
            run_config=RunConfig(
                name=f"{out.name}-{uuid.uuid4().hex[:8]}",
                storage_path=str(out / STORAGE),
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        result: Any = trainer.fit()
    finally:
        shutil.rmtree(out / STORAGE, ignore_errors=True)
        if started:
            ray.shutdown()
    return summary_of(result.return_value)


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One worker: the summary of `train`, or its refusal as a value, so that Ray does not try it again."""
    config = validate(task["config"], TrainConfig, "train_loop_config")
    context = get_context()
    torch.set_num_threads(task["threads"])
    with Progress(config.steps) as progress:
        try:
            return train(
                config,
                task["out"],
                context.get_world_rank(),
                context.get_world_size(),
                on_step=progress,
                say=progress.say if context.get_world_rank() == 0 else lambda text: None,
            )
        except REFUSALS as refusal:
            kind = next(k for k in REFUSALS if isinstance(refusal, k))
            return {"refusal": str(refusal), "kind": kind.__name__}


def summary_of(answer: dict[str, Any]) -> dict[str, Any]:
    """What `work` returned; raises the refusal if it is one."""
    if "refusal" in answer:
        kind = next(k for k in REFUSALS if k.__name__ == answer["kind"])
        raise kind(answer["refusal"])
    return answer
