"""Corpora as their publishers write them, of the bundled pictures, recordings and texts: files, and nothing of motet.

pictures, sounds, texts --a builder per layout, with that format's own library--> a tree below `root`
"""

import csv
import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpus"
REVISION = "5f0c6ae3f4f1a9b1d6c3f8a25cb6b4d0f3f7e1a2"


def material(part: str, count: int) -> list[tuple[str, bytes, str]]:
    """(name, content, caption) of the first of a bundled folder."""
    rows = (CORPUS / part / "metadata.jsonl").read_text("utf-8").splitlines()[:count]
    found = [json.loads(row) for row in rows]
    return [(row["file_name"], (CORPUS / part / row["file_name"]).read_bytes(), row["text"]) for row in found]


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def jpeg(data: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def sound(data: bytes, form: str, rate: int) -> bytes:
    samples, own = soundfile.read(io.BytesIO(data), dtype="float32")
    at = np.arange(int(len(samples) * rate / own)) * own / rate
    out = io.BytesIO()
    soundfile.write(out, np.interp(at, np.arange(len(samples)), samples), rate, format=form)
    return out.getvalue()


def imagefolder(root: Path) -> None:
    for split, some in (("train", slice(0, 200)), ("test", slice(200, 240))):
        rows = [("file_name", "text", "label")]
        for i, (name, data, text) in enumerate(material("images/emoji", 240)[some]):
            rows.append((name, f'{text}, "as it is"\nin {split}' if i % 3 else text, str(i % 10)))
            write(root / "imagefolder" / split / name, data)
        out = io.StringIO()
        csv.writer(out).writerows(rows)
        write(root / "imagefolder" / split / "metadata.csv", out.getvalue())
    write(root / "imagefolder/train/unnamed.webp", material("images/emoji", 241)[240][1])
    write(root / "imagefolder/README.md", "---\nlicense: mit\n---\n")
    write(root / "imagefolder/.gitattributes", "*.webp filter=lfs\n")


def audiofolder(root: Path) -> None:
    sounds = material("speech/prompts", 140)
    for split, some in (("train", slice(0, 120)), ("validation", slice(120, 140))):
        rows = []
        for name, data, text in sounds[some]:
            rows.append({"file_name": f"clips/{name}", "transcription": text, "speaker_id": 7})
            write(root / "audiofolder/data" / split / "clips" / name, data)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write(root / "audiofolder/data" / split / "metadata.jsonl", lines)
    write(root / "audiofolder/README.md", "# Prompts\n")


def coco(root: Path) -> None:
    import datasets

    pictures = material("images/emoji", 200)
    rows = [
        {
            "image_id": i,
            "image": {"bytes": jpeg(data), "path": f"COCO_val2014_{i:012d}.jpg"},
            "captions": [f"{text} {n}" for n in range(i % 6)],
        }
        for i, (_, data, text) in enumerate(pictures)
    ]
    features = datasets.Features(
        {
            "image_id": datasets.Value("int64"),
            "image": datasets.Image(),
            "captions": datasets.List(datasets.Value("string")),
        }
    )
    for i in range(2):
        path = root / f"coco/data/validation-0000{i}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows[i * 100 : i * 100 + 100], features=features).to_parquet(path, batch_size=64)


def obelics(root: Path) -> None:
    """Of eight rows one has a URL left, one is text alone; the others' pictures lie beside."""
    rows: list[dict[str, Any]] = []
    for i, (name, data, text) in enumerate(material("images/emoji", 160)):
        write(root / "obelics/fetched" / name, data)
        place = f"https://pictures.example/{name}?w=640" if i % 8 == 3 else f"fetched/{name}"
        images = [None, place, None, place if i % 2 else None] if i % 8 != 5 else [None] * 4
        texts = [
            f"On {text}.",
            None,
            f"It goes on for a while: {text * 3}",
            None if i % 2 or i % 8 == 5 else "The end.",
        ]
        told = [value and {"document_url": "https://page.example", "rendered_width": 96} for value in images]
        rows.append(
            {
                "images": images,
                "metadata": json.dumps(told),
                "general_metadata": json.dumps({"url": "https://page.example"}),
                "texts": texts,
            }
        )
    lists = pa.list_(pa.string())
    schema = pa.schema([("images", lists), ("metadata", "string"), ("general_metadata", "string"), ("texts", lists)])
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table.slice(0, 100), root / "obelics/train-00000-of-00002.parquet", row_group_size=30)
    pq.write_table(table.slice(100), root / "obelics/train-00001-of-00002.parquet", row_group_size=30)


def img2dataset(root: Path) -> None:
    """Four shards of 50 rows; some could not be downloaded, a few came broken, some have no caption."""
    pictures = material("images/emoji", 200)
    (root / "laion").mkdir()
    for shard in range(4):
        told = []
        with tarfile.open(root / f"laion/{shard:05d}.tar", "w") as tar:
            for i, (_, data, text) in enumerate(pictures[shard * 50 : shard * 50 + 50]):
                key, failed = f"{shard:05d}{i:04d}", i % 10 == 4
                row = {"url": f"https://pictures.example/{key}", "caption": text, "key": key, "width": 96, "height": 96}
                row |= {
                    "status": "failed_to_download" if failed else "success",
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
                told.append(row)
                if failed:
                    continue
                picture = jpeg(data)
                members = {"jpg": picture[: len(picture) // 3] if i == 7 else picture}
                members |= {"txt": b"" if i == 11 else text.encode(), "json": json.dumps(row, indent=4).encode()}
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        pq.write_table(pa.Table.from_pylist(told), root / f"laion/{shard:05d}.parquet")
        write(root / f"laion/{shard:05d}_stats.json", json.dumps({"count": 50, "failed_to_download": 5}))


def hub_cache(root: Path) -> None:
    """As `huggingface_hub` lays it out: blobs by their hashes, a snapshot of links."""
    repo = root / "hub/datasets--someone--emoji"

    def linked(name: str, data: bytes) -> None:
        blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
        write(blob, data)
        link = repo / "snapshots" / REVISION / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("../" * (2 + name.count("/")) + f"blobs/{blob.name}")

    rows = []
    for name, data, text in material("images/emoji", 200):
        linked(f"train/images/{name}", data)
        rows.append(json.dumps({"file_name": f"images/{name}", "text": text}))
    linked("train/metadata.jsonl", "\n".join(rows).encode())
    linked("README.md", b"---\nlicense: mit\n---\n")
    linked(".gitattributes", b"*.webp filter=lfs\n")
    write(repo / "refs/main", REVISION)


def common_voice(root: Path) -> None:
    header = [
        "client_id",
        "path",
        "sentence_id",
        "sentence",
        "up_votes",
        "down_votes",
        "age",
        "gender",
        "accents",
        "locale",
    ]
    rows = []
    for i, (_, data, text) in enumerate(material("speech/prompts", 120)):
        name = f"common_voice_en_{i:08d}.mp3"
        write(root / "cv/en/clips" / name, sound(data, "MP3", 32_000))
        rows.append(
            ["c" * 128, name, f"{i:064x}", text if i % 5 else f'He said "{text}" once', "2", "0", "", "", "", "en"]
        )
    rows.append([*rows[0][:1], "common_voice_en_lost.mp3", *rows[0][2:]])
    for name, some in (("train", rows[:100] + rows[-1:]), ("dev", rows[100:-1])):
        write(root / f"cv/en/{name}.tsv", "".join("\t".join(row) + "\n" for row in [header, *some]))


def librispeech(root: Path) -> None:
    base = root / "LibriSpeech"
    lines: dict[str, list[str]] = {}
    for i, (_, data, text) in enumerate(material("speech/prompts", 120)):
        speaker, chapter = 84 + i % 4, 121_123 + i // 40
        key = f"{speaker}-{chapter}-{i:04d}"
        write(base / f"dev-clean/{speaker}/{chapter}/{key}.flac", sound(data, "FLAC", 16_000))
        lines.setdefault(f"{speaker}/{chapter}/{speaker}-{chapter}", []).append(f"{key} {text.upper()}\n")
    for name, some in lines.items():
        write(base / f"dev-clean/{name}.trans.txt", "".join(some))
    write(base / "SPEAKERS.TXT", "; some comments\n84 | F | dev-clean | 8.02 | Christie Nowak\n")
    for name in ("README", "LICENSE", "CHAPTERS", "BOOKS"):
        write(base / f"{name}.TXT", "of the corpus\n")


def ljspeech(root: Path) -> None:
    base = root / "LJSpeech-1.1"
    rows = []
    for i, (_, data, text) in enumerate(material("speech/prompts", 120)):
        key = f"LJ{i // 50 + 1:03d}-{i % 50 + 1:04d}"
        write(base / f"wavs/{key}.wav", sound(data, "WAV", 22_050))
        said = f'"{text}' if i % 7 == 0 else text  # an utterance that begins within a quotation
        rows.append(f"{key}|{said}|{text.lower()}")
    write(base / "metadata.csv", "\n".join(rows) + "\n")
    write(base / "README", "The LJ Speech Dataset\n")


def dolma(root: Path) -> None:
    texts = [json.loads(line)["text"] for line in (CORPUS / "text/speeches.jsonl").read_text("utf-8").splitlines()]
    for part in range(3):
        rows = [
            {
                "id": f"{part}-{i}-{j}",
                "text": paragraph,
                "source": "speeches",
                "added": "2024-04-12T05:37:12.000Z",
                "created": "1790-01-08T00:00:00.000Z",
                "metadata": {"length": len(paragraph)},
            }
            for i, text in enumerate(texts[part::3])
            for j, paragraph in enumerate(text.split(". ")[:20])
            if paragraph
        ]
        half = len(rows) // 2  # two members, as `cat a.gz b.gz` makes them
        data = b"".join(
            gzip.compress("".join(json.dumps(row) + "\n" for row in some).encode())
            for some in (rows[:half], rows[half:])
        )
        write(root / f"dolma/speeches-{part:04d}.json.gz", data)


BUILDERS = {
    "ImageFolder of `datasets`, with CSV": imagefolder,
    "AudioFolder of `datasets`, in splits": audiofolder,
    "COCO as Parquet": coco,
    "OBELICS as Parquet": obelics,
    "Tars of img2dataset": img2dataset,
    "A cache of the Hugging Face hub": hub_cache,
    "Common Voice": common_voice,
    "LibriSpeech": librispeech,
    "LJSpeech": ljspeech,
    "Dolma": dolma,
}
