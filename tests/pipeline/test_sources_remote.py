"""Inputs on an object store that is slow, cuts answers off, and refuses: the same samples, or a clear word; never fewer."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from motet.core.errors import UserError
from motet.pipeline import remote as remote_client
from motet.pipeline.corpus import files
from motet.pipeline.corpus.sources import RawSample, read
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.partitions import partitions
from motet.pipeline.job.work import PartitionFailed
from motet.pipeline.remote import Refused, Unreachable

BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def stored(corpus: Path, s3: str) -> str:
    """The corpus, a Parquet file and a tar of it, in the bucket too."""
    import tarfile

    import s3fs

    rows = [json.loads(line) for line in (corpus / "pictures/metadata.jsonl").read_text("utf-8").splitlines()]
    data = [{"bytes": (corpus / "pictures" / row["file_name"]).read_bytes(), "path": None} for row in rows]
    table = pa.table({"caption": [row["text"] for row in rows], "picture": pa.array(data, BYTES)})
    pq.write_table(table, corpus / "a.parquet", row_group_size=12)
    (corpus / "tars/deep").mkdir(parents=True)
    for name in ("tars/a.tar", "tars/deep/b.tar"):
        with tarfile.open(corpus / name, "w") as out:
            for picture in sorted((corpus / "pictures").glob("*.webp"))[:10]:
                out.add(picture, picture.name)
    s3fs.S3FileSystem().put(f"{corpus}/", f"{s3}/corpus/", recursive=True)
    return f"{s3}/corpus"


FORMATS: list[dict[str, Any]] = [
    {"format": "text", "path": "text.jsonl"},
    {"format": "folder", "path": "pictures", "modality": "image"},
    {"format": "interleaved", "path": "mixed.jsonl"},
    {"format": "parquet", "path": "*.parquet", "columns": {"caption": "text", "picture": "image"}},
    {"format": "webdataset", "path": "tars/**/*.tar"},
]


def samples(config: TokenizeConfig, base: Path) -> list[tuple[str, Any]]:
    """Where every sample stands, and its content or why there is none."""
    found = [sample for p in partitions(config, base) for sample in read(p, lambda *told: None)]
    return [(s.position, s.parts if isinstance(s, RawSample) else s.reason) for s in found]


def remote(config: TokenizeConfig, stored: str) -> TokenizeConfig:
    entries = [entry.model_copy(update={"path": f"{stored}/{entry.path}"}) for entry in config.corpus]
    return config.model_copy(update={"corpus": tuple(entries)})


def everything(configure) -> TokenizeConfig:
    return configure(corpus=[{"name": entry["format"], **entry} for entry in FORMATS], partition_bytes=20_000)


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "short", "slow"])
def test_a_store_that_fails_for_a_while_gives_the_same_samples(
    fault: str, faults: Any, stored: str, corpus: Path, configure
) -> None:
    """Every single thing that is asked for fails once, or twice."""
    config = everything(configure)
    local = samples(config, corpus)
    assert len(local) == 4 + 30 + 5 + 30 + 20
    bad: Counter[str] = Counter()

    def some(method: str, path: str, n: int) -> str:
        if fault in ("short", "cut") and (method == "HEAD" or "list-type" in path):
            return ""  # they have no body, or one that cannot be read by half
        if fault == "slow" and (bad["slow"] > 9 or method == "HEAD"):
            return ""
        if n <= (2 if fault == "503" else 1):
            bad[fault] += 1
            return fault
        return ""

    faults.fault = some
    assert samples(remote(config, stored), corpus) == local
    assert bad[fault] >= 10


def test_a_missing_file_is_a_reject_and_a_store_that_is_gone_is_not(
    faults: Any, stored: str, corpus: Path, configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    s3fs.S3FileSystem().rm(f"{stored}/pictures/{sorted(p.name for p in (corpus / 'pictures').glob('*.webp'))[3]}")
    config = remote(configure(corpus=[{"name": "one", **FORMATS[1]}]), stored)
    plan = partitions(config, corpus)
    found = [s for p in plan for s in read(p, lambda *told: None)]
    assert [s.reason for s in found if not isinstance(s, RawSample)] == ["missing-file"] and len(found) == 30
    monkeypatch.setattr(remote_client, "ATTEMPTS", 3)
    for fault in ("503", "reset", "cut"):
        faults.fault = lambda method, path, n, fault=fault: fault if method == "GET" else ""
        with pytest.raises(Unreachable, match=r"s3://.*/pictures/"):
            list(read(plan[0], lambda *told: None))


@pytest.mark.parametrize("entry", FORMATS, ids=lambda entry: entry["format"])
def test_a_store_that_goes_away_stops_a_plan_and_a_partition(
    entry, faults: Any, stored: str, corpus: Path, configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever request it goes away at: either everything is there, or the exception says why not."""
    monkeypatch.setattr(remote_client, "ATTEMPTS", 2)
    monkeypatch.setattr(remote_client, "WAIT", 0.0)
    config = remote(configure(corpus=[{"name": "one", **entry}]), stored)
    whole, total = samples(config, corpus), sum(faults.asked.values())
    faults.asked.clear()
    samples(config, corpus)
    total = sum(faults.asked.values())
    failed = 0
    for last in range(0, total, max(1, total // 10)):
        faults.asked.clear()
        faults.fault = lambda method, path, n, last=last: "503" if sum(faults.asked.values()) > last else ""
        try:
            assert samples(config, corpus) == whole
        except Unreachable as error:
            failed += 1
            assert "s3://" in str(error) and "the same command" in str(error)
    assert failed >= min(total, 10) - 1


@pytest.mark.parametrize("fault", ["expired", "403"])
def test_a_refusal_is_told_at_once_with_its_cure(fault: str, faults: Any, stored: str, corpus: Path, configure) -> None:
    config = remote(everything(configure), stored)
    plan = partitions(config, corpus)
    faults.fault = lambda method, path, n: fault
    for entry in config.corpus:
        before = sum(faults.asked.values())
        with pytest.raises(UserError, match=r"s3://.*refuses.*renew the token.*the same command"):
            partitions(config.model_copy(update={"corpus": (entry,)}), corpus)
        partition = next(p for p in plan if p.entry.name == entry.name)
        with pytest.raises(Refused, match=r"s3://.*refuses"):
            list(read(partition, lambda *told: None))
        assert sum(faults.asked.values()) - before <= 4, "it is not asked again and again"


def test_a_job_reads_its_inputs_through_all_of_that(
    faults: Any, stored: str, corpus: Path, configure, tmp_path: Path
) -> None:
    """The command itself, with worker processes; what failed is gone on with."""
    config = configure(corpus=[{"name": entry["format"], **entry} for entry in FORMATS[:3]])
    expected = tokenize_corpus(config, corpus, tmp_path / "local").manifest
    faults.fault = lambda method, path, n: ("503", "cut")[len(path) % 2] if n == 1 and "list-type" not in path else ""
    there = remote(config, stored)
    manifest = tokenize_corpus(there, corpus, tmp_path / "out", workers=2).manifest
    assert [entry.hash for entry in manifest.shards] == [entry.hash for entry in expected.shards]
    faults.fault = lambda method, path, n: "expired" if path.endswith(".webp") else ""
    with pytest.raises(PartitionFailed, match=r"s3://.*webp.*The provided token has expired.*renew the token"):
        tokenize_corpus(there, corpus, tmp_path / "again", workers=2)
    faults.fault = lambda method, path, n: ""
    manifest = tokenize_corpus(there, corpus, tmp_path / "again").manifest
    assert [entry.hash for entry in manifest.shards] == [entry.hash for entry in expected.shards]


def test_a_plan_of_remote_text_reads_little_and_asks_once_a_folder(
    faults: Any, s3: str, stored: str, corpus: Path, configure
) -> None:
    import s3fs

    rows = b"".join(json.dumps({"text": f"{i} " + "x" * 1000}).encode() + b"\n" for i in range(20_000))
    s3fs.S3FileSystem().pipe(f"{stored}/long.jsonl", rows)
    config = remote(configure(corpus=[{"name": "long", "format": "text", "path": "long.jsonl"}]), stored)
    faults.sent = 0
    plan = partitions(config.model_copy(update={"partition_bytes": 1 << 20}), corpus)
    assert len(plan) == 20 and faults.sent <= 20 * files.BLOCK // 50
    assert sum(p.size for p in plan) == len(rows)
    faults.asked.clear()
    partitions(remote(configure(corpus=[{"name": "one", **FORMATS[1]}]), stored), corpus)
    assert sum(faults.asked.values()) < 10, "30 pictures are not asked for one by one"
