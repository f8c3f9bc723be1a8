"""What a hostile or broken corpus gets: the sample is quarantined with its reason, and the job goes on."""

import io
import json
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motet.pipeline.config import TokenizeConfig
from motet.pipeline.job import tokenize_corpus
from motet.pipeline.manifest import Manifest
from motet.tokenizers.errors import UserError


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def broken(corpus: Path) -> tuple[Path, Counter[str]]:
    """The corpus with hostile samples in every source, and the rejects that they must give."""
    pictures, sounds = corpus / "pictures", corpus / "sounds"
    sound = next(iter(sounds.glob("*.ogg")))
    png = io.BytesIO()
    Image.open(next(pictures.glob("*.webp"))).convert("RGB").resize((96, 96)).save(png, "PNG")
    files = {
        "cut.png": png.getvalue()[: len(png.getvalue()) // 2],
        "bomb.png": bomb(60_000),
        "text.png": b"not a picture",
    }
    for name, data in files.items():
        (pictures / name).write_bytes(data)
    (corpus.parent / "secret.png").write_bytes(png.getvalue())
    os.symlink(corpus.parent / "secret.png", pictures / "link.png")
    outside = ["../../secret.png", str(corpus.parent / "secret.png"), "link.png"]
    with open(pictures / "metadata.jsonl", "ab") as rows:
        for name in (*files, *outside, "gone.png"):
            rows.write(json.dumps({"file_name": name, "text": "a picture"}).encode() + b"\n")
        rows.write(b'{"file_name": "cut.png", "text": 7}\n')
        rows.write(b"{not json}\n\n[1, 2]\n")
        rows.write(b'{"file_name": "x.png", "text": "\xff\xfe"}\n')
    (sounds / "empty.wav").write_bytes(b"")
    (sounds / "cut.ogg").write_bytes(sound.read_bytes()[:900])
    with open(sounds / "metadata.jsonl", "a", encoding="utf-8") as rows:
        rows.write('{"file_name": "empty.wav", "text": "nothing"}\n{"file_name": "cut.ogg", "text": "half"}\n')
    with open(corpus / "mixed.jsonl", "a", encoding="utf-8") as rows:
        rows.write('{"parts": []}\n{"parts": [{"video": "a.mp4"}]}\n{"parts": [{"text": "a", "image": "b"}]}\n')
    with open(corpus / "text.jsonl", "a", encoding="utf-8") as rows:
        rows.write('{"text": ""}\n{"other": "a"}\n{"text": "\\ud800 alone"}\n' + "[" * 100_000 + "\n")
    expected = Counter(
        {
            "truncated-image": 1,
            "image-too-large": 1,
            "not-an-image": 1,
            "outside-corpus": 3,
            "missing-file": 2,
            "not-a-string": 1,
            "not-json": 2,
            "not-an-object": 1,
            "invalid-utf8": 2,
            "empty-file": 1,
            "truncated-audio": 1,
            "no-parts": 1,
            "bad-part": 1,
            "empty-text": 1,
            "no-text": 1,
        }
    )
    return corpus, expected


def test_hostile_samples_are_quarantined_and_nothing_is_lost(broken, configure, tmp_path: Path) -> None:
    corpus, expected = broken
    result = tokenize_corpus(configure(), corpus, tmp_path / "out")
    found = Counter(result.manifest.rejects())
    assert found == expected
    assert result.manifest.documents == 30 + 10 + 5 + 4, "every sound sample became a document"
    assert result.samples == result.manifest.documents + sum(expected.values())
    assert result.too_many_rejects
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(r["reason"] for r in rejects) == expected
    assert all(r["source"] and r["position"] for r in rejects)
    places = {r["reason"]: r for r in rejects}
    assert places["truncated-image"]["position"] == "metadata.jsonl:31" and len(places["truncated-image"]["hash"]) == 32


def test_missing_modality_is_a_reject_and_told(corpus: Path, configure, tmp_path: Path) -> None:
    (corpus / "mixed.jsonl").write_text('{"parts": [{"text": "a"}, {"image": "pictures/x.webp"}]}\n', encoding="utf-8")
    (corpus / "pictures/x.webp").write_bytes(next((corpus / "pictures").glob("*.webp")).read_bytes())
    config = configure(
        corpus=[{"name": "mixed", "format": "interleaved", "path": "mixed.jsonl"}],
        tokenizers={"text": configure().tokenizers["text"]},
    )
    assert tokenize_corpus(config, corpus, tmp_path / "out").manifest.rejects() == {"no-tokenizer": 1}


def entry(**fields: str) -> dict[str, str]:
    return {"name": "pictures", "format": "folder", "path": "pictures", "modality": "image", **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": [entry(path="nowhere")]}, "does not exist"),
        ({"corpus": [entry(format="text", path="pictures/metadata.txt")]}, "does not exist"),
        ({"corpus": [entry(modality="video")]}, "no tokenizer for 'video'"),
        ({"corpus": [entry(), entry()]}, "another entry is called so too"),
        ({"corpus": [entry(format="interleaved")]}, "needs a JSONL file"),
        ({"tokenizers": {"image": {"use": "vqgam"}}}, "no tokenizer for 'speech'"),
    ],
)
def test_a_wrong_configuration_is_told_before_anything_is_written(fields, message, corpus, configure, tmp_path) -> None:
    config: TokenizeConfig = configure(**fields)
    with pytest.raises(UserError, match=message):
        tokenize_corpus(config, corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokenizer_typos_and_missing_weights_are_told(corpus: Path, configure, tmp_path: Path) -> None:
    for use, message in (
        ({"use": "vqgam"}, "did you mean 'vqgan'"),
        ({"use": "vqgan", "path": "elsewhere"}, "elsewhere"),
    ):
        tokenizers = {**configure().tokenizers, "image": use}
        with pytest.raises(UserError, match=message):
            tokenize_corpus(configure(tokenizers=tokenizers), corpus, tmp_path / "out")


def test_an_output_that_holds_something_else_is_refused(corpus: Path, configure, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/todo.txt").write_text("mine")
    with pytest.raises(UserError, match="no token dataset"):
        tokenize_corpus(configure(), corpus, tmp_path / "notes")
    assert (tmp_path / "notes/todo.txt").read_text() == "mine"
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        tokenize_corpus(configure(), corpus, tmp_path / "file" / "out")
    tokenize_corpus(configure(), corpus, tmp_path / "out")
    with pytest.raises(UserError, match="another corpus"):
        other = configure(corpus=[{"name": "books", "format": "text", "path": "text.jsonl"}])
        tokenize_corpus(other, corpus, tmp_path / "out")
    assert Manifest.load(tmp_path / "out").documents == 49


def test_random_bytes_never_stop_a_job(corpus: Path, configure, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with open(corpus / "pictures/metadata.jsonl", "ab") as rows:
        for i in range(40):
            source = sorted((corpus / "pictures").glob("*.webp"))[i % 30].read_bytes()
            data = bytearray(source)
            for at in random.integers(0, len(data), 20):
                data[at] = random.integers(256)
            (corpus / f"pictures/fuzz{i}.webp").write_bytes(bytes(data[: random.integers(1, len(data))]))
            rows.write(json.dumps({"file_name": f"fuzz{i}.webp"}).encode() + b"\n")
            rows.write(bytes(random.integers(1, 256, 30, dtype=np.uint8)).replace(b"\n", b"") + b"\n")
    result = tokenize_corpus(configure(), corpus, tmp_path / "out")
    assert result.samples == 49 + 80
