"""`group` against its definition, on packed rows of any shape."""

import dataclasses

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.trainer.batch import Packed, group

MODALITIES = ("text", "image", "speech")
MODALITY_OF_V = np.array([0] * 10 + [2] * 10, np.uint8)
TOWERS = st.sampled_from([(0, 1, 2), (0, 0, 0), (0, 1, 1), (0, 1, 0)])


@st.composite
def packed_rows(draw) -> Packed:
    """Rows of documents, each a run of text, codes of speech and pictures as latents, then padding."""
    rows, sequence = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    columns = {name: [] for name in ("ids_T", "position_T", "document_T", "block_T", "modality_T")}
    documents = blocks = 0
    for _ in range(rows):
        at = 0
        while at < sequence:
            length = min(draw(st.integers(1, 12)), sequence - at)
            kind = draw(st.sampled_from(["document", "padding"]))
            documents += kind == "document"
            position = 0
            while position < length:
                run = min(draw(st.integers(1, 5)), length - position)
                modality = draw(st.sampled_from([0, 1, 2])) if kind == "document" else 0
                blocks += modality == 1
                for _ in range(run):
                    ids = {0: st.integers(1, 9), 1: st.just(0), 2: st.integers(10, 19)}[modality]
                    columns["ids_T"].append(draw(ids) if kind == "document" else 0)
                    columns["position_T"].append(position if kind == "document" else 0)
                    columns["document_T"].append(documents if kind == "document" else 0)
                    columns["block_T"].append(blocks if modality == 1 else 0)
                    columns["modality_T"].append(modality)
                    position += 1
            at += length
    dtypes = {"document_T": np.int32, "block_T": np.int32, "modality_T": np.uint8}
    arrays = {name: np.array(values, dtypes.get(name, np.int64)) for name, values in columns.items()}
    latents = int((arrays["block_T"] > 0).sum())
    values = np.arange(latents * 2, dtype=np.float32).reshape(latents, 2)
    return Packed(
        sequence, **arrays, latents_ND=values, noise_ND=-values, time_N=arrays["block_T"][arrays["block_T"] > 0]
    )


@given(packed_rows(), TOWERS)
def test_group_sorts_by_tower_and_keeps_the_sequence_within(packed, towers):
    batch = group(packed, MODALITIES, towers, MODALITY_OF_V, "image")
    T = len(packed.ids_T)
    assert batch.rows * batch.sequence == T
    tower_T = [towers[m] for m in packed.modality_T]
    assert batch.order_T.tolist() == sorted(range(T), key=lambda t: (tower_T[t], t))
    assert batch.counts == tuple(tower_T.count(g) for g in range(max(towers) + 1))
    assert batch.offsets_G.tolist() == np.cumsum(batch.counts).tolist() and batch.offsets_G.dtype == torch.int32
    for name in ("ids_T", "position_T", "document_T", "block_T"):
        assert getattr(batch, name).tolist() == [getattr(packed, name)[t] for t in batch.order_T]


@given(packed_rows(), TOWERS)
def test_labels_are_the_next_token_of_the_document_unless_a_latent_is_involved(packed, towers):
    batch = group(packed, MODALITIES, towers, MODALITY_OF_V, "image")
    labelled = []
    for grouped, t in enumerate(batch.order_T.tolist()):
        last = t + 1 == len(packed.ids_T) or packed.document_T[t] != packed.document_T[t + 1]
        if packed.document_T[t] == 0 or last or packed.block_T[t] or packed.block_T[t + 1]:
            assert (batch.labels_T[grouped], batch.label_modality_T[grouped]) == (-100, -1)
        else:
            label = packed.ids_T[t + 1]
            assert (batch.labels_T[grouped], batch.label_modality_T[grouped]) == (label, 0 if label < 10 else 2)
            labelled.append(grouped)
    assert batch.label_row_M.tolist() == labelled


@given(packed_rows(), TOWERS)
def test_latents_follow_their_rows(packed, towers):
    batch = group(packed, MODALITIES, towers, MODALITY_OF_V, "image")
    assert (batch.block_T[batch.latent_row_N] > 0).all() and len(batch.latent_row_N) == len(packed.latents_ND)
    assert (
        batch.block_T[batch.latent_row_N].tolist() == batch.time_N.tolist()
    )  # the times were made the blocks' numbers
    assert batch.order_T[batch.latent_row_N].tolist() == np.flatnonzero(packed.block_T).tolist()


@given(packed_rows())
def test_to_moves_every_tensor(packed):
    batch = group(packed, MODALITIES, (0, 1, 2), MODALITY_OF_V, "image")
    moved = batch.to("meta")
    for field in dataclasses.fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert after.device.type == "meta" and after.shape == before.shape and after.dtype == before.dtype
        else:
            assert after == before
