"""Text that a vocabulary cannot say is counted or refused; text that is none, or in another coding, is told as what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace
from tokenizers import decoders, models, normalizers, pre_tokenizers

from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.statistics import statistics
from motet.pipeline.dataset.stats_page import page
from motet.pipeline.dataset.verify import Verification
from motet.pipeline.job.job import tokenize_corpus
from motet.tokenizers.contract import BadSample
from motet.tokenizers.media import utf16
from motet.tokenizers.text.bpe import BPE

LETTERS = "abcdefghijklmnopqrstuvwxyz."


def bpe(unknown: str | None, **options: Any) -> HuggingFace:
    vocabulary = {token: i for i, token in enumerate(["<unk>", "▁", *LETTERS])}
    model = HuggingFace(models.BPE(vocabulary, [], unk_token=unknown, **options))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return model


def unigram() -> HuggingFace:
    model = HuggingFace(models.Unigram([("<unk>", 0.0), *((c, -2.0) for c in "▁" + LETTERS)], 0, False))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return model


def words() -> HuggingFace:
    vocabulary = {
        "[UNK]": 0,
        **{c: i + 1 for i, c in enumerate(LETTERS)},
        **{f"##{c}": i + 50 for i, c in enumerate(LETTERS)},
    }
    model = HuggingFace(models.WordPiece(vocabulary, unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    return model


def dropping() -> HuggingFace:
    """Every byte has a token, but digits are cut out before."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model = HuggingFace(models.BPE({c: i for i, c in enumerate(sorted(alphabet))}, []))
    split = pre_tokenizers.Split("7", "removed")
    model.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    model.decoder = decoders.ByteLevel()
    return model


KINDS = {
    "one unknown token": lambda: bpe("<unk>"),
    "fused unknown tokens": lambda: bpe("<unk>", fuse_unk=True),
    "nothing": lambda: bpe(None),
    "unigram": unigram,
    "word pieces": words,
    "cut out": dropping,
}


def build(folder: Path, model: HuggingFace, limit: float = 1.0) -> BPE:
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    return BPE(BPE.Settings(path=folder, max_unknown=limit))


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_token_is_counted_whichever_way_it_is_lost(kind: str, tmp_path: Path) -> None:
    """Against the characters that were put in, one a word, so that a lost word is one character."""
    tokenizer = build(tmp_path, KINDS[kind]())
    strange = "7" if kind == "cut out" else "世"
    for lost in (0, 1, 3):
        text = " ".join(["abc."] * 5 + [strange] * lost + ["xyz"])
        (tokens,) = tokenizer.encode([text])
        assert (tokens.unknown, tokens.characters) == (lost, len(text)), kind
        assert len(tokens.ids) == len(tokens)
    limited = build(tmp_path, KINDS[kind](), limit=0.05)
    with pytest.raises(BadSample, match=rf"unknown-characters: 3 of .* characters have no token, as '{strange}'"):
        limited.encode([text])
    assert limited.spec.hash != tokenizer.spec.hash, "which samples are refused is a part of what it does"


@settings(deadline=None)
@given(st.text(max_size=40))
def test_a_vocabulary_of_bytes_loses_nothing(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "bytes"
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = build(folder, HuggingFace(models.BPE(vocabulary, [], byte_fallback=True)), limit=0.0)
    if text:
        assert tokenizer.encode([text])[0].characters == 0
    del vocabulary["<0x00>"]
    lossy = build(folder, HuggingFace(models.BPE(vocabulary, [], byte_fallback=True)), limit=1.0)
    assert lossy.encode([f"{text}x"])[0].unknown <= text.count("\0")


def test_the_statistics_tell_it_by_source_and_a_setting_refuses(tmp_path: Path, configure) -> None:
    rows = {"plain": ["abc. " * 20] * 4, "other": ["abc. " * 20 + "äö"] * 3 + ["世界世界"]}
    for name, texts in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    build(tmp_path / "lossy", bpe("<unk>"))
    bpe_settings = {"use": "bpe", "path": str(tmp_path / "lossy")}
    config = configure(
        corpus=[{"name": name, "format": "text", "path": f"{name}.jsonl"} for name in rows],
        tokenizers={"text": bpe_settings},
    )
    result = tokenize_corpus(config, tmp_path, tmp_path / "out")
    assert result.manifest.rejects() == {"unknown-characters": 1} and result.over == {"other": (1, 4)}
    manifest = Manifest.load(tmp_path / "out")
    found = statistics(manifest)
    told = {name: (s["unknown"], s["characters"]) for name, s in found.sources.items()}
    assert told == {"plain": (0, 400), "other": (6, 306)}
    assert "Characters without a token" in page(manifest, found) and found.to_json()["sources"]["other"]["unknown"] == 6
    verification = Verification(manifest)
    assert not [problem for _, found in verification.shards() for problem in found] and not list(verification.whole())
    strict = config.model_copy(update={"tokenizers": {"text": {**bpe_settings, "max_unknown": 0.01}}})
    assert tokenize_corpus(strict, tmp_path, tmp_path / "out").manifest.documents == 4
    all_ = config.model_copy(update={"tokenizers": {"text": {**bpe_settings, "max_unknown": 1.0}}})
    assert tokenize_corpus(all_, tmp_path, tmp_path / "out").rejected == 0


TEXT = "Some words, a line.\nAnd another one, ä.\n"


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_text_in_another_coding_is_told_as_that(coding: str, tmp_path: Path, configure) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode(coding))
    (tmp_path / "b.txt").write_text(TEXT)
    rows = "".join(json.dumps({"text": f"some words {i}"}) + "\n" for i in range(3))
    (tmp_path / "c.jsonl").write_bytes(rows.encode(coding))
    config = configure(corpus=[{"name": "a", "format": "text", "path": "."}])
    (tmp_path / "out").mkdir()
    result = tokenize_corpus(config, tmp_path, tmp_path.parent / f"{tmp_path.name}-out")
    assert result.manifest.documents == 1
    rejects = list(result.manifest.quarantine())
    kind = coding[:6].upper()
    assert len(rejects) >= 4 and all(
        f"this is {kind}" in r["detail"] for r in rejects[:4]
    )  # the last may be a lone zero byte
    assert f"iconv -f {kind} -t UTF-8" in rejects[0]["detail"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_no_text_is_taken_for_another_coding(text: str) -> None:
    assert not utf16(text.encode())


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('[{"text": "a"}, {"text": "b"}]', ["a JSON array; write one object a line"]),
        ('[\n{"text": "a"},\n{"text": "b"}\n]\n', ["a line of a JSON array", "a line of a JSON array"]),
        ('[{"text": "a"},\n {"text": "b"}]\n', ["a line of a JSON array"]),
        ('{\n "text": "a"\n}\n', ["a JSON object over several lines; write it on one, as jq -c"]),
        ('["a", "b"]\n', ["a JSON array"]),
    ],
)
def test_json_that_is_not_in_lines_is_told_as_that(content: str, parts: list[str], tmp_path: Path, configure) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    config = configure(corpus=[{"name": "a", "format": "text", "path": "a.jsonl"}])
    rejects = list(tokenize_corpus(config, tmp_path, tmp_path / "out").manifest.quarantine())
    for reject, part in zip(rejects, parts, strict=False):
        assert part in reject["detail"]
