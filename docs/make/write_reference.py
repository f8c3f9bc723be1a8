"""Write the reference: docstrings of settings, help texts of verbs -> docs/reference/*.md.

    python docs/make/write_reference.py            # writes both pages; `make docs` does this first

The pages are committed, so that they can be read without being built, and `tests/test_reference.py` compares them with what this
would write. A field, an argument or an option without words ends it.
"""

from __future__ import annotations

from pathlib import Path

import reference_command as command
import reference_configuration as configuration

FOLDER = Path(__file__).resolve().parent.parent / "reference"
PAGES = {"configuration.md": configuration.page, "command.md": command.page}


def main() -> None:
    """Write every page anew."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
