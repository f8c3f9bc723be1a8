"""motet's data loader under a training loop and a model of your own: packed rows, ranks, and going on from a cursor.

    python examples/scripts/loader_in_plain_pytorch.py OUT     (after tokenize_and_look.py OUT)

Some 10 seconds on one core. Writes OUT/plain.pt. A batch is a function of data, configuration, seed and step: there are no
worker processes and no iterator with a state. What is saved is the step's number, and a cursor, so that nothing before it has
to be planned again.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from motet.trainer.config import DataConfig
from motet.trainer.data.batch import GroupedBatch
from motet.trainer.data.loader import Loader
from motet.trainer.data.order import Cursor

out = Path(sys.argv[1])
torch.set_num_threads(1)


def open_loader() -> Loader:
    """Documents, the order that they come in, and what makes batches of them."""
    weights = {"emoji": 0.4, "prompts": 0.3, "speeches": 0.3}
    data = DataConfig(paths=[str(out / "tokens")], sequence=256, weights=weights, long="split")
    one = dict.fromkeys(("text", "image", "speech"), "all")  # one tower for all: tokens stand as they are read
    return Loader.open(data, rows=8, seed=0, towers=one)


class Model(nn.Module):
    """One layer of attention; `document_T` keeps the documents of a row apart, `position_T` counts within each."""

    def __init__(self, ids: int, dim: int = 64):
        super().__init__()
        self.id, self.position = nn.Embedding(ids, dim), nn.Embedding(10_000, dim)
        self.qkv, self.head = nn.Linear(dim, 3 * dim), nn.Linear(dim, ids)

    def forward(self, batch: GroupedBatch) -> Tensor:
        """Sum of the losses of all labels."""
        x_BSD = (self.id(batch.ids_T) + self.position(batch.position_T)).view(batch.rows, batch.sequence, -1)
        document_BS = batch.document_T.view(batch.rows, batch.sequence)
        mask_BSS = (document_BS[:, :, None] == document_BS[:, None, :]).tril()
        logits_BSV = self.head(x_BSD + scaled_dot_product_attention(*self.qkv(x_BSD).chunk(3, dim=-1), mask_BSS))
        return cross_entropy(logits_BSV.flatten(0, 1), batch.labels_T, ignore_index=-100, reduction="sum")


def train(first: int, last: int) -> list[float]:
    """Steps [first, last), from what was saved if `first` is not 0; the loss of each, in nats a token."""
    torch.manual_seed(0)
    loader, losses = open_loader(), []
    model = Model(loader.vocabulary.size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if first:
        saved = torch.load(out / "plain.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.order.remember(Cursor(*saved["cursor"]))
    for step in range(first, last):
        view = loader.view(step, micro_rows=4)  # two batches of four rows
        labels = sum(view.counts.values())  # of the whole global batch, so that gradients of ranks and batches add up
        loss = sum(model(batch) / labels for batch in view.batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    cursor = tuple(loader.order.cursor(last))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "cursor": cursor}, out / "plain.pt")
    return losses


undisturbed = train(0, 30)
stopped = train(0, 20)
resumed = train(20, 30)
print(f"30 steps: {undisturbed[0]:.3f} to {undisturbed[-1]:.3f} nats a token")
print(f"stopped at 20 and resumed: the same losses to the last bit: {stopped + resumed == undisturbed}")

loader = open_loader()
views = [loader.view(30, rank, world=2, micro_rows=4) for rank in range(2)]
print(f"step 30: rank 0 of 2 has rows {views[0].rows} of the global batch, rank 1 {views[1].rows}")
print(f"labels to divide by, on either: {views[0].counts}")
print(f"on one process with all 8 rows: {loader.view(30, micro_rows=8).counts}")
