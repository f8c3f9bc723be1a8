"""Batches against a rendering written anew, token by token; ranks, restarts, counts, noise."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from whole import everything

from motet.core.errors import UserError
from motet.pipeline.dataset.shard import Document
from motet.trainer.config import DataConfig
from motet.trainer.data.batch import GroupedBatch
from motet.trainer.data.collate import Noise
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.loader import Loader, heldout_loader
from motet.trainer.data.order import Order
from motet.trainer.run.metrics import hash_of_rows, wrapped
from motet.trainer.vocabulary import Towers, Vocabulary


@pytest.fixture(scope="module")
def corpus(dataset) -> Corpus:
    return Corpus.open([dataset])


@pytest.fixture(scope="module")
def vocabulary(corpus) -> Vocabulary:
    return Vocabulary.of(corpus.tokenizers)


def config(**changes) -> DataConfig:
    return DataConfig(**{"paths": ["unused"], "sequence": 200, "long": "split", **changes})


def stream_of(corpus, rows=8, seed=0, towers=None, steps=1000, **changes) -> Loader:
    vocabulary = Vocabulary.of(corpus.tokenizers)
    order = Order(corpus, config(**changes), rows, seed)
    return Loader(order, vocabulary, Towers.of(vocabulary, towers or {}), Noise(seed, steps))


def rendered(document: Document, flipped: bool, vocabulary: Vocabulary) -> list[tuple]:
    """(id, modality, latent vector or None, picture or None) of each token, from the document as it was written."""
    tokens = [(vocabulary.bos, "text", None, None)]
    for n, (modality, span) in enumerate(reversed(document.spans) if flipped else document.spans):
        if modality != "text":
            tokens.append((vocabulary.begin[modality], "text", None, None))
        if span.latents is not None:
            tokens += [(vocabulary.pad, modality, vector.astype(np.float32), n) for vector in span.latents]
        else:
            books = vocabulary.base[modality]
            tokens += [(books[i % len(books)] + int(code), modality, None, None) for i, code in enumerate(span.ids)]
        if modality != "text":
            tokens.append((vocabulary.end[modality], "text", None, None))
    return [*tokens, (vocabulary.eos, "text", None, None)]


def in_sequence(batch: GroupedBatch, values_T: torch.Tensor) -> np.ndarray:
    restored = torch.empty_like(values_T)
    restored[batch.place_T] = values_T
    return restored.numpy()


@pytest.mark.parametrize("long", ["split", "truncate"])
@pytest.mark.parametrize(
    "towers", [{}, {"image": "media", "speech": "media"}, dict.fromkeys(["image", "speech"], "text")]
)
def test_batches_in_sequence_order_are_the_documents_one_after_another(corpus, documents, vocabulary, long, towers):
    by_id = {d.sample_id: d for d in documents}
    loader = stream_of(corpus, long=long, towers=towers)
    sequence = loader.order.data.sequence
    for step in range(6):
        chosen = loader.order.rows_of(step)
        rows = chosen.rows
        for at, batch in zip(range(0, 8, 4), loader.micro_batches(step, micro_rows=4), strict=True):
            ids, positions, document_of, block_of, labels, label_modality = (
                in_sequence(batch, x)
                for x in (
                    batch.ids_T,
                    batch.position_T,
                    batch.document_T,
                    batch.block_T,
                    batch.labels_T,
                    batch.label_modality_T,
                )
            )
            tower_T = np.repeat(np.arange(len(batch.counts)), batch.counts)
            tower_of = in_sequence(batch, torch.from_numpy(tower_T))
            latents = dict(zip(batch.place_T[batch.latent_row_N].tolist(), batch.latents_ND.numpy(), strict=True))
            numbers, blocks = set(), Counter()
            for r, row in enumerate(rows[at : at + 4]):
                t = r * sequence
                for piece in row:
                    sample_id = chosen.documents.sample_D2[piece.document].astype(">u8").tobytes()
                    tokens = rendered(by_id[sample_id], piece.flipped, vocabulary)[piece.begin : piece.end]
                    number = document_of[t]
                    assert number > 0 and number not in numbers
                    numbers.add(number)
                    for i, (id_, modality, latent, picture) in enumerate(tokens):
                        assert (ids[t], positions[t], document_of[t]) == (id_, i, number)
                        assert loader.towers.names[tower_of[t]] == towers.get(modality, modality)
                        assert (block_of[t] > 0) == (latent is not None)
                        if latent is not None:
                            np.testing.assert_array_equal(latents.pop(t), latent)
                            blocks[int(block_of[t]), number, picture] += 1
                        following = tokens[i + 1] if i + 1 < len(tokens) else None
                        if following is None or latent is not None or following[2] is not None:
                            assert (labels[t], label_modality[t]) == (-100, -1)
                        else:
                            expected = (following[0], vocabulary.modalities.index(following[1]))
                            assert (labels[t], label_modality[t]) == expected
                        t += 1
                rest = slice(t, (r + 1) * sequence)
                assert not ids[rest].any() and not document_of[rest].any() and not tower_of[rest].any()
                assert not block_of[rest].any() and (labels[rest] == -100).all() and (label_modality[rest] == -1).all()
            assert not latents
            assert len({block for block, _, _ in blocks}) == len(blocks) and set(blocks.values()) <= {16}


def same(one: GroupedBatch, other: GroupedBatch) -> bool:
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_ranks_together_see_the_global_batch(corpus):
    loader = stream_of(corpus, rows=8)
    for step in (0, 5):
        alone = loader.micro_batches(step, micro_rows=1)
        for world in (1, 2, 4, 8):
            seen = [None] * 8
            for rank in range(world):
                mine = loader.view(step, rank, world).rows
                assert len(mine) == 8 // world
                for row, batch in zip(mine, loader.micro_batches(step, rank, world, micro_rows=1), strict=True):
                    seen[row] = batch
            assert all(same(a, b) for a, b in zip(seen, alone, strict=True))


def test_a_restart_at_any_step_goes_on_with_the_same_batches(corpus):
    running = stream_of(corpus)
    undisturbed = [running.micro_batches(step, 1, 2, 2) for step in range(12)]
    for start in range(12):
        again = stream_of(corpus)
        for step in range(start, 12):
            assert all(same(a, b) for a, b in zip(again.micro_batches(step, 1, 2, 2), undisturbed[step], strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("long", ["split", "truncate"])
def test_counts_are_the_labels_of_the_global_batch(corpus, vocabulary, long, dropout):
    loader = stream_of(corpus, long=long, sequence=64, guidance_dropout=dropout)
    for step in range(10):
        found = Counter(dict.fromkeys([*vocabulary.modalities, "diffusion"], 0))
        for batch in loader.micro_batches(step, micro_rows=2):
            for m in batch.label_modality_T[batch.label_row_M].tolist():
                found[vocabulary.modalities[m]] += 1
            found["diffusion"] += len(batch.latent_row_N)
        assert loader.view(step).counts == found
    assert found["image"] == 0 and min(found[m] for m in ("text", "speech", "diffusion")) > 0


def test_dropped_captions_change_no_token_and_follow_the_document_over_ranks(corpus):
    whole, dropped = stream_of(corpus), stream_of(corpus, guidance_dropout=0.5)
    documents = 0
    for step in range(6):
        kept, cut = (loader.micro_batches(step, micro_rows=8)[0] for loader in (whole, dropped))
        assert all(torch.equal(getattr(kept, f), getattr(cut, f)) for f in ("ids_T", "place_T", "time_N", "noise_ND"))
        documents += int(cut.document_T.max() - kept.document_T.max())
        rows = {}
        for rank in range(4):
            mine = dropped.view(step, rank, 4).rows
            rows |= dict(zip(mine, dropped.micro_batches(step, rank, 4), strict=True))
        positions = [in_sequence(rows[row], rows[row].position_T) for row in range(8)]
        assert in_sequence(cut, cut.position_T).tolist() == np.concatenate(positions).tolist()
    assert documents > 10


def test_sizes_that_do_not_divide_are_refused_with_those_that_do(corpus):
    loader = stream_of(corpus, rows=12)
    with pytest.raises(
        UserError, match=r"12 rows do not divide into 2 workers x 4 micro_rows; use micro_rows 1, 2, 3, 6"
    ):
        loader.micro_batches(0, 0, 2, 4)
    with pytest.raises(UserError, match=r"12 rows do not divide into 5 workers x 1 micro_rows; use rows 10 or 15"):
        loader.micro_batches(0, 0, 5, 1)


def test_the_loop_of_the_documentation_runs(discrete_dataset, monkeypatch, tmp_path):
    text = (Path(__file__).parents[2] / "docs/stream.md").read_text("utf-8")
    (code,) = (block for block in text.split("```python\n")[1:] if "step_of_yours" in block)
    code = code.split("```")[0].replace("range(1000)", "range(3)").replace("sequence=2048", "sequence=256")
    (tmp_path / "tokens").symlink_to(discrete_dataset)
    monkeypatch.chdir(tmp_path)
    seen: list[GroupedBatch] = []
    exec(code, {"step_of_yours": seen.append, "rank": 1, "world": 4})
    assert [(batch.rows, batch.sequence) for batch in seen] == [(8, 256)] * 6


def drawn(loader: Loader, steps: int) -> dict[tuple, tuple[int, bytes]]:
    """(document, epoch, position) of each picture -> (its one diffusion step, its noise)."""
    found = {}
    for step in range(steps):
        chosen = loader.order.rows_of(step)
        for row, batch in zip(chosen.rows, loader.micro_batches(step), strict=True):
            block_N = batch.block_T[batch.latent_row_N]
            for block in block_N.unique().tolist():
                mine = block_N == block
                (time,) = batch.time_N[mine].unique().tolist()
                first = batch.latent_row_N[mine][0]
                piece = row[int(batch.document_T[first]) - int(batch.document_T[batch.document_T > 0].min())]
                number = int(chosen.documents.number_D[piece.document])
                found[(number, *piece[1:], int(batch.position_T[first]))] = time, batch.noise_ND[mine].numpy().tobytes()
    return found


def test_noise_is_a_function_of_seed_epoch_document_and_span(corpus):
    # Another packing of the same documents (other row length, other weights) draws the same noise for the same picture.
    one, two = drawn(stream_of(corpus), 60), drawn(stream_of(corpus, sequence=150, long="truncate"), 60)
    common = one.keys() & two.keys()
    assert len(common) > 200 and len({epoch for *_, epoch, _ in common}) > 1
    assert all(one[key] == two[key] for key in common)
    assert len({noise for _, noise in one.values()}) == len(one)
    other = drawn(stream_of(corpus, seed=1), 60)
    assert not {noise for _, noise in one.values()} & {noise for _, noise in other.values()}


def test_noise_is_standard_normal_and_times_are_uniform_but_small_before_a_caption(corpus):
    found = drawn(stream_of(corpus, steps=1000, caption_first=0.5), 120)
    values = np.concatenate([np.frombuffer(noise, np.float32) for _, noise in found.values()])
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    flipped = np.array([time for (_, _, _, flip, _, _), (time, _) in found.items() if flip])
    others = np.array([time for (_, _, _, flip, _, _), (time, _) in found.items() if not flip])
    assert len(flipped) > 200 and flipped.max() < 500 and abs(flipped.mean() - 250) < 40
    assert others.max() > 900 and abs(others.mean() - 500) < 40


def test_only_a_picture_that_leads_its_caption_gets_small_times(vocabulary, documents, write_dataset):
    emoji = [d for d in documents if d.source == "emoji"]
    led = [dataclasses.replace(d, source="led", spans=d.spans[::-1]) for d in emoji[:60]]
    pairs = [dataclasses.replace(d, source="pairs", spans=(d.spans[1], d.spans[1])) for d in emoji[60:]]
    for made, highest in ((led, 500), (pairs, 1000)):
        loader = stream_of(Corpus.open([write_dataset(made)]), caption_first=0.0)
        times = [time for (*_, position), (time, _) in drawn(loader, 60).items() if position == 2]  # after bos, begin
        assert 0.9 * highest < max(times) < highest


def test_held_out_batches_are_one_fixed_pass(dataset, vocabulary):
    corpus = Corpus.open([dataset], "heldout", 0.3)
    towers = Towers.of(vocabulary, {})

    def batches(limit=None, **changes):
        return list(heldout_loader(corpus, vocabulary, towers, config(**changes), 1000).once(4, limit))

    found = batches()
    assert all(batch.rows == 4 for batch in found)
    assert sum(int((b.ids_T == vocabulary.bos).sum()) for b in found) == len(everything(corpus))
    changed = batches(weights={"emoji": 1}, guidance_dropout=1.0)
    assert all(same(a, b) for a, b in zip(found, changed, strict=True))
    assert all(same(a, b) for a, b in zip(batches(limit=8), found[:2], strict=True))
    (filled,) = batches(limit=3)
    assert filled.rows == 4 and (in_sequence(filled, filled.document_T)[-200:] == 0).all()
    nothing = Corpus.open([dataset], "heldout", 0.0)
    assert list(heldout_loader(nothing, vocabulary, towers, config(), 1000).once(4)) == []


def test_a_model_that_knows_more_modalities_reads_data_with_fewer(vocabulary, documents, write_dataset):
    speeches = [d for d in documents if d.source == "speeches"]
    specs = {"text": vocabulary.tokenizers["text"]}
    corpus = Corpus.open([write_dataset(speeches, modalities=("text",), specs=specs)])
    loader = Loader(Order(corpus, config(), 4, 0), vocabulary, Towers.of(vocabulary, {}), Noise(0, 1000))
    (batch,) = loader.micro_batches(0, micro_rows=4)
    assert batch.counts == (800, 0, 0) and batch.latents_ND.shape == (0, 12)
    assert loader.view(0).counts.keys() == {"text", "image", "speech", "diffusion"}


def test_hashes_of_rows_add_up_however_rows_are_shared_and_towers_are_cut(corpus):
    for step in (0, 5):
        found = set()
        for world, micro_rows, towers in (
            (1, 8, {}),
            (1, 1, {}),
            (2, 2, {"image": "text"}),
            (4, 2, {"speech": "text"}),
        ):
            loader, total = stream_of(corpus, rows=8, towers=towers), 0
            for rank in range(world):
                mine = loader.view(step, rank, world).rows
                for i, batch in enumerate(loader.micro_batches(step, rank, world, micro_rows)):
                    total += hash_of_rows(batch, mine[i * micro_rows : (i + 1) * micro_rows])
            found.add(wrapped(total))
        assert len(found) == 1


def test_a_hash_of_rows_depends_on_every_value_and_the_rows_numbers(corpus):
    (batch,) = stream_of(corpus, rows=16).micro_batches(0, micro_rows=16)
    rows = range(16)
    hashes = [hash_of_rows(batch, numbers) for numbers in (rows, [1, 0, *rows[2:]], [16, *rows[1:]])]
    for name in ("ids_T", "position_T", "labels_T", "latents_ND", "noise_ND", "time_N"):
        for at in (0, -1):
            values = getattr(batch, name).clone()
            values.view(-1)[at] += 1
            hashes.append(hash_of_rows(dataclasses.replace(batch, **{name: values}), rows))
    assert len(set(hashes)) == len(hashes) == 15
