"""When tiktoken gives the same ids as `tokenizers`: a `tokenizer.json` -> proof -> ranks that tiktoken encodes with.

Both libraries cut text by a regular expression and then merge neighbours inside each piece, one pair at a time.
`tokenizers` merges the pairs of a list, earliest in the list first; tiktoken merges any neighbours whose concatenation is
a token, lowest rank first; both take the leftmost of equals. Let the ranks follow the list. Then the two agree on every text if

1. all 256 bytes are tokens, and the merges that make the same token stand together in the list;
2. for each longer token t, merged alone as tiktoken would: if it comes down to two parts, that pair is in the list.

Why: suppose that they agree up to some state, and that two neighbours x', y' there make t. No merge has crossed the ends
of t yet, so what happened between them is what happens to t alone, which has only one state of two parts: x' and y' are
the pair of 2, in the list, and the only one of t's merges that can stand anywhere in this state. So both libraries
choose among the same pairs, in the same order.

A piece that is a token as a whole is taken as such by tiktoken at once. So must it be by the merges: each token, alone,
must be reached (`ignore_merges` in the file says that `tokenizers` takes a short cut too; then it need not).

How text is cut is compared by name: `PATTERNS` are the expressions for which both regex engines put every Unicode code
point into the same class (tests/tokenizers/test_ranks.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

BLANK = 16_384
UNUSED = "\0no special token\0"
"""The one special token that tiktoken is told of, and never allowed to use: text that holds it is encoded as text. With
none at all `encode_to_numpy`, which needs no Python object per token, looks for the empty string at every character."""


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
    """

    pattern: str
    ranks: Mapping[bytes, int]
    ids: np.ndarray | None = None

    def encoder(self) -> Callable[[str], np.ndarray]:
        """The function from a text to its ids, int32."""
        import tiktoken

        encoding = tiktoken.Encoding(
            "motet",
            pat_str=self.pattern,
            mergeable_ranks=dict(self.ranks),
            special_tokens={UNUSED: 1 + max(self.ranks.values())},
        )
        ids = self.ids
        if ids is None:
            return lambda text: encoding.encode_to_numpy(text, disallowed_special=()).view(np.int32)
        return lambda text: ids.take(encoding.encode_to_numpy(text, disallowed_special=()))


def too_blank(text: str) -> bool:
    """Whether tiktoken must not see this text: its regex engine aborts on some 100,000 whitespace characters in a row.

    True if any aligned block of `BLANK` characters is whitespace only, as in every run of twice that length.
    """
    return len(text) > BLANK and any(
        text[i].isspace() and text[i : i + BLANK].isspace() for i in range(0, len(text) - BLANK, BLANK)
    )


def ranks_of(content: Mapping[str, Any]) -> Ranks | str:
    """Ranks that give exactly the ids of a `tokenizer.json` (parsed), or why there are none, in one line.

    They are for text that is normalized already and holds no added tokens.
    """
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        return f"a {model.get('type')} model, not BPE"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"the model has {option}"
    pattern = _pattern(content.get("pre_tokenizer") or {})
    if pattern is None:
        return "text is cut by an expression that tiktoken is not known to read alike"
    vocabulary: dict[str, int] = model["vocab"]
    if not BYTE_OF.keys() <= vocabulary.keys():
        return "not every byte is a token"
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = [left + right for left, right in merges]
    rank = {token: place for place, token in enumerate(dict.fromkeys([*BYTE_OF, *made]))}
    places = [rank[token] for token in made]
    if places != sorted(places):
        return "the merges of one token are scattered over the list"
    whole = bool(model.get("ignore_merges"))
    if whole:
        unmade = (token for token in vocabulary if token not in rank and BYTE_OF.keys() >= set(token))
        rank |= {token: len(rank) + place for place, token in enumerate(unmade)}
    listed = set(merges)
    for token in list(rank)[256:]:
        parts = _last_parts(token, rank)
        if len(parts) > 2 and not whole:
            return f"token {token!r} is not reached by its merges"
        if len(parts) == 2 and parts not in listed:
            return f"token {token!r} is made of other parts than its merge says"
    ids = [vocabulary[token] for token in rank]
    # A byte's rank is never compared, only a merged token's: where those have rising ids, the ids serve as ranks.
    own = ids[256:] == sorted(ids[256:])
    ranks = {bytes(BYTE_OF[c] for c in token): ids[place] if own else place for token, place in rank.items()}
    return Ranks(pattern, ranks, None if own else np.array(ids, np.int32))


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
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return PATTERNS["gpt2"] if last.get("use_regex", True) else None
    split = steps[0]
    # Every character is matched by these expressions, so to keep the matches and to drop what lies between are the same.
    keeps_all = (split.get("behavior"), split.get("invert")) in (("Isolated", False), ("Removed", True))
    if len(steps) > 2 or split.get("type") != "Split" or not keeps_all or last.get("use_regex", True):
        return None
    expression = split["pattern"].get("Regex")
    return expression if expression in PATTERNS.values() else None


def _last_parts(token: str, rank: Mapping[str, int]) -> tuple[str, ...]:
    """A token merged alone, lowest rank first: the two parts before the last merge, or more where it gets no further."""
    parts = list(token)
    while len(parts) > 2:
        found = [(rank[pair], i) for i in range(len(parts) - 1) if (pair := parts[i] + parts[i + 1]) in rank]
        if not found:
            break
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)
