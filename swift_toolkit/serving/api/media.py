"""Stores the images, audio and video of a request in files that the engine reads.

No other file is opened for a request. URLs are fetched here, not by ms-swift: from a public address that is resolved
once, with a timeout and a size limit. The same applies to every redirect.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http.client
import ipaddress
import re
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from swift_toolkit.serving.api import duration
from swift_toolkit.serving.api.duration import cost_of
from swift_toolkit.serving.api.request import ApiError, Limits, Media, is_base64

FETCH_SECONDS = 20.0
"""Seconds to fetch one URL, including redirects."""

REDIRECTS = 3
"""Most redirects that are followed."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Image formats that are decoded; PIL's other formats start programs (EPS) or are rarely used."""

MOST_SCANS = 100
"""Most scans of a JPEG file. Each costs as much time as all pixels, however short it is; encoders write about ten."""

FETCHES = 8
"""Requests whose media are prepared at the same time; others wait."""

_SUFFIXES = {"image": ".img", "audio": ".wav", "video": ".mp4"}


class MediaStore:
    """Prepares the media of requests in a directory.

    Args:
        directory: directory for the files of running requests.
        limits: limits of one request.
    """

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory, self._limits = directory, limits
        self._threads = ThreadPoolExecutor(
            FETCHES, "media"
        )  # of their own: other requests need asyncio's threads

    @asynccontextmanager
    async def files(self, media: Sequence[Media]) -> AsyncIterator[list[Path]]:
        """Provide the files of ``media`` for the duration of the block.

        Raises:
            ApiError: one is not available or not an image in a known format, or together they are too large.
        """
        if not media:
            yield []
            return
        folder = Path(tempfile.mkdtemp(dir=self._directory))
        try:
            loop = asyncio.get_running_loop()
            yield await loop.run_in_executor(self._threads, self._prepare, media, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _prepare(self, media: Sequence[Media], folder: Path) -> list[Path]:
        limits, pixels, seconds, frames, paths = self._limits, 0, 0.0, 0.0, []
        for index, one in enumerate(media):
            path = self._file(one, folder / f"{index}{_SUFFIXES[one.kind]}")
            paths.append(path)
            if one.kind == "image":
                pixels += count_pixels(path, one.where)
            else:
                cost = _cost(path, one.where, is_known=path.parent != folder)
                seconds, frames = seconds + cost.seconds, frames + cost.pixels
            if pixels > limits.max_pixels:
                what = f"images have more than {limits.max_pixels:,} pixels"
            elif seconds > limits.max_seconds:
                samples = f"{limits.max_seconds * duration.VALUES_PER_SECOND:,.0f} samples"
                what = f"audio and video are longer than {limits.max_seconds:g} s or have more than {samples}"
            elif frames > limits.max_video_pixels:
                what = f"videos have more than {limits.max_video_pixels:,} pixels in the frames that the model sees"
            else:
                continue
            raise ApiError(400, f"The {what} in total.", one.where)
        return paths

    def _file(self, one: Media, path: Path) -> Path:
        source = one.source.strip()
        if re.match(r"https?://", source, re.IGNORECASE):
            content = fetch(source, self._limits.max_body, one.where)
        elif source[:5].lower() == "data:" or is_base64(source):
            content = _decoded(source, one.where)
        else:  # in the allowed directory, see request.check_source
            return Path(source).resolve()
        with path.open("xb") as file:
            file.write(content)
        return path


def _decoded(source: str, where: str) -> bytes:
    data = source.partition(",")[2] if source[:5].lower() == "data:" else source
    try:
        return base64.b64decode(re.sub(r"\s", "", data), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{where} is not valid base64.", where) from None


def _cost(path: Path, where: str, is_known: bool) -> duration.Cost:
    """What decoding an audio or video file costs; ``is_known``: it is the operator's, who may use any format."""
    cost = cost_of(path)
    if cost is not None or is_known:
        return cost or duration.Cost(0)
    known = ", ".join(duration.FORMATS)
    raise ApiError(400, f"{where} is not in one of the audio and video formats {known}.", where)


def count_pixels(path: Path, where: str) -> int:
    """The number of pixels of an image, read from its header without decoding.

    Raises:
        ApiError: it is not an image in a known format, or would take too long to decode.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as picture:
            pixels, kind = int(picture.width * picture.height), picture.format
    except Image.DecompressionBombError:
        return sys.maxsize
    except Exception:  # PIL's readers raise many kinds of exceptions for malformed files
        known = ", ".join(FORMATS)
        raise ApiError(
            400, f"{where} is not a complete image in one of the formats {known}.", where
        ) from None
    if kind in ("JPEG", "MPO") and path.read_bytes().count(_SCAN) > MOST_SCANS:
        raise ApiError(400, f"{where} is a JPEG with more than {MOST_SCANS} scans.", where)
    return pixels


_SCAN = b"\xff\xda"
"""Begins a scan of a JPEG; it does not occur in compressed data, where a zero follows each 0xff."""


# --- fetching -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """The target of one step of a fetch: a URL and the address that its host resolved to."""

    url: SplitResult
    address: str

    @property
    def port(self) -> int:
        return self.url.port or (443 if self.url.scheme == "https" else 80)


def fetch(url: str, max_bytes: int, where: str, seconds: float = FETCH_SECONDS) -> bytes:
    """Fetch the content of an http(s) URL.

    Args:
        url: the URL.
        max_bytes: largest content, in bytes.
        where: the field of the request, for messages.
        seconds: timeout for the whole fetch.

    Raises:
        ApiError: the address is not public, or the content is too large, too slow or not available.
    """
    deadline = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        try:
            found = _step(_target(url, where), max_bytes, deadline)
        except ApiError as error:
            raise ApiError(400, f"{where}: {error.message}", where) from None
        except (OSError, http.client.HTTPException, ValueError):
            raise ApiError(400, f"{where}: the URL cannot be fetched.", where) from None
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise ApiError(400, f"{where}: the URL is redirected more than {REDIRECTS} times.", where)


def _target(url: str, where: str) -> _Target:
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname or split.username is not None:
        raise ApiError(400, "only http and https URLs without a user name can be fetched.", where)
    found = socket.getaddrinfo(split.hostname, split.port or 0, type=socket.SOCK_STREAM)
    addresses = [str(one[4][0]) for one in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ApiError(400, "the URL does not point to a public address.", where)
    return _Target(split, addresses[0])


_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind NAT64 (RFC 6052)
_GLOBAL = ipaddress.ip_network("2000::/3")  # all that is assigned for the public internet (RFC 4291)


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet; an embedded IPv4 address is checked too."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
        return ip in _GLOBAL and ip.is_global
    return ip.is_global and not ip.is_multicast


def _step(target: _Target, max_bytes: int, deadline: float) -> bytes | str:
    """Return the content, or the URL of a redirect."""
    plain = socket.create_connection((target.address, target.port), _rest(deadline))
    sockets: list[socket.socket] = [plain]
    # the socket's own timeout restarts with every byte
    ending = threading.Timer(_rest(deadline), _shut, [sockets])
    ending.start()
    connection = http.client.HTTPConnection(target.url.hostname or "", target.port)
    try:
        if target.url.scheme == "https":
            sockets.append(secured := _secured(plain, target))
            secured.do_handshake()
        connection.sock = sockets[-1]  # connected to the resolved address; the name is not resolved again
        path = (target.url.path or "/") + (f"?{target.url.query}" if target.url.query else "")
        connection.request("GET", path, headers={"Host": target.url.netloc, "User-Agent": "swift-toolkit"})
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        if response.status != 200:
            raise ApiError(400, f"the URL returns status {response.status}.")
        content = response.read(max_bytes + 1)
    finally:
        ending.cancel()
        connection.close()
        for one in sockets:
            one.close()
    _rest(deadline)  # content that the timer cut off may look complete
    if len(content) > max_bytes:
        raise ApiError(400, f"the content of the URL is larger than {max_bytes:,} bytes.")
    return content


def _secured(plain: socket.socket, target: _Target) -> ssl.SSLSocket:
    context, name = ssl.create_default_context(), target.url.hostname
    return context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)


def _shut(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _rest(deadline: float) -> float:
    rest = deadline - time.monotonic()
    if rest <= 0:
        raise ApiError(400, "the URL was not fetched in time.")
    return rest
