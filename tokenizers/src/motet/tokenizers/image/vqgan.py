"""Pictures as VQ-GAN codes on `diffusers.VQModel`: square picture -> encoder -> nearest code at each position -> ids.

Weights come from a diffusers folder, a hub id, or one file in the layout of taming-transformers, which is Chameleon's
(`taming.py`). A picture of `size` pixels becomes a grid of (rows, columns) ids, row by row. Codes are those that diffusers
gives for the same picture alone. Fitting (`VQGAN.fit`) is in `vqgan_fit.py`. Paper: Esser et al., arXiv 2012.09841.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import VQModel

from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.tokenizers.image import pictures, taming, vqgan_fit
from motet.tokenizers.torch_models import device_class, open_diffusers, weights_hash


class VQGAN(pictures.PictureTokenizer):
    """Square pictures to one codebook's ids and back.

    The sample is a PIL RGB picture of `size` x `size` pixels; tokens have shape (rows, columns).
    """

    class Settings(pictures.PictureSettings):
        """As for every picture tokenizer; `path` may also be a file of taming-style weights (Chameleon's vqgan.ckpt)."""

    Fit = vqgan_fit.VQFit

    def __init__(self, settings: Settings):
        """Raises UserError if the weights are missing, damaged or of another model."""
        self.settings = settings
        file = Path(settings.path)
        self.model = taming.load(file) if file.is_file() else open_diffusers(VQModel, settings.path, settings.subfolder)
        self.model.encoder.to(memory_format=torch.channels_last)  # a fifth faster
        config: Any = self.model.config
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.size = pictures.picture_size(settings, config, self.factor)
        self.spec = TokenizerSpec(
            name="vqgan",
            modality="image",
            kind="discrete",
            codebooks=(config.num_vq_embeddings,),
            latent_dim=0,
            rate=float((self.size // self.factor) ** 2),
            media_type="image/png",
            hash=weights_hash(
                self.model, use="vqgan", size=self.size, **pictures.loading(settings), **device_class(settings.device)
            ),
        )

    def tokens_of(self, encoded: Any) -> list[Tokens]:
        """Ids of the nearest code at each position, row by row."""
        tokens = []
        for latents_1CHW in encoded.latents.split(1):  # one by one: the matrix product never sees the neighbours
            tokens.append(Tokens(tuple(latents_1CHW.shape[2:]), ids=self._nearest(latents_1CHW).astype(np.int32)))
        return tokens

    def picture_of(self, tokens: Tokens) -> torch.Tensor:
        """The decoder's picture of ids; ValueError for ids that are in no codebook."""
        ids = np.asarray(tokens.ids, dtype=np.int64)
        if ids.size != len(tokens) or ids.min(initial=0) < 0 or ids.max(initial=0) >= self.spec.codebooks[0]:
            raise ValueError(f"expected {tokens.shape} ids under {self.spec.codebooks[0]}")
        shape = (1, *tokens.shape, self.model.quantize.vq_embed_dim)
        ids_N: Any = torch.from_numpy(ids).to(self.settings.device)  # diffusers asks for CPU's own LongTensor
        latents_1CHW = self.model.quantize.get_codebook_entry(ids_N, shape)
        return self.model.decode(latents_1CHW, force_not_quantize=True).sample

    def _nearest(self, latents_1CHW: torch.Tensor) -> np.ndarray:
        """Ids of the nearest codes: the one line of `quantize` that says which; the rest of it is for training."""
        distance_NK = torch.cdist(latents_1CHW[0].flatten(1).T, self.model.quantize.embedding.weight)
        if distance_NK.is_cpu:  # numpy chooses alike, the first of the least, in a tenth of torch's time
            return distance_NK.numpy().argmin(axis=1)
        return distance_NK.argmin(dim=1).cpu().numpy()

    @classmethod
    def fit(cls, samples: Sequence[bytes], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Fit a small VQ-GAN (without the GAN) on picture files; settings are those of `Fit`."""
        return vqgan_fit.fit(samples, out, settings)
