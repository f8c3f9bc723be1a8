"""What folders of media say of them: metadata of every kind, and what lies beside."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import captions, kinds
from hypothesis import given
from hypothesis import strategies as st

from motet.core.errors import UserError
from motet.pipeline.corpus.sources.metadata import quoted

LINE = b'{"text": "x"}\n'
BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def rows(corpus: Path) -> list[dict[str, Any]]:
    """Two splits of three pictures each, without metadata; {"file_name", "caption"} of each."""
    found = []
    for split in ("train", "test"):
        (corpus / "set" / split).mkdir(parents=True)
        for i in range(3):
            (corpus / f"set/{split}/{i}.png").write_bytes(f"{split}{i}".encode())
            found.append({"split": split, "file_name": f"{i}.png", "caption": f'{split}, "{i}"\n\nof 3'})
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k != "split"} for row in rows])
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".csv":
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, table.column_names)
            writer.writeheader()
            writer.writerows(table.to_pylist())
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("where", ["splits", "root"])
@pytest.mark.parametrize("columns", [None, {"file_name": "image", "caption": "text"}])
def test_metadata_of_every_kind_in_every_place(
    ending: str, where: str, columns: dict[str, str] | None, corpus: Path, rows: list[dict[str, Any]], told
) -> None:
    if where == "root":
        write_rows(
            corpus / f"set/metadata.{ending}", [{**r, "file_name": f"{r['split']}/{r['file_name']}"} for r in rows]
        )
    else:
        for split in ("train", "test"):
            write_rows(corpus / f"set/{split}/metadata.{ending}", [row for row in rows if row["split"] == split])
    (corpus / "set/train/extra.png").write_bytes(b"extra")
    entry = {"columns": columns} if columns else {"modality": "image"}
    found, bad, left = told(format="folder", path="set", **entry)
    expected = rows if where == "root" else rows[3:] + rows[:3]
    order = -1 if columns else 1
    pairs = [
        [("text", r["caption"].encode()), ("image", f"{r['split']}{r['file_name'][0]}".encode())][::order]
        for r in expected
    ]
    assert found == pairs and not bad
    assert {kind: (row.count, row.example) for kind, row in left.items()} == {
        "files ending in .png that no row names": (1, "train/extra.png")
    }


def test_several_media_a_row_lists_of_them_and_other_captions(corpus: Path, rows: list[dict[str, Any]], told) -> None:
    row = {"input_file_name": "0.png", "edited_file_names": ["1.png", "2.png"], "text": "a", "caption": "b", "label": 3}
    (corpus / "set/train/metadata.jsonl").write_text(json.dumps(row) + "\n")
    found, _, left = told(format="folder", path="set", modality="image")
    assert kinds(found) == ["tiii", "i", "i", "i"], "a split without metadata gives its files"
    assert set(left) == {"field 'label'", "field 'caption'"}
    columns = {"caption": "text", "edited_file_names": "image", "input_file_name": "image", "text": "text"}
    found, _, left = told(format="folder", path="set/train", columns=columns)
    assert found[0] == [
        ("text", b"b"),
        ("image", b"train1"),
        ("image", b"train2"),
        ("image", b"train0"),
        ("text", b"a"),
    ]
    assert set(left) == {"field 'label'"}
    with pytest.raises(UserError, match="columns: no row of the metadata has 'captoin'; there are caption, "):
        told(format="folder", path="set/train", columns={"captoin": "text", "input_file_name": "image"})
    (corpus / "set/metadata.csv").write_text("LJ001-0001|Printing, in the only sense|Printing\n" * 2)
    with pytest.raises(UserError, match=r"has '\|' between values.*layout: ljspeech"):
        told(format="folder", path="set/metadata.csv", modality="image")
    (corpus / "set/metadata.csv").unlink()
    with pytest.raises(UserError, match=r"columns: .* holds no metadata.jsonl or "):
        told(format="folder", path="set/test", columns={"caption": "text", "file_name": "image"})


def test_rows_that_are_wrong_cost_themselves(corpus: Path, rows: list[dict[str, Any]], told) -> None:
    lines = [
        "file_name,text",
        '0.png,a 5" pipe',
        '1.png,"one, ""two"""',
        "2.png",
        "3.png,gone",
        "0.png,",
        '1.png,"open',
        "2.png,x",
    ]
    (corpus / "set/train/metadata.csv").write_text("\n".join(lines) + "\n")
    found, bad, _ = told(format="folder", path="set/train", modality="image")
    assert captions(found) == [['a 5" pipe'], ['one, "two"'], []]
    assert bad == ["bad-row", "missing-file", "not-csv"]
    (corpus / "set/train/metadata.csv").write_text("file_name,,\n0.png,a,b\n")
    with pytest.raises(UserError, match="does not name every column once"):
        told(format="folder", path="set/train", modality="image")
    (corpus / "set/train/metadata.csv").unlink()
    (corpus / "set/train/metadata.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UserError, match="is no Parquet file"):
        told(format="folder", path="set/train", modality="image")


def test_a_metadata_file_alone_as_common_voice_has_it(corpus: Path, rows: list[dict[str, Any]], told) -> None:
    lines = ["client_id\tpath\tsentence", '7\t0.png\t"Say ""no"""', '8\t1.png\tA "stray quote', "9\t9.png\tgone"]
    (corpus / "validated.tsv").write_text("\n".join(lines) + "\n")
    entry = {
        "format": "folder",
        "path": "validated.tsv",
        "root": "set/train",
        "columns": {"sentence": "text", "path": "image"},
    }
    found, bad, left = told(**entry)
    assert captions(found) == [['Say "no"'], ['A "stray quote']] and bad == ["missing-file"]
    assert found[1][1] == ("image", b"train1") and set(left) == {"field 'client_id'"}


@given(
    st.lists(st.tuples(st.text(st.sampled_from('a",\n é'), max_size=8), st.text(st.sampled_from('b",\n'), max_size=4))),
    st.integers(1, 9),
)
def test_csv_records_are_where_pythons_own_reader_has_them(values: list[tuple[str, str]], step: int) -> None:
    import csv

    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([("x", *value) for value in values])
    data = out.getvalue().encode()
    blocks = [data[i : i + step] for i in range(0, len(data), step)]
    found = [(place, next(csv.reader([record.decode()]))) for place, record in quoted(blocks) if record is not None]
    assert [row for _, row in found] == [["x", *value] for value in values]
    assert all(data[place : place + 1] == b"x" for place, _ in found)


def test_files_of_another_kind_beside_media_are_told(corpus: Path, told) -> None:
    (corpus / "set").mkdir()
    for name in ("0.png", "1.JPG", "noending", "README.md", "labels.csv", "a.wav"):
        (corpus / "set" / name).write_bytes(b"x")
    found, _, left = told(format="folder", path="set", modality="image")
    assert len(found) == 3 and set(left) == {f"files ending in .{end}" for end in ("md", "csv", "wav")}
