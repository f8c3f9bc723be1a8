import dataclasses
from pathlib import Path

import numpy as np
import pytest
from whole import everything

from motet.core.errors import UserError
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.shard import sample_id
from motet.trainer.config import DataConfig
from motet.trainer.data.corpus import Corpus, Documents
from motet.trainer.data.order import Order


def sample_ids(documents: Documents) -> list[bytes]:
    return [row.tobytes() for row in documents.sample_D2.astype(">u8")]


def test_every_document_is_found_with_its_length_and_source(dataset, documents):
    corpus = Corpus.open([dataset])
    assert corpus.modalities == ("text", "image", "speech")
    found = everything(corpus)
    assert len(found) == len(documents)
    by_id = {d.sample_id: d for d in documents}
    for i, id_ in enumerate(sample_ids(found)):
        document = by_id.pop(id_)
        tokens = sum(len(t) + (0 if modality == "text" else 2) for modality, t in document.spans)
        assert found.length_D[i] == 2 + tokens
        assert corpus.sources[found.source_D[i]] == document.source
        assert found.spans_D[i] == len(document.spans)
        assert found.captioned_D[i] == (document.source in ("emoji", "prompts"))


def test_spans_point_at_their_tokens_and_latents(dataset, documents):
    corpus = Corpus.open([dataset])
    chosen = np.random.default_rng(0).permutation(len(documents))[:150]
    found = corpus.read(chosen)
    assert found.number_D.tolist() == chosen.tolist()
    by_id = {d.sample_id: d for d in documents}
    for i, id_ in enumerate(sample_ids(found)):
        for n, (modality, tokens) in enumerate(by_id[id_].spans):
            span = found.span_D[i] + n
            at = slice(found.at_S[span], found.at_S[span] + found.length_S[span])
            assert corpus.modalities[found.modality_S[span]] == modality
            if tokens.ids is not None:
                np.testing.assert_array_equal(found.tokens_T[at], tokens.ids)
            else:
                np.testing.assert_array_equal(found.latents_VW[at], tokens.latents)
    outline = Documents.joined([corpus.outline(chosen[:70]), corpus.outline(chosen[70:])])
    for name in ("number_D", "sample_D2", "source_D", "length_D", "span_D", "spans_D", "modality_S", "length_S"):
        np.testing.assert_array_equal(getattr(outline, name), getattr(found, name))
    assert not len(outline.tokens_T) and not len(outline.latents_VW)


@pytest.mark.parametrize("holdout", [0.0, 0.1, 0.5])
def test_splits_are_disjoint_by_content_and_lose_nothing(dataset, documents, write_dataset, holdout):
    # The same emoji stand in a second dataset under another name: equal content must fall on the same side.
    copies = [
        dataclasses.replace(d, source="copy", sample_id=d.sample_id[:8] + sample_id("copy", str(i), [])[8:])
        for i, d in enumerate(documents)
        if d.source == "emoji"
    ]
    paths = [dataset, write_dataset(copies)]
    corpora = [Corpus.open(paths, split, holdout) for split in ("train", "heldout")]
    train, heldout = (everything(corpus) for corpus in corpora)
    assert sorted(sample_ids(train) + sample_ids(heldout)) == sorted(d.sample_id for d in [*documents, *copies])
    assert not {s[:8] for s in sample_ids(train)} & {s[:8] for s in sample_ids(heldout)}
    assert abs(len(heldout) / (len(documents) + len(copies)) - holdout) < 0.08
    assert corpora[0].sources == corpora[1].sources == ("copy", "emoji", "families", "prompts", "speeches")


def test_held_out_documents_are_those_whose_content_hash_is_low(dataset):
    for split, low in (("train", False), ("heldout", True)):
        found = everything(Corpus.open([dataset], split, 0.3))
        assert len(found) and all((int.from_bytes(s[:8], "big") / 2**64 < 0.3) == low for s in sample_ids(found))


def test_one_flipped_byte_stops_with_the_shards_name(write_dataset, documents):
    path = write_dataset(documents)
    shard = sorted((Path(path) / "shards").glob("emoji-*"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedShard, match=shard.name):
        everything(Corpus.open([path], "train", 0.1))


def test_a_missing_shard_stops_with_its_name(write_dataset, documents):
    path = write_dataset(documents)
    shard = next((Path(path) / "shards").glob("prompts-*"))
    shard.unlink()
    with pytest.raises(DamagedShard, match=shard.name):
        everything(Corpus.open([path], "train", 0.1))


def test_a_partition_whose_samples_were_all_rejected_has_no_shard(write_dataset, documents):
    path = write_dataset(documents)
    manifest = Manifest.load(path)
    lost = dataclasses.replace(manifest.shards[0], source="lost", file="", rows=0, hash="")
    more = dataclasses.replace(
        manifest,
        sources=(*manifest.sources, "lost"),
        tables={**manifest.tables, "lost": ["text"]},
        shards=(*manifest.shards, lost),
    )
    (Path(path) / "manifest.json").write_text(more.to_text())
    assert len(everything(Corpus.open([path]))) == len(documents)


def test_datasets_of_different_tokenizers_are_refused(dataset, documents, write_dataset):
    specs = Corpus.open([dataset]).tokenizers
    other = {**specs, "text": dataclasses.replace(specs["text"], hash="other")}
    with pytest.raises(UserError, match="text was encoded by bytes other"):
        Corpus.open([dataset, write_dataset(documents[:5], specs=other)])


def test_a_split_that_leaves_nothing_is_refused(write_dataset, documents):
    path = write_dataset(documents[:3])
    with pytest.raises(UserError, match=r"data.holdout: 0.9999 leaves no document"):
        Order(Corpus.open([path], "train", 0.9999), DataConfig(paths=[path], sequence=64), 4, 0).rows_of(0)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_documents_of_one_modality_alone_are_read(documents, write_dataset, modality):
    made = [
        dataclasses.replace(d, spans=tuple(span for span in d.spans if span[0] == modality))
        for d in documents
        if d.source == "emoji"
    ]
    found = everything(Corpus.open([write_dataset(made)]))
    by_id = {d.sample_id: d for d in made}
    stored = found.latents_VW if modality == "image" else found.tokens_T
    empty = found.tokens_T if modality == "image" else found.latents_VW
    assert len(found) == len(made) and len(empty) == 0
    for i, id_ in enumerate(sample_ids(found)):
        ((_, tokens),) = by_id[id_].spans
        at = slice(found.at_S[i], found.at_S[i] + found.length_S[i])
        np.testing.assert_array_equal(stored[at], tokens.latents if modality == "image" else tokens.ids)
