"""From a prompt of any modalities to one span more: text, codes of a picture, codes of speech, latents of a picture.

    prompt spans --laid out as in training--> `Context` (keys and values kept)
        text, speech:     one id at a time until the end marker, at most `limit` frames
        picture as codes: one id at a time, exactly `shape`
        latents:          noise --`steps` denoising calls that see the prompt--> exactly `shape`
    -> `Tokens`, as the modality's tokenizer would have made them

Only ids that may come next are scored: a modality's codes cycle through its codebooks, its end marker may come where a
frame is full. Several prompts for the same modality run as one batch.

Letters: B prompts, n positions, L width of one latent, V ids that are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from motet.tokenizers.contract import Tokens

from .diffusion import Cosine
from .model.cache import Context
from .model.mot import MoT
from .vocabulary import TEXT, Towers, Vocabulary

Span = tuple[str, Tokens]


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Attributes:
        temperature: of the softmax; 0 takes the likeliest.
        top_p: draw among the likeliest ids that together have this probability (arXiv 1904.09751).
        seed: equal seeds give equal results, for the same prompts in the same batch.
        steps: denoising calls for latents.
        eta: noise added between them: 0 as in DDIM, 1 as in DDPM.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    steps: int = 50
    eta: float = 0.0


class Generator:
    """A trained model that continues prompts; `noise_steps` is the schedule's length in training."""

    def __init__(self, model: MoT, vocabulary: Vocabulary, towers: Towers, noise_steps: int = 1000):
        self.model, self.vocabulary = model.eval(), vocabulary
        self._tower = dict(zip(vocabulary.modalities, towers.of_modality, strict=True))
        self._schedule = Cosine(noise_steps)

    @torch.no_grad()
    def continue_(
        self,
        prompts: Sequence[Sequence[Span]],
        modality: str,
        *,
        shape: tuple[int, ...] | None = None,
        limit: int | None = None,
        sampling: Sampling = Sampling(),
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Tokens]:
        """One span of `modality` after each prompt.

        Give `shape`, the grid of tokens, where the size is fixed (pictures), or `limit`, the most frames (text: ids)
        until the model ends the span itself. `progress(done, all)` is called after each call of the model.
        """
        if (shape is None) == (limit is None):
            raise ValueError("give either shape or limit")
        laid = [_Prompt.of(prompt, modality, self.vocabulary, self._tower) for prompt in prompts]
        report = progress or (lambda done, every: None)
        if modality == self.vocabulary.latent_modality:
            if shape is None:
                raise ValueError("latents need a shape")
            return self._latents(laid, modality, shape, sampling, report)
        return self._codes(laid, modality, shape, limit, sampling, report)

    def _codes(
        self,
        prompts: list[_Prompt],
        modality: str,
        shape: tuple[int, ...] | None,
        limit: int | None,
        sampling: Sampling,
        report: Callable[[int, int], None],
    ) -> list[Tokens]:
        bases = self.vocabulary.base[modality]
        sizes = self.vocabulary.tokenizers[modality].codebooks
        stop = self.vocabulary.eos if modality == TEXT else self.vocabulary.end[modality]
        room = int(np.prod(shape)) if shape else (limit or 0) * len(bases)
        random = torch.Generator().manual_seed(sampling.seed)
        context, hidden_BD = self._begin(prompts, room)
        tower_B1 = np.full((len(prompts), 1), self._tower[modality])
        drawn: list[np.ndarray] = []
        live_B = np.ones(len(prompts), bool)
        ends_B = np.full(len(prompts), room)
        for i in range(room):
            k = i % len(bases)
            ranges = [(bases[k], bases[k] + sizes[k])]
            if shape is None and k == 0 and i:
                ranges.append((stop, stop + 1))
            allowed_V = np.concatenate([np.arange(*r) for r in ranges])
            scores_BV = torch.cat([self.model.logits(hidden_BD, *r) for r in ranges], dim=-1)
            ids_B = allowed_V[_draw(scores_BV, sampling, random)]
            stopped_B = live_B & (ids_B == stop)
            ends_B[stopped_B], live_B = i, live_B & ~stopped_B
            report(i + 1, room)
            if not live_B.any():
                break
            drawn.append(np.where(live_B, ids_B, bases[k]))
            if i + 1 < room:
                hidden_BD = context.extend(drawn[-1][:, None], tower_B1)[:, -1]
        ids_Bn = np.stack(drawn, axis=1) if drawn else np.zeros((len(prompts), 0), np.int64)
        found = [self.vocabulary.codes(modality, ids[:end]) for ids, end in zip(ids_Bn, ends_B, strict=True)]
        grid = (lambda n: (n,)) if modality == TEXT else (lambda n: (n // len(bases), len(bases)))
        return [Tokens(shape or grid(len(codes)), ids=codes) for codes in found]

    def _latents(
        self,
        prompts: list[_Prompt],
        modality: str,
        shape: tuple[int, ...],
        sampling: Sampling,
        report: Callable[[int, int], None],
    ) -> list[Tokens]:
        B, n = len(prompts), int(np.prod(shape))
        context, _ = self._begin(prompts, n)
        ids_Bn, block_Bn = np.full((B, n), self.vocabulary.pad), np.ones((B, n), np.int64)
        tower_Bn = np.full((B, n), self._tower[modality])
        calls = 0

        def predict(noisy_BnL: Tensor, time: int) -> Tensor:
            nonlocal calls
            hidden_BnD = context.extend(ids_Bn, tower_Bn, block_Bn, noisy_BnL, time, keep=False)
            calls += 1
            report(calls, min(sampling.steps, self._schedule.steps))
            assert self.model.latent_out is not None
            return self.model.latent_out(hidden_BnD).float().cpu()

        random = torch.Generator().manual_seed(sampling.seed)
        noise_BnL = torch.randn(B, n, self.vocabulary.latent_dim, generator=random)
        clean_BnL = self._schedule.sample(predict, noise_BnL, sampling.steps, random, sampling.eta)
        return [Tokens(shape, latents=latents.numpy().astype(np.float16)) for latents in clean_BnL]

    def _begin(self, prompts: list[_Prompt], room: int) -> tuple[Context, Tensor]:
        """A context that has read the prompts, and the hidden state [B, D] at the end of each."""
        length_B = np.array([len(p.ids) for p in prompts])
        n, B = int(length_B.max()), len(prompts)
        context = Context(self.model, B, n + room)
        ids_Bn, tower_Bn, block_Bn = (np.zeros((B, n), np.int64) for _ in range(3))
        latents_BnL = torch.zeros(B, n, self.vocabulary.latent_dim)
        for row, prompt in enumerate(prompts):
            for whole, part in ((ids_Bn, prompt.ids), (tower_Bn, prompt.tower), (block_Bn, prompt.block)):
                whole[row, : len(part)] = part
            latents_BnL[row, torch.from_numpy(np.flatnonzero(prompt.block))] = torch.from_numpy(prompt.latents)
        latents = latents_BnL if block_Bn.any() else None
        hidden_BnD = context.extend(ids_Bn, tower_Bn, block_Bn, latents, length_B=length_B)
        last_B = torch.from_numpy(length_B - 1).to(hidden_BnD.device)
        return context, hidden_BnD[torch.arange(B, device=hidden_BnD.device), last_B]


@dataclass(frozen=True)
class _Prompt:
    """One prompt in sequence order: ids, tower and block of each position, and the latents float32 [N, L]."""

    ids: np.ndarray
    tower: np.ndarray
    block: np.ndarray
    latents: np.ndarray

    @classmethod
    def of(cls, spans: Sequence[Span], after: str, vocabulary: Vocabulary, tower: dict[str, int]) -> _Prompt:
        """`bos`, the spans, and the marker that opens a span of modality `after`."""
        pieces: list[tuple[Sequence[int] | np.ndarray, int, int]] = [([vocabulary.bos], tower[TEXT], 0)]
        latents: list[np.ndarray] = [np.zeros((0, vocabulary.latent_dim), np.float32)]
        for number, (modality, tokens) in enumerate(spans, 1):
            if tokens.ids is not None and modality == TEXT:
                pieces.append((vocabulary.ids(TEXT, tokens.ids), tower[TEXT], 0))
                continue
            pieces.append(([vocabulary.begin[modality]], tower[TEXT], 0))
            if tokens.ids is not None:
                pieces.append((vocabulary.ids(modality, tokens.ids), tower[modality], 0))
            if tokens.latents is not None:
                pieces.append(([vocabulary.pad] * len(tokens), tower[modality], number))
                latents.append(tokens.latents.astype(np.float32))
            pieces.append(([vocabulary.end[modality]], tower[TEXT], 0))
        if after != TEXT:
            pieces.append(([vocabulary.begin[after]], tower[TEXT], 0))
        ids = np.concatenate([np.asarray(ids, np.int64) for ids, _, _ in pieces])
        towers, blocks = (np.concatenate([np.full(len(p[0]), p[i], np.int64) for p in pieces]) for i in (1, 2))
        return cls(ids, towers, blocks, np.concatenate(latents))


def _draw(scores_BV: Tensor, sampling: Sampling, random: torch.Generator) -> np.ndarray:
    """Index of one column per row."""
    scores_BV = scores_BV.float().cpu()
    if sampling.temperature == 0:
        return scores_BV.argmax(-1).numpy()
    chance_BV, index_BV = (scores_BV / sampling.temperature).softmax(-1).sort(-1, descending=True)
    chance_BV[chance_BV.cumsum(-1) - chance_BV >= sampling.top_p] = 0  # the likeliest always stays
    return index_BV.gather(-1, torch.multinomial(chance_BV, 1, generator=random)).squeeze(-1).numpy()
