"""motet: document shards, shuffled by formula; what a plain PyTorch loop gets of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peers.base import BATCH, LENGTH, Loader, Peer, shards

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Motet(Peer):
    """Checksums are on. The state is the number of the next batch; there are no worker processes, so none change."""

    imports = ("motet.trainer.data.plain_rows", "motet.trainer.data.loader")
    lacks: Mapping[str, str] = {}
    algorithms = ("best fit in windows",)

    def write(self, arrays: Sequence[np.ndarray], folder: Path) -> None:
        """A document per array, as `motet tokenize` writes them."""
        from motet.pipeline.dataset.header import ShardHeader
        from motet.pipeline.dataset.index import NAME, to_bytes
        from motet.pipeline.dataset.manifest import Manifest, ShardEntry
        from motet.pipeline.dataset.shard import Document, ShardWriter, sample_id
        from motet.pipeline.dataset.store import store_of
        from motet.tokenizers.contract import TokenizerSpec, Tokens

        (folder / "shards").mkdir()
        specs = {"text": TokenizerSpec("bpe", "text", "discrete", (60_000,), 0, None, "text/plain", "0" * 32)}
        entries = []
        for shard, some in shards(arrays):
            name = f"shards/{shard}.arrow"
            writer = ShardWriter(folder / name, ShardHeader(("text",), specs, ""), ["rows"])
            for i, each in enumerate(some):
                id_ = sample_id("rows", f"{shard}/{i}", [each.tobytes()])
                writer.write(Document(id_, "rows", (("text", Tokens((len(each),), ids=each)),)))
            told = dataclasses.asdict(writer.close())
            tokens = {"text": sum(map(len, some))}
            entries.append(ShardEntry(name, "rows", shard, tokens=tokens, spans={}, rejects={}, inputs=(), **told))
        tables = {"rows": ["text"]}
        manifest = Manifest(store_of(folder), ("text",), specs, "", ("rows",), tuple(entries), {}, tables=tables)
        (folder / NAME).write_bytes(to_bytes(manifest))

    def loader(self, folder: Path, seed: int, workers: int = 0, state: bytes | None = None) -> Loader:
        """`TokenRows`, which goes through epoch after epoch: one of them."""
        from motet.trainer.data.corpus import Corpus
        from motet.trainer.data.plain_rows import TokenRows

        rows = TokenRows(Corpus.open([str(folder)]), BATCH, seed)
        coming = int(state or 0)

        def batches() -> Iterator[Tensor]:
            nonlocal coming
            while coming < rows.documents // BATCH:
                coming += 1
                yield rows.batch(coming - 1)

        return Loader(batches(), lambda: str(coming).encode())

    def documents(self, folder: Path, seed: int, algorithm: str) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass of a `Loader`, without the markers that it sets round every document."""
        import numpy as np
        import torch

        from motet.trainer.config import DataConfig
        from motet.trainer.data.collate import Noise
        from motet.trainer.data.corpus import Corpus
        from motet.trainer.data.loader import Loader
        from motet.trainer.data.order import Order
        from motet.trainer.vocabulary import Towers, Vocabulary

        corpus = Corpus.open([str(folder)])
        vocabulary = Vocabulary.of(corpus.tokenizers)
        plan = Order(corpus, DataConfig(paths=[str(folder)], sequence=LENGTH + 2), BATCH, seed)
        base = vocabulary.base["text"][0]
        for batch in Loader(plan, vocabulary, Towers.of(vocabulary, {}), Noise(seed, 1000)).once(BATCH):
            # Of one tower, so in the order of the rows; specials, padding among them, come before `base`.
            ids_RS = batch.ids_T.numpy().reshape(BATCH, LENGTH + 2)
            true_RS = ids_RS >= base
            filled_RS = np.arange(LENGTH) < true_RS.sum(1)[:, None]
            tokens, marks = np.zeros((BATCH, LENGTH), np.int64), np.zeros((BATCH, LENGTH), np.int32)
            tokens[filled_RS] = ids_RS[true_RS] - base
            marks[filled_RS] = batch.document_T.numpy().reshape(BATCH, LENGTH + 2)[true_RS]
            yield torch.from_numpy(tokens), torch.from_numpy(marks)
