"""Speech as EnCodec units on the `encodec` library: waveform -> 24 kHz -> encoder -> residual codes, frames x codebooks.

Weights of the 24 kHz model come from a file (the library's own state dict), or from a folder or hub id in the layout of
`transformers` (`facebook/encodec_24khz`), whose names are mapped onto the library's. On a CPU every
utterance is encoded alone, which is as fast as a batch (1 s: 7 % slower, 3 s: 20 % faster), and its codes are exactly those of
the library; on a GPU those of the same length go together, never padded, so that none sees its neighbours. 75 frames a second, and as many
codebooks of 1,024 as the bandwidth pays for: 0.75 kbit/s each. Défossez et al., arXiv 2210.13438.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from encodec import EncodecModel
from pydantic import Field, field_validator
from torch import nn
from torch.nn.utils import remove_weight_norm

from motet.tokenizers import contract, media
from motet.tokenizers.contract import Tokenizer, TokenizerSpec, Tokens, Waveform
from motet.tokenizers.torch_models import (
    DEVICE,
    HUB_ID,
    device_class,
    fetch,
    limits,
    load_strictly,
    read_state,
    running,
    to_device,
    weights_hash,
)

BANDWIDTHS = (1.5, 3.0, 6.0, 12.0, 24.0)  # kbit/s that the 24 kHz model was trained for
WEIGHTS_FILE = "model.safetensors"
TRANSFORMERS_NAMES = (
    (r"^decoder\.layers\.(3|6|9|12)\.conv\.", r"decoder.model.\1.convtr.convtr."),
    (r"^(encoder|decoder)\.layers\.", r"\1.model."),
    (r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook."),
    (r"\.conv\.", r".conv.conv."),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)


class EnCodec(Tokenizer):
    """Mono speech to residual codes and back.

    The sample is a Waveform at 24 kHz; tokens have shape (frames, codebooks), ids in frames-major order.
    """

    modality = "speech"

    class Settings(contract.Settings):
        """Settings of EnCodec.

        Attributes:
            path: a file of weights, a folder that holds `model.safetensors`, or a hub id `owner/name`.
            bandwidth: kbit/s, one of 1.5, 3, 6, 12, 24: that is 2, 4, 8, 16 or 32 codebooks.
            threads: threads of torch.
            device: what the network runs on: `cpu`, `cuda` or `cuda:N`.
            batch: seconds of sound in one batch on a GPU, of sounds of the same length.
            max_seconds: longer sound is refused: the network takes it whole, about 16 MB a second.
        """

        path: str
        bandwidth: float = 6.0
        threads: int = Field(1, gt=0)
        device: str = Field("cpu", pattern=DEVICE)
        batch: float = Field(120.0, gt=0)
        max_seconds: float = Field(120.0, gt=0)

        @field_validator("bandwidth")
        @classmethod
        def _offered(cls, bandwidth: float) -> float:
            if bandwidth not in BANDWIDTHS:
                raise ValueError(f"must be one of {BANDWIDTHS}")
            return bandwidth

    def __init__(self, settings: Settings):
        """Raises UserError if the weights are missing, damaged or not of the 24 kHz model."""
        self.settings = settings
        self.model = _load(settings.path)
        self.model.set_target_bandwidth(settings.bandwidth)
        quantizer = self.model.quantizer
        codebooks = quantizer.get_num_quantizers_for_bandwidth(self.model.frame_rate, settings.bandwidth)
        self.spec = TokenizerSpec(
            name="encodec",
            modality="speech",
            kind="discrete",
            codebooks=(quantizer.bins,) * codebooks,
            latent_dim=0,
            rate=float(self.model.frame_rate),
            media_type="audio/wav",
            hash=weights_hash(
                self.model,
                use="encodec",
                loading=media.LOADING,
                codebooks=codebooks,
                **limits(settings, "max_seconds"),
                **device_class(settings.device),
            ),
        )

    def load(self, data: bytes) -> Waveform:
        """A sound file as one channel at the model's rate."""
        return media.resample(media.load_speech(data, self.settings.max_seconds), self.model.sample_rate)

    def encode(self, samples: Sequence[Waveform]) -> list[Tokens]:
        """Codes of each frame; the last frame may reach beyond the end."""
        waves = [media.resample(sample, self.model.sample_rate).samples for sample in samples]
        tokens: dict[int, Tokens] = {}
        longest = 0 if self.settings.device == "cpu" else int(self.settings.batch * self.model.sample_rate)
        to_device(self.model, self.settings.device)
        with running(self.settings.threads):
            for places in same_length([len(wave) for wave in waves], longest):
                x_B1T = torch.from_numpy(np.stack([waves[i] for i in places]))[:, None].to(self.settings.device)
                ((codes_BKF, _),) = self.model.encode(x_B1T)
                ids_BFK = codes_BKF.transpose(1, 2).to(torch.int32).cpu().numpy()
                tokens |= {i: Tokens(ids.shape, ids.flatten()) for i, ids in zip(places, ids_BFK, strict=True)}
        return [tokens[i] for i in range(len(waves))]

    def decode(self, tokens: Sequence[Tokens]) -> list[Waveform]:
        """Sound at the model's rate, a whole number of frames long. ValueError for ids that are in no codebook."""
        waves = []
        to_device(self.model, self.settings.device)
        with running(self.settings.threads):
            for one in tokens:
                ids_FK = np.asarray(one.ids, dtype=np.int64).reshape(one.shape)
                bins, codebooks = self.spec.codebooks[0], len(self.spec.codebooks)
                if ids_FK.shape[1] > codebooks or ids_FK.min(initial=0) < 0 or ids_FK.max(initial=0) >= bins:
                    raise ValueError(f"expected ids of {codebooks} codebooks of {bins}")
                if not len(ids_FK):
                    waves.append(Waveform(np.zeros(0, np.float32), self.model.sample_rate))
                    continue
                x_11T = self.model.decode([(torch.from_numpy(ids_FK.T.copy())[None].to(self.settings.device), None)])
                waves.append(Waveform(x_11T[0, 0].clamp(-1, 1).cpu().numpy(), self.model.sample_rate))
        return waves

    def dump(self, sample: Waveform) -> bytes:
        """A 16-bit WAV file."""
        return media.dump_wav(sample)


def same_length(lengths: Sequence[int], longest: int) -> Iterator[list[int]]:
    """Positions of equal `lengths` together, in order, so many that they sum to `longest` at most, or one alone."""
    buckets: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        buckets.setdefault(length, []).append(i)
    for length, places in buckets.items():
        count = max(longest // max(length, 1), 1)
        yield from (places[at : at + count] for at in range(0, len(places), count))


def _load(path: str) -> EncodecModel:
    """The 24 kHz model, its weight norms multiplied out: the same weights, not computed anew at every call."""
    at = Path(path)
    if at.is_dir():
        at = at / WEIGHTS_FILE
    elif not at.exists() and HUB_ID.fullmatch(path):
        at = fetch(path, WEIGHTS_FILE)
    state = {_library_name(name): value for name, value in read_state(at).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the library's weight norm is torch's older one
        model = load_strictly(EncodecModel.encodec_model_24khz(pretrained=False), state, at)
    for module in list(model.modules()):
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and hasattr(module, "weight_g"):
            remove_weight_norm(module)
    return model.requires_grad_(False)


def _library_name(name: str) -> str:
    """A name of `transformers`' EncodecModel as the library's own; the library's own stay as they are."""
    if ".model." in name or ".vq." in name:
        return name
    for pattern, new in TRANSFORMERS_NAMES:
        name = re.sub(pattern, new, name)
    return name
