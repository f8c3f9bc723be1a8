"""Corpora and tokenizers that the benchmarks measure on: real text, pictures and speech, repeated until there is enough.

Everything is made once in the benchmark's folder, from the bundled corpus and, if given, another one's text. Repeated media
are hard links, repeated text is written out.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BUNDLED = ROOT / "examples/corpus"
MEGABYTES = {"bare": 12, "few": 20, "some": 80, "small": 40, "large": 240}  # of text
LINE = 64  # bytes of one line of the resume corpus: each is a partition


@cache
def tokenizers(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings of the tokenizers, by their names: fitted on the bundled corpus; EnCodec's weights are random."""
    from motet.tokenizers.registry import find

    bpe, melrvq, encodec = folder / "bpe", folder / "melrvq", folder / "encodec.safetensors"
    if not bpe.exists():
        with open(BUNDLED / "text/speeches.jsonl", encoding="utf-8") as lines:
            find("bpe").fit([json.loads(line)["text"].encode() for line in lines], bpe, {"vocabulary": 32_768})
    if not melrvq.exists():
        find("melrvq").fit([f.read_bytes() for f in (BUNDLED / "speech/prompts").glob("*.ogg")], melrvq, {})
    if not encodec.exists():
        import torch
        from encodec import EncodecModel
        from safetensors.torch import save_file

        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the library's weight norm is torch's older one
            model = EncodecModel.encodec_model_24khz(pretrained=False)
        for name, value in model.state_dict().items():
            if name.endswith("_codebook.embed"):
                value.normal_()  # the library starts with zeros, among which every code is the nearest
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, encodec)
    return {
        "bpe": {"use": "bpe", "path": str(bpe)},
        "vqgan": {"use": "vqgan", "path": str(ROOT / "examples/demo/weights/vqgan")},
        "melrvq": {"use": "melrvq", "path": str(melrvq)},
        "encodec": {"use": "encodec", "path": str(encodec), "bandwidth": 6.0},
    }


def text(folder: Path, corpus: Path | None, size: str) -> tuple[Path, float]:
    """A JSONL file of one of the sizes, and how many MB of text it holds."""
    file, note = folder / f"text-{size}.jsonl", folder / f"text-{size}.megabytes"
    if not note.exists():
        wanted, total = MEGABYTES[size] * 1e6, 0
        with open(file, "wb") as out:
            for line in _again(_lines(corpus)):
                out.write(line)
                total += len(json.loads(line)["text"].encode())
                if total >= wanted:
                    break
        note.write_text(str(total / 1e6))
    return file, float(note.read_text())


def much_text(folder: Path, corpus: Path | None, gigabytes: float) -> tuple[list[dict[str, Any]], float]:
    """Entries of some 20 GB: the large file under many names, once on disk."""
    file, megabytes = text(folder, corpus, "large")
    count = max(1, round(gigabytes * 1000 / megabytes))
    entries = []
    for i in range(count):
        link = folder / f"again/text-{i:03}.jsonl"
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            os.link(file, link)
        entries.append({"name": f"text-{i:03}", "format": "text", "path": str(link), "column": "text"})
    return entries, count * megabytes / 1000


def lines(folder: Path, count: int) -> Path:
    """A JSONL file of `count` short lines."""
    file = folder / f"lines-{count}.jsonl"
    if not file.exists():
        rows = (json.dumps({"text": f"line {i:>8} of many"}).ljust(LINE - 1) for i in range(count))
        file.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return file


def emoji(folder: Path) -> Path:
    """The bundled pictures."""
    return BUNDLED / "images/emoji"


def prompts(folder: Path) -> Path:
    """The bundled speech."""
    return BUNDLED / "speech/prompts"


def jpegs(folder: Path) -> Path:
    """128 photographs' worth of work: the bundled pictures, four to a JPEG of 512 x 512 pixels."""
    from PIL import Image

    made = folder / "jpegs"
    if not made.exists():
        made.mkdir()
        files = sorted((BUNDLED / "images/emoji").glob("*.webp"))
        for i in range(128):
            picture = Image.new("RGB", (512, 512), "white")
            for j, file in enumerate(files[4 * i : 4 * i + 4]):
                part = Image.open(io.BytesIO(file.read_bytes())).convert("RGBA")
                part = part.resize((256, 256), Image.Resampling.BICUBIC)
                picture.paste(part, (j % 2 * 256, j // 2 * 256), part)
            picture.save(made / f"{i:03}.jpg", quality=90)
    return made


def some(folder: Path, media: Path, first: int, count: int) -> Path:
    """A folder of `count` media files: the `first` ones of `media`, again and again under other names, without captions."""
    files = sorted(file for file in media.iterdir() if file.suffix in (".webp", ".jpg", ".ogg"))[:first]
    made = folder / f"{media.name}-{first}-{count}"
    if not made.exists():
        made.mkdir()
        for i in range(count):
            file = files[i % len(files)]
            (made / f"{i:06}{file.suffix}").write_bytes(file.read_bytes())
    return made


def much_media(folder: Path, gigabytes: float) -> tuple[list[dict[str, Any]], float]:
    """Entries of so many GB of JPEGs, and as many sounds: one folder of each, under many names."""
    pictures, sounds = some(folder, jpegs(folder), 128, 1280), some(folder, prompts(folder), 512, 1280)
    size = sum(file.stat().st_size for made in (pictures, sounds) for file in made.iterdir()) / 1e9
    count = max(1, round(gigabytes / size))
    entries = []
    for i in range(count):
        for modality, made in (("image", pictures), ("speech", sounds)):
            entries.append({"name": f"{modality}-{i:03}", "format": "folder", "path": str(made), "modality": modality})
    return entries, count * size


def _lines(corpus: Path | None) -> list[bytes]:
    """JSON lines with a text, of all sources in turn, so that every size has the same mixture."""
    files = [BUNDLED / "text/speeches.jsonl", *(sorted((corpus / "text").glob("*.jsonl")) if corpus else [])]
    rows = []
    for file in files:
        with open(file, encoding="utf-8") as source:
            own = [json.dumps({"text": json.loads(line)["text"]}, ensure_ascii=False) for line in source]
        rows += [((i + 0.5) / len(own), row.encode() + b"\n") for i, row in enumerate(own)]
    return [row for _, row in sorted(rows)]


def _again(rows: list[bytes]) -> Iterator[bytes]:
    """The rows, shuffled by a fixed stride, without end: any stretch of them is like any other."""
    stride = next(n for n in range(7919, 9999) if len(rows) % n and _coprime(n, len(rows)))
    position = 0
    while True:
        yield rows[position % len(rows)]
        position += stride


def _coprime(a: int, b: int) -> bool:
    from math import gcd

    return gcd(a, b) == 1
