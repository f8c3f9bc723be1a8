"""What tests of the cache of chunks share: chunks that anybody can make, and processes that use them."""

import subprocess
import sys
from pathlib import Path

from motet.trainer.data.chunk_cache import FOLDER

# What the processes of these tests begin with: chunks of one random seed each, whose key is the hash of their bytes.
COMMON = """
import hashlib, os, random, sys, time
from motet.trainer.data import chunk_cache as module
from motet.trainer.data.chunk_cache import ChunkCache

def made(seed, size):
    data = random.Random(seed).randbytes(size)
    return hashlib.blake2b(data, digest_size=16).hexdigest(), data

def right(cache, seed, size):
    key, data = made(seed, size)
    chunk = cache.get(key, lambda: data)
    assert bytes(chunk) == data, seed
    return chunk
"""
exec(COMMON, helpers := {})
made, right = helpers["made"], helpers["right"]


def start(script: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [*before, sys.executable, "-c", COMMON + script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(process: subprocess.Popen, said: str | None = None) -> str:
    out, errors = process.communicate(said)
    assert process.returncode == 0, errors
    return out + errors


def files(folder: Path) -> dict[str, int]:
    """What is in the cache, by name."""
    return {path.name: path.stat().st_size for path in (folder / FOLDER).iterdir()}


def refuse() -> bytes:
    raise AssertionError("fetched a chunk that is there")
