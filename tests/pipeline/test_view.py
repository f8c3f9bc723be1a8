"""Documents decoded back: what the page shows is what the tokenizers say, found by id, safe from what the corpus says."""

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motet.core.errors import UserError
from motet.pipeline.dataset import view
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.shard import Document
from motet.pipeline.dataset.tokenizers import dataset_tokenizers
from motet.pipeline.job.job import tokenize_corpus
from motet.tokenizers.contract import Tokenizer, Tokens


@pytest.fixture
def manifest(corpus: Path, configure, tmp_path: Path) -> Manifest:
    with open(corpus / "text.jsonl", "a", encoding="utf-8") as rows:
        rows.write('{"text": "<script>alert(1)</script> & so on"}\n')
    return tokenize_corpus(configure(), corpus, tmp_path / "out").manifest


def everything(manifest: Manifest) -> list[Document]:
    return [d for entry in manifest.shards if entry.rows for d in manifest.open_shard(entry).documents()]


def test_spread_takes_from_every_source_and_never_twice(manifest: Manifest) -> None:
    for count in (1, 3, 4, 20, 1000):
        found = view.spread(manifest, count)
        ids = [d.sample_id for d in found]
        assert len(set(ids)) == len(ids) and ids == [d.sample_id for d in view.spread(manifest, count)]
        assert len(found) <= count and (count < 4 or {d.source for d in found} == set(manifest.sources))
    assert {d.sample_id for d in found} == {d.sample_id for d in everything(manifest)}


def test_the_page_shows_what_the_tokenizers_decode(manifest: Manifest) -> None:
    tokenizers = dataset_tokenizers(manifest)
    documents = view.spread(manifest, 12)
    page = view.page(manifest, documents, tokenizers)
    assert page == view.page(manifest, view.spread(manifest, 12), tokenizers)
    media = re.findall(r'src="data:(image/png|audio/wav);base64,([^"]+)"', page)
    expected = []
    for document in documents:
        assert document.sample_id.hex() in page
        for modality, tokens in document.spans:
            tokenizer = tokenizers[modality]
            if modality != "text":
                data = tokenizer.dump(tokenizer.decode([tokens])[0])
                expected.append((tokenizer.spec.media_type, base64.b64encode(data).decode()))
    assert media == expected and {kind for kind, _ in media} == {"image/png", "audio/wav"}
    Image.open(io.BytesIO(base64.b64decode(next(data for kind, data in media if kind == "image/png")))).verify()


def test_hostile_text_stays_text(manifest: Manifest) -> None:
    tokenizers = dataset_tokenizers(manifest, ["text"])
    texts = [d for d in everything(manifest) if d.source == "text"]
    page = view.page(manifest, texts, tokenizers)
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


class Plugin(Tokenizer):
    """Stands for a plug-in of any media type."""

    modality = "text"

    def __init__(self, manifest: Manifest, media_type: str):
        self.spec = replace(manifest.tokenizers["text"], media_type=media_type)

    def load(self, data: bytes) -> bytes:
        return data

    def encode(self, samples: Sequence[bytes]) -> list[Tokens]:
        return [Tokens((len(s),), ids=np.frombuffer(s, np.uint8).astype(np.int32)) for s in samples]

    def decode(self, tokens: Sequence[Tokens]) -> list[bytes]:
        return [b"<b onclick=alert(1)>hello</b>"] * len(tokens)

    def dump(self, sample: bytes) -> bytes:
        return sample


@pytest.mark.parametrize(
    ("media_type", "shown"),
    [
        ("text/html", '<pre dir="auto">&lt;b onclick=alert(1)&gt;hello'),
        ("image/svg+xml", '<img alt="text, decoded" src="data:image/svg+xml;base64,'),
        ("audio/flac", '<audio controls src="data:audio/flac;base64,'),
        ("application/x-motion", 'href="data:application/x-motion;base64,'),
        ('video/x"><script>', 'href="data:video/x&#34;&gt;&lt;script&gt;;base64,'),
    ],
)
def test_plugged_in_media_are_shown_by_their_type(manifest: Manifest, media_type: str, shown: str) -> None:
    document = next(d for d in everything(manifest) if d.source == "text")
    page = view.page(manifest, [document], {"text": Plugin(manifest, media_type)})
    assert shown in page and "<script" not in page and "<b onclick" not in page


def test_a_document_is_found_by_the_beginning_of_its_id(manifest: Manifest) -> None:
    for one in everything(manifest):
        for digits in (32, 13, 12):
            (found,) = view.pick(manifest, [one.sample_id.hex()[:digits].upper()])
            assert found.sample_id == one.sample_id and found.source == one.source
            assert [len(tokens) for _, tokens in found.spans] == [len(tokens) for _, tokens in one.spans]
    two = [d.sample_id for d in everything(manifest)[3:20:9]]
    assert [d.sample_id for d in view.pick(manifest, [s.hex() for s in two])] == two


def test_an_id_that_is_not_there_names_the_nearest(manifest: Manifest) -> None:
    sample = everything(manifest)[7].sample_id.hex()
    wrong = sample[:20] + ("0" if sample[20] != "0" else "1")
    with pytest.raises(UserError, match=f"no document's id begins so; the nearest is {sample}"):
        view.pick(manifest, [wrong])
    with pytest.raises(UserError, match="50 documents' ids begin so"):
        view.pick(manifest, [""])
    for bad in ("zz", "0x1", sample + "0"):
        with pytest.raises(UserError, match="not an id"):
            view.pick(manifest, [bad])


def test_damaged_shards_are_refused(manifest: Manifest) -> None:
    entry = next(e for e in manifest.shards if e.source == "text")
    path = manifest.store.path / entry.file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedShard, match=path.name):
        view.spread(manifest, 50)


def test_changed_weights_are_refused(manifest: Manifest, tools: Path, tmp_path: Path) -> None:
    config = (manifest.store.path / "tokenize.yaml").read_text(encoding="utf-8")
    other = tmp_path / "bpe"
    other.mkdir()
    data = json.loads((tools / "bpe/tokenizer.json").read_text(encoding="utf-8"))
    merge = data["model"]["merges"].pop()
    data["model"]["vocab"].pop(merge.replace(" ", "") if isinstance(merge, str) else "".join(merge))
    (other / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    (manifest.store.path / "tokenize.yaml").write_text(config.replace(str(tools / "bpe"), str(other)), encoding="utf-8")
    with pytest.raises(UserError, match="has changed since"):
        dataset_tokenizers(manifest)
