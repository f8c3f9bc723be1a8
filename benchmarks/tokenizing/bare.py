#!/usr/bin/env python3
"""The encoders alone: the libraries' own calls on samples that are in memory, on one thread; one JSON object of speeds.

    bare.py text BPE_FOLDER FILE.jsonl          MB of UTF-8 per CPU-second of each of tiktoken's ways
    bare.py image|speech SETTINGS_JSON FOLDER   samples per CPU-second: encode in batches of several sizes; decode the files

Nothing of motet decodes or encodes here; it is only asked for the vocabulary's ranks, for the scale that a JPEG is decoded at, and
for the mel-RVQ, which no library has.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 1.0  # that each way gets, at least, after one call to warm up


def speed(amount: float, work: Callable[[], object]) -> float:
    """`amount` per CPU-second over a few calls, after one to warm up."""
    work()
    calls, start = 0, time.process_time()
    while (spent := time.process_time() - start) < SECONDS:
        work()
        calls += 1
    return amount * calls / spent


def text(folder: Path, file: Path) -> dict[str, float]:
    """Tiktoken's ways of encoding a list of strings."""
    import tiktoken

    from motet.tokenizers.text.ranks import Ranks, ranks_of

    ranks = ranks_of(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    assert isinstance(ranks, Ranks)
    none: dict[str, int] = {}
    plain, special = (
        tiktoken.Encoding("bare", pat_str=ranks.pattern, mergeable_ranks=dict(ranks.ranks), special_tokens=tokens)
        for tokens in (
            none,
            {"\0never\0": 1 + max(ranks.ranks.values())},
        )  # without any, encode_to_numpy is half as fast
    )
    with open(file, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ways: dict[str, Callable[[], object]] = {
        "encode_ordinary": lambda: [len(plain.encode_ordinary(text)) for text in texts],
        "encode_ordinary_batch": lambda: len(plain.encode_ordinary_batch(texts, num_threads=1)),
        "encode_to_numpy": lambda: [len(special.encode_to_numpy(text, disallowed_special=())) for text in texts],
    }
    return {way: speed(megabytes, work) for way, work in ways.items()}


def image(settings: dict[str, Any], folder: Path) -> dict[str, float]:
    """Diffusers' own VQModel: encode and quantize; and Pillow: open, lay on white, shrink from the scale that motet decodes at."""
    import torch
    from diffusers import VQModel
    from PIL import Image

    from motet.tokenizers.image.pictures import SPARE

    torch.set_num_threads(1)
    model = VQModel.from_pretrained(settings["path"], torch_dtype=torch.float32).eval()
    size = settings["size"]
    files = sorted(file for file in folder.iterdir() if file.suffix in (".webp", ".jpg"))
    data = [file.read_bytes() for file in files]

    def decode() -> list[np.ndarray]:
        pixels = []
        for each in data:
            picture = Image.open(io.BytesIO(each))
            picture.draft("RGB", (SPARE * size, SPARE * size))
            if picture.mode != "RGB":
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
            pixels.append(np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)))
        return pixels

    x = torch.from_numpy(np.stack(decode())).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = x[: 256 if size < 128 else 32]

    def encode(batch: int) -> None:
        with torch.inference_mode():
            for part in x.split(batch):
                model.quantize(model.encode(part).latents)

    found = {"decode": speed(len(data), decode)}
    for name, layout in (("channels first", torch.contiguous_format), ("channels last", torch.channels_last)):
        model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
        for batch in (4, 16, 64):
            found[f"encode, batch {batch}, {name}"] = speed(len(x), partial(encode, batch))
    return found


def speech(settings: dict[str, Any], folder: Path) -> dict[str, float]:
    """EnCodec's own model, one sound at a time and padded batches; or the mel-RVQ, which is ours; and soundfile."""
    import soundfile
    import soxr
    import torch

    torch.set_num_threads(1)
    codec = settings["use"] == "encodec"
    data = [file.read_bytes() for file in sorted(folder.glob("*.ogg"))]

    def decode() -> list[tuple[np.ndarray, int]]:
        found = []
        for each in data:
            samples, rate = soundfile.read(io.BytesIO(each), dtype="float32")
            found.append((soxr.resample(samples, rate, 24_000) if codec else samples, 24_000 if codec else rate))
        return found

    sounds = decode()
    ways: dict[str, Callable[[], object]] = {}
    if codec:
        from motet.tokenizers.speech.encodec_units import _load

        model = _load(settings["path"]).eval()
        model.set_target_bandwidth(settings["bandwidth"])

        def encode(batch: int) -> None:
            ordered = sorted((samples for samples, _ in sounds), key=len)
            with torch.inference_mode():
                for start in range(0, len(ordered), batch):
                    part = ordered[start : start + batch]
                    padded = np.zeros((len(part), 1, max(map(len, part))), np.float32)
                    for row, samples in zip(padded, part, strict=True):
                        row[0, : len(samples)] = samples
                    model.encode(torch.from_numpy(padded))

        ways = {f"encode, batch {batch}": partial(encode, batch) for batch in (1, 4)}
    else:
        from motet.tokenizers.contract import Waveform
        from motet.tokenizers.registry import build

        tokenizer = build(settings, Path("/"), "speech")
        waves = [Waveform(*sound) for sound in sounds]
        ways = {"encode": lambda: tokenizer.encode(waves)}
    return {**{way: speed(len(data), work) for way, work in ways.items()}, "decode": speed(len(data), decode)}


if __name__ == "__main__":
    kind, what, where = sys.argv[1:]
    if kind == "text":
        speeds = text(Path(what), Path(where))
    else:
        speeds = (image if kind == "image" else speech)(json.loads(what), Path(where))
    print(json.dumps(speeds))
