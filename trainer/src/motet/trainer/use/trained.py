"""A trained model with all that is needed to use it, wherever it lies.

    run folder | one of its checkpoints | a folder that `motet export` wrote
        --`Trained.open`--> weights, vocabulary, objective, codebook streams, tokenizers' settings
        --`generator`--> what continues prompts        --`tokenizers`--> media to tokens and back

An exported folder is opened with torch, safetensors and pydantic alone:

    FOLDER/model.safetensors (or several, and model.safetensors.index.json)   the weights, by the names of `MoT`
    FOLDER/config.json   {"format", "model", "objective", "streams", "sequence", "guidance_dropout", "vocabulary", "tokenizers"}
    FOLDER/tokenizers/   the files of each modality's tokenizer           FOLDER/README.md   the model's card
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from motet.core.configuration import validate
from motet.core.errors import UserError, one_line
from motet.trainer.config import ModelConfig, ObjectiveConfig, TrainConfig
from motet.trainer.generate.generator import Generator
from motet.trainer.model.mot import MoT
from motet.trainer.vocabulary import Towers, Vocabulary

if TYPE_CHECKING:
    from motet.tokenizers.contract import Tokenizer
    from motet.trainer.run.checkpoint import State

CONFIG, WEIGHTS, INDEX, CARD = "config.json", "model.safetensors", "model.safetensors.index.json", "README.md"
FORMAT = 2


@dataclass(frozen=True)
class Training:
    """What a checkpoint knows of its run: the configuration, how far it is, and the folder that what is said of it goes to.

    `home` is the run's folder, or the checkpoint's own where it was copied out of its run.
    """

    config: TrainConfig
    state: State
    home: Path


@dataclass(frozen=True)
class Trained:
    """A trained model, on the CPU.

    Attributes:
        model, vocabulary, towers: the weights and what they mean.
        objective: what it learnt. streams: how frames of several codebooks become tokens, as `data.streams`.
        sequence: tokens of the longest row that it has seen. guidance_dropout: how often it learnt without a caption.
        settings: of each modality's tokenizer, as far as they are known.
        path: the checkpoint's or the exported folder. training: of its run; None if it was exported.
    """

    model: MoT
    vocabulary: Vocabulary
    towers: Towers
    objective: ObjectiveConfig
    streams: dict[str, str]
    sequence: int
    guidance_dropout: float
    settings: dict[str, dict[str, Any]]
    path: Path
    training: Training | None = None

    @classmethod
    def open(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> Trained:
        """The model of a run folder's newest checkpoint, of one checkpoint, or of an exported folder, in `dtype`.

        UserError if there is none or it does not fit, DamagedCheckpoint if a checkpoint's bytes have changed.
        """
        path = Path(path)
        found = _exported(path, dtype) if (path / CONFIG).is_file() else _checkpoint(path)
        found.model.to(dtype).eval()
        return found

    def generator(self) -> Generator:
        """What continues prompts with it."""
        noise = self.objective.noise_steps, self.objective.diffusion
        return Generator(self.model, self.vocabulary, self.towers, *noise, self.streams)

    def tokenizers(self, modalities: Iterable[str] | None = None) -> dict[str, Tokenizer]:
        """What makes its tokens and its media, all or some; UserError if one is not there, or is another one now."""
        from motet.pipeline.dataset.tokenizers import built

        return built(self.settings, self.vocabulary.tokenizers, str(self.path), modalities)

    def of_run(self) -> Training:
        """Its training; UserError if it was exported, without the run and its data."""
        if self.training is None:
            raise UserError(f"{self.path}: is an exported model, without the data that it learnt; name the run itself")
        return self.training


def _checkpoint(path: Path) -> Trained:
    from motet.pipeline.dataset.store import store_of
    from motet.pipeline.dataset.tokenizers import settings_of
    from motet.trainer.run import checkpoint, folder  # they need what an exported model is used without

    found = checkpoint.checkpoint_of(path)
    state = checkpoint.read_state(found)
    config = validate(state.config, TrainConfig, str(found / checkpoint.STATE))
    vocabulary = Vocabulary.from_json(state.vocabulary)
    towers = Towers.of(vocabulary, config.model.towers)
    model = checkpoint.new_model(config, vocabulary, towers)
    checkpoint.load(found, state, checkpoint.MODEL, model.state_dict())
    run = found.resolve().parent.parent
    return Trained(
        model=model,
        vocabulary=vocabulary,
        towers=towers,
        objective=config.objective,
        streams=dict(config.data.streams),
        sequence=config.data.sequence,
        guidance_dropout=config.data.guidance_dropout,
        settings=state.tokenizers or settings_of(map(store_of, config.data.all_paths)),
        path=found,
        training=Training(config, state, run if (run / folder.CONFIG).exists() else found),
    )


def _exported(path: Path, dtype: torch.dtype) -> Trained:
    said = _json(path / CONFIG)
    if said.get("format") != FORMAT:
        raise UserError(
            f"{path / CONFIG}: format {said.get('format')!r} is not motet's {FORMAT}; was it made by `motet export`?"
        )
    config = validate(said["model"], ModelConfig, str(path / CONFIG))
    objective = validate(said["objective"], ObjectiveConfig, str(path / CONFIG))
    vocabulary = Vocabulary.from_json(said["vocabulary"])
    towers = Towers.of(vocabulary, config.towers)
    with torch.device("meta"):
        model = MoT(config, towers.names, vocabulary.size, vocabulary.latent_dim)
    weights: dict[str, Any] = {}
    for file in _files(path):
        try:
            weights |= {name: weight.to(dtype) for name, weight in load_file(file).items()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: is no whole safetensors file ({one_line(error)}); fetch it again") from None
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path}: the weights are not those of config.json: {one_line(error)}") from None
    return Trained(
        model=model,
        vocabulary=vocabulary,
        towers=towers,
        objective=objective,
        streams=said["streams"],
        sequence=said["sequence"],
        guidance_dropout=said["guidance_dropout"],
        settings={m: _placed(settings, path) for m, settings in said["tokenizers"].items()},
        path=path,
    )


def _placed(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A tokenizer's settings, the files that were exported with the model under their absolute paths."""
    return {
        name: str((folder / value).resolve()) if isinstance(value, str) and value.startswith("tokenizers/") else value
        for name, value in settings.items()
    }


def _files(path: Path) -> list[Path]:
    if not (path / INDEX).exists():
        return [path / WEIGHTS]
    return [path / name for name in sorted(set(_json(path / INDEX)["weight_map"].values()))]


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: cannot be read ({type(error).__name__}); give a folder that `motet export` wrote"
        ) from None
