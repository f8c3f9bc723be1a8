"""What a tokenizing job writes, and what its partitions are called, must not change unnoticed."""

import hashlib
import json
import os
from pathlib import Path

from motet.pipeline.corpus.sources import sample
from motet.pipeline.dataset import header, index, manifest
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


def test_keys_of_partitions(corpus: Path, configure, golden) -> None:
    """Their times are set: the version of a file is a part of the key."""
    for file in [corpus / "text.jsonl", corpus / "mixed.jsonl", *(corpus / "pictures").iterdir()]:
        os.utime(file, ns=(10**18, 10**18))
    plan = partitions(configure(corpus=[*configure().model_dump(mode="json")["corpus"]]), corpus)
    keys = {f"{p.entry.name} {p.index}": p.key("settings") for p in plan if p.entry.name != "sounds"}
    golden("keys of partitions", sample.READING, keys)
