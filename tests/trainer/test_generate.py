"""Generation: the cache against whole forward passes, and what may be drawn."""

import dataclasses
import itertools

import numpy as np
import pytest
import reference_batch as reference
import torch

from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.trainer.config import ModelConfig
from motet.trainer.data.collate import Collate, Noise
from motet.trainer.data.packed import Piece, Rows
from motet.trainer.generate.decoding import Decoding
from motet.trainer.generate.generator import Generator, Sampling, Wanted, _chosen
from motet.trainer.generate.kv_cache import KVCache
from motet.trainer.model.mot import MoT
from motet.trainer.vocabulary import Towers, Vocabulary


def spec(modality, codebooks, latent_dim=0):
    kind = "continuous" if latent_dim else "discrete"
    return TokenizerSpec("t", modality, kind, codebooks, latent_dim, None, "x/x", modality * 4)


DISCRETE = {"text": spec("text", (50,)), "image": spec("image", (16,)), "speech": spec("speech", (8, 4, 4))}
LATENT = DISCRETE | {"image": spec("image", (), 6)}


def generator_of(specs, norm="after", diffusion="ddpm", unet=None):
    vocabulary = Vocabulary.of(specs)
    towers = Towers.of(vocabulary, {})
    config = ModelConfig(dim=32, layers=2, heads=4, kv_heads=2, norm=norm, unet=unet)
    model = MoT(config, towers.names, vocabulary.size, vocabulary.latent_dim, seed=3).double()
    return Generator(model, vocabulary, towers, 100, diffusion)


def words(*ids):
    return "text", Tokens((len(ids),), ids=np.array(ids, np.int32))


def codes(rows, columns, seed=0):
    return "image", Tokens((rows, columns), ids=np.random.default_rng(seed).integers(0, 16, rows * columns))


def latents(rows, columns, seed=0):
    values = np.random.default_rng(seed).standard_normal((rows * columns, 6)).astype(np.float16)
    return "image", Tokens((rows, columns), latents=values)


def speech(frames, seed=0):
    random = np.random.default_rng(seed)
    return "speech", Tokens(
        (frames, 3), ids=np.stack([random.integers(0, n, frames) for n in (8, 4, 4)], 1).reshape(-1)
    )


def batch_of(generator, prompts, begin=0, end=-1):
    """One packed row of the prompts as training renders them, each from token `begin` to `end`: without its `eos`."""
    vocabulary = generator.vocabulary
    documents = reference.documents_of(vocabulary, prompts)
    row = tuple(Piece(d, begin, length + end, False, 0) for d, length in enumerate(documents.length_D.tolist()))
    width = sum(piece.end - piece.begin for piece in row)
    renderer = Collate(vocabulary, Towers.of(vocabulary, {}), width, Noise(0, 1))
    return renderer.batch(Rows.of(documents, [row])), [piece.end - piece.begin for piece in row]


def forward(generator, prompts, begin=0, end=-1):
    """Hidden states of every prompt's positions, by training's forward pass over one packed row."""
    batch, lengths = batch_of(generator, prompts, begin, end)
    hidden_TD = torch.empty(batch.sequence, 32, dtype=torch.float64)
    with torch.no_grad():
        hidden_TD[batch.place_T] = generator.model(batch)
    return hidden_TD.split(lengths)


@pytest.mark.parametrize("norm", ["after", "before"])
def test_cached_steps_equal_whole_forward_passes(norm):
    """Documents of unequal lengths, fed in two pieces and then one position at a time."""
    generator = generator_of(DISCRETE, norm)
    prompts = [[words(4, 5, 6), codes(2, 3), speech(2)], [speech(5), words(9, 8, 7, 6, 5, 4, 3)]]
    expected = forward(generator, prompts)
    first, n = 5, min(len(states) for states in expected)
    context = KVCache(generator.model, 2, n)
    laid = [generator._lay_out(prompt) for prompt in prompts]
    ids = np.stack([np.concatenate([s.ids for s in stretches])[:n] for stretches in laid])
    tower = np.stack([np.concatenate([[s.tower] * len(s.ids) for s in stretches])[:n] for stretches in laid])
    pieces = [context.extend(ids[:, :first], tower[:, :first])]
    pieces += [context.extend(ids[:, i : i + 1], tower[:, i : i + 1]) for i in range(first, n)]
    found = torch.cat(pieces, 1)
    for row in range(2):
        torch.testing.assert_close(found[row], expected[row][:n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("specs", [DISCRETE, LATENT])
def test_prompts_of_unequal_length_are_read_as_in_training(specs):
    generator = generator_of(specs)
    picture = latents if specs is LATENT else codes
    prompts = [[picture(2, 3), words(4, 5)], [words(1)], [words(1, 2, 3), picture(1, 2), picture(3, 3, 1), speech(2)]]
    draft = Decoding(generator.model, [generator._lay_out(prompt) for prompt in prompts], 1)
    for row, states in enumerate(forward(generator, prompts)):
        torch.testing.assert_close(draft._read()[row], states[-1], rtol=0, atol=1e-12)
    more = [7, 8, 9]
    draft.write([generator._lay_out([words(id_)])[1] for id_ in more])
    longer = [[*prompt, words(id_)] for prompt, id_ in zip(prompts, more, strict=True)]
    for row, states in enumerate(forward(generator, longer)):
        torch.testing.assert_close(draft._read()[row], states[-1], rtol=0, atol=1e-12)


def test_likeliest_text_equals_choosing_from_whole_forward_passes():
    generator = generator_of(DISCRETE)
    prompts = [[words(3, 1)], [codes(2, 2), words(7, 7, 7)]]
    found = generator.continue_(prompts, "text", limit=6, sampling=Sampling(temperature=0))
    base, eos = generator.vocabulary.base["text"][0], generator.vocabulary.eos
    for prompt, tokens in zip(prompts, found, strict=True):
        drawn = []
        while len(drawn) < 6:
            hidden = forward(generator, [[*prompt, words(*drawn)]])[0][-1]
            scores = generator.model.logits(hidden).detach()
            allowed = [*range(base, base + 50), *([eos] if drawn else [])]
            best = allowed[int(scores[allowed].argmax())]
            if best == eos:
                break
            drawn.append(best - base)
        assert tokens.ids.tolist() == drawn and tokens.shape == (len(drawn),)


def test_pictures_have_their_shape_and_codes_in_range():
    generator = generator_of(DISCRETE)
    found = generator.continue_([[words(1)], [words(2, 3)]], "image", shape=(3, 5))
    for tokens in found:
        assert tokens.shape == (3, 5) and tokens.ids.shape == (15,) and tokens.ids.dtype == np.int32
        assert tokens.ids.min() >= 0 and tokens.ids.max() < 16


def test_speech_cycles_through_its_codebooks_and_ends_on_a_whole_frame():
    generator = generator_of(DISCRETE)
    frames = []
    for seed in range(6):
        sampling = Sampling(seed=seed, temperature=1.5)
        found = generator.continue_([[words(1)], [words(2, 3)], []], "speech", limit=12, sampling=sampling)
        for tokens in found:
            assert tokens.shape == (len(tokens.ids) // 3, 3) and len(tokens.ids) % 3 == 0
            assert (tokens.ids.reshape(-1, 3) < (8, 4, 4)).all() and (tokens.ids >= 0).all()
            frames.append(tokens.shape[0])
    assert min(frames) >= 1 and max(frames) <= 12
    assert len(set(frames)) > 2, "some end by themselves"


@pytest.mark.parametrize("diffusion", ["ddpm", "flow"])
def test_latents_are_sampled_and_depend_on_prompt_and_seed(diffusion):
    generator = generator_of(LATENT, diffusion=diffusion)
    sampling = Sampling(steps=4)
    prompts = [[words(1)], [words(2, 3, 4)]]
    found = generator.continue_(prompts, "image", shape=(2, 2), sampling=sampling)
    again = generator.continue_(prompts, "image", shape=(2, 2), sampling=sampling)
    other = generator.continue_([[words(5)], prompts[1]], "image", shape=(2, 2), sampling=sampling)
    for tokens, same in zip(found, again, strict=True):
        assert tokens.shape == (2, 2) and tokens.latents.shape == (4, 6) and tokens.latents.dtype == np.float16
        assert (tokens.latents == same.latents).all()
    assert (found[0].latents != other[0].latents).any() and (found[1].latents == other[1].latents).all()


def test_a_batch_gives_what_each_prompt_gives_alone():
    generator = generator_of(DISCRETE)
    prompts = [[words(1)], [words(2, 3), codes(2, 2)], []]
    together = generator.continue_(prompts, "text", limit=8, sampling=Sampling(temperature=0))
    for prompt, tokens in zip(prompts, together, strict=True):
        (alone,) = generator.continue_([prompt], "text", limit=8, sampling=Sampling(temperature=0))
        assert alone.ids.tolist() == tokens.ids.tolist()


def test_top_p_keeps_the_likeliest():
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, -1)
    random = torch.Generator().manual_seed(0)
    counts = np.bincount(_chosen(scores, Sampling(top_p=0.7), random), minlength=4)
    assert counts[2:].tolist() == [0, 0] and counts[0] / 4000 == pytest.approx(5 / 8, abs=0.03)
    assert set(_chosen(scores, Sampling(top_p=0.01), random)) == {0}
    assert np.bincount(_chosen(scores, Sampling(), random), minlength=4).min() > 100


@pytest.mark.parametrize("arguments", [{}, {"shape": (2, 2), "limit": 3}])
def test_either_shape_or_limit(arguments):
    with pytest.raises(ValueError, match="either"):
        generator_of(DISCRETE).continue_([[]], "image", **arguments)


def test_latents_need_a_shape_and_texts_something_between_them():
    with pytest.raises(ValueError, match="latents need a shape"):
        generator_of(LATENT).continue_([[]], "image", limit=4)
    with pytest.raises(ValueError, match="two texts in a row"):
        generator_of(LATENT).interleave([[]], [Wanted("text", limit=2), Wanted("text", limit=3)])


PLAN = [Wanted("text", limit=5), Wanted("image", shape=(2, 3)), Wanted("speech", limit=3), Wanted("text", limit=4)]


def likeliest(generator, before, wanted, after, guidance=1.0):
    """A span of codes, id by id, each from a whole forward pass over all before it."""
    vocabulary, modality = generator.vocabulary, wanted.modality
    books, sizes = vocabulary.base[modality], vocabulary.tokenizers[modality].codebooks
    marked = modality != "text"
    stop = vocabulary.end[modality] if marked else vocabulary.begin.get(after, vocabulary.eos)
    drawn = []
    while len(drawn) < wanted.positions(len(books)):
        span = modality, Tokens((len(drawn),), ids=np.array(drawn, np.int32))
        scores = generator.model.logits(forward(generator, [[*before, span]], end=-1 - marked)[0][-1])
        if guidance != 1 and marked:
            alone = generator.model.logits(forward(generator, [[span]], begin=1, end=-1 - marked)[0][-1])
            scores = guidance * scores + (1 - guidance) * alone
        k = len(drawn) % len(books)
        allowed = [*range(books[k], books[k] + sizes[k])]
        allowed += [stop] if drawn and k == 0 and wanted.shape is None else []
        best = allowed[int(scores.detach()[allowed].argmax())]
        if best == stop:
            break
        drawn.append(best - books[k])
    return drawn


def denoised(generator, before, shape, noise_NL, steps, guidance=1.0):
    """Latents, each denoising call a whole forward pass over all before them."""
    n = len(noise_NL)
    empty = "image", Tokens(shape, latents=np.zeros((n, 6), np.float16))

    def said(spans, begin, noisy_NL, time):
        batch, _ = batch_of(generator, [spans], begin, end=-2)
        batch = dataclasses.replace(
            batch,
            latents_ND=torch.cat([batch.latents_ND[:-n].double(), noisy_NL]),
            time_N=torch.cat([batch.time_N[:-n], torch.full((n,), time)]),
        )
        with torch.no_grad():
            patches = generator.model.patches
            patch_ND, passage = patches.into(batch.latents_ND, batch.time_N, batch.pictures)
            return patches.out(generator.model(batch, patch_ND)[batch.latent_row_N], passage)[-n:]

    def predict(noisy_NL, time):
        own, alone = said([*before, empty], 0, noisy_NL, time), said([empty], 1, noisy_NL, time)
        return guidance * own + (1 - guidance) * alone

    return generator._process.sample(predict, noise_NL, steps)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize(
    ("specs", "diffusion", "unet"),
    [
        (DISCRETE, "ddpm", None),
        (LATENT, "ddpm", None),
        (LATENT, "flow", None),
        (LATENT, "ddpm", {"patch": 1, "channels": [4], "blocks": 2}),
    ],
)
def test_interleaved_spans_equal_whole_forward_passes(specs, diffusion, unet, guidance):
    """Documents of unequal lengths: each id is the likeliest given all before it, latents are what the noise becomes."""
    generator = generator_of(specs, diffusion=diffusion, unet=unet)
    picture = latents if specs is LATENT else codes
    prompts = [[words(4, 5, 6, 7, 8)], [picture(1, 2), speech(2)], []]
    found = generator.interleave(prompts, PLAN, Sampling(temperature=0, steps=3, seed=9, guidance=guidance))
    noise_BNL = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(9)).double()
    for prompt, spans, noise_NL in zip(prompts, found, noise_BNL, strict=True):
        assert [modality for modality, _ in spans] == [wanted.modality for wanted in PLAN]
        for i, (wanted, (_, tokens)) in enumerate(zip(PLAN, spans, strict=True)):
            before, after = [*prompt, *spans[:i]], PLAN[i + 1].modality if i < 3 else ""
            if tokens.latents is None:
                assert tokens.ids.tolist() == likeliest(generator, before, wanted, after, guidance), i
            else:
                expected = denoised(generator, before, wanted.shape, noise_NL, 3, guidance)
                np.testing.assert_allclose(tokens.latents, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert len({len(spans[0][1]) for spans in found} | {len(spans[2][1]) for spans in found}) > 1


@pytest.mark.parametrize("guidance", [0.0, 1 + 1e-13])
@pytest.mark.parametrize("specs", [DISCRETE, LATENT])
def test_guidance_of_nought_hears_no_prompt_and_of_one_nothing_else(specs, guidance):
    generator = generator_of(specs)
    prompts, plan = [[words(1)], [words(2, 3, 4), speech(3)]], [Wanted("image", shape=(2, 2))]

    def pictures(guidance):
        sampling = Sampling(temperature=0, steps=3, guidance=guidance, eta=0.0)
        found = [spans[0][1] for spans in generator.interleave(prompts, plan, sampling)]
        return [tokens.ids if tokens.latents is None else tokens.latents.astype(float) for tokens in found]

    plain, guided = pictures(1.0), pictures(guidance)
    if guidance:
        np.testing.assert_allclose(guided, plain, rtol=1e-3)
    elif specs is DISCRETE:
        alone = likeliest(generator, [], plan[0], "", 0.0)
        assert [found.tolist() for found in guided] == [alone, alone]
    assert any((a != b).any() for a, b in zip(plain, pictures(4.0), strict=True))


def test_guidance_between_equals_changes_nothing():
    """A document that begins with its opening marker has a twin just like it."""
    generator = generator_of(LATENT)
    marker = generator._marker(generator.vocabulary.begin["image"])
    plain, guided = (Decoding(generator.model, [[]], 8, guidance) for guidance in (1.0, 7.0))
    noisy = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    for draft in (plain, guided):
        draft.open(marker)
    for ask in (
        lambda d: d.scores([(0, 9), (20, 30)]),
        lambda d: d.predict(noisy, 50, generator._tower["image"], (2, 2)),
    ):
        with torch.no_grad():
            torch.testing.assert_close(ask(guided), ask(plain), rtol=0, atol=1e-12)


def freely(generator, prompt, choices, most):
    """What the likeliest choice at every border gives, by whole forward passes."""
    vocabulary, wanted = generator.vocabulary, {each.modality: each for each in choices}
    opens = {vocabulary.begin[m]: m for m in wanted if m != "text"}
    base, spans, text = vocabulary.base["text"][0], [], []
    while True:
        told = [words(*text)] if text else []
        scores = generator.model.logits(forward(generator, [[*prompt, *spans, *told]])[0][-1]).detach()
        allowed = [*range(base, base + 50)] if len(text) < wanted["text"].limit else []
        allowed += [*opens, *([vocabulary.eos] if spans or text else [])]
        best = allowed[int(scores[allowed].argmax())]
        if best >= base and best not in opens and best != vocabulary.eos:
            text.append(best - base)
            continue
        spans, text = [*spans, *told], []
        if len(spans) == most or best == vocabulary.eos:
            return spans
        modality = opens[best]
        drawn = likeliest(generator, [*prompt, *spans], wanted[modality], "")
        spans.append((modality, Tokens((len(drawn),), ids=np.array(drawn, np.int32))))
        if len(spans) == most:
            return spans


CHOICES = [Wanted("text", limit=4), Wanted("image", shape=(1, 2)), Wanted("speech", limit=2)]


def test_free_choice_takes_the_likeliest_at_every_border():
    generator, seen = generator_of(DISCRETE), set()
    for prompt in ([], [words(4, 5)], [codes(2, 2)], [speech(2), words(1)], [codes(2, 2), speech(1)]):
        found = generator.continue_freely(prompt, CHOICES, 4, Sampling(temperature=0))
        expected = freely(generator, prompt, CHOICES, 4)
        plain = [(m, tokens.ids.tolist()) for m, tokens in found]
        assert plain == [(m, tokens.ids.tolist()) for m, tokens in expected]
        seen |= {m for m, _ in found}
    assert len(seen) > 1


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("specs", [DISCRETE, LATENT])
def test_free_choice_keeps_to_its_limits(specs, guidance):
    generator, counts, seen = generator_of(specs), set(), set()
    for seed in range(12):
        sampling = Sampling(seed=seed, steps=2, guidance=guidance)
        found = generator.continue_freely([words(1)], CHOICES, 5, sampling)
        kinds = [modality for modality, _ in found]
        counts.add(len(kinds))
        seen |= set(kinds)
        assert 1 <= len(kinds) <= 5
        assert not any(a == b == "text" for a, b in itertools.pairwise(kinds))
        for modality, tokens in found:
            assert {"text": len(tokens) <= 4, "image": tokens.shape == (1, 2), "speech": len(tokens) in (3, 6)}[
                modality
            ]
    assert len(counts) > 1 and seen == {"text", "image", "speech"}
