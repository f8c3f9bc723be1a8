"""What pyarrow does not tell of an Arrow file before it reads it: where its messages lie, and whether they are compressed.

    a file --`blocks`: its footer--> (begin, end) of dictionaries and of record batches --`plain`--> a message, or ValueError

A compressed message says itself how large it becomes, and pyarrow believes it: a few kilobytes can ask for all memory there
is. A shard is never compressed. Both are FlatBuffers (Arrow's Message.fbs and File.fbs), which pyarrow has verified before
these few lines follow them.
"""

from __future__ import annotations

import struct

import pyarrow as pa

MAGIC = b"ARROW1"
Span = tuple[int, int]


def blocks(file: pa.Buffer) -> tuple[list[Span], list[Span]]:
    """(dictionaries, record batches) of a file that `pa.ipc.open_file` has opened: [begin, end) of each one's message;
    ValueError if they do not lie in it.
    """
    view = memoryview(file)
    end = len(view) - len(MAGIC) - 4
    try:
        (size,) = struct.unpack_from("<i", view, end)
        footer = view[end - size : end]
        table = _root(footer)
        found = _spans(footer, table, 2), _spans(footer, table, 3)
    except struct.error as error:
        raise ValueError(f"its footer is damaged: {error}") from None
    if any(not 0 <= begin < stop <= end for begin, stop in (*found[0], *found[1])):
        raise ValueError("its footer is damaged: it points out of the file")
    return found


def plain(message: pa.Buffer) -> pa.Message:
    """A record batch's or dictionary's message of these bytes; ValueError if it is none, or compressed."""
    try:
        read = pa.ipc.read_message(message)
    except (EOFError, OSError) as error:
        raise ValueError(f"it is no whole message: {error}") from None
    return uncompressed(read)


def uncompressed(message: pa.Message) -> pa.Message:
    """The message itself, of a record batch or dictionary; ValueError if it is compressed, or another."""
    try:
        metadata = memoryview(message.metadata)
        header = _followed(metadata, _root(metadata), 2)
        if message.type == "dictionary" and header:
            header = _followed(metadata, header, 1)
        elif message.type != "record batch":
            raise ValueError(f"a {message.type} stands where a record batch should")
        compressed = header and _field(metadata, header, 3)
    except struct.error as error:
        raise ValueError(f"it is no whole message: {error}") from None
    if compressed:
        raise ValueError("it is compressed, which is never written")
    return message


def _root(data: memoryview) -> int:
    return int(struct.unpack_from("<I", data)[0])


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a table lies; 0 if it is left out."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    at = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + at)[0] if at + 2 <= size else 0
    return table + offset if offset else 0


def _followed(data: memoryview, table: int, number: int) -> int:
    """Where the table or vector lies that a field refers to; 0 if it is left out."""
    at = _field(data, table, number)
    return at + struct.unpack_from("<I", data, at)[0] if at else 0


def _spans(footer: memoryview, table: int, number: int) -> list[Span]:
    """A vector of Arrow's struct Block: offset, length of the metadata, length of the body."""
    at = _followed(footer, table, number)
    if not at:
        return []
    (count,) = struct.unpack_from("<I", footer, at)
    found = (struct.unpack_from("<qi4xq", footer, at + 4 + 24 * i) for i in range(count))
    return [(begin, begin + metadata + body) for begin, metadata, body in found]
