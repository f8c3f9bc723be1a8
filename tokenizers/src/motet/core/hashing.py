"""Content hashes: what tells whether two things are the same, on any machine."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xxhash


def content_hash(*parts: Any) -> str:
    """xxh3-128 (hex) over bytes, arrays and JSON-able values, each length-prefixed so that parts cannot run together."""
    state = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = str(part.dtype).encode() + str(part.shape).encode() + np.ascontiguousarray(part).tobytes()
        elif not isinstance(part, bytes):
            part = json.dumps(part, sort_keys=True, ensure_ascii=False).encode()
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()
