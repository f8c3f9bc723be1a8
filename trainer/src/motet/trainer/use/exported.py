"""A trained model for others: weights, what they mean, its tokenizers, and a card; or a checkpoint for Hugging Face's Llama.

`Trained` --`export`--> FOLDER, which `Trained.open` opens
          --`export_llama`--> FOLDER, which `transformers` opens
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from motet.core.errors import UserError
from motet.trainer.model import llama
from motet.trainer.model.flops import parameters
from motet.trainer.use.evaluate import EVALUATION
from motet.trainer.use.trained import CARD, CONFIG, FORMAT, Trained

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export(trained: Trained, out: str | Path, dtype: str = "float32") -> Path:
    """Write a trained model to the new folder `out`, which `Trained.open` opens; returns it.

    UserError if `out` holds something.
    """
    training, out = trained.of_run(), _fresh(Path(out))
    _save({name: weight.to(DTYPES[dtype]) for name, weight in trained.model.state_dict().items()}, out)
    said = {
        "format": FORMAT,
        "model": training.config.model.model_dump(mode="json"),
        "objective": trained.objective.model_dump(mode="json"),
        "streams": trained.streams,
        "sequence": trained.sequence,
        "guidance_dropout": trained.guidance_dropout,
        "vocabulary": trained.vocabulary.to_json(),
        "tokenizers": {m: _taken_along(settings, m, out) for m, settings in sorted(trained.settings.items())},
    }
    (out / CONFIG).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    (out / CARD).write_text(card(trained, dtype), encoding="utf-8")
    return out


def export_llama(trained: Trained, out: str | Path, dtype: str = "float32") -> Path:
    """Write a text model of one tower to the new folder `out` as a Hugging Face checkpoint: Llama, or with QK-norm Qwen3.

    Ids are the text tokenizer's, then motet's `pad`, `bos` and `eos`. UserError if the model is not of Llama's shape.
    """
    try:
        weights, config = llama.to_llama(trained.model, trained.vocabulary, trained.sequence)
    except ValueError as error:
        raise UserError(f"{trained.path}: cannot be a Llama: {error}; export it without --llama") from None
    out = _fresh(Path(out))
    _save({name: weight.to(DTYPES[dtype]) for name, weight in weights.items()}, out)
    (out / CONFIG).write_text(json.dumps({**config, "torch_dtype": dtype}, indent=1) + "\n", encoding="utf-8")
    return out


def _taken_along(settings: dict[str, Any], modality: str, out: Path) -> dict[str, Any]:
    """A tokenizer's settings, its files copied into the folder and named from there."""
    placed = dict(settings)
    for name, value in settings.items():
        if not (isinstance(value, str) and os.path.isabs(value)):
            continue
        source, inside = Path(value), f"tokenizers/{modality}/{Path(value).name}"
        if not source.exists():
            log.warning("%s: is gone, so the folder holds no files of the tokenizer of %s", source, modality)
            continue
        (out / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, out / inside) if source.is_dir() else shutil.copy(source, out / inside)
        placed[name] = inside
    return placed


def card(trained: Trained, dtype: str) -> str:
    """What a stranger should know of the model, in Markdown."""
    training, vocabulary = trained.of_run(), trained.vocabulary
    config, state = training.config, training.state
    size = parameters(config.model, trained.towers.names, vocabulary.size, vocabulary.latent_dim)
    datasets = ", ".join(f"`{Path(path).name}`" for path in config.data.all_paths)
    tokenizers = "\n".join(
        f"| {m} | {trained.towers.names[trained.towers.of_modality[vocabulary.modalities.index(m)]]} | {spec.name} "
        f"`{spec.hash[:12]}` | {' x '.join(map(str, spec.codebooks)) or f'latents of {spec.latent_dim}'} |"
        for m, spec in sorted(vocabulary.tokenizers.items())
    )
    return f"""---
library_name: motet
license: other  # yours to choose: it depends on the data
---

# A Mixture-of-Transformers of {size.total / 1e6:,.1f} M parameters

Of them {size.active / 1e6:,.1f} M work on any one token. Width {config.model.dim}, {config.model.layers} layers, {config.model.heads} heads;
objective: {config.objective.kind}. Weights in {dtype}. The architecture is that of [arXiv 2411.04996](https://arxiv.org/abs/2411.04996).

| modality | tower | tokenizer, content hash | codes |
|---|---|---|---|
{tokenizers}

Trained for {state.step:,} of {config.steps:,} steps on {state.tokens:,} tokens of {datasets}.

{_heldout(trained)}
```python
from motet.trainer.use.trained import Trained

trained = Trained.open("THIS FOLDER")   # .model, .vocabulary, .towers
generator, tokenizers = trained.generator(), trained.tokenizers()
```

Or `motet generate "THIS FOLDER" --text "..." --to image --out picture.png`.
"""


def _heldout(trained: Trained) -> str:
    """The run's evaluation of this very checkpoint, if there is one."""
    training = trained.of_run()
    file = training.home / EVALUATION
    if not file.exists():
        return ""
    evaluation: dict[str, Any] = json.loads(file.read_bytes())
    if evaluation["step"] != training.state.step:
        return ""
    rows = [
        f"| {m} | {found['labels']:,} | {found['loss']:.3f} | {found['unigram']:.3f} |"
        for m, found in evaluation["modalities"].items()
        if found["labels"]
    ]
    return "\n".join(
        ["| held out | labels | loss, nats a token | unigram entropy |", "|---|---|---|---|", *rows, "", ""]
    )


def _save(weights: dict[str, Tensor], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    whole = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}
    save_torch_state_dict(whole, out, max_shard_size="5GB")
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes them for their owner alone


def _fresh(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose another --out")
    return out
