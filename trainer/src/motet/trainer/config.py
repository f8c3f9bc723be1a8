"""What a training run is asked to do: the YAML file of `motet train`, typed.

    train.yaml --`load`--> `TrainConfig` --`train`--> OUT/train.yaml, complete, which starts the same run again

Every default stands here. The whole of it but `MAY_CHANGE` decides the losses: a run folder belongs to one such
configuration. This file needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from motet.core.configuration import Settings, load_config
from motet.trainer import presets

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Weighed = TypeVar("Weighed", "Edit", "DataConfig")


class Edit(Settings):
    """A change of the data in the course of a run: from the first window of documents that begins at `from_step` or later.

    Attributes:
        from_step: the first global batch that it can change.
        paths: further token datasets.
        weights, modality_weights: shares of the tokens from here on, instead of those before; empty = as before.
    """

    from_step: Count
    paths: list[str] = Field(default_factory=list)
    weights: dict[str, Weight] = Field(default_factory=dict)
    modality_weights: dict[str, Weight] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> Edit:
        return _weighed_one_way(self)


class DataConfig(Settings):
    """Which tokens, in which order.

    Attributes:
        paths: token datasets (folders that `motet tokenize` wrote).
        sequence: S, tokens per packed row.
        holdout: share of documents, by content hash, kept for evaluation.
        weights: share of the tokens that each source gets; empty = in proportion to what there is.
        modality_weights: share of the tokens that each modality gets, markers being text; instead of `weights`.
        edits: changes at a step; a run may go on with further ones.
        caption_first: how often a captioned picture or recording stands after its caption (generation); else before it
            (captioning).
        guidance_dropout: how often what stands after its caption is learnt without it, so that generation can be guided.
        streams: how frames of several codebooks become tokens, by modality: `flat`, one code after another, unless said
            otherwise; `delayed`, a token a frame, each codebook a frame later than the one before; or `first`, a frame's
            first code alone.
        shuffle: how many blocks of 512 documents are shuffled together; None = all documents of a source. A few dozen keep
            what is read at a time small, where shards are far away.
        long: what becomes of documents longer than a row: cut off, or split over several rows.
        max_lost: share of documents that may be damaged or missing before training stops; others take their place.
        cache: folder for chunks of remote datasets. cache_gigabytes: the most that they take there.
    """

    paths: list[str] = Field(min_length=1)
    sequence: Annotated[int, Field(ge=8)]
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.02
    weights: dict[str, Weight] = Field(default_factory=dict)
    modality_weights: dict[str, Weight] = Field(default_factory=dict)
    edits: list[Edit] = Field(default_factory=list)
    caption_first: Share = 0.5
    guidance_dropout: Share = 0.0
    streams: dict[str, Literal["flat", "delayed", "first"]] = Field(default_factory=dict)
    shuffle: Count | None = None
    long: Literal["truncate", "split"] = "truncate"
    max_lost: Share = 0.001
    cache: str = "~/.cache/motet"
    cache_gigabytes: Annotated[float, Field(gt=0)] = 50.0

    @property
    def all_paths(self) -> list[str]:
        """The datasets of the beginning and of all edits."""
        return [*self.paths, *(path for edit in self.edits for path in edit.paths)]

    @property
    def unweighed(self) -> DataConfig:
        """For one pass over the datasets of the beginning, each document whole."""
        return self.model_copy(update={"weights": {}, "modality_weights": {}, "edits": [], "guidance_dropout": 0.0})

    @field_validator("edits")
    @classmethod
    def _in_order(cls, edits: list[Edit]) -> list[Edit]:
        if any(after.from_step <= edit.from_step for edit, after in pairwise(edits)):
            raise ValueError("edits must stand in the order of their steps, one a step")
        return edits

    @model_validator(mode="after")
    def _one_way(self) -> DataConfig:
        return _weighed_one_way(self)


class Experts(Settings):
    """Experts in the feed-forward of a tower, instead of one network.

    Attributes:
        count: how many, each as wide as the feed-forward.
        routing: `token`: each token takes its `top` likeliest experts (arXiv 2101.03961); `expert`: each expert takes the
            1/count of the tower's tokens that suit it best (arXiv 2202.09368), as in MoT's MoE-4x. That choice looks at
            later tokens too, so such a model can be trained and evaluated, but not generate.
        top: experts of a token. balance: weight of the loss that keeps them evenly used, packed row by row (arXiv
            2412.19437, Eq. 17-20). Both only where tokens choose.
    """

    count: Annotated[int, Field(ge=2)]
    routing: Literal["token", "expert"] = "token"
    top: Count = 1
    balance: Weight = 0.01

    @model_validator(mode="after")
    def _enough(self) -> Experts:
        if self.top > self.count:
            raise ValueError(f"top {self.top} is more than count {self.count}")
        return self


class UNet(Settings):
    """The halves of a U-Net through which latents enter and leave the transformer (arXiv 2408.11039, section 3).

    Attributes:
        patch: p, a power of two: a token is p x p latent positions, as the VAE tokenizer's `patch` says.
        channels: of each resolution, from latent positions to tokens: log2(p) + 1 of them, even.
        blocks: residual blocks at each resolution on either way. The defaults have the paper's 0.27 B parameters.
    """

    patch: Count = 2
    channels: tuple[Count, ...] = (512, 1024)
    blocks: Count = 4


class ModelConfig(Settings):
    """The Mixture-of-Transformers (arXiv 2411.04996).

    Attributes:
        dim: D, width of the residual stream. layers: how many. heads: of attention, in each layer; `preset: NAME` stands
            for these three.
        kv_heads: heads of keys and values (grouped-query attention); None = as many as `heads`.
        ffn: width inside the feed-forward; None = 8D/3, rounded up as in the paper.
        towers: tower of each modality; one left out has a tower of its own. All the same name = a dense model.
        untied: which weights each tower has of its own; what is left out is shared by all towers.
        experts: experts in the feed-forward of a tower, by the tower's name.
        cross_layers: layers, from 0, in which towers attend to one another; in the others each only to itself. None = all.
        unet: how latents enter and leave; None = by one linear map each.
        norm: norms `after` each sub-layer, as in the paper, or `before` it, as in Llama.
        norm_eps: added to the mean square in every norm.
        qk_norm: normalise queries and keys.
        rope_theta: base of the rotary positions.
    """

    dim: Count
    layers: Count
    heads: Count
    kv_heads: Count | None = None
    ffn: Count | None = None
    towers: dict[str, str] = Field(default_factory=dict)
    untied: tuple[Literal["qkv", "out", "ffn", "norms"], ...] = ("qkv", "out", "ffn", "norms")
    experts: dict[str, Experts] = Field(default_factory=dict)
    cross_layers: list[Annotated[int, Field(ge=0)]] | None = None
    unet: UNet | None = None
    norm: Literal["after", "before"] = "after"
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    qk_norm: bool = True
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, data: Any) -> Any:
        return presets.filled_in(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 2 * heads = {2 * self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.cross_layers and max(self.cross_layers) >= self.layers:
            raise ValueError(
                f"cross_layers: there is no layer {max(self.cross_layers)}: they count from 0 to layers - 1"
            )
        return self


class ObjectiveConfig(Settings):
    """What a step minimises.

    Attributes:
        kind: `chameleon`: the next token of every discrete modality; `transfusion`: that, and the noise in latents.
        z_loss: weight of log(Z)^2 of the softmax.
        weights: weight of a modality's labels; 1 for those left out.
        diffusion: `ddpm`: the noise is predicted, on the cosine schedule, as in Transfusion; `flow`: rectified flow.
        diffusion_weight: lambda of Transfusion (arXiv 2408.11039), section 3.
        noise_steps: how many steps there are between clean latents and noise.
    """

    kind: Literal["chameleon", "transfusion"] = "chameleon"
    z_loss: Weight = 0.0
    weights: dict[str, Weight] = Field(default_factory=dict)
    diffusion: Literal["ddpm", "flow"] = "ddpm"
    diffusion_weight: Weight = 5.0
    noise_steps: Count = 1000


class OptimizerConfig(Settings):
    """AdamW (decoupled weight decay) and its learning rate.

    Attributes:
        lr: the peak of the learning rate. betas: decay of Adam's two averages. eps: added to Adam's divisor.
        weight_decay: on matrices only, not on norms and embeddings.
        clip: largest norm of the whole gradient; None = not clipped.
        warmup: steps to climb from 0 to `lr`.
        schedule: how the rate falls from the end of the warmup to the last step.
        final: where it ends, as a fraction of `lr`.
    """

    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Weight = 0.1
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    warmup: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: Share = 0.1


class TrainConfig(Settings):
    """One training run.

    Attributes:
        data: which tokens, in which order. model: the shape of the network. objective: what a step minimises.
        optimizer: how weights follow the gradient.
        steps: optimizer steps of the whole run.
        rows: packed rows in a global batch, over all workers.
        micro_rows: rows in one forward pass.
        start: folder of a dense Hugging Face checkpoint of Llama's kind, which every tower begins as a copy of (`motet upcycle`);
            None = weights drawn from the seed.
        seed: of the weights, the order of documents and the noise.
        threads: CPU threads of each worker; None = torch's choice for this machine. Results depend on it in the last
            bits, so a run resumes with the number it began with.
        precision: of matrix products; weights and their sums are float32 either way. `float8` is for the layers' products on
            GPUs that have it (Ada, Hopper and later); the heads' are then bfloat16.
        sharding: what several workers share: `none`: each has all weights and moments; `shard`: each has its share of them
            (FSDP); `hybrid`: shares among `shards` workers, the same in every such group (HSDP).
        shards: workers that share one copy of the weights under `hybrid`; None = those on one machine.
        recompute: what the backward pass computes again instead of keeping it: nothing, each layer's feed-forward, or whole
            layers. Less memory, more arithmetic, the same results.
        checkpoint_every: steps between checkpoints; one is always written at the end.
        failed_saves: checkpoints in a row that may fail to be written (a full disk) before the run stops.
        keep: how many of the latest checkpoints stay.
        evaluate_every: steps between looks at held-out data; 0 = never.
        evaluate_rows: packed rows of held-out data at each look.
        launcher: `local`: this process; `torchrun`: the processes that torchrun has started; `ray`: Ray Train.
        workers: processes that share each global batch (Ray).
    """

    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: Count
    rows: Count
    micro_rows: Count
    start: str | None = None
    seed: int = 0
    threads: Count | None = None
    precision: Literal["float32", "bfloat16", "float8"] = "float32"
    sharding: Literal["none", "shard", "hybrid"] = "none"
    shards: Count | None = None
    recompute: Literal["none", "ffn", "layer"] = "none"
    checkpoint_every: Count = 100
    failed_saves: Annotated[int, Field(ge=0)] = 2
    keep: Count = 2
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    evaluate_rows: Count = 16
    launcher: Literal["local", "torchrun", "ray"] = "local"
    workers: Count = 1

    @field_validator("workers")
    @classmethod
    def _workers_fit(cls, workers: int, info: Any) -> int:
        if info.data.get("launcher") != "ray" and workers > 1:
            raise ValueError(
                "only Ray starts workers; set launcher: ray, or workers: 1 (under torchrun, --nproc-per-node)"
            )
        return workers

    @model_validator(mode="after")
    def _rows_fit(self) -> TrainConfig:
        if self.rows % (self.micro_rows * self.workers):
            raise ValueError(
                f"rows {self.rows} must be a multiple of micro_rows x workers = {self.micro_rows} x {self.workers}"
            )
        return self


MAY_CHANGE = {
    *(
        "checkpoint_every",
        "failed_saves",
        "keep",
        "evaluate_every",
        "evaluate_rows",
        "launcher",
        "workers",
        "micro_rows",
        "recompute",
    ),
    *("sharding", "shards"),
    *("data.paths", "data.edits", "data.max_lost", "data.cache", "data.cache_gigabytes"),
}
"""Fields that a run may be continued with other values of: none of them changes what the steps before learned.

Workers and micro-batches change the order of sums, so the last bits of the losses, but not the global batches. Datasets
may have moved, and edits may be added for the steps to come: the checkpoint knows those of the steps before.
"""


def _weighed_one_way(settings: Weighed) -> Weighed:
    if settings.weights and settings.modality_weights:
        raise ValueError("give weights or modality_weights, not both")
    return settings


def load(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration; its relative paths count from the file's folder and come out absolute."""
    config = load_config(path, TrainConfig, overrides)
    return absolute(config, Path(path).parent)


def absolute(config: TrainConfig, base: Path) -> TrainConfig:
    """The same configuration with its paths made absolute from `base`; URIs stay."""

    def resolved(paths: list[str]) -> list[str]:
        return [p if "://" in p else str((base / p).resolve()) for p in paths]

    edits = [edit.model_copy(update={"paths": resolved(edit.paths)}) for edit in config.data.edits]
    data = config.data.model_copy(update={"paths": resolved(config.data.paths), "edits": edits})
    start = config.start and str((base / config.start).resolve())
    return config.model_copy(update={"data": data, "start": start})
