"""Denoising diffusion on latents, as in Transfusion (arXiv 2408.11039, section 3) and DDPM (arXiv 2006.11239).

    training:  clean latents + noise --`Schedule.noisy`, step t--> noisy latents --model--> predicted noise
    sampling:  noise --`sample`: n calls of the model, t falling--> clean latents

Steps run from 0 (almost clean) to steps-1 (almost pure noise). Latents are expected to have a variance near one.

Letters: N latent patches, L width of one latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MAX_BETA = 0.999


class Schedule:
    """The cosine schedule (arXiv 2102.09672, Eq. 17): how much of the clean signal is left after each step."""

    def __init__(self, steps: int):
        self.steps = steps
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        left = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
        self.kept = (1 - (1 - left[1:] / left[:-1]).clamp(max=MAX_BETA)).cumprod(0)
        """alpha-bar of each step, [steps], float64 on the host."""

    def noisy(self, clean_NL: Tensor, noise_NL: Tensor, time_N: Tensor) -> Tensor:
        """sqrt(alpha-bar) clean + sqrt(1 - alpha-bar) noise, each patch at its own step."""
        kept_N1 = self.kept.to(clean_NL.device, non_blocking=True)[time_N].unsqueeze(-1)
        return kept_N1.sqrt().to(clean_NL.dtype) * clean_NL + (1 - kept_N1).sqrt().to(clean_NL.dtype) * noise_NL

    def sample(
        self,
        predict: Callable[[Tensor, int], Tensor],
        noise: Tensor,
        steps: int,
        generator: torch.Generator | None = None,
        eta: float = 0.0,
    ) -> Tensor:
        """Latents from noise in `steps` calls of `predict(noisy, t) -> predicted noise` (DDIM, arXiv 2010.02502, Eq. 12).

        `eta` 0 is deterministic given the noise; 1 draws as DDPM does. Clean latents are clamped to four standard
        deviations at every step, because near pure noise a small error of the prediction is divided by almost zero.
        """
        x = noise
        times = torch.linspace(self.steps - 1, 0, min(steps, self.steps)).round().long().tolist()
        for time, after in zip(times, [*times[1:], -1], strict=True):
            kept, target = float(self.kept[time]), float(self.kept[after]) if after >= 0 else 1.0
            clean = ((x - math.sqrt(1 - kept) * predict(x, time)) / math.sqrt(kept)).clamp(-4, 4)
            direction = (x - math.sqrt(kept) * clean) / math.sqrt(1 - kept)
            spread = eta * math.sqrt((1 - target) / (1 - kept) * (1 - kept / target))
            x = math.sqrt(target) * clean + math.sqrt(max(1 - target - spread**2, 0.0)) * direction
            if spread:
                x = x + spread * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return x
