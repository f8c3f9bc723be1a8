"""What a hostile or broken corpus gets: the sample is quarantined with its reason, and the job goes on."""

import io
import json
import os
import re
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motet.core.errors import UserError
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus


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
    rejects = list(Manifest.load(tmp_path / "out").quarantine())
    assert Counter(r["reason"] for r in rejects) == expected
    assert all(r["source"] and r["position"] for r in rejects)
    places = {r["reason"]: r for r in rejects}
    begin = (corpus / "pictures/metadata.jsonl").read_bytes().index(b'{"file_name": "cut.png"')
    assert (
        places["truncated-image"]["position"] == f"metadata.jsonl@{begin}"
        and len(places["truncated-image"]["hash"]) == 32
    )


def test_missing_modality_is_a_reject_and_told(corpus: Path, configure, tmp_path: Path) -> None:
    (corpus / "mixed.jsonl").write_text('{"parts": [{"text": "a"}, {"image": "pictures/x.webp"}]}\n', encoding="utf-8")
    (corpus / "pictures/x.webp").write_bytes(next((corpus / "pictures").glob("*.webp")).read_bytes())
    config = configure(
        corpus=[{"name": "mixed", "format": "interleaved", "path": "mixed.jsonl"}],
        tokenizers={"text": configure().tokenizers["text"]},
    )
    assert tokenize_corpus(config, corpus, tmp_path / "out").manifest.rejects() == {"no-tokenizer": 1}


def test_hostile_names_are_quarantined_or_stored(corpus: Path, configure, tmp_path: Path) -> None:
    """Names that are not Unicode, absolute, too long or no file, in metadata and on disk; a byte-order mark."""
    sound = next((corpus / "pictures").glob("*.webp")).read_bytes()
    names, bare = corpus / "names", corpus / "bare"
    (names / "folder").mkdir(parents=True)
    (names / "ok.webp").write_bytes(sound)
    os.mkfifo(names / "pipe")
    listed = ["ok.webp", "\ud800.webp", str(names / "ok.webp"), "pipe", "folder", "a\0b", "n" * 5000, "."]
    rows = "".join(json.dumps({"file_name": name}) + "\n" for name in listed)
    (names / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    bare.mkdir()
    (bare / os.fsdecode(b"not-unicode-\xff.webp")).write_bytes(sound)
    (bare / os.fsdecode(b"broken-\xfe.webp")).write_bytes(sound[:40])
    config = configure(corpus=[entry(name="names", path="names"), entry(name="bare", path="bare")])
    result = tokenize_corpus(config, corpus, tmp_path / "out")
    assert result.manifest.documents == 3 and result.samples == len(listed) + 2
    rejects = list(Manifest.load(tmp_path / "out").quarantine())
    reasons = {r["position"]: r["reason"] for r in rejects}
    begins = [0, *(3 + match.end() for match in re.finditer("\n", rows))]
    reason = [reasons.get(f"metadata.jsonl@{begin}") for begin in begins]
    assert reason[2] is None, "an absolute path inside the corpus, which is stored as a relative one"
    assert {reason[n] for n in (1, 5, 6)} == {"unreadable-file"}
    assert {reason[n] for n in (3, 4, 7)} == {"missing-file"}
    assert "broken-\\udcfe.webp" in reasons
    assert str(corpus) not in (tmp_path / "out/manifest.json").read_text(encoding="utf-8")
    assert tokenize_corpus(config, corpus, tmp_path / "out").done == 0


def test_text_files_are_cut_by_bytes_and_read_as_what_they_are(corpus: Path, configure, tmp_path: Path) -> None:
    folder = corpus / "books"
    folder.mkdir()
    text = json.loads((corpus / "text.jsonl").read_text(encoding="utf-8").splitlines()[0])["text"][:9000]
    for i in range(9):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "none.txt").write_bytes(b"")
    config = configure(corpus=[{"name": "books", "format": "text", "path": "books"}], partition_bytes=20_000)
    result = tokenize_corpus(config, corpus, tmp_path / "out")
    assert result.manifest.rejects() == {"empty-file": 1, "invalid-utf8": 1} and result.manifest.documents == 9
    assert result.partitions == 5, "two whole files fit into a partition"


def entry(**fields: str | None) -> dict[str, str | None]:
    return {"name": "pictures", "format": "folder", "path": "pictures", "modality": "image", **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": [entry(path="nowhere")]}, "does not exist"),
        ({"corpus": [entry(format="text", path="pictures/metadata.txt", modality=None)]}, "does not exist"),
        ({"corpus": [entry(modality="video")]}, "no tokenizer for 'video'"),
        ({"corpus": [entry(), entry()]}, "another entry is called so too"),
        ({"corpus": [entry(format="interleaved", modality=None)]}, "needs a JSONL file"),
        ({"corpus": [entry(path="a\0b")]}, "cannot be a path"),
        ({"corpus": [entry(path="nothing")]}, "holds nothing to tokenize"),
        ({"tokenizers": {"image": {"use": "vqgam"}}}, "no tokenizer for 'text'"),
    ],
)
def test_a_wrong_configuration_is_told_before_anything_is_written(fields, message, corpus, configure, tmp_path) -> None:
    (corpus / "nothing").mkdir()
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
    (corpus / "pictures/metadata.jsonl").unlink()
    with pytest.raises(UserError, match="lies inside the corpus folder"):
        tokenize_corpus(configure(), corpus, corpus / "pictures/out")


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
