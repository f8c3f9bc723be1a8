"""VQ-GAN weights in the layout of taming-transformers, which Chameleon's `vqgan.ckpt` has, as a `diffusers.VQModel`.

    names and shapes -> the network's configuration -> diffusers' names -> VQModel

Both describe the same network; they differ in names, in that taming counts the decoder's levels from the finest and
diffusers from the coarsest, and in attention, where taming writes 1x1 convolutions and diffusers matrices. Weights of the
loss (discriminator, perceptual network) are left aside. Esser et al., arXiv 2012.09841; Chameleon, arXiv 2405.09818.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models import VQModel

from motet.core.errors import UserError
from motet.tokenizers.torch_models import load_strictly, read_state

PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
CHAMELEON_SIZE = 512  # pixels; the weights do not say it
NORM_GROUPS = 32  # of every norm in that layout
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def load(path: Path) -> VQModel:
    """The model in a safetensors or torch file; UserError if it holds something else."""
    state = {name: value for name, value in read_state(path).items() if name.startswith(PARTS)}
    if "encoder.down.0.block.0.conv1.weight" not in state or "quantize.embedding.weight" not in state:
        raise UserError(
            f"{path}: is no VQ-GAN of taming-transformers or Chameleon (no encoder.down.0.block.0.conv1.weight or "
            "quantize.embedding.weight); for a diffusers model give its folder"
        )
    model = VQModel(**configuration(state, path))
    levels = len(model.config.block_out_channels)
    return load_strictly(model, {rename(name, levels): _matrix(name, state[name]) for name in state}, path)


def configuration(state: dict[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """The arguments of `VQModel` that these names and shapes imply."""
    levels = 1 + max(int(match[1]) for name in state if (match := re.match(r"encoder\.down\.(\d+)\.", name)))
    blocks = 1 + max(int(match[1]) for name in state if (match := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name)))
    channels = tuple(len(state[f"encoder.down.{level}.block.0.conv1.weight"]) for level in range(levels))
    attends = [f"encoder.down.{level}.attn.0.q.weight" in state for level in range(levels)]
    if len(state["encoder.conv_in.weight"]) != channels[0]:
        raise UserError(
            f"{path}: the first level widens its channels, which diffusers' VQModel cannot; use another model"
        )
    codes, width = state["quantize.embedding.weight"].shape
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": len(state["decoder.conv_out.weight"]),
        "down_block_types": tuple("AttnDownEncoderBlock2D" if attend else "DownEncoderBlock2D" for attend in attends),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if attend else "UpDecoderBlock2D" for attend in attends[::-1]),
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "latent_channels": len(state["encoder.conv_out.weight"]),
        "num_vq_embeddings": codes,
        "vq_embed_dim": width,
        "norm_num_groups": NORM_GROUPS,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state,
        "sample_size": CHAMELEON_SIZE,
    }


def rename(name: str, levels: int) -> str:
    """A taming name as the name of the same weights in diffusers' VQModel."""
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.(block|attn)_(\d)\.(\w+)\.(weight|bias)", name):
        side, kind, index, layer, leaf = match.groups()
        if kind == "attn":
            return f"{side}.mid_block.attentions.0.{ATTENTION.get(layer, layer)}.{leaf}"
        return f"{side}.mid_block.resnets.{int(index) - 1}.{_shortcut(layer)}.{leaf}"
    if match := re.fullmatch(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(block|attn)\.(\d+)\.(\w+)\.(weight|bias)", name):
        side, level, kind, index, layer, leaf = match.groups()
        inner = (
            f"resnets.{index}.{_shortcut(layer)}"
            if kind == "block"
            else f"attentions.{index}.{ATTENTION.get(layer, layer)}"
        )
        return f"{_level(side, int(level), levels)}.{inner}.{leaf}"
    if match := re.fullmatch(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(down|up)sample\.conv\.(weight|bias)", name):
        side, level, way, leaf = match.groups()
        return f"{_level(side, int(level), levels)}.{way}samplers.0.conv.{leaf}"
    return name.replace(".norm_out.", ".conv_norm_out.")


def _level(side: str, level: int, levels: int) -> str:
    """The block of one resolution; taming counts the decoder's from the finest, diffusers from the coarsest."""
    return f"encoder.down_blocks.{level}" if side == "encoder" else f"decoder.up_blocks.{levels - 1 - level}"


def _shortcut(layer: str) -> str:
    return "conv_shortcut" if layer == "nin_shortcut" else layer


def _matrix(name: str, value: torch.Tensor) -> torch.Tensor:
    """Attention's 1x1 convolutions as matrices; all else as it is."""
    return value[:, :, 0, 0] if re.search(r"\.attn[._]\d+\.\w+\.weight$", name) and value.ndim == 4 else value
