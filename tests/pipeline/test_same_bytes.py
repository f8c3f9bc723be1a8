"""The same corpus gives the same bytes: every file below the output, of a corpus of which most samples are rejects."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from motet.core.configuration import dump_config
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.rejects import Reject, of_bytes, to_bytes
from motet.pipeline.dataset.verify import Verification
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus

OBJECTS = """
from motet.tokenizers.text.bpe import BPE
from motet.tokenizers.contract import BadSample

class Names(BPE):
    def load(self, data):
        if b"refuse" in data:
            raise BadSample("refused", f"by {object()} and {self.load}, {len(data)} bytes")
        return super().load(data)
"""


def files(out: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def broken(whole: bytes, random: np.random.Generator) -> Iterator[bytes]:
    """A file cut, with other bytes in it, with parts of it again or missing."""
    for share in (0.01, 0.3, 0.6, 0.97):
        yield whole[: int(len(whole) * share)]
    for _ in range(6):
        other = bytearray(whole)
        at = int(random.integers(min(len(whole) - 4, 400)))
        other[at : at + 4] = random.bytes(4)
        yield bytes(other)
    middle = len(whole) // 2
    yield whole[: middle // 2] + whole[middle:]
    yield whole[:40] + whole


@pytest.fixture
def ruins(corpus: Path) -> Path:
    """Pictures and sounds of every format, broken in every way; text that is none; each with a caption."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    sound = random.normal(0, 0.1, 4000).clip(-1, 1)
    for folder, forms in (
        ("pictures", ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")),
        ("sounds", ("WAV", "FLAC", "OGG", "MP3", "AIFF", "RF64", "W64", "CAF", "AU", "NIST")),
    ):
        with open(corpus / folder / "metadata.jsonl", "a", encoding="utf-8") as rows:
            for form in (*forms, "HTML"):
                whole = io.BytesIO(b"<html>404</html>" if form == "HTML" else b"")
                if form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"):
                    Image.fromarray(pixels).save(whole, form)
                elif form != "HTML":
                    soundfile.write(whole, sound, 16_000, format=form)
                for i, data in enumerate(broken(whole.getvalue(), random)):
                    name = f"{form}-{i}.bin"
                    (corpus / folder / name).write_bytes(data)
                    rows.write(json.dumps({"file_name": name, "text": f"number {i}"}) + "\n")
    with open(corpus / "text.jsonl", "ab") as rows:
        rows.write(b'{"text": "refuse"}\n{"text": "refuse this"}\n{no json\n\xff\xfe\n[1]\n' + b"[" * 100_000 + b"\n")
    return corpus


@pytest.fixture
def config(configure, tools: Path, corpus: Path) -> TokenizeConfig:
    (corpus.parent / "plugged.py").write_text(OBJECTS)
    sys.path.insert(0, str(corpus.parent))
    plugged = {**configure().tokenizers, "text": {"use": "plugged:Names", "path": str(tools / "bpe")}}
    yield configure(tokenizers=plugged, keep_rejected=True, partition_samples=40, max_reject_fraction=1.0)
    sys.path.remove(str(corpus.parent))
    sys.modules.pop("plugged", None)


@pytest.fixture
def once(ruins: Path, config, monkeypatch, tmp_path: Path) -> dict[str, bytes]:
    """What one worker writes; enough of it are rejects of every kind."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    manifest = tokenize_corpus(config, ruins, tmp_path / "once").manifest
    reasons = Counter(manifest.rejects())
    assert reasons["not-an-image"] > 10 and reasons["truncated-image"] > 10 and reasons["truncated-audio"] > 10
    assert reasons["not-audio"] > 10 and reasons["refused"] == 2
    details = " ".join(reject["detail"] for reject in Manifest.load(tmp_path / "once").quarantine())
    assert " at 0x" not in details and str(tmp_path) not in details and os.uname().nodename not in details
    return files(tmp_path / "once")


def test_again_and_by_two_workers(once, ruins: Path, config, tmp_path: Path) -> None:
    for name, workers in (("again", 1), ("two", 2)):
        tokenize_corpus(config, ruins, tmp_path / name, workers=workers)
        assert files(tmp_path / name) == once
    for part in ("rejects", "commits", "shards"):  # one driver's beside another's
        shutil.copytree(tmp_path / "again" / part, tmp_path / "two" / part, dirs_exist_ok=True)
    check = Verification(Manifest.load(tmp_path / "two"))
    assert not [problem for _, found in check.shards() for problem in found] + check.whole()


def test_in_another_place_with_other_hashes_of_strings(once, ruins: Path, config, tmp_path: Path) -> None:
    """A corpus that was copied, read by a Python whose sets and addresses are others: only paths in the settings differ."""
    there = tmp_path / "another" / "place"
    shutil.copytree(ruins, there, copy_function=shutil.copy2)
    settings = yaml.safe_load(dump_config(config))
    for entry in settings["corpus"]:
        entry["path"] = str(there / entry["path"])
    (tmp_path / "there.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "motet.orchestration", "tokenize", "there.yaml", "--out", "there"]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONMALLOC": "malloc"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    other = files(tmp_path / "there")
    assert {k: v for k, v in other.items() if k != "tokenize.yaml"} == {
        k: v for k, v in once.items() if k != "tokenize.yaml"
    }


@pytest.mark.ray
def test_on_ray(once, ruins: Path, config, tmp_path: Path) -> None:
    tokenize_corpus(config, ruins, tmp_path / "ray", engine="ray", workers=2)
    assert files(tmp_path / "ray") == once


@pytest.mark.beam
def test_on_beam(once, ruins: Path, config, tmp_path: Path) -> None:
    pytest.importorskip("apache_beam")
    tokenize_corpus(config, ruins, tmp_path / "beam", engine="beam")
    assert files(tmp_path / "beam") == once


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
