"""The index says what the manifest says, finds every record batch in its file, and is refused if a bit is not as written."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from motet.core.errors import UserError
from motet.pipeline.dataset import index
from motet.pipeline.dataset.index import Index, to_bytes
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.store import store_of
from motet.pipeline.dataset.verify import Verification
from motet.pipeline.job.job import tokenize_corpus


@pytest.fixture
def tokenized(corpus: Path, configure, tmp_path: Path) -> Path:
    tokenize_corpus(configure(), corpus, tmp_path / "out")
    return tmp_path / "out"


def test_every_record_batch_is_found_and_read_alone(tokenized: Path) -> None:
    manifest, found = Manifest.load(tokenized), Index.open(tokenized)
    entries = [entry for entry in manifest.shards if entry.file]
    assert found.file_F.to_pylist() == [entry.file for entry in entries] and len(entries) > 3
    assert found.rows_K.tolist() == [rows for entry in entries for rows in entry.batch_rows]
    assert found.tokenizers == manifest.tokenizers
    for k, f in enumerate(found.shard_K.tolist()):
        with pa.memory_map(str(tokenized / entries[f].file)) as file:
            whole = file.read_buffer()
            message = whole[found.begin_K[k] : found.end_K[k]]
            assert xxhash.xxh3_64_intdigest(message) == found.hash_K[k]
            header = found.sources[found.source_F[f]].header
            shard = pa.ipc.open_file(whole)
            plain = [field.with_type(pa.int16()) if field.name == "source" else field for field in header.schema()]
            alone = pa.ipc.read_record_batch(pa.ipc.read_message(message), pa.schema(plain))
            batch = shard.get_batch(k - int(np.searchsorted(found.shard_K, f)))
            assert alone.column("tokens").equals(batch.column("tokens")) and alone.num_rows == found.rows_K[k]
    for source in found.sources:
        own = [entry for entry in entries if entry.source == source.name]
        assert source.documents == sum(entry.rows for entry in own)
        assert sum(source.tokens.values()) == sum(sum(entry.tokens.values()) for entry in own)


def test_an_index_that_is_not_there_is_made_of_the_manifest(tokenized: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tokenized, tmp_path / "copy")
    (copy / index.NAME).unlink()
    assert Index.open(copy).hash == Index.open(tokenized).hash


def test_any_flipped_bit_is_refused_and_the_job_writes_it_again(
    tokenized: Path, corpus: Path, configure, tmp_path: Path
) -> None:
    whole = to_bytes(Manifest.load(tokenized))
    assert (tokenized / index.NAME).read_bytes() == whole
    for at in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(UserError, match=r"index\.arrow: is damaged"):
            Index.of(pa.py_buffer(bytes(damaged)), store_of(tokenized))
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        with pytest.raises(UserError, match=r"index\.arrow: is damaged"):
            Index.of(pa.py_buffer(whole[:size]), store_of(tokenized))

    copy = shutil.copytree(tokenized, tmp_path / "copy")
    (copy / index.NAME).write_bytes(whole[:-1])
    check = Verification(Manifest.load(copy))
    assert not any(problems for _, problems in check.shards())
    assert any("index.arrow: does not say" in problem for problem in check.whole())
    tokenize_corpus(configure(), corpus, copy)
    assert (copy / index.NAME).read_bytes() == whole
