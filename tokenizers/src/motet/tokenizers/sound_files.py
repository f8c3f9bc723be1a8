"""What a sound file's own bytes say before anything is decoded: is it sound, what was joined in it, does it end early.

    file --`parts`--> the sounds that were joined into it, each a file whose header says how long it is --`cut_short`-->

Who writes to a pipe cannot go back to fill in a length, and leaves a placeholder: it is replaced by what is there. Ogg
files may be joined by appending one to the other, which players play to the end; libsndfile reads the first. So may MP3
files, which are `mpeg`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from motet.tokenizers import mpeg

MEASURED = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"caff", b".snd", b"dns.")
"""WAV and its kin, W64, CAF and AU: a field says how many bytes of samples there are."""
SIGNATURES = (*MEASURED, b"fLaC", b"OggS", b"FORM", b"NIST_1A", b"ID3")
W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


def is_sound(data: bytes) -> bool:
    """Whether it begins as a kind of sound file does that libsndfile reads."""
    if data.startswith(b"R"):  # RIFF is WebP and AVI too
        return data.startswith(SIGNATURES) and data[8:12] == b"WAVE"
    return data.startswith(SIGNATURES) or mpeg.is_mpeg(data)


def parts(data: bytes) -> Iterator[bytes]:
    """The sounds in a file, one after the other; each is a file whose header says its length."""
    if data.startswith(b"OggS"):
        begins = _ogg_begins(data)
        for begin, end in zip(begins, [*begins[1:], len(data)], strict=True):
            yield data if end - begin == len(data) else data[begin:end]
    elif mpeg.frame_size(data, mpeg.after_tags(data, 0)) is not None:
        yield from mpeg.parts(data)
    else:
        yield _measured(data)


def without_length(data: bytes) -> bool:
    """Whether it is FLAC of which nobody knows how long it is, as its writer could not go back to say."""
    at = mpeg.after_tags(data, 0)
    return data.startswith(b"fLaC", at) and not int.from_bytes(data[at + 21 : at + 26], "big") & ((1 << 36) - 1)


def cut_short(data: bytes) -> bool:
    """Whether a file ends before its own structure does; of formats that do not tell, libsndfile counts the samples."""
    if data.startswith(b"FORM"):
        return 8 + int.from_bytes(data[4:8], "big") > len(data)
    if data.startswith(b"OggS"):
        return not _ogg_is_whole(data)
    if data.startswith(b"NIST_1A"):
        return _sphere_end(data) > len(data)
    place = _data_chunk(data)
    if place is None:  # it ends before the sound begins
        return data.startswith(MEASURED)
    return place.end > len(data)


class _Place:
    """Where a file says how long its samples are: `size` as it says, in `form` at byte `at`; the samples begin at `begin`."""

    def __init__(self, data: bytes, form: str, at: int, begin: int, own: int = 0):
        self.form, self.at, self.begin, self.own = form, at, begin, own
        field = data[at : at + struct.calcsize(form)]
        self.size = struct.unpack(form, field)[0] if len(field) == struct.calcsize(form) else 0
        self.end = begin + self.size - own  # `own`: bytes of the chunk's header that its size counts

    def is_open(self, data: bytes) -> bool:
        """Whether the size is a placeholder: the largest number, or one just below or above 2^31; or none, and samples follow."""
        if self.begin >= len(data):
            return False
        if self.size <= 0:
            return not (data.startswith(b"R") and _only_chunks(data, self.begin))
        if self.form[1] == "q":
            return self.size >= 1 << 62
        return (0x7FFF0000 <= self.size <= 0x80001000 or self.size >= 0xFFFF0000) and self.end > len(data)


def _data_chunk(data: bytes) -> _Place | None:
    """The place of the samples' size in WAV, RF64, W64, CAF and AU; None if it is not there."""
    if data.startswith((b".snd", b"dns.")):
        order = ">" if data.startswith(b".snd") else "<"
        return _Place(data, f"{order}I", 8, *struct.unpack(f"{order}I", data[4:8])) if len(data) >= 24 else None
    if data.startswith(b"riff"):
        for at, size in _w64_chunks(data):
            if data.startswith(W64_DATA, at):
                return _Place(data, "<q", at + 16, at + 24, 24)
            if size < 24:
                break
        return None
    if data.startswith(b"caff"):
        at = 8
        while at + 12 <= len(data):
            if data.startswith(b"data", at):
                return _Place(data, ">q", at + 4, at + 16, 4)  # four bytes of an edit count come first
            at += 12 + max(int.from_bytes(data[at + 4 : at + 12], "big", signed=True), 0)
        return None
    if not data.startswith((b"RIFF", b"RIFX", b"RF64", b"BW64")):
        return None
    order, sizes = (">", "big") if data.startswith(b"RIFX") else ("<", "little")
    at, long = 12, None
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], sizes)  # type: ignore[arg-type]
        if data.startswith(b"ds64", at):
            long = at + 16
        if data.startswith(b"data", at):
            if long and data.startswith((b"RF64", b"BW64")) and size == 0xFFFFFFFF:
                return _Place(data, "<q", long, at + 8)
            return _Place(data, f"{order}I", at + 4, at + 8)
        at += 8 + size + size % 2
    return None


def _measured(data: bytes) -> bytes:
    """The same file, with the size of its samples in place of a placeholder."""
    if data.startswith(b"BW64"):  # RF64 by its later name, which libsndfile does not know
        data = b"RF64" + data[4:]
    place = _data_chunk(data)
    if place is None or not place.is_open(data):
        return data
    size = len(data) - place.begin + place.own
    filled = bytearray(data)
    struct.pack_into(place.form, filled, place.at, size)
    if data.startswith((b"RIFF", b"RIFX")):
        struct.pack_into(place.form, filled, 4, len(data) - 8)
    elif data.startswith(b"riff"):
        struct.pack_into("<q", filled, 16, len(data))
    elif data.startswith(b"RF64"):
        struct.pack_into("<q", filled, place.at - 8, len(data) - 8)
    return bytes(filled)


def _w64_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    at = 40
    while at + 24 <= len(data):
        size = int.from_bytes(data[at + 16 : at + 24], "little", signed=True)
        yield at, size
        at += max(-(-size // 8) * 8, 24)


def _is_name(name: bytes) -> bool:
    """Whether these bytes could be the name of a RIFF chunk."""
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _only_chunks(data: bytes, at: int) -> bool:
    """Whether nothing but whole RIFF chunks comes from here on: no samples."""
    sizes = "big" if data.startswith(b"RIFX") else "little"
    while at < len(data):
        if not _is_name(data[at : at + 4]):
            return False
        size = int.from_bytes(data[at + 4 : at + 8], sizes)  # type: ignore[arg-type]
        at += 8 + size + size % 2
    return at <= len(data) + 1


def _sphere_end(data: bytes) -> int:
    """Where a SPHERE file ends by its header; 0 if that does not tell."""
    fields = {}
    for line in data[:1024].split(b"\n")[2:]:
        words = line.split()
        if len(words) == 3 and words[1] == b"-i" and words[2].isdigit() and len(words[2]) < 16:
            fields[words[0]] = int(words[2])
    size = data[8:16].strip()
    if not size.isdigit() or not {b"sample_count", b"sample_n_bytes"} <= fields.keys():
        return 0
    return int(size) + fields[b"sample_count"] * fields[b"sample_n_bytes"] * fields.get(b"channel_count", 1)


def _ogg_pages(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(begin, end, flags) of every page; what lies between pages is passed over."""
    at = 0
    while (at := data.find(b"OggS", at)) >= 0 and at + 27 <= len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        yield at, end, data[at + 5]
        at = end


def _ogg_begins(data: bytes) -> list[int]:
    """Where each link of a chained Ogg file begins: with the first page of a stream after a page that is none."""
    begins, heads = [0], True
    for at, _, flags in _ogg_pages(data):
        if flags & 2 and not heads:
            begins.append(at)
        heads = bool(flags & 2)
    return begins


def _ogg_is_whole(data: bytes) -> bool:
    """Whether page follows page up to one that ends its stream."""
    ends, before = False, 0
    for begin, end, flags in _ogg_pages(data):
        if (begin != before and not (ends and flags & 2)) or end > len(data):
            return False
        ends, before = bool(flags & 4), end
    return ends
