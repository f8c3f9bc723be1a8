"""How far a long job is, for a person: a bar on a terminal, a plain line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


def shown(parts: Iterable[int], total: int, unit: str, name: str, more: Callable[[], str] = str) -> Iterator[int]:
    """Pass `parts` on, whose sum will be `total` (`B` for bytes), and show on stderr how far they are and what `more` says."""
    terminal = sys.stderr.isatty()
    begin, next_line = time.monotonic(), time.monotonic() + SECONDS_BETWEEN_LINES
    with tqdm(total=total, unit=unit, unit_scale=unit == "B", desc=name, disable=not terminal) as bar:
        done = 0
        for part in parts:
            done += part
            bar.set_postfix_str(more(), refresh=False)
            bar.update(part)
            if not terminal and (time.monotonic() >= next_line or done == total):
                next_line = time.monotonic() + SECONDS_BETWEEN_LINES
                amount = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB" if unit == "B" else f"{done} of {total} {unit}"
                told = ", ".join(filter(None, (amount, more(), f"{time.monotonic() - begin:.0f} s")))
                print(f"{name}: {told}", file=sys.stderr, flush=True)
            yield part
