"""What engines do when workers die or tokenizers fail: nothing committed is lost, and the message names the place."""

from pathlib import Path

import pytest

from motet.pipeline.job import tokenize_corpus
from motet.pipeline.work import PartitionFailed, WorkerLost
from motet.tokenizers.errors import UserError

CLASSES = """
import os, signal
import numpy as np
from motet.tokenizers.bpe import BPE
from motet.tokenizers.contract import Tokens

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

class Sound(BPE):
    pass

class Raises(BPE):
    def load(self, data):
        return 1 / (b"And now kill" not in data) and super().load(data)

class Lies(BPE):
    def encode(self, samples):
        return [Tokens((1,), np.array([99_999])) if "And now kill" in s else t
                for s, t in zip(samples, super().encode(samples))]

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


def test_a_partition_that_kills_its_workers_is_named(poisoned, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkerLost, match=r"six, partition 3 \(six.jsonl\): kills its worker .*goes on"):
        tokenize_corpus(poisoned("Killed"), corpus, tmp_path / "out", workers=2)
    assert len(list((tmp_path / "out/commits").iterdir())) >= 3, "those before it are done"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Raises", r"six, partition 3 \(six.jsonl\): six.jsonl:4: bpe.load: ZeroDivisionError"),
        ("Lies", r"six.jsonl:4 to six.jsonl:4: bpe.encode gave ids up to 99999"),
    ],
)
def test_a_tokenizer_that_fails_is_named_with_the_sample(name, message, poisoned, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(PartitionFailed, match=message):
        tokenize_corpus(poisoned(name), corpus, tmp_path / "out")
    assert len(list((tmp_path / "out/commits").iterdir())) == 3 and not list((tmp_path / "out/.tmp").iterdir())


def test_a_tokenizer_that_loses_samples_is_told(poisoned, corpus: Path, tmp_path: Path) -> None:
    config = poisoned("Forgets").model_copy(update={"partition_bytes": 1 << 20})
    with pytest.raises(PartitionFailed, match=r"six.jsonl:1 to six.jsonl:6: bpe.encode gave 1 spans for 6 samples"):
        tokenize_corpus(config, corpus, tmp_path / "out")


def test_an_unknown_engine_is_told_before_anything_is_written(corpus: Path, configure, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are 'local' and 'ray'"):
        tokenize_corpus(configure(), corpus, tmp_path / "out", engine="beem")
    assert not (tmp_path / "out").exists()


def test_a_killed_worker_is_replaced_and_the_bytes_are_the_same(poisoned, corpus: Path, tmp_path: Path) -> None:
    tokenize_corpus(poisoned("KilledOnce"), corpus, tmp_path / "out", workers=2)
    assert (corpus / "killed").exists()
    tokenize_corpus(poisoned("Sound"), corpus, tmp_path / "sound")
    assert (tmp_path / "out/manifest.json").read_bytes() == (tmp_path / "sound/manifest.json").read_bytes()
