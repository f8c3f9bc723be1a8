"""Shards with right hashes and wrong insides: every reader of the pipeline says what is wrong, and none dies of it."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from forged import FORGED, Forged

from motet.core.errors import UserError
from motet.pipeline.dataset import view
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.index import NAME, SCHEMA, Index
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.verify import Verification
from motet.tokenizers.contract import TokenizerSpec


def problems(manifest: Manifest) -> str:
    return "\n".join(problem for _, found in Verification(manifest, workers=1).shards() for problem in found)


def test_what_the_forger_starts_from_is_sound(tmp_path: Path) -> None:
    manifest = Manifest.load(Forged("").write(tmp_path / "sound"))
    verification = Verification(manifest, workers=1)
    assert [found for _, found in verification.shards()] == [[]] and verification.whole() == []


@pytest.mark.parametrize("name", FORGED)
def test_every_reader_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    forged = FORGED[name]
    manifest = Manifest.load(forged.write(tmp_path / "forged"))
    with pytest.raises(DamagedShard, match=rf"(?s)forged\.arrow.*({forged.says})"):
        list(manifest.open_shard(manifest.shards[0]).documents())
    with pytest.raises(DamagedShard, match=forged.says):
        view.spread(manifest, 3)
    assert re.search(forged.says, problems(manifest))


def test_names_of_sources_are_not_decompressed_either(tmp_path: Path) -> None:
    """A dictionary is read before the first record batch, and no hash of a record batch covers it."""

    def rewrite(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.ipc.IpcWriteOptions]:
        named = pa.DictionaryArray.from_arrays(batch.column("source").indices, pa.array(["a", "b" * (1 << 24)]))
        whole = batch.set_column(batch.num_columns - 1, batch.schema.field("source"), named)
        return whole, pa.ipc.IpcWriteOptions(compression="lz4")

    manifest = Manifest.load(Forged("", rewrite=rewrite).write(tmp_path / "forged"))
    with pytest.raises(DamagedShard, match="compressed"):
        manifest.open_shard(manifest.shards[0])


def test_any_change_of_any_byte_of_a_message_is_sound_or_refused(tmp_path: Path) -> None:
    """Whoever can write right hashes can write any byte: 1500 of them, and not one ends the process."""
    random = np.random.default_rng(0)
    folder = Forged("").write(tmp_path / "base")
    entry = Manifest.load(folder).shards[0]
    raw = (folder / entry.file).read_bytes()
    refused = 0
    for n in range(300):
        data = bytearray(raw)
        for at in random.integers(entry.batch_offsets[0], entry.batch_offsets[1], 5).tolist():
            data[at] = int(random.integers(256))

        def change(columns: dict, data: bytearray = data) -> None:
            next(iter(columns.values())).base[:] = np.frombuffer(data, np.uint8)

        try:
            manifest = Manifest.load(Forged("", change).write(tmp_path / str(n)))
            for document in manifest.open_shard(manifest.shards[0]).documents():
                for modality, tokens in document.spans:
                    books = manifest.tokenizers[modality].codebooks
                    assert not books or (tokens.ids.reshape(-1, len(books)) < books).all()
        except DamagedShard:
            refused += 1
    assert refused > 100


INDEX = {
    "a record batch beyond all": ("end", [[10]], "without documents or bytes"),
    "no documents": ("rows", [[0]], "without documents or bytes"),
    "a source that is not there": ("source", [3], "a source that it does not name"),
    "more places than record batches": ("hash", [[1, 2]], "not as many places"),
    "a file elsewhere": ("file", ["shards/../../secret"], "outside of shards"),
    "an absolute file": ("file", ["/etc/passwd"], "outside of shards"),
}


@pytest.mark.parametrize("name", INDEX)
def test_an_index_that_leads_astray_is_refused(name: str, tmp_path: Path) -> None:
    column, value, says = INDEX[name]
    folder = Forged("").write(tmp_path / "forged")
    with pa.ipc.open_stream((folder / NAME).read_bytes()) as reader:
        batch = reader.read_next_batch()
    i = SCHEMA.names.index(column)
    _seal(folder, batch.set_column(i, SCHEMA.field(i), pa.array(value, SCHEMA.field(i).type)))
    with pytest.raises(UserError, match=rf"index\.arrow: is wrong inside: .*{says}"):
        Index.open(folder)


def test_an_index_of_other_columns_or_compressed_is_refused(tmp_path: Path) -> None:
    folder = Forged("").write(tmp_path / "forged")
    with pa.ipc.open_stream((folder / NAME).read_bytes()) as reader:
        batch = reader.read_next_batch()
    _seal(folder, batch, compression="zstd")
    with pytest.raises(UserError, match="compressed"):
        Index.open(folder)
    _seal(folder, batch.drop_columns(["hash"]))
    with pytest.raises(UserError, match="its columns are not those"):
        Index.open(folder)


def _seal(folder: Path, batch: pa.RecordBatch, **options: str) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    body = sink.getvalue().to_pybytes()
    (folder / NAME).write_bytes(body + xxhash.xxh3_128_digest(body))


@pytest.mark.parametrize(
    "change",
    [
        {"codebooks": []},
        {"codebooks": [0]},
        {"codebooks": [1.5]},
        {"codebooks": [1 << 40]},
        {"kind": "continuous"},
        {"kind": "else"},
        {"latent_dim": -4},
        {"latent_dim": 1 << 40, "kind": "continuous", "codebooks": []},
    ],
)
def test_a_tokenizer_that_none_can_be_is_refused(change: dict) -> None:
    spec = TokenizerSpec("bpe", "text", "discrete", (300,), 0, None, "text/plain", "t")
    with pytest.raises(ValueError, match="bpe: "):
        TokenizerSpec.from_json(spec.to_json() | change)
