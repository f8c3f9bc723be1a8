"""A run in memory: the stream, the model, the optimizer, and how far they are.

    configuration + token datasets --`Run.open`--> a run at step 0, or at its last checkpoint --`save`--> checkpoint

What a step does to it stands in `train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import AdamW

from motet.tokenizers.configuration import UserError

from . import checkpoint, optimizer
from .config import TrainConfig
from .corpus import Corpus
from .evaluate import heldout_tally, means
from .flops import pair_cost
from .model.mot import MoT
from .objective import DIFFUSION
from .plan import Plan
from .records import Records
from .render import Noise
from .stream import Stream, heldout_batches
from .vocabulary import Towers, Vocabulary


@dataclass
class Run:
    """Everything that training works on.

    Attributes:
        step: steps done. tokens: trained on so far, over all ranks.
        threads: CPU threads that its arithmetic uses.
        losses: the names of its losses: the modalities given as ids, and `diffusion`.
        unseen: the held-out documents.
    """

    config: TrainConfig
    out: Path
    vocabulary: Vocabulary
    towers: Towers
    stream: Stream
    unseen: Corpus
    model: MoT
    optimizer: AdamW
    device: torch.device
    threads: int
    losses: tuple[str, ...]
    step: int = 0
    tokens: int = 0

    @classmethod
    def open(cls, config: TrainConfig, out: Path) -> Run:
        """The run of `config`, at the last checkpoint in the folder `out` if there is one.

        UserError if configuration and data do not fit each other, or the data is not what the run began with;
        DamagedShard and DamagedCheckpoint name bytes that have changed.
        """
        records = Records.open(config.data.paths)
        corpus = Corpus(records, "train", config.data.holdout)
        vocabulary = Vocabulary.of(corpus.tokenizers)
        _check_objective(config, vocabulary)
        towers = Towers.of(vocabulary, config.model.towers)
        plan = Plan(corpus, config.data, config.rows, config.seed)
        noise = Noise(config.seed, config.objective.noise_steps)
        stream = Stream(plan, vocabulary, towers, noise, pair_cost(config.model, vocabulary.size))
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        model = checkpoint.new_model(config, vocabulary, towers).to(device)
        run = cls(
            config=config,
            out=out,
            vocabulary=vocabulary,
            towers=towers,
            stream=stream,
            unseen=Corpus(records, "heldout", config.data.holdout),
            model=model,
            optimizer=optimizer.adamw(model, config.optimizer),
            device=device,
            threads=config.threads or torch.get_num_threads(),
            losses=tuple(DIFFUSION if m == vocabulary.latent_modality else m for m in vocabulary.modalities),
        )
        saved = checkpoint.latest(out)
        if saved:
            run._restore(saved)
        return run

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        state = checkpoint.State(
            step=self.step,
            tokens=self.tokens,
            fingerprint=self.stream.fingerprint,
            cursor=self.stream.plan.cursor(self.step),
            threads=self.threads,
            vocabulary=self.vocabulary.to_json(),
            config=self.config.model_dump(mode="json"),
        )
        moments = optimizer.state(self.model, self.optimizer)
        checkpoint.save(self.out, state, self.model.state_dict(), moments, self.config.keep)

    def heldout(self) -> dict[str, float | None]:
        """Losses on the first held-out rows, always the same ones."""
        data, rows, noise_steps = self.config.data, self.config.micro_rows, self.config.objective.noise_steps
        limit = self.config.evaluate_rows
        batches = heldout_batches(self.unseen, self.vocabulary, self.towers, data, rows, noise_steps, limit)
        return means(self.losses, heldout_tally(self.model, batches, self.config.objective, self.losses))

    def _restore(self, saved: Path) -> None:
        state = checkpoint.read_state(saved)
        if state.fingerprint != self.stream.fingerprint:
            raise UserError(
                f"data.paths: {', '.join(self.config.data.paths)}: the data is not what the run in {self.out} began "
                "with; bring that data back to go on, or choose another --out"
            )
        self.model.load_state_dict(checkpoint.load(saved, state, checkpoint.MODEL))
        moments = checkpoint.load(saved, state, checkpoint.OPTIMIZER)
        optimizer.restore(self.model, self.optimizer, moments)
        self.stream.plan.remember(state.cursor)
        self.step, self.tokens = state.step, state.tokens
        self.threads = self.config.threads or state.threads


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
