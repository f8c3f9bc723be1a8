#!/usr/bin/env python3
"""Real files, broken in every way: the job ends, says so in words, and every input is a document or a reject.

pictures, recordings, texts of the bundled corpus --another format--> PNG JPEG WebP GIF BMP AVIF TIFF PPM
JPEG2000, WAV FLAC OGG AIFF MP3 CAF W64 AU, JSONL, tar, Parquet
--`fuzz`: bits, cuts, insertions, swaps, zeros, lies about lengths, two files in one--> corpora --`motet tokenize`-->
exit code 0 or 3, no traceback; documents + rejects = inputs; every sound file, one beside each broken one, is there with
the tokens that it has in a corpus of sound files alone

python tests/faults/hostile.py --count 500
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.shard import sample_id
from motet.tokenizers.text.bpe import BPE

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "examples/corpus"
SECONDS = 900


def files(chance: random.Random) -> dict[str, list[bytes]]:
    """Sound files of every format, by ending."""
    found: dict[str, list[bytes]] = {}
    for path in chance.sample(sorted((CORPUS / "images/emoji").glob("*.webp")), 12):
        found.setdefault("webp", []).append(path.read_bytes())
        picture = Image.open(path).convert("RGB").resize((96, 96))
        plain = ((ending, {}) for ending in ("png", "gif", "bmp", "avif", "ppm", "jp2"))
        chosen = (("jpg", {"quality": 80}), ("jpeg", {"progressive": True}), ("tiff", {"compression": "tiff_lzw"}))
        for ending, options in (*plain, *chosen):
            out = io.BytesIO()
            picture.save(out, {"jpg": "JPEG", "jp2": "JPEG2000"}.get(ending, ending.upper()), **options)
            found.setdefault(ending, []).append(out.getvalue())
    for path in chance.sample(sorted((CORPUS / "speech/prompts").glob("*.ogg")), 8):
        found.setdefault("ogg", []).append(path.read_bytes())
        samples, rate = soundfile.read(path, dtype="float32")
        for ending in ("wav", "flac", "aiff", "mp3", "caf", "w64", "au"):
            out = io.BytesIO()
            soundfile.write(out, samples[: 2 * rate], rate, format=ending.upper())
            found.setdefault(ending, []).append(out.getvalue())
    return found


def fuzz(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One way of breaking a file; now and then two."""
    broken = bytearray(data)
    at, n = chance.randrange(len(broken)), chance.randrange(1, 64)
    head = chance.randrange(min(len(broken), 64))
    way = chance.randrange(11)
    if way == 0:
        for _ in range(chance.randrange(1, 20)):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    elif way == 1:
        broken = broken[:at]
    elif way == 2:
        broken[at:at] = chance.randbytes(n)
    elif way == 3:
        del broken[at : at + n]
    elif way == 4:
        broken[head : head + 4] = chance.choice(
            (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f")
        )
    elif way == 5:
        broken[at:] = bytes(len(broken) - at)
    elif way == 6:
        broken = broken[at:] + broken[:at]
    elif way == 7:
        broken += other
    elif way == 8:
        broken[head:] = other[head:]
    elif way == 9:
        broken = bytearray(chance.randbytes(len(broken)))
    else:
        broken = bytearray(b"")
    return fuzz(bytes(broken), other, chance) if broken and chance.random() < 0.2 else bytes(broken)


def half(part: bytes) -> str:
    """The half of a sample id that tells its content: of a sample of this one part."""
    return sample_id("", "", [part])[:8].hex()


def make(
    folder: Path, count: int, chance: random.Random
) -> tuple[list[dict], dict[str, int], dict[str, Counter[str]], list[dict]]:
    """The corpora: entries, how many inputs each has, which of them are sound; then entries of all sound files alone."""
    sound = files(chance)
    neighbours: dict[str, Counter[str]] = {}
    everything = [data for some in sound.values() for data in some]
    entries, inputs, alone = [], {}, []
    kinds = (
        ("image", ("png", "jpg", "jpeg", "webp", "gif", "bmp", "avif", "tiff", "ppm", "jp2")),
        ("speech", ("wav", "flac", "ogg", "aiff", "mp3", "caf", "w64", "au")),
    )
    for modality, endings in kinds:
        pairs = []
        for _ in range(count * 8 // 10 // 2):
            ending = chance.choice(endings)
            data = chance.choice(sound[ending])
            pairs += [(ending, data), (ending, fuzz(data, chance.choice(everything), chance))]
        parts = [pairs[: len(pairs) // 2], pairs[len(pairs) // 2 : len(pairs) * 3 // 4], pairs[len(pairs) * 3 // 4 :]]
        (folder / modality).mkdir()
        for i, (ending, data) in enumerate(parts[0]):
            (folder / modality / f"{i:04d}.{ending}").write_bytes(data)
        entries.append({"name": f"{modality}-folder", "format": "folder", "path": modality, "modality": modality})
        rows = [{"bytes": data, "path": None} for _, data in parts[1]]
        pq.write_table(pa.table({"media": pa.array(rows)}), folder / f"{modality}.parquet", row_group_size=17)
        entries.append(
            {
                "name": f"{modality}-parquet",
                "format": "parquet",
                "path": f"{modality}.parquet",
                "columns": {"media": modality},
            }
        )
        with tarfile.open(folder / f"{modality}.tar", "w") as tar:
            for i, (ending, data) in enumerate(parts[2]):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        entries.append({"name": f"{modality}-tar", "format": "webdataset", "path": f"{modality}.tar"})
        for kind, part in zip(("folder", "parquet", "tar"), parts, strict=True):
            first = len(parts[0]) * (kind == "parquet") + (len(parts[0]) + len(parts[1])) * (kind == "tar")
            neighbours[f"{modality}-{kind}"] = Counter(
                half(data) for i, (_, data) in enumerate(part) if (first + i) % 2 == 0
            )
        (folder / f"{modality}-alone").mkdir()
        for ending in endings:
            for i, data in enumerate(sound[ending]):
                (folder / f"{modality}-alone" / f"{i}.{ending}").write_bytes(data)
        alone.append({"name": modality, "format": "folder", "path": f"{modality}-alone", "modality": modality})
        inputs |= {f"{modality}-{k}": len(p) for k, p in zip(("folder", "parquet", "tar"), parts, strict=True)}
    texts = (CORPUS / "text/speeches.jsonl").read_bytes().splitlines()
    lines = []
    for _ in range(count // 10):
        line = json.dumps({"text": json.loads(chance.choice(texts))["text"][:400]}).encode()
        lines += [line, fuzz(line, chance.choice(texts)[:300], chance).replace(b"\n", b" ")]
    (folder / "lines.jsonl").write_bytes(b"\n".join(lines))
    entries.append({"name": "lines", "format": "text", "path": "lines.jsonl"})
    inputs["lines"] = sum(bool(line) and not line.isspace() for line in lines)
    neighbours["lines"] = Counter(half(json.loads(line)["text"].encode()) for line in lines[::2])
    (folder / "alone.jsonl").write_bytes(b"\n".join(lines[::2]))
    alone.append({"name": "lines", "format": "text", "path": "alone.jsonl"})
    return entries, inputs, neighbours, alone


def tokens(dataset: Path) -> dict[str, dict[str, list[np.ndarray]]]:
    """The ids of all documents by source and by content."""
    manifest = Manifest.load(dataset)
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for entry in manifest.shards:
        for document in manifest.open_shard(entry).documents() if entry.rows else ():
            ((_, span),) = document.spans
            found.setdefault(entry.source, {}).setdefault(document.sample_id[:8].hex(), []).append(span.ids)
    return found


def containers(folder: Path, count: int, chance: random.Random) -> list[tuple[dict, int]]:
    """Entries whose whole file is broken: tars and Parquet files of eight sound samples; with how many rows were sound."""
    sound, made = files(chance)["webp"], []
    for i in range(count):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for n in range(8):
                info = tarfile.TarInfo(f"{n}.webp")
                info.size = len(sound[n])
                tar.addfile(info, io.BytesIO(sound[n]))
        (folder / f"broken{i}.tar").write_bytes(fuzz(out.getvalue(), sound[0], chance) or b"\0")
        made.append(({"name": "broken", "format": "webdataset", "path": f"broken{i}.tar"}, -1))
        table = pa.table({"media": pa.array([{"bytes": data, "path": None} for data in sound[:8]])})
        pq.write_table(table, folder / f"broken{i}.parquet", compression=chance.choice(["none", "zstd"]))
        broken = fuzz((folder / f"broken{i}.parquet").read_bytes(), sound[0], chance) or b"\0"
        (folder / f"broken{i}.parquet").write_bytes(broken)
        made.append(
            ({"name": "broken", "format": "parquet", "path": f"broken{i}.parquet", "columns": {"media": "image"}}, 8)
        )
    return made


def tokenize(folder: Path, entries: list[dict], out: str) -> tuple[int, str]:
    """The real command; its exit code and what it said on stderr."""
    config = {
        "corpus": entries,
        "tokenizers": {
            "text": {"use": "bpe", "path": "bpe"},
            "image": {"use": "vqgan", "path": str(ROOT / "examples/demo/weights/vqgan")},
            "speech": {"use": "melrvq", "path": "melrvq"},
        },
        "partition_samples": 64,
        "sample_seconds": 20,
    }
    (folder / f"{out}.yaml").write_text(json.dumps(config))
    command = [
        sys.executable,
        "-m",
        "motet.orchestration",
        "tokenize",
        str(folder / f"{out}.yaml"),
        "--out",
        str(folder / out),
    ]
    told = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert "Traceback" not in told.stderr, told.stderr
    return told.returncode, told.stderr


def main() -> None:
    """Break, run, check, tell."""
    from motet.tokenizers.speech.melrvq import MelRVQ

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--containers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    chance = random.Random(said.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = (CORPUS / "text/speeches.jsonl").read_text(encoding="utf-8").splitlines()[:6]
        BPE.fit([json.loads(text)["text"].encode() for text in texts], folder / "bpe", {"vocabulary": 400})
        MelRVQ.fit(
            [p.read_bytes() for p in sorted((CORPUS / "speech/prompts").glob("*.ogg"))[:10]],
            folder / "melrvq",
            {"size": 32, "codebooks": 2},
        )
        entries, inputs, neighbours, alone = make(folder, said.count, chance)
        code, told = tokenize(folder, entries, "out")
        assert code in (0, 3), (code, told)
        manifest, came = Manifest.load(folder / "out"), Counter[str]()
        for entry in manifest.shards:
            came[entry.source] += entry.rows + sum(entry.rejects.values())
        assert dict(came) == inputs, f"{dict(came)} came of {inputs}"
        code, told = tokenize(folder, alone, "alone")
        assert code == 0, (code, told)
        known = {content: ids[0] for by in tokens(folder / "alone").values() for content, ids in by.items()}
        found = tokens(folder / "out")
        for source, sound in neighbours.items():
            for content, times in sound.items():
                there = found[source].get(content, [])
                assert len(there) >= times, f"{source}: of {times} sound files {content}, {len(there)} are there"
                assert all(np.array_equal(ids, known[content]) for ids in there), (
                    f"{source}: {content} has other tokens"
                )
        print(
            f"{sum(inputs.values())} inputs, about half of them broken: {manifest.documents} documents, {sum(manifest.rejects().values())} rejects"
        )
        for reason, number in manifest.rejects().items():
            print(f"  {reason}: {number}")
        whole = Counter[str]()
        for i, (entry, rows) in enumerate(containers(folder, said.containers, chance)):
            code, told = tokenize(folder, [entry], f"container{i}")
            assert code in (0, 2, 3), (code, told)
            whole[f"{entry['format']}: {'refused in one line' if code == 2 else 'read as far as it goes'}"] += 1
            if code != 2 and rows > 0:
                manifest = Manifest.load(folder / f"container{i}")
                assert manifest.documents + sum(manifest.rejects().values()) == rows
            if code == 2:
                assert len(told.strip().splitlines()) == 1, told
        print(f"{2 * said.containers} broken containers: {dict(whole)}")


if __name__ == "__main__":
    main()
