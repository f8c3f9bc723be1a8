"""What a tokenizing job is told: corpus entries, tokenizers, limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from motet.core.configuration import Settings


class Entry(Settings):
    """One source of the corpus. Paths are relative to the configuration file.

    Attributes:
        name: names the source in shards, statistics and mixtures; unique.
        format: `folder` (media and a metadata.jsonl), `interleaved` (JSON lines of parts), `text` (.jsonl, .txt, each also
            .gz or .zst), `parquet`, `webdataset` (tar files), `nemo` (JSON lines of recordings).
        path: folder, file or pattern (`shards/{000..127}.tar`, `*.parquet`); also s3://, gs://, hf://, https://.
        modality: of a folder's media.
        column: which field of a text line, or of a webdataset's .json, is the document.
        columns: which columns of a parquet file, or extensions in a webdataset, are what modality, in reading order.
        language: which field, column or .json field tells a document's language.
        root: folder that media paths start from; by default that of the file which names them.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    format: Literal["folder", "interleaved", "text", "parquet", "webdataset", "nemo"]
    path: Annotated[str, Field(min_length=1)]
    modality: str | None = None
    column: str = "text"
    columns: dict[str, str] | None = None
    language: str | None = None
    root: str | None = None


class TokenizeConfig(Settings):
    """A whole tokenizing job.

    Attributes:
        corpus: sources in their order.
        tokenizers: for each modality `use` and that tokenizer's own settings.
        max_reject_fraction: more rejects than this and the command ends with 3.
        keep_rejected: the quarantine holds the bytes of rejected samples too.
        sample_seconds: a decoder or encoder that takes longer over one sample is ended, and the sample rejected.
        partition_samples: most samples with media in one partition, the unit of work, of retry and of a shard.
        partition_bytes: most bytes of its JSON lines.
    """

    corpus: Annotated[tuple[Entry, ...], Field(min_length=1)]
    tokenizers: dict[str, dict[str, Any]]
    max_reject_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    keep_rejected: bool = False
    sample_seconds: Annotated[float, Field(gt=0)] = 120.0
    partition_samples: Annotated[int, Field(ge=1)] = 512
    partition_bytes: Annotated[int, Field(ge=1)] = 8 << 20
