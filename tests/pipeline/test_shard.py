"""The shard: what was written is what is read, by motet and by every other Arrow reader, and damage is found."""

from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.pipeline.dataset.header import DamagedShard, ShardHeader
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.shard import Document, Shard, ShardWriter, sample_id
from motet.tokenizers.contract import TokenizerSpec, Tokens

SPECS = {
    "image": TokenizerSpec("vae", "image", "continuous", (), 3, 4.0, "image/png", "i"),
    "speech": TokenizerSpec("rvq", "speech", "discrete", (16, 16), 0, 40.0, "audio/wav", "s"),
    "text": TokenizerSpec("bpe", "text", "discrete", (70_000,), 0, None, "text/plain", "t"),
}


@st.composite
def span(draw: st.DrawFn) -> tuple[str, Tokens]:
    modality = draw(st.sampled_from(sorted(SPECS)))
    if modality == "text":
        ids = draw(arrays.arrays(np.int32, st.integers(0, 20), elements=st.integers(0, 69_999)))
        return modality, Tokens((len(ids),), ids=ids)
    if modality == "speech":
        ids = draw(arrays.arrays(np.int32, st.tuples(st.integers(0, 6), st.just(2)), elements=st.integers(0, 15)))
        return modality, Tokens(ids.shape, ids=ids.ravel())
    floats = st.floats(-8, 8, width=16)
    latents = draw(arrays.arrays(np.float16, st.tuples(st.sampled_from([0, 4, 6]), st.just(3)), elements=floats))
    return modality, Tokens((2, len(latents) // 2), latents=latents)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.lists(span(), max_size=5)), max_size=30))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, drawn: list) -> None:
    path = tmp_path_factory.mktemp("shard") / "s.arrow"
    documents = [Document(sample_id(s, str(i), [b"x"]), s, tuple(spans)) for i, (s, spans) in enumerate(drawn)]
    writer = ShardWriter(path, ShardHeader(tuple(SPECS), SPECS, "h"), ["a", "b"])
    for document in documents:
        writer.write(document)
    summary = writer.close()
    assert (summary.rows, summary.bytes) == (len(documents), path.stat().st_size)
    shard = Shard(path, summary)
    assert shard.header.tokenizers == SPECS
    for wrote, read in zip(documents, shard.documents(), strict=True):
        assert (wrote.sample_id, wrote.source, len(wrote.spans)) == (read.sample_id, read.source, len(read.spans))
        for (m, before), (n, after) in zip(wrote.spans, read.spans, strict=True):
            assert m == n and before.shape == after.shape
            for x, y in ((before.ids, after.ids), (before.latents, after.latents)):
                assert (x is None) == (y is None) and (x is None or np.array_equal(x, y))


def test_equal_content_shares_half_its_id_and_nothing_else_does() -> None:
    same = [sample_id(s, p, [b"ab", b"c"]) for s, p in (("x", "1"), ("y", "1"), ("x", "2"))]
    assert len({i[:8] for i in same}) == 1 and len({i[8:] for i in same}) == 3
    assert sample_id("x", "1", [b"a", b"bc"])[:8] != same[0][:8], "parts do not run together"


def test_the_manifest_is_read_as_written(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    assert manifest.to_text() == (dataset / "manifest.json").read_text(encoding="utf-8")


def test_every_reader_opens_it(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import duckdb
    import pandas
    import polars

    path = str(dataset / "shards/a.arrow")
    total = sum(Manifest.load(dataset).shards[0].tokens[m] for m in ("text", "speech"))
    mapped = pa.memory_map(path)
    bare = pa.ipc.open_file(mapped).read_all()
    frame = pandas.read_feather(path)
    assert len(frame) == 1200 and frame["tokens"].map(len).sum() == total
    lazy = polars.scan_ipc(path).collect()
    assert lazy.height == 1200 and lazy["tokens"].list.len().sum() == total
    # DuckDB knows no half floats; shards of codes it reads whole.
    with duckdb.connect() as connection:
        connection.register("codes", bare.drop_columns(["latents"]))
        assert connection.sql("select sum(len(tokens)) from codes").fetchall() == [(total,)]
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    rows = datasets.load_dataset("arrow", data_files=path, split="train", cache_dir=str(tmp_path))
    assert len(rows) == 1200 and sum(map(len, rows["tokens"])) == total


def test_readers_that_can_look_into_the_file_itself(dataset: Path) -> None:
    """pyarrow, pandas with Arrow types, Polars without rechunking and `datasets` copy no tokens; DuckDB always does."""
    import datasets
    import pandas
    import polars

    with pa.memory_map(str(dataset / "shards/a.arrow")) as mapped:
        whole = mapped.read_buffer()
        table = pa.ipc.open_file(mapped).read_all().select(["tokens"])
        frame = table.to_pandas(types_mapper=pandas.ArrowDtype)
        chunks = {
            "pyarrow": table["tokens"].chunks,
            "pandas": frame["tokens"].array._pa_array.chunks,
            "polars": [c.to_arrow() for c in polars.from_arrow(table, rechunk=False)["tokens"].get_chunks()],
            "datasets": datasets.Dataset(table).data.table["tokens"].chunks,
        }
        for reader, lists in chunks.items():
            assert lists, reader
            for values in (chunk.values.buffers()[1] for chunk in lists):
                assert whole.address <= values.address <= whole.address + whole.size - values.size, reader


def test_tokens_are_views_of_the_mapped_file(dataset: Path) -> None:
    with pa.memory_map(str(dataset / "shards/a.arrow")) as mapped:
        whole = mapped.read_buffer()
        start, end = whole.address, whole.address + whole.size
        batch = pa.ipc.open_file(mapped).get_batch(0)
        for name in ("tokens", "span_end", "latents"):
            buffers = [b for b in batch.column(name).buffers() if b is not None]
            assert buffers and all(start <= b.address and b.address + b.size <= end for b in buffers)
    shard = Shard(dataset / "shards/a.arrow")
    document = next(shard.documents())
    for _, tokens in document.spans:
        values = tokens.ids if tokens.ids is not None else tokens.latents
        assert not values.flags.owndata and not values.flags.writeable


def test_a_reader_refuses_a_damaged_record_batch(dataset: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(dataset)
    raw = bytearray((dataset / "shards/a.arrow").read_bytes())
    batch = pa.ipc.open_file(pa.memory_map(str(dataset / "shards/a.arrow"))).get_batch(1)
    tokens = batch.column("tokens").values.buffers()[1].to_pybytes()
    raw[raw.index(tokens[:64]) + 30] ^= 4
    (tmp_path / "a.arrow").write_bytes(raw)
    shard = Shard(tmp_path / "a.arrow", manifest.shards[0])
    shard.batch(0)
    with pytest.raises(DamagedShard, match="record batch 1 is damaged"):
        shard.batch(1)


def test_sample_ids_stay_those_of_the_datasets_that_are_there() -> None:
    """Pinned: held-out splits, duplicate counts and `motet view` know a document of an older dataset by its id."""
    golden = {
        ("books", "a.jsonl@0", (b"ab", b"c")): "642d4debfebf33aed0ce7c45b990b422",
        ("books", "a.jsonl@120", (b"ab", b"c")): "642d4debfebf33ae2b634795c78f0091",
        ("s\u00fc\u00df", "b/\u00e9.webp", ("\u00fc".encode(), bytes(range(256)))): "92cc189dd2de33e06048efc5036c3658",
        ("", "", ()): "2d06800538d394c2c44bdff4074eecdb",
    }
    for (source, position, content), expected in golden.items():
        body = b"".join(len(part).to_bytes(8, "little") + part for part in content)
        place = f"{source}\0{position}".encode()
        assert xxhash.xxh3_64_digest(body) + xxhash.xxh3_64_digest(place) == bytes.fromhex(expected)
        assert sample_id(source, position, content).hex() == expected
    assert sample_id("a", "b/c", ())[8:] != sample_id("a/b", "c", ())[8:], "source and position do not run together"
