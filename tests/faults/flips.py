#!/usr/bin/env python3
"""Flipped bits and truncations, one at a time, in every kind of file of a dataset: which of them are noticed, and by whom.

    a dataset of real documents, in small shards --one damage--> the reader of training (`open_shard`, every document)
                                                             --> `motet verify`
    --> refused by name | read although damaged | an exception that is no message | the process is gone

Each slice of damages is tried in a process of its own, so that one that ends its process is counted too.

    python tests/faults/flips.py --count 100000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from motet.core.configuration import validate
from motet.core.errors import UserError
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.index import Index
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.verify import Verification
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus
from motet.tokenizers.text.bpe import BPE

ROOT = Path(__file__).resolve().parents[2]
SLICE = 500
KINDS = {
    "shard, one bit": 0.71,
    "shard, cut short": 0.15,
    "manifest, one bit": 0.04,
    "names of commits, one bit": 0.02,
    "training's index, one bit": 0.02,
    "commit, one bit": 0.03,
    "rejects, one bit": 0.03,
}


def make(folder: Path) -> Path:
    """A small dataset of text, pictures as codes and as latents, with a few rejects; shards of a few kilobytes."""
    texts = (ROOT / "examples/corpus/text/speeches.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    BPE.fit([json.loads(text)["text"].encode() for text in texts], folder / "bpe", {"vocabulary": 400})
    rows = [json.dumps({"text": json.loads(texts[i % 6])["text"][i * 90 : i * 90 + 120]}) for i in range(60)]
    (folder / "text.jsonl").write_text("\n".join([*rows, "no json", "7"]), encoding="utf-8")
    metadata = (ROOT / "examples/corpus/images/emoji/metadata.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    (folder / "pictures").mkdir()
    for row in metadata:
        name = json.loads(row)["file_name"]
        shutil.copy(ROOT / "examples/corpus/images/emoji" / name, folder / "pictures" / name)
    (folder / "pictures/metadata.jsonl").write_text("\n".join(metadata), encoding="utf-8")
    config = {
        "corpus": [
            {"name": "text", "format": "text", "path": "text.jsonl"},
            {"name": "pictures", "format": "folder", "path": "pictures", "modality": "image"},
        ],
        "tokenizers": {
            "text": {"use": "bpe", "path": "bpe"},
            "image": {"use": "vae", "path": str(ROOT / "examples/demo/weights/vae")},
        },
        "partition_samples": 6,
        "partition_bytes": 1500,
    }
    tokenize_corpus(validate(config, TokenizeConfig, "flips"), folder, folder / "out")
    return folder / "out"


def read(manifest: Manifest) -> None:
    """What training does with a dataset: every document of every shard."""
    for entry in manifest.shards:
        for document in manifest.open_shard(entry).documents() if entry.rows else ():
            for _, tokens in document.spans:
                len(tokens)


def verified(manifest: Manifest) -> bool:
    """Whether `motet verify` finds nothing."""
    verification = Verification(manifest, 1)
    problems = [problem for _, problems in verification.shards() for problem in problems]
    return not problems and not any(problem.startswith("index.arrow") for problem in verification.whole())


def indexed(manifest: Manifest) -> None:
    """What training reads first."""
    Index.open(str(manifest.store))


def outcome(check, out: Path, known: Manifest | None, file: Path) -> str:
    """What one check says of a damaged dataset; of a damaged shard, with the manifest that was read before (`known`)."""
    try:
        manifest = known or Manifest.load(out)
        if known:
            manifest = replace(known, shards=tuple(e for e in known.shards if e.file.endswith(file.name)))
        return "NOT NOTICED" if check(manifest) in (None, True) else "refused"
    except (DamagedShard, UserError):
        return "refused"
    except Exception as error:
        return f"BARE {type(error).__name__}"


def damage(out: Path, kind: str, chance: random.Random) -> tuple[Path, bytes, bytes]:
    """(file, its bytes, its damaged bytes)."""
    what, how = kind.split(", ")
    folder, ending = {
        "shard": ("shards", "*"),
        "commit": ("commits", "*"),
        "rejects": ("rejects", "*"),
        "names of commits": ("", "commits.json"),
        "training's index": ("", "index.arrow"),
        "manifest": ("", "manifest.json"),
    }[what]
    file = chance.choice(sorted((out / folder).glob(ending)))
    raw = file.read_bytes()
    if how == "cut short":
        return file, raw, raw[: chance.randrange(len(raw))]
    damaged = bytearray(raw)
    damaged[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return file, raw, bytes(damaged)


def attempt(out: str, seed: int, count: int, results) -> None:
    """A slice of damages; tells what it is about to do, and what came of it."""
    chance, place = random.Random(seed), Path(out)
    whole = Manifest.load(place)
    for _ in range(count):
        (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
        file, raw, damaged = damage(place, kind, chance)
        results.send((kind, None))
        file.unlink()  # never under the feet of a mapping
        file.write_bytes(damaged)
        known = whole if kind.startswith("shard") else None
        found = {"verify": outcome(verified, place, known, file)}
        if kind.startswith(("shard", "manifest")):  # training reads nothing else
            found["reader"] = outcome(read, place, known, file)
        if kind.startswith("training"):
            found["reader"] = outcome(indexed, place, known, file)
        file.unlink()
        file.write_bytes(raw)
        results.send((kind, found))
    results.send(None)


def run(count: int, seed: int) -> Counter[tuple[str, str, str]]:
    """(kind, who, what) of `count` damages."""
    found: Counter[tuple[str, str, str]] = Counter()
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        out = make(Path(name))
        whole = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
        for begin in range(0, count, SLICE):
            ours, theirs = context.Pipe()
            process = context.Process(target=attempt, args=(str(out), seed + begin, min(SLICE, count - begin), theirs))
            process.start()
            theirs.close()
            doing = "start"
            try:
                while (told := ours.recv()) is not None:
                    doing, outcomes = told
                    for who, what in (outcomes or {}).items():
                        found[doing, who, what] += 1
            except EOFError:
                found[doing, "process", "GONE"] += 1
                for file, raw in whole.items():
                    file.write_bytes(raw)
            process.join()
    return found


def main() -> None:
    """Damage and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    began = time.monotonic()
    found = run(said.count, said.seed)
    for (kind, who, what), count in sorted(found.items()):
        print(f"{kind:20} {who:8} {what:20} {count:8,}")
    print(f"{said.count:,} damages in {time.monotonic() - began:.0f} s")
    if any(what != "refused" for _, _, what in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
