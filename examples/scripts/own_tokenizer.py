"""A tokenizer of your own, in one class: a picture becomes the palette colours of its cells. Checked, then used in a job.

    python examples/scripts/own_tokenizer.py OUT     (after tokenize_and_look.py OUT)

Some 5 seconds on one core. Writes OUT/palette: a dataset, and a picture before and after its tokens. A class in a script is
named `module:Class`; examples/custom_tokenizer is a package, which is found by its name on every machine of a cluster.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import Field

from motet.core.hashing import content_hash
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus
from motet.tokenizers import contract
from motet.tokenizers.conformance import check_settings
from motet.tokenizers.media import dump_png, load_image

LEVELS = 6  # of red, of green and of blue: 216 colours


class Palette(contract.Tokenizer):
    """Cells of a picture as numbers of colours."""

    modality = "image"

    class Settings(contract.Settings):
        """`cells`: how many along each side."""

        cells: int = Field(8, ge=1, le=64)

    def __init__(self, settings: Settings):
        self.cells = settings.cells
        identity = content_hash("palette", LEVELS, self.cells)  # of all that decides the tokens
        about = {"latent_dim": 0, "rate": self.cells**2, "media_type": "image/png", "hash": identity}
        self.spec = contract.TokenizerSpec("palette", "image", "discrete", codebooks=(LEVELS**3,), **about)

    def load(self, data: bytes) -> Image.Image:
        """A file's bytes as a picture; `load_image` raises BadSample for everything that is none."""
        return load_image(data)

    def encode(self, samples: list[Image.Image]) -> list[contract.Tokens]:
        """The nearest colour of each cell, row by row."""
        small = [np.asarray(image.resize((self.cells, self.cells), Image.Resampling.BOX)) for image in samples]
        digits = [np.rint(cells_HW3 / 255 * (LEVELS - 1)).astype(np.int32) for cells_HW3 in small]
        ids = [digits_HW3 @ np.array([LEVELS**2, LEVELS, 1], np.int32) for digits_HW3 in digits]
        return [contract.Tokens(ids_HW.shape, ids_HW.ravel()) for ids_HW in ids]

    def decode(self, tokens: list[contract.Tokens]) -> list[np.ndarray]:
        """Pictures of 16 x 16 pixels a cell."""
        grids = [np.asarray(each.ids).reshape(each.shape) for each in tokens]
        digits = [np.stack(np.unravel_index(ids_HW, (LEVELS,) * 3), axis=-1) for ids_HW in grids]
        return [np.kron(each * 255 // (LEVELS - 1), np.ones((16, 16, 1))).astype(np.uint8) for each in digits]

    def dump(self, sample: np.ndarray) -> bytes:
        """A picture as a file."""
        return dump_png(sample)


def main(out: Path) -> None:
    """Check it, then tokenize with it."""
    settings = {"use": "own_tokenizer:Palette", "cells": 12}
    files = [file.read_bytes() for file in sorted((out / "corpus/emoji").glob("*.webp"))]
    report = check_settings(settings, out, files[:16])
    print(report, "every check passed" if report.passed else "not every check passed", sep="\n")

    config = TokenizeConfig(
        corpus=[{"name": "emoji", "format": "folder", "path": "corpus/emoji", "modality": "image"}],
        tokenizers={"text": {"use": "bpe", "path": "tokenizers/bpe"}, "image": settings},
    )
    manifest = tokenize_corpus(config, base=out.resolve(), out=out / "palette/tokens").manifest
    print(
        f"{manifest.documents} documents, {np.count_nonzero(manifest.codebooks['image'])} of {LEVELS**3} colours used"
    )

    palette = Palette(Palette.Settings(cells=12))
    (out / "palette/before.webp").write_bytes(files[0])
    (out / "palette/after.png").write_bytes(palette.dump(palette.decode(palette.encode([palette.load(files[0])]))[0]))


if __name__ == "__main__":  # workers are processes of their own, which import this file
    main(Path(sys.argv[1]))
