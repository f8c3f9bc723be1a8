"""What the picture tokenizers share: bytes -> square RGB picture -> [-1, 1] tensor -> network -> back, in small batches.

A picture's short side is resized to `size` (Lanczos), then its centre is cut out, as Chameleon does (arXiv 2405.09818).
Shapes: B pictures of a batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from motet.core.configuration import Settings
from motet.core.errors import UserError
from motet.tokenizers import media
from motet.tokenizers.contract import Tokenizer, Tokens
from motet.tokenizers.torch_models import DEVICE, limits, running, to_device

LONGEST = 16  # times as long as wide: a picture that is resized as a whole
SPARE = 2
"""A JPEG is decoded at the least scale that has SPARE times the pixels wanted a side (`media.load_reduced`)."""
LOADING = 3
"""Version of how a file becomes the square, in the content hash: raise it when the pixels of any file may change."""
AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Pixels encoded at once. Twice and half of that cost the same on a CPU; much more makes blocks of memory so large that a worker
gives them back each time (`motet.pipeline.job.child`), at 1.3 times the cost (256-pixel pictures by sixteens, not by fours).
"""


class PictureSettings(Settings):
    """Settings of a picture tokenizer over given weights.

    Attributes:
        path: a folder in the layout of diffusers, or a hub id `owner/name`.
        subfolder: where in that folder the model is (`vae`, `vqvae`).
        size: side of the square picture in pixels; None: the `sample_size` that the model's configuration names.
        batch: pictures encoded at once; None: as many as have 2^18 pixels together, 2^22 on a GPU.
        threads: threads of torch.
        device: what the network runs on: `cpu`, `cuda` or `cuda:N`.
        max_pixels: larger pictures are refused unread.
        reduced: decode a JPEG at the least of 1/8, 1/4, 1/2 and 1/1 that has twice the pixels wanted a side. With `false` all its
            pixels are decoded, as other tools do it: for codes that have to be another tool's exactly; 2 to 6 times the time.
    """

    path: str
    subfolder: str = ""
    size: int | None = Field(None, gt=0)
    batch: int | None = Field(None, gt=0)
    threads: int = Field(1, gt=0)
    device: str = Field("cpu", pattern=DEVICE)
    max_pixels: int = Field(64_000_000, gt=0)
    reduced: bool = True


class PictureTokenizer(Tokenizer):
    """Square pictures through an autoencoder, PNG out. A subclass sets `settings`, `size` (pixels), `model` and `spec`, and
    says which tokens come of what the encoder says, and which picture a span of tokens is.
    """

    modality = "image"
    settings: PictureSettings
    size: int
    model: Any

    def load(self, data: bytes) -> Image.Image:
        """The centre square of a picture file, `size` x `size` RGB."""
        side = SPARE * self.size if self.settings.reduced else None
        image, filled = media.load_reduced(data, side, self.settings.max_pixels)
        return square(image, self.size, filled)

    def batches(self, samples: Sequence[Image.Image]) -> Iterator[Sequence[Image.Image]]:
        """Consecutive slices, as many as are encoded at once."""
        pixels = AT_ONCE[self.settings.device.partition(":")[0]]
        size = self.settings.batch or max(pixels // self.size**2, 1)
        return (samples[at : at + size] for at in range(0, len(samples), size))

    def encode(self, samples: Sequence[Image.Image]) -> list[Tokens]:
        """The tokens of each picture, in batches."""
        tokens: list[Tokens] = []
        to_device(self.model, self.settings.device)
        with running(self.settings.threads):
            for part in self.batches(samples):
                tokens += self.tokens_of(self.model.encode(to_tensor(part, self.settings.device)))
        return tokens

    def decode(self, tokens: Sequence[Tokens]) -> list[Image.Image]:
        """Pictures from tokens of any grid, one by one; ValueError for tokens that the spec does not allow."""
        to_device(self.model, self.settings.device)
        with running(self.settings.threads):
            return [Image.fromarray(to_pixels(self.picture_of(one))[0]) for one in tokens]

    @abstractmethod
    def tokens_of(self, encoded: Any) -> list[Tokens]:
        """The tokens of each picture of a batch, of what the model's encoder says of it."""

    @abstractmethod
    def picture_of(self, tokens: Tokens) -> torch.Tensor:
        """x_1CHW in [-1, 1] of one span of tokens."""

    def dump(self, sample: Image.Image) -> bytes:
        """A PNG file."""
        return media.dump_png(sample)


def loading(settings: PictureSettings) -> dict[str, Any]:
    """What of how a file becomes the square, and of which do, belongs in the content hash."""
    reduced = {} if settings.reduced else {"reduced": False}
    return {"loading": LOADING, **reduced, **limits(settings, "max_pixels")}


def square(image: Image.Image, size: int, filled: tuple[float, float] | None = None) -> Image.Image:
    """Short side to `size` pixels (Lanczos), then the centre `size` x `size`.

    `filled`: the part of the picture's width and height that is picture (`media.load_reduced`); None: all of it.
    Of very long pictures only the centre is resized: the same within rounding, where all of it might fill the memory.
    """
    width, height = filled or image.size
    short = min(width, height)
    wide, high = (max(size, round(side * size / short)) for side in (width, height))
    left, top = (wide - size) // 2, (high - size) // 2
    if max(wide, high) > LONGEST * size:
        across, down = width / wide, height / high
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    if image.size != (wide, high):
        image = image.resize((wide, high), Image.Resampling.LANCZOS, box=(0, 0, width, height))
    return image.crop((left, top, left + size, top + size))


def to_tensor(images: Sequence[Image.Image], device: str = "cpu") -> torch.Tensor:
    """Pictures of one size as x_BCHW, float32 in [-1, 1], on `device`; in memory channels stay last, as networks want it."""
    pixels_BHWC = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels_BHWC.to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_pixels(x_BCHW: torch.Tensor) -> np.ndarray:
    """[-1, 1] as uint8 `[B, H, W, C]`; what lies outside is clipped."""
    pixels = x_BCHW.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def picture_size(settings: PictureSettings, config: Any, multiple: int) -> int:
    """Side in pixels from the settings or the model's configuration; a multiple of what one token covers."""
    size = settings.size or config.sample_size
    if not isinstance(size, int) or size % multiple:
        raise UserError(f"{settings.path}: size: {size} is no multiple of the {multiple} pixels of a token; set size")
    return size
