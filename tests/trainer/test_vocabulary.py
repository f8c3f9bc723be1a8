import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.core.errors import UserError
from motet.tokenizers.contract import TokenizerSpec
from motet.trainer.vocabulary import Towers, Vocabulary


def spec(modality: str, books: list[int], digest: str = "h") -> TokenizerSpec:
    kind = "discrete" if books else "continuous"
    return TokenizerSpec(f"{modality}-tok", modality, kind, tuple(books), 0 if books else 8, None, "x/y", digest)


books = st.lists(st.integers(1, 50), min_size=1, max_size=4)
tokenizers = st.fixed_dictionaries(
    {"text": st.tuples(st.integers(1, 300)).map(list)},
    optional={"image": st.one_of(books, st.just([])), "speech": books, "weather": books},
).map(lambda d: {m: spec(m, sizes) for m, sizes in d.items()})


@given(tokenizers)
def test_ranges_are_disjoint_and_fill_the_vocabulary(specs):
    vocabulary = Vocabulary.of(specs)
    seen = {vocabulary.pad, vocabulary.bos, vocabulary.eos}
    for modality in vocabulary.modalities:
        if modality != "text":
            seen |= {vocabulary.begin[modality], vocabulary.end[modality]}
        for start, size in zip(vocabulary.base[modality], specs[modality].codebooks, strict=True):
            for i in range(start, start + size):
                assert i not in seen
                seen.add(i)
    assert sorted(seen) == list(range(vocabulary.size))


@given(tokenizers, st.data())
def test_codes_come_back_from_ids(specs, data):
    vocabulary = Vocabulary.of(specs)
    for modality, one in specs.items():
        if not one.codebooks:
            assert vocabulary.latent_modality == modality and vocabulary.latent_dim == 8
            continue
        frames = data.draw(st.integers(0, 5))
        codes = np.array([data.draw(st.integers(0, size - 1)) for _ in range(frames) for size in one.codebooks], int)
        ids = vocabulary.ids(modality, codes)
        for i, (id_, code) in enumerate(zip(ids, codes, strict=True)):
            assert id_ == vocabulary.base[modality][i % len(one.codebooks)] + code
        np.testing.assert_array_equal(vocabulary.codes(modality, ids), codes)


@given(tokenizers)
def test_json_round_trip(specs):
    vocabulary = Vocabulary.of(specs)
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


def test_text_leads_even_where_there_is_none():
    vocabulary = Vocabulary.of({"speech": spec("speech", [10]), "image": spec("image", [20])})
    assert vocabulary.modalities == ("text", "image", "speech")
    assert vocabulary.size == 3 + 4 + 30


def test_two_continuous_modalities_are_refused():
    with pytest.raises(UserError, match="image, speech: the trainer takes one continuous modality"):
        Vocabulary.of({"image": spec("image", []), "speech": spec("speech", [])})


def test_data_of_other_tokenizers_is_refused():
    vocabulary = Vocabulary.of({"text": spec("text", [9], "aaaa")})
    vocabulary.check({"text": spec("text", [9], "aaaa")}, "data")
    with pytest.raises(UserError, match="data: text was encoded by text-tok bbbb, the model learnt text-tok aaaa"):
        vocabulary.check({"text": spec("text", [9], "bbbb")}, "data")
    with pytest.raises(UserError, match="the data holds speech"):
        vocabulary.check({"speech": spec("speech", [9])}, "data")


def test_towers():
    vocabulary = Vocabulary.of({m: spec(m, [4]) for m in ("text", "image", "speech")})
    assert Towers.of(vocabulary, {}) == Towers(("text", "image", "speech"), (0, 1, 2))
    assert Towers.of(vocabulary, {"image": "media", "speech": "media"}) == Towers(("text", "media"), (0, 1, 1))
    assert Towers.of(vocabulary, dict.fromkeys(vocabulary.modalities, "all")) == Towers(("all",), (0, 0, 0))
    assert Towers.of(vocabulary, {"image": "text"}) == Towers(("text", "speech"), (0, 0, 1))
    with pytest.raises(UserError, match=r"model.towers: imgae: .* it has text, image, speech"):
        Towers.of(vocabulary, {"imgae": "media"})
