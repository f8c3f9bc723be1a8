"""For MkDocs: what a page links to outside of docs/ (`../examples`) becomes its path in the repository.

In the repository such a link is followed; on the site there is nothing to follow it to. A path that does not exist is a
warning, which ends a strict build as any broken link does.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.links")
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """The page with those links replaced."""
    docs = Path(config["docs_dir"])
    here = docs / page.file.src_uri

    def replaced(link: re.Match[str]) -> str:
        text, target = link.groups()
        place = (here.parent / target).resolve()
        if place.is_relative_to(docs):
            return link[0]
        if not place.exists():
            log.warning(f"{page.file.src_uri}: links to {target}, which does not exist")
        path = f"`{place.relative_to(docs.parent)}`"
        return path if text.strip("`/") == path.strip("`") else f"{text}, {path}"

    return LINK.sub(replaced, markdown)
