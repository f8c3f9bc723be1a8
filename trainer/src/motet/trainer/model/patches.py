"""How latents enter and leave the transformer: one linear map, or the halves of a U-Net (arXiv 2408.11039, section 3).

    linear:  latents_NL --`latent_in`, + timestep--> x_ND --transformer--> hidden_ND --`latent_out`--> predicted_NL
    unet:    latents_NL --`fold`, by grid--> [B, C, rows * p, columns * p] --down: blocks, halving--> x_ND
             hidden_ND --up: blocks, doubling, each with what the block across kept--> predicted_NL

`into` gives the rows of the transformer and a `Passage`, which `out` takes: nothing of a batch stays on the module. A
picture is a run of patches, row by row, and its grid is known on the host. Pictures of one grid are convolved together;
none sees another.

Letters: N latent patches, L = C * p * p width of one, C channels of the latents, p side of a patch, D model width, B
pictures of one grid, h w their rows and columns of tokens, H W of latent positions, E width of the timestep, K channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from motet.trainer.config import UNet

Grid = tuple[int, int]
"""Rows and columns of a picture's tokens."""
NORM_GROUPS = 32


@dataclass(frozen=True)
class Passage:
    """What `into` leaves for `out`: nothing, or what a U-Net's way down has made.

    Attributes:
        pictures: the grid of each picture, in the order of the latents.
        kept: for each distinct grid, what every block of the way down made: [B, K, H, W].
        time: for each distinct grid, the timestep [B, E].
    """

    pictures: tuple[Grid, ...] = ()
    kept: dict[Grid, list[Tensor]] = field(default_factory=dict)
    time: dict[Grid, Tensor] = field(default_factory=dict)


class LinearPatches(nn.Module):
    """One matrix in, one out, and the timestep added to each patch."""

    def __init__(self, dim: int, latent_dim: int):
        super().__init__()
        self.latent_in = nn.Linear(latent_dim, dim, bias=False)
        self.latent_out = nn.Linear(dim, latent_dim, bias=False)
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def into(self, latents_NL: Tensor, time_N: Tensor, pictures: Sequence[Grid]) -> tuple[Tensor, Passage]:
        """(x_ND, what `out` needs)."""
        dtype = self.latent_in.weight.dtype
        wave_ND = sinusoid(time_N, self.latent_in.out_features).to(dtype)
        return self.latent_in(latents_NL.to(dtype)) + self.time(wave_ND), Passage()

    def out(self, hidden_ND: Tensor, passage: Passage) -> Tensor:
        """The prediction, [N, L]."""
        return self.latent_out(hidden_ND)

    def flops(self) -> float:
        """Of one patch, in and out."""
        return 2.0 * sum(weight.numel() for weight in self.parameters() if weight.dim() > 1)


class UNetPatches(nn.Module):
    """The two halves of a U-Net round the transformer.

    Args:
        dim: D. latent_dim: L. patch: p, a power of two. channels: of each resolution, from latent positions to tokens:
            log2(p) + 1 of them. blocks: residual blocks at each, on either way.
    """

    def __init__(self, dim: int, latent_dim: int, patch: int, channels: Sequence[int], blocks: int):
        super().__init__()
        if any(k % 2 for k in channels):
            raise ValueError(f"unet: channels {tuple(channels)} must be even")
        if latent_dim % patch**2 or 1 << (len(channels) - 1) != patch:
            raise ValueError(
                f"unet: patch {patch} must be a power of two whose square divides the latents' width {latent_dim}, and "
                f"needs {patch.bit_length()} channels, one for each resolution, not {len(channels)}"
            )
        self.patch, self.blocks, self.width = patch, blocks, channels[0]
        first, last, wide = channels[0], channels[-1], 2 * channels[0]
        pairs = list(pairwise(channels))
        self.time = nn.Sequential(nn.Linear(first, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.stem = nn.Conv2d(latent_dim // patch**2, first, 3, padding=1)
        self.down = nn.ModuleList(Residual(k, k, wide) for k in channels for _ in range(blocks))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.project_in = nn.Conv2d(last, dim, 1)
        self.project_out = nn.Conv2d(dim, last, 1)
        self.up = nn.ModuleList(Residual(2 * k, k, wide) for k in reversed(channels) for _ in range(blocks))
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in reversed(pairs))
        self.norm = _norm(first)
        self.latent_out = nn.Conv2d(first, latent_dim // patch**2, 3, padding=1)

    def into(self, latents_NL: Tensor, time_N: Tensor, pictures: Sequence[Grid]) -> tuple[Tensor, Passage]:
        """(x_ND, what `out` needs); `time_N` is equal within a picture."""
        dtype = self.stem.weight.dtype
        passage = Passage(tuple(pictures))
        made: dict[Grid, Tensor] = {}
        starts = {grid: part_Bhw1[:, 0, 0, 0] for grid, part_Bhw1 in _by_grid(time_N[:, None], pictures).items()}
        for grid, part_BhwL in _by_grid(latents_NL.to(dtype), pictures).items():
            passage.time[grid] = time_BE = self.time(sinusoid(starts[grid], self.width).to(dtype))
            kept = passage.kept[grid] = []
            x = self.stem(fold(part_BhwL, self.patch))
            for i, block in enumerate(self.down):
                if i and i % self.blocks == 0:
                    x = self.shrink[i // self.blocks - 1](x)
                x = block(x, time_BE)
                kept.append(x)
            made[grid] = self.project_in(x).permute(0, 2, 3, 1)
        return _in_order(made, pictures), passage

    def out(self, hidden_ND: Tensor, passage: Passage) -> Tensor:
        """The prediction, [N, L]."""
        made: dict[Grid, Tensor] = {}
        for grid, part_BhwD in _by_grid(hidden_ND, passage.pictures).items():
            x = self.project_out(part_BhwD.permute(0, 3, 1, 2))
            for i, block in enumerate(self.up):
                if i and i % self.blocks == 0:
                    x = self.grow[i // self.blocks - 1](F.interpolate(x, scale_factor=2))
                x = block(torch.cat((x, passage.kept[grid][-1 - i].to(x.dtype)), 1), passage.time[grid])
            made[grid] = unfold(self.latent_out(F.silu(self.norm(x))), self.patch)
        return _in_order(made, passage.pictures)

    def flops(self) -> float:
        """Of one patch, in and out; the timestep's, once a picture, are left out."""
        levels = len(self.shrink) + 1
        total = _of_position(self.stem, self.latent_out) * self.patch**2
        total += _of_position(self.project_in, self.project_out)
        for level in range(levels):
            positions = (self.patch >> level) ** 2
            down, up = level * self.blocks, (levels - 1 - level) * self.blocks
            total += _of_position(*self.down[down : down + self.blocks], *self.up[up : up + self.blocks]) * positions
            if level:
                total += _of_position(self.shrink[level - 1]) * positions
                total += _of_position(self.grow[levels - 1 - level]) * 4 * positions
        return total


class Residual(nn.Module):
    """x + two convolutions, each after a group norm and SiLU, the timestep added between them (arXiv 2006.11239)."""

    def __init__(self, channels: int, out: int, wide: int):
        super().__init__()
        self.norm_in = _norm(channels)
        self.conv_in = nn.Conv2d(channels, out, 3, padding=1)
        self.shift = nn.Linear(wide, out)
        self.norm_out = _norm(out)
        self.conv_out = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time_BE: Tensor) -> Tensor:
        """[B, K, H, W] -> [B, out, H, W]."""
        y = self.conv_in(F.silu(self.norm_in(x))) + self.shift(F.silu(time_BE))[:, :, None, None]
        return self.skip(x) + self.conv_out(F.silu(self.norm_out(y)))


def patches_of(dim: int, latent_dim: int, unet: UNet | None) -> LinearPatches | UNetPatches | None:
    """How latents of this width enter and leave a model; None without latents."""
    if not latent_dim:
        return None
    if unet is None:
        return LinearPatches(dim, latent_dim)
    return UNetPatches(dim, latent_dim, unet.patch, unet.channels, unet.blocks)


def _of_position(*modules: nn.Module) -> float:
    """FLOPs of their convolutions at one position."""
    found = (each for module in modules for each in module.modules() if isinstance(each, nn.Conv2d))
    return 2.0 * sum(each.weight.numel() for each in found)


def _norm(channels: int) -> nn.GroupNorm:
    """Over groups of two channels or more: a picture of one patch has one value in each."""
    return nn.GroupNorm(math.gcd(NORM_GROUPS, channels // 2), channels)


def fold(patches_BhwL: Tensor, p: int) -> Tensor:
    """[B, h, w, C * p * p], a patch ordered channel, row, column -> [B, C, h * p, w * p]."""
    B, h, w, L = patches_BhwL.shape
    split = patches_BhwL.reshape(B, h, w, L // p**2, p, p)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(B, L // p**2, h * p, w * p)


def unfold(latents_BCHW: Tensor, p: int) -> Tensor:
    """Inverse of `fold`."""
    B, C, H, W = latents_BCHW.shape
    split = latents_BCHW.reshape(B, C, H // p, p, W // p, p)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(B, H // p, W // p, C * p * p)


def sinusoid(time_N: Tensor, width: int) -> Tensor:
    """Sines and cosines of the diffusion step at geometric frequencies, float64 [N, width]."""
    half = -(-width // 2)
    frequency = torch.exp(torch.arange(half, device=time_N.device, dtype=torch.float64) * (-9.21 / half))
    angle = time_N.double().unsqueeze(-1) * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)[:, :width]


def _by_grid(x_NX: Tensor, pictures: Sequence[Grid]) -> dict[Grid, Tensor]:
    """The pictures of each grid, [B, h, w, X]; without a picture none of one patch, so that weights get a gradient."""
    parts: dict[Grid, list[Tensor]] = {}
    for grid, part in zip(pictures, x_NX.split([h * w for h, w in pictures]), strict=True) if pictures else ():
        parts.setdefault(grid, []).append(part)
    if not pictures:
        return {(1, 1): x_NX.reshape(0, 1, 1, x_NX.shape[-1])}
    return {grid: torch.stack(several).unflatten(1, grid) for grid, several in parts.items()}


def _in_order(made: dict[Grid, Tensor], pictures: Sequence[Grid]) -> Tensor:
    """Inverse of `_by_grid`."""
    if not pictures:
        return made[1, 1].flatten(0, 2)
    left = {grid: iter(x_BhwX.flatten(1, 2)) for grid, x_BhwX in made.items()}
    return torch.cat([next(left[grid]) for grid in pictures])
