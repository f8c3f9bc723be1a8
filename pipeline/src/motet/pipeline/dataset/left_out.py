"""What a source leaves out: files, columns, members and fields that no rule takes, told once per kind.

    cutting a source, reading a partition --`Rest.add`--> LeftOut rows --commits, `Rest.take`--> manifest.json, tables

A document, a reject, or here: nothing under an entry is passed over without a word. Rows of equal kind are summed; the example
is the first in the order of the plan, so that one worker or many tell the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

MOST_KINDS = 40
"""Of one source; what comes beyond them is summed as one kind, or a hostile file would make the manifest as large as itself."""
LONGEST_EXAMPLE = 200
PLANNED = ("column", "file", "folder", "link")
"""Things that are known when a source is cut; others (members, fields) are seen when it is read."""


@dataclass(frozen=True)
class LeftOut:
    """One kind of thing that a source leaves out.

    Attributes:
        of: what is counted: column (its values), file, folder, link, member, field (its values).
        kind: names the kind, for a person.
        count: how many. bytes: of all of them; 0 where that is not known.
        example: the name of the first.
        why: no rule takes it because of this. cure: the setting that would.
    """

    of: str
    kind: str
    count: int
    bytes: int
    example: str
    why: str
    cure: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LeftOut:
        """Inverse of `to_json`."""
        return cls(**data)

    def __str__(self) -> str:
        """One line."""
        size = f", {_bytes(self.bytes)}" if self.bytes else ""
        return f"{self.kind}: {self.count:,}{size}, for example {self.example}: {self.why}; {self.cure}"


class Rest:
    """What one source leaves out, gathered by kind."""

    def __init__(self, rows: Iterable[LeftOut] = ()) -> None:
        self._kinds: dict[tuple[str, str], LeftOut] = {}
        for row in rows:
            self.take(row)

    def add(self, of: str, kind: str, example: str, why: str, cure: str, count: int = 1, size: int = 0) -> None:
        """`count` more things of a kind, `size` bytes together."""
        example = example.encode("utf-8", "backslashreplace").decode()
        if len(example) > LONGEST_EXAMPLE:
            example = f"{example[:LONGEST_EXAMPLE]}…"
        self.take(LeftOut(of, kind, count, size, example, why, cure))

    def take(self, row: LeftOut) -> None:
        """A row of a part of the source."""
        key = row.of, row.kind
        if key not in self._kinds and len(self._kinds) >= MOST_KINDS:
            key = row.of, f"{row.of}s of further kinds"
            cure = "name the kinds that are wanted; the others of this table say how"
            row = LeftOut(
                *key, row.count, row.bytes, row.example, f"more than {MOST_KINDS} kinds are not told apart", cure
            )
        if (known := self._kinds.get(key)) is not None:
            row = LeftOut(*key, known.count + row.count, known.bytes + row.bytes, known.example, known.why, known.cure)
        self._kinds[key] = row

    @property
    def rows(self) -> tuple[LeftOut, ...]:
        """One a kind."""
        return tuple(self._kinds[key] for key in sorted(self._kinds))


def planned(rows: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    """Those that are known without reading the source's samples."""
    return tuple(row for row in rows if row.of in PLANNED)


def _bytes(size: int) -> str:
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= each:
            return f"{size / each:,.1f} {unit}"
    return f"{size} bytes"
