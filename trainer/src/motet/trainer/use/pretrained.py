"""An exported model: a folder that says all about itself, and is opened with torch, safetensors and pydantic alone.

    FOLDER/model.safetensors (or several, and model.safetensors.index.json)   the weights, by the names of `MoT`
    FOLDER/config.json   {"format": 1, "model", "objective", "streams", "vocabulary"}     --`load`--> `Pretrained`
    FOLDER/README.md     the model's card

`export` writes it. Nothing is unpickled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from motet.core.configuration import validate
from motet.core.errors import UserError
from motet.trainer.config import ModelConfig, ObjectiveConfig
from motet.trainer.generate.generator import Generator
from motet.trainer.model.mot import MoT
from motet.trainer.vocabulary import Towers, Vocabulary

CONFIG, WEIGHTS, INDEX, CARD = "config.json", "model.safetensors", "model.safetensors.index.json", "README.md"
FORMAT = 1


@dataclass(frozen=True)
class Pretrained:
    """A model that was exported, with what is needed to use it."""

    model: MoT
    vocabulary: Vocabulary
    towers: Towers
    objective: ObjectiveConfig
    streams: dict[str, str]

    def generator(self) -> Generator:
        """What continues prompts with it."""
        noise = self.objective.noise_steps, self.objective.diffusion
        return Generator(self.model, self.vocabulary, self.towers, *noise, self.streams)


def load(path: str | Path, dtype: torch.dtype = torch.float32) -> Pretrained:
    """The model in a folder that `motet export` wrote, on the CPU; UserError names what is missing or does not fit."""
    path = Path(path)
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
            raise UserError(f"{file}: is no whole safetensors file ({error}); fetch it again") from None
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path}: the weights are not those of config.json: {' '.join(str(error).split())}") from None
    return Pretrained(model.eval(), vocabulary, towers, objective, said["streams"])


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
