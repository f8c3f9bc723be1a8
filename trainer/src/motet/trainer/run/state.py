"""A run in memory: the data loader, the model, the optimizer, and how far they are.

    configuration + token datasets --`Run.open`--> a run at step 0, or at its last checkpoint --`save`--> checkpoint

What a step does to it stands in `train`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from motet.core.errors import UserError
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.store import store_of
from motet.pipeline.dataset.tokenizers import settings_of
from motet.trainer.config import ObjectiveConfig, TrainConfig
from motet.trainer.data.batch import DIFFUSION, GroupedBatch
from motet.trainer.data.collate import Collate, Noise
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.damage import LOST, without_damage
from motet.trainer.data.loader import Loader, heldout_loader
from motet.trainer.data.opened import Opened
from motet.trainer.data.order import Cursor, Damage
from motet.trainer.model.flops import pair_cost
from motet.trainer.model.llama import Dense
from motet.trainer.model.mot import MoT
from motet.trainer.objective.learner import Learner
from motet.trainer.objective.losses import losses
from motet.trainer.objective.tally import heldout_tally, means
from motet.trainer.run import checkpoint, optimizer
from motet.trainer.run.saving import Saver
from motet.trainer.run.sharding import fill, released, spread
from motet.trainer.vocabulary import TEXT, Towers, Vocabulary

log = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything that training works on.

    Attributes:
        rank, world: this process among those that share each global batch.
        learner: `model` with its objective, over all ranks (`sharding`). Sharded, its weights are this rank's shares.
        step: steps done. tokens: trained on so far, over all ranks.
        first_loss: text loss before the first step, of a run that begins as a dense model; on rank 0.
        threads: CPU threads that its arithmetic uses.
        losses: the names of its losses: the modalities given as ids, and `diffusion`.
        heldout: the held-out documents. heldout_damage: what of them has been found damaged.
        tokenizers: settings of each modality's tokenizer, as far as the data says them.
    """

    config: TrainConfig
    out: Path
    vocabulary: Vocabulary
    towers: Towers
    loader: Loader
    heldout: Corpus
    tokenizers: dict[str, dict[str, Any]]
    model: MoT
    learner: nn.Module
    optimizer: AdamW
    device: torch.device
    threads: int
    losses: tuple[str, ...]
    rank: int = 0
    world: int = 1
    step: int = 0
    tokens: int = 0
    first_loss: float | None = None
    heldout_damage: list[Damage] = field(default_factory=list)

    @classmethod
    def open(cls, config: TrainConfig, out: Path, rank: int = 0, world: int = 1) -> Run:
        """The run of `config`, at the last checkpoint in the folder `out` if there is one.

        UserError if configuration and data do not fit each other, or the data is not what the run began with;
        DamagedShard and DamagedCheckpoint name bytes that have changed.
        """
        data = Opened.of(config.data, config.rows, config.seed, out)
        records = data.order.corpus.records
        vocabulary = Vocabulary.of(records.tokenizers)
        _check_objective(config, vocabulary)
        towers = Towers.of(vocabulary, config.model.towers)
        noise = Noise(config.seed, config.objective.noise_steps)
        loader = Loader(data.order, vocabulary, towers, noise, pair_cost(config.model, vocabulary.size))
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        saved = checkpoint.latest(out)
        with torch.device("meta"):
            model = checkpoint.new_model(config, vocabulary, towers, filled=False)
        model.recompute = config.recompute
        if config.precision == "float8":
            _check_float8(model, device)
            model.use_float8()
        learner = spread(Learner(model, config.objective), config, device, world)
        run = cls(
            config=config,
            out=out,
            vocabulary=vocabulary,
            towers=towers,
            loader=loader,
            heldout=data.heldout,
            tokenizers=settings_of(map(store_of, records.paths)),
            model=model,
            learner=learner,
            optimizer=optimizer.adamw(model, config.optimizer),
            device=device,
            threads=config.threads or torch.get_num_threads(),
            losses=tuple(DIFFUSION if m == vocabulary.latent_modality else m for m in vocabulary.modalities),
            rank=rank,
            world=world,
        )
        run.check_damage()
        if saved:
            run._restore(saved)
            return run
        fill(model.initial(config.seed))
        if config.start:
            run._copy(Dense.open(config.start))
        return run

    @torch.no_grad()
    def _copy(self, dense: Dense) -> None:
        """Begin as a dense model; sharded weights go through a whole model in this rank's host memory."""
        whole = self.model
        if self.sharded:
            whole = checkpoint.new_model(self.config, self.vocabulary, self.towers)
        new = dense.copy_into(whole, self.vocabulary)
        log.info("%s: copied into every tower; %d rows of embedding and head are new", self.config.start, new)
        if whole is not self.model:
            fill(zip(self.model.parameters(), whole.parameters(), strict=True))
        if self.rank == 0:
            self.first_loss = self._first_loss(dense, whole)

    def _first_loss(self, dense: Dense, model: MoT) -> float:
        """Text loss of the first rows before the first step, when it is that of the dense model that the towers copy.

        RuntimeError if it is not: see `first_loss` below. LostBatches if the rows cannot be read.
        """
        order = self.loader.order
        rows = order.rows_of(0).taken(range(self.config.micro_rows)).read(order.corpus)
        single = Towers.of(self.vocabulary, dict.fromkeys(self.vocabulary.modalities, TEXT))
        batch, alone = (
            Collate(self.vocabulary, towers, self.config.data.sequence, Noise(0, 1)).batch(rows)
            for towers in (self.towers, single)
        )
        return first_loss(dense, model, self.vocabulary, batch, alone)

    @property
    def sharded(self) -> bool:
        """Whether a rank holds a share of the weights only, so that all must take part in a forward pass."""
        return any(isinstance(weight, DTensor) for weight in self.model.parameters())

    def save(self, saver: Saver, cursor: Cursor) -> None:
        """Begin a checkpoint of this moment; `cursor` is of the window that the last step begins in, or an earlier one."""
        state = checkpoint.State(
            step=self.step,
            tokens=self.tokens,
            fingerprint=self.loader.order.fingerprint(self.step),
            cursor=cursor,
            threads=self.threads,
            vocabulary=self.vocabulary.to_json(),
            config=self.config.model_dump(mode="json"),
            tokenizers=self.tokenizers,
        )
        saver.begin(state, self.model.state_dict(), optimizer.state(self.model, self.optimizer))

    def heldout_losses(self) -> dict[str, float | None]:
        """Losses on the first held-out rows, always the same ones."""
        config, objective = self.config, self.config.objective

        def measured(damage: list[Damage]) -> list[float]:
            loader = heldout_loader(
                self.heldout, self.vocabulary, self.towers, config.data, objective.noise_steps, damage
            )
            batches = loader.once(config.micro_rows, config.evaluate_rows)
            tally = heldout_tally(self.learner, batches, self.losses, self.device)
            released(self.learner)
            return tally

        return means(self.losses, without_damage(measured, self.heldout_damage))

    def check_damage(self, found: Sequence[Damage] = ()) -> None:
        """DamagedShard if more documents are lost than `data.max_lost` allows, or would be with what was `found` now."""
        share, limit = self.loader.order.lost_documents(found), self.config.data.max_lost
        if share > limit:
            why = f"{found[0].lost.why}; without it" if found else f"{self.out / LOST}: without what it names"
            raise DamagedShard(
                f"{why} {100 * share:.2f} % of the documents are lost, more than data.max_lost: {100 * limit:.2f} %; the run "
                "goes on from its last checkpoint when the data is whole again, or max_lost is higher"
            )

    def _restore(self, saved: Path) -> None:
        state = checkpoint.read_state(saved)
        if state.vocabulary != self.vocabulary.to_json():
            raise UserError(
                f"data: the datasets bring modalities or tokenizers that the run in {self.out} did not begin with; a model's "
                "vocabulary is fixed: take them out to go on, or choose another --out"
            )
        order = self.loader.order
        if state.fingerprint != order.fingerprint(state.step):
            raise UserError(
                f"data.paths: {', '.join(self.config.data.paths)}: the data is not what the run in {self.out} began "
                f"with, or an edit before step {state.step} has changed; bring that back to go on, or choose another --out"
            )
        moments = optimizer.with_state(self.model, self.optimizer)
        for name, tensors in ((checkpoint.MODEL, self.model.state_dict()), (checkpoint.OPTIMIZER, moments)):
            checkpoint.load(saved, state, name, tensors, self.rank, self.world)
        order.remember(state.cursor)
        self.step, self.tokens = state.step, state.tokens
        self.threads = self.config.threads or state.threads


def _check_float8(model: MoT, device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(
            "precision: float8: this machine has no GPU that multiplies in eight bits (Ada, Hopper and later do); "
            "use bfloat16 or float32"
        )
    widths = {name: weight.shape for name, weight in model.named_parameters() if weight.dim() == 3}
    for name, (_, out, into) in widths.items():
        if out % 16 or into % 16:
            raise UserError(f"precision: float8: {name} is {out} x {into}; both must be multiples of 16")


def _check_objective(config: TrainConfig, vocabulary: Vocabulary) -> None:
    objective, latents = config.objective, vocabulary.latent_modality
    if objective.kind == "chameleon" and latents:
        raise UserError(
            f"objective.kind: chameleon learns discrete tokens, but {latents} is given as latents; use transfusion, or "
            f"tokenize {latents} with a discrete tokenizer"
        )
    if objective.kind == "transfusion" and not latents:
        raise UserError(
            "objective.kind: transfusion needs a modality given as latents, and the data has none; use chameleon"
        )
    for name in objective.weights:
        if name not in vocabulary.modalities:
            known = ", ".join(vocabulary.modalities)
            raise UserError(f"objective.weights: {name}: the data has no such modality; it has {known}")


def first_loss(dense: Dense, model: MoT, vocabulary: Vocabulary, batch: GroupedBatch, alone: GroupedBatch) -> float:
    """The text loss of `batch` before training, nats per token, when it is the dense model's.

    `alone` is the same rows grouped for one tower. RuntimeError if the towers together say something else than the
    dense model: then a weight is not where it belongs.
    """
    single = MoT(model.config.model_copy(update={"towers": {}}), (TEXT,), vocabulary.size, vocabulary.latent_dim)
    dense.copy_into(single, vocabulary)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith(("blocks.", "norm")):  # what carries latents is new, and alike in both
                dict(single.named_parameters())[name].copy_(weight)
        of_all, of_one = (_text_loss(each, rows) for each, rows in ((model, batch), (single, alone)))
    if not abs(of_all - of_one) <= 1e-3 * max(of_one, 1.0):
        raise RuntimeError(
            f"the towers' text loss is {of_all:.6f}, the dense model's {of_one:.6f}: a weight is misplaced"
        )
    return of_all


def _text_loss(model: MoT, batch: GroupedBatch) -> float:

    found = losses(model, batch.to(model.embedding.weight.device), ObjectiveConfig(), {})
    return float(found.sums[TEXT] / found.counts[TEXT].clamp(min=1))
