"""Rows that were ready before: every one once an epoch, in an order that any batch knows by itself."""

from pathlib import Path

import numpy as np
import pytest
from whole import everything

from motet.core.errors import UserError
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.shard import Document, sample_id
from motet.tokenizers.contract import Tokens
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.plain_rows import TokenRows

LENGTH, DOCUMENTS = 64, 1000


@pytest.fixture(scope="module")
def rows(write_dataset) -> str:
    """A thousand rows; each begins with its own number."""
    random = np.random.default_rng(0)
    found = []
    for i in range(DOCUMENTS):
        ids = random.integers(0, 256, LENGTH).astype(np.uint8)
        ids[:2] = divmod(i, 256)
        spans = (("text", Tokens((LENGTH,), ids=ids)),)
        found.append(Document(sample_id("rows", str(i), [ids.tobytes()]), "rows", spans))
    return write_dataset(found, 300)


def numbers(batch) -> list[int]:
    return (256 * batch[:, 0] + batch[:, 1]).tolist()


@pytest.mark.parametrize("ahead", [1, 5000, 1 << 19])
def test_an_epoch_has_every_row_once_and_any_batch_is_known_by_its_number(rows, monkeypatch, ahead):
    monkeypatch.setattr("motet.trainer.data.plain_rows.AHEAD", ahead)
    found = TokenRows(Corpus.open([rows]), 16, seed=3)
    running = [next_one.clone() for next_one, _ in zip(found.batches(), range(250), strict=False)]
    assert {tuple(batch.shape) for batch in running} == {(16, LENGTH)}
    seen = [n for batch in running for n in numbers(batch)]
    for epoch in range(4):
        assert sorted(seen[epoch * DOCUMENTS : (epoch + 1) * DOCUMENTS]) == list(range(DOCUMENTS))
    assert seen[:DOCUMENTS] != seen[DOCUMENTS : 2 * DOCUMENTS]
    for number in (249, 0, 63, 100):
        assert (TokenRows(Corpus.open([rows]), 16, seed=3).batch(number) == running[number]).all()
    assert numbers(TokenRows(Corpus.open([rows]), 16, seed=4).batch(0)) != seen[:16]


def test_what_is_read_is_what_was_written(rows):
    corpus = Corpus.open([rows])
    whole = everything(corpus).tokens_T.reshape(-1, LENGTH)
    batch = TokenRows(corpus, 8, seed=0).batch(5)
    assert (batch.numpy() == whole[[256 * a + b for a, b in batch[:, :2].tolist()]]).all()


def test_documents_of_different_lengths_are_refused(dataset):
    with pytest.raises(UserError, match=r"documents of different lengths, the first has .* pack them with `Order`"):
        TokenRows(Corpus.open([dataset]), 8, seed=0).batch(0)


def test_damage_is_named(rows, tmp_path):
    shard = sorted((Path(rows) / "shards").iterdir())[2]
    data = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(data[:9000] + bytes([data[9000] ^ 1]) + data[9001:])
    try:
        with pytest.raises(DamagedShard, match=shard.name):
            list(zip(TokenRows(Corpus.open([rows]), 16, seed=0).batches(), range(70), strict=False))
    finally:
        shard.unlink()
        shard.write_bytes(data)
