"""Training reads no shard that is wrong inside, and says so of one that is changed under its feet."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from forged import FORGED, Forged
from whole import everything

from motet.trainer.data import columns
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.records import LostBatches


def test_what_the_forger_starts_from_is_read(tmp_path):
    assert len(everything(Corpus.open([str(Forged("").write(tmp_path / "sound"))]))) == 20


@pytest.mark.parametrize("name", FORGED)
def test_a_shard_that_is_wrong_inside_is_left_out(name, tmp_path):
    forged = FORGED[name]
    corpus = Corpus.open([str(forged.write(tmp_path / "forged"))])
    for read in (corpus.survey, corpus.outline, corpus.read):
        with pytest.raises(LostBatches, match=rf"(?s)forged\.arrow: record batch 0 .*({forged.says})"):
            read(np.arange(20))


def test_ids_that_are_wider_than_the_index_says_are_left_out(tmp_path):
    """The index is another file than the shard: what it says of the ids' width is held against what is there."""
    import pyarrow as pa

    def rewrite(batch):
        field = batch.schema.field("tokens").with_type(pa.list_(pa.field("item", pa.uint32(), nullable=False)))
        wide = batch.column("tokens").cast(field.type)
        return batch.set_column(1, field, wide), pa.ipc.IpcWriteOptions()

    corpus = Corpus.open([str(Forged("", rewrite=rewrite).write(tmp_path / "forged"))])
    with pytest.raises(LostBatches, match=r"tokens: \d+ bytes for \d+ values of uint16"):
        corpus.read(np.arange(20))


CUT = """
import os, sys
import numpy as np
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.records import LostBatches
folder, file, size = sys.argv[1:]
corpus = Corpus.open([folder])
last = int(corpus.records.begin[-1])
corpus.read(np.arange(last))
os.truncate(file, int(size))
try:
    corpus.read(np.arange(last))
except LostBatches as error:
    print(error)
"""


@pytest.mark.parametrize("size", [0, 3, 4096])
def test_a_mapped_shard_that_is_cut_is_told_and_kills_nothing(write_dataset, documents, tmp_path, size):
    folder = shutil.copytree(write_dataset(documents), tmp_path / "cut")
    shard = sorted((folder / "shards").iterdir())[0]
    command = [sys.executable, "-c", CUT, str(folder), str(shard), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert shard.name in done.stdout and ("cut off" in done.stdout or "cannot be read" in done.stdout)


def test_a_shard_that_is_written_over_is_checked_again(write_dataset, documents, tmp_path):
    folder = shutil.copytree(write_dataset(documents), tmp_path / "over")
    corpus = Corpus.open([str(folder)])
    everything(corpus)
    shards = sorted((folder / "shards").iterdir())
    os.utime(shards[0])  # a new time, and the same bytes
    before = everything(corpus)
    with open(shards[0], "r+b") as file:  # in its place, of the same size
        file.seek(shards[0].stat().st_size // 2)
        file.write(bytes(200))
    with pytest.raises(LostBatches, match=rf"{shards[0].name}: record batch 0 is damaged"):
        everything(corpus)
    for shard in shards[1:]:  # by another file: what is mapped stays what it was
        data = shard.read_bytes()
        shard.unlink()
        shard.write_bytes(data[: len(data) // 2])
    held = before.number_D[before.source_D != before.source_D[0]]
    assert (corpus.read(held).length_D == before.length_D[held]).all()


WITHIN = """
import os, sys
import numpy as np
from motet.trainer.data.corpus import Corpus
folder, file = sys.argv[1:]
corpus = Corpus.open([folder])
number_N = np.arange(int(corpus.records.begin[-1]))
def work(place):
    os.truncate(file, 0)
    return corpus._read(number_N, place)
corpus._steadily(number_N, work)
"""


def test_a_cut_within_a_read_ends_the_process_and_says_where(write_dataset, documents, tmp_path):
    """What docs/stream.md says cannot be helped: nothing is left to read, and the traceback names who read it."""
    folder = shutil.copytree(write_dataset(documents), tmp_path / "within")
    shard = sorted((folder / "shards").iterdir())[0]
    command = [sys.executable, "-X", "faulthandler", "-c", WITHIN, str(folder), str(shard)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr and "corpus.py" in done.stderr


WRITER = """
import itertools, sys, time
file, at = sys.argv[1], int(sys.argv[2])
with open(file, "r+b", buffering=0) as shard:
    shard.seek(at)
    sound = shard.read(64)
    for i in itertools.count():
        time.sleep(0.015)
        shard.seek(at)
        shard.write(sound if i % 2 else bytes(byte ^ 0x55 for byte in sound))
        if i == 0:
            print("begun", flush=True)
"""


def test_what_is_read_while_a_shard_is_written_over_is_sound_or_refused(write_dataset, documents, tmp_path):
    """The bytes of an id column, by another process, again and again: never a document with other ids."""
    folder = shutil.copytree(write_dataset(documents), tmp_path / "while")
    corpus = Corpus.open([str(folder)])
    number_N = np.arange(int(corpus.records.begin[-1]))
    sound = corpus.read(number_N)
    part = corpus.records.parts[0]
    shard = folder / part.index.file_F[int(part.index.shard_K[0])].as_py()
    address = int(corpus.records._address_KC[part.first, columns.TOKENS])
    (mapped,) = (
        m for m in corpus.records._mapped.values() if m.buffer.address <= address < m.buffer.address + m.buffer.size
    )
    command = [sys.executable, "-c", WRITER, mapped.path, str(address - mapped.buffer.address)]
    assert shard.exists()
    seen = Counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout.readline() == b"begun\n"
            until = time.monotonic() + 4
            while time.monotonic() < until:
                try:
                    found = corpus.read(number_N)
                except LostBatches:
                    seen["refused"] += 1
                    continue
                assert (found.tokens_T == sound.tokens_T).all()
                seen["sound"] += 1
        finally:
            writer.kill()
    assert min(seen["sound"], seen["refused"]) > 10, seen


def test_a_shard_that_is_a_pipe_is_named(write_dataset, documents, tmp_path):
    folder = shutil.copytree(write_dataset(documents), tmp_path / "pipe")
    shard = sorted((folder / "shards").iterdir())[0]
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(LostBatches, match=f"{shard.name}: record batch 0 cannot be read: it is no file"):
        everything(Corpus.open([str(folder)]))
