"""Clean latents to noise and back: the two processes that a model of latents can be trained on.

    training:  clean latents + noise --`noisy`, step t--> noisy latents --model--> a prediction, compared with `target`
    sampling:  noise --`sample`: n calls of the model, t falling--> clean latents

At every step noisy = alpha * clean + sigma * noise. `Cosine` keeps the variance (alpha^2 + sigma^2 = 1) and the model
predicts the noise, as in DDPM and Transfusion; `Flow` goes from one to the other in a straight line (alpha + sigma = 1)
and the model predicts its direction. Steps run from 0 (almost clean) to steps-1 (pure noise, or almost). Latents are
expected to have a variance near one.

Letters: N latent patches, L width of one latent.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

MAX_BETA = 0.999
LARGEST = 4.0
"""Clean latents that `Cosine` finds are clamped to so many standard deviations."""


class Process(ABC):
    """How much of the clean latents and of the noise there is at each step; what the model predicts.

    Args:
        alpha, sigma: share of the clean latents and of the noise at each step, [steps], float64 on the host.
    """

    def __init__(self, alpha: Tensor, sigma: Tensor):
        self.alpha, self.sigma, self.steps = alpha, sigma, len(alpha)
        self._shares: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def target(self, clean_NL: Tensor, noise_NL: Tensor) -> Tensor:
        """What the model is to predict."""

    @abstractmethod
    def clean(self, noisy: Tensor, predicted: Tensor, time: int) -> Tensor:
        """The clean latents that follow from a prediction at step `time`."""

    def noisy(self, clean_NL: Tensor, noise_NL: Tensor, time_N: Tensor) -> Tensor:
        """The mixture alpha * clean + sigma * noise, each patch at its own step."""
        device = clean_NL.device
        if device not in self._shares:  # copied there once: a copy in every step would wait for it
            self._shares[device] = self.alpha.to(device), self.sigma.to(device)
        alpha_N1, sigma_N1 = (each[time_N].unsqueeze(-1).to(clean_NL.dtype) for each in self._shares[device])
        return alpha_N1 * clean_NL + sigma_N1 * noise_NL

    def sample(
        self,
        predict: Callable[[Tensor, int], Tensor],
        noise: Tensor,
        steps: int,
        generator: torch.Generator | None = None,
        eta: float = 0.0,
    ) -> Tensor:
        """Latents from noise in `steps` calls of `predict(noisy, time)`, spread evenly over the steps.

        `eta` 0 is deterministic given the noise: DDIM (arXiv 2010.02502, Eq. 12), which is Euler's method where noisy
        latents move in a straight line. 1 draws from the process's own posterior, as DDPM does.
        """
        x, steps = noise, min(steps, self.steps)
        times = [round(self.steps * (steps - i) / steps) - 1 for i in range(steps)]
        for time, after in zip(times, [*times[1:], -1], strict=True):
            alpha, sigma = float(self.alpha[time]), float(self.sigma[time])
            alpha_after, sigma_after = (
                (float(self.alpha[after]), float(self.sigma[after])) if after >= 0 else (1.0, 0.0)
            )
            clean = self.clean(x, predict(x, time), time)
            direction = (x - alpha * clean) / sigma
            spread = eta * sigma_after * math.sqrt(max(1 - (alpha / alpha_after * sigma_after / sigma) ** 2, 0.0))
            x = alpha_after * clean + math.sqrt(max(sigma_after**2 - spread**2, 0.0)) * direction
            if spread:
                x = x + spread * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return x


class Cosine(Process):
    """The cosine schedule (arXiv 2102.09672, Eq. 17) with prediction of the noise (DDPM, arXiv 2006.11239, Eq. 14)."""

    def __init__(self, steps: int):
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        left = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
        kept = (1 - (1 - left[1:] / left[:-1]).clamp(max=MAX_BETA)).cumprod(0)
        super().__init__(kept.sqrt(), (1 - kept).sqrt())

    def target(self, clean_NL: Tensor, noise_NL: Tensor) -> Tensor:
        """The noise."""
        return noise_NL

    def clean(self, noisy: Tensor, predicted: Tensor, time: int) -> Tensor:
        """Clamped: near pure noise a small error of the prediction is divided by almost zero."""
        found = (noisy - float(self.sigma[time]) * predicted) / float(self.alpha[time])
        return found.clamp(-LARGEST, LARGEST)


class Flow(Process):
    """Rectified flow (arXiv 2209.03003, Eq. 1): step i is at time t = (i+1)/steps of the line (1-t) clean + t noise."""

    def __init__(self, steps: int):
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        super().__init__(1 - t, t)

    def target(self, clean_NL: Tensor, noise_NL: Tensor) -> Tensor:
        """The direction of the line, towards the noise."""
        return noise_NL - clean_NL

    def clean(self, noisy: Tensor, predicted: Tensor, time: int) -> Tensor:
        """Where the line begins."""
        return noisy - float(self.sigma[time]) * predicted


@cache
def process(kind: str, steps: int) -> Process:
    """The process that `objective.diffusion` names: `ddpm` or `flow`."""
    return {"ddpm": Cosine, "flow": Flow}[kind](steps)
