"""Speech as units: waveform -> features of each frame -> nearest of S clusters -> repeats removed -> ids; and a rough way back.

The speech setting of MoT (arXiv 2411.04996, section 3): 500 clusters, consecutive repeats merged, so that a unit says what
is spoken and not for how long. The features are cepstra (MFCC) with their slopes, normalized over the sound, which
takes most of the speaker's and the room's colour away; `Features` is all that another extractor would replace. The way
back gives each unit its mean log-mel frame for its mean duration. Shapes: T frames, C cepstra, D features, M mel bands,
S units.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from motet.core.configuration import validate
from motet.core.hashing import content_hash
from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.tokenizers.fitted import load_fitted, save_fitted
from motet.tokenizers.media import LOADING
from motet.tokenizers.speech.kmeans import assign, kmeans, perplexity
from motet.tokenizers.speech.mel import LogMel, MelConfig, frames_of_files
from motet.tokenizers.speech.mel_tokenizer import MelTokenizer
from motet.tokenizers.torch_models import running


class UnitsConfig(MelConfig):
    """Frames (25 a second by default) and the cepstra kept of each.

    Attributes:
        cepstra: coefficients of the cosine transform of a log-mel frame, the level (the 0th) not among them.
    """

    hop: int = Field(640, ge=16)
    cepstra: int = Field(13, ge=2)


class Units(MelTokenizer):
    """Clusters of speech features with consecutive repeats removed; tokens have shape `(n, 1)`."""

    class Fit(UnitsConfig):
        """Options of `fit`: frames and features (see `UnitsConfig`), and the clusters.

        Attributes:
            size: number of units.
            seed: of the random start.
            max_frames: k-means sees a random choice of at most so many frames.
        """

        size: int = Field(500, ge=2, le=65_536)
        seed: int = 0
        max_frames: int = Field(60_000, ge=1)

    def __init__(self, settings: Units.Settings):
        super().__init__(settings)
        shapes = {"centroids": ("count", "features"), "frames": ("count", "mels"), "durations": ("count",)}
        config, arrays = load_fitted(settings.path, "units", UnitsConfig, shapes)
        self.mel = LogMel(config)
        self._features = Features(config)
        self._centroids_SD, self._frames_SM, self._durations_S = (
            arrays["centroids"],
            arrays["frames"],
            arrays["durations"],
        )
        self.spec = TokenizerSpec(
            name="units",
            modality="speech",
            kind="discrete",
            codebooks=(len(self._centroids_SD),),
            latent_dim=0,
            rate=None,
            media_type="audio/wav",
            hash=content_hash(
                "units",
                LOADING,
                config.model_dump(),
                *(arrays[name].numpy() for name in ("centroids", "frames", "durations")),
                settings.max_seconds,
            ),
        )

    @classmethod
    def fit(cls, samples: Sequence[bytes], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Cluster the features of raw sound files and write the folder `out`.

        Returns:
            `seconds_of_speech`, `skipped` (files that are no sound), `units_per_second` (repeats removed), `perplexity`
            of the units, and `seconds`.
        """
        options = validate(settings, cls.Fit, "fit units")
        config = UnitsConfig(**options.model_dump(include=set(UnitsConfig.model_fields)))
        features = Features(config)
        start = time.perf_counter()
        with running(1):
            frames, skipped = frames_of_files(samples, LogMel(config), "fit units")
            features_TD = torch.cat([features(each) for each in frames])
            generator = torch.Generator().manual_seed(options.seed)
            chosen = torch.randperm(len(features_TD), generator=generator)[: options.max_frames]
            centroids_SD = kmeans(features_TD[chosen], options.size, options.seed)
            units_T, _ = assign(features_TD, centroids_SD)
            frames_TM = torch.cat(frames)
            count_S = torch.bincount(units_T, minlength=options.size)
            frames_SM = frames_TM.mean(0).expand(options.size, -1).clone()  # for a unit that never occurs
            frames_SM[count_S > 0] = 0.0
            frames_SM.index_add_(0, units_T, frames_TM)
            frames_SM /= count_S.clamp_min(1)[:, None]
            runs = torch.cat([_without_repeats(each) for each in units_T.split([len(each) for each in frames])])
            runs_S = torch.bincount(runs, minlength=options.size)
            durations_S = (count_S / runs_S.clamp_min(1)).clamp_min(1.0)
        arrays = {"centroids": centroids_SD, "frames": frames_SM, "durations": durations_S}
        save_fitted(out, "units", config, arrays)
        speech = len(frames_TM) / config.frame_rate
        return {
            "seconds_of_speech": round(speech, 1),
            "skipped": skipped,
            "units_per_second": round(len(runs) / speech, 2),
            "perplexity": round(perplexity(runs, options.size), 1),
            "seconds": round(time.perf_counter() - start, 2),
        }

    def tokens_of(self, frames_TM: torch.Tensor) -> Tokens:
        """Units of one sound's frames, repeats removed."""
        units_T, _ = assign(self._features(frames_TM), self._centroids_SD)
        ids = _without_repeats(units_T).to(torch.int32).numpy()
        return Tokens((len(ids), 1), ids)

    def frames_of(self, tokens: Tokens) -> torch.Tensor:
        """Log-mel frames `[T, M]`: each unit's mean frame, repeated; what rounding cuts off is made up by the next."""
        ids_N = torch.from_numpy(np.asarray(tokens.ids, np.int64))
        ends_N = self._durations_S[ids_N].double().cumsum(0).round().long()
        repeats_N = torch.diff(ends_N, prepend=torch.zeros(1, dtype=torch.int64))
        return self._frames_SM[ids_N.repeat_interleave(repeats_N)]


class Features:
    """What is clustered: `[T, M]` log-mel frames of one sound -> `[T, D]`, its cepstra and their slopes over five frames."""

    def __init__(self, config: UnitsConfig):
        m_M = torch.arange(config.mels) + 0.5
        c_C = torch.arange(1, config.cepstra + 1)
        self._cosine_MC = torch.cos(torch.pi / config.mels * m_M[:, None] * c_C) * (2 / config.mels) ** 0.5

    def __call__(self, frames_TM: torch.Tensor) -> torch.Tensor:
        """Features with mean 0 and deviation 1 over the sound, in each coordinate."""
        cepstra_TC = frames_TM @ self._cosine_MC
        padded_CT = torch.nn.functional.pad(cepstra_TC.T[None], (2, 2), mode="replicate")[0]
        slope_CT = (2 * (padded_CT[:, 4:] - padded_CT[:, :-4]) + padded_CT[:, 3:-1] - padded_CT[:, 1:-3]) / 10
        features_TD = torch.cat([cepstra_TC, slope_CT.T], dim=1)
        return (features_TD - features_TD.mean(0)) / features_TD.std(0, unbiased=False).clamp_min(1e-3)


def _without_repeats(units_T: torch.Tensor) -> torch.Tensor:
    return torch.unique_consecutive(units_T)
