"""Datasets whose shards are wrong inside while every hash is right: what another tool, or an enemy, may hand over."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from one_shard import manifest_of

from motet.pipeline.dataset import index, messages
from motet.pipeline.dataset.counts import Counts
from motet.pipeline.dataset.header import ShardHeader
from motet.pipeline.dataset.shard import Document, ShardSummary, ShardWriter, sample_id
from motet.tokenizers.contract import TokenizerSpec, Tokens

SPECS = {
    "image": TokenizerSpec("vae", "image", "continuous", (), 3, 4.0, "image/png", "i"),
    "speech": TokenizerSpec("rvq", "speech", "discrete", (16, 32), 0, 40.0, "audio/wav", "s"),
    "text": TokenizerSpec("bpe", "text", "discrete", (300,), 0, None, "text/plain", "t"),
}
HEADER = ShardHeader(tuple(SPECS), SPECS, "h")
Columns = dict[str, np.ndarray]


def documents(count: int = 20) -> list[Document]:
    """Text, a picture as latents and speech each, of lengths that differ."""
    random = np.random.default_rng(0)
    made = []
    for i in range(count):
        n = 3 + i % 5
        spans = (
            ("text", Tokens((n,), ids=random.integers(0, 300, n))),
            ("image", Tokens((2, 1 + i % 3), latents=random.normal(size=(2 + 2 * (i % 3), 3)).astype(np.float16))),
            ("speech", Tokens((n, 2), ids=random.integers(0, 16, 2 * n))),
        )
        made.append(Document(sample_id("a", str(i), [str(i).encode()]), "a", spans))
    return made


@dataclass(frozen=True)
class Forged:
    """A forgery, and what every reader has to say of it.

    Attributes:
        says: words of the message. change: writes into the columns' buffers, in place.
        rewrite: another record batch, and how it is written. rows: that the manifest and the index tell.
    """

    says: str
    change: Callable[[Columns], None] = lambda columns: None
    rewrite: Callable[[pa.RecordBatch], tuple[pa.RecordBatch, pa.ipc.IpcWriteOptions]] | None = None
    rows: int | None = None

    def write(self, folder: Path) -> Path:
        """The dataset, with all hashes as they should be."""
        (folder / "shards").mkdir(parents=True)
        path, counts = folder / "shards" / "forged.arrow", Counts({m: s.codebooks for m, s in SPECS.items()})
        writer = ShardWriter(path, HEADER, ["a"])
        for document in documents():
            writer.write(document)
            counts.document(document)
        told = writer.close()
        if self.rewrite:
            batch, options = self.rewrite(pa.ipc.open_file(path.read_bytes()).get_batch(0))
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema, options=options) as file:
                file.write_batch(batch)
        data = np.frombuffer(path.read_bytes(), np.uint8).copy()
        if not self.rewrite:
            self.change(_columns(data))
        path.write_bytes(data)
        summary = _told(data, self.rows or told.rows)
        manifest = manifest_of(folder, "shards/forged.arrow", summary, SPECS, counts)
        (folder / index.NAME).write_bytes(index.to_bytes(manifest))
        return folder


def _told(data: np.ndarray, rows: int) -> ShardSummary:
    whole = pa.py_buffer(data)
    ((begin, end),) = messages.blocks(whole)[1]
    digest = xxhash.xxh3_64_hexdigest(data[begin:end])
    return ShardSummary(rows, len(data), xxhash.xxh3_128_hexdigest(data), (digest,), (rows,), (begin, end))


def _columns(data: np.ndarray) -> Columns:
    """Views of the buffers of a file's only record batch, by what they are."""
    whole = pa.py_buffer(data)
    batch = pa.ipc.open_file(whole).get_batch(0)

    def view(buffer: pa.Buffer, kind: str) -> np.ndarray:
        at = buffer.address - whole.address
        return data[at : at + buffer.size].view(kind)

    found = {}
    for name, kind in (("tokens", "u2"), ("span_end", "i4"), ("span_modality", "u1"), ("latents", "u2")):
        buffers = batch.column(name).buffers()
        found[f"{name} at"], found[name] = view(buffers[1], "i4"), view(buffers[-1], kind)
    shape = batch.column("span_shape").buffers()
    found |= {"shape lists at": view(shape[1], "i4"), "shape at": view(shape[3], "i4"), "shape": view(shape[-1], "i4")}
    return found


def _set(name: str, place: int | slice, value: int) -> Callable[[Columns], None]:
    def change(columns: Columns) -> None:
        columns[name][place] = value

    return change


def _negative(columns: Columns) -> None:
    """The product of a grid's axes is right."""
    columns["shape"][1:3] *= -1


def _wrapped(columns: Columns) -> None:
    """A grid whose product is 2^64 + what it should be, in 64 bits."""
    columns["shape at"][1:3] = 0, columns["shape at"][3]
    columns["shape"][: columns["shape at"][3]] = 1 << 30


def _swapped(columns: Columns) -> None:
    """As many ids as before in all; of two documents, one has the other's."""
    columns["tokens at"][1] += 2


def _other_spans(columns: Columns) -> None:
    columns["span_modality at"][1] -= 1


def _compressed(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.ipc.IpcWriteOptions]:
    """A few kilobytes that ask for 64 times as much; a real bomb for as much as one likes."""
    ids = pa.array(np.zeros(1 << 20, np.uint16))
    offsets = pa.array(np.linspace(0, 1 << 20, batch.num_rows + 1).astype(np.int32))
    tokens = pa.ListArray.from_arrays(offsets, ids, type=batch.schema.field("tokens").type)
    return batch.set_column(1, batch.schema.field("tokens"), tokens), pa.ipc.IpcWriteOptions(compression="zstd")


def _missing(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.ipc.IpcWriteOptions]:
    """Ends of spans that are missing, with any number below."""
    ends = batch.column("span_end")
    some = pa.array([None, *ends.values.to_pylist()[1:]], pa.int32())
    lists = pa.ListArray.from_arrays(ends.offsets, some, type=ends.type)
    return batch.set_column(2, batch.schema.field("span_end"), lists), pa.ipc.IpcWriteOptions()


ENORMOUS = 1 << 30
FORGED = {
    "offsets of ids beyond the ids": Forged("tokens: .*out of bounds", _set("tokens at", -1, ENORMOUS)),
    "offsets of ids fall": Forged("tokens: .*monotonic", _set("tokens at", 3, 0)),
    "offsets of spans are negative": Forged("span_end: .*negative offset", _set("span_end at", 0, -8)),
    "offsets of latents beyond the latents": Forged("latents: .*out of bounds", _set("latents at", -1, ENORMOUS)),
    "offsets of shapes beyond the shapes": Forged("span_shape: .*out of bounds", _set("shape at", -1, ENORMOUS)),
    "lists of shapes shifted": Forged("span_shape: a document has another number", _set("shape lists at", 1, 2)),
    "a span ends beyond its document": Forged("as its spans are long|grid", _set("span_end", 2, ENORMOUS)),
    "span ends fall": Forged("span ends fall", _set("span_end", 1, 0)),
    "a span end is negative": Forged("span ends fall", _set("span_end", 0, -(1 << 31))),
    "a modality that is not there": Forged("span_modality: a span of modality 200", _set("span_modality", 4, 200)),
    "another kind of modality": Forged("as its spans are long", _set("span_modality", 1, 2)),
    "documents of other spans": Forged("span_modality: a document has another number", _other_spans),
    "an id beyond its codebook": Forged("an id of text, codebook 0, is 60000; the codebook has 300", _set("tokens", 0, 60000)),
    "an id of the other codebook": Forged(
        "an id of speech, codebook 0, is 20; the codebook has 16", _set("tokens", 3, 20)
    ),
    "an id of one document in another": Forged("tokens: a document has not as many ids", _swapped),
    "a grid of another size": Forged("grid is not its number of tokens", _set("shape", 0, 7)),
    "a grid of negative axes": Forged("negative size", _negative),
    "a grid that wraps round": Forged("grid", _wrapped),
    "no grid": Forged("has no grid", _set("shape at", 1, 0)),
    "a latent that is no number": Forged("not a finite number", _set("latents", 5, 0x7E00)),
    "an infinite latent": Forged("not a finite number", _set("latents", -1, 0xFC00)),
    "fewer documents than told": Forged("20 documents, 5000 are expected", rows=5000),
    "compressed": Forged("compressed", rewrite=_compressed),
    "missing values": Forged("span_end: .*[Nn]ull|span_end: 1 values are missing", rewrite=_missing),
}  # fmt: skip
