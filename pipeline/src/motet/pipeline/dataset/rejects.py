"""The quarantine: samples that became no document, as a dataset of their own, one small Arrow file a partition.

    Reject --`to_bytes`--> OUT/rejects/<source>-<index>-<key>.arrow --`of_bytes` | pyarrow.dataset--> a person, `--retry-rejects`

A reject says where its sample stands, why it was refused and what its bytes hash to; with `keep_rejected` the bytes are
there too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from motet.core.urls import censored

FOLDER = "rejects"
ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+(?=>)")
LOST_REST = "lost-rest"
"""The reason of a reject that stands for all that follows where a file of many samples breaks: nobody knows how many."""
SCHEMA = pa.schema(
    [
        pa.field("source", pa.utf8(), nullable=False),
        pa.field("position", pa.utf8(), nullable=False),
        pa.field("reason", pa.utf8(), nullable=False),
        pa.field("detail", pa.utf8(), nullable=False),
        pa.field("hash", pa.utf8(), nullable=False),
        pa.field("parts", pa.list_(pa.struct([("modality", pa.utf8()), ("bytes", pa.large_binary())]))),
    ]
)

PASSING = frozenset({"unreadable-file", "missing-file", "decoder-crashed", "decoder-timeout"})
"""Reasons that may not hold the next time: what was out of reach or too much for the machine then."""


@dataclass(frozen=True)
class Reject:
    """A sample that became no document.

    Attributes:
        position: where it stands in its source.
        reason: a fixed word in kebab-case, counted in the statistics. detail: free text.
        hash: of its bytes; empty if there were none.
        parts: its (modality, bytes), as far as they were read.
    """

    position: str
    reason: str
    detail: str
    hash: str
    parts: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Reject:
        """Of a row of `of_bytes`."""
        parts = tuple((part["modality"], part["bytes"]) for part in row["parts"] or ())
        return cls(row["position"], row["reason"], row["detail"], row["hash"], parts)


def to_bytes(source: str, rejects: Sequence[Reject], keep: bool) -> bytes:
    """The rejects of one partition as an Arrow IPC file; with `keep` their bytes too."""
    rows = [
        {
            "source": source,
            "position": reject.position,
            "reason": reject.reason,
            "detail": _plain(censored(reject.detail)),
            "hash": reject.hash,
            "parts": [{"modality": m, "bytes": data} for m, data in reject.parts] if keep else None,
        }
        for reject in rejects
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    return sink.getvalue().to_pybytes()


def _plain(detail: str) -> str:
    """The words that any machine would find, each time.

    Libraries name objects in their errors, `<_io.BytesIO object at 0x7f83a0>`: other bytes at every try, and with them
    another file beside the same commit. Half a surrogate pair, as hostile names may have, is written as its escape.
    """
    return ADDRESS.sub("", detail).encode("utf-8", "backslashreplace").decode()


def of_bytes(data: bytes) -> list[dict[str, Any]]:
    """The rejects of one partition as dictionaries of the columns; ValueError if the file is damaged."""
    return pa.ipc.open_file(data).read_all().to_pylist()
