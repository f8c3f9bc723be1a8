"""What a tokenizing job is told: corpus entries, tokenizers, limits."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from motet.core.configuration import Settings
from motet.pipeline.corpus.entry import Entry


class TokenizeConfig(Settings):
    """A whole tokenizing job.

    Attributes:
        corpus: sources in their order.
        tokenizers: for each modality `use` and that tokenizer's own settings.
        max_reject_fraction: share of samples that may be rejected, of the corpus and of each source; with more the command ends with 3. A
            .gz, .zst or .tar that breaks off counts as more than any share but 1: nobody knows how much of it is lost.
        keep_rejected: the quarantine holds the bytes of rejected samples too.
        sample_seconds: a decoder or encoder that takes longer over one sample is ended, and the sample rejected.
        partition_samples: most samples with media in one partition, the unit of work, of retry and of a shard.
        partition_bytes: most bytes of JSON lines in one partition.
    """

    corpus: Annotated[tuple[Entry, ...], Field(min_length=1)]
    tokenizers: dict[str, dict[str, Any]]
    max_reject_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    keep_rejected: bool = False
    sample_seconds: Annotated[float, Field(gt=0)] = 120.0
    partition_samples: Annotated[int, Field(ge=1)] = 512
    partition_bytes: Annotated[int, Field(ge=1)] = 8 << 20
