"""The order of training, its batches and its checkpoints must not change unnoticed."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from motet.pipeline.dataset import header
from motet.pipeline.dataset.manifest import Manifest
from motet.trainer.config import DataConfig
from motet.trainer.data.batch import GroupedBatch
from motet.trainer.data.collate import Noise
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.dropout import Dropout
from motet.trainer.data.loader import Loader
from motet.trainer.data.order import ORDER_VERSION, Order
from motet.trainer.data.records import Records
from motet.trainer.run import checkpoint
from motet.trainer.run.checkpoint import MODEL, OPTIMIZER, latest
from motet.trainer.run.metrics import hash_of_rows, read
from motet.trainer.run.train import train
from motet.trainer.vocabulary import Towers, Vocabulary


def digest(*arrays: np.ndarray) -> str:
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def columns(batch: GroupedBatch) -> str:
    """All that a batch says of its tokens, whatever its columns are called."""
    values = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    return digest(*(value.numpy() for value in values))


def order_of(dataset: str, **changes) -> Order:
    data = DataConfig(**{"paths": [dataset], "sequence": 256, "holdout": 0.1, **changes})
    return Order(Corpus(Records.of(data, data.paths), "train", data.holdout), data, 4, 7)


def test_shards_with_latents(dataset, golden):
    manifest = Manifest.load(dataset)
    files = {entry.file: entry.hash for entry in manifest.shards}
    golden("shards of all modalities", header.FORMAT_VERSION, files)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("plain", {}),
        ("weights", {"weights": {"emoji": 2, "families": 1, "prompts": 1, "speeches": 1}}),
        ("modality weights", {"modality_weights": {"text": 5, "image": 3, "speech": 2}}),
        ("blocks", {"shuffle": 1, "long": "split", "caption_first": 0.9}),
        ("edit", {"edits": [{"from_step": 5, "weights": {"emoji": 1, "families": 1, "prompts": 1, "speeches": 0}}]}),
    ],
)
def test_order_and_packed_rows(dataset, golden, name, changes):
    order = order_of(dataset, **changes)
    found = [order.rows_of(step) for step in (0, 1, 30)]
    rows = [
        [[[int(each.documents.number_D[p.document]), *map(int, p[1:])] for p in row] for row in each.rows]
        for each in found
    ]
    golden(f"rows, {name}", ORDER_VERSION, rows)
    golden(f"fingerprint, {name}", ORDER_VERSION, order.fingerprint(30))
    golden(f"cursor, {name}", ORDER_VERSION, order.cursor(30))


@pytest.mark.parametrize("streams", ["flat", "delayed", "first"])
@pytest.mark.parametrize("kind", ["chameleon", "transfusion"])
def test_grouped_batches(dataset, discrete_dataset, golden, kind, streams):
    """Two towers, dropped captions, every way of codebooks; what a step learns from is all in the batch."""
    path = dataset if kind == "transfusion" else discrete_dataset
    order = order_of(path, guidance_dropout=0.3, streams={"speech": streams})
    vocabulary = Vocabulary.of(order.corpus.tokenizers)
    towers = Towers.of(vocabulary, {})
    loader = Loader(order, vocabulary, towers, Noise(7, 1000))
    found = [
        (columns(batch), hash_of_rows(batch, [2 * i, 2 * i + 1]))
        for i, batch in enumerate(loader.micro_batches(3, micro_rows=2))
    ]
    golden(f"batches, {kind}, {streams}", ORDER_VERSION, [found, loader.view(3).counts])
    assert Dropout(7, 0.3) == Dropout(order.seed, order.data.guidance_dropout)


def test_state_of_a_checkpoint(train_config, dataset, golden, tmp_path):
    """All but what depends on the machine: weights to the last bit, paths."""
    config = train_config(data={"paths": [dataset]}, objective={"kind": "transfusion"}, steps=6, checkpoint_every=6)
    train(config, tmp_path)
    found = latest(tmp_path)
    told = json.loads((found / checkpoint.STATE).read_bytes())
    del told["hash"], told["files"], told["config"]["data"]["paths"]
    golden("state of a checkpoint", checkpoint.FORMAT_VERSION, told)
    for name in (MODEL, OPTIMIZER):
        (file,) = (found / name).iterdir()
        shapes = {key: [str(value.dtype), *value.shape] for key, value in load_file(file).items()}
        golden(f"tensors in {name}", checkpoint.FORMAT_VERSION, dict(sorted(shapes.items())))
    golden("hashes of global batches", ORDER_VERSION, [row["batch"] for row in read(tmp_path)])
    golden("keys of a row of metrics", checkpoint.FORMAT_VERSION, sorted(next(iter(read(tmp_path)))))
