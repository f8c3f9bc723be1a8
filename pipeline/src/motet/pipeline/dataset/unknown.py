"""Characters of texts that no token stands for, told by source.

manifest --`unknown_lines`--> one line for each source that lost some
"""

from __future__ import annotations

from collections.abc import Iterator

from motet.pipeline.dataset.manifest import Manifest


def unknown_lines(manifest: Manifest) -> Iterator[str]:
    """For each source of which characters were lost, how many."""
    for name in manifest.sources:
        counts = [both for entry in manifest.shards if entry.source == name for both in entry.unknown.values()]
        if lost := sum(unknown for unknown, _ in counts):
            yield unknown_line(name, lost, sum(characters for _, characters in counts))


def unknown_line(source: str, lost: int, characters: int) -> str:
    """For a person: how much of a source's text its vocabulary cannot say."""
    return f"{source}: {lost:,} of {characters:,} characters ({lost / characters:.2%}) have no token, and are lost"
