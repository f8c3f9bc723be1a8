"""MPEG audio (MP3) by its frames: a file -> the files that were joined in it, each with a tag that says how long it is.

    ID3 tag, frame with a Xing tag (counts frames), frame, frame, ..., ID3 tag, frame with a Xing tag, frame, ...

libsndfile believes the first Xing tag, and where there is none it guesses the length from the first frame: of a file with
varying bitrates it then reads a part (measured: a third), and of joined ones the first. Nothing is decoded here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

SIDE = {(3, False): 32, (3, True): 17, (2, False): 17, (2, True): 9, (0, False): 17, (0, True): 9}
"""Bytes between a layer III frame's header and its Xing tag, by version (3: MPEG 1, 2: MPEG 2, 0: 2.5) and whether it is mono."""
BITRATES = {
    (3, 3): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""kbit/s by (version, layer bits: 3 is layer I, 1 is III); MPEG 2.5 has those of MPEG 2, and layer III there those of II."""
RATES = (44_100, 48_000, 32_000)


def frame_size(data: bytes, at: int) -> int | None:
    """Bytes of the frame (layers I to III) whose header stands at `at`; None if none does."""
    if len(data) < at + 4 or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, data[at + 1] >> 1 & 3
    rate, bits, padding = data[at + 2] >> 2 & 3, data[at + 2] >> 4, data[at + 2] >> 1 & 1
    if version == 1 or layer == 0 or rate == 3 or bits in (0, 15):
        return None
    table = BITRATES[3 if version == 3 else 2, layer if version == 3 or layer == 3 else 2]
    hertz = RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    if layer == 3:
        return (12_000 * table[bits] // hertz + padding) * 4
    return (72_000 if layer == 1 and version != 3 else 144_000) * table[bits] // hertz + padding


def is_mpeg(data: bytes) -> bool:
    """Whether it begins with a frame of layer II or III that another one follows: UTF-16 begins like a frame of layer I."""
    size = frame_size(data, 0)
    if size is None or _layer(data, 0) == 3:
        return False
    return size + 4 > len(data) or (frame_size(data, size) is not None and _kind(data, size) == _kind(data, 0))


def after_tags(data: bytes, at: int) -> int:
    """Where what follows ID3 tags (of either version) begins."""
    while True:
        if data.startswith(b"ID3", at) and at + 10 <= len(data):
            size = 0
            for byte in data[at + 6 : at + 10]:
                size = size << 7 | byte & 0x7F
            at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
        elif data.startswith(b"TAG", at):
            at += 128
        else:
            return at


def parts(data: bytes) -> Iterator[bytes]:
    """The files that were joined in this one, which begins with a frame, or with tags and a frame."""
    at = begin = after_tags(data, 0)
    tagged = [*sorted(_tagged(data)), len(data)]
    while at < len(data):
        following = tagged[bisect_right(tagged, at)]
        if _xing(data, at) is not None:
            end = _told_end(data, at, following)
            yield data[at:end] if begin or end < len(data) else data
        else:
            end, frames = _walk(data, at, following)
            if following == len(data) and frame_size(data, end) and _kind(data, end) == _kind(data, at):
                end, frames = following, frames + 1  # of the last frame a part is missing: the count says so
            yield data[at:end] if frames < 2 or _layer(data, at) != 1 else _tag(data, at, frames) + data[at:end]
        at = begin = _next_frame(data, end, following)


def _layer(data: bytes, at: int) -> int:
    return data[at + 1] >> 1 & 3


def _kind(data: bytes, at: int) -> tuple[int, int, bool]:
    """What stays the same in all frames of one stream: version and layer, rate, whether it is mono."""
    return data[at + 1] & 0xFE, data[at + 2] & 0x0C, data[at + 3] >> 6 == 3


def _xing(data: bytes, at: int) -> int | None:
    """Where the Xing or Info tag of the frame at `at` is, if it has one."""
    if frame_size(data, at) is None or _layer(data, at) != 1:
        return None
    tag = at + 4 + SIDE[data[at + 1] >> 3 & 3, data[at + 3] >> 6 == 3]
    return tag if data[tag : tag + 4] in (b"Xing", b"Info") else None


def _tagged(data: bytes) -> set[int]:
    """Where frames with a Xing tag begin."""
    begins = set()
    for name in (b"Xing", b"Info"):
        tag = data.find(name, 13)
        while tag >= 0:
            begins |= {tag - 4 - side for side in (32, 17, 9) if tag >= 4 + side and _xing(data, tag - 4 - side) == tag}
            tag = data.find(name, tag + 1)
    return begins


def _walk(data: bytes, at: int, end: int, most: int = 1 << 62) -> tuple[int, int]:
    """From frame to frame of one kind, at most so many: where the last whole one ends, and how many there are."""
    kind, frames = _kind(data, at), 0
    while frames < most and (size := frame_size(data, at)) and at + size <= end and _kind(data, at) == kind:
        at += size
        frames += 1
    return at, frames


def _told_end(data: bytes, begin: int, end: int) -> int:
    """Where the file ends that begins with the tagged frame at `begin`: `end`, if the tag does not say that it ends before."""
    tag = _xing(data, begin)
    assert tag is not None
    flags = data[tag + 7] if tag + 16 <= len(data) else 0
    if not flags & 1:
        return end
    told = begin + int.from_bytes(data[tag + 12 : tag + 16], "big") if flags & 2 else begin
    if told > begin and _next_frame(data, told, end) == end:
        return end
    frames = int.from_bytes(data[tag + 8 : tag + 12], "big") + 1  # the frame of the tag is not counted
    at, walked = _walk(data, begin, end, frames)
    return at if walked == frames and _next_frame(data, at, end) < end else end


def _next_frame(data: bytes, at: int, end: int) -> int:
    """Where the next frame begins that another one follows, or `end`; tags and what is neither are passed over."""
    at = after_tags(data, at)
    while 0 <= at < end:
        size = frame_size(data, at)
        if (
            size
            and frame_size(data, at + size) is not None
            and at + size < end
            and _kind(data, at) == _kind(data, at + size)
        ):
            return at
        at = data.find(b"\xff", at + 1, end)
    return end


def _tag(data: bytes, at: int, frames: int) -> bytes:
    """A frame for before the one at `at`, with a Xing tag that counts frames."""
    head = bytearray(data[at : at + 4])
    head[1] |= 1  # no checksum
    for bits in range(1, 15):
        head[2] = bits << 4 | head[2] & 0x0C
        size = frame_size(bytes(head), 0) or 0
        if size >= 64:
            break
    side = SIDE[head[1] >> 3 & 3, head[3] >> 6 == 3]
    return bytes(head) + bytes(side) + b"Xing\0\0\0\1" + frames.to_bytes(4, "big") + bytes(size - side - 16)
