"""What tests of corpora read: every document of a dataset, every sample of a corpus."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from motet.pipeline.corpus.sources import read
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.job.partitions import partitions


def documents(manifest: Manifest) -> list[list[tuple[str, tuple[int, ...], bytes]]]:
    """Every document's spans, in order; what its source is called and where it stood does not count."""
    return [
        [(modality, tokens.shape, tokens.ids.tobytes()) for modality, tokens in document.spans]
        for entry in manifest.shards
        if entry.rows
        for document in manifest.open_shard(entry).documents()
    ]


def read_all(config, base: Path) -> tuple[list, list]:
    """(partitions, everything that they give) of a configuration."""
    plan = partitions(config, base)
    return plan, [sample for partition in plan for sample in read(partition, lambda *told: None)]


def tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def kinds(samples: list[list[tuple[str, bytes]]]) -> list[str]:
    """The modalities of each, by their first letters."""
    return ["".join(modality[0] for modality, _ in parts) for parts in samples]


def captions(samples: list[list[tuple[str, bytes]]]) -> list[list[str]]:
    return [[data.decode() for modality, data in parts if modality == "text"] for parts in samples]


def pictures(corpus: Path) -> list[dict[str, Any]]:
    """Rows of the pictures' metadata, with the file's bytes."""
    rows = [json.loads(line) for line in (corpus / "pictures/metadata.jsonl").read_text("utf-8").splitlines()]
    return [{**row, "bytes": (corpus / "pictures" / row["file_name"]).read_bytes()} for row in rows]
