"""JSON files that show any damage: the last field is the hash of all bytes before it.

    text of a JSON object --`seal`--> the same object with a last field "xxh3" --store--> `unseal` --> the object, or ValueError

JSON itself notices few flipped bits: a changed digit is another count, and a commit's goes into the next manifest. Equal
objects still give equal bytes, and any JSON reader reads a sealed file.
"""

from __future__ import annotations

import json
from typing import Any

import xxhash

FIELD = "xxh3"


def seal(text: str) -> bytes:
    """The text of a JSON object that is not empty, with its hash as its last field."""
    body = (text.rstrip().removesuffix("}").rstrip() + ",\n").encode()
    return body + _end(body)


def unseal(data: bytes) -> dict[str, Any]:
    """The object of a sealed file, without its hash; ValueError if one bit is not as it was written."""
    size = len(_end(b""))
    if data[-size:] != _end(data[:-size]):
        raise ValueError("its bytes are not what was written")
    found: dict[str, Any] = json.loads(data)
    del found[FIELD]
    return found


def _end(body: bytes) -> bytes:
    return f' "{FIELD}": "{xxhash.xxh3_64_hexdigest(body)}"\n}}\n'.encode()
