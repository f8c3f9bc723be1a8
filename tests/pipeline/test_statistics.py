"""Statistics against an independent count with bare pyarrow, packing against packing, pages against hostile names."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.pipeline import stats_page, view
from motet.pipeline.dataset_tokenizers import dataset_tokenizers
from motet.pipeline.job import tokenize_corpus
from motet.pipeline.manifest import Manifest
from motet.pipeline.statistics import MARKS, packing, statistics, table
from motet.tokenizers.errors import UserError


@pytest.fixture
def manifest(corpus: Path, configure, tmp_path: Path) -> Manifest:
    with open(corpus / "text.jsonl", "a", encoding="utf-8") as rows:
        rows.write('{"text": "<script>alert(1)</script> & so on"}\nno json <b>\n')
    return tokenize_corpus(configure(), corpus, tmp_path / "out").manifest


def test_counts_equal_an_independent_count(manifest: Manifest) -> None:
    tokens, documents, lengths, codes = Counter(), Counter(), Counter(), {}
    for file in sorted((manifest.folder / "shards").glob("*.arrow")):
        reader = pa.ipc.open_file(str(file))
        header = json.loads(reader.schema.metadata[b"motet"])
        for row in reader.read_all().to_pylist():
            documents[row["source"]] += 1
            begin = 0
            for end, code, shape in zip(row["span_end"], row["span_modality"], row["span_shape"], strict=True):
                modality = header["modalities"][code]
                assert np.prod(shape) == end - begin
                tokens[row["source"], modality] += end - begin
                books = len(header["tokenizers"][modality]["codebooks"])
                for i, id_ in enumerate(row["tokens"][begin:end]):
                    codes.setdefault((modality, i % books), Counter())[id_] += 1
                begin = end
            lengths[begin] += 1
    found = statistics(manifest)
    assert {(s, m): n for s, v in found.sources.items() for m, n in v["tokens"].items()} == tokens
    assert {s: v["documents"] for s, v in found.sources.items()} == documents
    assert found.lengths == lengths and found.documents == sum(documents.values()) == 50
    for book in found.codebooks:
        counts = np.array(list(codes[book.modality, book.index].values()), float)
        share = counts / counts.sum()
        assert book.used == len(counts) and book.perplexity == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert found.rejects == {"not-json": {"text": 1}} and found.rejected == 1
    json.dumps(found.to_json())
    table(found)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=120), st.sampled_from([16, 33, 64]))
def test_packing_counts_the_rows_that_best_fit_fills(lengths: list[int], sequence: int) -> None:
    rows, room = 0, []
    pieces = []
    for length in lengths:
        whole, rest = divmod(length + MARKS, sequence)
        rows += whole
        pieces += [rest] if rest else []
    for piece in sorted(pieces, reverse=True):
        fits = [i for i, free in enumerate(room) if free >= piece]
        if fits:
            room[min(fits, key=lambda i: room[i])] -= piece
        else:
            room.append(sequence - piece)
    found = packing(Counter(lengths), sequence)
    assert found.rows == rows + len(room)
    assert found.efficiency == pytest.approx(sum(n + MARKS for n in lengths) / (found.rows * sequence))


def test_pages_stand_alone_are_the_same_again_and_show_no_foreign_script(manifest: Manifest) -> None:
    page = stats_page.page(manifest, statistics(manifest))
    assert page == stats_page.page(manifest, statistics(manifest))
    documents = view.spread(manifest, 20)
    assert {d.source for d in documents} == set(manifest.sources) and len(documents) == 20
    shown = view.page(manifest, documents, dataset_tokenizers(manifest))
    hostile = next(d for d in manifest_documents(manifest) if "script" in decoded(manifest, d))
    shown += view.page(manifest, [hostile], dataset_tokenizers(manifest))
    for text in (page, shown):
        assert (
            "<script" not in text and "http://" not in text.replace("http://www.w3.org/", "") and "https://" not in text
        )
    assert "&lt;script&gt;" in shown and "data:audio/wav;base64," in shown and "data:image/png;base64," in shown


def manifest_documents(manifest: Manifest):
    for entry in manifest.shards:
        yield from manifest.open_shard(entry).documents()


def decoded(manifest: Manifest, document) -> str:
    tokenizer = dataset_tokenizers(manifest, ["text"])["text"]
    return " ".join(tokenizer.decode([t])[0] for m, t in document.spans if m == "text")


def test_a_document_is_found_by_the_beginning_of_its_id(manifest: Manifest) -> None:
    one = view.spread(manifest, 1)[0]
    assert view.pick(manifest, [one.sample_id.hex()[:12]])[0].sample_id == one.sample_id
    with pytest.raises(UserError, match="no document's id begins so"):
        view.pick(manifest, ["zz"])
    with pytest.raises(UserError, match="give more of the id"):
        view.pick(manifest, [""])


def test_changed_weights_are_refused(manifest: Manifest, tools: Path, tmp_path: Path) -> None:
    config = (manifest.folder / "tokenize.yaml").read_text(encoding="utf-8")
    other = tmp_path / "bpe"
    other.mkdir()
    data = json.loads((tools / "bpe/tokenizer.json").read_text(encoding="utf-8"))
    merge = data["model"]["merges"].pop()
    data["model"]["vocab"].pop(merge.replace(" ", "") if isinstance(merge, str) else "".join(merge))
    (other / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    (manifest.folder / "tokenize.yaml").write_text(config.replace(str(tools / "bpe"), str(other)), encoding="utf-8")
    with pytest.raises(UserError, match="has changed since"):
        dataset_tokenizers(manifest)
