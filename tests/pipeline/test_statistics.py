"""Statistics against an independent count with bare pyarrow, packing against packing, the page against hostile names."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.pipeline.dataset import rejects, stats_page
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.statistics import MARKS, packing, quantile, statistics, table
from motet.pipeline.job.job import tokenize_corpus


@pytest.fixture
def manifest(corpus: Path, configure, tmp_path: Path) -> Manifest:
    with open(corpus / "text.jsonl", "a", encoding="utf-8") as rows:
        rows.write('{"text": "<script>alert(1)</script> & so on"}\nno json <b>\n')
    return tokenize_corpus(configure(), corpus, tmp_path / "out").manifest


def test_counts_equal_an_independent_count(manifest: Manifest) -> None:
    tokens, documents, lengths, codes = Counter(), Counter(), Counter(), {}
    for file in sorted((manifest.store.path / "shards").glob("*.arrow")):
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
@given(st.lists(st.integers(2, 92), min_size=1, max_size=120), st.sampled_from([16, 33, 64]))
def test_packing_counts_the_rows_that_best_fit_fills(lengths: list[int], sequence: int) -> None:
    rows, room = 0, []
    pieces = []
    for length in lengths:
        whole, rest = divmod(length, sequence)
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
    assert found.efficiency == pytest.approx(sum(lengths) / (found.rows * sequence))


def test_marks_round_documents_and_media_take_room(manifest: Manifest) -> None:
    lengths = Counter()
    for entry in manifest.shards:
        for document in manifest.open_shard(entry).documents() if entry.rows else ():
            marks = MARKS * (1 + sum(modality != "text" for modality, _ in document.spans))
            lengths[sum(len(tokens) for _, tokens in document.spans) + marks] += 1
    for sequence, found in zip((64, 1000), statistics(manifest, (64, 1000)).packing, strict=True):
        assert found == packing(lengths, sequence)

    entry = next(e for e in manifest.shards if e.source == "mixed")  # the first document has one more picture
    more = replace(entry, spans={**entry.spans, "image": entry.spans["image"] + 1})
    (found,) = statistics(replace(manifest, sources=("mixed",), shards=(more,)), (1 << 20,)).packing
    tokens = sum(n * count for n, count in manifest.lengths["mixed"].items())
    assert found.efficiency * (1 << 20) == pytest.approx(tokens + MARKS * (entry.rows + more.spans["image"]))


def test_quantiles() -> None:
    assert [quantile({10: 1, 20: 2, 30: 1}, share) for share in (0.25, 0.5, 0.75, 0.76, 1)] == [10, 20, 20, 30, 30]
    assert quantile({}, 0.5) == 0


def test_the_page_stands_alone_is_the_same_again_and_tells_the_numbers(manifest: Manifest) -> None:
    found = statistics(manifest)
    page = stats_page.page(manifest, found)
    assert page == stats_page.page(Manifest.load(manifest.store.path), statistics(manifest))
    standing_alone(page)
    assert f"<b>{sum(found.tokens.values()):,}</b>" in page and "not-json" in page and "text.jsonl@" in page
    for histogram, noun in ((found.lengths, "documents"), *((h, f"{m} spans") for m, h in found.span_lengths.items())):
        bars = re.findall(rf"tokens: ([\d,]+) {noun}</title>", page)
        assert sum(int(bar.replace(",", "")) for bar in bars) == sum(histogram.values())


def test_hostile_names_stay_text(manifest: Manifest) -> None:
    name = '"><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac'
    entry = replace(manifest.shards[0], source=name, rejects={name: 1}, spans={name: 3}, tokens={name: 9})
    hostile = replace(
        manifest,
        sources=(name,),
        modalities=(name,),
        shards=(entry,),
        tokenizers={name: replace(manifest.tokenizers["text"], name=name, modality=name)},
        codebooks={name: manifest.codebooks["text"]},
        lengths={name: {9: 1}},
        span_lengths={name: {name: {3: 3}}},
    )
    quarantine = manifest.store.path / hostile.shards[0].rejects_file
    quarantine.write_bytes(rejects.to_bytes(name, [rejects.Reject(name, name, name, "")], False))
    page = stats_page.page(hostile, statistics(hostile))
    standing_alone(page)
    assert page.count("&lt;script&gt;") >= 8


def test_a_dataset_without_documents_has_a_page(manifest: Manifest) -> None:
    empty = replace(
        manifest, shards=(), codebooks={m: [[0] * 8] for m in manifest.codebooks}, lengths={}, span_lengths={}
    )
    found = statistics(empty)
    table(found)
    assert found.documents == 0 and {p.rows for p in found.packing} == {0}
    standing_alone(stats_page.page(empty, found))


def standing_alone(page: str) -> None:
    """No element that runs, and no address that is fetched."""
    parser = Elements()
    parser.feed(page)
    assert not parser.names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all(value.startswith("data:") for name, value in parser.attributes if name in ("src", "href"))
    assert not [name for name, _ in parser.attributes if name.startswith("on")]


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
