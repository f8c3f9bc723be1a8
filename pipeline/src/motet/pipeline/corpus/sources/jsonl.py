"""JSON lines: where a file is cut, its lines with their places, a line as a row.

    file --`cuts` (seeks, for text) | `rows` (reads, where rows name media)--> ranges of bytes --`lines`--> (offset, line) --`row`--> dict

A line's place is its byte offset (in the decompressed stream, if it is compressed), so that cutting need not count lines.
"""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import zstandard

from motet.core.errors import UserError
from motet.pipeline.corpus import files
from motet.pipeline.corpus.entry import Cutting, Entry
from motet.pipeline.corpus.patterns import listed
from motet.pipeline.corpus.sources.media import below, inside
from motet.pipeline.corpus.sources.sample import MAX_FILE, Cut, Digest, Note, RawSample, Version, language_of, reject
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.dataset.rejects import LOST_REST, Reject
from motet.tokenizers.contract import BadSample
from motet.tokenizers.media import utf16

if TYPE_CHECKING:
    from motet.pipeline.corpus.sources.sample import Partition

ARRAY = "a JSON array; write one object a line, as jq -c '.[]' does"
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
MOST_SHAPES = 256
"""Sets of fields that are remembered while the lines of a partition are counted."""
PEEK = 1 << 14
"""Bytes read at a time to find the end of a line; doubled while none is found."""

WINDOW = 1 << 27
"""Bytes of the largest window that a .zst may have been compressed with."""
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


def compression(name: str) -> str:
    """The ending, in lower case, that says how a file is compressed; empty if it is not."""
    return next((ending for ending in COMPRESSED if name.lower().endswith(ending)), "")


def lines(blocks: Iterable[bytes], begin: int = 0, blank: bool = False) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line without its end); blank lines are left out unless `blank`; None for one that is longer than MAX_FILE."""
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
            elif blank or (line and not line.isspace()):
                yield begin, line
            begin += held + 1
            rest, held, too_long = [other], len(other), False
    line = b"".join(rest)
    if too_long:
        yield begin, None
    elif line and not line.isspace():
        yield begin, line


def decompressed(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The content of a compressed stream, of one or several members, in bounded memory; BadSample where it breaks."""
    ending = compression(name)
    if ending in (".bz2", ".xz"):
        yield from _bounded(blocks, ending)
        return
    gz = ending == ".gz"
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
        if "too much memory" in str(error):
            raise UserError(_too_wide(name)) from None
        raise BadSample("broken-compression", str(error)) from None
    if not fresh:
        raise BadSample("truncated-file", f"the {ending} stream ends early")


def _bounded(blocks: Iterable[bytes], ending: str) -> Iterator[bytes]:
    """`decompressed` of .bz2 and .xz, whose readers bound what they give themselves."""
    make: Callable[[], Any] = bz2.BZ2Decompressor if ending == ".bz2" else _xz
    stream, fresh = make(), True
    for block in blocks:
        if fresh:
            block = block.lstrip(b"\0")  # padding between streams
        while block or not (fresh or stream.needs_input):
            try:
                data = stream.decompress(block, files.BLOCK)
            except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
                raise BadSample("broken-compression", str(error)) from None
            yield data
            block, fresh = b"", False
            if stream.eof:
                block, stream, fresh = stream.unused_data.lstrip(b"\0"), make(), True
    if not fresh:
        raise BadSample("truncated-file", f"the {ending} stream ends early")


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=1 << 28)


def _zstandard() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()


def refuse_wide(path: str, size: int) -> None:
    """UserError for a .zst that takes too much memory to read, as far as its beginning tells: before anything is done."""
    try:
        window = zstandard.get_frame_parameters(files.read(path, 0, min(size, 18))).window_size
    except (zstandard.ZstdError, OSError, files.Changed):
        return  # whoever reads it will say more
    if window > WINDOW:
        raise UserError(_too_wide(path))


def _too_wide(path: str) -> str:
    return (
        f"{path}: reading it takes more memory than {WINDOW >> 20} MiB, because it was compressed with a larger window (zstd "
        f"--long); compress it again without: zstd -dc --long=31 {path} | zstd -o NEW.zst"
    )


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


@dataclass(frozen=True)
class Form:
    """How a file is cut into records, and what a record says.

    Attributes:
        records: blocks of bytes and the place where they begin -> (place, record), None for one that is too large.
        parse: a record -> its fields by name; BadSample if it has none.
        begin: where the first record begins.
    """

    records: Callable[[Iterable[bytes], int], Iterator[tuple[int, bytes | None]]]
    parse: Callable[[bytes], dict[str, Any]]
    begin: int = 0


JSON = Form(lines, row)


class Fields:
    """Counts the fields of rows that no rule reads; those of equal rows at once."""

    def __init__(self, rest: Rest, used: Container[Any], why: str, cure: str, of: str = "") -> None:
        self._rest, self._used, self._why, self._cure, self._of = rest, used, why, cure, of
        self._shapes: dict[tuple[str, ...], list[Any]] = {}

    def count(self, row: dict[str, Any], place: str, offset: int | None = None) -> None:
        """One row more; `place` and `offset` name it, if it is the first of its kind."""
        shape = tuple(row)
        if (known := self._shapes.get(shape)) is not None:
            known[0] += 1
            return
        if len(self._shapes) == MOST_SHAPES:
            self.close()
        self._shapes[shape] = [1, place if offset is None else f"{place}@{offset}"]

    def close(self) -> None:
        """Tell the rest."""
        for shape, (count, example) in self._shapes.items():
            for key in shape:
                if key not in self._used:
                    name = key.encode("utf-8", "backslashreplace").decode()[:64]
                    kind = f"field '{name}'{self._of}"
                    self._rest.add("field", kind, example, self._why, self._cure.format(name), count)
        self._shapes = {}


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
        if compression(path):
            raise UserError(f"{where}: path: {path} is compressed, and its rows name files; decompress it first")
        if path.startswith(f"{root}/"):
            name = path[len(root) + 1 :]
        own.append((path, (files.printable(name), info.size, info.version)))
    return root, own


def rows(
    path: str,
    own: Version,
    root: str,
    config: Cutting,
    named: Callable[[dict[str, Any]], list[Any]],
    form: Form = JSON,
    look: Callable[[str], files.Info | None] | None = None,
) -> Iterator[Cut]:
    """Ranges of a file whose rows name media (`named`), with the media's versions: what decides what becomes of them."""
    look = look or files.listing(root)
    begin = end = form.begin
    count = 0
    media: dict[str, Version] = {}

    def cut_off() -> Cut:
        size = end - begin + sum(max(size, 0) for _, size, _ in media.values())
        return Cut(root=root, span=(path, begin, end), versions=(own, *media.values()), size=size)

    for offset, line in form.records(files.blocks(path, begin, own[1]), begin):
        after = offset + (len(line) + 1 if line is not None else 0)
        if count and (after - begin > config.partition_bytes or count == config.partition_samples):
            yield cut_off()
            begin, count, media = end, 0, {}
        try:
            names = named(form.parse(line)) if line is not None else []
        except (BadSample, KeyError, TypeError, AttributeError):
            names = []  # the line will be rejected when it is read
        for name in names:
            if isinstance(name, str) and (name := below(name, root)) not in media:
                media[name] = version(name, look)
        end, count = min(after, own[1]), count + 1
    if count:
        end = own[1]
        yield cut_off()


def version(name: str, look: Callable[[str], files.Info | None]) -> Version:
    """Of a media file that a row names."""
    try:
        info = look(name) if inside(name) else None
    except OSError as error:  # whoever reads it says what it is
        info = files.Info(0, str(error.errno))
    return (files.printable(name), info.size, info.version) if info else (files.printable(name), -1, "")


def read(
    partition: Partition,
    note: Note,
    parts: Callable[[dict[str, Any]], tuple[tuple[str, bytes], ...]],
    fields: Fields,
    form: Form = JSON,
) -> Iterator[RawSample | Reject]:
    """Every record of a partition; `parts` makes a sample of a row, `fields` counts what that does not read."""
    assert partition.span is not None
    path, begin, end = partition.span
    name, field, digest = partition.versions[0][0], partition.entry.language, Digest()
    stream: Iterator[bytes] = (digest.update(block) for block in files.blocks(path, begin, end))
    if compression(path):
        stream = decompressed(stream, path)
    offset, line = begin, None
    try:
        for offset, line in form.records(stream, begin):
            try:
                if line is None:
                    raise BadSample("line-too-large", f"more than {MAX_FILE} bytes")
                found = form.parse(line)
                fields.count(found, name, offset)
                yield RawSample(f"{name}@{offset}", parts(found), language_of(found, field) if field else "")
            except BadSample as bad:
                yield reject(f"{name}@{offset}", bad, line or b"")
    except BadSample as bad:  # what was read stands; the rest cannot be told apart any more
        detail = f"{bad}; nobody knows how much follows"
        yield reject(f"{name}@{offset + (len(line) + 1 if line else 0)}", BadSample(LOST_REST, detail))
    fields.close()
    note(name, digest.size, digest.hash)
