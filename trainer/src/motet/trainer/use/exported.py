"""A trained model for others: weights, what they mean, and a card; or a checkpoint that Hugging Face's Llama opens.

run folder --`open_model`--> `Trained` --`export`--> FOLDER, which `pretrained.load` opens
--`export_llama`--> FOLDER, which `transformers` opens
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from motet.core.errors import UserError
from motet.trainer.model.flops import parameters
from motet.trainer.model.llama import LAYER, PARTS
from motet.trainer.run.checkpoint import Trained, open_model
from motet.trainer.use.evaluate import EVALUATION
from motet.trainer.use.pretrained import CARD, CONFIG, FORMAT
from motet.trainer.vocabulary import TEXT

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export(run: str | Path, out: str | Path, dtype: str = "float32") -> Path:
    """Write the newest checkpoint of a run folder, or one checkpoint, to the new folder `out`; returns it.

    UserError if there is no checkpoint, or `out` holds something.
    """
    trained, out = open_model(Path(run)), _fresh(Path(out))
    weights = {name: weight.to(DTYPES[dtype]) for name, weight in trained.model.state_dict().items()}
    _save(weights, out)
    config = trained.config
    said = {
        "format": FORMAT,
        "model": config.model.model_dump(mode="json"),
        "objective": config.objective.model_dump(mode="json"),
        "streams": config.data.streams,
        "vocabulary": trained.state.vocabulary,
    }
    (out / CONFIG).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    (out / CARD).write_text(card(trained, dtype), encoding="utf-8")
    return out


def export_llama(run: str | Path, out: str | Path, dtype: str = "float32") -> Path:
    """Write a text model of one tower to the new folder `out` as a Hugging Face checkpoint: Llama, or with QK-norm Qwen3.

    Ids are the text tokenizer's, then motet's `pad`, `bos` and `eos`. UserError if the model is not of Llama's shape.
    """
    trained = open_model(Path(run))
    config, vocabulary = trained.config.model, trained.vocabulary
    others = [m for m in vocabulary.modalities if m != TEXT]
    if others or config.norm != "before" or config.experts or config.cross_layers is not None:
        why = f"it knows {', '.join(others)}" if others else "it needs `norm: before`, no experts and no cross_layers"
        raise UserError(f"{trained.path}: cannot be a Llama: {why}; export it without --llama")
    out = _fresh(Path(out))
    ours = trained.model.state_dict()
    (begin,), (size,) = vocabulary.base[TEXT], vocabulary.tokenizers[TEXT].codebooks
    rows = torch.tensor([*range(begin, begin + size), vocabulary.pad, vocabulary.bos, vocabulary.eos])
    named: dict[str, Tensor] = {
        "model.embed_tokens.weight": ours["embedding.weight"][rows],
        "lm_head.weight": ours["head.weight"][rows],
        "model.norm.weight": ours["norm"][0],
    }
    width = config.dim // config.heads
    kv_heads = config.kv_heads or config.heads
    ffn = ours["blocks.0.down"].shape[-1]
    parts = {"qkv": (config.heads * width, kv_heads * width, kv_heads * width), "gate_up": (ffn, ffn)}
    for layer in range(config.layers):
        at = f"model.layers.{layer}."
        for theirs, name in LAYER.items():
            if f"blocks.{layer}.{name}" in ours:
                named[f"{at}{theirs}.weight"] = ours[f"blocks.{layer}.{name}"][0]
        for name, theirs_ in PARTS.items():
            pieces = ours[f"blocks.{layer}.{name}"][0].split(parts[name])
            named |= {f"{at}{theirs}.weight": piece for theirs, piece in zip(theirs_, pieces, strict=True)}
    _save({name: weight.to(DTYPES[dtype]) for name, weight in named.items()}, out)
    said = {
        "architectures": ["Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if config.qk_norm else "llama",
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
        "intermediate_size": ffn,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "vocab_size": size + 3,
        "max_position_embeddings": trained.config.data.sequence,
        "tie_word_embeddings": False,
        "pad_token_id": size,
        "bos_token_id": size + 1,
        "eos_token_id": size + 2,
        "torch_dtype": dtype,
    }
    (out / CONFIG).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return out


def card(trained: Trained, dtype: str) -> str:
    """What a stranger should know of the model, in Markdown."""
    config, state, vocabulary = trained.config, trained.state, trained.vocabulary
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
from motet.trainer.pretrained import load

pretrained = load("THIS FOLDER")   # .model, .vocabulary, .towers
generator = pretrained.generator()
```

Prompts have to be encoded, and results decoded, by the tokenizers whose hashes stand above.
"""


def _heldout(trained: Trained) -> str:
    """The run's evaluation of this very checkpoint, if there is one."""
    file = trained.path.parent.parent / EVALUATION
    if not file.exists():
        return ""
    evaluation: dict[str, Any] = json.loads(file.read_bytes())
    if evaluation["step"] != trained.state.step:
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
