"""Log-mel frames and back: waveform -> short-time spectrum -> mel bands -> log; log-mel -> spectrum -> Griffin-Lim -> waveform.

Shapes: N samples, T frames, F frequency bins, M mel bands. Frame t is centred on sample (t + 1/2) * hop, zeros beyond the
ends, so that N samples give ceil(N / hop) frames, and T frames give T * hop samples back. Every sound is transformed
alone: its frames depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from pydantic import Field

from motet.core.configuration import Settings
from motet.core.errors import UserError
from motet.tokenizers.contract import BadSample, Waveform
from motet.tokenizers.fitted import counted
from motet.tokenizers.media import load_speech, resample

FLOOR = 1e-5  # of mel amplitude: about 16-bit silence
SPECTRUM_ROUNDS = 40


class MelConfig(Settings):
    """How sound becomes frames; stored with every tokenizer fitted on them.

    Attributes:
        sample_rate: in Hz; all sound is resampled to it.
        hop: samples from frame to frame.
        window: samples of one Hann window; at least `hop`.
        mels: number of mel bands.
        iterations: rounds of Griffin-Lim on the way back.
    """

    sample_rate: int = Field(16_000, ge=4_000, le=96_000)
    hop: int = Field(400, ge=16)
    window: int = Field(1024, ge=64)
    mels: int = Field(80, ge=8, le=512)
    iterations: int = Field(48, ge=1)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop


@dataclass(frozen=True)
class LogMel:
    """The transform of one `MelConfig`, both ways."""

    config: MelConfig

    @cached_property
    def bands_FM(self) -> torch.Tensor:
        """Triangular mel filters, `[window / 2 + 1, mels]`."""
        from torchaudio.functional import melscale_fbanks

        c = self.config
        return melscale_fbanks(c.window // 2 + 1, 0.0, c.sample_rate / 2, c.mels, c.sample_rate, None, "htk")

    @cached_property
    def inverse_MF(self) -> torch.Tensor:
        """Pseudo-inverse of the filters."""
        return torch.linalg.pinv(self.bands_FM)

    @cached_property
    def hann(self) -> torch.Tensor:
        """The window, `[window]`."""
        return torch.hann_window(self.config.window)

    def frames(self, wave: Waveform) -> torch.Tensor:
        """Log-mel frames `[T, M]` float32 of a sound at any rate."""
        c = self.config
        samples_N = torch.from_numpy(np.ascontiguousarray(resample(wave, c.sample_rate).samples))
        count = -(-len(samples_N) // c.hop)
        before = (c.window - c.hop) // 2
        after = (count - 1) * c.hop + c.window - before - len(samples_N)
        windows_TN = torch.nn.functional.pad(samples_N, (before, max(after, 0))).unfold(0, c.window, c.hop)[:count]
        spectrum_TF = torch.fft.rfft(windows_TN * self.hann).abs()
        return (spectrum_TF @ self.bands_FM).clamp_min(FLOOR).log()

    def sound(self, frames_TM: torch.Tensor) -> Waveform:
        """A sound with these log-mel frames: phases by Griffin-Lim (1984), started at zero, so the same every time."""
        from torchaudio.functional import griffinlim

        c = self.config
        count = frames_TM.shape[0]
        if count == 0:
            return Waveform(np.zeros(0, np.float32), c.sample_rate)
        magnitude_FT = self._spectrum(frames_TM.exp()).T
        magnitude_FT = torch.nn.functional.pad(magnitude_FT, (1, 1), mode="replicate")  # the ends lack overlap
        samples_N = griffinlim(
            magnitude_FT,
            window=self.hann,
            n_fft=c.window,
            hop_length=c.hop,
            win_length=c.window,
            power=1.0,
            n_iter=c.iterations,
            momentum=0.99,
            length=None,
            rand_init=False,
        )
        # torch's frame t is centred on t * hop and one frame was put before: ours start half a hop earlier.
        start = c.hop // 2
        samples = samples_N[start : start + count * c.hop].clamp(-1, 1)
        return Waveform(samples.numpy(), c.sample_rate)

    def _spectrum(self, bands_TM: torch.Tensor) -> torch.Tensor:
        """A non-negative spectrum `[T, F]` with these mel bands, by multiplicative updates (Lee and Seung 2001).

        Measured on 20 prompts: Griffin-Lim's frames then miss by 2.8 dB, against 3.2 dB from the clipped pseudo-inverse.
        """
        spectrum_TF = (bands_TM @ self.inverse_MF).clamp_min(1e-6)
        wanted_TF = bands_TM @ self.bands_FM.T
        for _ in range(SPECTRUM_ROUNDS):
            spectrum_TF = spectrum_TF * wanted_TF / (spectrum_TF @ self.bands_FM @ self.bands_FM.T).clamp_min(1e-9)
        return spectrum_TF


def frames_of_files(files: Sequence[bytes], mel: LogMel, where: str) -> tuple[list[torch.Tensor], int]:
    """Log-mel frames of raw sound files, and how many files were no sound and were skipped; UserError if all were."""
    frames, skipped = [], 0
    for data in counted(files, "sounds read"):
        try:
            frames.append(mel.frames(load_speech(data)))
        except BadSample:
            skipped += 1
    if not frames:
        raise UserError(f"{where}: samples: none of them is a sound file")
    return frames, skipped
