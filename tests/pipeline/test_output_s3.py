"""A dataset on an object store: the bytes of a folder, one winner for every commit, whole files or none."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from motet.core.configuration import dump_config
from motet.core.errors import UserError
from motet.pipeline.dataset.gc import collect, orphans
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.store import Bucket, store_of
from motet.pipeline.job.job import tokenize_corpus


def contents(place: str | Path) -> dict[str, bytes]:
    """The manifest and all shards that are there."""
    store = store_of(place)
    shards = {f"shards/{name}": store.read(f"shards/{name}") for name in store.list("shards")}
    return {"manifest.json": store.read("manifest.json"), **shards}


def test_an_object_store_gets_the_bytes_of_a_folder(s3: str, corpus: Path, configure, tmp_path: Path) -> None:
    (corpus / "pictures/bad.png").write_bytes(b"no picture")
    with open(corpus / "pictures/metadata.jsonl", "ab") as rows:
        rows.write(b'{"file_name": "bad.png"}\n')
    tokenize_corpus(configure(), corpus, tmp_path / "out", workers=2)
    result = tokenize_corpus(configure(), corpus, f"{s3}/tokens", workers=2)
    assert contents(f"{s3}/tokens") == contents(tmp_path / "out")
    assert tokenize_corpus(configure(), corpus, f"{s3}/tokens").done == 0
    manifest = Manifest.load(f"{s3}/tokens")
    assert sum(1 for entry in manifest.shards for _ in manifest.open_shard(entry).documents()) == 49
    assert [r["reason"] for r in manifest.quarantine()] == ["not-an-image"]
    assert result.rejected == 1


def test_orphans_on_an_object_store_go_when_they_are_old(s3: str, corpus: Path, configure) -> None:
    place = f"{s3}/tokens"
    before = tokenize_corpus(configure(), corpus, place)
    after = tokenize_corpus(configure(partition_samples=5), corpus, place)
    assert not orphans(store_of(place), 24).files, "what another job wrote just now may be needed"
    time.sleep(1.1)  # an object's time has whole seconds
    gone = collect(store_of(place), 0).files
    assert {e.file for e in before.manifest.shards} - {e.file for e in after.manifest.shards} <= gone.keys()
    assert {e.file for e in after.manifest.shards if e.file} == {f for f in contents(place) if f != "manifest.json"}


def test_one_of_many_writers_wins(s3: str) -> None:
    store = Bucket(f"{s3}/one")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.create("commits/a.json", str(i).encode()), range(32)))
    assert sum(won) == 1 and store.read("commits/a.json") == str(won.index(True)).encode()


def test_two_drivers_at_once_do_no_harm(s3: str, corpus: Path, configure, tmp_path: Path) -> None:
    tokenize_corpus(configure(), corpus, tmp_path / "out")
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(tokenize_corpus, configure(), corpus, f"{s3}/tokens") for _ in range(2)]
        assert all(job.result().manifest.documents == 49 for job in jobs)
    assert contents(f"{s3}/tokens") == contents(tmp_path / "out")


def test_killed_while_it_uploads_it_ends_with_the_same_bytes(
    s3: str, corpus: Path, configure, killed_again, tmp_path: Path
) -> None:
    tokenize_corpus(configure(), corpus, tmp_path / "out")
    settings = yaml.safe_load(dump_config(configure()))
    for entry in settings["corpus"]:
        entry["path"] = str(corpus / entry["path"])
    (tmp_path / "tokenize.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "motet.orchestration", "tokenize", str(tmp_path / "tokenize.yaml")]
    command += ["--out", f"{s3}/tokens", "--workers", "2", "--json"]
    store = store_of(f"{s3}/tokens")
    killed = killed_again(command, 2, lambda: len(store.list("commits")), after=0.05, seed=2)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["documents"] == 49 and killed
    assert contents(f"{s3}/tokens") == contents(tmp_path / "out")


def test_a_place_that_cannot_be_written_is_told(s3: str, corpus: Path, configure) -> None:
    with pytest.raises(UserError, match=r"--out s3://nowhere/tokens: cannot be written: .*bucket"):
        tokenize_corpus(configure(), corpus, "s3://nowhere/tokens")
    with pytest.raises(UserError, match="ftq://x/y: Protocol not known"):
        tokenize_corpus(configure(), corpus, "ftq://x/y")


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_writing_is_tried_again_as_reading_is(s3: str, faults, fault: str) -> None:
    """Every request fails at first: what is written is there all the same, and one of two writers wins."""
    faults.fault = lambda method, path, n: fault if n == 1 else ""
    store = store_of(f"{s3}/tokens")
    store.write("a.json", b"first")
    store.write("a.json", b"second")
    with store.scratch() as path:
        path.write_bytes(b"a shard")
        store.put(path, "shards/b.arrow")
    assert store.read("a.json") == b"second" and store.read("shards/b.arrow") == b"a shard"
    assert store.create("c.json", b"mine") and not store.create("c.json", b"theirs")
    assert store.read("c.json") == b"mine" and store.list("shards")["b.arrow"].size == 7
    store.delete("a.json")
    assert set(store.list()) == {"c.json"}
