#!/usr/bin/env python3
"""What the order of training costs and keeps: restarts, planning, packing, shares, balance, memory.

    one shard of real text in documents of 200 tokens on average, under as many names as it takes -> 10^4 to 10^9 documents
        restart:  a new process, packages imported: open, go on from a cursor in mid-epoch, first batch of 16 rows
        planning: private memory of that process over what it had before, beyond what is mapped
        far:      the same from an object store that takes 30 ms for every answer, with an empty cache; shuffle: 8
        packed:   rows of 2,048 tokens in one thread: planned; planned and ids read; as grouped batches
    three sources of text, captioned pictures and speech, as lengths alone
        shares:   of each modality of 10,000 global batches, by `modality_weights`, at every 1,000th
        balance:  the cost of the dearest of 8 ranks over the mean, 64 rows a global batch
        soak:     grouped batches on and on; anonymous memory and its slope

The pages are in memory, and so are the loops that numba compiles once a machine.

    python benchmarks/stream.py [restart far packed shares soak] [--most 9] [--repeats 5] [--tokens 2e9]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from motet.pipeline.dataset.header import ShardHeader
from motet.pipeline.dataset.index import NAME, to_bytes
from motet.pipeline.dataset.manifest import Manifest, ShardEntry
from motet.pipeline.dataset.shard import Document, ShardWriter, sample_id
from motet.pipeline.dataset.store import store_of
from motet.tokenizers.contract import TokenizerSpec, Tokens

SPECS = {
    name: TokenizerSpec("bytes", name, "discrete", books, 0, None, kind, name[0] * 32)
    for name, books, kind in (
        ("image", (8192,), "image/png"),
        ("speech", (1024, 1024), "audio/wav"),
        ("text", (8192,), "text/plain"),
    )
}
SHARD, LARGE = 1 << 16, 1 << 19
"""Documents of a shard: 26 MB, which takes less time to make, and 210 MB, the size that `motet tokenize` aims at."""
SPEECHES = Path(__file__).resolve().parent.parent / "examples/corpus/text/speeches.jsonl"
LATENCY = 0.03


def shard(folder: Path, name: str, spans: list[list[tuple[str, int]]], modalities: tuple[str, ...]) -> ShardEntry:
    """One shard of documents of these spans (modality, tokens), cut out of real text one after another, again and again."""
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    ids = np.frombuffer(SPEECHES.read_bytes(), np.uint8).astype(np.int32)
    path, at, tokens = folder / "shards" / f"{name}.arrow", 0, dict.fromkeys(modalities, 0)
    writer = ShardWriter(path, ShardHeader(modalities, {m: SPECS[m] for m in modalities}, ""), [name])
    for i, document in enumerate(spans):
        found = []
        for modality, n in document:
            at = 0 if at + n > len(ids) else at
            shape = (n,) if modality == "text" else (1, n) if modality == "image" else (n // 2, 2)
            found.append((modality, Tokens(shape, ids=ids[at : at + n])))
            tokens[modality] += n
            at += n
        writer.write(Document(sample_id(name, str(i), [i.to_bytes(8, "little")]), name, tuple(found)))
    told = dataclasses.asdict(writer.close())
    return ShardEntry(f"shards/{name}.arrow", name, 0, tokens=tokens, spans={}, rejects={}, inputs=(), **told)


def dataset(folder: Path, found: list[ShardEntry], copies: int = 1) -> None:
    """The shards, each under so many names."""
    entries = []
    for entry in found:
        for i in range(copies):
            file = entry.file if i == 0 else f"shards/{entry.source}-{i:05}.arrow"
            if i:
                os.link(folder / entry.file, folder / file)
            entries.append(dataclasses.replace(entry, file=file, partition=i))
    modalities = tuple(sorted({m for entry in found for m in entry.tokens}))
    tables = {entry.source: sorted(entry.tokens) for entry in found}
    specs, names = {m: SPECS[m] for m in modalities}, tuple(sorted(tables))
    manifest = Manifest(store_of(folder), modalities, specs, "", names, tuple(entries), {}, tables=tables)
    (folder / NAME).write_bytes(to_bytes(manifest))


def text(folder: Path, documents: int, copies: int) -> float:
    """A dataset of text; its mean length."""
    lengths = np.clip(np.random.default_rng(0).lognormal(4.9, 0.9, documents), 8, 2046).astype(int).tolist()
    dataset(folder, [shard(folder, "text", [[("text", n)] for n in lengths], ("text",))], copies)
    return statistics.fmean(lengths)


def mixed(folder: Path) -> None:
    """Text, captioned pictures of 256 codes, and transcribed speech."""
    random = np.random.default_rng(1)
    words = np.clip(random.lognormal(4.9, 0.9, SHARD // 4), 8, 2046).astype(int).tolist()
    captions = random.integers(4, 60, SHARD // 8).tolist()
    frames = (2 * random.integers(50, 400, SHARD // 8)).tolist()
    dataset(
        folder,
        [
            shard(folder, "books", [[("text", n)] for n in words], ("text",)),
            shard(folder, "pictures", [[("text", n), ("image", 256)] for n in captions], ("image", "text")),
            shard(folder, "speech", [[("text", n // 8), ("speech", n)] for n in frames], ("speech", "text")),
        ],
        4,
    )


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Anonymous:"))


def loader(place: str, rows: int, cache: str = "~/.cache/motet", **data: Any) -> Any:
    """As a training run opens it."""
    from motet.trainer.config import DataConfig
    from motet.trainer.data.collate import Noise
    from motet.trainer.data.corpus import Corpus
    from motet.trainer.data.loader import Loader
    from motet.trainer.data.order import Order
    from motet.trainer.data.records import Records
    from motet.trainer.vocabulary import Towers, Vocabulary

    settings = DataConfig(paths=[place], sequence=2048, cache=cache, **data)
    corpus = Corpus(Records.of(settings, [place]), "train", 0.01)
    vocabulary = Vocabulary.of(corpus.tokenizers)
    order = Order(corpus, settings, rows, 0)
    return Loader(order, vocabulary, Towers.of(vocabulary, {}), Noise(0, 1000), 0.0003)


def restart(place: str, cache: str, blocks: int) -> None:
    """In a process of its own: prints seconds to the first batch, from the packages' imports on, and bytes."""
    for module in ("motet.trainer.data.loader", "s3fs", "pandas"):  # pyarrow imports the last one at its first array
        importlib.import_module(module)
    from motet.trainer.data import shuffle
    from motet.trainer.data.order import Cursor

    shuffle.draw(0, 1, 1, 0, np.uint64(0))  # numba imports the rest of itself at the first call
    before, began = anonymous(), time.perf_counter()
    found = loader(place, 16, cache, shuffle=blocks or None)
    documents = found.order.corpus.records.begin[-1]
    step = documents // 16
    found.order.remember(Cursor(step * 16, (documents // 2,), (documents * 100,)))
    found.micro_batches(step, 0, 1, 16)
    print(json.dumps({"seconds": time.perf_counter() - began, "bytes": anonymous() - before}))


def again(command: list[str], repeats: int) -> dict[str, float]:
    """Medians over processes; the first one is not counted."""
    found = [json.loads(subprocess.check_output([sys.executable, __file__, *command])) for _ in range(repeats + 1)]
    return {key: statistics.median(each[key] for each in found[1:]) for key in found[0]}


def restarts(folder: Path, said: argparse.Namespace) -> None:
    """From 10^4 documents on."""
    for power in range(4, said.most + 1):
        documents = min(10**power, LARGE)
        place = folder / str(power)
        text(place, documents, -(-(10**power) // documents))
        found = again(["one-restart", str(place), "unused", "0"], said.repeats)
        print(
            f"restart, 10^{power} documents: {found['seconds']:.3f} s to the first batch, {found['bytes'] / 1e6:.0f} MB",
            flush=True,
        )


def far(folder: Path, said: argparse.Namespace) -> None:
    """10^6 documents on an object store with latency."""
    text(folder / "near", SHARD, 16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="s")
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    server = subprocess.Popen([sys.executable, __file__, "serve", str(port)], stderr=subprocess.DEVNULL)
    try:
        import s3fs

        store = s3fs.S3FileSystem()
        for _ in range(100):
            try:
                store.mkdir("bucket")
                break
            except Exception:
                time.sleep(0.2)
        store.put(str(folder / "near"), "bucket/far", recursive=True)
        for blocks in (8, 64):
            times = []
            for i in range(said.repeats):
                cache = str(folder / f"cache-{blocks}-{i}")
                command = [sys.executable, __file__, "one-restart", "s3://bucket/far", cache, str(blocks)]
                times.append(json.loads(subprocess.check_output(command))["seconds"])
            print(
                f"restart, 10^6 documents, {1000 * LATENCY:.0f} ms away, shuffle {blocks}: {statistics.median(times):.2f} s",
                flush=True,
            )
    finally:
        server.kill()


def serve(port: int) -> None:
    """An S3 API that takes its time."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app = DomainDispatcherApplication(create_backend_app)

    def late(environ: Any, start: Any) -> Any:
        time.sleep(LATENCY)
        return app(environ, start)

    run_simple("127.0.0.1", port, late, threaded=True)


def packed(folder: Path, said: argparse.Namespace) -> None:
    """Global batches of 64 rows, in turns."""
    mean, steps = text(folder, SHARD, 40), 400
    found = loader(str(folder), 64)
    order, corpus = found.order, found.order.corpus
    ways: dict[str, Callable[[int], object]] = {
        "planned": order.rows_of,
        "planned, ids read": lambda step: order.rows_of(step).read(corpus),
        "as grouped batches": lambda step: found.micro_batches(step, 0, 1, 64),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(said.repeats + 1):
        for i, (name, way) in enumerate(ways.items()):
            first = (repeat * len(ways) + i) * steps  # steps that nobody has planned yet
            way(first)
            began = time.perf_counter()
            for step in range(first + 1, first + 1 + steps):
                way(step)
            if repeat:
                speeds[name].append(steps * 64 * 2048 / (time.perf_counter() - began) / 1e6)
    padding = statistics.fmean(
        1 - order.rows_of(step).length_R.sum() / (order.rows * order.data.sequence) for step in range(steps)
    )
    told = ", ".join(f"{name} {statistics.median(found):.0f}" for name, found in speeds.items())
    print(f"documents of {mean:.0f} tokens, Mtok/s in one thread: {told}; padding {padding:.2%}", flush=True)


def shares(folder: Path, said: argparse.Namespace) -> None:
    """Of modalities, and of ranks."""
    from motet.trainer.data.balance import costs
    from motet.trainer.data.balance import shares as of_ranks

    mixed(folder)
    wanted = {"text": 0.45, "image": 0.35, "speech": 0.2}
    found = loader(str(folder), 64, modality_weights=wanted)
    order, modalities = found.order, found.order.corpus.modalities
    worst, began = 0.0, time.perf_counter()
    for step in range(1000, 10_001, 1000):
        had = order.cursor(step).modalities
        worst = max(worst, *(abs(n / sum(had) - wanted[m]) for n, m in zip(had, modalities, strict=True)))
    print(
        f"shares of {wanted} at every 1,000th of 10,000 global batches: off by {worst:.4%} at most "
        f"({10_000 * 64 * 2048 / (time.perf_counter() - began) / 1e6:.0f} Mtok/s planned)"
    )
    over = []
    for step in range(200):
        cost_R = costs(order.rows_of(step), found.pair)
        cost_W = np.array([cost_R[mine].sum() for mine in of_ranks(cost_R, 8)])
        over.append(cost_W.max() / cost_W.mean())
    print(
        f"cost of the dearest of 8 ranks over the mean: {statistics.median(over):.4f}, at worst {max(over):.4f}",
        flush=True,
    )


def soak(folder: Path, said: argparse.Namespace) -> None:
    """A rank that is given all rows, 16 at a time."""
    if not (folder / NAME).exists():
        mixed(folder)
    found = loader(str(folder), 64, modality_weights={"text": 0.45, "image": 0.35, "speech": 0.2})
    steps, base = int(said.tokens / (64 * 2048)), anonymous()
    memory, began = [], time.perf_counter()
    for step in range(steps):
        found.micro_batches(step, 0, 1, 16)
        if step % max(steps // 200, 1) == 0:
            memory.append((step * 64 * 2048 / 1e9, (anonymous() - base) / 1e6))
    late = np.array(memory[len(memory) // 10 :])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
    print(
        f"soak, {said.tokens / 1e9:.1f} G tokens in {time.perf_counter() - began:.0f} s: at most {late[:, 1].max():.0f} MB "
        f"over what the packages take, {slope:+.2f} MB per G tokens",
        flush=True,
    )


PARTS = {"restart": restarts, "far": far, "packed": packed, "shares": shares, "soak": soak}


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["one-restart"]:
        return restart(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    if sys.argv[1:2] == ["serve"]:
        return serve(int(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    parser.add_argument("--most", type=int, default=9, help="powers of ten of documents")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=float, default=2e9, help="of the soak")
    said = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, medians of {said.repeats}", flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        for part in said.parts or PARTS:
            place = "mixed" if part in ("shares", "soak") else part
            PARTS[part](Path(name) / place, said)
    return None


if __name__ == "__main__":
    main()
