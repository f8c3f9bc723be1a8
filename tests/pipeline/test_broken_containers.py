"""A file of many samples that breaks loses an unknown rest: that never passes, however little it counts for."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from motet.core.errors import UserError
from motet.pipeline.corpus.sources import jsonl
from motet.pipeline.job.job import JobResult, tokenize_corpus
from motet.pipeline.job.partitions import partitions

LINES = [json.dumps({"text": f"number {i} of many, {i * i}, {i**3}, {i**5 % 977}"}) + "\n" for i in range(3000)]


def tarred(lines: list[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i, line in enumerate(lines):
            data = line.encode()
            info = tarfile.TarInfo(f"{i:05}.txt")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def long_zstd(data: bytes, log: int) -> bytes:
    told = zstandard.ZstdCompressionParameters.from_level(3, window_log=log, enable_ldm=True, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=told).compressobj()
    return stream.compress(data) + stream.flush()


@pytest.fixture
def run(configure, tmp_path: Path):
    """A function that tokenizes files, all of them one source, of up to three formats."""

    def tokenize(files: dict[str, bytes], **fields: object) -> JobResult:
        folder = tmp_path / "corpus"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        entries = [
            {"name": "lines", "format": "text", "path": "*.jsonl*"},
            {"name": "tars", "format": "webdataset", "path": "*.tar"},
        ]
        found = [e for e in entries if list(folder.glob(e["path"]))]
        config = configure(corpus=found, partition_bytes=1 << 20, **fields)
        return tokenize_corpus(config, folder, tmp_path / "out")

    return tokenize


WHOLE = "".join(LINES).encode()
BROKEN = {
    "a .gz whose upload stopped": ("b.jsonl.gz", gzip.compress(WHOLE)[:2000]),
    "a .zst whose upload stopped": ("b.jsonl.zst", zstandard.compress(WHOLE)[:2000]),
    "a .gz that is damaged within": ("b.jsonl.gz", gzip.compress(WHOLE)[:5000] + b"\xff" * 100 + gzip.compress(WHOLE)[5100:]),
    "the second member of a .gz": ("b.jsonl.gz", gzip.compress(LINES[0].encode()) + gzip.compress(WHOLE)[:3000]),
    "a tar whose upload stopped": ("b.tar", tarred(LINES)[:40_000]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_container_that_breaks_never_passes(name: str, run) -> None:
    file, data = BROKEN[name]
    result = run({"a.jsonl": WHOLE, file: data}, max_reject_fraction=0.5)
    assert result.manifest.rejects() == {"lost-rest": 1} and result.broken_files == 1
    assert result.too_many_rejects, "one reject of thousands, and most of a file is lost"
    (told,) = result.manifest.quarantine()
    assert told["position"].startswith(file) and "nobody knows how much follows" in told["detail"]


def test_who_allows_all_to_be_rejected_allows_that_too(run) -> None:
    result = run({"a.jsonl": WHOLE, "b.jsonl.gz": gzip.compress(WHOLE)[:2000]}, max_reject_fraction=1.0)
    assert result.broken_files == 1 and not result.too_many_rejects


def test_a_text_file_that_breaks_is_one_sample(configure, tmp_path: Path) -> None:
    """How much is lost is known: the document that the file is."""
    for i in range(200):
        (tmp_path / f"{i}.txt.gz").write_bytes(gzip.compress(WHOLE[: 100 + i]))
    (tmp_path / "7.txt.gz").write_bytes(gzip.compress(WHOLE)[:1000])
    config = configure(corpus=[{"name": "texts", "format": "text", "path": "*.txt.gz"}])
    result = tokenize_corpus(config, tmp_path, tmp_path / "out")
    assert result.manifest.rejects() == {"truncated-file": 1} and not result.too_many_rejects


@pytest.mark.parametrize("log", [28, 31])
def test_a_window_too_large_is_refused_before_anything_is_done(configure, tmp_path: Path, log: int) -> None:
    (tmp_path / "RC.jsonl.zst").write_bytes(long_zstd(WHOLE, log))
    config = configure(corpus=[{"name": "dump", "format": "text", "path": "RC.jsonl.zst"}])
    with pytest.raises(UserError, match=r"RC\.jsonl\.zst: .*zstd -dc --long=31"):
        partitions(config, tmp_path)


def test_a_window_too_large_in_a_later_frame_is_refused_where_it_stands() -> None:
    stream = [zstandard.compress(LINES[0].encode()) + long_zstd(WHOLE, 30)]
    with pytest.raises(UserError, match=r"a\.zst: .*zstd -dc --long=31"):
        list(jsonl.decompressed(stream, "a.zst"))


def test_the_largest_window_that_is_read(run) -> None:
    assert run({"a.jsonl.zst": long_zstd(WHOLE, 27)}).manifest.documents == len(LINES)
