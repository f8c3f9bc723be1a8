"""Damage of any bit is found by `verify` and refused when read; counts and commits are held against the manifest."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from one_shard import manifest_of

from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.pipeline.dataset.commits import Output
from motet.pipeline.dataset.counts import Counts
from motet.pipeline.dataset.gc import orphans
from motet.pipeline.dataset.header import DamagedShard, ShardHeader
from motet.pipeline.dataset.manifest import Manifest, ShardEntry
from motet.pipeline.dataset.seal import seal, unseal
from motet.pipeline.dataset.shard import Document, Shard, ShardWriter
from motet.pipeline.dataset.store import store_of
from motet.pipeline.dataset.verify import Verification, _parallel, strangers
from motet.pipeline.job.job import tokenize_corpus
from motet.tokenizers.contract import Tokens


def problems(manifest: Manifest, workers: int = 1) -> list[str]:
    check = Verification(manifest, workers)
    return [problem for _, found in check.shards() for problem in found] + check.whole()


def test_every_flipped_bit_is_found(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    manifest = Manifest.load(dataset)
    (tmp_path / "manifest.json").write_text(manifest.to_text(), encoding="utf-8")
    raw = (dataset / "shards/a.arrow").read_bytes()
    copy, random = tmp_path / "shards/a.arrow", np.random.default_rng(1)
    spots = [*random.integers(0, len(raw), 60).tolist(), 0, 9, len(raw) - 1, len(raw) - 20]
    for at in spots:
        damaged = bytearray(raw)
        damaged[at] ^= 1 << int(random.integers(8))
        copy.write_bytes(damaged)
        found = problems(Manifest.load(tmp_path))
        assert found and all("shards/a.arrow" in problem for problem in found), at
    copy.write_bytes(raw[:-1000])
    assert problems(Manifest.load(tmp_path))
    copy.unlink()
    assert problems(Manifest.load(tmp_path)) == ["shards/a.arrow: is missing"]
    copy.write_bytes(raw)
    (tmp_path / "shards/b.arrow").write_bytes(raw)
    assert problems(Manifest.load(tmp_path)) == [] and strangers(manifest) == []
    assert strangers(Manifest.load(tmp_path)) == ["shards/b.arrow"]


def test_every_flipped_bit_beside_the_data_is_refused_by_name(dataset: Path, tmp_path: Path) -> None:
    """Lengths, types and offsets of a small file, which Arrow trusts: unchecked they give other tokens or end Python."""
    (tmp_path / "shards").mkdir()
    file, specs = tmp_path / "shards/small.arrow", Manifest.load(dataset).tokenizers
    writer = ShardWriter(file, ShardHeader(tuple(specs), specs, "h"), ["a"])
    counts = Counts({m: spec.codebooks for m, spec in specs.items()})
    for i in range(4):
        spans = (("text", Tokens((3,), ids=np.arange(3))), ("speech", Tokens((1, 2), ids=np.arange(2))))
        writer.write(document := Document(bytes([i]) * 16, "a", spans))
        counts.document(document)
    summary = writer.close()
    manifest = manifest_of(tmp_path, "shards/small.arrow", summary, specs, counts)
    assert problems(manifest) == []
    raw, random = file.read_bytes(), np.random.default_rng(0)
    for at in random.permutation(len(raw))[:700].tolist():
        damaged = bytearray(raw)
        damaged[at] ^= 1 << int(random.integers(8))
        file.unlink()  # never under the feet of a mapping
        file.write_bytes(damaged)
        with pytest.raises(DamagedShard, match=r"small\.arrow: is damaged"):
            manifest.open_shard(manifest.shards[0])
        assert any("small.arrow" in problem for problem in problems(manifest)), at


def test_verify_finds_wrong_ids_and_broken_spans(dataset: Path, tmp_path: Path) -> None:
    specs = Manifest.load(dataset).tokenizers
    header = ShardHeader(tuple(specs), specs, "h")
    wrong = [
        (("speech", Tokens((1, 2), ids=np.array([3, 16]))), "codebook 1, is 16"),
        (("speech", Tokens((3, 2), ids=np.array([1, 2]))), "not as many ids as its spans"),
        (("image", Tokens((1, 1), latents=np.array([[np.nan, 0, 0]], np.float16))), "not a finite number"),
    ]
    for i, (one, message) in enumerate(wrong):
        writer = ShardWriter(tmp_path / f"{i}.arrow", header, ["a"])
        writer.write(Document(bytes(16), "a", (one,)))
        writer.close()
        with pytest.raises(DamagedShard, match=message):
            Shard(tmp_path / f"{i}.arrow").batch(0)


@pytest.fixture
def tokenized(corpus: Path, configure, tmp_path: Path) -> Path:
    with open(corpus / "text.jsonl", "a", encoding="utf-8") as rows:
        rows.write("no json\n")
    tokenize_corpus(configure(), corpus, tmp_path / "out")
    return tmp_path / "out"


def test_a_tokenized_corpus_is_sound_with_its_commits_or_without(tokenized: Path) -> None:
    assert problems(Manifest.load(tokenized)) == []
    (tokenized / "commits").rename(tokenized.parent / "elsewhere")
    assert problems(Manifest.load(tokenized)) == []


def test_a_manifest_that_says_something_else_is_found(tokenized: Path) -> None:
    text = (tokenized / "manifest.json").read_text(encoding="utf-8")
    changes = [
        (lambda m, s: s["tokens"].__setitem__("image", s["tokens"]["image"] + 1), "tokens: "),
        (lambda m, s: s["longest"][0].__setitem__(0, 10**6), "longest: "),
        (lambda m, s: s.__setitem__("sketch", "0" * 16 + s["sketch"][16:]), "sketch: "),
        (lambda m, s: m["lengths"][s["source"]].__setitem__("1", 7), "its lengths are not the sum"),
        (lambda m, s: m["span_lengths"][s["source"]].clear(), "its span_lengths are not the sum"),
        (lambda m, s: s.__setitem__("rows", s["rows"] - 1), "sound documents, the manifest says"),
        (lambda m, s: s["rejects"].__setitem__("not-json", 3), "rejects/"),
        (lambda m, s: s["inputs"][0].__setitem__("size", 1), "no commit says the same"),
        (lambda m, s: m["codebooks"]["image"][0].__setitem__(0, 10**6), "its codebooks are not the sum"),
        (lambda m, s: m["sources"].reverse(), "its sources are"),
        (lambda m, s: s.__setitem__("partition", 7), "without a gap"),
        (lambda m, s: m["tokenizers"]["image"].__setitem__("hash", "0"), "not by the manifest's tokenizer"),
    ]
    index = json.loads((tokenized / "commits.json").read_text(encoding="utf-8"))
    for change, message in changes:
        changed = unseal(text.encode())
        change(changed, changed["shards"][0])
        (tokenized / "manifest.json").write_bytes(seal(json.dumps(changed)))
        with pytest.raises(UserError, match=r"manifest\.json is not what was written"):
            Manifest.load(tokenized)
        index["manifest"] = content_hash((tokenized / "manifest.json").read_bytes())
        (tokenized / "commits.json").write_text(json.dumps(index), encoding="utf-8")
        assert any(message in problem for problem in problems(Manifest.load(tokenized))), message
    (tokenized / "commits.json").unlink()
    bare = json.dumps(unseal(text.encode()))
    wrong = [seal(bare.replace(name, name + "z", 1)).decode() for name in ("shards", "rows", "sketch")]
    for damaged in (*wrong, text.replace(": 1", ": 2", 1), bare, text[:-9], text + " ", "[]", ""):
        (tokenized / "manifest.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(UserError, match=r"manifest\.json: (is damaged|has fields that this motet does not know)"):
            Manifest.load(tokenized)


def test_a_damaged_commit_never_gets_into_a_manifest(tokenized: Path, corpus: Path, configure) -> None:
    """Not even where `verify` cannot count again, in hashes of inputs: without a manifest, commits are all there is."""
    before = {name: (tokenized / name).read_bytes() for name in ("manifest.json", "commits.json")}
    commit, manifest = next((tokenized / "commits").glob("text-*")), Manifest.load(tokenized)
    raw = commit.read_bytes()
    begin = raw.index(b'"inputs"')
    for at in range(begin, raw.index(b"]", begin)):
        commit.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert Output(manifest.store)._commit(commit.name) is None, at
    assert any(f"delete commits/{commit.name}" in problem for problem in problems(manifest))
    for name in before:
        (tokenized / name).unlink()
    assert tokenize_corpus(configure(), corpus, tokenized).done == 1
    assert {name: (tokenized / name).read_bytes() for name in before} == before and commit.read_bytes() == raw


def test_a_damaged_shard_is_made_again_after_it_was_deleted(tokenized: Path, corpus: Path, configure) -> None:
    before = (tokenized / "manifest.json").read_bytes()
    file = next((tokenized / "shards").glob("text-*"))
    raw = file.read_bytes()
    file.write_bytes(raw[:2000] + bytes([raw[2000] ^ 1]) + raw[2001:])
    assert any(file.name in problem and "delete the file" in problem for problem in problems(Manifest.load(tokenized)))
    file.unlink()
    assert tokenize_corpus(configure(), corpus, tokenized).done == 1
    assert (tokenized / "manifest.json").read_bytes() == before and file.read_bytes() == raw


def test_processes_tell_the_same_in_the_same_order(tokenized: Path) -> None:
    files = sorted((tokenized / "shards").iterdir())
    for file in files[1:4]:
        raw = file.read_bytes()
        file.unlink()
        file.write_bytes(raw[:600] + bytes([raw[600] ^ 4]) + raw[601:])
    files[4].unlink()
    manifest = Manifest.load(tokenized)
    one, three = Verification(manifest), Verification(manifest, 3)
    told = list(one.shards())
    assert list(three.shards()) == told and three.whole() == one.whole()
    assert [entry for entry, _ in told] == list(manifest.shards) and sum(bool(found) for _, found in told) == 4


def _dies_of(name: str, entry: ShardEntry) -> tuple[list[str], None]:
    if entry.file == name:
        os._exit(9)
    return [entry.file], None


def test_a_shard_that_ends_its_process_is_named_and_the_others_are_checked(tokenized: Path) -> None:
    entries = Manifest.load(tokenized).shards
    for culprit in (entries[0], entries[3], entries[-1]):
        results = list(_parallel(partial(_dies_of, culprit.file), entries, 2))
        assert [found for (found,), _ in results if "ends the process" not in found] == [
            entry.file for entry in entries if entry is not culprit
        ]
        assert results[entries.index(culprit)][0][0].startswith(f"{culprit.file}: reading it ends the process")


def test_nothing_of_a_dataset_without_its_commits_is_an_orphan(tokenized: Path) -> None:
    (tokenized / "commits").rename(tokenized.parent / "elsewhere")
    (tokenized / "commits.json").unlink()
    with pytest.raises(UserError, match="copied without its commits"):
        orphans(store_of(tokenized), 0)


@pytest.mark.parametrize(
    ("table", "sources", "message"),
    [
        (("image", "speech", "text"), ("a", "a"), None),
        (("image", "speech", "text"), ("a", "b"), "record batch 0: documents of another source than a"),
        (("text", "image", "speech"), ("a", "a"), "a modality table of ('text', 'image', 'speech'), not its source's"),
    ],
)
def test_a_whole_shard_that_says_something_else_than_its_source_is_found(
    table: tuple[str, ...], sources: tuple[str, str], message: str | None, dataset: Path, tmp_path: Path
) -> None:
    """Its bytes, hashes and counts are all in order: training would mix it as another source, or under other names."""
    (tmp_path / "shards").mkdir()
    specs = Manifest.load(dataset).tokenizers
    writer = ShardWriter(tmp_path / "shards/small.arrow", ShardHeader(table, specs, "h"), ["a", "b"])
    counts = Counts({m: spec.codebooks for m, spec in specs.items()})
    for i, source in enumerate(sources):
        document = Document(bytes([i]) * 16, source, (("text", Tokens((3,), ids=np.arange(3))),))
        writer.write(document)
        counts.document(document)
    found = problems(manifest_of(tmp_path, "shards/small.arrow", writer.close(), specs, counts))
    assert found == [] if message is None else len(found) == 1 and message in found[0], found


def test_a_shard_that_was_cut_and_rejects_that_are_gone_are_made_again(
    tokenized: Path, corpus: Path, configure
) -> None:
    """A commit alone is no proof that its files are whole."""
    before = (tokenized / "manifest.json").read_bytes()
    shard, rejects = next((tokenized / "shards").glob("text-*")), next((tokenized / "rejects").glob("text-*"))
    whole, quarantine = shard.read_bytes(), rejects.read_bytes()
    shard.unlink()
    shard.write_bytes(whole[: len(whole) // 2])
    assert tokenize_corpus(configure(), corpus, tokenized).done == 1
    assert shard.read_bytes() == whole
    rejects.unlink()
    assert tokenize_corpus(configure(), corpus, tokenized).done == 1
    assert rejects.read_bytes() == quarantine and (tokenized / "manifest.json").read_bytes() == before
