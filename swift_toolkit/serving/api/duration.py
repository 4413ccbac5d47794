"""Duration of audio and video files, read from their headers without decoding."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_HEAD_BYTES = 1 << 20
"""Bytes at the beginning of a file in which its header is searched for."""

MOST_BOXES = 1000
"""Most boxes on one level of an MP4 file; a video has about ten, and one more per track."""


def seconds_of(path: Path) -> float | None:
    """The duration in seconds that a WAV, FLAC, MP4 or QuickTime file states; infinite if the header is not usable,
    None for other formats.
    """
    with path.open("rb") as file:
        head = file.read(12)
        try:
            if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
                return _of_wav(file, path.stat().st_size)
            if head[:4] == b"fLaC":
                return _of_flac(file)
            if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return _of_mp4(file, path.stat().st_size)
        except (struct.error, ZeroDivisionError):
            return float("inf")
    return None


def _of_wav(file: IO[bytes], size: int) -> float:
    """Sample bytes divided by a rate; decoders resample, so a rate of 1 Hz turns one sample into thousands."""
    position = 12
    while position < min(size, _HEAD_BYTES):
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"fmt ":
            channels, rate, _, block = struct.unpack("<HIIH", file.read(16)[2:14])
            return float(size / (block or channels) / rate)
        position += 8 + length + length % 2
    return float("inf")


def _of_flac(file: IO[bytes]) -> float:
    file.seek(8 + 10)
    (word,) = struct.unpack(">Q", file.read(8))
    rate, samples = word >> 44, word & ((1 << 36) - 1)
    return float(samples / rate) if samples else float("inf")


def _of_mp4(file: IO[bytes], size: int) -> float:
    """The longest duration that the movie header and the tracks state."""
    moov = next((one for one in _boxes(file, 0, size) if one[0] == b"moov"), None)
    if moov is None:
        return float("inf")
    found = [_stated(file, start) for name, start, end in _inside(file, moov[1], moov[2]) if name in _TIMED]
    return max(found, default=float("inf"))


_TIMED = (b"mvhd", b"mdhd")


def _inside(
    file: IO[bytes], start: int, end: int, within: bytes = b"moov"
) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of a movie and its tracks."""
    for name, inner, last in _boxes(file, start, end):
        yield name, inner, last
        if (within, name) in ((b"moov", b"trak"), (b"trak", b"mdia")):
            yield from _inside(file, inner, last, name)


def _boxes(file: IO[bytes], start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box, and the start and end of its content."""
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            return
        file.seek(start)
        length, name = struct.unpack(">I4s", file.read(8))
        begin = start + 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            begin += 8
        last = end if length == 0 else start + length
        if last < begin:
            raise struct.error("a box that is shorter than its header")
        yield name, begin, min(last, end)
        start = last
    raise struct.error("too many boxes")


def _stated(file: IO[bytes], start: int) -> float:
    file.seek(start)
    version = file.read(4)[0]
    form, skip = (">IQ", 16) if version == 1 else (">II", 8)
    file.seek(start + 4 + skip)
    scale, duration = struct.unpack(form, file.read(struct.calcsize(form)))
    return float(duration / scale)
