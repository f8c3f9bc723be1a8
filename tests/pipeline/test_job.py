"""The job: the same bytes whatever the engine and however often it was killed; only what changed is done again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from motet.core.configuration import dump_config
from motet.core.errors import UserError
from motet.pipeline.dataset.gc import collect
from motet.pipeline.dataset.store import store_of
from motet.pipeline.job.job import tokenize_corpus


def traces(out: Path) -> int:
    """Files and folders below `out`; what vanishes while it looks does not matter."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(out))


def contents(out: Path) -> dict[str, bytes]:
    """All that decides what a reader sees."""
    return {str(p.relative_to(out)): p.read_bytes() for p in [out / "manifest.json", *sorted(out.glob("shards/*"))]}


@pytest.fixture
def undisturbed(corpus: Path, configure, tmp_path: Path) -> dict[str, bytes]:
    result = tokenize_corpus(configure(), corpus, tmp_path / "one")
    assert result.done == result.partitions == 8
    return contents(tmp_path / "one")


def test_two_workers_write_the_bytes_of_one(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    tokenize_corpus(configure(), corpus, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == undisturbed


@pytest.mark.ray
def test_ray_writes_the_bytes_of_the_local_engine(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    tokenize_corpus(configure(), corpus, tmp_path / "ray", engine="ray", workers=2)
    assert contents(tmp_path / "ray") == undisturbed


def test_nothing_of_this_machine_is_in_the_manifest(undisturbed, corpus: Path) -> None:
    text = b"".join(undisturbed.values())
    assert str(corpus).encode() not in text and os.uname().nodename.encode() not in undisturbed["manifest.json"]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    undisturbed, corpus: Path, configure, killed_again, tmp_path: Path
) -> None:
    out, config = tmp_path / "killed", tmp_path / "tokenize.yaml"
    settings = yaml.safe_load(dump_config(configure()))
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "motet.orchestration", "tokenize", str(config), "--out", str(out), "--json"]
    for i, entry in enumerate(settings["corpus"]):
        command += ["--set", f"corpus.{i}.path={corpus / entry['path']}"]
    killed = killed_again(command, 3, lambda: traces(out), after=0.15, seed=1)
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert killed >= 2
    assert json.loads(done.stdout)["documents"] == 49
    assert contents(out) == undisturbed
    assert not list(out.glob(".tmp/*"))


def test_running_again_does_nothing(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    assert tokenize_corpus(configure(), corpus, tmp_path / "one").done == 0
    assert contents(tmp_path / "one") == undisturbed


def test_only_what_changed_is_done_again(undisturbed, corpus: Path, configure, tools: Path, tmp_path: Path) -> None:
    name = json.loads((corpus / "pictures/metadata.jsonl").read_text(encoding="utf-8").splitlines()[9])["file_name"]
    other = sorted((corpus / "pictures").glob("*.webp"))[-1]
    (corpus / "pictures" / name).write_bytes(other.read_bytes() + b"\0")
    assert tokenize_corpus(configure(), corpus, tmp_path / "one").done == 1
    assert len(collect(store_of(tmp_path / "one"), 0).files) == 2, "the old shard and its commit"
    changed = contents(tmp_path / "one")
    assert len(changed.keys() & undisturbed.keys()) == len(undisturbed) - 1

    tokenizers = {**configure().tokenizers, "image": {"use": "vqgan", "path": str(tools / "vqgan"), "size": 24}}
    result = tokenize_corpus(configure(tokenizers=tokenizers), corpus, tmp_path / "one")
    shards = {e.file for e in result.manifest.shards if e.source in ("text", "sounds")}
    assert shards <= changed.keys(), "text and speech shards stay as they are"
    assert result.done == sum(e.source in ("pictures", "mixed") for e in result.manifest.shards)
    collect(store_of(tmp_path / "one"), 0)
    assert len(list((tmp_path / "one/shards").iterdir())) == sum(bool(e.file) for e in result.manifest.shards)


@pytest.mark.parametrize(
    ("modality", "limit", "sources"),
    [("image", {"max_pixels": 1}, ("pictures", "mixed")), ("speech", {"max_seconds": 0.001}, ("sounds",))],
)
def test_shards_of_another_limit_of_samples_are_not_kept(
    undisturbed, modality: str, limit: dict, sources: tuple[str, ...], corpus: Path, configure, tmp_path: Path
) -> None:
    tokenizers = dict(configure().tokenizers)
    tokenizers[modality] = {**tokenizers[modality], **limit}
    config = configure(tokenizers=tokenizers, max_reject_fraction=1.0)
    result = tokenize_corpus(config, corpus, tmp_path / "one")
    touched = [entry for entry in result.manifest.shards if entry.source in sources]
    assert all(entry.rows == 0 < sum(entry.rejects.values()) for entry in touched)
    assert result.done >= len(touched) > 0


def test_what_it_used_starts_it_again(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    from motet.core.configuration import load_config
    from motet.pipeline.job.config import TokenizeConfig

    complete = load_config(tmp_path / "one/tokenize.yaml", TokenizeConfig)
    tokenize_corpus(complete, Path("/"), tmp_path / "again")
    assert contents(tmp_path / "again") == undisturbed


def test_a_folder_that_was_just_begun_is_gone_on_with(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    """Killed before anything but the folder for temporary files was made, and with one of those in it."""
    (tmp_path / "begun/.tmp").mkdir(parents=True)
    (tmp_path / "begun/.tmp/half").write_text("half a file")
    tokenize_corpus(configure(), corpus, tmp_path / "begun")
    assert contents(tmp_path / "begun") == undisturbed and not list((tmp_path / "begun/.tmp").iterdir())


def test_two_jobs_never_write_to_one_folder(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    import fcntl

    lock = os.open(tmp_path / "one/.tmp", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another job is writing there"):
        tokenize_corpus(configure(), corpus, tmp_path / "one")
    os.close(lock)
    assert tokenize_corpus(configure(), corpus, tmp_path / "one").done == 0


def test_what_is_not_ours_is_left_alone(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    for name in ("README.md", "shards/notes.txt"):
        (tmp_path / "one" / name).write_text("mine")
    tokenize_corpus(configure(partition_samples=5), corpus, tmp_path / "one")
    assert collect(store_of(tmp_path / "one"), 0).files
    assert all((tmp_path / "one" / name).read_text() == "mine" for name in ("README.md", "shards/notes.txt"))


def one_text(configure, **fields):
    """A configuration of the texts alone."""
    entry = {"name": "text", "format": "text", "path": "rows.jsonl"}
    return configure(corpus=[{**entry, **fields.pop("entry", {})}], **fields)


def test_a_partition_of_another_range_is_another_partition(corpus: Path, configure, tmp_path: Path) -> None:
    """After a cut at other places, commits of the same file and index are stale: their documents would be lost or doubled."""
    rows = (corpus / "text.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["text"][at : at + 100] for row in rows for at in range(0, 2_000, 100)]
    (corpus / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    for size in (4_000, 2_000, 6_000):
        again = tokenize_corpus(one_text(configure, partition_bytes=size), corpus, tmp_path / "recut")
        fresh = tokenize_corpus(one_text(configure, partition_bytes=size), corpus, tmp_path / f"fresh{size}")
        assert again.done == again.partitions == fresh.partitions > 1 and again.manifest.documents == len(texts)
        assert (tmp_path / "recut/manifest.json").read_bytes() == (tmp_path / f"fresh{size}/manifest.json").read_bytes()


def test_another_column_is_read_again(corpus: Path, configure, tmp_path: Path) -> None:
    """A source's own settings are in its partitions' keys: which column is the document, which one its language."""
    rows = [{"text": f"Body {i}.", "title": f"A longer title {i}.", "lang": "en"} for i in range(9)]
    (corpus / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for i, entry in enumerate(({}, {"column": "title"}, {"column": "title", "language": "lang"})):
        again = tokenize_corpus(one_text(configure, entry=entry), corpus, tmp_path / "again")
        tokenize_corpus(one_text(configure, entry=entry), corpus, tmp_path / f"fresh{i}")
        assert again.done == again.partitions, entry
        assert (tmp_path / "again/manifest.json").read_bytes() == (tmp_path / f"fresh{i}/manifest.json").read_bytes()
