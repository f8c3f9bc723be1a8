"""Statistics as one HTML page that stands alone: nothing fetched from elsewhere, no script, equal for equal data.

manifest, Statistics --plots.py: SVG--> templates/statistics.html --> HTML text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from motet.pipeline.dataset import plots
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.statistics import Statistics, duplicates_line, quantile

EXAMPLES = 5

environment = Environment(
    loader=PackageLoader("motet.pipeline.dataset"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.filters["n"] = "{:,}".format
environment.filters["sum_values"] = lambda counts: sum(counts.values())
environment.filters["duplicates"] = duplicates_line
environment.filters["percent"] = lambda share, digits=1: f"{share:.{digits}%}"


def page(manifest: Manifest, stats: Statistics) -> str:
    """The whole page."""
    name = manifest.name
    colours = plots.colours(list(stats.tokenizers))
    return environment.get_template("statistics.html").render(
        title=f"{name}: statistics",
        name=name,
        stats=stats,
        total=sum(stats.tokens.values()),
        colours=colours,
        lengths=_lengths(stats, colours),
        ranks={m: plots.ranks(books, colours[m]) for m, books in sorted(manifest.codebooks.items())},
        examples=_examples(manifest),
        settings_hash=manifest.settings_hash,
    )


def _lengths(stats: Statistics, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Length distributions on one common axis: of whole documents, then of each modality's spans."""
    longest = max(stats.lengths, default=1)
    histograms = [("documents", stats.lengths, "#475467")]
    histograms += [(f"{m} spans", h, colours[m]) for m, h in stats.span_lengths.items()]
    return [
        {
            "name": name,
            "colour": colour,
            "count": sum(histogram.values()),
            "median": quantile(histogram, 0.5),
            "most": quantile(histogram, 0.95),
            "longest": max(histogram),
            "plot": plots.histogram(histogram, longest, colour, name),
        }
        for name, histogram, colour in histograms
        if histogram
    ]


def _examples(manifest: Manifest) -> dict[str, list[dict[str, str]]]:
    """The first few rejects of each reason."""
    found: dict[str, list[dict[str, str]]] = {}
    for entry in manifest.shards:
        if all(len(found.get(reason, ())) >= EXAMPLES for reason in entry.rejects):
            continue  # of perhaps 100,000 files a few are opened
        try:
            told = manifest.rejected(entry)
        except (DamagedShard, OSError):
            continue  # a manifest that came without its rejects still tells how many they are
        for reject in told:
            some = found.setdefault(reject["reason"], [])
            if len(some) < EXAMPLES:
                some.append(reject)
    return found
