"""Real tokenizers and small slices of the bundled corpus: what the pipeline's tests work on."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_shard import manifest_of

from motet.core.configuration import validate
from motet.pipeline.corpus.sources import read
from motet.pipeline.dataset.counts import Counts
from motet.pipeline.dataset.header import ShardHeader
from motet.pipeline.dataset.left_out import LeftOut, Rest
from motet.pipeline.dataset.shard import Document, ShardWriter, sample_id
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.partitions import partitions
from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.tokenizers.registry import find

SPECS = {
    "image": TokenizerSpec("vae", "image", "continuous", (), 3, 4.0, "image/png", "i"),
    "speech": TokenizerSpec("rvq", "speech", "discrete", (16, 16), 0, 40.0, "audio/wav", "s"),
    "text": TokenizerSpec("bpe", "text", "discrete", (70_000,), 0, None, "text/plain", "t"),
}
CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpus"


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a BPE and a mel-RVQ fitted on a little of the corpus, and a VQ-GAN of random weights."""
    from diffusers.models import VQModel

    folder = tmp_path_factory.mktemp("tools")
    texts = [
        json.loads(line)["text"].encode()
        for line in (CORPUS / "text/speeches.jsonl").read_text("utf-8").splitlines()[:4]
    ]
    find("bpe").fit(texts, folder / "bpe", {"vocabulary": 512})
    sounds = [file.read_bytes() for file in sorted((CORPUS / "speech/prompts").glob("*.ogg"))[:12]]
    find("melrvq").fit(sounds, folder / "melrvq", {"size": 32, "codebooks": 2})
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=64,
        norm_num_groups=4,
        sample_size=32,
    )
    model.save_pretrained(folder / "vqgan")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus folder: 30 captioned pictures, 10 transcribed recordings, 5 interleaved documents, 4 texts."""
    folder = tmp_path / "corpus"
    for part, to, count in (("images/emoji", "pictures", 30), ("speech/prompts", "sounds", 10)):
        (folder / to).mkdir(parents=True)
        rows = (CORPUS / part / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        for row in rows:
            shutil.copy(CORPUS / part / json.loads(row)["file_name"], folder / to)
        (folder / to / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    names = sorted(p.name for p in (folder / "pictures").glob("*.webp"))
    documents = [
        {"id": str(i), "parts": [{"text": f"Number {i}:"}, {"image": f"pictures/{names[i]}"}, {"text": "and so on."}]}
        for i in range(5)
    ]
    (folder / "mixed.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
    texts = (CORPUS / "text/speeches.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (folder / "text.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def configure(tools: Path) -> Callable[..., TokenizeConfig]:
    """A configuration over `corpus`, in partitions of 8 samples; keywords replace fields."""

    def make(**fields: Any) -> TokenizeConfig:
        data = {
            "corpus": [
                {"name": "pictures", "format": "folder", "path": "pictures", "modality": "image"},
                {"name": "sounds", "format": "folder", "path": "sounds", "modality": "speech"},
                {"name": "mixed", "format": "interleaved", "path": "mixed.jsonl"},
                {"name": "text", "format": "text", "path": "text.jsonl"},
            ],
            "tokenizers": {
                "text": {"use": "bpe", "path": str(tools / "bpe")},
                "image": {"use": "vqgan", "path": str(tools / "vqgan")},
                "speech": {"use": "melrvq", "path": str(tools / "melrvq")},
            },
            "partition_samples": 8,
            "partition_bytes": 60_000,
            **fields,
        }
        return validate(data, TokenizeConfig, "test")

    return make


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with every kind of span, written by hand from a real distribution of lengths."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "shards").mkdir()
    random = np.random.default_rng(0)
    writer = ShardWriter(folder / "shards/a.arrow", ShardHeader(tuple(SPECS), SPECS, "h"), ["a"])
    counts = Counts({m: spec.codebooks for m, spec in SPECS.items()})
    for i in range(1200):
        n = int(random.lognormal(3, 1))
        spans = (
            ("text", Tokens((n,), ids=random.integers(0, 70_000, n))),
            ("image", Tokens((2, 2), latents=random.normal(size=(4, 3)).astype(np.float16))),
            ("speech", Tokens((n, 2), ids=random.integers(0, 16, 2 * n))),
        )
        writer.write(document := Document(sample_id("a", str(i), [str(i).encode()]), "a", spans))
        counts.document(document)
    summary = writer.close()
    manifest_of(folder, "shards/a.arrow", summary, SPECS, counts)
    return folder


@pytest.fixture
def killed_again() -> Callable[..., int]:
    """A function that starts a command and kills it, `times` over; how often it got there.

    `progress()` counts what is to be seen of the work. Each kill comes a little after it grew, up to `after` seconds, so
    that the moments lie between start and end on any machine.
    """

    def run(command: list[str], times: int, progress: Callable[[], int], after: float, seed: int) -> int:
        chance, killed = random.Random(seed), 0
        for _ in range(times):
            before = progress()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
            while process.poll() is None and progress() <= before:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, after))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
            process.communicate()
            if process.returncode == 0:
                break
        return killed

    return run


@pytest.fixture
def told(corpus: Path, configure):
    """A function of an entry: (parts of its samples in order, reasons of its rejects, {kind: LeftOut})."""

    def run(**entry: Any) -> tuple[list[list[tuple[str, bytes]]], list[str], dict[str, LeftOut]]:
        config = configure(corpus=[{"name": "s", **entry}])
        rests = {"s": Rest()}
        found = [
            sample
            for partition in partitions(config, corpus, rests)
            for sample in read(partition, lambda *told: None, rests["s"])
        ]
        sound = [list(sample.parts) for sample in found if hasattr(sample, "language")]
        reasons = [sample.reason for sample in found if not hasattr(sample, "language")]
        return sound, reasons, {row.kind: row for row in rests["s"].rows}

    return run
