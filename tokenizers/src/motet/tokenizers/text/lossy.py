"""Vocabularies that cannot say every text: what of it no token stands for is counted, and too much of it refused.

    text --`tokenizers`, with the places of its tokens--> ids, characters without a token --> Tokens | BadSample

A `tokenizer.json` without all bytes writes `<unk>` for what it lacks, or nothing. Both are characters lost: those below an
unknown token, and those (but white space, which many vocabularies cut off) below none at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from motet.tokenizers.contract import BadSample, Tokens
from motet.tokenizers.text.ranks import BYTE_OF

BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
DROPPING = ('"Removed"', '"Whitespace"', '"WhitespaceSplit"', '"BertPreTokenizer"', '"CharDelimiterSplit"')
"""Ways of cutting text that leave something out."""
SHOWN = 12


@dataclass(frozen=True)
class Lossy:
    """A tokenizer of the library `tokenizers`, its unknown id (-1 if it has none), and the largest share it may lose."""

    model: Any
    unknown: int
    limit: float

    @classmethod
    def of(cls, model: Any, content: Mapping[str, Any], limit: float) -> Lossy | None:
        """For a `tokenizer.json` (parsed), if there may be text that it cannot say; None if there is none."""
        kind, cut = content["model"], json.dumps(content.get("pre_tokenizer"))
        vocabulary = model.get_vocab(with_added_tokens=False)
        says_bytes = (kind.get("byte_fallback") and vocabulary.keys() >= BYTES) or (
            '"ByteLevel"' in cut + json.dumps(content.get("normalizer")) and vocabulary.keys() >= BYTE_OF.keys()
        )
        if says_bytes and not any(word in cut for word in DROPPING):
            return None
        token, place = kind.get("unk_token"), kind.get("unk_id")
        unknown = vocabulary.get(token, -1) if token is not None else -1 if place is None else place
        return cls(model, unknown, limit)

    def encode(self, text: str) -> Tokens:
        """Ids of a text, and how much of it has none; BadSample `unknown-characters` if that is too much."""
        encoding = self.model.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        place_N2 = np.array(encoding.offsets, np.int64).reshape(-1, 2)[ids != self.unknown]
        depth = np.zeros(len(text) + 1, np.int64)
        np.add.at(depth, place_N2[:, 0], 1)
        np.add.at(depth, place_N2[:, 1], -1)
        missing = [text[i] for i in np.flatnonzero(depth.cumsum()[:-1] == 0).tolist() if not text[i].isspace()]
        if len(missing) > self.limit * len(text):
            some = "".join(dict.fromkeys(missing))[:SHOWN]
            raise BadSample(
                "unknown-characters", f"{len(missing)} of {len(text)} characters have no token, as {some!r}"
            )
        return Tokens((len(ids),), ids, unknown=len(missing), characters=len(text))
