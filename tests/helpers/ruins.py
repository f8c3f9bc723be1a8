"""A corpus of which most is broken, in every way that a file, a line or a decoder can be, each time with the same bytes.

pictures and recordings of every format --cut, other bytes, parts again or missing--> folders, tars, Parquet, interleaved
lines --no JSON, no UTF-8, cut .gz, deep nesting--> text; words at which `Hostile` refuses, dies or hangs
"""

import gzip
import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import zstandard
from PIL import Image, PngImagePlugin

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpus"
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
SOUNDS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "RF64", "W64", "CAF", "AU", "NIST")
WEB_PAGE = b"<!DOCTYPE html><html><head><title>404</title></head><body>gone</body></html>"

HOSTILE = '''
import os, signal, time
from motet.tokenizers.contract import BadSample
from motet.tokenizers.text.bpe import BPE

class Hostile(BPE):
    """Refuses with its own address, ends its process, or never ends, as the text says."""

    def load(self, data):
        if b"refuse" in data:
            raise BadSample("refused", f"by {object()} and {self.load}, {len(data)} bytes")
        if b"crash here" in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if b"hang here" in data:
            time.sleep(1e6)
        return super().load(data)
'''
ENTRIES: list[dict[str, Any]] = [
    {"name": "pictures", "format": "folder", "path": "pictures", "modality": "image"},
    {"name": "sounds", "format": "folder", "path": "sounds", "modality": "speech"},
    {"name": "mixed", "format": "interleaved", "path": "mixed.jsonl"},
    {"name": "text", "format": "text", "path": "text.jsonl"},
    {"name": "packed", "format": "text", "path": "packed"},
    {"name": "tars", "format": "webdataset", "path": "tars/*.tar"},
    {"name": "table", "format": "parquet", "path": "table.parquet", "columns": {"media": "image", "caption": "text"}},
]


def picture(form: str, random: np.random.Generator, **how: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(out, form, **how)
    return out.getvalue()


def recording(form: str, random: np.random.Generator) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, random.normal(0, 0.1, 4000).clip(-1, 1), 16_000, format=form)
    return out.getvalue()


def broken(whole: bytes, random: np.random.Generator) -> Iterator[bytes]:
    """A file cut, with other bytes in it, with parts of it again or missing."""
    for share in (0.01, 0.3, 0.6, 0.97):
        yield whole[: int(len(whole) * share)]
    for _ in range(6):
        other = bytearray(whole)
        at = int(random.integers(min(len(whole) - 4, 400)))
        other[at : at + 4] = random.bytes(4)
        yield bytes(other)
    middle = len(whole) // 2
    yield whole[: middle // 2] + whole[middle:]
    yield whole[:40] + whole


def odd_pictures(random: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Pictures whose pixels are sound and whose metadata is not, and some that are too much."""
    exif = b"Exif\0\0II*\0\x08\0\0\0"
    for i in range(12):
        tags = struct.pack("<H", 3) + random.bytes(36) + struct.pack("<I", int(random.integers(1 << 32)))
        yield f"exif-{i}.jpg", picture("JPEG", random, exif=exif + tags[: 6 + 4 * i])
        yield f"exif-{i}.png", picture("PNG", random, exif=exif + tags[: 6 + 4 * i])
    told = PngImagePlugin.PngInfo()
    told.add_text("much", "x" * 3_000_000, zip=True)
    yield "text.png", picture("PNG", random, pnginfo=told)
    yield "profile.jpg", picture("JPEG", random, icc_profile=random.bytes(70_000))
    for i, order in enumerate(("<", ">")):  # TIFF directories that lead nowhere, and to themselves
        for j, at in enumerate((8, 1 << 30)):
            head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
            yield f"directory-{i}{j}.tif", head + struct.pack(f"{order}HHHIII", 1, 256, 4, 1, 24, at)
    yield "bomb.bmp", picture("BMP", random)[:18] + struct.pack("<ii", 1 << 20, 1 << 20) + bytes(60)


def make(folder: Path) -> None:
    """Write the corpus of `ENTRIES`; every file's time is the same too."""
    random = np.random.default_rng(0)
    for part, to, count in (("images/emoji", "pictures", 12), ("speech/prompts", "sounds", 6)):
        (folder / to).mkdir(parents=True)
        rows = (CORPUS / part / "metadata.jsonl").read_text("utf-8").splitlines()[:count]
        for row in rows:
            shutil.copy(CORPUS / part / json.loads(row)["file_name"], folder / to)
        found = list(_media(to, random))
        for i, (name, data) in enumerate(found):
            (folder / to / name).write_bytes(data)
            rows.append(json.dumps({"file_name": name, "text": f"number {i}"}))
        rows += ['{"file_name": "nowhere.png", "text": "lost"}', "{no json", "[1]", '{"text": "of nothing"}']
        rows += ['{"file_name": "../text.jsonl", "text": "out"}', '{"file_name": 7}']
        (folder / to / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for name in ("notes.docx", ".hidden/a.png", "empty.png"):
        (folder / "pictures" / name).parent.mkdir(exist_ok=True)
        (folder / "pictures" / name).write_bytes(b"" if name == "empty.png" else b"other")
    (folder / "pictures/nowhere").symlink_to("never-there.png")
    (folder / "pictures/round").symlink_to("round")
    os.mkfifo(folder / "pictures/pipe.png")
    _interleaved(folder)
    _lines(folder)
    _tars(folder, random)
    _table(folder, random)
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, (1.7e9, 1.7e9), follow_symlinks=False)


def _media(to: str, random: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    for form in PICTURES if to == "pictures" else SOUNDS:
        whole = picture(form, random) if to == "pictures" else recording(form, random)
        for i, data in enumerate(broken(whole, random)):
            yield f"{form}-{i}.bin", data
    yield "page.jpg" if to == "pictures" else "page.mp3", WEB_PAGE
    yield from odd_pictures(random) if to == "pictures" else ()


def _interleaved(folder: Path) -> None:
    parts: list[Any] = [
        [{"text": "One:"}, {"image": "pictures/exif-0.jpg"}],
        [{"text": "Two:"}, {"image": "pictures/JPEG-1.bin"}, {"text": "refuse"}],
        [{"image": "pictures/nowhere.png"}],
        [{"image": "/etc/hostname"}, {"text": "out"}],
        [{"speech": "sounds/page.mp3"}, {"text": "a page"}],
        [{"text": None}],
        [{"text": "crash here"}, {"image": "pictures/exif-1.jpg"}],
        [],
        None,
        "parts",
        [{"smell": "of roses"}],
    ]
    lines = [json.dumps({"id": str(i), "parts": each}) for i, each in enumerate(parts)] + ["{", "[]", "null"]
    (folder / "mixed.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _lines(folder: Path) -> None:
    sound = (CORPUS / "text/speeches.jsonl").read_bytes().splitlines()[:40]
    bad = [b'{"text": "refuse"}', b'{"text": "refuse this"}', b"{no json", b"\xff\xfe", b"[1]", b"[" * 100_000]
    bad += [b'{"text": "\xff\xfe\xfa"}', b'{"text": null}', b'{"text": ""}', b'{"txt": "a"}', b'{"text": 1e999}']
    bad += [b'{"text": "half \\ud800"}', b'{"text": "hang here"}', b'{"text": "crash here"}', b'{"text": "a"} {"b": 1}']
    (folder / "text.jsonl").write_bytes(b"\n".join([*sound[:4], *bad]) + b"\n")
    packed = folder / "packed"
    packed.mkdir()
    whole = b"\n".join(sound) + b"\n"
    (packed / "sound.jsonl.gz").write_bytes(gzip.compress(whole, mtime=0))
    (packed / "cut.jsonl.gz").write_bytes(gzip.compress(whole, mtime=0)[:9000])
    (packed / "cut.jsonl.zst").write_bytes(zstandard.compress(whole)[:9000])
    other = bytearray(gzip.compress(whole, mtime=0))
    other[len(other) // 2] ^= 255
    (packed / "flipped.jsonl.gz").write_bytes(other)
    (packed / "page.jsonl.gz").write_bytes(WEB_PAGE)
    (packed / "utf-16.jsonl").write_bytes("\n".join(line.decode() for line in sound[:3]).encode("utf-16"))
    (packed / "array.json").write_bytes(b"[" + b",\n".join(sound[:3]) + b"]")
    (packed / "latin.txt").write_bytes("Überfluß an Umlauten".encode("latin-1"))


def _tars(folder: Path, random: np.random.Generator) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i, data in enumerate([*broken(picture("JPEG", random), random), picture("PNG", random), WEB_PAGE]):
            wav = recording("WAV", random)
            for ending, member in (("jpg", data), ("txt", b"refuse" if i == 3 else b"number"), ("wav", wav[: 900 * i])):
                info = tarfile.TarInfo(f"{i:03}.{ending}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member if i != 5 else bytes(len(member))))
    whole = out.getvalue()
    (folder / "tars").mkdir()
    (folder / "tars/whole.tar").write_bytes(whole)
    (folder / "tars/cut.tar").write_bytes(whole[: len(whole) // 3])
    (folder / "tars/head.tar").write_bytes(whole[:2048] + random.bytes(512) + whole[2560:])
    (folder / "tars/page.tar").write_bytes(WEB_PAGE)
    (folder / "tars/packed.tar").write_bytes(gzip.compress(whole, mtime=0))


def _table(folder: Path, random: np.random.Generator) -> None:
    media = [{"bytes": data, "path": None} for data in broken(picture("WEBP", random), random)]
    media += [None, {"bytes": None, "path": None}, {"bytes": None, "path": "nowhere.png"}, {"bytes": b"", "path": "a"}]
    media += [{"bytes": picture("PNG", random), "path": "/somewhere/else.png"}, {"bytes": WEB_PAGE, "path": "b.jpg"}]
    captions = [None, "", "refuse", *(f"number {i}" for i in range(len(media) - 3))]
    captions[-2] = "hang here"  # beside a sound picture
    table = pa.table({"media": media, "caption": captions, "url": ["https://example.org/a"] * len(media)})
    pq.write_table(table, folder / "table.parquet", row_group_size=5)
