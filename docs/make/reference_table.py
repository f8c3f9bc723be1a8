"""A Markdown table that GitHub-like viewers and MkDocs both read."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One line a row; a bar inside of a cell does not end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    text = re.sub(r"`([^`|]*\|[^`]*)`", lambda code: f"<code>{html.escape(code[1])}</code>", text)
    return text.replace("|", "&#124;")
