"""What is named like a file and is none: told at once, never waited for; a disk that fails is not a file that is missing."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from motet.core.errors import UserError
from motet.pipeline.corpus import files, local
from motet.pipeline.corpus.sources import absolute, cut, read
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.dataset.store import Bucket
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.partitions import partitions

pytestmark = pytest.mark.timeout(120)


def hostile(place: Path, kind: str) -> None:
    """Something that is no file, called so."""
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "dead link":
        place.symlink_to("gone/away.bin")
    elif kind == "loop":
        place.symlink_to(place.name)
    elif kind == "long loop":
        other = place.with_name(f"other-{place.name}.part")
        other.symlink_to(place.name)
        place.symlink_to(other.name)
    else:
        place.symlink_to("/dev/zero")


KINDS = {
    "pipe": "is a pipe",
    "dead link": "is a link to 'gone/away.bin', where nothing is",
    "loop": "is a link that leads round in a loop",
    "long loop": "is a link that leads round in a loop",
    "device": "is a device",
}
ENTRIES = {
    "a.tar": {"format": "webdataset", "path": "*.tar"},
    "b.tar": {"format": "webdataset", "path": "b.tar"},
    "c.parquet": {"format": "parquet", "path": "c.{parquet,}", "columns": {"text": "text"}},
    "d.jsonl": {"format": "text", "path": "d.jsonl"},
    "e.jsonl.gz": {"format": "text", "path": "*.jsonl.gz"},
    "f.json": {"format": "nemo", "path": "f.json"},
    "metadata.jsonl": {"format": "folder", "path": ".", "modality": "image"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENTRIES)
def test_what_the_configuration_names_is_refused(kind: str, name: str, configure, tmp_path: Path) -> None:
    hostile(tmp_path / name, kind)
    config = configure(corpus=[{"name": "one", **ENTRIES[name]}])
    plain = "*" not in ENTRIES[name]["path"] and kind in (
        "dead link",
        "device",
    )  # of such a path the link is followed first
    where = (
        {"dead link": "gone/away.bin does not exist", "device": "/dev/zero: is a device"}[kind]
        if plain
        else KINDS[kind]
    )
    with pytest.raises(UserError, match=rf"path: .*({where}|{name}: {KINDS[kind]})"):
        partitions(config, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_folder_holds_is_left_out_and_told(kind: str, corpus: Path, configure) -> None:
    (corpus / "pictures/metadata.jsonl").unlink()
    hostile(corpus / "pictures/odd.webp", kind)
    config = configure(corpus=[{"name": "one", "format": "folder", "path": "pictures", "modality": "image"}])
    rest = Rest()
    found = cut(absolute(config.corpus[0], corpus), config, "corpus.0", rest)
    assert sum(len(each.files) for each in found) == 30
    told = rest.rows
    assert sum(row.count for row in told) == 1 + (kind == "long loop") and "odd.webp" in {row.example for row in told}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_row_names_is_a_reject(kind: str, corpus: Path, configure) -> None:
    hostile(corpus / "pictures/odd.webp", kind)
    with open(corpus / "pictures/metadata.jsonl", "a", encoding="utf-8") as rows:
        rows.write(json.dumps({"file_name": "odd.webp", "text": "what is it"}) + "\n")
    config = configure(corpus=[{"name": "one", "format": "folder", "path": "pictures", "modality": "image"}])
    found = [s for p in partitions(config, corpus) for s in read(p, lambda *told: None)]
    (odd,) = [s for s in found if hasattr(s, "reason")]
    assert len(found) == 31 and odd.reason in ("missing-file", "outside-corpus")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_looked_at_is_not_missing(configure, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o700)
    (tmp_path / "shut/a.tar").write_bytes(b"")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(folder, 0o755)
    config = configure(corpus=[{"name": "one", "format": "webdataset", "path": "shut/{a,b}.tar"}])
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            files.stat(str(tmp_path / "shut/a.tar"))
        with pytest.raises(UserError, match=r"shut/a\.tar: Permission denied"):
            partitions(config, tmp_path)
    finally:
        os.seteuid(0)


def test_a_disk_that_fails_while_it_is_read_is_no_reject(configure) -> None:
    """The kernel's own EIO: nothing is mapped at address 0 of this process."""
    root = f"/proc/{os.getpid()}"
    config = configure(corpus=[{"name": "one", "format": "folder", "path": root, "modality": "image"}])
    from motet.pipeline.corpus.sources.media import Media
    from motet.pipeline.corpus.sources.sample import Partition

    partition = Partition(
        entry=config.corpus[0], index=0, root=root, files=("mem",), versions=(("mem", 0, ""),), size=0
    )
    with pytest.raises(
        local.Unanswered, match=r"mem: cannot be read now: Input/output error; run the same command again"
    ):
        Media(partition, lambda *told: None).read("mem")


def test_errors_that_pass_are_told_from_those_that_do_not() -> None:
    assert {errno.EIO, errno.ESTALE, errno.ETIMEDOUT} <= set(local.PASSING)
    assert not {errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG} & set(local.PASSING)
    for nothing in ("/gone/x", "/etc/passwd/x", "a\0b", "n" * 5000):
        assert files.stat(nothing) is None, nothing


CLEANED = """
import os, shutil, sys, tempfile
from pathlib import Path
from motet.core.configuration import load_config
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.dataset.verify import Verification
base, config, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if __name__ == "__main__":
    loaded = load_config(Path(config), TokenizeConfig, [])
    for name in ("one", "two", "three"):
        result = tokenize_corpus(loaded, base, base.parent / name)
        assert not any(found for _, found in Verification(result.manifest, workers=2).shards())
        place = Path(os.environ["TMPDIR"])
        assert list(place.iterdir()), "nothing to clean"
        shutil.rmtree(place)
        if how == "emptied":
            place.mkdir()
    print(result.manifest.documents)
"""


@pytest.mark.parametrize("how", ["emptied", "removed"])
def test_a_cleaner_of_the_temporary_folder_ends_nothing(how: str, corpus: Path, configure, tmp_path: Path) -> None:
    from motet.core.configuration import dump_config

    one = [{"name": "text", "format": "text", "path": "text.jsonl"}]
    (tmp_path / "tokenize.yaml").write_text(dump_config(configure(corpus=one)), encoding="utf-8")
    (tmp_path / "script.py").write_text(CLEANED, encoding="utf-8")
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # a socket's path has room for a hundred letters
        done = subprocess.run(
            [sys.executable, "script.py", str(corpus), "tokenize.yaml", how],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": short},
            capture_output=True,
            text=True,
        )
        Path(short).mkdir(exist_ok=True)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


def test_a_bucket_makes_its_temporary_folder_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with Bucket("memory://nothing").scratch() as path:
        path.write_bytes(b"x")
    shutil.rmtree(tmp_path / "scratch")
    with Bucket("memory://nothing").scratch() as path:
        path.write_bytes(b"y")


def test_a_corpus_with_all_of_it_keeps_its_sum(corpus: Path, configure, tmp_path: Path) -> None:
    (corpus / "pictures/metadata.jsonl").unlink()
    for i, kind in enumerate(KINDS):
        hostile(corpus / f"pictures/{i}.webp", kind)
    config = configure(corpus=[{"name": "one", "format": "folder", "path": "pictures", "modality": "image"}])
    manifest = tokenize_corpus(config, corpus, tmp_path / "out").manifest
    assert manifest.documents == 30 and sum(row.count for row in manifest.left_out["one"]) == len(KINDS) + 1
