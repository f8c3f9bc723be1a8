"""From a prompt of any modalities to further spans: text, codes of pictures and speech, latents of pictures.

    prompt spans --laid out as in training--> `Decoding` (keys and values kept) --span by span--> `Tokens`, as the modality's
                                                                                      tokenizer would have made them
        text, speech:     one id at a time until the model ends the span, at most `limit` frames
        picture as codes: one id at a time, exactly `shape`
        latents:          noise --`steps` denoising calls that see all before--> exactly `shape`

What was generated stays in the context, and the next span goes on from there. Only ids that may come next are scored: a
modality's codes cycle through its codebooks, its end marker may come where a frame is full, and between spans come the
markers of those that are wanted. Several prompts for the same spans run as one batch.

Letters: B prompts, n positions, L width of one latent, V ids that are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from motet.core.errors import UserError
from motet.tokenizers.contract import Tokens
from motet.trainer.data.codebooks import spread, table
from motet.trainer.generate.decoding import Decoding, Stretch
from motet.trainer.model.mot import MoT
from motet.trainer.objective.diffusion import process
from motet.trainer.vocabulary import TEXT, Towers, Vocabulary

Span = tuple[str, Tokens]


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Attributes:
        temperature: of the softmax; 0 takes the likeliest.
        top_p: draw among the likeliest ids that together have this probability (arXiv 1904.09751).
        seed: equal seeds give equal results, for the same prompts in the same batch.
        steps: denoising calls for latents.
        eta: noise added between them: 0 as in DDIM and Euler's method, 1 as in DDPM.
        guidance: how far to go from what the model says without the prompt to what it says with it, and beyond; 1 = no
            guidance. Of all modalities but text, and of use only to models trained with `data.guidance_dropout`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    steps: int = 50
    eta: float = 0.0
    guidance: float = 1.0


@dataclass(frozen=True)
class Wanted:
    """A span to generate: of just this `shape`, the grid of tokens, or of at most `limit` frames (text: ids)."""

    modality: str
    shape: tuple[int, ...] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if (self.shape is None) == (self.limit is None):
            raise ValueError("give either shape or limit")

    def positions(self, books: int) -> int:
        """The most positions that its codes or latents take, with so many codebooks."""
        return math.prod(self.shape) if self.shape is not None else (self.limit or 0) * books


class Generator:
    """A trained model that continues prompts.

    `noise_steps` and `diffusion` are those of its `objective`, `streams` those of its `data`.
    """

    def __init__(
        self,
        model: MoT,
        vocabulary: Vocabulary,
        towers: Towers,
        noise_steps: int = 1000,
        diffusion: str = "ddpm",
        streams: Mapping[str, str] | None = None,
    ):
        if any(experts.routing == "expert" for experts in model.config.experts.values()):
            raise UserError(
                "this model's experts choose their tokens among later ones too, which are not there yet when generating; "
                "train with `routing: token` to generate"
            )
        self.model, self.vocabulary = model.eval(), vocabulary
        self._tower = dict(zip(vocabulary.modalities, towers.of_modality, strict=True))
        self._process = process(diffusion, noise_steps)
        rule_M2 = table(vocabulary.tokenizers, vocabulary.modalities, streams or {})
        self._rule = dict(zip(vocabulary.modalities, rule_M2, strict=True))

    def continue_(
        self,
        prompts: Sequence[Sequence[Span]],
        modality: str,
        *,
        shape: tuple[int, ...] | None = None,
        limit: int | None = None,
        sampling: Sampling = Sampling(),
    ) -> list[Tokens]:
        """One span of `modality` after each prompt; see `Wanted`."""
        found = self.interleave(prompts, [Wanted(modality, shape, limit)], sampling)
        return [tokens for ((_, tokens),) in found]

    @torch.no_grad()
    def interleave(
        self, prompts: Sequence[Sequence[Span]], wanted: Sequence[Wanted], sampling: Sampling = Sampling()
    ) -> list[list[Span]]:
        """The spans that are `wanted`, in this order, after each prompt; each span sees the prompt and those before it.

        A text ends where the model opens the next span, the last one where it ends the document, or at the limit.
        """
        if any(one.modality == other.modality == TEXT for one, other in pairwise(wanted)):
            raise ValueError("two texts in a row are one text: ask for one with a higher limit")
        decoding, random = self._begin(prompts, wanted, sampling)
        found: list[list[Span]] = [[] for _ in prompts]
        for this, after in zip(wanted, [*wanted[1:], None], strict=True):
            if this.modality == TEXT:
                stop = self.vocabulary.begin[after.modality] if after else self.vocabulary.eos
                tokens_B, _ = self._codes(decoding, this, [stop], sampling, random)
            else:
                tokens_B = self._marked(decoding, this, sampling, random)
            for spans, tokens in zip(found, tokens_B, strict=True):
                spans.append((this.modality, tokens))
        return found

    @torch.no_grad()
    def continue_freely(
        self, prompt: Sequence[Span], choices: Sequence[Wanted], most: int, sampling: Sampling = Sampling()
    ) -> list[Span]:
        """One to `most` spans after a prompt, of which the model itself chooses the modalities, among one choice for each.

        It goes on until it ends the document; a text that follows a text in the prompt continues it.
        """
        wanted = {each.modality: each for each in choices}
        opens = {self.vocabulary.begin[modality]: modality for modality in wanted if modality != TEXT}
        eos = self.vocabulary.eos
        decoding, random = self._begin([prompt], [each for each in choices for _ in range(most)], sampling)
        found: list[Span] = []
        while len(found) < most:
            stop, border = -1, [*opens, *([eos] if found else [])]
            if TEXT in wanted:
                (text,), (stop,) = self._codes(decoding, wanted[TEXT], [*opens, eos], sampling, random, border)
                found += [(TEXT, text)] if len(text) else []
            if len(found) == most or stop == eos:
                break
            if stop < 0:
                (stop,) = self._draw(decoding, [(id_, id_ + 1) for id_ in (*opens, eos)], sampling, random)
            if stop == eos:
                break
            modality = opens[stop]
            found.append((modality, self._marked(decoding, wanted[modality], sampling, random)[0]))
        return found

    def _begin(
        self, prompts: Sequence[Sequence[Span]], wanted: Sequence[Wanted], sampling: Sampling
    ) -> tuple[Decoding, torch.Generator]:
        """Documents with room for what is wanted, and the source of randomness."""
        latent = self.vocabulary.latent_modality
        if any(each.modality == latent and each.shape is None for each in wanted):
            raise ValueError("latents need a shape")
        guided = any(each.modality != TEXT for each in wanted)
        room = sum(each.positions(len(self.vocabulary.base[each.modality])) + 3 for each in wanted) + 1
        decoding = Decoding(self.model, [*map(self._lay_out, prompts)], room, sampling.guidance if guided else 1.0)
        return decoding, torch.Generator().manual_seed(sampling.seed)

    def _lay_out(self, spans: Sequence[Span]) -> list[Stretch]:
        """`bos` and the spans, each but text between its markers."""
        vocabulary = self.vocabulary
        stretches = [self._marker(vocabulary.bos)]
        for modality, tokens in spans:
            tower = self._tower[modality]
            if tokens.latents is not None:
                body = self._patches(modality, tokens)
            else:
                books = len(vocabulary.base[modality])
                ids_FK = vocabulary.ids(modality, np.asarray(tokens.ids)).reshape(-1, books)
                ids, places, further = spread(ids_FK, self._rule[modality])
                body = Stretch(ids, tower, further_at=places, further=further)
            if modality == TEXT:
                stretches.append(body)
            else:
                markers = vocabulary.begin[modality], vocabulary.end[modality]
                stretches += [self._marker(markers[0]), body, self._marker(markers[1])]
        return stretches

    def _marker(self, id_: int) -> Stretch:
        return Stretch(np.array([id_]), self._tower[TEXT])

    def _patches(self, modality: str, tokens: Tokens) -> Stretch:
        ids = np.full(len(tokens), self.vocabulary.pad)
        return Stretch(ids, self._tower[modality], tokens.latents, _grid(tokens.shape))

    def _marked(self, decoding: Decoding, wanted: Wanted, sampling: Sampling, random: torch.Generator) -> list[Tokens]:
        """A span between its markers, of every document."""
        begin, end = self.vocabulary.begin[wanted.modality], self.vocabulary.end[wanted.modality]
        decoding.open(self._marker(begin))
        if wanted.modality == self.vocabulary.latent_modality:
            tokens_B = self._latents(decoding, wanted, sampling, random)
        else:
            tokens_B, _ = self._codes(decoding, wanted, [end], sampling, random)
        decoding.close(self._marker(end))
        return tokens_B

    def _codes(
        self,
        decoding: Decoding,
        wanted: Wanted,
        stops: Sequence[int],
        sampling: Sampling,
        random: torch.Generator,
        at_once: Sequence[int] = (),
    ) -> tuple[list[Tokens], list[int]]:
        """Codes for every document, and which of `stops` ended each, -1 = none; `at_once` may come before any code."""
        modality = wanted.modality
        every, extra = self._rule[modality].tolist()
        if extra:
            return self._delayed(decoding, wanted, stops, sampling, random)
        bases, sizes = self.vocabulary.base[modality], self.vocabulary.tokenizers[modality].codebooks
        if every > 1:  # the first codebook alone
            bases, sizes = bases[:1], sizes[:1]
        room = wanted.positions(len(bases))
        drawn_Bn = np.zeros((decoding.documents, room), np.int64)
        end_B, stop_B = np.full(decoding.documents, room), np.full(decoding.documents, -1)
        for i in range(room):
            k = i % len(bases)
            may_stop = () if wanted.shape is not None or k else stops if i else at_once
            ranges = [(bases[k], bases[k] + sizes[k]), *((id_, id_ + 1) for id_ in may_stop)]
            ids_B = drawn_Bn[:, i] = self._draw(decoding, ranges, sampling, random)
            stopped_B = (stop_B < 0) & np.isin(ids_B, stops)
            end_B[stopped_B], stop_B[stopped_B] = i, ids_B[stopped_B]
            if (stop_B >= 0).all():
                break
            tower = self._tower[modality]
            decoding.write(
                [Stretch(ids_B[b : b + 1], tower) if stop < 0 else None for b, stop in enumerate(stop_B.tolist())]
            )
        base_n = np.resize(bases, room)
        found = [(ids - base_n)[:end].astype(np.int32) for ids, end in zip(drawn_Bn, end_B, strict=True)]
        grid = (lambda n: (n,)) if modality == TEXT else (lambda n: (n // len(bases), len(bases)))
        return [Tokens(wanted.shape or grid(len(codes)), ids=codes) for codes in found], stop_B.tolist()

    def _delayed(
        self, decoding: Decoding, wanted: Wanted, stops: Sequence[int], sampling: Sampling, random: torch.Generator
    ) -> tuple[list[Tokens], list[int]]:
        """As `_codes`, where codebook k runs k frames late: once codebook 0 has stopped, the others come to their end."""
        modality, B = wanted.modality, decoding.documents
        bases, sizes = self.vocabulary.base[modality], self.vocabulary.tokenizers[modality].codebooks
        ranges = [(base, base + size) for base, size in zip(bases, sizes, strict=True)]
        K, most = len(bases), wanted.shape[0] if wanted.shape is not None else wanted.limit or 0
        ids_BFK = np.zeros((B, most, K), np.int64)
        frames_B, stop_B = np.full(B, most), np.full(B, -1)
        p = 0
        while (p < frames_B + K - 1).any() and most:
            going_B = (stop_B < 0) & (p < most)
            if going_B.any():
                may_stop = stops if wanted.shape is None and p else ()
                ids_B = self._draw(decoding, [ranges[0], *((id_, id_ + 1) for id_ in may_stop)], sampling, random)
                ended_B = going_B & np.isin(ids_B, stops)
                frames_B[ended_B], stop_B[ended_B] = p, ids_B[ended_B]
                going_B &= ~ended_B
                ids_BFK[going_B, min(p, most - 1), 0] = ids_B[going_B]
            for k in range(1, min(K - 1, p) + 1):
                late_B = p - k < frames_B
                if late_B.any():
                    ids_B = self._draw(decoding, [ranges[k]], sampling, random)
                    ids_BFK[late_B, p - k, k] = ids_B[late_B]
            decoding.write([_token(ids_BFK[b], p, int(frames_B[b]), self._tower[modality]) for b in range(B)])
            p += 1
        found = [ids_FK[:frames] for ids_FK, frames in zip(ids_BFK, frames_B.tolist(), strict=True)]
        codes = [self.vocabulary.codes(modality, ids_FK.reshape(-1)) for ids_FK in found]
        tokens_B = [Tokens(ids_FK.shape, ids=each) for ids_FK, each in zip(found, codes, strict=True)]
        return tokens_B, stop_B.tolist()

    def _latents(self, decoding: Decoding, wanted: Wanted, sampling: Sampling, random: torch.Generator) -> list[Tokens]:
        """Latents for every document, which are written to it clean: at diffusion step 0, as prompts are read."""
        assert wanted.shape is not None
        modality, tower, grid = wanted.modality, self._tower[wanted.modality], _grid(wanted.shape)
        dtype = torch.promote_types(self.model.embedding.weight.dtype, torch.float32)
        noise_BnL = torch.randn(
            decoding.documents, math.prod(wanted.shape), self.vocabulary.latent_dim, generator=random
        ).to(dtype)
        clean_BnL = self._process.sample(
            lambda noisy_BnL, time: decoding.predict(noisy_BnL, time, tower, grid).to("cpu", dtype),
            noise_BnL,
            sampling.steps,
            random,
            sampling.eta,
        )
        found = [Tokens(wanted.shape, latents=each_NL.numpy().astype(np.float16)) for each_NL in clean_BnL]
        decoding.write([self._patches(modality, tokens) for tokens in found])
        return found

    def _draw(
        self, decoding: Decoding, ranges: Sequence[tuple[int, int]], sampling: Sampling, random: torch.Generator
    ) -> np.ndarray:
        """One of the ids in these ranges for every document."""
        allowed_V = np.concatenate([np.arange(*each) for each in ranges])
        return allowed_V[_chosen(decoding.scores(ranges), sampling, random)]


def _token(ids_FK: np.ndarray, p: int, frames: int, tower: int) -> Stretch | None:
    """Token p of a delayed span of so many frames; None after its end."""
    ids = [ids_FK[p - k, k] for k in range(ids_FK.shape[1]) if 0 <= p - k < frames]
    return Stretch(np.array(ids[:1]), tower, further_at=[0] * (len(ids) - 1), further=ids[1:]) if ids else None


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows, and all that one of them holds."""
    return shape[0], math.prod(shape[1:])


def _chosen(scores_BV: Tensor, sampling: Sampling, random: torch.Generator) -> np.ndarray:
    """Index of one column per row."""
    scores_BV = scores_BV.float().cpu()
    if sampling.temperature == 0:
        return scores_BV.argmax(-1).numpy()
    chance_BV, index_BV = (scores_BV / sampling.temperature).softmax(-1).sort(-1, descending=True)
    chance_BV[chance_BV.cumsum(-1) - chance_BV >= sampling.top_p] = 0  # the likeliest always stays
    return index_BV.gather(-1, torch.multinomial(chance_BV, 1, generator=random)).squeeze(-1).numpy()
