"""When tiktoken gives the same ids as `tokenizers`: a `tokenizer.json` -> proof -> ranks that tiktoken encodes with.

Both libraries cut text by a regular expression and then merge neighbours inside each piece. `tokenizers` merges the pairs
of a list, in the list's order; tiktoken merges any neighbours whose concatenation is in the vocabulary, lowest rank first.
With ranks in the order of the merge list the two agree on every text if

1. all 256 bytes are tokens, every other token that can arise is made by exactly one merge (x, y), and
2. each such token, merged alone by the merges before its own, ends as exactly [x, y].

Why: suppose that they agree until tiktoken picks a pair (x', y') that makes t but is not the merge of t. Until then all
merges between the ends of t lay inside t, so they were those of t alone. If all of them came before t's merge, t alone
ends as [x', y'], against 2. If one came later than t's merge, then just before it, by 2, [x, y] stood there and would have
been merged first. So there is no such pair.

Point 2 is checked along the border of x and y: the pieces that touch it are the right edge of x's tree of merges and the
left edge of y's, each alive from its own rank to its parent's. A merge across the border is possible exactly where two of
them are alive at the rank of their pair; `_stays_apart` walks both edges once.

How text is cut is compared by name: `PATTERNS` are the expressions for which both regex engines put every Unicode code
point into the same class (tests/tokenizers/test_ranks.py, exhaustively).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np

PATTERNS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    "cl100k": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "qwen2": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "o200k": "|".join(
        [
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    ),
}


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(printable)))}
    return alphabet


BYTE_OF = _byte_alphabet()


@dataclass(frozen=True)
class Ranks:
    """What tiktoken encodes with.

    Attributes:
        pattern: the regular expression that cuts text.
        ranks: each token's bytes -> its place in the order of merges.
        ids: the vocabulary's id of each rank, int32; None if the ranks are the ids.
        added: tokens that are looked for in the text before it is cut -> their rank.
    """

    pattern: str
    ranks: Mapping[bytes, int]
    ids: np.ndarray | None = None
    added: Mapping[str, int] = field(default_factory=dict)

    def encoder(self) -> Callable[[str], np.ndarray]:
        """The function from a text to its ids, int32."""
        import tiktoken

        encoding = tiktoken.Encoding(
            "motet", pat_str=self.pattern, mergeable_ranks=dict(self.ranks), special_tokens=dict(self.added)
        )
        ids, added = self.ids, set(self.added)

        def encode(text: str) -> np.ndarray:
            if added:
                found = encoding.encode(text, allowed_special=added, disallowed_special=())
            else:
                found = encoding.encode_ordinary(text)
            ranks = np.array(found, np.int32)
            return ranks if ids is None else ids[ranks]

        return encode


def ranks_of(content: Mapping[str, Any]) -> Ranks | str:
    """Ranks that give exactly the ids of a `tokenizer.json` (parsed) on every text, or why there are none, in one line."""
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        return f"a {model.get('type')} model, not BPE"
    if content.get("normalizer"):
        return f"text is normalized first ({content['normalizer'].get('type')})"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"the model has {option}"
    pattern = _pattern(content.get("pre_tokenizer") or {})
    if pattern is None:
        return "text is cut by an expression that tiktoken is not known to read alike"
    vocabulary: dict[str, int] = model["vocab"]
    if any(character not in vocabulary for character in BYTE_OF):
        return "not every byte is a token"
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    tokens = [*BYTE_OF, *(left + right for left, right in merges)]
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    if len(rank_of) < len(tokens):
        return "a token is made by more than one merge"
    parents = [(rank_of.get(left, len(tokens)), rank_of.get(right, len(tokens))) for left, right in merges]
    if any(max(pair) >= 256 + place for place, pair in enumerate(parents)):
        return "a merge needs a token that comes later"
    pairs = {pair: 256 + place for place, pair in enumerate(parents)}
    for place, (left, right) in enumerate(parents):
        if not _stays_apart(left, right, 256 + place, parents, pairs):
            return f"token {tokens[256 + place]!r} cannot be reached by the merges before it"
    added = _added(content.get("added_tokens") or [])
    if isinstance(added, str):
        return added
    ids = np.array([vocabulary[token] for token in tokens] + list(added.values()), np.int32)
    ranks = {bytes(BYTE_OF[character] for character in token): rank for token, rank in rank_of.items()}
    return Ranks(pattern, ranks, ids, {token: len(tokens) + i for i, token in enumerate(added)})


def token_bytes(vocabulary: Mapping[str, int], added: Mapping[str, int], size: int) -> list[bytes]:
    """The bytes of each id of a byte-level vocabulary; of an added token its name, of an id without a token nothing."""
    table = [b""] * size
    for token, i in vocabulary.items():
        known = all(character in BYTE_OF for character in token)
        table[i] = bytes(BYTE_OF[character] for character in token) if known else token.encode()
    for token, i in added.items():
        table[i] = token.encode()
    return table


def _pattern(pre: Mapping[str, Any]) -> str | None:
    """The expression that a pre-tokenizer cuts by, if it is byte-level and the expression is one of `PATTERNS`."""
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    *splits, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not splits:
        return PATTERNS["gpt2"] if last.get("use_regex", True) else None
    expression = splits[0].get("pattern", {}).get("Regex")
    plain = splits[0].get("behavior") == "Isolated" and not splits[0].get("invert")
    if len(splits) > 1 or splits[0].get("type") != "Split" or not plain or last.get("use_regex", True):
        return None
    return expression if expression in PATTERNS.values() else None


def _stays_apart(
    left: int, right: int, limit: int, parents: list[tuple[int, int]], pairs: Mapping[tuple[int, int], int]
) -> bool:
    """Whether no merge with a rank below `limit` crosses the border between two tokens while both are being built.

    The walk goes back in time: the piece made last is taken apart first. A pair across the border would have been merged
    if its rank came before the parents of both pieces; at equal rank the leftmost occurrence goes first, so the parent of
    the left piece wins over the pair and the pair over the parent of the right piece.
    """
    left_until, right_until = limit, limit
    while True:
        crossing = pairs.get((left, right))
        if crossing is not None and crossing < left_until and crossing <= right_until:
            return False
        if left < 256 and right < 256:
            return True
        if left >= right:
            left, left_until = parents[left - 256][1], left
        else:
            right, right_until = parents[right - 256][0], right


def _added(tokens: list[Mapping[str, Any]]) -> dict[str, int] | str:
    """The added tokens that are looked for in raw text (the special ones are not), or why tiktoken would find others."""
    sought = {token["content"]: token["id"] for token in tokens if not token["special"]}
    for token in tokens:
        if token["content"] in sought and (token["lstrip"] or token["rstrip"] or token["single_word"]):
            return f"added token {token['content']!r} is matched with its surroundings"
    names = [token["content"] for token in tokens]
    for one, other in permutations(names, 2):
        if (one in sought or other in sought) and _overlap(one, other):
            return f"added tokens {one!r} and {other!r} overlap"
    return sought


def _overlap(one: str, other: str) -> bool:
    """Whether `other` can begin inside `one`."""
    return other in one or any(one.endswith(other[:size]) for size in range(1, len(other)))
