"""Record batches are read when they are due, once, and only if they are whole."""

from pathlib import Path

import numpy as np
import pytest
from whole import everything

from motet.pipeline.dataset.header import DamagedShard
from motet.trainer.data import records
from motet.trainer.data.corpus import Corpus


def test_opening_reads_no_shard_and_a_record_batch_is_checked_once(dataset, monkeypatch):
    checked = []
    intact = records.intact
    monkeypatch.setattr(records, "intact", lambda message, digest: checked.append(digest) or intact(message, digest))
    corpus = Corpus.open([dataset])
    assert not checked
    for _ in range(3):
        corpus.read(np.array([0, 5, 3]))
    assert len(checked) == 1
    everything(corpus)
    everything(corpus)
    assert len(checked) == len(set(checked)) == len(corpus.records.before_K1) - 1


def test_damage_stops_who_needs_the_record_batch_and_nobody_else(write_dataset, documents):
    path = Path(write_dataset(documents))
    whole = everything(Corpus.open([str(path)]))
    random = np.random.default_rng(0)
    for shard in sorted((path / "shards").iterdir())[::3]:
        data = shard.read_bytes()
        for _ in range(10):
            damaged, found = bytearray(data), Corpus.open([str(path)])
            damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
            shard.unlink()  # never under the feet of a mapping
            shard.write_bytes(damaged)
            for number in range(0, len(whole), 20):
                try:
                    read = found.read(np.arange(number, min(number + 20, len(whole))))
                    same = slice(number, number + 20)
                    assert (read.sample_D2 == whole.sample_D2[same]).all()
                    assert (read.length_D == whole.length_D[same]).all()
                except DamagedShard as damage:
                    assert shard.name in str(damage)
        shard.unlink()
        shard.write_bytes(data)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_shard_cut_short_is_named(write_dataset, documents, size):
    path = Path(write_dataset(documents))
    shard = next((path / "shards").glob("speeches-*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:size])
    with pytest.raises(DamagedShard, match=shard.name):
        everything(Corpus.open([str(path)]))
