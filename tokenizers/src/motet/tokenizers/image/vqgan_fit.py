"""Fitting a small VQ model: an autoencoder first, then k-means for the codebook, then both together.

For the first steps nothing is quantized. Then the codebook starts as k-means of the latents seen, follows
them as a moving average (van den Oord et al., arXiv 1711.00937, appendix A.1) while gradients pass straight through, and a
code that nobody uses is moved to a latent of the current batch. Letters: N latents, K codes, D their width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models import VQModel
from pydantic import Field
from torch import nn

from motet.core.configuration import validate
from motet.tokenizers.image import image_fit
from motet.tokenizers.torch_models import running

FREE, BETA, DECAY, DEAD = 0.15, 0.25, 0.98, 0.02
"""Share of steps without codes; weight of the commitment; of the moving average; use under which a code is dead,
in units of equal use."""


class VQFit(image_fit.PictureFit):
    """How to fit `vqgan`: as every picture autoencoder, and its codebook.

    Attributes:
        codes: vectors in the codebook.
    """

    codes: int = Field(1024, gt=1)


class Codebook:
    """The codebook while it is fitted: moving averages of the share of latents that each code got, and of
    their sum, in the same units.
    """

    def __init__(self, embedding: nn.Embedding, generator: torch.Generator):
        self.codes_KD = embedding.weight.requires_grad_(False)
        self.generator = generator
        self.seen: list[torch.Tensor] = []
        self.started = False

    def watch(self, latents_ND: torch.Tensor) -> None:
        """Remember latents for the start, about 32 per code."""
        self.seen = [*self.seen, latents_ND.detach()][-math.ceil(32 * len(self.codes_KD) / len(latents_ND)) :]

    def start(self, rounds: int = 10) -> None:
        """K-means over the latents remembered."""
        seen_ND = torch.cat(self.seen)
        self.codes_KD.copy_(self._random(seen_ND, len(self.codes_KD)))
        for _ in range(rounds):
            self.count_K, self.sum_KD = self._collect(seen_ND)
            self._update(seen_ND)
        total = self.count_K.sum()  # from here on as shares, which a batch moves by 1 - DECAY
        self.count_K, self.sum_KD = self.count_K / total, self.sum_KD / total
        self.seen, self.started = [], True

    def quantize(self, latents_ND: torch.Tensor) -> torch.Tensor:
        """The nearest code of each latent; the codebook moves towards what it got."""
        quantized_ND = self.codes_KD[torch.cdist(latents_ND, self.codes_KD).argmin(1)].clone()
        count_K, sum_KD = self._collect(latents_ND)
        self.count_K.lerp_(count_K / len(latents_ND), 1 - DECAY)
        self.sum_KD.lerp_(sum_KD / len(latents_ND), 1 - DECAY)
        self._update(latents_ND)
        return quantized_ND

    def _collect(self, latents_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How many latents each code gets, and their sum."""
        ids_N = torch.cdist(latents_ND, self.codes_KD).argmin(1)
        count_K = torch.bincount(ids_N, minlength=len(self.codes_KD)).float()
        return count_K, torch.zeros_like(self.codes_KD).index_add_(0, ids_N, latents_ND)

    def _update(self, latents_ND: torch.Tensor) -> None:
        """Codes to their means; dead ones to random latents, with the mean count so that they are not dead at once."""
        mean = self.count_K.mean()
        dead_K = self.count_K < DEAD * mean
        self.count_K[dead_K] = mean
        self.sum_KD[dead_K] = mean * self._random(latents_ND, int(dead_K.sum()))
        self.codes_KD.copy_(self.sum_KD / self.count_K[:, None])

    def _random(self, latents_ND: torch.Tensor, count: int) -> torch.Tensor:
        """`count` of the latents, with repetition only if there are fewer."""
        order = torch.randperm(len(latents_ND), generator=self.generator)
        return latents_ND[order.repeat(math.ceil(count / len(order)))[:count]]


def build(fit: VQFit) -> VQModel:
    """The untrained network, its weights by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        width = fit.channels[-1]
        return VQModel(
            **image_fit.network(fit), latent_channels=width, num_vq_embeddings=fit.codes, vq_embed_dim=fit.latent
        )


def fit(samples: Sequence[bytes], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit on picture files, write fp16 safetensors and config.json into `out`, and measure on the held-out pictures.

    Returns:
        `psnr` (dB), `used_codes`, `perplexity` over the held-out pictures, `loss_first` and `loss_last` (of a tenth of the
        steps), `train`, `heldout`, `rejected` (pictures), `parameters`.
    """
    options = validate(settings, VQFit, "fit vqgan")
    pictures = image_fit.gather(samples, options)
    model = build(options)
    with image_fit.threads_of(options):
        losses = _train(model, pictures, options)
    model.half().save_pretrained(out)
    model.float().eval()
    used_K = torch.zeros(options.codes)

    def roundtrip(x_BCHW: torch.Tensor) -> torch.Tensor:
        quantized_BCHW, _, (_, _, ids) = model.quantize(model.encode(x_BCHW).latents)
        used_K.add_(torch.bincount(ids.flatten(), minlength=options.codes))
        return model.decode(quantized_BCHW, force_not_quantize=True).sample

    with running(options.threads):
        quality = image_fit.measure(pictures.heldout, roundtrip, options.batch)
    share_K = used_K / used_K.sum()
    return {
        "psnr": quality,
        "used_codes": int((used_K > 0).sum()),
        "perplexity": float(torch.exp(-torch.xlogy(share_K, share_K).sum())),
        **image_fit.summary(pictures, losses, model),
    }


def _train(model: VQModel, pictures: image_fit.Pictures, options: VQFit) -> list[float]:
    """The steps; returns the loss of each."""
    codebook = Codebook(model.quantize.embedding, torch.Generator().manual_seed(options.seed))
    free = int(options.steps * FREE)

    def loss_of(x_BCHW: torch.Tensor, step: int) -> torch.Tensor:
        latents_BCHW = model.encode(x_BCHW).latents
        with torch.autocast("cpu", enabled=False):
            latents_BHWC = latents_BCHW.float().permute(0, 2, 3, 1)
            latents_ND = latents_BHWC.flatten(0, 2)
            commitment = latents_ND.new_zeros(())
            if step >= free:
                if not codebook.started:
                    codebook.watch(latents_ND)
                    codebook.start()
                quantized_ND = codebook.quantize(latents_ND.detach())
                commitment = F.mse_loss(latents_ND, quantized_ND)
                latents_ND = latents_ND + (quantized_ND - latents_ND).detach()
            else:
                codebook.watch(latents_ND)
            passed_BCHW = latents_ND.view_as(latents_BHWC).permute(0, 3, 1, 2).contiguous()
        got_BCHW = model.decode(passed_BCHW, force_not_quantize=True).sample
        return image_fit.reconstruction_loss(got_BCHW, x_BCHW) + BETA * commitment

    return image_fit.train(model, pictures, options, loss_of)
