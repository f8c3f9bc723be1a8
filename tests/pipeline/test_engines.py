"""What engines do when workers die or tokenizers fail: nothing committed is lost, and the message names the place."""

import platform
from pathlib import Path

import numpy as np
import pytest

from motet.core.errors import UserError
from motet.pipeline.dataset.gc import collect
from motet.pipeline.dataset.store import store_of
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.tokenize import BATCH
from motet.pipeline.job.work import PartitionFailed, WorkerLost

CLASSES = """
import os, re, resource, signal
import numpy as np
from motet.tokenizers.text.bpe import BPE
from motet.tokenizers.contract import BadSample, Tokens

class Killed(BPE):
    def encode(self, samples):
        if any("And now kill" in sample for sample in samples):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(samples)

class KilledOnce(BPE):
    def encode(self, samples):
        if any("And now kill" in sample for sample in samples) and not os.path.exists("CORPUS/killed"):
            open("CORPUS/killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(samples)

class Crashes(BPE):
    def load(self, data):
        if b"And now kill" in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().load(data)

class Leaves(BPE):
    def load(self, data):
        if b"And now kill" in data:
            os._exit(3)
        return super().load(data)

class Hangs(BPE):
    def load(self, data):
        if b"And now kill" in data:
            re.match("(a+)+$", "a" * 60 + "b")  # holds the interpreter's lock for years
        return super().load(data)

class KilledTogether(BPE):
    def encode(self, samples):
        if len(samples) > 1 and any("And now kill" in sample for sample in samples):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(samples)

class Mended(BPE):
    def load(self, data):
        if b"And now kill" in data and "MENDED" not in os.environ:
            raise BadSample("not-mended")
        return super().load(data)

class Sound(BPE):
    pass

class Raises(BPE):
    def load(self, data):
        return 1 / (b"And now kill" not in data) and super().load(data)

class Lies(BPE):
    def encode(self, samples):
        return [Tokens((1,), np.array([99_999])) if "And now kill" in s else t
                for s, t in zip(samples, super().encode(samples))]

class Busy(BPE):
    def encode(self, samples):
        for i in range(12):
            if i == 2:  # the heap is as large as it gets
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            some = [b"x" * (20 << 20) for _ in range(3)]  # numpy asks for huge pages
            del some
        pages = (60 << 20) // os.sysconf("SC_PAGE_SIZE")
        if resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before > pages:  # of ten times as many
            raise BadSample("memory-given-back")
        return super().encode(samples)

class Forgets(BPE):
    def encode(self, samples):
        return super().encode(samples)[:1]
"""


@pytest.fixture
def poisoned(corpus: Path, configure, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """make(class) -> a configuration of six texts, one a partition; the fourth makes the class fail."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/poison.py").write_text(CLASSES.replace("CORPUS", str(corpus)))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    rows = [f'{{"text": "This is number {i}. {"And now kill" if i == 3 else ""}"}}\n' for i in range(6)]
    (corpus / "six.jsonl").write_text("".join(rows), encoding="utf-8")

    def make(name: str):
        return configure(
            corpus=[{"name": "six", "format": "text", "path": "six.jsonl"}],
            tokenizers={"text": {"use": f"poison:{name}", "path": str(tools / "bpe")}},
            partition_bytes=30,
        )

    return make


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("Killed", "decoder-crashed", "SIGKILL"),
        ("Crashes", "decoder-crashed", "SIGSEGV"),
        ("Leaves", "decoder-crashed", "exit status 3"),
        ("Hangs", "decoder-timeout", "no result after 1 s"),
    ],
)
def test_a_decoder_that_crashes_or_hangs_costs_its_sample(
    name: str, reason: str, detail: str, poisoned, corpus: Path, tmp_path: Path
) -> None:
    """In partitions of one sample, and in one partition of all: the neighbours are there, with the same tokens."""
    for size in (30, 1 << 20):
        config = poisoned(name).model_copy(update={"partition_bytes": size, "sample_seconds": 1.0})
        result = tokenize_corpus(config, corpus, tmp_path / f"out{size}", workers=2)
        assert (result.manifest.documents, result.manifest.rejects()) == (5, {reason: 1})
        (reject,) = result.manifest.quarantine()
        assert detail in reject["detail"] and reject["hash"], reject
        assert tokenize_corpus(config, corpus, tmp_path / f"out{size}").done == 0, "and it is not tried again"
        sound = tokenize_corpus(poisoned("Sound"), corpus, tmp_path / "sound").manifest
        known = {d.sample_id: d for e in sound.shards for d in sound.open_shard(e).documents()}
        for entry in result.manifest.shards:
            for document in result.manifest.open_shard(entry).documents() if entry.rows else ():
                twin = known[document.sample_id]
                assert np.array_equal(document.spans[0][1].ids, twin.spans[0][1].ids)


def test_rejects_are_tried_again_if_asked(poisoned, corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MENDED", raising=False)
    config = poisoned("Mended").model_copy(update={"partition_bytes": 60, "keep_rejected": True})
    first = tokenize_corpus(config, corpus, tmp_path / "out")
    assert first.manifest.rejects() == {"not-mended": 1} and first.partitions > 2
    (reject,) = first.manifest.quarantine()
    assert b"And now kill" in reject["parts"][0]["bytes"]
    monkeypatch.setenv("MENDED", "1")
    assert tokenize_corpus(config, corpus, tmp_path / "out").done == 0
    again = tokenize_corpus(config, corpus, tmp_path / "out", retry_rejects=True)
    assert (again.done, again.manifest.documents, again.rejected) == (1, 6, 0)
    assert not list(again.manifest.quarantine())
    assert {path.split("/")[0] for path in collect(again.manifest.store, 0).files} <= {"shards", "rejects"}


def test_a_partition_that_kills_every_process_is_named(poisoned, corpus: Path, tmp_path: Path) -> None:
    config = poisoned("KilledTogether").model_copy(update={"partition_bytes": 80})
    with pytest.raises(WorkerLost, match=r"six, partition 1 \(six.jsonl\): kills its process: .*SIGKILL; .*goes on"):
        tokenize_corpus(config, corpus, tmp_path / "out")
    assert len(list((tmp_path / "out/commits").iterdir())) >= 1, "those before it are done"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Raises", r"six, partition 3 \(six.jsonl\): six.jsonl@93: bpe.load: ZeroDivisionError"),
        ("Lies", r"six.jsonl@93 to six.jsonl@93: bpe.encode gave ids up to 99999"),
    ],
)
def test_a_tokenizer_that_fails_is_named_with_the_sample(name, message, poisoned, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(PartitionFailed, match=message):
        tokenize_corpus(poisoned(name), corpus, tmp_path / "out")
    assert len(list((tmp_path / "out/commits").iterdir())) == 3 and not list((tmp_path / "out/.tmp").iterdir())


def test_a_tokenizer_that_loses_samples_is_told(poisoned, corpus: Path, tmp_path: Path) -> None:
    config = poisoned("Forgets").model_copy(update={"partition_bytes": 1 << 20})
    with pytest.raises(PartitionFailed, match=r"six.jsonl@0 to six.jsonl@167: bpe.encode gave 1 spans for 6 samples"):
        tokenize_corpus(config, corpus, tmp_path / "out")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_a_worker_takes_memory_that_it_freed_before(poisoned, corpus: Path, tmp_path: Path) -> None:
    """Blocks of 20 MB, which glibc would give back to the system and have zeroed anew each time."""
    assert tokenize_corpus(poisoned("Busy"), corpus, tmp_path / "out").manifest.rejects() == {}


def test_an_unknown_engine_is_told_before_anything_is_written(corpus: Path, configure, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are local, ray, beam"):
        tokenize_corpus(configure(), corpus, tmp_path / "out", engine="beem")
    assert not (tmp_path / "out").exists()


def test_a_killed_worker_is_replaced_and_the_bytes_are_the_same(poisoned, corpus: Path, tmp_path: Path) -> None:
    tokenize_corpus(poisoned("KilledOnce"), corpus, tmp_path / "out", workers=2)
    assert (corpus / "killed").exists()
    tokenize_corpus(poisoned("Sound"), corpus, tmp_path / "sound")
    assert (tmp_path / "out/manifest.json").read_bytes() == (tmp_path / "sound/manifest.json").read_bytes()


@pytest.mark.parametrize("finished_before", [False, True])
def test_what_an_unfinished_job_committed_is_no_orphan(
    finished_before: bool, poisoned, corpus: Path, tmp_path: Path
) -> None:
    """A job that stopped half way goes on after `motet gc` with what it had, whether an older manifest is there or none."""
    out = tmp_path / "out"
    if finished_before:
        whole = poisoned("Sound").model_copy(update={"partition_bytes": 1 << 20})
        old = {entry.file for entry in tokenize_corpus(whole, corpus, out).manifest.shards}
    with pytest.raises(PartitionFailed):
        tokenize_corpus(poisoned("Raises"), corpus, out)
    before = {str(file.relative_to(out)) for part in ("shards", "commits") for file in (out / part).iterdir()}
    gone = collect(store_of(out), 0)
    assert (gone.files, gone.unfinished) == ({}, 3)
    assert {str(file.relative_to(out)) for part in ("shards", "commits") for file in (out / part).iterdir()} == before
    assert len(before) == 6 + 2 * finished_before
    result = tokenize_corpus(poisoned("Sound"), corpus, out)
    assert (result.done, result.partitions) == (3, 6), "the first three were kept"
    assert [len(list(result.manifest.open_shard(entry).documents())) for entry in result.manifest.shards] == [1] * 6
    assert {name for name in collect(store_of(out), 0).files if name.startswith("shards/")} == (
        old if finished_before else set()
    )


def test_a_sample_that_crashes_late_in_a_partition_costs_itself_alone(poisoned, corpus: Path, tmp_path: Path) -> None:
    """Samples are numbered through the partition, not through what is encoded together."""
    rows = [f'{{"text": "This is number {i}. {"And now kill" if i == 150 else ""}"}}\n' for i in range(BATCH + 40)]
    (corpus / "six.jsonl").write_text("".join(rows), encoding="utf-8")
    config = poisoned("Crashes").model_copy(update={"partition_bytes": 1 << 20})
    result = tokenize_corpus(config, corpus, tmp_path / "out")
    assert (result.partitions, result.manifest.documents) == (1, len(rows) - 1)
    (reject,) = result.manifest.quarantine()
    assert (reject["reason"], reject["position"]) == ("decoder-crashed", f"six.jsonl@{sum(map(len, rows[:150]))}")
