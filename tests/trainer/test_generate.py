"""Generation: the cache against whole forward passes, and what may be drawn."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.trainer.config import ModelConfig
from motet.trainer.generate import Generator, Sampling, _draw, _Prompt
from motet.trainer.model.cache import Context
from motet.trainer.model.mot import MoT
from motet.trainer.pieces import Piece, Rows
from motet.trainer.render import Noise, Renderer
from motet.trainer.vocabulary import Towers, Vocabulary

_spec = importlib.util.spec_from_file_location("reference_batch", Path(__file__).with_name("reference_batch.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


def spec(modality, codebooks, latent_dim=0):
    kind = "continuous" if latent_dim else "discrete"
    return TokenizerSpec("t", modality, kind, codebooks, latent_dim, None, "x/x", modality * 4)


DISCRETE = {"text": spec("text", (50,)), "image": spec("image", (16,)), "speech": spec("speech", (8, 4, 4))}
LATENT = DISCRETE | {"image": spec("image", (), 6)}


def generator_of(specs, norm="after"):
    vocabulary = Vocabulary.of(specs)
    towers = Towers.of(vocabulary, {})
    config = ModelConfig(dim=32, layers=2, heads=4, kv_heads=2, norm=norm)
    model = MoT(config, towers.names, vocabulary.size, vocabulary.latent_dim, seed=3).double()
    return Generator(model, vocabulary, towers, noise_steps=100)


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


def forward(generator, prompts):
    """Hidden states of every prompt's positions, by training's forward pass over one packed row."""
    vocabulary = generator.vocabulary
    laid = [_Prompt.of(p, "text", vocabulary, generator._tower) for p in prompts]
    documents = reference.documents_of(vocabulary, prompts)
    row = tuple(Piece(d, 0, length - 1, False, 0) for d, length in enumerate(documents.length_D.tolist()))  # no eos
    renderer = Renderer(vocabulary, Towers.of(vocabulary, {}), sum(p.end for p in row), Noise(0, 1))
    batch = renderer.batch(Rows.of(documents, [row]))
    hidden_TD = torch.empty(renderer.sequence, 32, dtype=torch.float64)
    with torch.no_grad():
        hidden_TD[batch.order_T] = generator.model(batch)
    return laid, hidden_TD.split([len(p.ids) for p in laid])


@pytest.mark.parametrize("norm", ["after", "before"])
def test_cached_steps_equal_whole_forward_passes(norm):
    """Documents of unequal lengths, fed in two pieces and then one position at a time."""
    generator = generator_of(DISCRETE, norm)
    prompts = [[words(4, 5, 6), codes(2, 3), speech(2)], [speech(5), words(9, 8, 7, 6, 5, 4, 3)]]
    laid, expected = forward(generator, prompts)
    first, n = 5, min(len(p.ids) for p in laid)
    context = Context(generator.model, 2, n)
    ids, tower = (np.stack([getattr(p, name)[:n] for p in laid]) for name in ("ids", "tower"))
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
    laid, expected = forward(generator, prompts)
    context, hidden_BD = generator._begin(laid, 1)
    for row in range(3):
        torch.testing.assert_close(hidden_BD[row], expected[row][-1], rtol=0, atol=1e-12)
    more = np.array([[7], [8], [9]])
    found = context.extend(more, np.zeros((3, 1), np.int64))
    longer = [
        [*prompt, words(id_ - generator.vocabulary.base["text"][0])]
        for prompt, (id_,) in zip(prompts, more, strict=True)
    ]
    for row, states in enumerate(forward(generator, longer)[1]):
        torch.testing.assert_close(found[row, 0], states[-1], rtol=0, atol=1e-12)


def test_likeliest_text_equals_choosing_from_whole_forward_passes():
    generator = generator_of(DISCRETE)
    prompts = [[words(3, 1)], [codes(2, 2), words(7, 7, 7)]]
    found = generator.continue_(prompts, "text", limit=6, sampling=Sampling(temperature=0))
    base, eos = generator.vocabulary.base["text"][0], generator.vocabulary.eos
    for prompt, tokens in zip(prompts, found, strict=True):
        drawn = []
        while len(drawn) < 6:
            hidden = forward(generator, [[*prompt, words(*drawn)]])[1][0][-1]
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
        done = []
        found = generator.continue_(
            [[words(1)], [words(2, 3)], []],
            "speech",
            limit=12,
            sampling=Sampling(seed=seed, temperature=1.5),
            progress=lambda i, n, done=done: done.append((i, n)),
        )
        for tokens in found:
            assert tokens.shape == (len(tokens.ids) // 3, 3) and len(tokens.ids) % 3 == 0
            assert (tokens.ids.reshape(-1, 3) < (8, 4, 4)).all() and (tokens.ids >= 0).all()
            frames.append(tokens.shape[0])
        assert done[-1][1] == 36 and done[-1][0] <= 36
    assert min(frames) >= 1 and max(frames) <= 12
    assert len(set(frames)) > 2, "some end by themselves"


def test_latents_are_sampled_and_depend_on_prompt_and_seed():
    generator = generator_of(LATENT)
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
    counts = np.bincount(_draw(scores, Sampling(top_p=0.7), random), minlength=4)
    assert counts[2:].tolist() == [0, 0] and counts[0] / 4000 == pytest.approx(5 / 8, abs=0.03)
    assert set(_draw(scores, Sampling(top_p=0.01), random)) == {0}
    assert np.bincount(_draw(scores, Sampling(), random), minlength=4).min() > 100


@pytest.mark.parametrize("arguments", [{}, {"shape": (2, 2), "limit": 3}])
def test_either_shape_or_limit(arguments):
    with pytest.raises(ValueError, match="either"):
        generator_of(DISCRETE).continue_([[]], "image", **arguments)
