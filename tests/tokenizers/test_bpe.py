"""BPE is lossless on any text, gives the ids of `tokenizers` whichever library encodes, and treats text as text."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HuggingFace
from tokenizers.trainers import BpeTrainer

from motet.core.errors import UserError
from motet.tokenizers.contract import BadSample, Tokens
from motet.tokenizers.text.bpe import BPE
from motet.tokenizers.text.ranks import PATTERNS, UNUSED, Ranks, _last_parts, ranks_of

ROOT = Path(__file__).resolve().parents[2]


def texts_of(file: str) -> list[str]:
    return [json.loads(line)["text"] for line in (ROOT / "examples/corpus" / file).read_text("utf-8").splitlines()]


SPEECHES = texts_of("text/speeches.jsonl")
REAL = [
    *(speech[start : start + 3000] for speech in SPEECHES for start in range(0, len(speech), 15_000)),
    *(path.read_text("utf-8") for path in sorted(ROOT.glob("*/src/motet/*/*.py"))),  # code is text of another kind
    *texts_of("images/emoji/metadata.jsonl"),
]
HOSTILE = [
    "<|endoftext|> <|im_start|> <s>\n</s><unk>[PAD]<|begin_of_text|>",
    "\0\x01\x7f\x85\u2028\u2029\ufeff\ufffe\U0010ffff",
    "e\u0301 é \u1e9b\u0323 ﬁ Ǆ ſ 'ſ don'T DON'T 'Re İ",
    "\u200d\u200b\u202e abc \U0001f469\u200d\U0001f469\u200d\U0001f467\ufe0f",
    "a" * 70_000 + " " * 30_000 + "b" + "\n" * 30_000,
    " " * 200_000 + "x" + "\t\r\n" * 60_000,  # tiktoken alone aborts the process's thread on this
    "0123456789" * 300 + "१२३ ٣٤٥ ½ Ⅷ",
]


def random_texts(count: int) -> list[str]:
    """Random code points from all planes, spaces and apostrophes among them."""
    generator = random.Random(0)

    def character() -> str:
        low, high = generator.choice([(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x110000), (0x20, 0x28)])
        return chr(generator.randrange(low, high))

    return ["".join(character() for _ in range(generator.randrange(1, 300))) for _ in range(count)]


TEXTS = REAL + HOSTILE + random_texts(200)
SOME = TEXTS[::8] + HOSTILE[:4]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bpe")
    measured = BPE.fit([text.encode() for text in SPEECHES] + [b"\xff\xfe"], out, {"vocabulary": 4096})
    assert measured["vocabulary"] == 4096 and measured["skipped"] == 1 and measured["bytes_per_token"] > 4
    return out


def build(path: Path, pattern: str | None = None) -> BPE:
    return BPE(BPE.Settings(path=path, pattern=pattern))


def trained(path: Path, pattern: str, *, normalizer=None, added=()) -> Path:
    """A tokenizer.json of another make: cut by `pattern`, with a normalizer, added tokens."""
    made = HuggingFace(models.BPE())
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS.get(pattern, pattern)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(SPEECHES[:40], trainer)
    made.add_special_tokens(["<|endoftext|>", "<s>"])
    made.add_tokens(list(added))
    path.mkdir(exist_ok=True)
    made.enable_truncation(16)  # must not lose text
    made.save(str(path / "tokenizer.json"))
    return path


def assert_equal_to_huggingface(path: Path, engine: str, texts: list[str] = SOME) -> BPE:
    tokenizer = build(path)
    assert tokenizer.engine == engine, tokenizer.reason
    assert bool(tokenizer.reason) == (engine == "tokenizers")
    model = HuggingFace.from_file(str(path / "tokenizer.json"))
    model.no_truncation()
    model.encode_special_tokens = True
    for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokens.ids.tolist() == model.encode(text, add_special_tokens=False).ids, text[:80]
    return tokenizer


def test_fitted_ids_equal_those_of_huggingface_on_hundreds_of_real_and_hostile_documents(fitted):
    assert len(REAL) > 500
    tokenizer = assert_equal_to_huggingface(fitted, "tiktoken", TEXTS)
    tokens = tokenizer.encode(TEXTS)
    assert tokenizer.decode(tokens) == TEXTS
    assert all(t.ids.dtype == np.int32 and t.shape == (len(t.ids),) for t in tokens)
    assert max(t.ids.max() for t in tokens if len(t)) < tokenizer.spec.codebooks[0] == 4096


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "qwen2", "o200k"])
def test_the_known_ways_of_cutting_text_go_through_tiktoken(tmp_path, pattern):
    tokenizer = assert_equal_to_huggingface(trained(tmp_path, pattern), "tiktoken")
    assert tokenizer.decode(tokenizer.encode(TEXTS)) == TEXTS


def test_an_unknown_way_of_cutting_text_goes_through_huggingface(tmp_path):
    tokenizer = assert_equal_to_huggingface(trained(tmp_path, r"\s+|\w{1,7}|[^\s\w]+"), "tokenizers")
    assert tokenizer.decode(tokenizer.encode(TEXTS)) == TEXTS


def test_normalized_text_keeps_its_ids(tmp_path):
    assert_equal_to_huggingface(trained(tmp_path / "nfc", "qwen2", normalizer=normalizers.NFC()), "tiktoken")
    assert_equal_to_huggingface(
        trained(tmp_path / "lower", "gpt2", normalizer=normalizers.Lowercase()), "tokenizers", TEXTS[::5]
    )


def test_added_tokens_that_are_not_special_are_found_as_huggingface_finds_them(tmp_path):
    added = ["<think>", "<thinking>", "</think>", AddedToken("~~", lstrip=True), "ou"]
    path = trained(tmp_path, "gpt2", added=added)
    texts = ["a <think> b </think>~~", "x  ~~ y", "<thinking>", "<|endoftext|><think>", *TEXTS[::10]]
    assert_equal_to_huggingface(path, "tiktoken", texts)


def test_the_names_of_special_tokens_in_text_are_text(tmp_path, fitted):
    path = trained(tmp_path, "gpt2")
    special = json.loads((path / "tokenizer.json").read_text())["added_tokens"]
    tokenizer = build(path)
    for token in special:
        (tokens,) = tokenizer.encode([f"a{token['content']}b"])
        assert token["id"] not in tokens.ids
        assert tokenizer.decode([tokens]) == [f"a{token['content']}b"]
        assert tokenizer.decode([Tokens((1,), np.array([token["id"]], np.int32))]) == [token["content"]]


def test_a_vocabulary_without_proof_goes_through_huggingface(fitted, tmp_path):
    content = json.loads((fitted / "tokenizer.json").read_text())

    def reason(change) -> str:
        changed = json.loads(json.dumps(content))
        change(changed["model"])
        found = ranks_of(changed)
        assert isinstance(found, str)
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
        assert_equal_to_huggingface(tmp_path, "tokenizers", TEXTS[::20])
        return found

    last_first = [content["model"]["merges"][-1], *content["model"]["merges"][:-1]]
    assert "is not reached" in reason(lambda model: model.update(merges=last_first))
    assert "other parts" in reason(lambda model: _replace_merge(model, "Ġthe", ["Ġ", "the"]))
    assert "end_of_word_suffix" in reason(lambda model: model.update(end_of_word_suffix="Ġ"))


def _replace_merge(model: dict, token: str, parts: list[str]) -> None:
    """Let `token` be made by other parts than training found."""
    merges = [tuple(merge) for merge in model["merges"]]
    place = next(i for i, merge in enumerate(merges) if "".join(merge) == token)
    assert merges[place] != tuple(parts)
    model["merges"][place] = parts


def test_short_cuts_to_whole_tokens_are_proven_too(fitted, tmp_path):
    """As in Llama 3: every split of a token is a merge, and a piece that is a token is taken as it is."""
    content = json.loads((fitted / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["merges"] = [
        [token[:cut], token[cut:]]
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    content["model"]["ignore_merges"] = True
    vocabulary["Ġmotetmotet"] = len(vocabulary)  # a token that no merge makes
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = assert_equal_to_huggingface(tmp_path, "tiktoken", [*SOME, "a motetmotet and motetmotets"])
    assert tokenizer.spec.codebooks == (4097,)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_proof_holds_for_any_list_of_merges(data):
    """Random merges over two letters, where ties and overlaps abound: proven equal means equal, on random words."""
    tokens, merges = ["a", "b"], []
    for _ in range(data.draw(st.integers(1, 8))):
        left, right = data.draw(st.sampled_from(tokens)), data.draw(st.sampled_from(tokens))
        if left + right not in tokens and len(left + right) <= 8:
            merges.append([left, right])
            tokens.append(left + right)
    base = HuggingFace(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    content = json.loads(base.to_str())
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = data.draw(st.permutations(["".join(merge) for merge in merges]))  # ids need not rise with the merges
    vocabulary = {token: i for i, token in enumerate(alphabet + made)}
    content["model"] |= {"vocab": vocabulary, "merges": merges}
    ranks = ranks_of(content)
    assume(isinstance(ranks, Ranks))
    model, encode = HuggingFace.from_str(json.dumps(content)), ranks.encoder()
    for word in data.draw(st.lists(st.text("ab", min_size=1, max_size=24), min_size=10, max_size=10)):
        assert encode(word).tolist() == model.encode(word).ids, (merges, word)


def test_what_tiktoken_takes_for_a_special_token_is_text(fitted):
    texts = [UNUSED, f"a{UNUSED}{UNUSED} b\0", *(UNUSED[i:] + UNUSED[:i] for i in range(len(UNUSED)))]
    assert_equal_to_huggingface(fitted, "tiktoken", texts)


def test_merging_alone_takes_the_leftmost_of_equals():
    rank = {"a": 0, "b": 1, "aa": 2, "aab": 3}
    assert _last_parts("aaa", rank) == ("aa", "a")
    assert _last_parts("aaab", {**rank, "aaab": 4}) == ("aa", "a", "b")
    assert _last_parts("ab", rank) == ("a", "b")


def test_fitting_twice_gives_the_same_hash_and_other_text_another(fitted, tmp_path):
    data = [text.encode() for text in SPEECHES]
    BPE.fit(data, tmp_path / "again", {"vocabulary": 4096})
    BPE.fit(data[:9], tmp_path / "other", {"vocabulary": 4096})
    assert build(tmp_path / "again").spec == build(fitted).spec == build(fitted / "tokenizer.json").spec
    assert build(tmp_path / "other").spec.hash != build(fitted).spec.hash


def test_every_byte_has_a_token_however_small_the_vocabulary(tmp_path):
    BPE.fit([b"abc"], tmp_path, {"vocabulary": 256})
    tokenizer = build(tmp_path)
    assert tokenizer.spec.codebooks == (256,)
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 37)]))
    assert tokenizer.decode(tokenizer.encode([everything])) == [everything]


def test_tiktoken_ranks_are_read(fitted, tmp_path):
    tokenizer = build(fitted)
    ranks = ranks_of(json.loads((fitted / "tokenizer.json").read_text()))
    rows = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.ranks.items()]
    file = tmp_path / "speeches.tiktoken"
    file.write_text("".join(rows))
    loaded = build(file, "gpt2")
    texts = [text for text in TEXTS if len(text) < 150_000]
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(loaded.encode(texts), tokenizer.encode(texts), strict=True))
    assert loaded.decode(loaded.encode(texts)) == texts
    assert build(file, PATTERNS["gpt2"]).spec.hash == loaded.spec.hash != build(file, "cl100k").spec.hash
    with pytest.raises(BadSample, match="whitespace-run"):
        loaded.load((" " * 200_000).encode())
    with pytest.raises(UserError, match=r"pattern: .* say how text is cut: gpt2"):
        build(file)
    file.write_text("".join(rows[3:]))
    with pytest.raises(UserError, match="lacks 3 of the 256 bytes"):
        build(file, "gpt2")


def test_the_bytes_of_the_ids_are_the_bytes_of_the_text(fitted):
    tokenizer = build(fitted)
    lengths = tokenizer.byte_lengths()
    for text in [*SOME, *random_texts(200)]:
        (tokens,) = tokenizer.encode([text])
        assert lengths[tokens.ids].sum() == len(text.encode())


def test_only_a_byte_level_vocabulary_has_bytes_of_ids(fitted, tmp_path):
    content = json.loads((fitted / "tokenizer.json").read_text())
    content["decoder"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert build(tmp_path).byte_lengths() is None


def test_anything_a_model_writes_decodes(fitted):
    tokenizer = build(fitted)
    ids = np.random.default_rng(0).integers(0, 4096, 10_000).astype(np.int32)
    (text,) = tokenizer.decode([Tokens((10_000,), ids)])
    assert "\ufffd" in text
    assert tokenizer.dump(text).decode() == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; fit one with 'motet tokenizer fit bpe'"),
        (b"{}", "is not a tokenizer.json"),
        (b"{", "is not a tokenizer.json"),
        (b"\x89PNG\r\n\x1a\n", "neither a tokenizer.json nor a file of tiktoken ranks"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_an_error_that_says_so(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        build(tmp_path, "gpt2")


def test_wrong_options_of_fit_are_named(tmp_path):
    with pytest.raises(UserError, match=r"fit bpe: vocabulary: .*256"):
        BPE.fit([b"a"], tmp_path, {"vocabulary": 100})
    with pytest.raises(UserError, match="fit bpe: vocab: unknown key; did you mean 'vocabulary'"):
        BPE.fit([b"a"], tmp_path, {"vocab": 1000})
    with pytest.raises(UserError, match="none of them is UTF-8 text"):
        BPE.fit([b"\xff"], tmp_path, {})


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "NFC"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        ("model", "two ids changed places"),
        ("added_tokens", []),
        ("decoder", {"type": "Fuse"}),
    ],
)
def test_every_part_that_decides_ids_or_text_is_in_the_hash(tmp_path, part, value):
    content = json.loads((trained(tmp_path / "one", "gpt2", added=["grüße"]) / "tokenizer.json").read_text("utf-8"))
    before = build(tmp_path / "one").spec.hash
    vocabulary = content["model"]["vocab"]
    if part == "model":
        value = {**content["model"], "vocab": {**vocabulary, "A": vocabulary["B"], "B": vocabulary["A"]}}
    assert content[part] != value
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, part: value}), encoding="utf-8")
    assert build(tmp_path).spec.hash != before
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "truncation": None}, indent=1), encoding="utf-8")
    assert build(tmp_path).spec.hash == before, "what is turned off, and how the file is laid out, changes no id"


@pytest.mark.parametrize("ids", [(11, 12), (3, 2), (2, 1), (1, 9), (-200, 4)], ids=str)
def test_ids_of_added_tokens_that_leave_a_gap_are_those_that_huggingface_gives(tmp_path, ids):
    content = json.loads((trained(tmp_path, "gpt2") / "tokenizer.json").read_text("utf-8"))
    last = max(content["model"]["vocab"].values())
    kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"] = [
        {"id": last + i, "content": name, **kind} for i, name in zip(ids, ("<one>", "<two>"), strict=True)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    texts = ["a <two> b<one>", "<one><two>", "none"]
    tokenizer = assert_equal_to_huggingface(tmp_path, "tiktoken", texts)
    assert tokenizer.decode(tokenizer.encode(texts)) == texts
