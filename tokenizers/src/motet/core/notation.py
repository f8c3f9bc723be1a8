"""YAML as people write it, and as somebody may write it who wants to stop a machine: text -> plain values, or YAMLError.

    text --PyYAML's scanner--> events --`_Reader.compose_node`: depth, size, keys--> nodes --`construct_object`--> values

PyYAML keeps the last of two equal keys, follows aliases to any size, and lets whatever its constructors raise pass. The
hooks that it offers are used to refuse all three at the place where they stand; scanning and meaning are its own.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

LARGEST = 1 << 20
"""Characters of a text."""
DEEPEST = 64
"""Lists and mappings inside each other."""
MOST_VALUES = 50_000
"""Values of a text, those that an alias repeats counted every time."""
MOST_DIGITS = 100
"""Characters of a whole number: Python does not print those of some thousands."""
NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What an escape may write into a string and no setting can hold: files and terminals refuse it."""


def parsed(text: str) -> Any:
    """The value of a YAML text; YAMLError if it is none that settings can be made of."""
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"{len(text):,} characters; settings have at most {LARGEST:,}")
    reader = _Reader(text)
    try:
        return reader.get_single_data()
    finally:
        reader.dispose()


def told(error: yaml.YAMLError) -> str:
    """What is wrong, in one line, and where: `: found a key twice` or `, line 3: ...`, to follow the text's name."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if isinstance(error, yaml.reader.ReaderError):
        problem = f"character #x{error.character:04x} at place {error.position}: {error.reason}"
    else:
        problem = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
    where = f", line {mark.line + 1}" if mark else ""
    return f"{where}: not valid YAML: {' '.join(problem.split()):.200}"


class _Reader(yaml.SafeLoader):
    """PyYAML's safe loader, with limits."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; counts what it would be if every alias were written out."""
        event, before = self.peek_event(), self._values
        mark: Any = event.start_mark
        if self._depth == DEEPEST:
            raise ComposerError(None, None, f"nested more than {DEEPEST} deep", mark)
        self._depth += 1
        self._values += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            size = self._sizes.get(id(node))
            if size is None:
                raise ComposerError(None, None, f"*{event.anchor} stands inside itself", mark)
            self._values += size
        self._sizes[id(node)] = self._values - before
        if self._values > MOST_VALUES:
            raise ComposerError(None, None, f"more than {MOST_VALUES:,} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """The next mapping; before `<<` is merged into it, which may repeat keys."""
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if isinstance(key, yaml.ScalarNode) and name in seen:
                raise ComposerError(None, None, f"'{key.value:.40}' stands in line {seen[name]} too", key.start_mark)
            seen[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The value of a node; whatever a constructor raises is an error at its place."""
        kind = node.tag.rpartition(":")[2]
        if kind == "int" and len(node.value) > MOST_DIGITS:
            raise ConstructorError(None, None, f"a number of {len(node.value):,} characters", node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise ConstructorError(None, None, f"{node.value!r:.40} is no {kind}; quote it", node.start_mark) from None
        if isinstance(value, str) and (odd := NO_TEXT.search(value)):
            raise ConstructorError(None, None, f"a string with the character #x{ord(odd[0]):04x}", node.start_mark)
        return value
