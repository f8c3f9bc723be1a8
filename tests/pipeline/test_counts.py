"""Counting while writing against plain counting; sketches against the truth; packed counts and sums against themselves."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.pipeline.dataset import counts as counting
from motet.pipeline.dataset.counts import Counts
from motet.pipeline.dataset.shard import Document
from motet.pipeline.dataset.sketch import K, Sketch, duplicates
from motet.pipeline.dataset.totals import Sums, Totals, pack, unpack
from motet.tokenizers.contract import Tokens

SIZES = {"text": (50,), "speech": (4, 6)}


def documents(random: np.random.Generator, n: int) -> list[Document]:
    found = []
    for _ in range(n):
        spans = []
        for _ in range(int(random.integers(0, 4))):
            length = int(random.integers(0, 9))
            match random.integers(3):
                case 0:
                    spans.append(("text", Tokens((length,), ids=random.integers(0, 50, length).astype(np.int32))))
                case 1:
                    ids = random.integers(0, (4, 6), (length, 2)).astype(np.int32)
                    spans.append(("speech", Tokens((length, 2), ids=ids.ravel())))
                case _:
                    spans.append(("image", Tokens((length,), latents=np.zeros((length, 3), np.float16))))
        identity = random.integers(0, 40).item().to_bytes(8, "big") + random.bytes(8)
        found.append(Document(identity, "s", tuple(spans), str(random.choice(["", "de", "en"]))))
    return found


@pytest.mark.parametrize("flush", [1, 300, 1 << 19])
def test_what_is_counted_is_what_is_there(monkeypatch: pytest.MonkeyPatch, flush: int) -> None:
    monkeypatch.setattr(counting, "FLUSH", flush)
    for seed, n in enumerate((0, 1, 2, 150)):
        given_documents, counts = documents(np.random.default_rng(seed), n), Counts(SIZES)
        for document in given_documents:
            counts.document(document)
        length = {d.sample_id: sum(len(t) for _, t in d.spans) for d in given_documents}
        told, sums = counts.told(), Sums()
        sums.add("s", counts.totals)
        spans: dict[str, Counter] = {}
        books: dict[tuple[str, int], Counter] = {}
        for modality, span in (one for d in given_documents for one in d.spans):
            spans.setdefault(modality, Counter())[len(span)] += 1
            for i, id_ in enumerate([] if span.ids is None else span.ids.tolist()):
                books.setdefault((modality, i % len(SIZES[modality])), Counter())[id_] += 1
        assert sums.lengths.get("s", {}) == Counter(length.values())
        assert sums.span_lengths.get("s", {}) == spans
        assert told["spans"] == {m: h.total() for m, h in sorted(spans.items())}
        assert told["tokens"] == {m: sum(k * n for k, n in h.items()) for m, h in sorted(spans.items())}
        for modality, found in sums.codebooks.items():
            assert [len(book) for book in found] == list(SIZES[modality])
        assert {
            (m, k): Counter({i: n for i, n in enumerate(book) if n})
            for m, found in sums.codebooks.items()
            for k, book in enumerate(found)
        } == books
        longest = sorted(((n, sample.hex()) for sample, n in length.items()), key=lambda one: (-one[0], one[1]))
        assert list(told["longest"]) == longest[:3]
        languages: dict[str, tuple[int, int]] = {}
        for d in given_documents:
            if d.language:
                n, tokens = languages.get(d.language, (0, 0))
                languages[d.language] = n + 1, tokens + length[d.sample_id]
        assert counts.languages == dict(sorted(languages.items()))
        contents = Counter(d.sample_id[:8] for d in given_documents)
        assert told["sketch"] == b"".join(sorted(contents)).hex()
        assert told["repeated"] == {content.hex(): n for content, n in sorted(contents.items()) if n > 1}


@given(st.lists(st.integers(0, 2**40) | st.integers(0, 300), max_size=50))
def test_packed_counts_come_back(numbers: list[int]) -> None:
    assert unpack(pack(np.array(numbers, np.int64))).tolist() == numbers


@pytest.mark.parametrize("text", ["", "3x1:", "1x4:AAAA", "1x4", "1xa:", "8x1000000:KLUv/Q=="])
def test_what_is_not_packed_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        unpack(text)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99))
def test_sums_are_the_same_in_any_order(seed: int) -> None:
    random, parts = np.random.default_rng(seed), []
    for i in range(4):
        counts = Counts(SIZES)
        for document in documents(random, 20):
            counts.document(document)
        counts.documents(bytes(16), np.array([70_000 + i]))  # too long for the dense part
        parts.append((f"s{i % 2}", Totals.from_json(counts.totals.to_json())))
    one, other = Sums(), Sums()
    for source, totals in parts:
        one.add(source, totals)
    for source, totals in reversed(parts):
        other.add(source, totals)
    assert (other.lengths, other.span_lengths, other.codebooks) == (one.lengths, one.span_lengths, one.codebooks)


def sketched(shards: list[np.ndarray]) -> tuple[float, bool, int]:
    parts = []
    for hashes in shards:
        sketch = Sketch()
        for some in np.array_split(hashes, 3):
            sketch.add(some)
        parts.append((len(hashes), sketch.hashes, sketch.repeated))
    found = duplicates(parts)
    return found.share, found.exact, found.hashes


def test_small_shards_tell_duplicates_exactly() -> None:
    shards = [np.array([1, 2, 3, 1], np.uint64), np.array([3, 4], np.uint64), np.array([], np.uint64)]
    assert sketched(shards) == (pytest.approx(2 / 6), True, 6)
    many = np.repeat(np.arange(K, dtype=np.uint64), 5)  # many documents, but no more contents than are kept
    assert sketched([many, many]) == (pytest.approx(1 - K / 640), True, 640)
    assert sketched([]) == (0.0, True, 0)


def test_estimates_centre_on_the_truth_whatever_the_shards() -> None:
    """Duplicates within shards and across them, shards of very different sizes, one content that is everywhere."""
    random, errors, sizes = np.random.default_rng(0), [], (70, 300, 1000, 5000, 5000, 20_000)
    for _ in range(150):
        contents = random.integers(0, 2**64, 24_000, np.uint64)
        shards = [random.choice(contents, size) for size in sizes]
        shards.append(np.concatenate((np.repeat(contents[:1], 100), contents[1:900])))
        truth = 1 - len(np.unique(np.concatenate(shards))) / sum(map(len, shards))
        share, exact, hashes = sketched(shards)
        assert not exact and hashes > K
        errors.append(share - truth)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / len(errors) ** 0.5 + 0.005 and np.std(errors) < 0.06


def test_a_sketch_does_not_depend_on_how_it_was_added() -> None:
    hashes = np.random.default_rng(1).integers(0, 3000, 5000, np.uint64)
    whole, parts = Sketch(), Sketch()
    whole.add(hashes)
    for some in np.array_split(hashes, 77):
        parts.add(some)
    contents = Counter(hashes.tolist())
    least = sorted(contents)[:K]
    assert whole.hashes == parts.hashes == "".join(f"{h:016x}" for h in least)
    assert whole.repeated == parts.repeated == {f"{h:016x}": contents[h] for h in least if contents[h] > 1}
