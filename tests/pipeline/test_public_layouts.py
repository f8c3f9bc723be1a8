"""Ten corpora in the layouts that they are published in, by the configurations of docs/corpora.md.

docs/corpora.md --a section's YAML--> motet tokenize --> documents, rejects, what is left out
the same files --csv, json, gzip, tarfile, pyarrow, PIL, soundfile: no reader of motet--> what must have come out
"""

import csv
import fnmatch
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import layouts
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from tokenizers import Tokenizer

from motet.core.configuration import load_config
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus

PAGE = Path(__file__).resolve().parents[2] / "docs" / "corpora.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n.*?```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.M | re.S))
Found = tuple[Counter[tuple[str, ...]], int, set[Path], dict[str, int]]
"""Documents (a text as it is, media as <modality>), rejects, files that are read, what else is told: {kind: count}."""


def is_picture(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


def is_sound(path: Path) -> bool:
    return soundfile.info(path).frames > 0


def of_imagefolder(root: Path) -> Found:
    documents: Counter[tuple[str, ...]] = Counter()
    used = set()
    for table in root.glob("imagefolder/*/metadata.csv"):
        used.add(table)
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                picture = table.parent / row["file_name"]
                assert is_picture(picture.read_bytes())
                used.add(picture)
                documents[row["text"], "<image>"] += 1
    return documents, 0, used, {"field 'label'": documents.total()}


def of_audiofolder(root: Path) -> Found:
    documents: Counter[tuple[str, ...]] = Counter()
    used = set()
    for table in root.glob("audiofolder/data/*/metadata.jsonl"):
        used.add(table)
        for row in map(json.loads, table.read_text("utf-8").splitlines()):
            assert is_sound(table.parent / row["file_name"])
            used.add(table.parent / row["file_name"])
            documents[row["transcription"], "<speech>"] += 1
    return documents, 0, used, {"field 'speaker_id'": documents.total()}


def of_coco(root: Path) -> Found:
    files = set(root.glob("coco/data/*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert all(is_picture(row["image"]["bytes"]) for row in rows)
    documents = Counter(("<image>", *row["captions"]) for row in rows)
    return documents, 0, files, {"column 'image_id'": len(rows)}


def of_obelics(root: Path) -> Found:
    files = set(root.glob("obelics/*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    documents: Counter[tuple[str, ...]] = Counter()
    rejects = 0
    fetched = set()
    for row in rows:
        pairs = list(zip(row["images"], row["texts"], strict=True))
        if any(image and "://" in image for image, _ in pairs):
            rejects += 1
            continue
        documents[tuple("<image>" if image else text for image, text in pairs if image or text)] += 1
        fetched |= {root / "obelics" / image for image, _ in pairs if image}
    told = {f"column '{name}'": len(rows) for name in ("metadata", "general_metadata")}
    return documents, rejects, files | fetched, told


def of_img2dataset(root: Path) -> Found:
    files = set(root.glob("laion/*.tar"))
    documents: Counter[tuple[str, ...]] = Counter()
    rejects, fields, downloaded = 0, Counter[str](), 0
    for file in files:
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(file) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                samples.setdefault(key, {})[ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
        downloaded += pq.read_table(file.with_suffix(".parquet"), filters=[("status", "=", "success")]).num_rows
        for sample in samples.values():
            fields.update(f"field '{name}' of .json" for name in json.loads(sample["json"]))
            if not is_picture(sample["jpg"]):
                rejects += 1
                continue
            documents[tuple(part for part in (sample["txt"].decode(), "<image>") if part)] += 1
    assert documents.total() + rejects == downloaded, "what failed stands in no tar"
    return documents, rejects, files, dict(fields)


def of_hub_cache(root: Path) -> Found:
    snapshot = root / f"hub/datasets--someone--emoji/snapshots/{layouts.REVISION}"
    table = snapshot / "train/metadata.jsonl"
    rows = [json.loads(row) for row in table.read_text("utf-8").splitlines()]
    assert all(is_picture((table.parent / row["file_name"]).read_bytes()) for row in rows)
    used = {table, *(table.parent / row["file_name"] for row in rows)}
    return Counter((row["text"], "<image>") for row in rows), 0, used, {}


def of_common_voice(root: Path) -> Found:
    table = root / "cv/en/train.tsv"
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    clips = {row["path"]: root / "cv/en/clips" / row["path"] for row in rows}
    there = [row for row in rows if clips[row["path"]].exists()]
    assert all(is_sound(clips[row["path"]]) for row in there)
    documents = Counter((row["sentence"], "<speech>") for row in there)
    told = {f"field '{name}'": len(rows) for name in rows[0] if name not in ("path", "sentence", "locale")}
    return documents, len(rows) - len(there), {table, *(clips[row["path"]] for row in there)}, told


def of_librispeech(root: Path) -> Found:
    documents: Counter[tuple[str, ...]] = Counter()
    used = set()
    for table in root.glob("LibriSpeech/*/*/*/*.trans.txt"):
        used.add(table)
        for line in table.read_text("utf-8").splitlines():
            key, text = line.split(" ", 1)
            assert is_sound(table.parent / f"{key}.flac")
            used.add(table.parent / f"{key}.flac")
            documents[text, "<speech>"] += 1
    return documents, 0, used, {}


def of_ljspeech(root: Path) -> Found:
    table = root / "LJSpeech-1.1/metadata.csv"
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE))
    sounds = [table.parent / f"wavs/{row[0]}.wav" for row in rows]
    assert all(map(is_sound, sounds))
    return Counter((row[1], "<speech>") for row in rows), 0, {table, *sounds}, {"field 'normalized'": len(rows)}


def of_dolma(root: Path) -> Found:
    files = set(root.glob("dolma/*.json.gz"))
    rows = [json.loads(line) for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]
    told = {f"field '{name}'": len(rows) for name in rows[0] if name != "text"}
    return Counter((row["text"],) for row in rows), 0, files, told


COUNTS: dict[str, Callable[[Path], Found]] = {
    section: globals()[f"of_{build.__name__}"] for section, build in layouts.BUILDERS.items()
}


def documents(manifest: Manifest, vocabulary: Tokenizer) -> Counter[tuple[str, ...]]:
    """The documents of a dataset, texts decoded by Hugging Face's own library."""
    found: Counter[tuple[str, ...]] = Counter()
    for entry in manifest.shards:
        for document in manifest.open_shard(entry).documents() if entry.rows else ():
            parts = [
                vocabulary.decode(tokens.ids.tolist(), skip_special_tokens=False)
                if modality == "text"
                else f"<{modality}>"
                for modality, tokens in document.spans
            ]
            found[tuple(parts)] += 1
    return found


def test_the_page_has_the_ten_in_ten_lines_each() -> None:
    assert list(SECTIONS) == list(layouts.BUILDERS)
    for section, text in SECTIONS.items():
        assert len(text.strip().splitlines()) <= 10, section


@pytest.mark.parametrize("section", layouts.BUILDERS)
def test_documents_are_those_that_independent_code_counts(section: str, tools: Path, tmp_path: Path) -> None:
    layouts.BUILDERS[section](tmp_path)
    there = {Path(folder) / name for folder, _, names in os.walk(tmp_path) for name in names}
    (tmp_path / "tokenizers").symlink_to(tools)
    (tmp_path / "tokenize.yaml").write_text(SECTIONS[section], encoding="utf-8")
    config = load_config(tmp_path / "tokenize.yaml", TokenizeConfig)
    result = tokenize_corpus(config, tmp_path, tmp_path / "tokens")

    expected, rejects, used, told = COUNTS[section](tmp_path)
    vocabulary = Tokenizer.from_file(str(tools / "bpe/tokenizer.json"))
    assert documents(result.manifest, vocabulary) == expected and expected.total() >= 80
    assert result.rejected == rejects and not result.too_many_rejects
    assert result.samples == expected.total() + rejects

    # every file below the entry is read, or told; every field, column and member too
    (entry,) = config.corpus
    base = tmp_path / (
        entry.root or entry.path if entry.root or entry.format == "folder" else os.path.dirname(entry.path)
    )
    below = {file for file in there if file.is_relative_to(base)}
    if entry.format == "folder" and entry.layout is None and entry.root is None:
        assert used <= below
    rows = result.manifest.left_out.get(entry.name, ())
    assert {row.kind: row.count for row in rows if row.of != "file"} == told
    named = entry.format != "folder" or entry.root is not None  # then the path itself says which files are meant
    assert sum(row.count for row in rows if row.of == "file") == (0 if named else len(below - used))
    if named and entry.root is None:
        names = [entry.path.replace("{00000..00003}", "*")]
        assert used == {file for file in below if fnmatch.fnmatch(str(file.relative_to(tmp_path)), names[0])}
    read = {file["path"] for shard in result.manifest.shards for file in shard.inputs}
    assert len(used - {base / name for name in read}) <= (entry.root is not None), "what was read is what is counted"


def test_the_verb_tells_what_a_layout_leaves_out(tools: Path, tmp_path: Path) -> None:
    section = "LJSpeech"
    layouts.BUILDERS[section](tmp_path)
    (tmp_path / "tokenizers").symlink_to(tools)
    (tmp_path / "tokenize.yaml").write_text(SECTIONS[section], encoding="utf-8")
    command = [sys.executable, "-m", "motet.orchestration", "tokenize", "tokenize.yaml", "--out", "tokens", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (left,) = json.loads(done.stdout)["left_out"].values()
    assert {row["kind"] for row in left} == {"field 'normalized'", "files without an ending that no row names"}
