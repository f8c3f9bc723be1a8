"""What a path may be that is not what it seems: the message names it and what to do."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.core.errors import UserError
from motet.pipeline.corpus.patterns import expand, listed
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.partitions import partitions


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "some words"}\n')


def refused(configure: Any, folder: Path, **entry: Any) -> str:
    with pytest.raises(UserError) as caught:
        partitions(configure(corpus=[{"name": "one", "format": "text", **entry}]), folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("data [v2]/*.jsonl", ["data [v2]/a.jsonl", "data [v2]/b.jsonl"]),
        ("data [v2]/deep/**/*.jsonl", ["data [v2]/deep/c.jsonl", "data [v2]/deep/er/d.jsonl"]),
        ("data [v2]/{a,b}.jsonl", ["data [v2]/a.jsonl", "data [v2]/b.jsonl"]),
        ("what {is,not} this?/*.jsonl", ["what {is,not} this?/e.jsonl"]),
        ("[ab]/*.jsonl", ["a/f.jsonl", "b/g.jsonl"]),
        ("[[]c]/*.jsonl", ["[c]/h.jsonl"]),
        ("data [v2]/[ab].jsonl", ["data [v2]/a.jsonl", "data [v2]/b.jsonl"]),
    ],
)
def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(
    path: str, names: list[str], tmp_path: Path, configure
) -> None:
    put(tmp_path, "data [v2]/a.jsonl", "data [v2]/b.jsonl", "data [v2]/deep/c.jsonl", "data [v2]/deep/er/d.jsonl")
    put(tmp_path, "what {is,not} this?/e.jsonl", "a/f.jsonl", "b/g.jsonl", "[c]/h.jsonl", "c/i.jsonl", "data v/j.jsonl")
    found = partitions(configure(corpus=[{"name": "one", "format": "text", "path": path}]), tmp_path)
    assert [p.span and Path(p.span[0]).relative_to(tmp_path).as_posix() for p in found] == names
    root, infos = listed(str(tmp_path / path))
    assert sorted(str(Path(root, name)) for name in infos) == [str(tmp_path / name) for name in names]


def test_a_bucket_has_such_names_too(s3: str) -> None:
    import s3fs

    for name in ("data [v2]/a.jsonl", "data v/b.jsonl"):
        s3fs.S3FileSystem().pipe(f"{s3}/{name}", b"{}")
    assert expand(f"{s3}/data [v2]/*.jsonl") == [f"{s3}/data [v2]/a.jsonl", f"{s3}/data v/b.jsonl"]


NAMES = st.text(st.sampled_from("ab[]{},*?!-.1 "), min_size=1, max_size=6).filter(lambda name: name.strip(". ") != "")


@settings(max_examples=60, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3), st.booleans())
def test_the_files_of_any_folder_are_found_below_it(tmp_path_factory, names: list[str], deep: bool) -> None:
    folder = tmp_path_factory.mktemp("any").joinpath(*names)
    folder.mkdir(parents=True)
    (folder / "x.jsonl").write_text("{}")
    assert expand(f"{folder}/*.jsonl") == [f"{folder}/x.jsonl"]
    assert expand(f"{folder}/{'**/' * deep}{{x,y}}.jsonl")[0] == f"{folder}/x.jsonl"


def test_a_pattern_that_matches_nothing_says_where_it_looked(tmp_path: Path, configure) -> None:
    put(tmp_path, "here/a.jsonl")
    assert f"matches no file below {tmp_path}/here;" in refused(configure, tmp_path, path="here/*.txt")
    assert f"there is no folder {tmp_path}/there" in refused(configure, tmp_path, path="there/*.jsonl")
    assert "[[] a bracket itself" in refused(configure, tmp_path, path="here/[v2].jsonl")


@pytest.mark.parametrize("name", ["a.tar.gz", "b.tgz", "C.TAR.XZ", "d.tar.zst"])
def test_a_compressed_tar_is_refused_with_its_cure(name: str, tmp_path: Path, configure) -> None:
    put(tmp_path, name)
    told = refused(configure, tmp_path, path=name, format="webdataset")
    assert f"{name} is compressed" in told and "unpack it to .tar" in told
    assert f"{name} is an archive, not text" in refused(configure, tmp_path, path=name)
    assert f"{name} is an archive, not text" in refused(configure, tmp_path, path="*")


@pytest.mark.parametrize("kind", ["gzip", "zip", "zstd"])
def test_what_is_only_called_a_tar_is_told_as_what_it_is(kind: str, tmp_path: Path, configure) -> None:
    import zstandard

    inner, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as out:
        out.addfile(tarfile.TarInfo("a.txt"))
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a.txt", "a")
    data = {
        "gzip": gzip.compress(inner.getvalue()),
        "zip": archive.getvalue(),
        "zstd": zstandard.compress(inner.getvalue()),
    }
    (tmp_path / "a.tar").write_bytes(data[kind])
    config = configure(corpus=[{"name": "one", "format": "webdataset", "path": "a.tar"}])
    (reject,) = tokenize_corpus(config, tmp_path, tmp_path / "out").manifest.quarantine()
    assert reject["reason"] == "lost-rest" and f"a {kind} file, no tar; unpack it first" in reject["detail"]


def test_columns_of_one_name_are_refused_where_they_are_wanted(tmp_path: Path, configure) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "text", "other"]), tmp_path / "a.parquet")
    for entry in ({"columns": {"text": "text"}}, {"columns": {"other": "text"}, "language": "text"}):
        told = refused(configure, tmp_path, path="a.parquet", format="parquet", **entry)
        assert "a.parquet has 2 columns 'text'" in told and "names of their own" in told
    config = configure(corpus=[{"name": "one", "format": "parquet", "path": "a.parquet", "columns": {"other": "text"}}])
    assert tokenize_corpus(config, tmp_path, tmp_path / "out").manifest.documents == 1
