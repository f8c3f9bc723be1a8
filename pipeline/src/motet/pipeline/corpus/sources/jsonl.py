"""JSON lines: where a file is cut, its lines with their places, a line as a row.

    file --`cuts` (seeks, for text) | `rows` (reads, where rows name media)--> ranges of bytes --`lines`--> (offset, line) --`row`--> dict

A line's place is its byte offset (in the decompressed stream, if it is compressed), so that a plan need not count lines.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
import zstandard

from motet.core.errors import UserError
from motet.pipeline.corpus import files
from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.patterns import listed
from motet.pipeline.corpus.sources.media import inside
from motet.pipeline.corpus.sources.sample import MAX_FILE, Cut, Digest, Note, RawSample, Version, language_of, reject
from motet.pipeline.dataset.rejects import Reject
from motet.tokenizers.contract import BadSample
from motet.tokenizers.media import utf16

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition

ARRAY = "a JSON array; write one object a line, as jq -c '.[]' does"
COMPRESSED = (".gz", ".zst")
PEEK = 1 << 14
"""Bytes read at a time to find the end of a line; doubled while none is found."""

SLICE = 1 << 12
"""Bytes of .zst that are decompressed at a time: they can become 128 MiB, no more."""


def cuts(path: str, size: int, step: int) -> list[int]:
    """Where lines begin that follow the multiples of `step`; first 0, last `size`. Reads little of each range."""

    def begins(multiple: int) -> int:
        at, peek = multiple - 1, PEEK
        while at < size:
            block = files.read(path, at, min(at + peek, size))
            if (found := block.find(b"\n")) >= 0:
                return at + found + 1
            at, peek = at + len(block), min(2 * peek, files.REMOTE_BLOCK)
        return size

    places = [0]
    if files.is_remote(path):
        with ThreadPoolExecutor(32) as pool:
            places += pool.map(begins, range(step, size, step))
    else:
        at = step
        while at < size:
            places.append(begins(at))
            at = max(at + step, -(-places[-1] // step) * step)  # a long line is gone through once
    return sorted({*places, size})


def lines(blocks: Iterable[bytes], begin: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line without its end); blank lines are left out; None for one that is longer than MAX_FILE."""
    rest: list[bytes] = []
    held, too_long = 0, False
    for block in blocks:
        first, *others = block.split(b"\n")
        held += len(first)
        too_long = too_long or held > MAX_FILE
        if too_long:
            rest.clear()
        else:
            rest.append(first)
        for other in others:
            line = b"".join(rest) if len(rest) > 1 else rest[0] if rest else b""
            if too_long:
                yield begin, None
            elif line and not line.isspace():
                yield begin, line
            begin += held + 1
            rest, held, too_long = [other], len(other), False
    line = b"".join(rest)
    if too_long:
        yield begin, None
    elif line and not line.isspace():
        yield begin, line


def decompressed(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The content of a .gz or .zst stream, of one or several members, in bounded memory; BadSample where it breaks."""
    gz = name.endswith(".gz")
    make: Callable[[], Any] = (lambda: zlib.decompressobj(31)) if gz else _zstandard
    stream, fresh = make(), True
    try:
        for block in blocks:
            while block:
                if gz:
                    while block:
                        yield stream.decompress(block, files.BLOCK)
                        block, fresh = stream.unconsumed_tail, False
                        if stream.eof:
                            break
                else:
                    yield stream.decompress(block[:SLICE])
                    block, fresh = block[SLICE:], False
                if stream.eof:
                    block = stream.unused_data.lstrip(b"\0") if gz else stream.unused_data + block
                    stream, fresh = make(), True
    except (zlib.error, zstandard.ZstdError) as error:
        raise BadSample("broken-compression", str(error)) from None
    if not fresh:
        raise BadSample("truncated-file", f"the {name[name.rfind('.') :]} stream ends early")


def _zstandard() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()


def row(line: bytes) -> dict[str, Any]:
    """The object of a line; BadSample if it is none."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = _other(line)
    if not isinstance(value, dict):
        cure = f"; {ARRAY}" if isinstance(value, list) else ""
        raise BadSample("not-an-object", f"a {type(value).__name__} where an object was expected{cure}")
    return value


def _other(line: bytes) -> Any:
    """What orjson refuses and Python's own reader takes: a byte-order mark, NaN, lone surrogates; and why, if it does not."""
    try:
        return json.loads(line.decode("utf-8-sig"))  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise BadSample("invalid-utf8", utf16(line) or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise BadSample("not-json", utf16(line) or _array(line) or str(error)) from None


def _array(line: bytes) -> str:
    """That a line is one of a JSON value over several, and what to do about it; empty if it does not look so."""
    line = line.strip()
    if (
        line == b"["
        or (line.endswith(b",") and line.startswith((b"{", b"[{")))
        or (line[:2] == b"[{" and line[-1:] == b"}")
    ):
        return f"a line of {ARRAY}"
    return "a JSON object over several lines; write it on one, as jq -c does" if line == b"{" else ""


def found(entry: Entry, where: str) -> tuple[str, list[tuple[str, Version]]]:
    """(root of media, (path, version) of every file) that an entry's path means."""
    if files.is_folder(entry.path):
        raise UserError(f"{where}: path: {entry.path} is a folder; format '{entry.format}' needs a JSONL file")
    if entry.root and not files.is_folder(entry.root):
        raise UserError(f"{where}: root: {entry.root} is no folder")
    folder, infos = listed(entry.path)
    root = entry.root or folder
    own = []
    for name, info in infos.items():
        path = files.join(folder, name)
        if path.endswith(COMPRESSED):
            raise UserError(f"{where}: path: {path} is compressed, and its rows name files; decompress it first")
        if path.startswith(f"{root}/"):
            name = path[len(root) + 1 :]
        own.append((path, (files.printable(name), info.size, info.version)))
    return root, own


def rows(
    path: str, own: Version, root: str, config: Cutting, named: Callable[[dict[str, Any]], list[Any]]
) -> Iterator[Cut]:
    """Ranges of a file whose rows name media (`named`), with the media's versions: what decides what becomes of them."""
    look = files.listing(root)
    begin = end = count = 0
    media: dict[str, Version] = {}

    def cut_off() -> Cut:
        size = end - begin + sum(max(size, 0) for _, size, _ in media.values())
        return Cut(root=root, span=(path, begin, end), versions=(own, *media.values()), size=size)

    for offset, line in lines(files.blocks(path, 0, own[1])):
        after = offset + (len(line) + 1 if line is not None else 0)
        if count and (after - begin > config.partition_bytes or count == config.partition_samples):
            yield cut_off()
            begin, count, media = end, 0, {}
        try:
            names = named(row(line)) if line is not None else []
        except (BadSample, KeyError, TypeError, AttributeError):
            names = []  # the line will be rejected when it is read
        for name in names:
            if isinstance(name, str) and name not in media:
                info = look(name) if inside(name) else None
                printable = files.printable(name)
                media[name] = (printable, info.size, info.version) if info else (printable, -1, "")
        end, count = min(after, own[1]), count + 1
    if count:
        end = own[1]
        yield cut_off()


def read(
    partition: Partition, note: Note, parts: Callable[[dict[str, Any]], tuple[tuple[str, bytes], ...]]
) -> Iterator[RawSample | Reject]:
    """Every line of a partition; `parts` makes a sample of a row."""
    assert partition.span is not None
    path, begin, end = partition.span
    name, field, digest = partition.versions[0][0], partition.entry.language, Digest()
    stream: Iterator[bytes] = (digest.update(block) for block in files.blocks(path, begin, end))
    if path.endswith(COMPRESSED):
        stream = decompressed(stream, path)
    offset, line = begin, None
    try:
        for offset, line in lines(stream, begin):
            try:
                if line is None:
                    raise BadSample("line-too-large", f"more than {MAX_FILE} bytes")
                found = row(line)
                yield RawSample(f"{name}@{offset}", parts(found), language_of(found, field) if field else "")
            except BadSample as bad:
                yield reject(f"{name}@{offset}", bad, line or b"")
    except BadSample as bad:  # what was read stands; the rest cannot be told apart any more
        detail = f"{bad.detail}; what follows is lost"
        yield reject(f"{name}@{offset + (len(line) + 1 if line else 0)}", BadSample(bad.reason, detail))
    note(name, digest.size, digest.hash)


def first_row(path: str) -> dict[str, Any]:
    """The first row of a file, as far as its first 64 KiB tell; empty if there is none, or one that will be rejected."""
    info = files.stat(path)
    if info is None:
        return {}
    try:
        return row(files.read(path, 0, min(info.size, 1 << 16)).split(b"\n", 1)[0])
    except (BadSample, files.Changed):
        return {}
