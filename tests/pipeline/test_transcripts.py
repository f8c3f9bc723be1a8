"""Transcripts without a header, and captions beside their media: what a folder's `layout` reads, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from corpora import captions, kinds

from motet.core.errors import UserError
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.partitions import partitions

QUOTES = ['"Never," he said, "never', "'tis", '""', 'a ""b"" c', "ümlaut, comma; semicolon"]


@pytest.fixture
def sounds(corpus: Path) -> list[Path]:
    """Real recordings; the metadata that came with them is gone."""
    (corpus / "sounds/metadata.jsonl").unlink()
    return sorted((corpus / "sounds").glob("*.ogg"))


def lj(root: Path, sounds: list[Path], rows: list[str], ending: str = ".wav") -> None:
    (root / "wavs").mkdir(parents=True)
    for i, sound in enumerate(sounds):
        (root / f"wavs/LJ-{i}{ending}").write_bytes(sound.read_bytes())
    (root / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


ENTRY: dict[str, Any] = {"format": "folder", "path": "lj", "modality": "speech", "layout": "ljspeech"}


@pytest.mark.parametrize("ending", [".wav", ".flac", ".mp3"])
def test_quotes_of_ljspeech_are_plain_and_every_line_is_its_own_sample(corpus, sounds, told, ending) -> None:
    lj(corpus / "lj", sounds, [f"LJ-{i}|{text}|norm {i}" for i, text in enumerate(QUOTES)], ending)
    (corpus / "lj/README").write_text("of the set")
    found, bad, left = told(**ENTRY)
    assert captions(found) == [[text] for text in QUOTES] and kinds(found) == ["ts"] * 5 and not bad
    assert [parts[1][1] for parts in found] == [sound.read_bytes() for sound in sounds[:5]]
    assert left["field 'normalized'"].count == 5 and left[f"files ending in {ending} that no row names"].count == 5
    assert sum(row.count for row in left.values() if row.of == "file") == 6
    normal, _, left = told(**{**ENTRY, "columns": {"file_name": "speech", "normalized": "text"}})
    assert captions(normal) == [[f"norm {i}"] for i in range(5)] and kinds(normal) == ["st"] * 5
    assert left["field 'text'"].count == 5


def test_lines_that_are_none_of_ljspeech_are_rejects(corpus, sounds, told) -> None:
    rows = ["LJ-0|two fields", "LJ-1|a|b|c", "LJ-2", "|no id|x", "LJ-99|gone|gone", "../sounds/x|out|out", "LJ-3||"]
    lj(corpus / "lj", sounds, rows)
    found, bad, _ = told(**ENTRY)
    assert bad == ["bad-row"] * 3 + ["missing-file"] * 2
    assert kinds(found) == ["ts", "s"], "an empty transcript costs its recording nothing"
    (corpus / "lj/metadata.csv").write_bytes(b"LJ-0|caf\xe9|x\n")
    assert told(**ENTRY)[1] == ["invalid-utf8"]


@pytest.mark.parametrize("ending", [".flac", ".ogg"])
def test_librispeech_and_a_sibling_of_other_endings(corpus, sounds, told, ending) -> None:
    expected = []
    for i, sound in enumerate(sounds):
        chapter = corpus / f"libri/dev/{i % 3}/{i // 3}"
        chapter.mkdir(parents=True, exist_ok=True)
        (chapter / f"{i % 3}-{i // 3}-0000{ending}").write_bytes(sound.read_bytes())
        (chapter / f"{i % 3}-{i // 3}.trans.txt").write_text(f"{i % 3}-{i // 3}-0000 'TIS  {i} A | B\n")
        expected.append((f"{i % 3}/{i // 3}", f"'TIS  {i} A | B", sound.read_bytes()))
    (corpus / "libri/SPEAKERS.TXT").write_text(";ID |SEX\n")
    entry = {"format": "folder", "path": "libri", "modality": "speech"}
    found, bad, left = told(**entry, layout="librispeech")
    assert [(c[0], parts[1][1]) for c, parts in zip(captions(found), found, strict=True)] == [
        (text, data) for _, text, data in sorted(expected)
    ]
    assert not bad and {kind: row.count for kind, row in left.items()} == {"files ending in .txt": 1}
    loose, _, left = told(**entry)
    assert kinds(loose) == ["s"] * 10
    assert "layout: librispeech" in left["transcripts *.trans.txt"].cure, "what would take them in is said"


def test_captions_beside_media(corpus, told) -> None:
    names = sorted((corpus / "pictures").glob("*.webp"))[:6]
    folder = corpus / "set"
    (folder / "sub").mkdir(parents=True)
    texts = ["plain", "two\nlines", "", "\ufeffbegins with a mark", "in capitals"]
    for i, (name, text) in enumerate(zip(names, [*texts, None], strict=True)):
        (folder / f"sub/{i}.b.webp").write_bytes(name.read_bytes())
        if text is not None:
            (folder / f"sub/{i}.b.{'TXT' if i == 4 else 'txt'}").write_text(text, encoding="utf-8")
    (folder / "sub/orphan.txt").write_text("of nothing")
    (folder / "sub/0.b.json").write_text("{}")
    entry = {"format": "folder", "path": "set", "modality": "image"}
    found, bad, left = told(**entry, layout="beside")
    assert captions(found) == [["plain"], ["two\nlines"], [], ["begins with a mark"], ["in capitals"], []] and not bad
    assert all(parts[-1] == ("image", name.read_bytes()) for parts, name in zip(found, names, strict=True))
    assert {k: r.count for k, r in left.items()} == {
        "files ending in .txt beside no media": 1,
        "files ending in .json": 1,
    }
    turned, _, _ = told(format="folder", path="set", columns={"file_name": "image", "text": "text"}, layout="beside")
    assert turned == [parts[::-1] for parts in found]
    _, _, left = told(**entry)
    assert left["files ending in .txt beside media of their name"].count == 5
    (folder / "sub/1.b.txt").write_bytes(b"\xff\xfe")
    assert told(**entry, layout="beside")[1] == ["invalid-utf8"]


@pytest.mark.parametrize("layout", ["ljspeech", "librispeech", "beside"])
def test_a_changed_transcript_or_recording_is_noticed(corpus, sounds, configure, tmp_path, layout) -> None:
    lj(corpus / "lj", sounds[:6], [f"LJ-{i}|text {i}|x" for i in range(6)])
    if layout != "ljspeech":
        (corpus / "lj/metadata.csv").unlink()
        for i in range(6):
            if layout == "beside":
                (corpus / f"lj/wavs/LJ-{i}.txt").write_text(f"text {i}")
        if layout == "librispeech":
            (corpus / "lj/wavs/LJ.trans.txt").write_text("".join(f"LJ-{i} TEXT {i}\n" for i in range(6)))
    config = configure(corpus=[{"name": "l", **ENTRY, "layout": layout}], partition_samples=2)
    assert tokenize_corpus(config, corpus, tmp_path / "out").done == 3
    (corpus / "lj/wavs/LJ-3.wav").write_bytes(sounds[7].read_bytes())
    assert tokenize_corpus(config, corpus, tmp_path / "out").done == 1
    if layout == "beside":
        (corpus / "lj/wavs/LJ-0.txt").write_text("another text")
        assert tokenize_corpus(config, corpus, tmp_path / "out").done == 1
    (corpus / "lj/wavs/LJ-5.wav").unlink()
    (corpus / "lj/wavs/LJ-5.flac").write_bytes(sounds[5].read_bytes())
    assert tokenize_corpus(config, corpus, tmp_path / "out").done == 1, "by its other ending it is another file"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "ljspeech", "path": "pictures"}, "holds no metadata.csv"),
        ({"layout": "librispeech"}, r"holds no \*.trans.txt"),
        ({"layout": "beside", "modality": "image", "path": "pictures"}, "no .txt of .* has the name of a media file"),
        ({"layout": "ljspeech", "columns": {"normalised": "text", "file_name": "speech"}}, "no row .* has 'normalised'"),
        ({"layout": "beside", "columns": {"caption": "text", "file_name": "speech"}}, "has text and file_name"),
        ({"layout": "ljspeech", "language": "lang"}, "says no language"),
        ({"layout": "ljspeech", "path": "lj/metadata.csv"}, "is that of a folder"),
        ({"layout": None}, r"has '\|' between values.*say layout: ljspeech"),
        ({"layout": "ljspeech", "format": "parquet", "columns": {"a": "text"}, "modality": None}, "does not use it"),
    ],
)  # fmt: skip
def test_what_no_layout_has_is_refused_with_its_cure(corpus, sounds, configure, fields, message) -> None:
    lj(corpus / "lj", sounds[:2], ["LJ-0|a, b|c", "LJ-1|d|e"])
    with pytest.raises(UserError, match=message):
        partitions(configure(corpus=[{"name": "l", **ENTRY, **fields}]), corpus)
