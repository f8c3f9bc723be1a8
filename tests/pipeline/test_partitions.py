"""How corpora are cut into partitions: where, how large, and what is another partition."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import documents, pictures, read_all, tar

from motet.pipeline.corpus.files import Changed
from motet.pipeline.corpus.sources import read
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.partitions import partitions

BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_a_plan_of_text_cuts_where_lines_end_and_loses_none(corpus: Path, configure, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"Line {i} " + "x" * (i * 37 % 900)}).encode() for i in range(500)]
    for end in (b"", b"\n"):
        (corpus / "many.jsonl").write_bytes(b"\n".join(rows) + end)
        for size in (1, 100, 1000, 10**6):
            config = configure(corpus=[{"name": "m", "format": "text", "path": "many.jsonl"}], partition_bytes=size)
            texts = [s.parts[0][1] for p in partitions(config, corpus) for s in read(p, lambda *told: None)]
            assert texts == [json.loads(row)["text"].encode() for row in rows], size


def test_row_groups_are_put_together_or_cut(corpus: Path, configure) -> None:
    """Every row once and in order, whatever the row groups; small ones share a partition, large ones are cut."""
    texts = [f"Text {i} " + "abc " * (i % 50) for i in range(400)]
    for groups, size, least, most in ((7, 5000, 9, 15), (400, 5000, 3, 4), (1, 10**6, 1, 1), (150, 100, 9, 12)):
        pq.write_table(pa.table({"text": texts}), corpus / "rows.parquet", row_group_size=groups, use_dictionary=False)
        entry = {"name": "r", "format": "parquet", "path": "rows.parquet", "columns": {"text": "text"}}
        plan, found = read_all(configure(corpus=[entry], partition_bytes=size), corpus)
        assert [s.parts[0][1].decode() for s in found] == texts
        assert [s.position for s in found] == [f"rows.parquet#{i}" for i in range(400)]
        assert least <= len(plan) <= most, (groups, size, len(plan))


@pytest.mark.parametrize("name", ["a.parquet", "a.tar", "text.jsonl"])
def test_a_file_that_changed_since_the_plan_stops_the_partition(name: str, corpus: Path, configure) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), corpus / "a.parquet")
    tar(corpus / "a.tar", [("0.txt", b"a" * 9000)])
    kind = {"parquet": "parquet", "tar": "webdataset", "jsonl": "text"}[name.rsplit(".", 1)[1]]
    columns = {"columns": {"text": "text"}} if kind == "parquet" else {}
    config = configure(corpus=[{"name": "c", "format": kind, "path": name, **columns}])
    plan = partitions(config, corpus)
    (corpus / name).write_bytes((corpus / name).read_bytes()[:-600])
    with pytest.raises(Changed, match="it was changed; run the command again"):
        [sample for partition in plan for sample in read(partition, lambda *told: None)]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_columns_in_another_order_are_another_reading(kind: str, corpus: Path, configure, tmp_path: Path) -> None:
    """The order of `columns` is that of a document's parts: the commits of another order do not pass as done."""
    rows = pictures(corpus)[:6]
    images = pa.array([{"bytes": row["bytes"]} for row in rows], BYTES)
    pq.write_table(pa.table({"webp": images, "txt": [row["text"] for row in rows]}), corpus / "a.parquet")
    parts = (
        (f"{i}.{end}", row[key]) for i, row in enumerate(rows) for end, key in (("webp", "bytes"), ("txt", "text"))
    )
    tar(corpus / "a.tar", [(name, data if isinstance(data, bytes) else data.encode()) for name, data in parts])
    path = {"parquet": "a.parquet", "webdataset": "a.tar"}[kind]
    read_so = []
    for order in ((("txt", "text"), ("webp", "image")), (("webp", "image"), ("txt", "text"))):
        config = configure(corpus=[{"name": "c", "format": kind, "path": path, "columns": dict(order)}])
        result = tokenize_corpus(config, corpus, tmp_path / "out")
        assert result.done == result.partitions == 1
        read_so.append(documents(result.manifest))
        assert [modality for modality, _, _ in read_so[-1][0]] == [modality for _, modality in order]
    assert read_so[1] == [document[::-1] for document in read_so[0]]


def test_partitions_hold_as_many_samples_as_are_asked_for(corpus: Path, configure) -> None:
    """30 pictures by 8: in rows that name them, in a folder without rows, and as files of text; bytes that just fit do."""

    def held(**fields: Any) -> list[int]:
        entry = {"name": "p", **{key: fields.pop(key) for key in ("format", "path", "modality") if key in fields}}
        plan = partitions(configure(corpus=[entry], **fields), corpus)
        return [sum(1 for _ in read(partition, lambda *told: None)) for partition in plan]

    (corpus / "texts").mkdir()
    for i, row in enumerate(pictures(corpus)):
        (corpus / f"texts/{i:02d}.txt").write_text(f"{row['text']:200.200}", encoding="ascii", errors="replace")
    assert held(format="folder", path="pictures", modality="image", partition_bytes=10**6) == [8, 8, 8, 6]
    (corpus / "pictures/metadata.jsonl").unlink()
    assert held(format="folder", path="pictures", modality="image") == [8, 8, 8, 6]
    assert held(format="text", path="texts") == [8, 8, 8, 6]
    assert held(format="text", path="texts", partition_bytes=1000) == [5] * 6
    assert held(format="text", path="texts", partition_bytes=999) == [4] * 7 + [2]
    assert held(format="text", path="texts", partition_bytes=1) == [1] * 30, "a file that is larger stands alone"


@pytest.mark.parametrize("named", ["interleaved", "nemo", "nemo, whole paths"])
def test_media_that_changed_are_read_again_whoever_names_them(
    named: str, corpus: Path, configure, tmp_path: Path
) -> None:
    """Versions of the media that rows name are in the keys: only the partition of the changed file is done again."""
    sounds = sorted((corpus / "sounds").glob("*.ogg"))[:6]
    prefix = f"{corpus}/" if "whole" in named else ""
    names = [f"{prefix}sounds/{file.name}" for file in sounds]
    if named == "interleaved":
        rows = [{"parts": [{"text": "It says:"}, {"speech": name}]} for name in names]
    else:
        rows = [{"audio_filepath": name, "text": "It says:"} for name in names]
    (corpus / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entry = {"name": "m", "format": named.split(",")[0], "path": "rows.json"}
    config = configure(corpus=[entry], partition_samples=2)
    before = documents(tokenize_corpus(config, corpus, tmp_path / "out").manifest)
    sounds[3].write_bytes(sounds[0].read_bytes())
    result = tokenize_corpus(config, corpus, tmp_path / "out")
    assert (result.done, result.partitions) == (1, 3)
    assert documents(result.manifest) == [*before[:3], before[0], *before[4:]]


@pytest.mark.parametrize(
    "shape",
    ["column", "list", "parallel lists", "without bytes", "strings", "lists of strings", "rooted", "whole paths"],
)
def test_media_that_a_parquet_file_names_are_in_the_key(
    shape: str, corpus: Path, configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row of the first row group needs its path, all of the second do: the paths there decide, and nowhere else."""
    held = pa.struct([("bytes", pa.binary()), ("path", pa.string())][shape == "without bytes" :])
    monkeypatch.chdir(corpus)
    prefix = {"rooted": "", "whole paths": f"{corpus}/pictures/"}.get(shape, "pictures/")
    files = sorted((corpus / "pictures").glob("*.webp"))[:8]
    values: list[dict[str, Any]] = []
    for i, file in enumerate(files):
        inside = i < 4 and shape != "without bytes"
        values.append({"bytes": file.read_bytes() if inside else None, "path": prefix + file.name})
    column: dict[str, pa.Array] = {"image": pa.array(values, held)}
    columns = {"image": "image"}
    if "strings" in shape:
        names = [value["path"] for value in values]
        column = {"image": pa.array([[name] for name in names] if "lists" in shape else names)}
    if shape == "list":
        column = {"image": pa.array([[value] for value in values], pa.list_(held))}
    if shape == "parallel lists":
        column = {
            "image": pa.array([[value, None] for value in values], pa.list_(held)),
            "says": pa.array([[None, "a picture"] for _ in values]),
        }
        columns["says"] = "text"
    pq.write_table(pa.table(column), corpus / "rows.parquet", row_group_size=4)
    entry = {"name": "r", "format": "parquet", "path": "rows.parquet", "columns": columns}
    if shape == "rooted":
        entry["root"] = "pictures"
    config = configure(corpus=[entry], partition_samples=4)
    plan = partitions(config, corpus)
    # nulls of lists and nulls of bytes are one number in the footer, so there all paths are asked for
    expected = [4, 4] if shape in ("without bytes", "parallel lists") or "strings" in shape else [0, 4]
    assert [len(partition.versions) - 1 for partition in plan] == expected
    before = documents(tokenize_corpus(config, corpus, tmp_path / "out").manifest)
    files[5].write_bytes(files[0].read_bytes())
    result = tokenize_corpus(config, corpus, tmp_path / "out")
    assert (result.done, result.partitions, result.rejected) == (1, 2, 0)
    assert documents(result.manifest) == [*before[:5], before[0], *before[6:]]
    files[6].unlink()
    assert (
        tokenize_corpus(config.model_copy(update={"max_reject_fraction": 1.0}), corpus, tmp_path / "out").rejected == 1
    )


def test_another_root_is_another_set_of_media(corpus: Path, configure, tmp_path: Path) -> None:
    names = [file.name for file in sorted((corpus / "pictures").glob("*.webp"))[:2]]
    for folder, order in (("a", names), ("b", names[::-1])):
        (corpus / folder).mkdir()
        for name, content in zip(names, order, strict=True):
            (corpus / folder / name).write_bytes((corpus / "pictures" / content).read_bytes())
    pq.write_table(pa.table({"image": [{"path": name} for name in names]}), corpus / "rows.parquet")
    found = []
    for root in ("a", "b"):
        entry = {"name": "r", "format": "parquet", "path": "rows.parquet", "columns": {"image": "image"}, "root": root}
        result = tokenize_corpus(configure(corpus=[entry]), corpus, tmp_path / "out")
        assert result.done == 1
        found.append(documents(result.manifest))
    assert found[1] == found[0][::-1]


@pytest.mark.parametrize(
    "value",
    ["https://h.example/a?X-Amz-Signature=0123abcd", {"path": "HTTP://h.example/a"}, "data:image/png;base64,xx"],
)
def test_a_url_in_a_column_of_pictures_is_told_as_such(value: Any, corpus: Path, configure) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "image": [value, None]}), corpus / "rows.parquet")
    entry = {"name": "r", "format": "parquet", "path": "rows.parquet", "columns": {"text": "text", "image": "image"}}
    (partition,), (bad, sound) = read_all(configure(corpus=[entry]), corpus)
    assert bad.reason == "no-bytes" and "is the URL" in bad.detail and "0123abcd" not in bad.detail
    assert len(partition.versions) == 1, "nobody asks for it"
    assert sound.parts == (("text", b"b"),)
