"""The cache is bounded, removes only its own, survives every kill and every full disk, and always gives the right bytes."""

import os
import random
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chunks import done, files, made, refuse, right, start
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.core.errors import UserError
from motet.trainer.data import chunk_cache as module
from motet.trainer.data.chunk_cache import FOLDER, OURS, ChunkCache


@given(
    limit=st.integers(0, 1500),
    actions=st.lists(st.tuples(st.sampled_from(["get"] * 5 + ["drop"]), st.integers(0, 9)), max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_least_recently_used(tmp_path_factory, limit, actions):
    """What is kept is exactly what a list of the least recently used would keep; nothing above the limit."""
    folder = tmp_path_factory.mktemp("cache")
    cache, kept, model = ChunkCache(folder, limit), limit - limit // 8, OrderedDict[str, int]()
    for action, seed in actions:
        key, data = made(seed, seed * 60)  # chunk 0 is empty
        if action == "drop":
            cache.drop(key)
            model.pop(key, None)
            continue
        fetched = []
        assert bytes(cache.get(key, lambda data=data, fetched=fetched: fetched.append(1) or data)) == data
        assert bool(fetched) == (key not in model)
        if 0 < len(data) <= kept:
            model[key] = len(data)
            model.move_to_end(key)
        while sum(model.values()) > kept:
            model.popitem(last=False)
        assert files(folder) == {f"{key}.chunk": size for key, size in model.items()}


def test_seldom_looks_at_the_folder(tmp_path, monkeypatch):
    looks, scandir = [], os.scandir
    monkeypatch.setattr(module.os, "scandir", lambda folder: looks.append(1) or scandir(folder))
    cache = ChunkCache(tmp_path, 256 * 100)
    for seed in range(1000):
        right(cache, seed, 10)
        assert seed % 100 or sum(files(tmp_path).values()) <= 256 * 100
    for seed in range(990, 1000):
        for _ in range(100):
            right(cache, seed, 10)
    assert len(looks) <= 1 + 1000 / 10


def test_first_use_sees_what_was_there(tmp_path):
    for seed in range(10):
        right(ChunkCache(tmp_path, 10000), seed, 1000)
    right(ChunkCache(tmp_path, 3000), 7, 1000)  # a hit
    assert sum(files(tmp_path).values()) <= 3000


def test_nothing_is_made_before_it_is_used(tmp_path):
    ChunkCache(tmp_path / "later", 10)
    assert not (tmp_path / "later").exists()


def test_larger_than_the_limit(tmp_path):
    cache = ChunkCache(tmp_path, 1000)
    for seed, size in enumerate([1001, 100, 10**6]):
        right(cache, seed, size)
    assert list(files(tmp_path).values()) == [100]


def test_settings(tmp_path):
    with pytest.raises(UserError, match=r"-1 bytes.*give"):
        ChunkCache(tmp_path, -1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: is a file; choose"):
        ChunkCache(tmp_path / "file", 10)
    for key in ["", "..", "../x", "a/b", "a.chunk", "a\0", "a\n", "é", "x" * 200]:
        with pytest.raises(ValueError, match="key"):
            ChunkCache(tmp_path, 10).get(key, refuse)
        with pytest.raises(ValueError, match="key"):
            ChunkCache(tmp_path, 10).drop(key)


def test_errors_of_fetching_pass(tmp_path):
    def fail() -> bytes:
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError):
        ChunkCache(tmp_path, 1000).get("a", fail)
    right(ChunkCache(tmp_path, 1000), 0, 100)


def test_removes_only_its_own(tmp_path):
    """Everything else in the folder survives that 100 times the limit passes through it."""
    chunks = tmp_path / "cache" / FOLDER
    chunks.mkdir(parents=True)
    precious = tmp_path / "precious.chunk"
    strange = [
        "a.chunk.bak",
        ".chunk",
        "a b.chunk",
        "a.CHUNK",
        "chunk",
        "a.b.chunk",
        f"a.{'g' * 32}.partial",
        "a.partial",
    ]
    for path in [precious, chunks.parent / "b.chunk", *(chunks / name for name in strange)]:
        path.write_bytes(b"precious")
        os.utime(path, (0, 0))
    (chunks / "link.chunk").symlink_to(precious)
    (chunks / "folder.chunk").mkdir()
    (chunks / "folder.chunk" / "c.chunk").write_bytes(b"precious")
    (chunks / "linked").symlink_to(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path != chunks}
    cache = ChunkCache(tmp_path / "cache", 1000)
    for seed in range(1000):
        right(cache, seed, 100)
    cache.drop("folder")
    assert bytes(cache.get("folder", lambda: b"a folder is in the place")) == b"a folder is in the place"
    assert {path for path in tmp_path.rglob("*") if not OURS.fullmatch(path.name) or path in before} >= before
    assert precious.read_bytes() == b"precious"
    cache.drop("link")
    assert precious.read_bytes() == b"precious"


def test_a_link_in_place_of_the_folder(tmp_path, caplog):
    for i in range(50):
        (tmp_path / f"{i}.chunk").write_bytes(b"precious" * 100)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / FOLDER).symlink_to(tmp_path)
    cache = ChunkCache(tmp_path / "cache", 1000)
    for seed in range(20):
        right(cache, seed, 100)
        cache.drop(str(seed))
    assert len(list(tmp_path.glob("*.chunk"))) == 50
    assert len(caplog.records) == 1


def test_a_buffer_outlives_its_file(tmp_path):
    cache = ChunkCache(tmp_path, 10**5)
    held = [right(cache, seed, 3 * 10**4) for seed in range(20)]
    for path in (tmp_path / FOLDER).iterdir():
        path.unlink()
    (tmp_path / FOLDER).rmdir()
    assert [bytes(chunk) for chunk in held] == [made(seed, 3 * 10**4)[1] for seed in range(20)]
    opened = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in opened if FOLDER in str(path)]  # thousands of buffers need no descriptors
    right(cache, 0, 100)  # and the folder is made again


def test_truncated_and_damaged(tmp_path):
    cache, (key, data) = ChunkCache(tmp_path, 10**5), made(0, 5000)
    right(cache, 0, 5000)
    path = tmp_path / FOLDER / f"{key}.chunk"
    for size in [0, 1, 4096, 4999]:
        os.truncate(path, size)
        if size:
            assert bytes(cache.get(key, refuse)) == data[:size]  # the reader sees that by the hash
            cache.drop(key)
        assert bytes(cache.get(key, lambda: data)) == data
        assert bytes(cache.get(key, refuse)) == data
    cache.drop("never-there")
    assert files(tmp_path) == {path.name: 5000}


def test_threads_fetch_in_parallel(tmp_path, caplog):
    """Every fetch waits for all others, of the same key and of different ones."""
    cache, together = ChunkCache(tmp_path, 10**5), threading.Barrier(12, timeout=60)

    def get(seed: int) -> bool:
        key, data = made(seed, 3000)
        return bytes(cache.get(key, lambda: together.wait() >= 0 and data)) == data

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(get, [0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 5]))
    assert files(tmp_path) == {f"{made(seed, 3000)[0]}.chunk": 3000 for seed in range(6)}
    assert not caplog.records


@pytest.mark.parametrize("temporary", ["unnamed", "named"])
def test_threads_evicting_each_other(tmp_path, monkeypatch, caplog, temporary):
    if temporary == "named":
        monkeypatch.setattr(module, "O_TMPFILE", 0)
    cache = ChunkCache(tmp_path, 8000)

    def work(worker: int) -> None:
        order = random.Random(worker)
        for _ in range(150):
            right(cache, order.randrange(15), 1000)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert sum(files(tmp_path).values()) <= 8000
    assert set(files(tmp_path)) <= {f"{made(seed, 1000)[0]}.chunk" for seed in range(15)}
    assert not caplog.records


def test_another_process_evicts_first(tmp_path, monkeypatch, caplog):
    unlink = os.unlink
    monkeypatch.setattr(module.os, "unlink", lambda *name, **at: (unlink(*name, **at), unlink(*name, **at)))
    cache = ChunkCache(tmp_path, 8000)
    for seed in range(20):
        right(cache, seed, 1000)
    assert set(files(tmp_path)) == {f"{made(seed, 1000)[0]}.chunk" for seed in range(13, 20)}
    assert not caplog.records


ROUNDS = """
sys.stdin.readline()
cache, order = ChunkCache(sys.argv[1], int(sys.argv[2])), random.Random(sys.argv[3])
for line in sys.stdin:
    for _ in range(int(line)):
        right(cache, order.randrange(200), order.choice([100, 1000]))
    right(cache, 1000, 1000)
    print("done", flush=True)
"""


@pytest.mark.parametrize("limit", [20_000, 80_000])
def test_processes_share_a_limit(tmp_path, limit):
    """Whenever all gets have returned, the folder is within the limit, whether chunks are added unseen (100) or not."""
    workers = [start(ROUNDS, tmp_path, limit, i) for i in range(4)]
    for worker in workers:
        print("start", file=worker.stdin, flush=True)
    for n in [0, 1, 3, 10, 30, 100, 100]:
        for worker in workers:
            print(n, file=worker.stdin, flush=True)
        assert [worker.stdout.readline() for worker in workers] == ["done\n"] * 4
        assert sum(files(tmp_path).values()) <= limit
        assert f"{made(1000, 1000)[0]}.chunk" in files(tmp_path)  # fetched by all at once, and just now
    for worker in workers:
        done(worker)


KILLS = """
from pathlib import Path
folder, limit, named, kills = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "named", int(sys.argv[4])
if named:
    module.O_TMPFILE = 0
wait, chunks, partial = random.Random(0), [made(seed, 200_000) for seed in range(30)], 0
for turn in range(kills):
    children = []
    for worker in range(2):
        children.append(os.fork())
        if not children[-1]:
            cache, order = ChunkCache(folder, limit), random.Random(f"{turn} {worker}")
            while True:
                key, data = order.choice(chunks)
                assert bytes(cache.get(key, lambda: data)) == data
    time.sleep(wait.random() * 0.03)
    for child in children:
        os.kill(child, 9)
        assert os.waitpid(child, 0)[1] == 9
    for path in (folder / module.FOLDER).iterdir():
        if named and path.suffix == ".partial":
            partial += 1
        else:
            assert path.name == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() + ".chunk"
print(partial)
"""


@pytest.mark.parametrize("temporary", ["unnamed", "named"])
def test_killed_at_any_moment(tmp_path, temporary):
    """Two processes at a time, killed 50 times: after each kill every chunk is whole, and nothing else is there."""
    limit = 2_000_000
    (tmp_path / FOLDER).mkdir()
    partial = int(done(start(KILLS, tmp_path, limit, temporary, 50)))
    assert partial == 0 or temporary == "named"
    assert len(files(tmp_path)) > 3
    right(ChunkCache(tmp_path, limit), 0, 50_000)
    assert sum(files(tmp_path).values()) <= limit  # with what was killed while it was written


def test_a_temporary_name_is_forgotten_after_an_hour(tmp_path):
    chunks, cache = tmp_path / FOLDER, ChunkCache(tmp_path, 10**6)
    chunks.mkdir()
    fresh, old = (chunks / f"{key}.{i * 32}.partial" for key, i in [("some-key", "0"), ("some-key", "1")])
    for path, age in [(fresh, 3000), (old, 4000)]:
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    right(cache, 0, 100)
    assert set(files(tmp_path)) == {fresh.name, f"{made(0, 100)[0]}.chunk"}
