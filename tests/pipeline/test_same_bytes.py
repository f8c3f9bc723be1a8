"""The same corpus gives the same bytes: every file below the output, of a corpus of which most samples are rejects."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ruins
import yaml

from motet.core.configuration import dump_config, validate
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.rejects import Reject, of_bytes, to_bytes
from motet.pipeline.dataset.statistics import statistics
from motet.pipeline.dataset.stats_page import page
from motet.pipeline.dataset.verify import Verification
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus

REASONS = {
    *(
        "not-an-image",
        "truncated-image",
        "truncated-audio",
        "not-audio",
        "refused",
        "decoder-crashed",
        "decoder-timeout",
    ),
    *("lost-rest", "not-json", "no-text", "missing-file", "outside-corpus"),
}
"""Of the rejects that must be there, or the corpus shows less than it says."""


def files(out: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def told(out: Path) -> tuple[str, str]:
    """What is said of a dataset: its statistics and their page."""
    manifest = Manifest.load(out)
    stats = statistics(manifest)
    own = shlex.quote(str(out))  # stands in the commands that it proposes
    return json.dumps(stats.to_json()).replace(own, "OUT"), page(manifest, stats).replace(own, "OUT")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the corpus and code that workers import."""
    folder = tmp_path_factory.mktemp("ruins")
    ruins.make(folder / "corpus")
    (folder / "hostile.py").write_text(ruins.HOSTILE)
    sys.path.insert(0, str(folder))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("hostile", None)
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module")
def config(tools: Path, place: Path) -> TokenizeConfig:
    settings = {
        "corpus": ruins.ENTRIES,
        "tokenizers": {
            "text": {"use": "hostile:Hostile", "path": str(tools / "bpe")},
            "image": {"use": "vqgan", "path": str(tools / "vqgan")},
            "speech": {"use": "melrvq", "path": str(tools / "melrvq")},
        },
        "keep_rejected": True,
        "partition_samples": 40,
        "partition_bytes": 60_000,
        "max_reject_fraction": 1.0,
        "sample_seconds": 4,  # many times what a sample needs, also where other work holds the cores
    }
    return validate(settings, TokenizeConfig, "ruins")


@pytest.fixture(scope="module")
def once(place: Path, config) -> dict[str, bytes]:
    """What one worker writes; rejects of every kind are among it."""
    out = place / "once" / "out"
    manifest = tokenize_corpus(config, place / "corpus", out).manifest
    reasons = Counter(manifest.rejects())
    assert not REASONS - reasons.keys(), reasons
    assert {reasons[r] for r in ("decoder-crashed", "decoder-timeout")} == {2}, (
        "one by a text alone, one beside a picture"
    )
    assert manifest.documents > 40 and reasons.total() > 200 and set(manifest.left_out) >= {"pictures", "table"}
    found = files(out)
    assert {"manifest.json", "commits.json", "index.arrow", "tokenize.yaml"} <= found.keys()
    details = " ".join(row["detail"] for row in manifest.quarantine())
    hidden = (" at 0x", str(place), tempfile.gettempdir(), os.uname().nodename)
    assert not [word for word in hidden if word in details]
    return found


def test_again_and_by_three_workers(once, place: Path, config, tmp_path: Path) -> None:
    for name, workers in (("again", 1), ("three", 3)):
        tokenize_corpus(config, place / "corpus", tmp_path / name / "out", workers=workers)
        assert files(tmp_path / name / "out") == once
        assert told(tmp_path / name / "out") == told(place / "once" / "out")
    for part in ("rejects", "commits", "shards"):  # one driver's beside another's
        shutil.copytree(tmp_path / "again/out" / part, tmp_path / "three/out" / part, dirs_exist_ok=True)
    check = Verification(Manifest.load(tmp_path / "three/out"))
    assert not [problem for _, found in check.shards() for problem in found] + check.whole()


def copied(corpus: Path, to: Path) -> None:
    """The same files with the same times, made in another order: a folder lists them in another, too."""
    paths = [corpus, *corpus.rglob("*")]
    for folder in (path for path in paths if path.is_dir() and not path.is_symlink()):
        (to / folder.relative_to(corpus)).mkdir(parents=True)
    others = sorted(path for path in paths if path.is_symlink() or not path.is_dir())
    random.Random(1).shuffle(others)
    for path in others:
        there = to / path.relative_to(corpus)
        if path.is_fifo():
            os.mkfifo(there)
        else:
            shutil.copy2(path, there, follow_symlinks=False)
    assert sorted(p.relative_to(corpus) for p in corpus.rglob("*")) == sorted(p.relative_to(to) for p in to.rglob("*"))


@pytest.fixture
def there() -> Iterator[Path]:
    """A folder of another file system, where there is one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="motet-another-place-", dir=memory) as name:
        yield Path(name).resolve()


def command(config: TokenizeConfig, corpus: Path, folder: Path) -> list[str]:
    """The command that tokenizes a corpus into `folder`/out."""
    settings = yaml.safe_load(dump_config(config))
    for entry in settings["corpus"]:
        entry["path"] = str(corpus / entry["path"])
    (folder / "corpus.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    arguments = ["tokenize", str(folder / "corpus.yaml"), "--out", str(folder / "out"), "--workers", "2"]
    return [sys.executable, "-m", "motet.orchestration", *arguments]


def test_in_another_place_by_another_python(once, place: Path, config, there: Path) -> None:
    """The files were copied in another order, sets and addresses are others, so are language and clock: only `tokenize.yaml`,
    which has the paths, differs.
    """
    copied(place / "corpus", there / "corpus")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONMALLOC": "malloc", "TZ": "Asia/Kathmandu", "LC_ALL": "C"}
    done = subprocess.run(
        command(config, there / "corpus", there), cwd="/", env=environment, capture_output=True, text=True
    )
    assert done.returncode in (0, 3), done.stderr
    other = files(there / "out")
    assert other.pop("tokenize.yaml") != once["tokenize.yaml"]
    assert other == {name: data for name, data in once.items() if name != "tokenize.yaml"}
    assert told(there / "out") == told(place / "once/out")


def test_killed_and_gone_on_with(once, place: Path, config, killed_again, tmp_path: Path) -> None:
    """Whole process groups, at any moment: in the end there is not one file more, and none is another."""
    out, run = tmp_path / "out", command(config, place / "corpus", tmp_path)
    kills = killed_again(run, 5, lambda: len(list((out / "commits").glob("*"))), 0.5, 3)
    assert kills >= 3, "it was done before it could be killed"
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    assert {n: d for n, d in files(out).items() if n != "tokenize.yaml"} == {
        n: d for n, d in once.items() if n != "tokenize.yaml"
    }


@pytest.mark.ray
def test_on_ray(once, place: Path, config, tmp_path: Path) -> None:
    tokenize_corpus(config, place / "corpus", tmp_path / "out", engine="ray", workers=2)
    assert files(tmp_path / "out") == once


@pytest.mark.beam
def test_on_beam(once, place: Path, config, tmp_path: Path) -> None:
    pytest.importorskip("apache_beam")
    tokenize_corpus(config, place / "corpus", tmp_path / "out", engine="beam")
    assert files(tmp_path / "out") == once


@pytest.mark.parametrize(
    ("detail", "plain"),
    [
        (f"cannot read <_io.BytesIO object at {hex(id(1))}>", "cannot read <_io.BytesIO object>"),
        (
            "<a.B object at 0x7F00ab> in <built-in method x of C object at 0x1>",
            "<a.B object> in <built-in method x of C object>",
        ),
        ("pictures/at 0x12.png, at 0x1234, <0x12>", "pictures/at 0x12.png, at 0x1234, <0x12>"),
        ("half \ud800", "half \\ud800"),
    ],
    ids=["object", "method", "no address", "surrogate"],
)
def test_addresses_go_and_other_words_stay(detail: str, plain: str) -> None:
    (row,) = of_bytes(to_bytes("s", [Reject("p", "r", detail, "")], keep=False))
    assert row["detail"] == plain
