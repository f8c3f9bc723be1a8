"""Fitting a picture autoencoder: raw files -> train and held-out pictures -> steps -> measured on the held-out ones.

Which pictures are held out is a function of their bytes alone. A step takes `batch` pictures, half of them as they will be
encoded, half as a random crop of a larger copy, mirrored at random; the loss comes from the tokenizer that fits. Same
seed, files (in any order), threads, kind of CPU and library: same weights. Shapes: B pictures, C channels, H rows, W columns.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from motet.core.configuration import Settings
from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.tokenizers import media
from motet.tokenizers.contract import BadSample
from motet.tokenizers.fitted import counted, left
from motet.tokenizers.image.pictures import square, to_pixels

log = logging.getLogger(__name__)
LARGER = 1.25  # side of the copy that random crops come from, over the side of a picture


class PictureFit(Settings):
    """How to fit a picture autoencoder.

    Attributes:
        size: side of the pictures in pixels.
        channels: channels of the network per level; each level but the last halves the side.
        layers: residual blocks per level of the encoder (the decoder has one more).
        latent: width of the latent at one position.
        steps: optimizer steps.
        batch: pictures per step.
        rate: highest learning rate.
        heldout: share of the pictures held out, by content hash.
        bfloat16: compute in bfloat16 (about three times as fast where the CPU has AMX).
        seed: of weights, order and crops.
        threads: threads of torch.
    """

    size: int = Field(64, gt=0)
    channels: tuple[int, ...] = (8, 16, 64, 96)
    layers: int = Field(1, gt=0)
    latent: int = Field(8, gt=0)
    steps: int = Field(2800, gt=0)
    batch: int = Field(16, gt=0)
    rate: float = Field(2e-3, gt=0)
    heldout: float = Field(0.05, gt=0, lt=1)
    bfloat16: bool = True
    seed: int = 0
    threads: int = Field(1, gt=0)


@dataclass(frozen=True)
class Pictures:
    """Pictures to fit on, uint8 `[N, 3, side, side]`: as encoded, a larger copy of each, and the held-out ones."""

    train: torch.Tensor
    larger: torch.Tensor
    heldout: torch.Tensor
    rejected: int

    def batch(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """`count` random pictures x_BCHW in [-1, 1]."""
        side, spare = self.train.shape[-1], self.larger.shape[-1] - self.train.shape[-1]
        picks = torch.randint(len(self.train), (count,), generator=generator).tolist()
        tops, lefts = torch.randint(spare + 1, (2, count), generator=generator).tolist()
        flips = torch.rand(count, generator=generator) < 0.5
        whole = torch.rand(count, generator=generator) < 0.5
        x_BCHW = torch.stack(
            [
                self.train[i] if whole[b] else self.larger[i, :, tops[b] : tops[b] + side, lefts[b] : lefts[b] + side]
                for b, i in enumerate(picks)
            ]
        )
        x_BCHW[flips] = x_BCHW[flips].flip(-1)
        return x_BCHW.float().div_(127.5).sub_(1.0)


def is_heldout(data: bytes, share: float) -> bool:
    """Whether a picture file is held out of fitting: its content hash as a number in [0, 1) lies under `share`."""
    return int(content_hash(data)[:13], 16) / 16**13 < share


def gather(samples: Sequence[bytes], fit: PictureFit) -> Pictures:
    """Decode all files, in the order of their hashes, copies once; bad ones are counted and left out."""
    train, larger, heldout, rejected = [], [], [], 0
    for data in counted(sorted(set(samples), key=content_hash), "pictures read"):
        try:
            image = media.load_image(data)
        except BadSample as bad:
            log.warning("left out: %s", bad)
            rejected += 1
            continue
        pixels = np.asarray(square(image, fit.size))
        if is_heldout(data, fit.heldout):
            heldout.append(pixels)
        else:
            train.append(pixels)
            larger.append(np.asarray(square(image, round(fit.size * LARGER))))
    if not train or not heldout:
        raise UserError(
            f"fit: {len(train)} pictures to fit on and {len(heldout)} held out; give more pictures or another heldout"
        )
    return Pictures(_stack(train), _stack(larger), _stack(heldout), rejected)


def _stack(pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures `[H, W, 3]` as one tensor `[N, 3, H, W]`."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def train(
    model: nn.Module, pictures: Pictures, fit: PictureFit, loss_of: Callable[[torch.Tensor, int], torch.Tensor]
) -> list[float]:
    """Minimise `loss_of(x_BCHW, step)` over the model's weights; returns the loss of every step.

    AdamW, a short linear warm-up, then a cosine down to zero; gradients clipped to norm 1.
    """
    generator = torch.Generator().manual_seed(fit.seed)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=fit.rate,
        betas=(0.9, 0.98),
        weight_decay=1e-4,
        fused=True,
    )
    warmup, losses, started = max(1, fit.steps // 20), [], time.monotonic()
    for step in range(fit.steps):
        factor = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / fit.steps))
        for group in optimizer.param_groups:
            group["lr"] = fit.rate * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=fit.bfloat16):
            loss = loss_of(pictures.batch(fit.batch, generator), step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == fit.steps:
            seconds = (time.monotonic() - started) / (step + 1)
            recent = sum(losses[-50:]) / len(losses[-50:])
            told = (step + 1, fit.steps, recent, fit.batch / seconds, left(seconds * (fit.steps - step - 1)))
            log.info("step %d of %d: loss %.5f, %.0f pictures/s, %s", *told)
    return losses


@contextmanager
def threads_of(fit: PictureFit) -> Iterator[None]:
    """Fit on as many threads as the options say; the process's own number is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(fit.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def network(fit: PictureFit) -> dict[str, Any]:
    """The arguments that diffusers' VQModel and AutoencoderKL share."""
    levels = len(fit.channels)
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": fit.channels,
        "layers_per_block": fit.layers,
        "norm_num_groups": math.gcd(4, *fit.channels),
        "sample_size": fit.size,
    }


def reconstruction_loss(got_BCHW: torch.Tensor, want_BCHW: torch.Tensor) -> torch.Tensor:
    """Squared error, and a little absolute error for sharper edges."""
    return F.mse_loss(got_BCHW.float(), want_BCHW) + 0.2 * F.l1_loss(got_BCHW.float(), want_BCHW)


def psnr(got: np.ndarray, want: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures `[N, H, W, C]`, the mean over pictures (each at most 60 dB)."""
    errors = np.square(got.astype(np.float64) - want).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255.0**2 / np.maximum(errors, 255.0**2 / 1e6))).mean())


def measure(pictures_NCHW: torch.Tensor, roundtrip: Callable[[torch.Tensor], torch.Tensor], batch: int) -> float:
    """PSNR in dB of uint8 pictures put through `roundtrip` (x_BCHW -> x_BCHW)."""
    got = [to_pixels(roundtrip(part.float().div(127.5).sub(1.0))) for part in pictures_NCHW.split(batch)]
    return psnr(np.concatenate(got), pictures_NCHW.permute(0, 2, 3, 1).numpy())


def summary(pictures: Pictures, losses: Sequence[float], model: nn.Module) -> dict[str, float]:
    """What every fit tells besides its own measures."""
    tenth = max(1, len(losses) // 10)
    return {
        "loss_first": sum(losses[:tenth]) / tenth,
        "loss_last": sum(losses[-tenth:]) / tenth,
        "train": len(pictures.train),
        "heldout": len(pictures.heldout),
        "rejected": pictures.rejected,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
