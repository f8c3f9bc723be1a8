"""Nothing under an entry is passed over: it is a document, a reject, or told in the table of what is left out."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import zstandard
from corpora import captions, kinds, tar
from hypothesis import given
from hypothesis import strategies as st

from motet.core.errors import UserError
from motet.pipeline.dataset.left_out import MOST_KINDS, Rest
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.statistics import statistics
from motet.pipeline.dataset.stats_page import page
from motet.pipeline.job.job import tokenize_corpus

LINE = b'{"text": "x"}\n'
BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


# the table


def test_the_table_is_in_manifest_terminal_json_and_page_and_in_every_engine_the_same(
    corpus: Path, configure, tmp_path: Path
) -> None:
    picture = next((corpus / "pictures").glob("*.webp")).read_bytes()
    (corpus / "tars").mkdir()
    for i in range(3):
        tar(
            corpus / f"tars/{i}.tar",
            [("0.jpg", picture), ("0.cls", b"7" * 10), ("0.json", b'{"url": "u", "text": "t"}')],
        )
    config = configure(corpus=[{"name": "w", "format": "webdataset", "path": "tars/*.tar"}])
    result = tokenize_corpus(config, corpus, tmp_path / "one")
    (members, field) = result.manifest.left_out["w"][::-1]
    assert (members.kind, members.count, members.bytes, members.example) == ("members .cls", 3, 30, "0.tar/0.cls")
    assert (field.kind, field.count) == ("field 'url' of .json", 3) and "{cls: image}" in members.cure
    tokenize_corpus(config, corpus, tmp_path / "two", workers=2)
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()
    assert Manifest.load(tmp_path / "one").left_out == result.manifest.left_out
    found = statistics(result.manifest)
    assert json.loads(json.dumps(found.to_json()))["left_out"]["w"][1]["example"] == "0.tar/0.cls"
    assert "members .cls" in page(result.manifest, found)
    data = {**config.model_dump(mode="json"), "corpus": [{"name": "w", "format": "webdataset", "path": "tars/*.tar"}]}
    (corpus / "job.yaml").write_text(json.dumps(data), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "motet.orchestration",
        "tokenize",
        str(corpus / "job.yaml"),
        "--out",
        str(tmp_path / "one"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "left out of w: members .cls: 3, 30 bytes, for example 0.tar/0.cls: " in done.stdout, done.stderr
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout)["left_out"]["w"][1]["count"] == 3


def test_a_file_that_comes_to_be_left_out_renews_the_manifest(corpus: Path, configure, tmp_path: Path) -> None:
    (corpus / "t").mkdir()
    (corpus / "t/a.txt").write_text("a")
    config = configure(corpus=[{"name": "t", "format": "text", "path": "t"}])
    assert not tokenize_corpus(config, corpus, tmp_path / "out").manifest.left_out
    (corpus / "t/b.docx").write_text("b")
    again = tokenize_corpus(config, corpus, tmp_path / "out")
    assert again.done == 0 and [row.kind for row in again.manifest.left_out["t"]] == ["files ending in .docx"]
    (corpus / "t/b.docx").unlink()
    assert not tokenize_corpus(config, corpus, tmp_path / "out").manifest.left_out
    assert not Manifest.load(tmp_path / "out").left_out


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9)), max_size=200))
def test_sums_are_right_and_kinds_are_bounded(found: list[tuple[int, int]]) -> None:
    """However many kinds a hostile source has, its table stays small and no count is lost; parts sum to the whole."""
    whole, parts = Rest(), Rest()
    for kind, size in found:
        whole.add("member", f"members .{kind}", str(kind), "why", "cure", size=size)
    for begin in range(0, len(found), 7):
        part = Rest()
        for kind, size in found[begin : begin + 7]:
            part.add("member", f"members .{kind}", str(kind), "why", "cure", size=size)
        for row in part.rows:
            parts.take(row)
    for rest in (whole, parts):
        assert sum(row.count for row in rest.rows) == len(found) and len(rest.rows) <= MOST_KINDS + 1
        assert sum(row.bytes for row in rest.rows) == sum(size for _, size in found)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"format": "folder", "path": "pictures", "modality": "image", "column": "caption"},
            r"{caption: text, file_name: image}",
        ),
        ({"format": "text", "path": "text.jsonl", "columns": {"text": "text"}}, "as `column`"),
        ({"format": "parquet", "path": "a.parquet", "columns": {"a": "text"}, "modality": "text"}, "of each"),
        ({"format": "webdataset", "path": "a.tar", "root": "."}, "members lie in the tar"),
        ({"format": "nemo", "path": "mixed.jsonl", "column": "transcript"}, "rename it there"),
        ({"format": "interleaved", "path": "mixed.jsonl", "column": "parts2"}, "stands in its parts"),
    ],
)
def test_a_field_that_the_format_does_not_use_is_refused(
    entry: dict[str, Any], message: str, corpus: Path, told
) -> None:
    with pytest.raises(UserError, match=r"corpus\.0 \(s\): \w+: format '\w+' does not use it") as refused:
        told(**entry)
    assert message in str(refused.value)


def test_fields_of_rows_are_told(corpus: Path, told) -> None:
    rows = [{"text": "a", "id": 1, "url": "u"}, {"url": "u", "text": "b"}, {"text": "c", "lang": "en"}]
    (corpus / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, _, left = told(format="text", path="f.jsonl", language="lang")
    assert {kind: row.count for kind, row in left.items()} == {"field 'id'": 1, "field 'url'": 2}
    assert left["field 'url'"].example == "f.jsonl@0"


# Parquet


def test_lists_beside_scalars_are_read_where_their_column_stands(corpus: Path, told) -> None:
    image = {"bytes": b"i", "path": None}
    table = pa.table(
        {
            "title": ["t", None, ""],
            "images": pa.array([[image, None, image], [], None], pa.list_(BYTES)),
            "captions": [["a", "b"], ["", None, "c"], None],
            "url": ["u"] * 3,
        }
    )
    pq.write_table(table, corpus / "a.parquet")
    found, bad, left = told(format="parquet", path="a.parquet", columns={"captions": "text", "title": "text"})
    assert captions(found) == [["a", "b", "t"], ["c"]] and bad == ["no-parts"]
    assert set(left) == {"column 'url'", "column 'images'"} and left["column 'url'"].count == 3
    found, bad, _ = told(format="parquet", path="a.parquet", columns={"images": "image", "title": "text"})
    assert kinds(found) == ["iit"] and bad == ["no-parts", "no-parts"]
    interleaved = {"title": "text", "texts": "text", "images": "image", "end": "text"}
    lists = pa.table(
        {
            "texts": [["a", None, "b"]],
            "images": pa.array([[None, image, None]], pa.list_(BYTES)),
            "title": ["t"],
            "end": ["e"],
        }
    )
    pq.write_table(lists, corpus / "b.parquet")
    found, _, left = told(format="parquet", path="b.parquet", columns=interleaved)
    assert kinds(found) == ["ttitt"] and not left


def test_structs_of_any_names_hold_their_bytes_and_a_url_alone_is_a_reject(corpus: Path, told) -> None:
    def read_one(value: dict[str, Any], modality: str = "image") -> tuple[list, list]:
        pq.write_table(pa.table({"x": [value, None], "t": ["a", "b"]}), corpus / "x.parquet")
        found, bad, _ = told(format="parquet", path="x.parquet", columns={"t": "text", "x": modality})
        return found, bad

    for value in ({"data": b"i", "mime": "image/png"}, {"image_bytes": b"i", "format": "png"}, {"content": b"i"}):
        found, bad = read_one(value)
        assert [parts[-1] for parts in found] == [("image", b"i"), ("text", b"b")] and not bad
    found, bad = read_one({"url": "https://x/y.png", "height": 3})
    assert captions(found) == [["b"]] and bad == ["no-bytes"], "the picture that the row names is not to be had"
    assert read_one({"one": b"1", "two": b"2"})[1] == ["two-at-a-place"]
    found, bad = read_one({"array": [0.0, 0.5, -0.5], "sampling_rate": 16_000, "path": "gone.wav"}, "speech")
    samples, rate = soundfile.read(io.BytesIO(found[0][1][1]))
    assert (samples.tolist(), rate, bad) == ([0.0, 0.5, -0.5], 16_000, [])
    found, _ = read_one({"array": [[0.0, 0.5, 0.25], [0.0, 0.0, 1.0]], "sampling_rate": 8000}, "speech")
    assert soundfile.read(io.BytesIO(found[0][1][1]))[0].tolist() == [[0, 0], [0.5, 0], [0.25, 1]]
    assert read_one({"array": [0.0], "sampling_rate": 0}, "speech")[1] == ["not-audio"]


def test_a_whole_path_inside_the_corpus_is_read_and_one_outside_is_not(corpus: Path, told) -> None:
    names = sorted(path.name for path in (corpus / "pictures").glob("*.webp"))[:2]
    values = [{"bytes": None, "path": str(corpus / "pictures" / name)} for name in names]
    values += [{"bytes": None, "path": "/etc/hostname"}, {"bytes": None, "path": f"{corpus}/../secret"}]
    pq.write_table(pa.table({"image": pa.array(values, BYTES)}), corpus / "p.parquet")
    found, bad, _ = told(format="parquet", path="p.parquet", columns={"image": "image"})
    assert [parts[0][1] for parts in found] == [(corpus / "pictures" / name).read_bytes() for name in names]
    assert bad == ["outside-corpus"] * 2


# folders


# endings


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".GZ", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.compress),
        (".zstd", zstandard.compress),
    ],
)
def test_text_of_every_ending(ending: str, compress, corpus: Path, told) -> None:
    (corpus / "t").mkdir()
    texts = {".txt": b"a", ".TXT": b"b", ".md": b"c", ".Markdown": b"d", ".text": b"e"}
    for plain, data in texts.items():
        (corpus / f"t/{plain[1:]}{plain}{ending}").write_bytes(compress(data))
    for plain in (".jsonl", ".JSON", ".ndjson"):
        half = len(LINE) // 2
        (corpus / f"t/{plain[1:]}{plain}{ending}").write_bytes(
            compress(LINE) + (compress(LINE[:half]) if ending else b"")
        )
    (corpus / f"t/other.docx{ending}").write_bytes(b"x")
    found, bad, left = told(format="text", path="t")
    assert sorted(parts[0][1] for parts in found) == [b"a", b"b", b"c", b"d", b"e", b"x", b"x", b"x"]
    assert bad == (["not-json"] * 3 if ending else []), "the half line of a second member"
    assert [row.example for row in left.values()] == [f"other.docx{ending}"]


@pytest.mark.parametrize(("ending", "compress"), [(".bz2", bz2.compress), (".xz", lzma.compress)])
def test_what_a_cut_stream_still_has_is_read(ending: str, compress, corpus: Path, told) -> None:
    random = np.random.default_rng(0)
    data = b"".join(b'{"text": "%s"}\n' % random.bytes(400).hex().encode() for _ in range(4000))
    whole = compress(data)
    (corpus / f"a.jsonl{ending}").write_bytes(whole)
    assert len(told(format="text", path=f"a.jsonl{ending}")[0]) == 4000
    (corpus / f"a.jsonl{ending}").write_bytes(whole[: len(whole) // 2])
    found, bad, _ = told(format="text", path=f"a.jsonl{ending}")
    assert len(found) > 500 and bad[-1] == "lost-rest" and found[0][0][1] in data
    (corpus / f"a.jsonl{ending}").write_bytes(b"no stream at all")
    assert told(format="text", path=f"a.jsonl{ending}")[1] == ["lost-rest"]


def test_a_named_file_without_a_known_ending_is_what_it_begins_with(corpus: Path, told) -> None:
    (corpus / "part-00000").write_bytes(LINE * 2)
    (corpus / "notes.log").write_bytes(b"one\ntwo\n")
    assert captions(told(format="text", path="part-00000")[0]) == [["x"], ["x"]]
    assert captions(told(format="text", path="notes.log")[0]) == [["one\ntwo\n"]]


def test_members_of_every_ending(corpus: Path, told) -> None:
    names = [
        "0.TIF",
        "1.jfif",
        "2.jp2",
        "3.ppm",
        "4.m4a",
        "5.aac",
        "6.image.png",
        "7.audio.flac",
        "8.mask.png",
        "9.npy",
        "noext",
    ]
    tar(corpus / "m.tar", [(name, b"x") for name in names])
    found, bad, left = told(format="webdataset", path="m.tar")
    assert kinds(found) == [*"iiii", *"ss", *"is"] and bad == ["no-parts"] * 2
    assert set(left) == {"members .mask.png", "members .npy", "members without an extension"}
    found, _, left = told(format="webdataset", path="m.tar", columns={"mask.png": "image"})
    assert found == [[("image", b"x")]] and left["members .tif"].cure == "name it under `columns`, as in {tif: image}"


# listing


def test_hidden_and_dangling_and_looping_are_told(corpus: Path, told) -> None:
    folder = corpus / "t"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    (folder / "in").mkdir()
    for name in ("a.txt", ".b.txt", ".ipynb_checkpoints/c.txt", "in/d.txt"):
        (folder / name).write_text(name)
    os.mkfifo(folder / "pipe.txt")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "gone.txt").symlink_to("nothing")
    (folder / "again").symlink_to("in")
    (folder / "up").symlink_to("..")
    (folder / "out.txt").symlink_to("/etc/hostname")
    (folder / "link.txt").symlink_to("in/d.txt")
    found, _, left = told(format="text", path="t")
    assert captions(found) == [["a.txt"], ["in/d.txt"], ["in/d.txt"]]
    assert {kind: row.count for kind, row in left.items()} == {
        "hidden files and folders": 2,
        "pipes, sockets and devices": 1,
        "links that lead nowhere": 2,
        "links to folders of the same source": 1,
        "links that lead out of the folder": 2,
    }
    assert "`root`" in left["links that lead out of the folder"].cure


def test_a_hub_cache_an_annex_and_a_root_of_ones_own(corpus: Path, told) -> None:
    """Links are followed into what their tool keeps beside them, under their own names."""
    hub = corpus / "datasets--x--y"
    for folder in ("blobs", "snapshots/abc/train"):
        (hub / folder).mkdir(parents=True)
    (hub / "blobs/0123").write_bytes(LINE)
    (hub / "blobs/4567").write_bytes(b"picture")
    (hub / "snapshots/abc/a.jsonl").symlink_to("../../blobs/0123")
    (hub / "snapshots/abc/train/0.png").symlink_to("../../../blobs/4567")
    (hub / "snapshots/abc/train/metadata.csv").write_text("file_name,text\n0.png,one\n../../../blobs/4567,climbs\n")
    assert captions(told(format="text", path="datasets--x--y/snapshots/abc")[0]) == [["x"]]
    found, bad, _ = told(format="folder", path="datasets--x--y/snapshots/abc", modality="image")
    assert found == [[("text", b"one"), ("image", b"picture")]] and bad == ["outside-corpus"], "a name may not climb"
    annex = corpus / "annex"
    (annex / ".git/annex/objects/K").mkdir(parents=True)
    (annex / "data").mkdir()
    (annex / ".git/annex/objects/K/K").write_text("annexed")
    (annex / "data/a.txt").symlink_to("../.git/annex/objects/K/K")
    assert captions(told(format="text", path="annex/data")[0]) == [["annexed"]]
    (corpus / "else/more").mkdir(parents=True)
    (corpus / "else/more/b.txt").write_text("elsewhere")
    (annex / "data/more").symlink_to("../../else/more")
    found, _, left = told(format="text", path="annex/data")
    assert len(found) == 1 and left["links that lead out of the folder"].example == "more"
    found, _, left = told(format="text", path="annex/data", root=".")
    assert captions(found) == [["annexed"], ["elsewhere"]] and not left


@pytest.mark.skipif(shutil.which("setpriv") is None and os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """As a user who may not: in a process that gives up root's rights."""
    (tmp_path / "t/shut").mkdir(parents=True)
    (tmp_path / "t/a.txt").write_text("a")
    (tmp_path / "t/shut").chmod(0)
    script = f"""
from pathlib import Path
from motet.pipeline.corpus import tree
from motet.pipeline.dataset.left_out import Rest
rest = Rest()
print(list(tree.walk({str(tmp_path / "t")!r}, rest)), [(row.kind, row.example) for row in rest.rows])
"""
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"] if os.getuid() == 0 else []
    done = subprocess.run([*prefix, sys.executable, "-c", script], capture_output=True, text=True)
    (tmp_path / "t/shut").chmod(0o700)
    assert done.stdout.strip() == "['a.txt'] [('folders that cannot be read', 'shut')]", done.stderr


# captions


def test_an_empty_caption_is_no_part_in_any_format(corpus: Path, told) -> None:
    """Empty, null, or an empty member: five formats, one rule; and where nothing else is there, the sample is a reject."""
    (corpus / "e").mkdir()
    sound = sorted((corpus / "sounds").glob("*.ogg"))[0].read_bytes()
    (corpus / "e/a.ogg").write_bytes(sound)
    empties: list[Any] = ["", None, "x"]

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (corpus / "e" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("metadata.jsonl", [{"file_name": "a.ogg", "text": text} for text in empties])
    write(
        "i.jsonl",
        [{"parts": [{"text": text}, {"speech": "a.ogg"}, {"text": ""}]} for text in empties]
        + [{"parts": [{"text": ""}]}],
    )
    write("n.json", [{"audio_filepath": "a.ogg", "text": text} for text in empties])
    pq.write_table(pa.table({"t": [*empties, None], "s": [sound] * 3 + [None]}), corpus / "e/p.parquet")
    members = [("0.ogg", sound), ("0.txt", b""), ("1.ogg", sound), ("1.json", b'{"text": null}')]
    tar(corpus / "e/w.tar", [*members, ("2.ogg", sound), ("2.json", b'{"text": "x"}'), ("3.txt", b"")])
    formats: list[tuple[dict[str, Any], list[str]]] = [
        ({"format": "folder", "path": "e/metadata.jsonl", "modality": "speech"}, []),
        ({"format": "interleaved", "path": "e/i.jsonl"}, ["no-parts"]),
        ({"format": "nemo", "path": "e/n.json"}, []),
        ({"format": "parquet", "path": "e/p.parquet", "columns": {"t": "text", "s": "speech"}}, ["no-parts"]),
        ({"format": "webdataset", "path": "e/w.tar"}, ["no-parts"]),
    ]
    for entry, rejects in formats:
        found, bad, _ = told(**entry)
        assert (kinds(found), bad) == (["s", "s", "ts"], rejects), entry["format"]
