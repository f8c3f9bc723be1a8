"""What is in a token dataset, told from its manifest alone: no shard is read.

    manifest --`statistics`--> Statistics --`to_json` | `table`--> a program | a terminal;  `stats_page` makes the page

Lengths are exact counts (length -> documents), so packing at any row length is computed, not estimated. One thing the
manifest does not tell: which documents of a source hold how many pictures or recordings, whose marks take up room.
Where all hold equally many (every `folder` and `text` source), packing is exact; else their sum is exact.
"""

from __future__ import annotations

import shlex
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from motet.pipeline.dataset.left_out import LeftOut
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.sketch import Duplicates, duplicates
from motet.pipeline.dataset.unknown import unknown_line

LONGEST = 3
"""Outliers told of each source."""
MARKS = 2
"""Tokens that training adds round a document, and round each span that is not text: where it begins and ends."""


@dataclass(frozen=True)
class Codebook:
    """How one codebook is used: `perplexity` is the exponential of the entropy of its codes."""

    modality: str
    index: int
    size: int
    used: int
    perplexity: float


@dataclass(frozen=True)
class Packing:
    """What packing whole documents into rows of `sequence` tokens would give.

    Attributes:
        rows: rows that best-fit packing fills; documents longer than a row are cut into full rows and a rest.
        efficiency: share of the rows' tokens that are not padding, marks included.
        cut: share of the documents that are longer than a row.
    """

    sequence: int
    rows: int
    efficiency: float
    cut: float


@dataclass(frozen=True)
class Outlier:
    """A document that is among the longest of its source; `command` shows it."""

    source: str
    tokens: int
    sample: str
    command: str


@dataclass(frozen=True)
class Statistics:
    """Everything `motet stats` tells.

    Attributes:
        documents, tokens, spans, bytes: totals; tokens and spans by modality.
        sources: for each source its documents, rejected samples, tokens and spans by modality; `unknown` and `characters` of
            its texts, if their vocabulary may lack some characters.
        tokenizers: spec of each modality.
        lengths: documents by number of tokens. span_lengths: spans likewise, by modality.
        codebooks: use of every codebook.
        rejects: by reason, then source.
        packing: at several row lengths.
        languages: documents and tokens of each language that a source tells.
        duplicates: documents that repeat the content of another.
        longest: the longest documents of each source.
        left_out: what each source leaves out, a row per kind.
    """

    documents: int
    rejected: int
    shards: int
    bytes: int
    tokens: dict[str, int]
    spans: dict[str, int]
    sources: dict[str, dict[str, Any]]
    tokenizers: dict[str, dict[str, Any]]
    lengths: dict[int, int]
    span_lengths: dict[str, dict[int, int]]
    codebooks: tuple[Codebook, ...]
    rejects: dict[str, dict[str, int]]
    packing: tuple[Packing, ...]
    languages: dict[str, dict[str, int]]
    duplicates: Duplicates
    longest: tuple[Outlier, ...]
    left_out: dict[str, tuple[LeftOut, ...]] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of shards for each token, all in."""
        return self.bytes / max(sum(self.tokens.values()), 1)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "bytes_per_token": self.bytes_per_token}


def statistics(manifest: Manifest, sequences: tuple[int, ...] = (512, 2048, 4096)) -> Statistics:
    """Statistics of a dataset; packing is computed for each of `sequences` (tokens per row)."""
    tokens, spans, lengths, packed = Counter[str](), Counter[str](), Counter[int](), Counter[int]()
    span_lengths: dict[str, Counter[int]] = {m: Counter() for m in manifest.modalities}
    sources: dict[str, dict[str, Any]] = {
        name: {"documents": 0, "rejected": 0, "tokens": Counter[str](), "spans": Counter[str]()}
        for name in manifest.sources
    }
    rejects: dict[str, Counter[str]] = {}
    languages: dict[str, list[int]] = {}
    longest: dict[str, list[tuple[int, str]]] = {name: [] for name in manifest.sources}
    for entry in manifest.shards:  # perhaps 100,000: little is done for each
        source = sources[entry.source]
        source["documents"] += entry.rows
        for sums, counts in ((source["tokens"], entry.tokens), (source["spans"], entry.spans)):
            for modality, count in counts.items():
                sums[modality] += count
        for unknown, characters in entry.unknown.values():
            source["unknown"] = source.get("unknown", 0) + unknown
            source["characters"] = source.get("characters", 0) + characters
        for reason, count in entry.rejects.items():
            source["rejected"] += count
            rejects.setdefault(reason, Counter())[entry.source] += count
        for code, (documents, count) in entry.languages.items():
            language = languages.setdefault(code, [0, 0])
            language[0] += documents
            language[1] += count
        longest[entry.source] += entry.longest
    for name, source in sources.items():
        tokens.update(source["tokens"])
        spans.update(source["spans"])
        lengths.update(manifest.lengths.get(name, {}))
        packed.update(_with_marks(source, manifest.lengths.get(name, {})))
        for modality, histogram in manifest.span_lengths.get(name, {}).items():
            span_lengths[modality].update(histogram)
    return Statistics(
        documents=manifest.documents,
        rejected=sum(sum(by.values()) for by in rejects.values()),
        shards=sum(bool(entry.file) for entry in manifest.shards),
        bytes=sum(entry.bytes for entry in manifest.shards if entry.file),
        tokens=dict(sorted(tokens.items())),
        spans=dict(sorted(spans.items())),
        sources={
            name: {**s, "tokens": dict(sorted(s["tokens"].items())), "spans": dict(sorted(s["spans"].items()))}
            for name, s in sources.items()
        },
        languages={
            code: {"documents": documents, "tokens": count} for code, (documents, count) in sorted(languages.items())
        },
        duplicates=duplicates((entry.rows, entry.sketch, entry.repeated) for entry in manifest.shards),
        longest=tuple(
            _outlier(manifest, name, n, sample)
            for name, found in longest.items()
            for n, sample in sorted(found, key=lambda one: (-one[0], one[1]))[:LONGEST]
        ),
        tokenizers={m: spec.to_json() for m, spec in sorted(manifest.tokenizers.items())},
        lengths=dict(sorted(lengths.items())),
        span_lengths={m: dict(sorted(h.items())) for m, h in sorted(span_lengths.items()) if h},
        codebooks=tuple(
            _codebook(modality, k, np.array(counts))
            for modality, books in sorted(manifest.codebooks.items())
            for k, counts in enumerate(books)
        ),
        rejects={reason: dict(sorted(by.items())) for reason, by in sorted(rejects.items())},
        packing=tuple(packing(packed, sequence) for sequence in sorted(set(sequences))),
        left_out=manifest.left_out,
    )


def packing(lengths: Mapping[int, int], sequence: int) -> Packing:
    """Best-fit packing, longest first, of documents given as {length with marks: count}; fast for many documents.

    It packs the whole dataset at once, which bounds from above what training reaches: that packs window by window.
    """
    pieces: Counter[int] = Counter()
    rows = cut = 0
    for length, count in lengths.items():
        whole, rest = divmod(length, sequence)
        rows += whole * count
        cut += count * (length > sequence)
        if rest:
            pieces[rest] += count
    total = sum(length * count for length, count in lengths.items())
    opened: Counter[int] = Counter()  # rows by free tokens
    room: list[int] = []  # the free tokens that occur in `opened`, sorted
    for length in sorted(pieces, reverse=True):
        left = pieces[length]
        while left:
            at = bisect_left(room, length)
            free = room[at] if at < len(room) else sequence
            each = min(free // length, left)  # the fullest row that fits stays the fullest until it is full
            taken = left // each
            if at < len(room):
                taken = min(taken, opened[free])
                opened[free] -= taken
                if not opened[free]:
                    room.pop(at)
            else:
                rows += taken
            left -= taken * each
            rest = free - each * length
            if rest:
                if not opened[rest]:
                    insort(room, rest)
                opened[rest] += taken
    documents = sum(lengths.values())
    return Packing(sequence, rows, total / (rows * sequence) if rows else 1.0, cut / max(documents, 1))


def quantile(histogram: Mapping[int, int], share: float) -> int:
    """The shortest length that at least this share of {length: count} does not exceed; 0 if there are none."""
    left = share * sum(histogram.values())
    for length in sorted(histogram):
        left -= histogram[length]
        if left <= 0:
            return length
    return 0


def table(stats: Statistics) -> Group:
    """For the terminal."""
    sources = Table(box=box.SIMPLE_HEAD, title=f"{stats.documents:,} documents, {sum(stats.tokens.values()):,} tokens")
    sources.add_column("source")
    for head in ("documents", "rejected", *stats.tokens, "tokens"):
        sources.add_column(head, justify="right")
    for name, source in stats.sources.items():
        counts = [source["tokens"].get(m, 0) for m in stats.tokens]
        numbers = [source["documents"], source["rejected"], *counts, sum(counts)]
        sources.add_row(name, *(f"{n:,}" for n in numbers))
    totals = [stats.documents, stats.rejected, *stats.tokens.values(), sum(stats.tokens.values())]
    sources.add_section()
    sources.add_row("all", *(f"{n:,}" for n in totals))

    modalities = Table(box=box.SIMPLE_HEAD)
    for head, justify in (("modality", "left"), ("tokenizer", "left"), ("spans", "right"), ("tokens a span", "right")):
        modalities.add_column(head, justify=justify)  # type: ignore[arg-type]
    modalities.add_column("codes used (perplexity)")
    for modality, spec in stats.tokenizers.items():
        books = [c for c in stats.codebooks if c.modality == modality]
        use = "  ".join(f"{c.used:,}/{c.size:,} ({c.perplexity:,.0f})" for c in books) or f"{spec['latent_dim']} floats"
        n = stats.spans.get(modality, 0)
        modalities.add_row(modality, spec["name"], f"{n:,}", f"{stats.tokens.get(modality, 0) / max(n, 1):,.1f}", use)

    rows = Table(box=box.SIMPLE_HEAD)
    for head in ("packed into rows of", "rows", "filled", "documents cut"):
        rows.add_column(head, justify="right")
    for p in stats.packing:
        rows.add_row(f"{p.sequence:,}", f"{p.rows:,}", f"{p.efficiency:.2%}", f"{p.cut:.2%}")
    parts: list[Any] = [sources, modalities, rows]
    if stats.rejects:
        bad = Table(box=box.SIMPLE_HEAD)
        for head in ("rejected because", "samples", "in"):
            bad.add_column(head, justify="right" if head == "samples" else "left")
        for reason, by in stats.rejects.items():
            bad.add_row(reason, f"{sum(by.values()):,}", ", ".join(f"{s} {n:,}" for s, n in by.items()))
        parts.append(bad)
    if stats.left_out:
        parts.append(_left_out(stats))
    parts += [
        unknown_line(name, s["unknown"], s["characters"]) for name, s in stats.sources.items() if s.get("unknown")
    ]
    if stats.languages:
        parts.append(_languages(stats))
    parts.append(_outliers(stats))
    parts.append(duplicates_line(stats.duplicates))
    parts.append(f"{stats.bytes / 1e6:,.1f} MB in {stats.shards} shards, {stats.bytes_per_token:.2f} bytes a token")
    return Group(*parts)


def duplicates_line(found: Duplicates) -> str:
    """For a person: how many, and how it is known."""
    if not found.share:
        sampled = "" if found.exact else f" in a sample of {found.hashes:,}, taken by the contents' hashes"
        return f"No document repeats the content of another{sampled}"
    known = "exact" if found.exact else f"estimated from {found.hashes:,} documents, taken by their contents' hashes"
    about = "" if found.exact else "About "
    return f"{about}{found.documents:,} documents ({found.share:.2%}) repeat the content of another; {known}"


def _languages(stats: Statistics) -> Table:
    languages = Table(box=box.SIMPLE_HEAD)
    languages.add_column("language")
    for head in ("documents", "tokens"):
        languages.add_column(head, justify="right")
    for code, language in sorted(stats.languages.items(), key=lambda item: (-item[1]["tokens"], item[0])):
        languages.add_row(escape(code), f"{language['documents']:,}", f"{language['tokens']:,}")
    return languages


def _left_out(stats: Statistics) -> Table:
    found = Table(box=box.SIMPLE_HEAD)
    found.add_column("left out")
    for head in ("how many", "bytes"):
        found.add_column(head, justify="right")
    found.add_column("for example; why; what would take it in", overflow="fold")
    for source, rows in stats.left_out.items():
        for row in rows:
            told = f"{row.example}; {row.why}; {row.cure}"
            found.add_row(
                escape(f"{source}: {row.kind}"), f"{row.count:,}", f"{row.bytes:,}" if row.bytes else "–", escape(told)
            )
    return found


def _outliers(stats: Statistics) -> Table:
    longest = Table(box=box.SIMPLE_HEAD)
    longest.add_column("longest documents of")
    longest.add_column("tokens", justify="right")
    longest.add_column("to see it", overflow="fold")
    for one in stats.longest:
        longest.add_row(one.source, f"{one.tokens:,}", escape(one.command))
    return longest


def _outlier(manifest: Manifest, source: str, tokens: int, sample: str) -> Outlier:
    return Outlier(source, tokens, sample, f"motet view {shlex.quote(str(manifest.store))} {sample}")


def _with_marks(source: Mapping[str, Any], lengths: Mapping[int, int]) -> Counter[int]:
    """{length in training: documents} of one source; documents that hold more media than others are taken as the longest."""
    media = sum(count for modality, count in source["spans"].items() if modality != "text")
    each, more = divmod(media, max(source["documents"], 1))
    found: Counter[int] = Counter()
    for length, count in sorted(lengths.items(), reverse=True):
        richer = min(count, more)
        more -= richer
        found[length + MARKS * (each + 2)] += richer
        found[length + MARKS * (each + 1)] += count - richer
    return +found


def _codebook(modality: str, index: int, counts: np.ndarray) -> Codebook:
    share = counts[counts > 0] / max(counts.sum(), 1)
    perplexity = float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0
    return Codebook(modality, index, len(counts), len(share), perplexity)
