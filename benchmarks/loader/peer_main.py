#!/usr/bin/env python3
"""One action of one peer, in that peer's environment; prints one JSON line.

    peer_main.py PEER ACTION CORPUS FOLDER [SEED]

    write      rows and documents -> FOLDER/rows, FOLDER/docs
    speed      an epoch, pages in memory, no workers: nothing but next() on int64 tensors [16, 2048]
    resume     state saved after 90 % of an epoch; a new process loads it; its rows against those of the first, undisturbed
    kill       a process that saves every 10 batches is killed after half an epoch; a new one goes on from the last state
    elastic    state saved after half an epoch with 2 workers, loaded in a new process with 1
    flip       one bit of one row's tokens in a copy of the files: does an epoch complain?
    quality    how well an epoch is shuffled; and is every row in it once?
    documents  packing while reading: Mtok/s of true tokens, share of padding, documents lost or repeated

`resume`, `kill` and `elastic` start processes of their own: `peer_main.py PEER epoch ...`, which writes what it read.
What went wrong is a result too: {"error": its first line}. What a peer cannot do is {"lacks": why}.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from corpus import documents as corpus_documents
from corpus import index
from peers import PEERS
from peers.base import BATCH, LENGTH, Peer

MB, M = 1 << 20, 1_000_000
WINDOW = 512  # rows, over which the entropy of a shuffle is taken
EVERY = 10  # batches between two states of `kill`
LIMIT = 120  # seconds of one process of `resume`, `kill` or `elastic`


def usage() -> tuple[float, float]:
    """CPU-seconds and resident MB of this process and all that descends from it."""
    me = psutil.Process()
    cpu = rss = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
            cpu += times.user + times.system
            rss += process.memory_info().rss / MB
        except psutil.NoSuchProcess:
            pass
    return cpu, rss


def files(folder: Path) -> list[Path]:
    """All files below, the largest first."""
    return sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: (-f.stat().st_size, f))


def warm(folder: Path) -> None:
    """Have the files in memory."""
    for file in files(folder):
        file.read_bytes()


def count(found: np.ndarray, total: int) -> dict[str, int]:
    """How many of `total` were not found, and how many were found again."""
    times = np.bincount(found, minlength=total)
    return {"lost": int((times == 0).sum()), "repeated": int((times - 1).clip(0).sum())}


def write(peer: Peer, corpus: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Both shapes; the figures are of the rows."""
    result: dict[str, Any] = {}
    shapes = {"rows": lambda: list(np.load(corpus / "rows.npy"))}
    if peer.algorithms:
        shapes["docs"] = lambda: corpus_documents(corpus)
    for shape, load in shapes.items():
        out = folder / shape
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        arrays = load()
        start = time.perf_counter()
        peer.write(arrays, out)
        seconds, size = time.perf_counter() - start, sum(f.stat().st_size for f in files(out))
        tokens = sum(map(len, arrays))
        result[shape] = {
            "mtok_s": round(tokens / seconds / M, 2),
            "seconds": round(seconds, 2),
            "bytes_per_token": round(size / tokens, 3),
            "files": len(files(out)),
        }
    return result["rows"] | ({"docs": result["docs"]} if "docs" in result else {})


def speed(peer: Peer, corpus: Path, folder: Path, seed: int) -> dict[str, Any]:
    """From the second batch on; the first one is timed by itself, from the call that makes the loader."""
    warm(folder / "rows")
    base = usage()[1]
    start = time.perf_counter()
    batches = iter(peer.loader(folder / "rows", seed))
    next(batches)
    first = time.perf_counter()
    cpu, tokens, taken = usage()[0], 0, 1
    begin = time.perf_counter()
    for batch in batches:
        tokens += batch.numel()
        taken += 1
    end = time.perf_counter()
    used, rss = usage()
    assert tuple(batch.shape[1:]) == (LENGTH,) and str(batch.dtype) == "torch.int64", (batch.shape, batch.dtype)
    return {
        "mtok_s": round(tokens / (end - begin) / M, 2),
        "mtok_cpu_s": round(tokens / max(used - cpu, 0.01) / M, 2),
        "first_batch_s": round(first - start, 3),
        "epoch_s": round(end - start, 2),
        "rss_mb": round(rss),
        "rss_of_imports_mb": round(base),
        "batches": taken,
    }


def epoch(peer: Peer, folder: Path, seed: int, said: argparse.Namespace) -> dict[str, Any]:
    """Read on from a state or from the start, no further than batch --most; after batch --at or every --every of them, keep
    the state and the rows so far. `ended` tells whether the loader knew that the epoch was over.
    """
    kept = pickle.loads(said.load.read_bytes()) if said.load else {"state": None, "batches": 0}
    said.most = said.most and said.most - kept["batches"]
    start = time.perf_counter()
    loader = peer.loader(folder / "rows", seed, said.workers, kept["state"])
    first, heads = None, []
    batches = iter(loader)
    for taken, batch in enumerate(batches, 1):
        first = first or time.perf_counter() - start
        heads.append(index(batch[:, :2]))
        if said.save and loader.save and (taken == said.at or (said.every and taken % said.every == 0)):
            kept = {"state": loader.save(), "rows": np.concatenate(heads), "batches": taken}
            unfinished = said.save.with_suffix(".part")
            unfinished.write_bytes(pickle.dumps(kept))
            unfinished.rename(said.save)
        if taken == said.most:
            break
        time.sleep(said.pause)
    np.save(said.rows, np.concatenate(heads) if heads else np.zeros(0, np.int64))
    ended = said.load is None or next(batches, None) is None
    return {"first_batch_s": round(first or 0.0, 3), "batches": len(heads), "ended": ended}


def _command(name: str, corpus: Path, folder: Path, seed: int, **more: Any) -> list[str]:
    """Of a process that runs `epoch`."""
    options = [text for key, value in more.items() for text in (f"--{key}", str(value))]
    return [sys.executable, __file__, name, "epoch", str(corpus), str(folder), str(seed), *options]


def _again(name: str, corpus: Path, folder: Path, seed: int, **more: Any) -> dict[str, Any]:
    """A new process goes on from the last state to where the epoch ends; what became of the epoch's rows."""
    total, state, out = len(np.load(corpus / "rows.npy", "r")), folder / "state", folder / "resumed.npy"
    found = _run(_command(name, corpus, folder, seed, load=state, rows=out, most=total // BATCH, **more))
    kept, resumed = pickle.loads(state.read_bytes()), np.load(out)
    return {
        "at_batch": kept["batches"],
        "state_bytes": len(kept["state"]),
        "first_batch_s": found["first_batch_s"],
        "epoch_ended": found["ended"],
        **count(np.concatenate([kept["rows"], resumed]), total),
    }


def _run(command: list[str]) -> dict[str, Any]:
    """What it printed; RuntimeError with what it said went wrong."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"[TimeoutExpired] no end after {LIMIT} s") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"ended with {done.returncode}, no result")
    if "error" in (found := json.loads(lines[-1])):
        raise RuntimeError(found["error"])
    return found


def _batches(corpus: Path) -> int:
    """Of an epoch."""
    return len(np.load(corpus / "rows.npy", "r")) // BATCH


def resume(name: str, corpus: Path, folder: Path, seed: int) -> dict[str, Any]:
    """The tail must be the one of the process that was not disturbed."""
    at, whole = _batches(corpus) * 9 // 10, folder / "undisturbed.npy"
    _run(_command(name, corpus, folder, seed, at=at, save=folder / "state", rows=whole))
    found = _again(name, corpus, folder, seed)
    return found | {"identical": bool(np.array_equal(np.load(folder / "resumed.npy"), np.load(whole)[at * BATCH :]))}


def kill(name: str, corpus: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Lost and repeated against what the consumer had at the last state."""
    state, shared = folder / "state", Path("/dev/shm")
    state.unlink(missing_ok=True)
    before = set(shared.glob("*"))
    command = _command(name, corpus, folder, seed, every=EVERY, save=state, pause=0.002, rows=folder / "killed.npy")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if state.exists() and pickle.loads(state.read_bytes())["batches"] >= _batches(corpus) // 2:
                process.kill()
                break
            time.sleep(0.01)
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"ended with {process.returncode} before it was killed")
    left = len(set(shared.glob("*")) - before)
    return _again(name, corpus, folder, seed) | {"left_in_shared_memory": left}


def elastic(name: str, corpus: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Two workers, then one."""
    at, state = _batches(corpus) // 2, folder / "state"
    _run(_command(name, corpus, folder, seed, at=at, most=at, save=state, workers=2, rows=folder / "half.npy"))
    return _again(name, corpus, folder, seed, workers=1)


def flip(peer: Peer, corpus: Path, folder: Path, seed: int) -> dict[str, Any]:
    """In the middle row; where its bytes stand in no file (they are compressed), in the middle of the largest file."""
    rows, copy = np.load(corpus / "rows.npy"), folder / "flipped"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "rows", copy)
    wanted = rows[len(rows) // 2, :256].tobytes()
    for file in files(copy):
        data = bytearray(file.read_bytes())
        if (at := data.find(wanted)) >= 0:
            at += 301  # past the tokens that name the row
            break
    else:
        file = files(copy)[0]
        data = bytearray(file.read_bytes())
        at = len(data) // 2
    data[at] ^= 16
    file.write_bytes(data)
    where = {
        "file": file.name,
        "offset": at,
        "compressed": wanted not in (folder / "rows" / file.relative_to(copy)).read_bytes(),
    }
    heads, wrong = [], 0
    try:
        for batch in peer.loader(copy, seed):
            found = index(batch[:, :2])
            known = found < len(rows)
            heads.append(found[known])
            wrong += int((rows[found[known]] != batch.numpy()[known]).sum()) + LENGTH * int((~known).sum())
    except Exception as error:
        return {"noticed": True, "how": first_line(error), **where}
    missing = count(np.concatenate(heads), len(rows))
    return {"noticed": False, "wrong_tokens": wrong, **missing, **where}


def quality(peer: Peer, corpus: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Three numbers of the order of rows; a true permutation's beside them."""
    total = _batches(corpus) * BATCH
    order = np.concatenate([index(batch[:, :2]) for batch in peer.loader(folder / "rows", seed)])
    ideal = shuffle_numbers(np.random.default_rng(seed).permutation(total), total)
    return {**shuffle_numbers(order, total), **count(order, total), "ideal": ideal}


def shuffle_numbers(order: np.ndarray, total: int) -> dict[str, float]:
    """P(next row from the same eighth), P(at most 16 rows away), mean entropy of eighths in 512 rows."""
    eighths = order * 8 // total
    bits = []
    for at in range(0, len(order) - WINDOW + 1, WINDOW):
        share = np.bincount(eighths[at : at + WINDOW], minlength=8) / WINDOW
        bits.append(-(share[share > 0] * np.log2(share[share > 0])).sum())
    return {
        "same_eighth": round(float((eighths[1:] == eighths[:-1]).mean()), 3),
        "near": round(float((np.abs(np.diff(order)) <= 16).mean()), 4),
        "entropy_bits": round(float(np.mean(bits)), 2) if bits else 0.0,
    }


def documents(peer: Peer, corpus: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Each algorithm: one epoch against the clock, one that is looked at."""
    warm(folder / "docs")
    total, result = len(np.load(corpus / "doc_ends.npy", "r")), {}
    for algorithm in peer.algorithms:
        start, batches = time.perf_counter(), peer.documents(folder / "docs", seed, algorithm)
        next(batches)
        first = time.perf_counter()
        slots = sum(tokens.numel() for tokens, _ in batches)
        seconds = time.perf_counter() - first
        heads, true, all_slots, marked = [], 0, 0, True
        for tokens, segments in peer.documents(folder / "docs", seed, algorithm):
            true += int((segments > 0).sum())
            all_slots += segments.numel()
            heads.extend(starts(tokens.numpy(), segments.numpy()))
            marked = marked and int(segments.max()) > 1
        found = np.concatenate(heads)
        result[algorithm] = {
            "mtok_s": round(slots * true / all_slots / seconds / M, 2),
            "padding": round(1 - true / all_slots, 4),
            "first_batch_s": round(first - start, 3),
            "tokens": true,
            **(
                count(found[found < total], total) if marked and "concat" not in algorithm else {"cuts_documents": True}
            ),
        }
    return result


def starts(tokens: np.ndarray, segments: np.ndarray) -> Iterator[np.ndarray]:
    """The documents that begin in a batch."""
    for row, marks in zip(tokens, segments, strict=True):
        begin = np.flatnonzero((np.diff(marks, prepend=0) != 0) & (marks > 0))
        begin = begin[begin < LENGTH - 1]
        yield index(np.stack([row[begin], row[begin + 1]], 1))


def first_line(error: BaseException) -> str:
    """What a user sees first, and where it came from if it says nothing."""
    text = (str(error).strip() or "(no message)").splitlines()[0][:300]
    if isinstance(error, RuntimeError) and error.args and str(error).startswith("["):
        return text
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"[{type(error).__name__}] {text} ({Path(where.filename).name}:{where.name})"


def main() -> None:
    """One action, one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("action")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    for name in ("load", "save", "rows"):
        parser.add_argument(f"--{name}", type=Path)
    for name in ("at", "every", "most", "workers"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0)
    said = parser.parse_args()
    peer, place = PEERS[said.peer], (said.corpus, said.folder, said.seed)
    try:
        if said.action in peer.lacks:
            result = {"lacks": peer.lacks[said.action]}
        elif said.action in ("resume", "kill", "elastic"):
            result = {"resume": resume, "kill": kill, "elastic": elastic}[said.action](said.peer, *place)
        else:
            for module in ("torch", *peer.imports):
                importlib.import_module(module)
            if said.action == "epoch":
                result = epoch(peer, said.folder, said.seed, said)
            else:
                action = {"write": write, "speed": speed, "flip": flip, "quality": quality, "documents": documents}
                result = action[said.action](peer, *place)
    except Exception as error:
        traceback.print_exc()
        result = {"error": first_line(error)}
    print("\n" + json.dumps(result), flush=True)
    if said.workers:
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(0)  # workers in the middle of an epoch are not waited for


if __name__ == "__main__":
    main()
