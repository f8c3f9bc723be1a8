"""Fitting a small VAE: reconstruction from a noisy latent, a light pull to the unit Gaussian, then unit variance exactly.

The loss is that of Kingma and Welling (arXiv 1312.6114) with the divergence weighted lightly, as latent diffusion does
(arXiv 2112.10752, section 3.1). At the end the mean and the deviation of every latent channel over the pictures are folded
into the convolutions on both sides of the latent, so that latents have mean 0 and variance 1 and `scaling_factor` is 1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL
from pydantic import Field

from motet.core.configuration import validate
from motet.tokenizers.image import image_fit
from motet.tokenizers.torch_models import running

log = logging.getLogger(__name__)


class VAEFit(image_fit.PictureFit):
    """How to fit `vae`: as every picture autoencoder, and how smooth its latents are.

    Attributes:
        divergence: weight of the KL term, per latent number. The noise that it brings costs about `divergence / 2` of
            squared error, and makes latents smooth.
    """

    latent: int = Field(12, gt=0)
    divergence: float = Field(5e-4, ge=0)


def build(fit: VAEFit) -> AutoencoderKL:
    """The untrained network, its weights by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        return AutoencoderKL(**image_fit.network(fit), latent_channels=fit.latent, scaling_factor=1.0)


def fit(samples: Sequence[bytes], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit on picture files, write fp16 safetensors and config.json into `out`, and measure on the held-out pictures.

    Returns:
        `psnr` (dB), `latent_mean`, `latent_deviation` over the held-out pictures, `loss_first` and `loss_last` (of a
        tenth of the steps), `train`, `heldout`, `rejected` (pictures), `parameters`.
    """
    options = validate(settings, VAEFit, "fit vae")
    pictures = image_fit.gather(samples, options)
    model = build(options)
    with image_fit.threads_of(options):
        losses = _train(model, pictures, options)
    with running(options.threads):
        _normalise(model, pictures.train, options)
    model.half().save_pretrained(out)
    model.float().eval()
    latents: list[torch.Tensor] = []

    def roundtrip(x_BCHW: torch.Tensor) -> torch.Tensor:
        latents.append(model.encode(x_BCHW).latent_dist.mean)
        return model.decode(latents[-1]).sample

    with running(options.threads):
        quality = image_fit.measure(pictures.heldout, roundtrip, options.batch)
    return {
        "psnr": quality,
        "latent_mean": float(torch.cat(latents).mean()),
        "latent_deviation": float(torch.cat(latents).std()),
        **image_fit.summary(pictures, losses, model),
    }


def _train(model: AutoencoderKL, pictures: image_fit.Pictures, options: VAEFit) -> list[float]:
    """The steps; returns the loss of each."""
    generator = torch.Generator().manual_seed(options.seed + 1)

    def loss_of(x_BCHW: torch.Tensor, step: int) -> torch.Tensor:
        posterior = model.encode(x_BCHW).latent_dist
        got_BCHW = model.decode(posterior.sample(generator)).sample
        divergence = posterior.kl().sum() / posterior.mean.numel()
        return image_fit.reconstruction_loss(got_BCHW, x_BCHW) + options.divergence * divergence

    return image_fit.train(model, pictures, options, loss_of)


def _normalise(model: AutoencoderKL, pictures_NCHW: torch.Tensor, options: VAEFit) -> None:
    """Give every latent channel mean 0 and variance 1 over the pictures; what the decoder sees stays the same."""
    model.eval()
    parts = pictures_NCHW.split(options.batch)
    latents_NCHW = torch.cat([model.encode(part.float().div(127.5).sub(1.0)).latent_dist.mean for part in parts])
    mean_C, deviation_C = latents_NCHW.mean((0, 2, 3)), latents_NCHW.std((0, 2, 3))
    log.info("deviation of the channels before: %.2f to %.2f", deviation_C.min(), deviation_C.max())
    into: Any = model.quant_conv
    back: Any = model.post_quant_conv
    into.weight.div_(torch.cat([deviation_C, torch.ones_like(deviation_C)])[:, None, None, None])
    into.bias.copy_(
        torch.cat([(into.bias[: len(mean_C)] - mean_C) / deviation_C, into.bias[len(mean_C) :] - 2 * deviation_C.log()])
    )
    back.bias.add_(back.weight[:, :, 0, 0] @ mean_C)
    back.weight.mul_(deviation_C[None, :, None, None])
