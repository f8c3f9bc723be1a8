"""One model on several ranks: whole on each, or a share on each (FSDP2, arXiv 2304.11277), or shares within groups of ranks.

    Learner --`spread`--> the same Learner, whose backward pass leaves the gradient of the global batch, on every rank its share
    values as a whole --`fill`--> weights, each rank its share
    `sharding: none`      each rank has all weights, gradients and moments; gradients are added up as they come (DDP)
    `sharding: shard`     1/W of each: a layer's weights are gathered when it runs, its gradients added up into shares
    `sharding: hybrid`    the same among `shards` ranks, and gradients added up over the groups (HSDP)

A stacked weight [G, O, I] is never cut over towers: there are two or three of them, so some ranks would hold more than
others. It is cut along O, or I where the ranks divide only that. Losses are divided by the global counts already, so
gradients are added up, not averaged. Annotations are evaluated (no `from __future__`), because torch compares those of a
communication hook.

Letters: W ranks, G towers, O and I features out and in.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from motet.core.errors import UserError
from motet.trainer.config import TrainConfig
from motet.trainer.objective.learner import Learner


def spread(learner: Learner, config: TrainConfig, device: torch.device, world: int) -> nn.Module:
    """`learner`, made on the meta device, on all ranks and to be called in its place; itself if there is one rank.

    Its weights, or this rank's shares of them, then lie on `device` and have no values yet: see `fill`. UserError if `config.shards` does not divide the ranks.
    """
    if world == 1 and not dist.is_initialized():
        return learner.to_empty(device=device)
    if config.sharding == "none":
        return _replicated(learner.to_empty(device=device))
    mesh = _mesh(config, device, world)
    policy = MixedPrecisionPolicy()
    if config.precision != "float32":
        # Layers only: they see weights in bfloat16 anyway. What comes in stays, the residual is float32.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    ranks = mesh.size(-1)
    stacked = {*learner.model.blocks.parameters(), learner.model.norm}

    def placement(weight: nn.Parameter) -> Shard:
        """Along which axis a weight is cut; FSDP2 wants axes but the first to divide evenly."""
        axes = range(1, weight.dim()) if weight in stacked else ()
        return Shard(next((axis for axis in axes if weight.shape[axis] % ranks == 0), 0))

    for block in learner.model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, shard_placement_fn=placement)
    fully_shard(learner, mesh=mesh, shard_placement_fn=placement)
    for module in learner.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no sum that divides
    return learner.to_empty(device=device)


@torch.no_grad()
def fill(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Give each weight its value as a whole, or each rank its share of it; all ranks have the same values, none is sent."""
    for weight, value in values:
        if isinstance(weight, DTensor):
            value = distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.copy_(value)


def reducing(learner: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Whole models exchange gradients in the backward pass of a step's last micro-batch only.

    Shares do in each, or every rank would have to keep a whole gradient; groups of them exchange theirs in the last.
    """
    if isinstance(learner, DistributedDataParallel):
        return nullcontext() if last else learner.no_sync()
    if isinstance(learner, FSDPModule):
        learner.set_requires_all_reduce(last)
        learner.set_is_last_backward(last)
    return nullcontext()


def released(learner: nn.Module) -> None:
    """After a forward pass without a backward pass: a rank holds its shares only, again."""
    if isinstance(learner, FSDPModule):
        learner.reshard()


def whole(value: Tensor) -> Tensor:
    """What the ranks' shares of a value are together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _mesh(config: TrainConfig, device: torch.device, world: int) -> DeviceMesh:
    if config.sharding == "shard":
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    shards = config.shards or int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % shards:
        raise UserError(f"shards: {shards} ranks that share the weights do not divide the {world} ranks of this run")
    return init_device_mesh(device.type, (world // shards, shards), mesh_dim_names=("replicate", "shard"))


def _replicated(learner: Learner) -> nn.Module:
    parallel = DistributedDataParallel(learner, init_sync=False)
    parallel.register_comm_hook(None, _sum_gradients)  # it would average
    return parallel


def _sum_gradients(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
