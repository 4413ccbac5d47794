"""What decoding an audio or video file costs, read from its headers and frames without decoding.

A small file can decode to any amount: a frame of silence has a few bytes. Therefore samples and frames are counted as
well as the duration, and formats that are not counted here are unknown.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

FORMATS = ("WAV", "FLAC", "MP3", "MP4", "QuickTime")
"""Formats whose cost is known."""

VALUES_PER_SECOND = 48_000
"""Decoded values (samples times channels) that count as one second, if that is more than the duration."""

MOST_FRAMES = 768
"""Most frames that a reader of videos returns (Qwen's FPS_MAX_FRAMES)."""

FRAMES_PER_SECOND = 2
"""Frames per second that it returns (Qwen's FPS)."""

LARGEST_FRAME = 36_000_000
"""Most pixels of one frame of a video: an 8K frame has 33 million."""

MOST_BOXES = 1000
"""Most boxes on one level of an MP4 file; a video has about ten, and one more per track."""

_HEAD_BYTES = 1 << 20
"""Bytes at the beginning of a WAV file in which its header is searched for."""


@dataclass(frozen=True)
class Cost:
    """What decoding a file costs.

    Args:
        seconds: its duration, or the time that its decoded values would fill at `VALUES_PER_SECOND` if that is longer;
            infinite if the file is not usable.
        pixels: pixels of all frames that a reader returns.
    """

    seconds: float
    pixels: float = 0


UNUSABLE = Cost(math.inf)


def cost_of(path: Path) -> Cost | None:
    """The cost of a file in one of the `FORMATS`; None for other formats."""
    with path.open("rb") as file:
        head = file.read(12)
        try:
            if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
                return _of_wav(file, path.stat().st_size)
            if head[:4] == b"fLaC":
                return _of_flac(file)
            if head[:3] == b"ID3" or _is_frame(head):
                return _of_mp3(path.read_bytes())
            if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return _of_mp4(file, path.stat().st_size)
        except (struct.error, ZeroDivisionError, IndexError):
            return UNUSABLE
    return None


def _of_sound(samples: float, channels: int, rate: float) -> Cost:
    """Decoders resample, so that a rate of 1 Hz turns one sample into thousands."""
    return Cost(max(samples / rate, samples * channels / VALUES_PER_SECOND))


# --- WAV, FLAC, MP3 -----------------------------------------------------------------------------------------

_PCM, _FLOAT, _LAWS, _EXTENSIBLE = 1, 3, (6, 7), 0xFFFE


def _of_wav(file: IO[bytes], size: int) -> Cost:
    """Only uncompressed samples; their number follows from the size of one, not from what the header calls a block."""
    position = 12
    while position < min(size, _HEAD_BYTES):
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"fmt ":
            content = file.read(min(length, 40))
            form, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            if form == _EXTENSIBLE:
                (form,) = struct.unpack("<H", content[24:26])
            if form not in (_PCM, _FLOAT, *_LAWS):
                return UNUSABLE
            width = 1 if form in _LAWS else max(1, (bits + 7) // 8)
            return _of_sound(size / width / channels, channels, rate)
        position += 8 + length + length % 2
    return UNUSABLE


def _of_flac(file: IO[bytes]) -> Cost:
    file.seek(8 + 10)
    (word,) = struct.unpack(">Q", file.read(8))
    rate, channels, samples = word >> 44, (word >> 41 & 7) + 1, word & ((1 << 36) - 1)
    return _of_sound(samples, channels, rate) if samples else UNUSABLE


_BITRATES = {  # kbit/s by index; the index 0 (any) and 15 are not usable
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_TAGS_BYTES = 1 << 16
"""Most bytes after the last frame of an MP3 file, where old players look for tags."""


def _of_mp3(data: bytes) -> Cost:
    """Every frame is counted, because headers of the whole file are optional and not needed to decode it."""
    position = 10 + _synchsafe(data[6:10]) if data[:3] == b"ID3" else 0
    seconds = values = 0.0
    while _is_frame(data[position : position + 4]):
        _, version_and_layer, rates, mode = data[position : position + 4]
        version = version_and_layer >> 3 & 3
        rate = _RATES[version][rates >> 2 & 3]
        bitrate = _BITRATES[version == 3][(rates >> 4) - 1] * 1000
        samples = 1152 if version == 3 else 576
        position += samples // 8 * bitrate // rate + (rates >> 1 & 1)
        seconds += samples / rate
        values += samples * (1 if mode >> 6 == 3 else 2)
    if not seconds or len(data) - position > _TAGS_BYTES:
        return UNUSABLE
    return Cost(max(seconds, values / VALUES_PER_SECOND))


def _is_frame(head: bytes) -> bool:
    """Whether a frame of MPEG audio, layer III, begins with these bytes, and its length is known."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] >> 3 & 3 == 1:
        return False
    return head[2] >> 4 not in (0, 15) and head[2] >> 2 & 3 != 3


def _synchsafe(data: bytes) -> int:
    return sum((one & 0x7F) << shift for one, shift in zip(data, (21, 14, 7, 0), strict=True))


# --- MP4 and QuickTime --------------------------------------------------------------------------------------

_CONTAINERS = (b"trak", b"mdia", b"minf", b"stbl")
_USED = frozenset(
    ((b"trak", b"tkhd"), (b"mdia", b"mdhd"), (b"mdia", b"hdlr"), (b"stbl", b"stsd"), (b"stbl", b"stsz"),
     (b"stbl", b"stz2"))
)  # fmt: skip
"""The boxes of a track that are read, with the box that contains them; each is there once."""

_DATA = frozenset(b"text tx3g tmcd mebx mett gpmd fdsc camm c608 c708 rtp  wvtt stpp sbtl".split(b" "))
_UNCOMPRESSED = (b"sowt", b"twos", b"raw ", b"in24", b"in32", b"fl32", b"fl64", b"lpcm", b"ipcm", b"fpcm",
                 b"ulaw", b"alaw")  # fmt: skip
_AAC_VALUES = 2 * 1024
"""Values of a packet of AAC, the usual compression."""

_Places = dict[bytes, tuple[int, int]]
"""Name of a box -> start and end of its content."""


def _of_mp4(file: IO[bytes], size: int) -> Cost:
    """The longest track. Packets are counted too, because the stated duration says nothing about their number."""
    moov = next((one for one in _boxes(file, 0, size) if one[0] == b"moov"), None)
    if moov is None:
        return UNUSABLE
    stated, tracks = 0.0, list[_Places]()
    for path, start, end in _inside(file, *moov[1:], (b"moov",)):
        if path == (b"moov", b"mvex"):  # the packets are anywhere in the file
            return UNUSABLE
        if path == (b"moov", b"mvhd"):
            stated = max(stated, _stated(file, start))
        if path == (b"moov", b"trak"):
            tracks.append(_Places())
        if path[-2:] in _USED and tracks and tracks[-1].setdefault(path[-1], (start, end)) != (start, end):
            return UNUSABLE
    if not tracks:
        return UNUSABLE
    costs = [_of_track(file, one) for one in tracks]
    return Cost(max(stated, *(one.seconds for one in costs)), sum(one.pixels for one in costs))


def _of_track(file: IO[bytes], places: _Places) -> Cost:
    if not {b"hdlr", b"mdhd", b"stsd"} <= places.keys() or not {b"stsz", b"stz2"} & places.keys():
        return UNUSABLE
    (kind,) = _fields(file, places[b"hdlr"][0] + 8, ">4s")
    seconds = _stated(file, places[b"mdhd"][0])
    sizes = places.get(b"stsz") or places[b"stz2"]
    (packets,) = _fields(file, sizes[0] + 8, ">I")
    start, end = places[b"stsd"]
    entries = list(_boxes(file, start + 8, end))
    if kind == b"soun":
        values = [_values(file, one, packets) for one in entries]
        return Cost(max(seconds, *(one / VALUES_PER_SECOND for one in values)))
    if kind != b"vide":  # decoders take it for sound or video if the format of the packets says so
        return Cost(seconds) if all(one[0] in _DATA for one in entries) else UNUSABLE
    frames = min(packets, MOST_FRAMES, 4 + FRAMES_PER_SECOND * seconds)
    area = max(_display(file, *places.get(b"tkhd", (0, 0))), *(_area(file, one[1]) for one in entries))
    return Cost(seconds, frames * area if 0 < area <= LARGEST_FRAME else math.inf)


def _values(file: IO[bytes], entry: tuple[bytes, int, int], packets: int) -> int:
    if entry[0] not in _UNCOMPRESSED:
        return packets * _AAC_VALUES
    (channels,) = _fields(file, entry[1] + 16, ">H")
    return int(packets * channels)


def _area(file: IO[bytes], entry: int) -> int:
    width, height = _fields(file, entry + 24, ">HH")
    return int(width * height)


def _display(file: IO[bytes], start: int, end: int) -> int:
    """The area at which a track is shown."""
    width, height = _fields(file, end - 8, ">HxxHxx") if end > start else (0, 0)
    return int(width * height)


def _inside(
    file: IO[bytes], start: int, end: int, path: tuple[bytes, ...]
) -> Iterator[tuple[tuple[bytes, ...], int, int]]:
    """The boxes in a box, those in its tracks and so on, each with the names that lead to it."""
    for name, inner, last in _boxes(file, start, end):
        yield (*path, name), inner, last
        if name in _CONTAINERS and len(path) <= len(_CONTAINERS):
            yield from _inside(file, inner, last, (*path, name))


def _boxes(file: IO[bytes], start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box, and the start and end of its content."""
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            return
        length, name = _fields(file, start, ">I4s")
        begin = start + 8
        if length == 1:
            (length,) = _fields(file, begin, ">Q")
            begin += 8
        last = end if length == 0 else start + length
        if last < begin:
            raise struct.error("a box that is shorter than its header")
        yield name, begin, min(last, end)
        start = last
    raise struct.error("too many boxes")


def _stated(file: IO[bytes], start: int) -> float:
    (version,) = _fields(file, start, ">B")
    scale, duration = _fields(file, start + 20, ">IQ") if version == 1 else _fields(file, start + 12, ">II")
    return float(duration / scale)


def _fields(file: IO[bytes], start: int, form: str) -> tuple[Any, ...]:
    file.seek(start)
    return struct.unpack(form, file.read(struct.calcsize(form)))
