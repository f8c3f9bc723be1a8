"""Every member of the family on real data: it learns, micro-batches change nothing, and it goes on from a cache."""

import numpy as np
import pytest
import torch

from motet.core.errors import UserError
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.loader import heldout_loader
from motet.trainer.generate.generator import Generator
from motet.trainer.generate.kv_cache import KVCache
from motet.trainer.run import metrics
from motet.trainer.run.train import train
from motet.trainer.use.trained import Trained

FAMILY = {
    "dense": {"towers": {"text": "all", "image": "all", "speech": "all"}},
    "one left out": {"towers": {"image": "rest", "speech": "rest"}},
    "feed-forward untied": {"untied": ["ffn"]},
    "attention untied": {"untied": ["qkv", "out"]},
    "norms before, grouped queries": {"norm": "before", "kv_heads": 1, "heads": 4},
    "crossing in the middle": {"cross_layers": [1], "layers": 3},
    "latents through a U-Net": {"unet": {"patch": 2, "channels": [8, 16], "blocks": 1}},
    "text experts by token": {"experts": {"text": {"count": 4}}},
    "text experts, two a token": {"experts": {"text": {"count": 4, "top": 2}}},
    "text experts by expert": {"experts": {"text": {"count": 4, "routing": "expert"}}},
    "dense with experts": {
        "untied": [],
        "towers": {"image": "text", "speech": "text"},
        "experts": {"text": {"count": 4}},
    },
}


@pytest.mark.parametrize("member", FAMILY)
def test_it_learns_and_the_split_into_micro_batches_changes_nothing(member, train_config, dataset, tmp_path):
    """Losses of 1, 2 and 4 micro-batches agree to 1e-4: float32 sums in another order, twelve steps on."""
    losses = {}
    for micro_rows in (4, 2, 1):
        config = train_config(
            data={"paths": [dataset]},
            model=FAMILY[member],
            objective={"kind": "transfusion"},
            steps=12,
            micro_rows=micro_rows,
        )
        train(config, tmp_path / str(micro_rows))
        losses[micro_rows] = [row["loss"] for row in metrics.read(tmp_path / str(micro_rows))]
    assert np.isfinite(losses[4]).all() and np.mean(losses[4][-3:]) < np.mean(losses[4][:3]) - 0.5
    if "by expert" in member:  # experts choose within a micro-batch, as in the paper within a GPU's batch
        return
    assert losses[2] == pytest.approx(losses[4], rel=1e-4)
    assert losses[1] == pytest.approx(losses[4], rel=1e-4)


@pytest.mark.parametrize("member", FAMILY)
def test_a_cache_gives_what_whole_forward_passes_give(member, train_config, discrete_dataset, tmp_path):
    towers = {m: t for m, t in FAMILY[member].get("towers", {}).items() if m != "image"}  # this data has no pictures
    config = train_config(model=FAMILY[member] | {"towers": towers}, steps=2)
    train(config, tmp_path)
    trained = Trained.open(tmp_path)
    model = trained.model.double()
    if "by expert" in member:
        with pytest.raises(UserError, match="experts choose"):
            Generator(model, trained.vocabulary, trained.towers)
        return
    corpus = Corpus.open([discrete_dataset], "heldout", 0.1)
    batch = next(heldout_loader(corpus, trained.vocabulary, trained.towers, config.data, 1000).once(1))
    with torch.no_grad():
        hidden_TD = torch.empty(config.data.sequence, model.config.dim, dtype=torch.float64)
        hidden_TD[batch.place_T] = model(batch)
    n = int((batch.document_T == 1).sum())
    ids_T, tower_T = (torch.empty_like(batch.place_T) for _ in range(2))
    ids_T[batch.place_T] = batch.ids_T
    tower_T[batch.place_T] = torch.repeat_interleave(torch.arange(len(batch.counts)), torch.tensor(batch.counts))
    ids_1n, tower_1n = (x[None, :n].numpy() for x in (ids_T, tower_T))
    context = KVCache(model, 1, n)
    found = [context.extend(ids_1n[:, :5], tower_1n[:, :5])]
    found += [context.extend(ids_1n[:, i : i + 1], tower_1n[:, i : i + 1]) for i in range(5, n)]
    torch.testing.assert_close(torch.cat(found, 1)[0], hidden_TD[:n], rtol=0, atol=1e-9)


@pytest.mark.parametrize("recompute", ["ffn", "layer"])
def test_recomputing_changes_no_loss(recompute, train_config, tmp_path):
    kept, again = train_config(steps=3), train_config(steps=3, recompute=recompute)
    rows = []
    for name, config in (("kept", kept), ("again", again)):
        train(config, tmp_path / name)
        rows.append([(row["loss"], row["grad_norm"]) for row in metrics.read(tmp_path / name)])
    assert rows[0] == rows[1]


def test_a_tower_that_is_not_there_is_an_error_for_people(train_config, tmp_path):
    with pytest.raises(UserError, match=r"model: experts: there is no tower txt; there are text, speech"):
        train(train_config(model={"experts": {"txt": {"count": 2}}}), tmp_path)
