"""What a tokenizing job writes, and what its partitions are called, must not change unnoticed."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from motet.core.errors import UserError
from motet.pipeline.corpus.sources import sample
from motet.pipeline.dataset import header, index, manifest
from motet.pipeline.dataset.left_out import LeftOut
from motet.pipeline.dataset.seal import seal, unseal
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.partitions import partitions

TEXT = {"name": "text", "format": "text", "path": "text.jsonl"}


def test_a_text_dataset(corpus: Path, configure, tools: Path, tmp_path: Path, golden) -> None:
    config = configure(corpus=[TEXT], tokenizers={"text": {"use": "bpe", "path": str(tools / "bpe")}})
    tokenize_corpus(config, corpus, tmp_path / "out")
    found = manifest.Manifest.load(tmp_path / "out")
    files = {
        entry.file: hashlib.sha256((tmp_path / "out" / entry.file).read_bytes()).hexdigest() for entry in found.shards
    }
    ids = [document.sample_id.hex() for entry in found.shards for document in found.open_shard(entry).documents()]
    golden("shards of text", header.FORMAT_VERSION, files)
    golden("sample ids of text", header.FORMAT_VERSION, ids)
    written = json.loads((tmp_path / "out" / manifest.NAME).read_text("utf-8"))
    golden("manifest of text", manifest.FORMAT_VERSION, written)
    whole = hashlib.sha256((tmp_path / "out" / index.NAME).read_bytes()).hexdigest()
    golden("index of text", index.FORMAT_VERSION, whole)


def test_a_manifest_of_before_is_read_and_one_of_later_says_so(dataset: Path) -> None:
    """Format 1 has grown by fields that may be absent (`left_out`; of a shard `unknown`); those are never written empty."""
    now = manifest.Manifest.load(dataset)
    before = (dataset / manifest.NAME).read_bytes()
    assert b"left_out" not in before and b'"unknown"' not in before and now.to_text().encode() == before
    row = LeftOut("file", "*.docx", 2, 10, "a.docx", "nothing reads it", "leave it out of path")
    (entry,) = now.shards
    grown = replace(now, left_out={"a": (row,)}, shards=(replace(entry, unknown={"text": (1, 9)}),))
    read = manifest.Manifest.of(grown.to_text().encode(), now.store)
    assert read == grown
    data = unseal(grown.to_text().encode())
    del data["left_out"], data["shards"][0]["unknown"]
    assert manifest.Manifest.of(seal(json.dumps(data)), now.store) == now
    for change in (
        lambda data: data["shards"][0].update(quality=1),
        lambda data: data["left_out"]["a"][0].update(quality=1),
    ):
        later = unseal(grown.to_text().encode())
        change(later)
        with pytest.raises(
            UserError, match=r"manifest\.json: has fields .*\(quality\): a later one .* `motet tokenize` again"
        ):
            manifest.Manifest.of(seal(json.dumps(later)), now.store)


def test_keys_of_partitions(corpus: Path, configure, golden) -> None:
    """Their times are set: the version of a file is a part of the key."""
    for file in [corpus / "text.jsonl", corpus / "mixed.jsonl", *(corpus / "pictures").iterdir()]:
        os.utime(file, ns=(10**18, 10**18))
    plan = partitions(configure(corpus=[*configure().model_dump(mode="json")["corpus"]]), corpus)
    keys = {f"{p.entry.name} {p.index}": p.key("settings") for p in plan if p.entry.name != "sounds"}
    golden("keys of partitions", sample.READING, keys)
