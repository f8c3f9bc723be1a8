"""Time series as tokens: CSV -> numbers -> a scale and bins of what is left -> ids; and back.

A series is divided by its mean absolute value, so that pressures in pascal and temperatures in degrees look alike, and
each value becomes the number of its bin (as in Chronos, arXiv 2403.07815, section 3.1). The scale itself is the first
token, so that the way back needs nothing else. Tokens have shape `(1 + n,)` for n values.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from motet.core.hashing import content_hash
from motet.tokenizers import contract
from motet.tokenizers.contract import BadSample, Tokenizer, TokenizerSpec, Tokens
from motet.tokenizers.media import load_text

SMALLEST, LARGEST = 1e-9, 1e9  # scales; a series that is zero everywhere has the smallest


class Series(Tokenizer):
    """Equally spaced measurements, one series a file: CSV with a header, the value in the last column."""

    modality = "series"

    class Settings(contract.Settings):
        """How values become ids.

        Attributes:
            bins: number of bins, the size of the codebook.
            limit: bins reach from -limit to limit times the series' mean absolute value; what is beyond is cut off.
            longest: series with more values are refused.
        """

        bins: int = Field(1024, ge=16, le=65_536)
        limit: float = Field(8.0, gt=1)
        longest: int = Field(100_000, ge=1)

    def __init__(self, settings: Series.Settings):
        self._settings = settings
        self.spec = TokenizerSpec(
            name="series",
            modality="series",
            kind="discrete",
            codebooks=(settings.bins,),
            latent_dim=0,
            rate=None,
            media_type="text/csv",
            hash=content_hash("series", 1, settings.model_dump()),
        )

    def load(self, data: bytes) -> np.ndarray:
        """The last column of a CSV file, float64 `[n]`.

        Raises:
            BadSample: `empty-file`, `invalid-utf8`, `not-a-series` (a row without a number, or no rows), `series-too-long`,
                `not-finite-series`.
        """
        values = []
        try:
            for row in csv.reader(io.StringIO(load_text(data), newline=""), strict=True):
                if row:
                    values.append(row[-1])
        except csv.Error as error:
            raise BadSample("not-a-series", str(error)) from None
        if len(values) - 1 > self._settings.longest:
            raise BadSample("series-too-long", f"{len(values) - 1} values, at most {self._settings.longest}")
        if len(values) < 2:
            raise BadSample("not-a-series", "a header and at least one row are needed")
        try:
            series_n = np.array([float(value) for value in values[1:]])
        except ValueError as error:
            raise BadSample("not-a-series", str(error)) from None
        if not np.isfinite(series_n).all() or np.abs(series_n).max() > LARGEST:
            raise BadSample("not-finite-series", f"values must be numbers up to {LARGEST:g}")
        return series_n

    def encode(self, samples: Sequence[np.ndarray]) -> list[Tokens]:
        """A scale and one id for each value, shape `(1 + n,)`."""
        found = []
        for series_n in samples:
            first = self._scale_id(float(np.abs(series_n).mean()))
            unit_n = np.clip(series_n / self._scale(first) / self._settings.limit, -1, 1)
            ids_n = np.round((unit_n + 1) / 2 * (self._settings.bins - 1))
            found.append(Tokens((1 + len(series_n),), np.concatenate([[first], ids_n]).astype(np.int32)))
        return found

    def decode(self, tokens: Sequence[Tokens]) -> list[np.ndarray]:
        """The middle of each value's bin; of no tokens at all, no values."""
        series = []
        for each in tokens:
            ids = np.asarray(each.ids, np.float64)
            unit_n = ids[1:] / (self._settings.bins - 1) * 2 - 1
            series.append(unit_n * self._settings.limit * (self._scale(int(ids[0])) if len(ids) else 1.0))
        return series

    def dump(self, sample: np.ndarray) -> bytes:
        """A CSV file of step and value."""
        rows = [f"{step},{value:.6g}" for step, value in enumerate(sample)]
        return "\n".join(["step,value", *rows, ""]).encode()

    def _scale_id(self, scale: float) -> int:
        """The number of the bin of a scale, in equal steps of its logarithm."""
        share = math.log(min(max(scale, SMALLEST), LARGEST) / SMALLEST) / math.log(LARGEST / SMALLEST)
        return round(share * (self._settings.bins - 1))

    def _scale(self, number: int) -> float:
        """The scale that a bin stands for."""
        return SMALLEST * (LARGEST / SMALLEST) ** (number / (self._settings.bins - 1))
