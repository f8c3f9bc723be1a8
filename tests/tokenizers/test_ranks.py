"""Both regex engines put every Unicode code point into the same class, in every expression that we let tiktoken cut by."""

from __future__ import annotations

import pytest
import tiktoken
from tokenizers import Regex, pre_tokenizers

from motet.tokenizers.text.ranks import PATTERNS

POINTS = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
STEP = 61  # all of them take two minutes; CI takes these and the planes where letters and marks are
SAMPLE = [*POINTS[:0x3000], *POINTS[0x3000::STEP]]


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_both_engines_cut_alike(name):
    cut = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated").pre_tokenize_str
    for before, after in [("a", ""), ("1", ""), (" ", ""), ("!", ""), ("A", ""), ("'", ""), ("", "a"), ("", "'s")]:
        probes = [before + point + after for point in SAMPLE]
        # A piece that is a token as a whole becomes one id; probes that are cut become several.
        ranks = {bytes([byte]): byte for byte in range(256)}
        for probe in probes:
            ranks.setdefault(probe.encode(), len(ranks))
        encode = tiktoken.Encoding("probe", pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
        different = [p for p in probes if (len(cut(p)) == 1) != (len(encode.encode_ordinary(p)) == 1)]
        assert not different, (before, after, different[:5])
