"""One source of a corpus, as a configuration names it."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field

from motet.core.configuration import Settings


class Entry(Settings):
    """One source of the corpus. Paths are relative to the configuration file.

    Attributes:
        name: names the source in shards, statistics and mixtures; unique.
        format: `folder` (media and metadata.jsonl, .csv or .parquet), `interleaved` (JSON lines of parts), `text` (JSON lines,
            .txt, .md, each also compressed), `parquet`, `webdataset` (tar files), `nemo` (JSON lines of recordings).
        path: folder, file or pattern (`shards/{000..127}.tar`, `*.parquet`); also s3://, gs://, hf://, https://.
        modality: of a folder's media, or of a nemo manifest's recordings.
        column: which field of a text line, or of a webdataset's .json, is the document.
        columns: which columns of a parquet file or of a folder's metadata, or extensions in a webdataset, are what modality, in
            reading order.
        layout: of a folder whose transcripts have no header: `ljspeech` (metadata.csv of id|text|normalized text, the recordings in
            wavs/), `librispeech` (*.trans.txt beside the recordings), `beside` (0001.txt is the caption of 0001.jpg).
        language: which field, column or .json field tells a document's language.
        root: folder that media paths start from, by default that of the file which names them; of a folder: links may lead
            to anywhere below it.

    A field that the format does not use is refused.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    format: Literal["folder", "interleaved", "text", "parquet", "webdataset", "nemo"]
    path: Annotated[str, Field(min_length=1)]
    modality: str | None = None
    column: str = "text"
    columns: dict[str, str] | None = None
    layout: Literal["ljspeech", "librispeech", "beside"] | None = None
    language: str | None = None
    root: str | None = None


class Cutting(Protocol):
    """How large a partition may be: most samples with media, most bytes of JSON lines."""

    partition_samples: int
    partition_bytes: int
