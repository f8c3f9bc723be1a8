"""Small token datasets made of the bundled corpus: bytes of speeches, pixels of emoji as latents, bytes of recordings."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motet.pipeline.dataset.header import ShardHeader
from motet.pipeline.dataset.manifest import Manifest, ShardEntry
from motet.pipeline.dataset.shard import Document, ShardWriter, sample_id
from motet.pipeline.dataset.store import store_of
from motet.tokenizers.contract import TokenizerSpec, Tokens
from motet.trainer.config import TrainConfig

EXAMPLES = Path(__file__).parents[2] / "examples" / "corpus"
SPECS = {
    "text": TokenizerSpec("bytes", "text", "discrete", (256,), 0, None, "text/plain", "t" * 32),
    "image": TokenizerSpec("pixels", "image", "continuous", (), 12, 16.0, "image/png", "i" * 32),
    "speech": TokenizerSpec("bytes", "speech", "discrete", (256, 256, 256), 0, 12.5, "audio/wav", "s" * 32),
}


def text(words: str) -> tuple[str, Tokens]:
    ids = np.frombuffer(words.encode(), np.uint8)
    return "text", Tokens((len(ids),), ids=ids)


def picture(path: Path) -> tuple[str, Tokens]:
    """4 x 4 patches of 2 x 2 pixels x 3 colours."""
    pixels = np.asarray(Image.open(path).convert("RGB").resize((8, 8)), np.float16) / 128 - 1
    return "image", Tokens((4, 4), latents=pixels.reshape(4, 2, 4, 2, 3).swapaxes(1, 2).reshape(16, 12))


def sound(path: Path, frames: int) -> tuple[str, Tokens]:
    codes = np.frombuffer(path.read_bytes()[1000 : 1000 + 3 * frames], np.uint8)
    return "speech", Tokens((len(codes) // 3, 3), ids=codes[: len(codes) // 3 * 3])


def document(source: str, position: int, *spans: tuple[str, Tokens]) -> Document:
    content = [t.ids.tobytes() if t.ids is not None else t.latents.tobytes() for _, t in spans]
    return Document(sample_id(source, str(position), content), source, spans)


def rows_of(path: Path, n: int) -> list[dict]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(n), strict=False)]


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """250 documents of four sources: bare text of up to 900 tokens, captioned pictures, transcribed speech, interleaved."""
    made = []
    emoji, prompts = EXAMPLES / "images" / "emoji", EXAMPLES / "speech" / "prompts"
    for speech in rows_of(EXAMPLES / "text" / "speeches.jsonl", 4):
        words = speech["text"]
        for i in range(10):
            made.append(document("speeches", len(made), text(words[1000 * i : 1000 * i + 30 + 87 * i])))
    for row in rows_of(emoji / "metadata.jsonl", 120):
        made.append(document("emoji", len(made), text(row["text"]), picture(emoji / row["file_name"])))
    for i, row in enumerate(rows_of(prompts / "metadata.jsonl", 70)):
        made.append(document("prompts", len(made), text(row["text"]), sound(prompts / row["file_name"], 10 + i)))
    for row in rows_of(EXAMPLES / "interleaved" / "families.jsonl", 20):
        spans = [text(p["text"]) if "text" in p else picture(EXAMPLES / p["image"]) for p in row["parts"]]
        made.append(document("families", len(made), *spans))
    return made


WriteDataset = Callable[..., str]


@pytest.fixture(scope="session")
def write_dataset(tmp_path_factory: pytest.TempPathFactory) -> WriteDataset:
    """write(documents, rows_per_shard=100, modalities=..., specs=...) -> the folder of a token dataset."""

    def write(
        documents: Iterable[Document],
        rows_per_shard: int = 100,
        modalities: tuple[str, ...] = ("image", "speech", "text"),
        specs: dict[str, TokenizerSpec] = SPECS,
    ) -> str:
        root = tmp_path_factory.mktemp("tokens")
        (root / "shards").mkdir()
        documents = list(documents)
        entries = []
        for source in sorted({d.source for d in documents}):
            own = [d for d in documents if d.source == source]
            for at in range(0, len(own), rows_per_shard):
                entries.append(
                    _shard(root, source, at // rows_per_shard, own[at : at + rows_per_shard], modalities, specs)
                )
        manifest = Manifest(
            store=store_of(root),
            modalities=modalities,
            tokenizers=specs,
            settings_hash="0" * 32,
            sources=tuple(sorted({d.source for d in documents})),
            shards=tuple(entries),
            codebooks={},
            tables={source: list(modalities) for source in sorted({d.source for d in documents})},
        )
        (root / "manifest.json").write_text(manifest.to_text())
        return str(root)

    return write


def _shard(root, source, partition, documents, modalities, specs) -> ShardEntry:
    path = root / "shards" / f"{source}-{partition:05d}.arrow"
    writer = ShardWriter(path, ShardHeader(modalities, specs, "0" * 32), [source])
    tokens: Counter[str] = Counter()
    for d in documents:
        writer.write(d)
        for modality, span in d.spans:
            tokens[modality] += len(span)
    summary = writer.close()
    return ShardEntry(
        file=f"shards/{path.name}",
        source=source,
        partition=partition,
        rows=summary.rows,
        bytes=summary.bytes,
        hash=summary.hash,
        batch_hashes=summary.batch_hashes,
        batch_rows=summary.batch_rows,
        batch_offsets=summary.batch_offsets,
        tokens=dict(sorted(tokens.items())),
        spans={},
        rejects={},
        inputs=(),
    )


@pytest.fixture(scope="session")
def dataset(write_dataset: WriteDataset, documents: list[Document]) -> str:
    """The folder of a token dataset of `documents`."""
    return write_dataset(documents)


@pytest.fixture(scope="session")
def discrete_dataset(write_dataset: WriteDataset, documents: list[Document]) -> str:
    """The folder of a token dataset of those `documents` that have no latents."""
    discrete = [d for d in documents if all(modality != "image" for modality, _ in d.spans)]
    return write_dataset(discrete, modalities=("speech", "text"), specs={m: SPECS[m] for m in ("speech", "text")})


@pytest.fixture(scope="session")
def train_config(discrete_dataset: str) -> Callable[..., TrainConfig]:
    """Makes a run of a small model on `discrete_dataset`; its `changes` of data, model and so on are by key."""

    def make(**changes) -> TrainConfig:
        settings = {
            "data": {"paths": [discrete_dataset], "sequence": 128, "holdout": 0.1},
            "model": {"dim": 32, "layers": 2, "heads": 2},
            "optimizer": {"lr": 3e-3, "warmup": 2},
            "steps": 12,
            "rows": 4,
            "micro_rows": 2,
            "threads": 1,
            "checkpoint_every": 4,
        }
        for key, value in changes.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        return TrainConfig.model_validate(settings)

    return make
