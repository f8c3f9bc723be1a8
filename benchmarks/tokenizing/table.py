#!/usr/bin/env python3
"""What `motet tokenize` costs beyond the encoders that it calls, as one table; docs/tokenizing.md has the results.

    for each row, --repeats times, the two sides in turn:
        bare:  the encoder's own library on samples that are decoded and in memory, in a process of its own (bare.py)
        motet: `motet tokenize` as a user calls it, on a corpus of `small` and of `large` size
    -> (large - small) amount / (large - small) CPU-seconds: what a job costs once cancels out, and is shown by itself

The second size is a new output each time, so nothing is resumed. CPU-seconds are user + system of the process and all that
descends from it, daemons too (measure.py says how). A ratio is made of medians; the range beside it is of the repeats.

    python benchmarks/tokenizing/table.py                          the table, a quarter of an hour on two cores
    python benchmarks/tokenizing/table.py text engines             only these: text pictures speech engines peers resume memory
    python benchmarks/tokenizing/table.py memory --gigabytes 20    a corpus of 20 GB goes through, every process is watched
    python benchmarks/tokenizing/table.py resume --partitions 100000
    python benchmarks/tokenizing/table.py --corpus DIR             more text: all DIR/text/*.jsonl, beside the bundled speeches
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import corpora
import peers
from measure import Usage, machine, run, watched

HERE = Path(__file__).resolve().parent
PARTS = ("text", "pictures", "speech", "engines", "peers", "resume")
MiB = 1 << 20
ENGINE_GIGABYTES = 1.2


@dataclass
class Bench:
    """Where things are, what was asked for, and the table so far."""

    folder: Path
    corpus: Path | None
    repeats: int
    gigabytes: float
    partitions: int
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, measure: str, target: str, value: str) -> None:
        """One row, shown at once: later parts take minutes."""
        self.rows.append((measure, target, value))
        print(f"{measure}: {value}  (wanted: {target})", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """One line under the table."""
        self.notes.append(text)
        print(text, file=sys.stderr, flush=True)

    def tokenizers(self) -> dict[str, dict[str, Any]]:
        """Settings of every tokenizer, fitted or made on first use."""
        return corpora.tokenizers(self.folder)

    def job(self, name: str, entries: list[dict[str, Any]], use: dict[str, Any], **settings: Any) -> list[str]:
        """The command that tokenizes these entries into a new folder; `--engine` and the like are appended to it."""
        config = self.folder / f"{name}.yaml"
        config.write_text(json.dumps({"corpus": entries, "tokenizers": use, **settings}), encoding="utf-8")
        out = self.folder / "out" / name
        shutil.rmtree(out, ignore_errors=True)
        return [sys.executable, "-m", "motet.orchestration", "tokenize", str(config), "--out", str(out)]

    def bare(self, *arguments: object) -> dict[str, float]:
        """What benchmarks/bare.py prints: ways of encoding -> amount per CPU-second."""
        command = [sys.executable, str(HERE / "bare.py"), *map(str, arguments)]
        return json.loads(run(command).output.splitlines()[-1])


def spread(values: list[float], digits: int = 3) -> str:
    """Median and range."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


@dataclass(frozen=True)
class Slope:
    """What one more unit costs: between a small and a large corpus, so that start-up cancels."""

    cpu: float
    wall: float
    startup_cpu: float
    startup_wall: float

    @classmethod
    def between(cls, small: Usage, large: Usage, small_amount: float, large_amount: float) -> Slope:
        """The line through two runs."""
        more = large_amount - small_amount
        cpu, wall = (large.cpu - small.cpu) / more, (large.wall - small.wall) / more
        return cls(cpu, wall, small.cpu - cpu * small_amount, small.wall - wall * small_amount)


def sloped(command: Callable[[str], tuple[list[str], float]], sizes: tuple[str, str] = ("small", "large")) -> Slope:
    """Two sizes through one engine; `command(size)` gives the command and how much it goes through."""
    (small, amount), (large, more) = map(command, sizes)
    return Slope.between(run(small), run(large), amount, more)


def text_command(bench: Bench, arguments: list[str], size: str) -> tuple[list[str], float]:
    """Tokenize the small or the large text corpus; MB of UTF-8 text."""
    file, megabytes = corpora.text(bench.folder, bench.corpus, size)
    entry = {"name": "text", "format": "text", "path": str(file), "column": "text"}
    return bench.job(f"text-{size}", [entry], {"text": bench.tokenizers()["bpe"]}) + arguments, megabytes


def text(bench: Bench) -> None:
    """MB per CPU-second of the whole job over those of tiktoken alone; bytes per token."""
    settings = bench.tokenizers()["bpe"]
    file, _ = corpora.text(bench.folder, bench.corpus, "bare")
    bare: list[dict[str, float]] = []
    slopes = []
    for _ in range(bench.repeats):
        bare.append(bench.bare("text", settings["path"], file))
        slopes.append(sloped(partial(text_command, bench, ["--workers", "1"])))
    ways = {way: statistics.median(each[way] for each in bare) for way in bare[0]}
    fastest = max(ways, key=lambda way: ways[way])
    ratios = [1 / slope.cpu / each[fastest] for slope, each in zip(slopes, bare, strict=True)]
    bench.add("text end to end / bare encoder, MB per CPU-second", ">= 0.90", spread(ratios))
    bench.note(
        f"text: motet {spread([1 / s.cpu for s in slopes], 1)} MB per CPU-second; tiktoken alone "
        + ", ".join(f"`{way}` {speed:.1f}" for way, speed in ways.items())
        + f"; a job costs {statistics.median(s.startup_cpu for s in slopes):.1f} CPU-seconds once"
    )
    manifest = json.loads((bench.folder / "out/text-large/manifest.json").read_text())
    size = sum(shard["bytes"] for shard in manifest["shards"])
    tokens = sum(shard["tokens"].get("text", 0) for shard in manifest["shards"])
    bench.add("bytes per token of text shards, all in", "<= 2.06", f"{size / tokens:.3f}")


def pictures(bench: Bench) -> None:
    """Small pictures, and 512 x 512 JPEGs encoded at 64 and at 256 pixels."""
    settings = bench.tokenizers()["vqgan"]
    emoji, jpegs = corpora.emoji(bench.folder), corpora.jpegs(bench.folder)
    for name, folder, size, counts in (
        ("64-pixel WebP at 64", emoji, 64, (512, 3072)),
        ("512-pixel JPEG at 64", jpegs, 64, (128, 3072)),
        ("512-pixel JPEG at 256", jpegs, 256, (64, 256)),
    ):
        media(bench, f"pictures ({name})", "image", folder, {**settings, "size": size}, counts)


def speech(bench: Bench) -> None:
    """EnCodec's own network with random weights, which cost what the real ones do, and the mel-RVQ."""
    prompts = corpora.prompts(bench.folder)
    for name, counts in (("encodec", (32, 128)), ("melrvq", (512, 2560))):
        media(bench, f"speech ({name})", "speech", prompts, bench.tokenizers()[name], counts)


def media(
    bench: Bench, title: str, modality: str, folder: Path, settings: dict[str, Any], counts: tuple[int, int]
) -> None:
    """Samples per CPU-second of the whole job over the bare encoder's, and over decoding + encoding with the libraries."""

    def command(size: str) -> tuple[list[str], float]:
        count = counts[size == "large"]
        entry = {
            "name": "media",
            "format": "folder",
            "path": str(corpora.some(bench.folder, folder, counts[0], count)),
            "modality": modality,
        }
        return [*bench.job(f"{modality}-{size}", [entry], {modality: settings}), "--workers", "1"], count

    bare, slopes = [], []
    for _ in range(bench.repeats):
        bare.append(
            bench.bare(modality, json.dumps(settings), corpora.some(bench.folder, folder, counts[0], counts[0]))
        )
        slopes.append(sloped(command))
    encode = max(
        (way for way in bare[0] if way != "decode"), key=lambda way: statistics.median(each[way] for each in bare)
    )
    alone = [1 / s.cpu / each[encode] for s, each in zip(slopes, bare, strict=True)]
    both = [1 / s.cpu * (1 / each[encode] + 1 / each["decode"]) for s, each in zip(slopes, bare, strict=True)]
    bench.add(f"{title} end to end / bare {encode}", "-", spread(alone))
    bench.add(f"{title} end to end / libraries: decode, then {encode}", ">= 0.92", spread(both))
    bench.note(
        f"{title}: motet {spread([1 / s.cpu for s in slopes], 1)} samples per CPU-second; alone: "
        + ", ".join(f"{way} {statistics.median(each[way] for each in bare):.1f}" for way in bare[0])
    )


def engine_command(bench: Bench, arguments: list[str], size: str) -> tuple[list[str], float]:
    """The small text corpus, or the large one ENGINE_GIGABYTES over: engines start up in seconds that vary."""
    if size == "small":
        return text_command(bench, arguments, size)
    entries, gigabytes = corpora.much_text(bench.folder, bench.corpus, ENGINE_GIGABYTES)
    return bench.job("text-much", entries, {"text": bench.tokenizers()["bpe"]}) + arguments, 1000 * gigabytes


def engines(bench: Bench) -> None:
    """Time per MB of text on two workers of each engine, and on one of the embedded one."""
    cases = {
        "local, 1 worker": ["--workers", "1"],
        "local": ["--workers", "2"],
        "ray": ["--engine", "ray", "--workers", "2"],
        "beam": ["--engine", "beam", "--workers", "2"],
    }
    slopes: dict[str, list[Slope]] = {name: [] for name in cases}
    for _ in range(bench.repeats):
        for name, arguments in cases.items():
            try:
                slopes[name].append(sloped(partial(engine_command, bench, arguments)))
            except RuntimeError as error:
                bench.note(f"{name}: {error}")
    for name, target in (("ray", "<= 3 %"), ("beam", "<= 15 %")):
        if len(slopes[name]) == bench.repeats:
            pairs = list(zip(slopes[name], slopes["local"], strict=True))
            bench.add(
                f"{name} over local, time per MB, 2 workers",
                target,
                spread([100 * (a.wall / b.wall - 1) for a, b in pairs], 1) + " %",
            )
            bench.add(
                f"{name} over local, CPU-seconds per MB",
                target,
                spread([100 * (a.cpu / b.cpu - 1) for a, b in pairs], 1) + " %",
            )
    both = zip(slopes["local, 1 worker"], slopes["local"], strict=True)
    bench.add("text, 2 workers over 1", ">= 1.8", spread([one.wall / two.wall for one, two in both], 2))
    for name, found in slopes.items():
        if found:
            bench.note(
                f"{name}: {spread([1 / s.wall for s in found], 1)} MB/s, {spread([1 / s.cpu for s in found], 1)} MB per "
                f"CPU-second; starts and ends in {statistics.median(s.startup_wall for s in found):.1f} s"
            )


def peers_beside(bench: Bench) -> None:
    """DataTrove and plain Ray Data on the same text, vocabulary and number of workers, in their own environments."""
    vocabulary = Path(bench.tokenizers()["bpe"]["path"]) / "tokenizer.json"
    ours = partial(text_command, bench, ["--workers", "2"])

    def theirs(peer: str, size: str) -> tuple[list[str], float]:
        file, megabytes = corpora.text(bench.folder, bench.corpus, size)
        return peers.command(peer, bench.folder, file, vocabulary, 2), megabytes

    found: dict[str, list[Slope]] = {"motet": [], **{peer: [] for peer in peers.PEERS}}
    for _ in range(bench.repeats):
        found["motet"].append(sloped(ours))
        for peer in peers.PEERS:
            found[peer].append(sloped(partial(theirs, peer), ("few", "some")))
    for name, slopes in found.items():
        bench.add(
            f"text, 2 workers: {name}",
            "-",
            f"{spread([1 / s.cpu for s in slopes], 1)} MB per CPU-second, {spread([1 / s.wall for s in slopes], 1)} MB/s, "
            f"starts and ends in {statistics.median(s.startup_wall for s in slopes):.1f} s",
        )


def resume(bench: Bench) -> None:
    """A finished job of very many partitions, run again."""
    file = corpora.lines(bench.folder, bench.partitions)
    entry = {"name": "lines", "format": "text", "path": str(file), "column": "text"}
    command = [
        *bench.job("resume", [entry], {"text": bench.tokenizers()["bpe"]}, partition_bytes=corpora.LINE),
        "--workers",
        "2",
    ]
    first = run(command)
    again = [run(command) for _ in range(3)]
    manifest = json.loads((bench.folder / "out/resume/manifest.json").read_text())
    bench.add(
        f"re-running a finished job of {len(manifest['shards']):,} partitions",
        "<= 10 s for 100,000",
        spread([usage.wall for usage in again], 1) + " s",
    )
    bench.note(f"resume: the first run took {first.wall:.0f} s")


def memory(bench: Bench) -> None:
    """Every process of a job, watched while very much text goes through, and a twentieth of that in pictures and speech."""
    use = bench.tokenizers()
    text_entries, text_size = corpora.much_text(bench.folder, bench.corpus, bench.gigabytes)
    media_entries, media_size = corpora.much_media(bench.folder, bench.gigabytes / 20)
    codecs = {"text": use["bpe"], "image": {**use["vqgan"], "size": 64}, "speech": use["melrvq"]}
    for name, gigabytes, entries, tokenizers in (
        ("text", text_size, text_entries, {"text": use["bpe"]}),
        ("pictures and speech", media_size, media_entries, codecs),
    ):
        command = [*bench.job("memory", entries, tokenizers), "--workers", "2"]
        report = watched(command, bench.folder / "out/memory/shards")
        workers = [process for process in report.processes if process.role == "worker"]
        bench.add(
            f"resident memory of a worker, {gigabytes:.1f} GB of {name}",
            "<= 1,024 MiB + weights, slope zero",
            f"at most {max(p.peak for p in workers) / MiB:.0f} MiB; "
            + ", ".join(f"{p.slope * report.wall / gigabytes / 1024:+.0f}" for p in workers)
            + " KiB per GB",
        )
        for each in report.processes:
            bench.note(
                f"memory, {name}: {each.role}: at most {each.peak / MiB:.0f} MiB resident (PSS {each.pss / MiB:.0f}), "
                f"{each.slope * report.wall / gigabytes / 1024:+.0f} KiB per GB, over {each.seconds:.0f} s"
            )


def parts_of(names: list[str]) -> Iterator[Callable[[Bench], None]]:
    """The functions behind the parts that were asked for."""
    known = {
        "text": text,
        "pictures": pictures,
        "speech": speech,
        "engines": engines,
        "peers": peers_beside,
        "resume": resume,
        "memory": memory,
    }
    yield from (known[name] for name in names)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "memory"], help="all but memory by default")
    parser.add_argument("--corpus", type=Path, help="a folder with text/*.jsonl, for more text than is bundled")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="of the memory part")
    parser.add_argument("--partitions", type=int, default=2_000, help="of the resume part")
    parser.add_argument("--keep", type=Path, help="folder for corpora and environments, kept for the next time")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, options.corpus, options.repeats, options.gigabytes, options.partitions)
        for part in parts_of(options.parts or list(PARTS)):
            part(bench)
    print(f"{machine()}; medians of {bench.repeats}, range of the repeats\n")
    print("| measure | wanted | found |\n|---|---|---|")
    for row in bench.rows:
        print("| " + " | ".join(row) + " |")
    print()
    for note in bench.notes:
        print(f"- {note}")


if __name__ == "__main__":
    main()
