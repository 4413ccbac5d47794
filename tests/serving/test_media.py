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
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.serving.api import media
from swift_toolkit.serving.api.duration import seconds_of
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
     "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1"],
)  # fmt: skip
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


def test_a_public_address() -> None:
    assert is_public("1.1.1.1") and is_public("2606:4700::1111") and is_public("::ffff:1.1.1.1")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/", "http://localhost/", "http://[::1]/", "http://2130706433/"]
)
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


# --- sounds and films ---------------------------------------------------------------------------------------


def wav(rate: int, samples: int) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * samples))
    return made.getvalue()


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def mp4(seconds: int, of_track: int, version: int = 0) -> bytes:
    def stated(duration: int) -> bytes:
        form, times = (">IQ", 16) if version else (">II", 8)
        return bytes([version, 0, 0, 0]) + bytes(times) + struct.pack(form, 1000, duration * 1000)

    track = box(b"trak", box(b"tkhd", bytes(80)) + box(b"mdia", box(b"mdhd", stated(of_track))))
    moov = box(b"moov", box(b"mvhd", stated(seconds)) + track)
    return box(b"ftyp", b"isom") + box(b"mdat", bytes(100)) + moov


def flac(rate: int, samples: int) -> bytes:
    return b"fLaC\0\0\0\x22" + bytes(10) + struct.pack(">Q", rate << 44 | 15 << 36 | samples) + bytes(16)


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (wav(8000, 16000), 2),
        (wav(1, 5000), 5022),  # resampled, it would be 80 million samples
        (flac(16000, 32000), 2),
        (flac(16000, 0), float("inf")),
        (mp4(5, 4), 5),
        (mp4(5, 9000, version=1), 9000),
        (mp4(5, 4)[:60], float("inf")),
        (b"RIFF\0\0\0\0WAVE", float("inf")),
        (box(b"ftyp", b"isom") + b"\0\0\0\x02moov", float("inf")),
        (box(b"ftyp", b"") + box(b"moov", box(b"free", b"") * 2000), float("inf")),
        (b"ID3 of an MP3", None),
        (b"", None),
    ],
)
def test_how_long_a_sound_or_film_is(content: bytes, seconds: float | None, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert seconds_of(tmp_path / "a") == (None if seconds is None else pytest.approx(seconds, rel=0.01))


def test_a_film_that_is_too_long_is_refused(tmp_path: Path) -> None:
    async def paths(content: bytes) -> int:
        source = "data:video/mp4;base64," + base64.b64encode(content).decode()
        async with MediaStore(tmp_path, Limits()).files([Media("video", source, "messages[0]")] * 2) as found:
            return len(found)

    assert asyncio.run(paths(mp4(1700, 1))) == 2
    with pytest.raises(ApiError, match="longer than 3600 s in total"):
        asyncio.run(paths(mp4(1900, 1)))
    assert list(tmp_path.iterdir()) == []
