"""What a training run is asked to do: the YAML file of `motet train`, typed.

    train.yaml --`load`--> `TrainConfig` --`train`--> OUT/train.yaml, complete, which starts the same run again

Every default stands here. The whole of it but `MAY_CHANGE` decides the losses: a run folder belongs to one such
configuration. This file needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from motet.tokenizers.configuration import Settings, load_config

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class DataConfig(Settings):
    """Which tokens, in which order.

    Attributes:
        paths: token datasets (folders that `motet tokenize` wrote).
        sequence: S, tokens per packed row.
        holdout: share of documents, by content hash, kept for evaluation.
        weights: share of the tokens that each source gets; empty = in proportion to what there is.
        caption_first: how often a captioned picture or recording stands after its caption (generation); else before it
            (captioning).
        shuffle: how many blocks of 512 documents are shuffled together; None = all documents of a source. A few dozen keep
            what is read at a time small, where shards are far away.
        long: what becomes of documents longer than a row: cut off, or split over several rows.
    """

    paths: list[str] = Field(min_length=1)
    sequence: Annotated[int, Field(ge=8)]
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.02
    weights: dict[str, Weight] = Field(default_factory=dict)
    caption_first: Share = 0.5
    shuffle: Count | None = None
    long: Literal["truncate", "split"] = "truncate"


class ModelConfig(Settings):
    """The Mixture-of-Transformers (arXiv 2411.04996).

    Attributes:
        dim: D, width of the residual stream. layers, heads: how many.
        kv_heads: heads of keys and values (grouped-query attention); None = as many as `heads`.
        ffn: width inside the feed-forward; None = 8D/3, rounded up as in the paper.
        towers: tower of each modality; one left out has a tower of its own. All the same name = a dense model.
        norm: norms `after` each sub-layer, as in the paper, or `before` it, as in Llama.
        qk_norm: normalise queries and keys.
        rope_theta: base of the rotary positions.
    """

    dim: Count
    layers: Count
    heads: Count
    kv_heads: Count | None = None
    ffn: Count | None = None
    towers: dict[str, str] = Field(default_factory=dict)
    norm: Literal["after", "before"] = "after"
    qk_norm: bool = True
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 2 * heads = {2 * self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


class ObjectiveConfig(Settings):
    """What a step minimises.

    Attributes:
        kind: `chameleon`: the next token of every discrete modality; `transfusion`: that, and the noise in latents.
        z_loss: weight of log(Z)^2 of the softmax.
        weights: weight of a modality's labels; 1 for those left out.
        diffusion_weight: lambda of Transfusion (arXiv 2408.11039), section 3.
        noise_steps: diffusion steps of the noise schedule.
    """

    kind: Literal["chameleon", "transfusion"] = "chameleon"
    z_loss: Weight = 0.0
    weights: dict[str, Weight] = Field(default_factory=dict)
    diffusion_weight: Weight = 5.0
    noise_steps: Count = 1000


class OptimizerConfig(Settings):
    """AdamW (decoupled weight decay) and its learning rate.

    Attributes:
        lr: the peak. betas, eps: of Adam. weight_decay: on matrices only, not on norms and embeddings.
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
        steps: optimizer steps of the whole run.
        rows: packed rows in a global batch, over all workers.
        micro_rows: rows in one forward pass.
        seed: of the weights, the order of documents and the noise.
        threads: CPU threads of each worker; None = torch's choice for this machine. Results depend on it in the last
            bits, so a run resumes with the number it began with.
        precision: of matrix products; weights and their sums are float32 either way.
        checkpoint_every: steps between checkpoints; one is always written at the end.
        keep: how many of the latest checkpoints stay.
        evaluate_every: steps between looks at held-out data; 0 = never.
        evaluate_rows: packed rows of held-out data at each look.
        launcher: `local`: this process; `ray`: Ray Train.
        workers: processes that share each global batch (Ray).
    """

    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: Count
    rows: Count
    micro_rows: Count
    seed: int = 0
    threads: Count | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: Count = 100
    keep: Count = 2
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    evaluate_rows: Count = 16
    launcher: Literal["local", "ray"] = "local"
    workers: Count = 1

    @field_validator("workers")
    @classmethod
    def _workers_fit(cls, workers: int, info: Any) -> int:
        if info.data.get("launcher") == "local" and workers > 1:
            raise ValueError("the local launcher is one process; set launcher: ray, or workers: 1")
        return workers

    @model_validator(mode="after")
    def _rows_fit(self) -> TrainConfig:
        if self.rows % (self.micro_rows * self.workers):
            raise ValueError(
                f"rows {self.rows} must be a multiple of micro_rows x workers = {self.micro_rows} x {self.workers}"
            )
        return self


MAY_CHANGE = {"checkpoint_every", "keep", "evaluate_every", "evaluate_rows", "launcher", "workers", "micro_rows"}
"""Fields that a run may be continued with other values of: none of them changes what a step learns.

Workers and micro-batches change the order of sums, so the last bits of the losses, but not the global batches.
"""


def load(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration; its relative data paths count from the file's folder and come out absolute."""
    config = load_config(path, TrainConfig, overrides)
    return absolute(config, Path(path).parent)


def absolute(config: TrainConfig, base: Path) -> TrainConfig:
    """The same configuration with its data paths made absolute from `base`; URIs stay."""
    paths = [p if "://" in p else str((base / p).resolve()) for p in config.data.paths]
    return config.model_copy(update={"data": config.data.model_copy(update={"paths": paths})})
