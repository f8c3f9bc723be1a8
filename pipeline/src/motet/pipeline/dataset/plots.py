"""Plots as SVG text for a page that stands alone: no scripts, equal text for equal data, colours and fonts by the page.

    {length: count} --`histogram`--> SVG          counts of codes --`ranks`--> SVG

What is exact can be read where the mouse rests: every bar and line has a title.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 24
BINS = 36

COLOURS = {"text": "#3457d5", "image": "#dd6b10", "speech": "#0b8a6a"}
MORE = ("#9333b8", "#c2255c", "#0b7285", "#7a6a00", "#5c4033")


def colours(modalities: Sequence[str]) -> dict[str, str]:
    """A colour for each modality, the same on every page for those that motet knows."""
    others = [m for m in modalities if m not in COLOURS]
    return {m: COLOURS.get(m) or MORE[others.index(m) % len(MORE)] for m in modalities}


def histogram(counts: Mapping[int, int], longest: int, colour: str, noun: str) -> Markup:
    """How many documents or spans (`noun`) have which length; lengths from 1 to `longest` on a logarithmic axis."""
    edges = np.unique(np.geomspace(1, max(longest, 9) + 1, BINS + 1).round()).astype(int)
    # A length of 0 (an empty text) stands in the first bar.
    heights = np.histogram(np.maximum(list(counts), 1), edges, weights=list(counts.values()))[0].astype(int)
    top = _round_up(int(heights.max()))
    parts = [_rows([(0, "0"), (0.5, _short(top / 2)), (1, _short(top))]), _decades(edges[-1])]
    for low, high, n in zip(edges[:-1].tolist(), edges[1:].tolist(), heights.tolist(), strict=True):
        if n:
            x, right = _x(log10(low) / log10(edges[-1])), _x(log10(high) / log10(edges[-1]))
            tall = max(n / top * (HEIGHT - TOP - BOTTOM), 1.5)
            range_ = f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}"
            parts.append(
                f'<rect x="{x:.1f}" y="{HEIGHT - BOTTOM - tall:.1f}" width="{max(right - x - 1, 1):.1f}" '
                f'height="{tall:.1f}" fill="{colour}"><title>{range_} tokens: {n:,} {escape(noun)}</title></rect>'
            )
    return _svg(parts, f"{noun} by length")


def ranks(books: Sequence[Sequence[int]], colour: str) -> Markup:
    """How often each code occurs, the most frequent first, on two logarithmic axes; a line for each codebook."""
    sorted_ = [np.sort(np.array(book))[::-1] for book in books]
    used = [counts[counts > 0] for counts in sorted_]
    most = max((int(counts[0]) for counts in used if len(counts)), default=1)
    size = max(max(len(book) for book in books), 10)
    decades = range(int(log10(most)) + 1)
    scale = max(log10(most), 1)
    parts = [_rows([(d / scale, _short(10**d)) for d in decades]), _decades(size)]
    for k, counts in enumerate(used):
        at = np.unique(np.geomspace(1, max(len(counts), 1), 120).round()).astype(int)[: len(counts)]
        points = " ".join(
            f"{_x(log10(r) / log10(size)):.1f},{_y(log10(counts[r - 1]) / scale):.1f}" for r in at.tolist()
        )
        strength = 1 - 0.7 * k / max(len(books), 1)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8" opacity="{strength:.2f}">'
            f"<title>codebook {k}: {len(counts):,} codes occur</title></polyline>"
        )
    return _svg(parts, "occurrences of each code, the most frequent first")


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _rows(marks: Sequence[tuple[float, str]]) -> str:
    """Horizontal lines at shares of the height, each with its label."""
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(at):.1f}" y2="{_y(at):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{_y(at) + 4:.1f}" text-anchor="end">{label}</text>'
        for at, label in marks
    )


def _decades(last: float) -> str:
    """Labels 1, 10, 100, ... under a logarithmic axis that ends at `last`."""
    return "".join(
        f'<line class="tick" x1="{_x(d / log10(last)):.1f}" x2="{_x(d / log10(last)):.1f}" '
        f'y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        f'<text x="{_x(d / log10(last)):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{_short(10**d)}</text>'
        for d in range(int(log10(last)) + 1)
    )


def _svg(parts: Sequence[str], label: str) -> Markup:
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>')


def _short(n: float) -> str:
    """1.5k, 20M: at most three figures."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.3g}{letter}"
    return f"{n:.3g}"


def _round_up(n: int) -> int:
    """The next of 2, 4, 6, 10, 20, 40, ...: a round top for an axis."""
    decade = 10 ** int(log10(max(n, 1)))
    return next(step for m in (1, 2, 4, 6, 10) if (step := m * decade) >= n and step > 1)
