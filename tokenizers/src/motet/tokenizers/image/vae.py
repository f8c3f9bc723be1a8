"""Pictures as continuous latents on `diffusers.AutoencoderKL`: square picture -> mean latents -> patches -> float16.

The mean of the posterior is shifted and scaled by the model's own `shift_factor` and `scaling_factor`, so that its variance
is about one, as diffusion on it wants. `patch` x `patch` latent positions make one token of C * patch * patch numbers,
ordered channel, row, column: (rows, columns) tokens, row by row. `VAE.fit` fits a small one (`vae_fit.py`). Papers: Rombach
et al., arXiv 2112.10752, section 3.1; patches as in Transfusion, arXiv 2408.11039, section 3.
Letters: B pictures, C channels, H W latent rows and columns, h w patch rows and columns, p the patch's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from pydantic import Field

from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.tokenizers.image import pictures, vae_fit
from motet.tokenizers.torch_models import device_class, open_diffusers, weights_hash


class VAE(pictures.PictureTokenizer):
    """Square pictures to latent patches and back.

    The sample is a PIL RGB picture of `size` x `size` pixels; tokens have shape (rows, columns).
    """

    class Settings(pictures.PictureSettings):
        """As for every picture tokenizer, and what a token is.

        Attributes:
            patch: side of the square of latent positions that is one token.
        """

        patch: int = Field(1, gt=0)

    Fit = vae_fit.VAEFit

    def __init__(self, settings: Settings):
        """Raises UserError if the weights are missing, damaged or of another model."""
        self.settings = settings
        self.patch = settings.patch
        self.model = open_diffusers(AutoencoderKL, settings.path, settings.subfolder)
        self.model.encoder.to(memory_format=torch.channels_last)  # a fifth faster
        config: Any = self.model.config
        self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.size = pictures.picture_size(settings, config, self.factor * self.patch)
        self.spec = TokenizerSpec(
            name="vae",
            modality="image",
            kind="continuous",
            codebooks=(),
            latent_dim=config.latent_channels * self.patch**2,
            rate=float((self.size // (self.factor * self.patch)) ** 2),
            media_type="image/png",
            hash=weights_hash(
                self.model,
                use="vae",
                size=self.size,
                **pictures.loading(settings),
                patch=self.patch,
                scale=self.scale,
                shift=self.shift,
                **device_class(settings.device),
            ),
        )

    def tokens_of(self, encoded: Any) -> list[Tokens]:
        """The scaled mean latents as patches."""
        mean_BCHW = encoded.latent_dist.mean
        latents = self.patchify((mean_BCHW - self.shift) * self.scale).to(torch.float16).cpu().numpy()
        return [Tokens(one.shape[:2], latents=one.reshape(-1, self.spec.latent_dim)) for one in latents]

    def picture_of(self, tokens: Tokens) -> torch.Tensor:
        """The decoder's picture of latent patches."""
        latents = np.asarray(tokens.latents, dtype=np.float32).reshape(1, *tokens.shape, self.spec.latent_dim)
        latents_1CHW = self.unpatchify(torch.from_numpy(latents).to(self.settings.device))
        return self.model.decode(latents_1CHW / self.scale + self.shift).sample

    def patchify(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` -> `[B, h, w, C * p * p]`."""
        b, c, h, w = latents_BCHW.shape
        p = self.patch
        split = latents_BCHW.reshape(b, c, h // p, p, w // p, p)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(b, h // p, w // p, c * p * p)

    def unpatchify(self, patches_BhwD: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, C * p * p]` -> `[B, C, H, W]`."""
        b, h, w, d = patches_BhwD.shape
        p = self.patch
        split = patches_BhwD.reshape(b, h, w, d // p**2, p, p)
        return split.permute(0, 3, 1, 4, 2, 5).reshape(b, d // p**2, h * p, w * p)

    @classmethod
    def fit(cls, samples: Sequence[bytes], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Fit a small VAE on picture files; settings are those of `Fit`."""
        return vae_fit.fit(samples, out, settings)
