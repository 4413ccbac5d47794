"""Media of a request: what is fetched, from where, and what is decoded."""

from __future__ import annotations

import asyncio
import base64
import http.server
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.serving.api import media
from swift_toolkit.serving.api.duration import Cost, cost_of
from swift_toolkit.serving.api.media import MediaStore, fetch, is_public
from swift_toolkit.serving.api.request import ApiError, Limits, Media

ROUTES: dict[str, Any] = {}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ROUTES["asked"].append((self.path, self.headers["Host"]))
        if self.path == "/good":
            self._send(200, b"picture")
        elif self.path.startswith("/to/"):
            self._send(302, b"", {"Location": ROUTES["to"]})
        elif self.path == "/long":
            self._send(200, b"x" * 300_000)
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                try:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.1)
        else:
            self._send(404, b"")

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """A site on this machine, which fetching would refuse."""
    ROUTES.clear()
    ROUTES["asked"] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://site.example:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Addresses of names, taken one after the other; 127.0.0.1 passes for a public address."""
    known: dict[str, list[str]] = {"site.example": ["127.0.0.1"]}
    real, public = socket.getaddrinfo, is_public

    def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in known:
            return real(host, port, *args, **kwargs)
        address = known[host].pop(0) if len(known[host]) > 1 else known[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(media, "is_public", lambda address: address == "127.0.0.1" or public(address))
    return known


def refusal(url: str, **more: Any) -> str:
    with pytest.raises(ApiError) as caught:
        fetch(url, 100_000, "images", **more)
    assert (caught.value.status, caught.value.param) == (400, "images")
    return caught.value.message


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "100.64.0.1", "224.0.0.1", "::1", "::",
     "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "::127.0.0.1",
     "fec0::1", "64:ff9b:1::7f00:1", "::ffff:0:127.0.0.1", "2001:db8::1", "2001::7f00:1", "5f00::1", "255.255.255.255",
     "198.18.0.1", "240.0.0.1"],
)  # fmt: skip
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


def test_a_public_address() -> None:
    assert is_public("1.1.1.1") and is_public("2606:4700::1111") and is_public("::ffff:1.1.1.1")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/", "http://localhost/", "http://[::1]/", "http://2130706433/", "http://0x7f.1/",
     "http://017700000001/", "http://127.1:9/", "http://[::ffff:7f00:1]/", "http://0/"],
)  # fmt: skip
def test_this_machine_is_not_asked(url: str) -> None:
    assert refusal(url) in (
        "images: the URL does not point to a public address.",
        "images: the URL cannot be fetched.",  # a system that does not read such a number as an address
    )


def test_a_name_is_looked_up_once(site: str, names: dict[str, list[str]]) -> None:
    """A name that leads elsewhere at the second look does not lead there."""
    names["site.example"] = ["127.0.0.1", "127.0.0.2"]
    assert fetch(f"{site}/good", 100_000, "images") == b"picture"
    assert ROUTES["asked"] == [("/good", site.removeprefix("http://"))]


def test_every_redirect_is_checked(site: str, names: dict[str, list[str]]) -> None:
    ROUTES["to"] = f"{site}/good"
    assert fetch(f"{site}/to/good", 100_000, "images") == b"picture"
    for to in (
        "http://127.0.0.2:80/",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "ftp://site.example/",
    ):
        ROUTES["to"] = to
        assert refusal(f"{site}/to/there") in (
            "images: the URL does not point to a public address.",
            "images: only http and https URLs without a user name can be fetched.",
        )
    ROUTES["to"] = "/to/again"
    assert refusal(f"{site}/to/again") == "images: the URL is redirected more than 3 times."


def test_size_and_time_are_bounded(site: str, names: dict[str, list[str]]) -> None:
    assert refusal(f"{site}/long") == "images: the content of the URL is larger than 100,000 bytes."
    began = time.monotonic()
    assert refusal(f"{site}/slow", seconds=0.5) in (
        "images: the URL was not fetched in time.",
        "images: the URL cannot be fetched.",
    )
    assert time.monotonic() - began < 3
    assert refusal(f"{site}/none") == "images: the URL returns status 404."
    assert refusal("http://user:word@site.example/") == (
        "images: only http and https URLs without a user name can be fetched."
    )


# --- pictures -----------------------------------------------------------------------------------------------


def prepare(folder: Path, *sources: str, limits: Limits | None = None) -> list[bytes]:
    """The content of the files of some pictures; nothing is left of them afterwards."""

    async def read() -> list[bytes]:
        store = MediaStore(folder, limits or Limits())
        async with store.files([Media("image", source, "images") for source in sources]) as paths:
            return [path.read_bytes() for path in paths]

    try:
        return asyncio.run(read())
    finally:
        assert list(folder.iterdir()) == []


def as_data(content: bytes) -> str:
    import base64

    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def bomb(width: int, height: int) -> bytes:
    """A small PNG of so many pixels; its content is not whole."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_a_picture_is_there_while_it_is_needed(tmp_path: Path) -> None:
    content = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(content, "PNG")
    assert prepare(tmp_path, as_data(content.getvalue())) == [content.getvalue()]


@pytest.mark.parametrize("pictures", [[bomb(30_000, 30_000)], [bomb(6_000, 6_000)] * 2])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, pictures: list[bytes]) -> None:
    with pytest.raises(ApiError) as caught:
        prepare(tmp_path, *map(as_data, pictures))
    assert caught.value.message == "The images have more than 50,000,000 pixels in total."


@pytest.mark.parametrize(
    "content", [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 50]
)
def test_what_is_not_a_picture(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        prepare(tmp_path, as_data(content))
    assert (
        caught.value.message
        == "images is not a complete image in one of the formats PNG, JPEG, WEBP, GIF, BMP."
    )


def jpeg(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    from PIL import Image

    made = io.BytesIO()
    Image.new("L", (64, 64)).save(made, "JPEG", progressive=True)
    content = made.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (scans - content.count(b"\xff\xda")) + content[-2:]


def test_a_jpeg_with_many_scans_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """200 kB of scans of 49 million pixels took 6.5 s; 16 MB would take ten minutes."""
    assert prepare(tmp_path, as_data(jpeg(100))) == [jpeg(100)]
    with pytest.raises(ApiError, match="images is a JPEG with more than 100 scans"):
        prepare(tmp_path, as_data(jpeg(101)))


def test_urls_that_take_long_do_not_keep_other_requests_waiting(
    tmp_path: Path, site: str, names: dict[str, list[str]]
) -> None:
    """asyncio has few threads, which also count the tokens of long prompts."""
    slow = [Media("image", f"{site}/slow", "images")]

    async def wait_for_a_thread() -> float:
        store = MediaStore(tmp_path, Limits(urls=True))
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))

        async def fetch_slowly() -> None:
            async with store.files(slow):
                pass

        fetching = [asyncio.ensure_future(fetch_slowly()) for _ in range(12)]
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await asyncio.to_thread(time.sleep, 0)
        waited = time.monotonic() - began
        await asyncio.gather(*fetching, return_exceptions=True)
        return waited

    assert asyncio.run(wait_for_a_thread()) < 2


# --- sounds and films ---------------------------------------------------------------------------------------

NEVER = Cost(float("inf"))


def wav(
    rate: int, samples: int, form: int = 1, channels: int = 1, bits: int = 16, block: int | None = None
) -> bytes:
    block = channels * bits // 8 if block is None else block
    content = struct.pack("<HHIIHH", form, channels, rate, rate * block, block, bits)
    data = bytes(samples * channels * bits // 8)
    chunks = struct.pack("<4sI", b"fmt ", 16) + content + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", 4 + len(chunks)) + b"WAVE" + chunks


def flac(rate: int, samples: int, channels: int = 1) -> bytes:
    word = rate << 44 | channels - 1 << 41 | 15 << 36 | samples
    return b"fLaC\0\0\0\x22" + bytes(10) + struct.pack(">Q", word) + bytes(16)


def mp3(frames: int, head: bytes = b"\xff\xfb\x90\xc0") -> bytes:
    """Frames of MPEG 1, 44,100 Hz, 128 kbit/s and one channel."""
    return (head + bytes(413)) * frames


def box(name: bytes, *content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(b"".join(content)), name) + b"".join(content)


def stated(seconds: int, version: int = 0) -> bytes:
    form, times = (">IQ", 16) if version else (">II", 8)
    return bytes([version, 0, 0, 0]) + bytes(times) + struct.pack(form, 1000, seconds * 1000)


def track(
    seconds: int,
    packets: int,
    kind: bytes = b"vide",
    width: int = 64,
    height: int = 48,
    entry: bytes = b"avc1",
    version: int = 0,
) -> bytes:
    sample = box(entry, bytes(24), struct.pack(">HH", width, height), bytes(50))
    if kind == b"soun":
        sample = box(entry, bytes(16), struct.pack(">H", 2), bytes(20))
    table = box(
        b"stbl",
        box(b"stsd", bytes(4), b"\0\0\0\1", sample),
        box(b"stsz", struct.pack(">III", 0, 9, packets)),
    )
    media = (
        box(b"mdhd", stated(seconds, version)),
        box(b"hdlr", bytes(8), kind, bytes(13)),
        box(b"minf", table),
    )
    return box(b"trak", box(b"tkhd", bytes(84)), box(b"mdia", *media))


def mp4(seconds: int, *tracks: bytes) -> bytes:
    return (
        box(b"ftyp", b"isom")
        + box(b"mdat", bytes(100))
        + box(b"moov", box(b"mvhd", stated(seconds)), *tracks)
    )


@pytest.mark.parametrize(
    ("content", "cost"),
    [
        (wav(8000, 16000), Cost(2)),
        (wav(1, 5000), Cost(5022)),  # resampled, it would be 80 million samples
        (wav(1, 5000, block=65535), Cost(5022)),  # decoders do not believe that
        (wav(96000, 96000, channels=8), Cost(16)),
        (wav(8000, 8000, form=7, bits=8), Cost(1)),
        (wav(8000, 8000, form=0x11), NEVER),  # compressed: 505 samples in 256 bytes
        (b"RIFF\0\0\0\0WAVE", NEVER),
        (flac(16000, 32000), Cost(2)),
        (flac(655350, 4_000_000, channels=8), Cost(667)),  # 34 kB of silence become 122 MiB
        (flac(16000, 0), NEVER),
        (mp3(100), Cost(2.61)),
        (b"ID3\4\0\0\0\0\1\0" + bytes(128) + mp3(100) + b"TAG" + bytes(125), Cost(2.61)),
        (mp3(50_000, b"\xff\xfb\x90\x00"), Cost(2400)),  # two channels
        (mp3(10) + bytes(100_000), NEVER),
        (mp3(1, b"\xff\xfb\x00\xc0"), None),  # of no stated bitrate: its frames have any length
        (mp4(5, track(4, 100)), Cost(5, 12 * 64 * 48)),
        (mp4(5, track(9000, 100, version=1)), Cost(9000, 100 * 64 * 48)),
        (mp4(5, track(5, 3_000_000)), Cost(5, 14 * 64 * 48)),
        (mp4(700, track(700, 30_000, width=3840, height=2160)), Cost(700, 768 * 3840 * 2160)),
        (mp4(5, track(5, 100, width=60_000, height=60_000)), Cost(5, float("inf"))),
        (mp4(5, track(5, 100, width=0)), Cost(5, float("inf"))),
        (mp4(5, track(5, 100), track(5, 215, b"soun", entry=b"mp4a")), Cost(9.17, 14 * 64 * 48)),
        (mp4(5, track(5, 1_500_000, b"soun", entry=b"mp4a")), Cost(64_000)),  # 8 bytes a packet
        (mp4(5, track(5, 220_500, b"soun", entry=b"sowt")), Cost(9.19)),
        (mp4(5, track(5, 100), track(5, 1, b"tmcd", entry=b"tmcd")), Cost(5, 14 * 64 * 48)),
        (mp4(5, track(5, 100, b"text", entry=b"avc1")), NEVER),  # FFmpeg takes it for a video
        (mp4(5, track(5, 100) + box(b"mvex", b"")), NEVER),
        (mp4(5, track(5, 100))[:60], NEVER),
        (mp4(5), NEVER),
        (box(b"ftyp", b"isom") + b"\0\0\0\x02moov", NEVER),
        (box(b"ftyp", b"") + box(b"moov", box(b"free", b"") * 2000), NEVER),
        (b"OggS\0\2", None),
        (b"\x1a\x45\xdf\xa3 Matroska", None),
        (b"RIFF\0\0\0\0AVI LIST", None),
        (b"FORM\0\0\0\0AIFF", None),
        (b"GIF89a", None),
        (b"", None),
    ],
)
def test_what_a_sound_or_film_costs(content: bytes, cost: Cost | None, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    found = cost_of(tmp_path / "a")
    if cost is None or found is None:
        assert found == cost
        return
    assert found.seconds == pytest.approx(cost.seconds, rel=0.01)
    assert found.pixels == pytest.approx(cost.pixels)


def sent(folder: Path, kind: str, content: bytes, times: int = 1) -> int:
    source = f"data:{kind}/x;base64," + base64.b64encode(content).decode()

    async def count() -> int:
        async with MediaStore(folder, Limits()).files([Media(kind, source, "messages[0]")] * times) as found:
            return len(found)

    try:
        return asyncio.run(count())
    finally:
        assert list(folder.iterdir()) == []


def test_sounds_and_films_that_decode_to_too_much_are_refused(tmp_path: Path) -> None:
    assert sent(tmp_path, "video", mp4(1700, track(1700, 1)), 2) == 2
    with pytest.raises(
        ApiError, match="The audio and video are longer than 3600 s or have more than 172,800,000 samples"
    ):
        sent(tmp_path, "video", mp4(1900, track(1, 1)), 2)
    with pytest.raises(
        ApiError, match="The audio and video are longer than 3600 s or have more than 172,800,000 samples"
    ):
        sent(tmp_path, "audio", flac(655350, 22_000_000, channels=8))
    with pytest.raises(ApiError, match="The videos have more than 1,000,000,000 pixels in the frames that"):
        sent(tmp_path, "video", mp4(400, track(400, 12_000, width=1920, height=1080)))


def test_formats_that_can_decode_to_anything_are_refused_from_a_client(tmp_path: Path) -> None:
    """Silence of Opus has a few bytes for 120 ms."""
    known = "messages[0] is not in one of the audio and video formats WAV, FLAC, MP3, MP4, QuickTime."
    for kind in ("audio", "video"):
        with pytest.raises(ApiError) as caught:
            sent(tmp_path, kind, b"OggS" + bytes(100))
        assert caught.value.message == known
    own = tmp_path / "own.ogg"
    own.write_bytes(b"OggS" + bytes(100))

    async def paths() -> list[Path]:
        store = MediaStore(tmp_path, Limits(media_dir=str(tmp_path)))
        async with store.files([Media("audio", str(own), "audios")]) as found:
            return found

    assert asyncio.run(paths()) == [own]
