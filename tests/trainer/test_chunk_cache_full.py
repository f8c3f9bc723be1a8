"""A cache of chunks whose disk or folder takes nothing more always gives the right bytes."""

import logging
import subprocess
from pathlib import Path

import pytest
from chunks import done, files, made, refuse, right, start

from motet.trainer.data import chunk_cache as module
from motet.trainer.data.chunk_cache import ChunkCache


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("temporary", ["unnamed", "named"])
def test_disk_full(tmp_path, monkeypatch, caplog, temporary, code):
    """A disk of 10000 bytes, by a stand-in for writing: what is old makes room, and nobody is told."""
    fill = module._fill

    def full(file, data: bytes) -> None:
        if sum(files(tmp_path).values()) + len(data) > 10_000:
            file.write(data[: len(data) // 2])
            raise OSError(getattr(module.errno, code), "full")
        fill(file, data)

    monkeypatch.setattr(module, "_fill", full)
    if temporary == "named":
        monkeypatch.setattr(module, "O_TMPFILE", 0)
    cache = ChunkCache(tmp_path, 10**9)
    for seed in range(100):
        right(cache, seed, 900)
        assert bytes(cache.get(made(seed, 900)[0], refuse)) == made(seed, 900)[1]
    assert set(files(tmp_path).values()) == {900}
    assert not caplog.records
    for seed in range(3):
        right(cache, seed, 20_000)  # never fits
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "full" in caplog.text


SMALL_DISK = """
import subprocess
from pathlib import Path
disk, chunks = Path(sys.argv[1]), Path(sys.argv[1]) / "motet-chunks"
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
cache = ChunkCache(disk, 10**9)
for seed in range(60):
    right(cache, seed, 100_000)
assert len(list(chunks.iterdir())) >= 5, "evicts more than it must"
print("quiet so far", file=sys.stderr, flush=True)

held = [right(cache, seed, 100_000) for seed in range(60)]  # what is mapped takes its room until it is let go
assert all(bytes(chunk) == made(seed, 100_000)[1] for seed, chunk in enumerate(held))
del held
right(cache, 100, 100_000)
assert (chunks / (made(100, 100_000)[0] + ".chunk")).exists(), "does not go on once there is room"

left = {path.name for path in chunks.iterdir()}
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
other = ChunkCache(disk, 1000)
for turn in range(2):
    for seed in range(40, 101):
        right(cache, seed, 100_000)
    right(other, 100, 100_000)  # would have to evict, and cannot
assert {path.name for path in chunks.iterdir()} == left
"""


def test_a_real_small_disk(tmp_path):
    """A disk that is full, full of mapped chunks, and read-only; where mounting is forbidden, test_disk_full has to do."""
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if tried.returncode:
        return
    said = done(start(SMALL_DISK, tmp_path, before=("unshare", "-rm")))
    before, after = said.split("quiet so far")
    assert "cannot be written" not in before
    assert after.count("No space left") == 1  # once, however often
    assert after.count("Read-only file system") == 1  # `other`
    assert list(tmp_path.iterdir()) == []


def test_files_of_limited_size(tmp_path):
    """Any other error in the middle of writing leaves nothing either."""
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
cache = ChunkCache(sys.argv[1], 10**6)
for seed in range(10):
    right(cache, seed, 5000 if seed % 2 else 3000)
"""
    assert done(start(script, tmp_path)).count("File too large") == 1
    assert set(files(tmp_path).values()) == {3000}


def test_a_folder_that_cannot_be_made(caplog):
    cache = ChunkCache(Path("/proc/motet"), 10**6)
    for seed in range(5):
        right(cache, seed, 100)
        cache.drop(made(seed, 100)[0])
    assert "choose another folder" in caplog.text
    assert len(caplog.records) == 1
