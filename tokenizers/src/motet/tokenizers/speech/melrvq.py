"""Speech as residual codes of log-mel frames: waveform -> log-mel -> K codebooks in turn -> ids; sums of entries -> waveform.

Each frame is replaced by the nearest entry of the first codebook, what is left by the nearest of the second, and so on
(residual vector quantization, as in SoundStream, arXiv 2107.03312, section III-C, with k-means instead of a network).
Fitted in seconds on one's own speech. Shapes: T frames, M mel bands, K codebooks of S entries.
"""

from __future__ import annotations

import logging
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
from motet.tokenizers.fitted import left, load_fitted, save_fitted
from motet.tokenizers.media import LOADING
from motet.tokenizers.speech.kmeans import assign, kmeans, perplexity
from motet.tokenizers.speech.mel import LogMel, MelConfig, frames_of_files
from motet.tokenizers.speech.mel_tokenizer import MelTokenizer
from motet.tokenizers.torch_models import running

log = logging.getLogger(__name__)


class MelRVQ(MelTokenizer):
    """Residual k-means codes of log-mel frames; tokens have shape `(frames, codebooks)`."""

    class Fit(MelConfig):
        """Options of `fit`: the frames (see `MelConfig`) and the codebooks.

        Attributes:
            codebooks: how many, each on what the ones before leave.
            size: entries of each.
            seed: of the random start.
            max_frames: k-means sees a random choice of at most so many frames.
        """

        codebooks: int = Field(4, ge=1, le=32)
        size: int = Field(256, ge=2, le=65_536)
        seed: int = 0
        max_frames: int = Field(60_000, ge=1)

    def __init__(self, settings: MelRVQ.Settings):
        super().__init__(settings)
        shapes = {"codebooks": ("count", "size", "mels")}
        config, arrays = load_fitted(settings.path, "melrvq", MelConfig, shapes)
        self.mel = LogMel(config)
        self._codebooks_KSM = arrays["codebooks"]
        count, size, _ = self._codebooks_KSM.shape
        self.spec = TokenizerSpec(
            name="melrvq",
            modality="speech",
            kind="discrete",
            codebooks=(size,) * count,
            latent_dim=0,
            rate=config.frame_rate,
            media_type="audio/wav",
            hash=content_hash(
                "melrvq", LOADING, config.model_dump(), self._codebooks_KSM.numpy(), settings.max_seconds
            ),
        )

    @classmethod
    def fit(cls, samples: Sequence[bytes], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Fit the codebooks on raw sound files and write the folder `out`.

        Returns:
            `seconds_of_speech`, `skipped` (files that are no sound), `frame_rate`, `tokens_per_second`, `error_decibels`
            (root mean square error of log-mel frames, as amplitude), `perplexity` of each codebook, and `seconds`.
        """
        options = validate(settings, cls.Fit, "fit melrvq")
        config = MelConfig(**options.model_dump(include=set(MelConfig.model_fields)))
        start = time.perf_counter()
        with running(1):
            frames, skipped = frames_of_files(samples, LogMel(config), "fit melrvq")
            all_TM = torch.cat(frames)
            generator = torch.Generator().manual_seed(options.seed)
            residual_TM = all_TM[torch.randperm(len(all_TM), generator=generator)[: options.max_frames]]
            books, use, begun = [], [], time.perf_counter()
            for k in range(options.codebooks):
                book_SM = kmeans(residual_TM, options.size, options.seed + k)
                codes_T, _ = assign(residual_TM, book_SM)
                residual_TM = residual_TM - book_SM[codes_T]
                books.append(book_SM)
                use.append(round(perplexity(codes_T, options.size), 1))
                seconds = (time.perf_counter() - begun) / (k + 1) * (options.codebooks - k - 1)
                log.info("codebook %d of %d, %s", k + 1, options.codebooks, left(seconds))
        save_fitted(out, "melrvq", config, {"codebooks": torch.stack(books)})
        return {
            "seconds_of_speech": round(len(all_TM) / config.frame_rate, 1),
            "skipped": skipped,
            "frame_rate": config.frame_rate,
            "tokens_per_second": config.frame_rate * options.codebooks,
            "error_decibels": round(8.686 * float(residual_TM.square().mean().sqrt()), 2),
            "perplexity": use,
            "seconds": round(time.perf_counter() - start, 2),
        }

    def tokens_of(self, frames_TM: torch.Tensor) -> Tokens:
        """Codes of one sound's frames."""
        codes = []
        for book_SM in self._codebooks_KSM:
            codes_T, _ = assign(frames_TM, book_SM)
            frames_TM = frames_TM - book_SM[codes_T]
            codes.append(codes_T)
        ids_TK = torch.stack(codes, dim=1)
        return Tokens(tuple(ids_TK.shape), ids_TK.flatten().to(torch.int32).numpy())

    def frames_of(self, tokens: Tokens) -> torch.Tensor:
        """Log-mel frames `[T, M]` that codes stand for, of all codebooks or of the first ones."""
        ids_TK = torch.from_numpy(np.asarray(tokens.ids, np.int64)).reshape(tokens.shape)
        books_KSM = self._codebooks_KSM[: ids_TK.shape[1]]
        return sum((book_SM[ids_TK[:, k]] for k, book_SM in enumerate(books_KSM)), torch.zeros(()))
