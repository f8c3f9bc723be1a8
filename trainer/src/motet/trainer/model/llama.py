"""Dense models of Llama's kind, in and out: a Hugging Face checkpoint copied into every tower, and one made of a model.

    FOLDER/config.json    --`Dense.open`, `settings`--> the `model:` block that fits it
    FOLDER/*.safetensors  --`Dense.copy_into`--> our model: each layer's matrices into all towers; the rows of text ids
                            and of `bos` and `eos` into embedding and head; the rows of all other ids are new
    a text model of one tower --`to_llama`--> weights and config.json as `transformers` has them

The first is what LMFusion (arXiv 2412.15188) and BAGEL (arXiv 2505.14683) begin with. At step 0 all towers are the dense
model, so the first loss must be the same with one tower as with all, whatever the batch (`run.state.first_loss`).

Every tensor of the checkpoint is used, every weight of ours is filled or new by name; anything else is refused. New rows
are the mean of the text's rows: a new id's score is then the mean score, and by Jensen's inequality N new ids among V
raise the loss of text by at most log(1 + N/V).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from motet.core.errors import UserError
from motet.trainer.model.mot import MoT, feed_forward_width
from motet.trainer.vocabulary import TEXT, Vocabulary

if TYPE_CHECKING:
    from motet.trainer.config import ModelConfig

KINDS = {"llama": False, "mistral": False, "qwen3": True}
"""Architectures of Llama's shape, and whether they normalise queries and keys."""

REFUSED = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "sliding_window": (None,),
    "rope_scaling": (None,),
    "hidden_act": (None, "silu"),
}
"""What our model has no counterpart for, unless it has one of these values."""

LAYER = {
    "self_attn.o_proj": "out",
    "mlp.down_proj": "down",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
}
"""A checkpoint's name of a layer's weight -> ours. The others are parts of one of ours: `PARTS`."""

PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
}


@dataclass(frozen=True)
class Dense:
    """A checkpoint folder: its configuration, and which file has each tensor."""

    path: Path
    config: dict[str, Any]
    files: dict[str, Path]

    @classmethod
    def open(cls, path: str | Path) -> Dense:
        """The checkpoint in a folder; UserError if it is none, or of a kind that our model cannot be."""
        path = Path(path)
        try:
            config = json.loads((path / "config.json").read_bytes())
            kind = config["model_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: holds no Hugging Face checkpoint: config.json cannot be read ({type(error).__name__})"
            ) from None
        if kind not in KINDS:
            raise UserError(f"{path}/config.json: model_type: {kind} is not of Llama's kind; {', '.join(KINDS)} are")
        for field, allowed in REFUSED.items():
            if config.get(field) not in allowed and not (
                field == "sliding_window" and not config.get("use_sliding_window", True)
            ):
                raise UserError(
                    f"{path}/config.json: {field}: {config[field]!r} is not in motet's model, which cannot be this one"
                )
        return cls(path, config, dict(_tensors(path)))

    @property
    def settings(self) -> dict[str, Any]:
        """The `model:` settings that this checkpoint needs; towers are free."""
        c, path = self.config, self.path / "config.json"
        try:
            dim, heads = c["hidden_size"], c["num_attention_heads"]
            rope = c.get("rope_parameters") or {"rope_theta": c.get("rope_theta", 10000.0)}
            found = {
                "dim": dim,
                "layers": c["num_hidden_layers"],
                "heads": heads,
                "kv_heads": c.get("num_key_value_heads") or heads,
                "ffn": c["intermediate_size"],
                "norm": "before",
                "norm_eps": c["rms_norm_eps"],
                "qk_norm": KINDS[c["model_type"]],
                "rope_theta": float(rope["rope_theta"]),
            }
        except KeyError as error:
            raise UserError(f"{path}: {error.args[0]} is missing") from None
        if (width := c.get("head_dim") or dim // heads) * heads != dim:
            raise UserError(
                f"{path}: head_dim: {heads} heads of {width} are not hidden_size {dim}; motet's model needs that"
            )
        if rope.get("rope_type", "default") != "default":
            raise UserError(
                f"{path}: rope_type: {rope['rope_type']} is not in motet's model, which turns by plain angles"
            )
        return found

    def check(self, config: ModelConfig) -> None:
        """UserError if a model of this configuration is not this checkpoint's."""
        wanted, has = self.settings, config.model_dump()
        has |= {"kv_heads": config.kv_heads or config.heads, "ffn": feed_forward_width(config)}
        wrong = {name: value for name, value in wanted.items() if has[name] != value}
        if wrong:
            told = ", ".join(f"{name}: {value} (not {has[name]})" for name, value in wrong.items())
            raise UserError(
                f"model: to start from {self.path} it needs {told}; `motet upcycle {self.path}` prints the block"
            )
        for name in ("experts", "cross_layers"):
            if has[name]:
                raise UserError(
                    f"model.{name}: a model that starts from a dense one has none: it would not be that model"
                )

    @torch.no_grad()
    def copy_into(self, model: MoT, vocabulary: Vocabulary) -> int:
        """Fill `model` from the checkpoint; how many rows of embedding and head are new.

        UserError names a tensor that is missing, too much, damaged or of another shape, and a vocabulary that does not fit.
        """
        self.check(model.config)
        ours, unused = dict(model.named_parameters()), dict.fromkeys(self.files)
        with ExitStack() as stack:
            readers = {file: stack.enter_context(_opened(file)) for file in set(self.files.values())}

            def take(name: str, *shape: int) -> Tensor:
                if name not in self.files:
                    raise UserError(
                        f"{self.path}: {name} is missing: this is not all of a {self.config['model_type']} checkpoint"
                    )
                unused.pop(name, None)
                try:
                    tensor = readers[self.files[name]].get_tensor(name)
                except SafetensorError as error:
                    raise UserError(
                        f"{self.files[name]}: {name}: cannot be read ({error}); fetch the file again"
                    ) from None
                if tensor.shape != shape:
                    raise UserError(
                        f"{self.files[name]}: {name}: is {list(tensor.shape)}, config.json makes it {list(shape)}"
                    )
                return tensor

            for layer in range(model.config.layers):
                at = f"model.layers.{layer}."
                for theirs, name in LAYER.items():
                    weight = ours.get(f"blocks.{layer}.{name}")
                    if weight is not None:
                        weight.copy_(take(f"{at}{theirs}.weight", *weight.shape[1:]))
                for name, parts in PARTS.items():
                    weight = ours[f"blocks.{layer}.{name}"]
                    begin = 0
                    for part, rows in zip(parts, self._rows(name), strict=True):
                        weight[:, begin : begin + rows] = take(f"{at}{part}.weight", rows, weight.shape[2])
                        begin += rows
            ours["norm"].copy_(take("model.norm.weight", model.config.dim))
            V, D = self.config["vocab_size"], model.config.dim
            embedding_VD = take("model.embed_tokens.weight", V, D)
            tied = bool(self.config.get("tie_word_embeddings"))
            head_VD = embedding_VD if tied and "lm_head.weight" not in self.files else take("lm_head.weight", V, D)
        left = [name for name in unused if not name.endswith("rotary_emb.inv_freq")]  # computed, not learnt
        if left:
            raise UserError(
                f"{self.files[left[0]]}: {left[0]}: motet's model has no such weight, so it cannot be this one"
            )
        new = self._fill_rows(ours["embedding.weight"], embedding_VD, vocabulary)
        self._fill_rows(ours["head.weight"], head_VD, vocabulary)
        return new

    def _rows(self, name: str) -> tuple[int, ...]:
        s = self.settings
        if name == "gate_up":
            return s["ffn"], s["ffn"]
        width = s["dim"] // s["heads"]
        return s["heads"] * width, s["kv_heads"] * width, s["kv_heads"] * width

    def _fill_rows(self, ours_VD: Tensor, theirs_VD: Tensor, vocabulary: Vocabulary) -> int:
        """Rows of text ids, `bos` and `eos` are theirs, all others the mean of the text's; how many others there are."""
        (begin,), (size,) = vocabulary.base[TEXT], vocabulary.tokenizers[TEXT].codebooks
        if size > len(theirs_VD):
            raise UserError(
                f"{self.path}: knows {len(theirs_VD):,} ids, but the data's text has {size:,}: tokenize text with the "
                "checkpoint's own tokenizer.json"
            )
        ours_VD.copy_(theirs_VD[:size].float().mean(0).expand_as(ours_VD))
        ours_VD[begin : begin + size] = theirs_VD[:size].to(ours_VD.dtype)
        known = 0
        for marker, name in ((vocabulary.bos, "bos_token_id"), (vocabulary.eos, "eos_token_id")):
            ids = self.config.get(name)
            id_ = ids[0] if isinstance(ids, list) else ids
            if id_ is not None and 0 <= id_ < len(theirs_VD):
                ours_VD[marker] = theirs_VD[id_].to(ours_VD.dtype)
                known += 1
        return len(ours_VD) - size - known


@torch.no_grad()
def to_llama(model: MoT, vocabulary: Vocabulary, sequence: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, config.json) of a text model of one tower as Hugging Face's Llama, or with QK-norm Qwen3, has them.

    Ids are the text tokenizer's, then motet's `pad`, `bos` and `eos`; `sequence` is the longest that it has seen.
    ValueError if the model is not of Llama's shape.
    """
    config, others = model.config, [m for m in vocabulary.modalities if m != TEXT]
    if others:
        raise ValueError(f"it knows {', '.join(others)}")
    if config.norm != "before" or config.experts or config.cross_layers is not None:
        raise ValueError("it needs `norm: before`, no experts and no cross_layers")
    ours = model.state_dict()
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
            matrices = ours[f"blocks.{layer}.{name}"][0].split(parts[name])
            named |= {f"{at}{theirs}.weight": matrix for theirs, matrix in zip(theirs_, matrices, strict=True)}
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
        "max_position_embeddings": sequence,
        "tie_word_embeddings": False,
        "pad_token_id": size,
        "bos_token_id": size + 1,
        "eos_token_id": size + 2,
    }
    return named, said


def _tensors(path: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of every tensor of the checkpoint."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        try:
            named = json.loads(index.read_bytes())["weight_map"].items()
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{index}: cannot be read ({type(error).__name__}); fetch the file again") from None
        missing = next((file for _, file in named if not (path / file).is_file()), None)
        if missing:
            raise UserError(f"{path / missing}: is missing, but {index.name} names it; fetch the file")
        yield from ((name, path / file) for name, file in named)
        return
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path}: has no *.safetensors; other formats hold pickles, which motet does not open")
    for file in files:
        with _opened(file) as reader:
            yield from ((name, file) for name in reader.keys())  # noqa: SIM118 - not a dict


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: is no whole safetensors file ({error}); fetch it again") from None
