"""What the tokenizers over log-mel frames share: sound file -> frames -> tokens, and tokens -> frames -> sound.

A subclass says which tokens frames become, and which frames tokens stand for. Shapes: T frames, M mel bands.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field

from motet.tokenizers import contract
from motet.tokenizers.contract import Tokenizer, Tokens, Waveform
from motet.tokenizers.media import dump_wav, load_speech
from motet.tokenizers.speech.mel import LogMel
from motet.tokenizers.torch_models import running


class MelTokenizer(Tokenizer):
    """Speech through log-mel frames; each sound is encoded and decoded alone. A subclass sets `mel` and `spec`."""

    modality = "speech"
    mel: LogMel

    class Settings(contract.Settings):
        """Where the fitted folder is.

        Attributes:
            path: folder written by `fit`.
            threads: of torch while encoding and decoding.
            max_seconds: longer files are refused.
        """

        path: Path
        threads: int = Field(1, ge=1)
        max_seconds: float = Field(1800.0, gt=0)

    def __init__(self, settings: MelTokenizer.Settings):
        self.settings = settings

    def load(self, data: bytes) -> Waveform:
        """A sound file as one channel, at its own rate."""
        return load_speech(data, self.settings.max_seconds)

    def encode(self, samples: Sequence[Waveform]) -> list[Tokens]:
        """Tokens of each sound's frames."""
        with running(self.settings.threads):
            return [self.tokens_of(self.mel.frames(sample)) for sample in samples]

    def decode(self, tokens: Sequence[Tokens]) -> list[Waveform]:
        """Sounds with the frames that the tokens stand for."""
        with running(self.settings.threads):
            return [self.mel.sound(self.frames_of(each)) for each in tokens]

    def dump(self, sample: Waveform) -> bytes:
        """The sound as WAV."""
        return dump_wav(sample)

    @abstractmethod
    def tokens_of(self, frames_TM: torch.Tensor) -> Tokens:
        """Tokens of one sound's frames `[T, M]`."""

    @abstractmethod
    def frames_of(self, tokens: Tokens) -> torch.Tensor:
        """Log-mel frames `[T, M]` that tokens stand for."""
