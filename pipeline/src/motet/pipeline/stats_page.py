"""Statistics as one self-contained HTML page: tables and plots, nothing fetched from elsewhere, equal for equal data.

manifest, Statistics --plots (matplotlib, SVG inside the page)--> templates/statistics.html --> HTML text
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from motet.pipeline.manifest import Manifest
from motet.pipeline.statistics import Statistics

EXAMPLES = 5
COLOURS = ("#3b5bdb", "#e8590c", "#2b8a3e", "#9c36b5", "#0c8599", "#c92a2a")

environment = Environment(loader=PackageLoader("motet.pipeline"), autoescape=True)


def page(manifest: Manifest, stats: Statistics) -> str:
    """The whole page."""
    name = manifest.folder.resolve().name
    tokens = sum(stats.tokens.values())
    cards = [
        ("documents", f"{stats.documents:,}"),
        ("rejected samples", f"{stats.rejected:,}"),
        ("tokens", f"{tokens:,}"),
        ("shards", f"{stats.shards:,}"),
        ("megabytes", f"{stats.bytes / 1e6:,.1f}"),
        ("bytes a token", f"{stats.bytes_per_token:.2f}"),
    ]
    return environment.get_template("statistics.html").render(
        title=f"{name}: statistics",
        name=name,
        stats=stats,
        cards=cards,
        plots=_plots(stats),
        examples=_examples(manifest),
    )


def _plots(stats: Statistics) -> list[tuple[str, str]]:
    plots = [("Tokens by modality and source", _figure(lambda axes: _by_source(axes, stats)))]
    plots.append(("Documents by length in tokens", _figure(lambda axes: _lengths(axes, {"documents": stats.lengths}))))
    plots.append(("Spans by length in tokens", _figure(lambda axes: _lengths(axes, stats.span_lengths))))
    plots.append(("Packing: share of each row that is data", _figure(lambda axes: _packing(axes, stats))))
    if stats.codebooks:
        plots.append(
            ("Codebooks: share of codes used, and perplexity over size", _figure(lambda axes: _use(axes, stats)))
        )
    if stats.rejects:
        plots.append(("Rejected samples by reason", _figure(lambda axes: _rejects(axes, stats))))
    return plots


def _by_source(axes: Axes, stats: Statistics) -> None:
    left = np.zeros(len(stats.sources))
    names = list(stats.sources)
    for colour, modality in zip(_colours(len(stats.tokens)), stats.tokens, strict=True):
        counts = np.array([s["tokens"].get(modality, 0) for s in stats.sources.values()])
        axes.barh(names, counts, left=left, color=colour, label=modality)
        left += counts
    axes.invert_yaxis()
    axes.set_xlabel("tokens")
    _legend(axes)


def _lengths(axes: Axes, histograms: Mapping[str, Mapping[int, int]]) -> None:
    longest = max((max(h) for h in histograms.values() if h), default=1)
    edges = np.unique(np.geomspace(1, max(longest, 2) + 1, 40).round()).tolist()
    for colour, (name, histogram) in zip(_colours(len(histograms)), histograms.items(), strict=True):
        lengths, counts = np.array(list(histogram)), np.array(list(histogram.values()))
        axes.hist(lengths, edges, weights=counts, color=colour, alpha=0.6, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens")
    _legend(axes)


def _packing(axes: Axes, stats: Statistics) -> None:
    bars = axes.bar([f"{p.sequence:,}" for p in stats.packing], [p.efficiency for p in stats.packing], color=COLOURS[0])
    axes.bar_label(bars, [f"{p.efficiency:.1%}" for p in stats.packing])
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("tokens a row")


def _use(axes: Axes, stats: Statistics) -> None:
    names = [f"{c.modality} {c.index}" for c in stats.codebooks]
    place = np.arange(len(names))
    axes.barh(place - 0.2, [c.used / c.size for c in stats.codebooks], 0.4, color=COLOURS[0], label="used")
    bars = axes.barh(
        place + 0.2, [c.perplexity / c.size for c in stats.codebooks], 0.4, color=COLOURS[1], label="perplexity"
    )
    axes.bar_label(bars, [f" {c.perplexity:,.0f}" for c in stats.codebooks], fontsize=8)
    axes.set_yticks(place, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    _legend(axes)


def _rejects(axes: Axes, stats: Statistics) -> None:
    bars = axes.barh(list(stats.rejects), [sum(by.values()) for by in stats.rejects.values()], color=COLOURS[5])
    axes.bar_label(bars)
    axes.invert_yaxis()
    axes.set_xlabel("samples")


def _legend(axes: Axes) -> None:
    """Above the plot, where it hides no data."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=6)


def _figure(draw: Any) -> str:
    """One plot as SVG text, the same for the same data."""
    with matplotlib.rc_context({"svg.hashsalt": "motet", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _examples(manifest: Manifest) -> dict[str, list[dict[str, str]]]:
    """The first few rejects of each reason."""
    found: dict[str, list[dict[str, str]]] = {}
    path = manifest.folder / "rejects.jsonl"
    if path.exists():
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                reject = json.loads(line)
                some = found.setdefault(reject["reason"], [])
                if len(some) < EXAMPLES:
                    some.append(reject)
    return found
