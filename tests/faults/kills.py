#!/usr/bin/env python3
"""kill -9, again and again, at any process of a tokenizing job; in the end every byte is as if nothing had happened.

a corpus made of real text --undisturbed--> manifest
the same into another folder: a victim at random moments (a worker's process, the server that it is forked from, a Ray actor,
a Ray node, the driver with all its children); the same command again, until all is done   --> the same manifest,
no document twice, nothing left over after `motet gc`, and at most one partition's work lost per process killed

python tests/faults/kills.py --engine local --kills 600
python tests/faults/kills.py --engine ray   --kills 350
python tests/faults/kills.py --engine beam  --kills 50
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from motet.pipeline.dataset.gc import collect, orphans
from motet.pipeline.dataset.manifest import Manifest
from motet.tokenizers.text.bpe import BPE

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
COUNTING = '''
import os
from motet.tokenizers.text.bpe import BPE

class Counting(BPE):
    """Notes every batch that it encodes, each a partition that was begun; after a death samples are tried alone too."""

    def encode(self, samples):
        if len(samples) == 1:
            return super().encode(samples)
        log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, b".")
        os.close(log)
        return super().encode(samples)
'''


def make(folder: Path, partitions: int, size: int) -> Path:
    """A corpus of so many partitions of about `size` bytes, every document different; its configuration."""
    texts = [
        json.loads(line)["text"]
        for line in (ROOT / "examples/corpus/text/speeches.jsonl").read_text("utf-8").splitlines()
    ]
    BPE.fit([text.encode() for text in texts[:20]], folder / "bpe", {"vocabulary": 1024})
    words = " ".join(texts).split()
    chance = random.Random(0)
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as lines:
        number = written = 0
        while written < partitions * size:
            begin = chance.randrange(len(words) - 4000)
            line = (
                json.dumps({"text": f"{number} " + " ".join(words[begin : begin + chance.randrange(200, 4000)])}) + "\n"
            )
            lines.write(line)
            written, number = written + len(line.encode()), number + 1
    (folder / "code").mkdir()
    (folder / "code/counting.py").write_text(COUNTING.format(log=str(folder / "attempts")))
    config = {
        "corpus": [{"name": "text", "format": "text", "path": "corpus.jsonl"}],
        "tokenizers": {"text": {"use": "counting:Counting", "path": "bpe"}},
        "partition_bytes": size,
    }
    (folder / "corpus.yaml").write_text(json.dumps(config))
    return folder / "corpus.yaml"


class Disturbed:
    """A job that is killed: `kills` by kind of victim."""

    def __init__(self, config: Path, out: Path, engine: str, seed: int, options: list[str]):
        self.command = [sys.executable, "-m", "motet.orchestration", "tokenize", str(config), "--out", str(out)]
        self.command += ["--engine", engine, "--workers", str(WORKERS), *options]
        self.chance, self.kills, self.lost, self.given_up = random.Random(seed), Counter[str](), 0, 0
        self.process: Any = None

    def start(self) -> None:
        """Start the command, in a process group of its own."""
        self.process = subprocess.Popen(
            self.command,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def descendants(self, root: int) -> dict[str, list[psutil.Process]]:
        """Processes below `root`, by what they are."""
        found: dict[str, list[psutil.Process]] = {"child": [], "server": [], "actor": []}
        try:
            for process in psutil.Process(root).children(recursive=True):
                name = " ".join(process.cmdline())
                if "forkserver" in name:
                    parent = process.parent()
                    child = parent is not None and "forkserver" in " ".join(parent.cmdline())
                    found["child" if child else "server"].append(process)
                elif name.startswith("ray::_Actor"):
                    found["actor"].append(process)
        except psutil.Error:
            pass
        return found

    def kill(self, kinds: dict[str, float], roots: list[int]) -> str | None:
        """Kill a victim of a random kind, if there is one; its kind."""
        (kind,) = self.chance.choices(list(kinds), list(kinds.values()))
        if kind == "driver":
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            self.lost += WORKERS
        else:
            victims = [process for root in roots for process in self.descendants(root)[kind]]
            if not victims:
                return None
            try:
                self.chance.choice(victims).kill()
            except psutil.Error:
                return None
            self.lost += WORKERS if kind == "server" else 1
        self.kills[kind] += 1
        return kind

    def run(self, most: int, kinds: dict[str, float], pause: float, cluster: Any = None) -> bool:
        """Until the job is done or `most` victims are dead; whether it is done."""
        self.start()
        while sum(self.kills.values()) < most:
            time.sleep(self.chance.expovariate(1 / pause))
            if (code := self.process.poll()) is not None:
                told = self.process.stderr.read().decode()[-600:]
                assert code == 0 or "kills its process" in told, f"the command fails by itself: {told}"
                if code == 0:
                    return True
                self.given_up += 1  # one partition met eight kills in a row: the job ends, and says so
                self.start()
                continue
            roots = [self.process.pid] if cluster is None else cluster.roots()
            if "node" in kinds and self.chance.random() < kinds["node"]:
                cluster.replace()
                self.kills["node"] += 1
                self.lost += WORKERS
            elif self.kill({k: v for k, v in kinds.items() if k != "node"}, roots) == "driver":
                self.start()
        told = self.process.communicate()[1].decode()[-600:]
        assert self.process.returncode == 0, f"the command fails by itself: {told}"
        return True


class Nodes:
    """A Ray cluster on this machine: a head, and two nodes that are killed and replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def roots(self) -> list[int]:
        """Where to look for actors and their children."""
        return [
            info.process.pid
            for node in self.nodes
            for kind, all_ in node.all_processes.items()
            if kind == "raylet"
            for info in all_
        ]

    def replace(self) -> None:
        """Kill -9 of a node's raylet; then there is another one."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))


def check(out: Path, folder: Path, whole: str, partitions: int, disturbed: Disturbed, attempts: int) -> None:
    """Everything that must hold in the end."""
    manifest = Manifest.load(out)
    assert manifest.to_text() == whole, "the manifest is not that of the undisturbed run"
    files = {e.file for e in manifest.shards if e.file}
    collect(manifest.store, 0)
    assert (
        not orphans(manifest.store, 0).files and {f"shards/{name}" for name in manifest.store.list("shards")} == files
    )
    assert len(manifest.store.list("commits")) == partitions and not list((out / ".tmp").iterdir())
    identities = [d.sample_id for e in manifest.shards for d in manifest.open_shard(e).documents()]
    assert len(identities) == len(set(identities)) == manifest.documents, "a document is there twice"
    assert attempts - partitions <= disturbed.lost, (
        f"{attempts} begun for {partitions} partitions, {disturbed.lost} killed"
    )


def main(arguments: list[str] | None = None) -> None:
    """Kill, check, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["local", "ray", "beam"], default="local")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--partitions", type=int, default=300)
    parser.add_argument("--size", type=int, default=400_000, help="bytes of a partition")
    parser.add_argument("--pause", type=float, default=0.3, help="mean seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args(arguments)
    kinds = {
        "local": {"child": 0.7, "server": 0.1, "driver": 0.2},
        "beam": {"child": 0.7, "server": 0.1, "driver": 0.2},
    }.get(said.engine, {"child": 0.6, "server": 0.1, "actor": 0.2, "driver": 0.1, "node": 0.03})
    began, total, rounds = time.monotonic(), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="motet-kills-") as name:
        folder = Path(name)
        config = make(folder, said.partitions, said.size)
        os.environ["PYTHONPATH"] = f"{folder / 'code'}:{os.environ.get('PYTHONPATH', '')}"
        undisturbed = Disturbed(config, folder / "whole", "local", 0, [])
        undisturbed.run(0, {}, 1)
        manifest = Manifest.load(folder / "whole")
        whole, partitions = manifest.to_text(), len(manifest.shards)
        once = (folder / "attempts").stat().st_size
        assert once == partitions, f"{once} batches in {partitions} partitions"
        cluster = Nodes() if said.engine == "ray" else None
        options = ["--address", cluster.cluster.address] if cluster else []
        while sum(total.values()) < said.kills:
            (folder / "attempts").unlink()
            out = folder / f"out{rounds}"
            disturbed = Disturbed(config, out, said.engine, said.seed + rounds, options)
            disturbed.run(said.kills - sum(total.values()), kinds, said.pause, cluster)
            attempts = (folder / "attempts").stat().st_size
            check(out, folder, whole, partitions, disturbed, attempts)
            total, rounds = total + disturbed.kills, rounds + 1
            print(
                f"round {rounds}: {dict(disturbed.kills)}, {attempts - partitions} of {partitions} partitions begun anew, "
                f"ended {disturbed.given_up} times over one that was killed eight times in a row",
                flush=True,
            )
            shutil.rmtree(out)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(total.items()))
    print(
        f"{said.engine}: {sum(total.values())} processes killed ({told}) in {rounds} rounds, {time.monotonic() - began:.0f} s: same manifest"
    )


if __name__ == "__main__":
    main()
