#!/usr/bin/env python3
"""How fast `motet tokenize` is beside the bare libraries that it calls, one process each, on the bundled corpus.

    for text, pictures and speech, in turn, --repeats times:
        the bare library: a minimal loop over the same files (read, decode, encode in batches), nothing stored
        motet:            `tokenize_corpus` with one worker, shards and manifest written and hashed
    -> medians, and motet's speed over the library's, as a Markdown table

Both sides run in this process on one thread, so only the work differs. Text uses a BPE, speech a mel-RVQ fitted on the
corpus before the clock starts; pictures use the committed VQ-GAN.

    python benchmarks/tokenizing.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from motet.pipeline.config import TokenizeConfig
from motet.pipeline.job import tokenize_corpus
from motet.tokenizers.configuration import validate
from motet.tokenizers.ranks import Ranks, ranks_of
from motet.tokenizers.registry import build, find

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "examples/corpus"
BATCH = 64


def bare_text(folder: Path) -> float:
    """Parse JSON lines, encode with tiktoken; MB of UTF-8."""
    import tiktoken

    ranks = ranks_of(json.loads((folder / "bpe/tokenizer.json").read_text(encoding="utf-8")))
    assert isinstance(ranks, Ranks)
    encoder = tiktoken.Encoding("fitted", pat_str=ranks.pattern, mergeable_ranks=dict(ranks.ranks), special_tokens={})
    size = 0
    with open(CORPUS / "text/speeches.jsonl", encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            np.asarray(encoder.encode_ordinary(text), np.uint16)
            size += len(text.encode())
    return size / 1e6


def bare_image(folder: Path) -> float:
    """Pillow and diffusers' own VQModel, in batches; pictures."""
    from diffusers import VQModel
    from PIL import Image

    model = VQModel.from_pretrained(ROOT / "examples/demo/weights/vqgan", torch_dtype=torch.float32).eval()
    files = sorted((CORPUS / "images/emoji").glob("*.webp"))
    for start in range(0, len(files), BATCH):
        pixels = []
        for file in files[start : start + BATCH]:
            picture = Image.open(io.BytesIO(file.read_bytes())).convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
            pixels.append(np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS)))
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            latent = model.encode(x).latents
            model.quantize(latent)
    return len(files)


def bare_speech(folder: Path) -> float:
    """soundfile, then the tokenizer's own `encode` alone, in batches; seconds of sound."""
    import soundfile

    from motet.tokenizers.contract import Waveform

    tokenizer = build({"use": "melrvq", "path": str(folder / "melrvq")}, ROOT)
    files, seconds = sorted((CORPUS / "speech/prompts").glob("*.ogg")), 0.0
    for start in range(0, len(files), BATCH):
        waves = []
        for file in files[start : start + BATCH]:
            samples, rate = soundfile.read(file, dtype="float32")
            waves.append(Waveform(samples, rate))
            seconds += len(samples) / rate
        tokenizer.encode(waves)
    return seconds


def motet(folder: Path, modality: str, entry: dict, use: dict) -> None:
    """The whole job with one worker: plan, tokenize, commit, manifest."""
    fitted = {"text": {"use": "bpe", "path": str(folder / "bpe")}, modality: use}
    config = validate({"corpus": [entry], "tokenizers": fitted}, TokenizeConfig, "benchmark")
    tokenize_corpus(config, CORPUS, folder / "out", engine="local", workers=1)
    shutil.rmtree(folder / "out")


def clock(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = (CORPUS / "text/speeches.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"].encode() for line in lines]
        find("bpe").fit(texts, folder / "bpe", {"vocabulary": 2048})
        find("melrvq").fit([f.read_bytes() for f in (CORPUS / "speech/prompts").glob("*.ogg")], folder / "melrvq", {})
        text = {"name": "speeches", "format": "text", "path": "text/speeches.jsonl", "column": "text"}
        image = {"name": "emoji", "format": "folder", "path": "images/emoji", "modality": "image"}
        speech = {"name": "prompts", "format": "folder", "path": "speech/prompts", "modality": "speech"}
        cases = [
            ("text", "MB/s", bare_text, text, {"use": "bpe", "path": str(folder / "bpe")}),
            (
                "image",
                "pictures/s",
                bare_image,
                image,
                {"use": "vqgan", "path": str(ROOT / "examples/demo/weights/vqgan")},
            ),
            ("speech", "s of sound/s", bare_speech, speech, {"use": "melrvq", "path": str(folder / "melrvq")}),
        ]
        for modality, unit, bare, entry, use in cases:
            amount = bare(folder)
            pairs = []
            for _ in range(repeats):
                library = clock(partial(bare, folder))
                pairs.append((library, clock(partial(motet, folder, modality, entry, use))))
            library, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            rows.append((modality, unit, amount / library, amount / ours, ratio))
    print(f"{platform.processor() or platform.machine()}, {platform.system()}, one thread, medians of {repeats}\n")
    print("| modality | unit | bare library | motet tokenize | ratio |\n|---|---|---|---|---|")
    for modality, unit, library, ours, ratio in rows:
        print(f"| {modality} | {unit} | {library:,.1f} | {ours:,.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
