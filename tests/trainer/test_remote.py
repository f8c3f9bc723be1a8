"""Every step can be the first after a restart; far shards give the batches of near ones, whatever the network does."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
from whole import everything

from motet.core.errors import UserError
from motet.pipeline import remote
from motet.trainer.config import DataConfig
from motet.trainer.data.chunk_cache import ChunkCache
from motet.trainer.data.collate import Noise
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.loader import Loader
from motet.trainer.data.order import Cursor, Damage, Order
from motet.trainer.data.records import LostBatches, Records
from motet.trainer.run.metrics import hash_of_rows
from motet.trainer.vocabulary import Towers, Vocabulary

STEPS = 12
WEIGHTS = {
    "none": {},
    "source": {"weights": {"emoji": 3, "families": 1, "prompts": 2, "speeches": 1}},
    "modality": {"modality_weights": {"text": 0.5, "image": 0.3, "speech": 0.2}},
}


def stream_of(path: str, cache: Path, cursor: str | None = None, **data) -> Loader:
    """A stream as a new process opens it."""
    corpus = Corpus(Records.open([path], ChunkCache(cache, 10**8)), "train", 0.05)
    vocabulary = Vocabulary.of(corpus.tokenizers)
    order = Order(corpus, DataConfig(**{"paths": [path], "sequence": 64, "shuffle": 1, **data}), rows=50, seed=2)
    if cursor:
        row, *taken = json.loads(cursor)
        order.remember(Cursor(row, *map(tuple, taken)))
    return Loader(order, vocabulary, Towers.of(vocabulary, {}), Noise(0, 1000))


def batch(loader: Loader, step: int) -> int:
    """A hash of everything that a step is given."""
    found = loader.micro_batches(step, micro_rows=50)
    assert len(found) == 1
    return hash_of_rows(found[0], range(50))


@pytest.fixture
def far(s3: str, dataset: str) -> str:
    """The dataset on an object store."""
    import s3fs

    s3fs.S3FileSystem().put(dataset, f"{s3}/tokens", recursive=True)
    return f"{s3}/tokens"


@pytest.mark.parametrize(("weights", "long"), product(WEIGHTS, ["split", "truncate"]))
def test_from_every_step_the_rest_is_what_it_was(dataset, far, tmp_path, weights, long):
    """Mixture, packing, near or far, with a warm cache and a cold one: bit by bit."""
    settings = {"long": long, **WEIGHTS[weights]}
    undisturbed = stream_of(dataset, tmp_path / "none", **settings)
    whole = [batch(undisturbed, step) for step in range(STEPS)]
    assert len(set(whole)) == STEPS
    assert undisturbed.order.cursor(STEPS - 1).row > 0  # several windows
    for path, step in product((dataset, far), range(STEPS)):
        cache = tmp_path / ("cold" if step % 4 == 0 else "warm")
        shutil.rmtree(tmp_path / "cold", ignore_errors=True)
        loader = stream_of(path, cache, json.dumps(undisturbed.order.cursor(step)), **settings)
        assert [batch(loader, later) for later in range(step, STEPS)] == whole[step:]
    assert (tmp_path / "warm").exists() and not (tmp_path / "none").exists()  # only what is far needs a cache


@pytest.mark.parametrize("kind", ["503", "reset", "cut", "short", "slow"])
def test_a_network_that_fails_for_a_while_changes_nothing(faults, far, dataset, tmp_path, kind):
    near = stream_of(dataset, tmp_path / "none")
    faults.fault = lambda method, path, n: kind if "shards/" in path and n <= 2 else ""
    loader = stream_of(far, tmp_path / "cache")
    assert [batch(loader, step) for step in range(3)] == [batch(near, step) for step in range(3)]
    assert any("shards/" in path and n > 1 for (_, path, _), n in faults.asked.items()) or kind == "slow"


def test_a_network_that_breaks_for_good_stops_with_a_clear_word(faults, far, tmp_path):
    loader = stream_of(far, tmp_path / "cache")
    faults.fault = lambda method, path, n: "reset"
    for what, opened in (("shards/", loader), ("", None)):
        with pytest.raises(remote.Unreachable, match=rf"tokens/{what}.*asked 8 times.*the same command goes on"):
            batch(opened or stream_of(far, tmp_path / "cache"), 0)
    faults.fault = lambda method, path, n: "expired"
    with pytest.raises(UserError, match="the store refuses"):
        batch(stream_of(far, tmp_path / "cache"), 0)


def test_pieces_are_fetched_once_a_cache(faults, far, tmp_path):
    for _ in range(3):
        loader = stream_of(far, tmp_path / "cache")
        for step in range(STEPS):
            batch(loader, step)
    asked = {key: n for key, n in faults.asked.items() if "shards/" in key[1]}
    assert len(asked) > 3 and set(asked.values()) == {1}


def test_a_piece_damaged_in_the_cache_is_fetched_again(faults, far, dataset, tmp_path):
    expected = batch(stream_of(dataset, tmp_path / "none"), 0)
    assert batch(stream_of(far, tmp_path / "cache"), 0) == expected
    for piece in (tmp_path / "cache/motet-chunks").iterdir():
        data = bytearray(piece.read_bytes())
        data[len(data) // 3] ^= 1
        piece.unlink()
        piece.write_bytes(data)
    assert batch(stream_of(far, tmp_path / "cache"), 0) == expected
    assert max(n for key, n in faults.asked.items() if "shards/" in key[1]) == 2


@pytest.mark.parametrize("how", ["flip", "delete"])
def test_a_far_shard_that_is_not_whole_is_lost_and_others_take_its_place(far, dataset, write_dataset, tmp_path, how):
    import s3fs

    store = s3fs.S3FileSystem()
    shard = sorted(store.ls(f"{far}/shards"))[1]
    data = bytearray(store.cat_file(shard))
    data[len(data) // 2] ^= 1
    store.rm_file(shard)
    if how == "flip":
        store.pipe_file(shard, bytes(data))
    loader = stream_of(far, tmp_path / "cache")
    with pytest.raises(LostBatches, match=shard.rsplit("/", 1)[1]) as found:
        batch(loader, 0)
    loader.order.leave_out(Damage(found.value.row, lost) for lost in found.value.lost)
    lost = {k for each in found.value.lost for k in loader.order.corpus.records.batches_of(each).tolist()}
    for step in range(STEPS):
        batch(loader, step)
        number_D = loader.order.rows_of(step).documents.number_D
        assert not lost & set(loader.order.corpus.records.batch_of(number_D).tolist())
    assert 0 < loader.order.lost_documents() < 0.5


def test_a_far_dataset_without_a_cache_is_refused(far):
    with pytest.raises(UserError, match=r"data.paths: s3://.*needs data.cache"):
        everything(Corpus(Records.open([far])))
