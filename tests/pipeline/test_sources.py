"""Every format gives the documents of the same data in another one; what is hostile costs itself; nothing is lost."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import zstandard
from corpora import documents, pictures, read_all, tar

from motet.core.errors import UserError
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.job.job import tokenize_corpus

BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def tokens(corpus: Path, configure, tmp_path: Path):
    """A function that gives the manifest of a corpus of one entry."""
    made = iter(range(100))

    def run(workers: int = 1, **entry: Any) -> Manifest:
        config = configure(corpus=[{"name": "one", **entry}])
        return tokenize_corpus(config, corpus, tmp_path / f"out{next(made)}", workers=workers).manifest

    return run


@pytest.fixture
def captioned(tokens) -> list:
    """The captioned pictures as the folder gives them."""
    return documents(tokens(format="folder", path="pictures", modality="image"))


def test_parquet_gives_the_documents_of_the_folder(corpus: Path, tokens, captioned) -> None:
    rows = pictures(corpus)
    table = pa.table(
        {
            "license": pa.array(["CC0"] * len(rows)),
            "picture": pa.array([{"bytes": row["bytes"], "path": row["file_name"]} for row in rows], BYTES),
            "caption": pa.array([row.get("text") for row in rows]),
            "lang": pa.array(["en" if i % 3 else "de" for i in range(len(rows))]),
        }
    )
    pq.write_table(table.slice(0, 13), corpus / "a.parquet", row_group_size=5)
    pq.write_table(table.slice(13), corpus / "b.parquet")
    entry = {"format": "parquet", "columns": {"caption": "text", "picture": "image"}, "language": "lang"}
    manifest = tokens(path="*.parquet", workers=2, **entry)
    assert documents(manifest) == captioned and not manifest.rejects()
    languages = [entry.languages for entry in manifest.shards]
    assert sum(entry["de"][0] for entry in languages) == 10 and sum(entry["en"][0] for entry in languages) == 20


def test_parquet_of_paths_and_of_lists(corpus: Path, tokens) -> None:
    """Bytes missing: the path is read. Lists as in OBELICS: one of them holds something at each place."""
    interleaved = documents(tokens(format="interleaved", path="mixed.jsonl"))
    texts, images = [], []
    for line in (corpus / "mixed.jsonl").read_text("utf-8").splitlines():
        parts = json.loads(line)["parts"]
        texts.append([part.get("text") for part in parts])
        images.append([{"path": part["image"]} if "image" in part else None for part in parts])
    table = pa.table({"texts": texts, "images": pa.array(images, pa.list_(BYTES))})
    pq.write_table(table, corpus / "obelics.parquet")
    columns = {"texts": "text", "images": "image"}
    assert documents(tokens(format="parquet", path="obelics.parquet", columns=columns)) == interleaved


def test_parquet_columns_that_are_not_said_or_not_there_are_proposed(corpus: Path, tokens) -> None:
    pq.write_table(pa.table({"caption": ["a"], "img": pa.array([{"bytes": b"x"}], BYTES)}), corpus / "a.parquet")
    with pytest.raises(UserError, match=r"corpus.0 \(one\): columns: say .*\{caption: text, img: image\}; there are "):
        tokens(format="parquet", path="a.parquet")
    with pytest.raises(UserError, match=r"has no column 'image': say .*\{caption: text, img: image\}"):
        tokens(format="parquet", path="a.parquet", columns={"image": "image"})
    (corpus / "b.parquet").write_bytes(b"PAR1 and nothing of it PAR1")
    with pytest.raises(UserError, match=r"b\.parquet is no Parquet file"):
        tokens(format="parquet", path="b.parquet", columns={"image": "image"})


def test_a_parquet_row_that_is_wrong_costs_itself(corpus: Path, tokens) -> None:
    table = pa.table(
        {
            "texts": [["a", None], ["b"], [None, None], ["c"], ["d"]],
            "images": pa.array(
                [[{"path": "../x"}, None], [None, None], [None] * 2, [{"bytes": b"no"}], [None]], pa.list_(BYTES)
            ),
        }
    )
    pq.write_table(table, corpus / "bad.parquet")
    manifest = tokens(format="parquet", path="bad.parquet", columns={"texts": "text", "images": "image"})
    assert manifest.documents == 1
    assert manifest.rejects() == {"no-parts": 1, "two-at-a-place": 2, "uneven-lists": 1}


def test_a_broken_page_of_a_parquet_file_costs_its_rows(corpus: Path, tokens) -> None:
    texts = [f"Text number {i}. " * 50 for i in range(40)]
    pq.write_table(pa.table({"text": texts}), corpus / "cut.parquet", compression="none", use_dictionary=False)
    data = bytearray((corpus / "cut.parquet").read_bytes())
    begin = data.index(b"Text number 30. ")
    data[begin - 4 : begin] = b"\xff\xff\xff\x7f"  # the length of a string: 2 GB
    (corpus / "cut.parquet").write_bytes(data)
    manifest = tokens(format="parquet", path="cut.parquet", columns={"text": "text"})
    assert manifest.documents + sum(manifest.rejects().values()) == 40 and manifest.rejects()["broken-parquet"] >= 10


def test_webdataset_gives_the_documents_of_the_folder(corpus: Path, tokens, captioned) -> None:
    members = []
    for i, row in enumerate(pictures(corpus)):
        members += [
            (f"train/{i:04d}.webp", row["bytes"]),
            (f"train/{i:04d}.json", json.dumps({"caption": row["text"]}).encode()),
        ]
        members.append((f"train/{i:04d}.cls", b"7"))
    for i in range(3):
        tar(corpus / f"w-{i:03d}.tar", members[30 * i : 30 * i + 30])
    manifest = tokens(format="webdataset", path="w-{000..002}.tar", column="caption", workers=2)
    assert documents(manifest) == captioned and [entry.rows for entry in manifest.shards] == [10, 10, 10]
    again = tokens(format="webdataset", path="w-*.tar", column="caption", columns={"webp": "image", "json": "text"})
    assert documents(again) == [document[::-1] for document in captioned], "the order of `columns` is that of reading"


def test_a_tar_that_breaks_is_read_as_far_as_it_goes(corpus: Path, tokens) -> None:
    rows = pictures(corpus)[:8]
    tar(corpus / "whole.tar", [(f"{i}.webp", row["bytes"]) for i, row in enumerate(rows)])
    data = (corpus / "whole.tar").read_bytes()
    sizes = np.cumsum([512 + -(-len(row["bytes"]) // 512) * 512 for row in rows])
    for name, broken, sound in (
        ("inside", data[: sizes[4] + 700], 5),
        ("between", data[: sizes[4]], 5),
        ("garbage", data[: sizes[4]] + b"\x55" * 4096 + data[sizes[4] :], 5),
        ("nothing", b"", 0),
        ("noise", bytes(range(256)) * 8, 0),
    ):
        (corpus / f"{name}.tar").write_bytes(broken)
        manifest = tokens(format="webdataset", path=f"{name}.tar")
        assert (manifest.documents, manifest.rejects()) == (sound, {"lost-rest": 1}), name


def test_odd_members_of_a_tar(corpus: Path, tokens) -> None:
    sound = pictures(corpus)[0]["bytes"]
    with tarfile.open(corpus / "odd.tar", "w") as out:

        def add(name: str, data: bytes = b"", **fields: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            out.addfile(info, io.BytesIO(data))

        add("folder", type=tarfile.DIRTYPE)
        add("./.hidden", b"x")
        add("a.webp", sound)
        add("link.webp", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("b.webp", sound)
        add("b.webp", sound)
        add("c.cls", b"1")
        add("a.txt", b"late")
        add("../../climbs.webp", sound)
        add("n" * 300 + ".webp", sound)
    manifest = tokens(format="webdataset", path="odd.tar")
    assert manifest.documents == 3, "a, the one whose name climbs (a name is only a key), the one with a long name"
    assert manifest.rejects() == {"no-parts": 1, "not-a-file": 1, "repeated-key": 2}


def test_nemo_manifests_give_the_documents_of_the_folder(corpus: Path, tokens) -> None:
    folder = documents(tokens(format="folder", path="sounds", modality="speech"))
    rows = [json.loads(line) for line in (corpus / "sounds/metadata.jsonl").read_text("utf-8").splitlines()]
    manifest = [
        {"audio_filepath": f"sounds/{r['file_name']}", "text": r.get("text"), "duration": 1.5, "lang": "en"}
        for r in rows
    ]
    (corpus / "nemo.json").write_text("".join(json.dumps(row) + "\n" for row in manifest), encoding="utf-8")
    found = tokens(format="nemo", path="nemo.json", language="lang")
    assert documents(found) == folder and sum(entry.languages["en"][0] for entry in found.shards) == 10


def test_segments_of_a_recording_are_its_samples(corpus: Path, tokens) -> None:
    file = sorted((corpus / "sounds").glob("*.ogg"))[0]
    samples, rate = soundfile.read(file, dtype="float32")
    (corpus / "cut").mkdir()
    rows = []
    for i, (begin, end) in enumerate([(0.0, 0.5), (0.25, 0.75), (0.5, 99.0)]):
        cut = samples[round(begin * rate) : round(end * rate)]
        soundfile.write(corpus / f"cut/{i}.wav", cut, rate, subtype="FLOAT")
        rows.append({"audio_filepath": f"sounds/{file.name}", "offset": begin, "duration": end - begin})
    for bad in (
        {"offset": 1e9},
        {"offset": 1e4, "duration": 1},
        {"offset": -1, "duration": 1},
        {"offset": 0, "duration": 0},
    ):
        rows.append({"audio_filepath": f"sounds/{file.name}", **bad})
    (corpus / "segments.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = tokens(format="nemo", path="segments.json")
    assert documents(found) == documents(tokens(format="folder", path="cut", modality="speech"))
    assert found.rejects() == {"bad-segment": 4}


def test_segments_of_joined_and_endless_recordings_reach_their_end_or_are_refused(corpus: Path, tokens) -> None:
    """Two MP3 files in one, a WAV written to a pipe, and files whose end, in a segment, is missing."""
    random = np.random.default_rng(0)
    samples = random.normal(0, 0.1, 32_000).clip(-1, 1).astype(np.float32)
    folder = corpus / "long"
    folder.mkdir()
    for form in ("MP3", "WAV", "FLAC"):
        soundfile.write(folder / f"one.{form.lower()}", samples, 16_000, format=form)
    mp3, wav, flac = ((folder / f"one.{form}").read_bytes() for form in ("mp3", "wav", "flac"))
    (folder / "joined.mp3").write_bytes(2 * mp3)
    (folder / "piped.wav").write_bytes(wav[:40] + b"\xff\xff\xff\x7f" + wav[44:])
    (folder / "cut.wav").write_bytes(wav[:50_000])
    (folder / "cut.flac").write_bytes(flac[: len(flac) * 3 // 4])
    places = {"joined.mp3": 3.0, "piped.wav": 1.0, "cut.wav": 0.0, "cut.flac": 0.0}
    rows = [{"audio_filepath": f"long/{name}", "offset": offset, "duration": 1.0} for name, offset in places.items()]
    rows += [{**row, "offset": 1.0} for row in rows if "cut" in row["audio_filepath"]]
    (corpus / "long.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = tokens(format="nemo", path="long.json")
    assert [shape for ((_, shape, _),) in documents(found)] == [(40, 2)] * 4
    assert found.rejects() == {"truncated-audio": 1, "not-audio": 1}  # of FLAC the library says only that it is broken
    assert {reject["position"] for reject in found.quarantine()} == {
        f"long.json@{sum(len(json.dumps(row)) + 1 for row in rows[:i])}" for i in (4, 5)
    }


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_compressed_text_gives_the_same_documents(ending: str, compress, corpus: Path, tokens) -> None:
    plain = documents(tokens(format="text", path="text.jsonl"))
    data = (corpus / "text.jsonl").read_bytes()
    half = data.index(b"\n", len(data) // 2) + 1
    (corpus / f"text.jsonl.{ending}").write_bytes(compress(data[:half]) + compress(data[half:]))
    assert documents(tokens(format="text", path=f"text.jsonl.{ending}")) == plain
    cut = compress(data)
    (corpus / f"cut.jsonl.{ending}").write_bytes(cut[: len(cut) * 2 // 3])
    manifest = tokens(format="text", path=f"cut.jsonl.{ending}")
    assert documents(manifest) == plain[: manifest.documents] and sum(manifest.rejects().values()) in (1, 2)
    assert manifest.rejects().get("lost-rest") == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells a process's memory as Linux does")
def test_a_large_row_group_is_read_a_little_at_a_time(tmp_path: Path) -> None:
    """In a process of its own: 192 MB of text in one row group, in far less memory than that."""
    random = np.random.default_rng(0)
    texts = [random.bytes(8000).hex() for _ in range(12_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "big.parquet", use_dictionary=False)
    script = f"""
import re
from pathlib import Path
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.partitions import partitions
from motet.pipeline.corpus.sources import read
entry = dict(name="a", format="parquet", path="big.parquet", columns=dict(text="text"))
plan = partitions(TokenizeConfig(corpus=[entry], tokenizers=dict(text=dict())), Path({str(tmp_path)!r}))
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])  # ru_maxrss is the parent's
before = peak()
count = sum(1 for partition in plan for _ in read(partition, lambda *told: None))
print(count, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, kilobytes = map(int, done.stdout.split())
    assert count == 12_000 and kilobytes < 120_000, kilobytes


def test_segments_are_the_same_bytes_at_any_time_and_whole_paths_are_taken(corpus: Path, configure) -> None:
    file = sorted((corpus / "sounds").glob("*.ogg"))[0]
    rows = [{"audio_filepath": str(file), "offset": 0.1, "duration": 0.5}, {"audio_filepath": "/etc/hostname"}]
    (corpus / "whole.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = configure(corpus=[{"name": "n", "format": "nemo", "path": "whole.json"}])
    _, (one, outside) = read_all(config, corpus)
    time.sleep(1.1)  # libsndfile writes the second into a WAV of floats
    _, (again, _) = read_all(config, corpus)
    assert one == again and one.parts[0][0] == "speech" and outside.reason == "outside-corpus"
    samples, rate = soundfile.read(io.BytesIO(one.parts[0][1]), dtype="float32")
    expected, _ = soundfile.read(file, dtype="float32")
    assert np.array_equal(samples, expected[round(0.1 * rate) :][: len(samples)]) and len(samples) == round(0.5 * rate)


def test_a_caption_that_stands_twice_is_read_once(corpus: Path, configure) -> None:
    """As img2dataset writes it: .txt, and the same in the .json."""
    picture = pictures(corpus)[0]["bytes"]
    row = json.dumps({"caption": "a face", "lang": "en"}).encode()
    tar(corpus / "twice.tar", [("0.jpg", picture), ("0.json", row), ("0.txt", b"a face"), ("1.json", row)])
    entry = {"name": "w", "format": "webdataset", "path": "twice.tar", "column": "caption", "language": "lang"}
    _, found = read_all(configure(corpus=[entry]), corpus)
    assert [s.parts for s in found] == [(("text", b"a face"), ("image", picture)), (("text", b"a face"),)]
    assert [s.language for s in found] == ["en", "en"]
