"""Grey pictures of more than 8 bits -> 8 bits: what is white is told by the format, or by the numbers, or the picture is refused.

16 bits: 65,535 is white (PNG, PGM, JPEG 2000, TIFF); of a TIFF of 12 bits 4,095. Floats from 0 to 1 (TIFF, PFM): 1 is white.
32 bits (TIFF), and 16 with a sign, are containers for fewer: white is 255, 65,535 or the largest number of all, the first
that no number exceeds. Numbers that would come out black, or have no scale, are no picture: elevations, distances, masks.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from motet.tokenizers.contract import BadSample

DARKEST = 1 / 16
"""Of white: what a 32-bit picture's brightest number has to be."""


def grey(image: Image.Image) -> Image.Image:
    """A picture of one of Pillow's modes I and F, 8 bits deep.

    Raises:
        BadSample: `unknown-white`.
    """
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "F":
        scaled = _of_floats(values)
    elif image.mode.startswith("I;16"):
        bits = 12 if tags.get(BITSPERSAMPLE) == (12,) else 16
        scaled = values >> (bits - 8)
    elif not tags:  # PGM, whose reader scales to 16 bits
        scaled = np.clip(values, 0, 0xFFFF) >> 8
    else:
        scaled = _of_integers(values, signed=tags.get(SAMPLEFORMAT) == (2,), bits=tags.get(BITSPERSAMPLE, (32,))[0])
    pixels = scaled.astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0, which Pillow knows of 8 bits only
        pixels = 255 - pixels
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        pixels = np.where(values == clear, np.uint8(255), pixels)
    return Image.fromarray(pixels)


def _of_floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise BadSample("unknown-white", f"floats from {low:.6g} to {high:.6g}; convert them to 0 (black) to 1 (white)")
    return np.round(values * 255)


def _of_integers(values: np.ndarray, signed: bool, bits: int) -> np.ndarray:
    values = values if signed else values.view(np.uint32)
    low, high = int(values.min()), int(values.max())
    most = bits - 1 if signed else bits
    deep = next(depth for depth in (8, min(16, most), most) if high < 1 << depth)
    if low < 0 or (deep > 8 and high < DARKEST * (1 << deep)):
        raise BadSample("unknown-white", f"integers of {bits} bits from {low} to {high}; convert them to 8 or 16 bits")
    return values >> (deep - 8)
