"""URLs without what gives access: passwords, and the signatures of presigned links, which change from day to day.

    https://me:word@host/a.jsonl?X-Amz-Signature=5f... --`public`--> https://host/a.jsonl    a message --`censored`--> the same message

What is public names the same file, may be stored and printed, and is equal after the link was signed anew.
"""

from __future__ import annotations

import re

URL = re.compile(r"""\b[A-Za-z][\w+.-]*://(?:[^\s"'<>]*[^\s"'<>:;,.)\]}])?""")
CHAIN = re.compile(r"::(?=[A-Za-z][\w+.-]*://)")
"""Between an archive's member and where the archive lies, as fsspec writes it."""
USER = re.compile(r"^[^/?#]*@|^[^/?#\[:@]*:(?!\d*(?:[/?#]|$))(?:[^?#]*@)?[^/?#]*")
"""What stands before a host: all up to an @; or, where a message was cut off before it, what cannot be a host and its port."""
SIGNED = re.compile(
    r"x-(?:amz|goog|oss|obs|cos|tos)-signature|sig|signature|s3_signature|x-(?:amz|goog)-credential", re.I
)
"""Parameters of the stores that sign a path: what else stands beside one of them belongs to the signature."""
SECRET = re.compile(
    r"x-(?:amz|goog|oss|obs|cos|tos|ms)-|.*(?:sig|token|secret|passw|pwd|auth|cred|key|jwt|hmac|policy|expire|session)",
    re.I,
)
"""Parameters of other servers that give access, by how they are called everywhere."""


def public(url: str) -> str:
    """The same URL without user, password and signature; any other text as it is."""
    return "::".join(map(_one, CHAIN.split(url)))


def _one(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    rest = USER.sub("", rest, count=1)
    path, _, query = rest.partition("?")
    if not query or scheme.lower() not in ("http", "https"):  # elsewhere ? is a character of names and patterns
        return f"{scheme}://{rest}"
    given = [part for part in query.split("&") if part]
    names = [part.partition("=")[0] for part in given]
    signed = any(map(SIGNED.fullmatch, names))
    kept = [part for part, name in zip(given, names, strict=True) if not signed and not SECRET.match(name)]
    return f"{scheme}://{path}{'?' * bool(kept)}{'&'.join(kept)}"


def censored(text: str) -> str:
    """A message in which every URL is public."""
    return URL.sub(lambda found: public(found[0]), text) if "://" in text else text
