"""Access to a server: address, port, key, certificate."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import select
import socket
import ssl
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from swift_toolkit.config.settings import Config
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.serving.options import ServingOptions

KEY_VARIABLE = "SWIFT_API_KEY"
"""Environment variable that contains the API key."""

MIN_KEY_LENGTH = 8
"""Fewest characters of a key; a shorter one is a mistake, such as an empty file or a placeholder."""


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


ORIGIN = re.compile(r"https?://[\w.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?", re.IGNORECASE)
"""The form in which a browser names the origin of a page."""


def host_names(host: str, origins: Sequence[str]) -> Iterator[str]:
    """Host names under which clients reach a server; IP addresses are always accepted.

    Args:
        host: address that the server listens on.
        origins: origins of the pages that may send requests.
    """
    yield "localhost"
    yield host.strip("[]").lower()
    if not is_loopback(host):
        yield from {socket.gethostname().lower(), socket.getfqdn().lower()}
    for origin in origins:
        yield (urlsplit(origin).hostname or "").rstrip(".")


def find_key(file: str | None) -> str | None:
    """Read the API key from ``file`` or else from the environment; None if neither has one.

    Raises:
        RequestError: the content is not a valid key; the message does not show it.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE) or None
        where = Problem("", key=KEY_VARIABLE)
    else:
        where = Problem("", key="--api-key-file")
        try:
            key = _read(Path(file).expanduser())
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise RequestError(
                [replace(where, what=f"names {file}, which cannot be read: {reason}")]
            ) from None
    if key is None or _is_key(key):
        return key
    do = f"A key has at least {MIN_KEY_LENGTH} printable ASCII characters and no spaces."
    raise RequestError([replace(where, what="does not contain a valid key", do=do)])


PIPE_SECONDS = 10
"""How long a program may take to write the key into a pipe, as in ``--api-key-file <(pass show key)``."""


def _read(file: Path) -> str:
    """The text in ``file``, without spaces around it.

    Raises:
        OSError: it cannot be read, or is a pipe into which nobody writes.
        ValueError: it is not text.
    """
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            return stream.read().decode().strip()
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        if not poll.poll(PIPE_SECONDS * 1000):
            raise TimeoutError(errno.ETIMEDOUT, f"nothing was written into this pipe within {PIPE_SECONDS} s")
        os.set_blocking(stream.fileno(), True)
        return stream.read().decode().strip()


def _is_key(text: str) -> bool:
    return len(text) >= MIN_KEY_LENGTH and text.isascii() and text.isprintable() and " " not in text


def access_problems(config: Config, options: ServingOptions, has_key: bool) -> Iterator[Problem]:
    """Problems with the access settings; ``has_key``: a key is given, even if it is not valid."""
    needs_key = f"Set {KEY_VARIABLE} or --api-key-file"
    if options.no_auth and has_key:
        do = f"Remove it, or unset {KEY_VARIABLE} and --api-key-file."
        yield Problem("cannot be used with a key", do, "--no-auth")
    host = str(config.get("host"))
    if not is_loopback(host) and not has_key and not options.no_auth:
        what = f'is "{host}", which other machines can reach, but there is no key'
        yield config.problem("host", what, f"{needs_key}, or allow access without a key with --no-auth.")
    for origin in options.allow_origin:
        if not ORIGIN.fullmatch(origin):
            do = (
                "Write the scheme, host and port like a browser: https://example.org or http://localhost:3000"
            )
            yield Problem(f'is "{origin}", which is not an origin', do, "--allow-origin")
    if options.allow_runtime_lora and not has_key:
        yield Problem("needs a key", f"{needs_key}.", "--allow-runtime-lora")


def tls_problems(config: Config) -> Iterator[Problem]:
    """Problems with the certificate and its key."""
    names = ("ssl_certfile", "ssl_keyfile")
    files = {name: Path(config.get(name)).expanduser() for name in names if config.get(name)}
    if len(files) == 1:
        (there,) = files
        missing = names[1 - names.index(there)]
        yield config.problem(there, f'needs "{missing}"', "Give both, or neither.")
        return
    gone = [name for name, file in files.items() if not file.is_file()]
    for name in gone:
        what = "is not a regular file" if Path(files[name]).expanduser().exists() else "does not exist"
        yield config.problem(name, f'names the file "{files[name]}", which {what}', "Check the path.")
    if files and not gone:
        yield from _certificate_problems(config, *files.values())


def _certificate_problems(config: Config, certificate: Path, key: Path) -> Iterator[Problem]:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password=lambda: "")
    except PermissionError as error:
        yield config.problem("ssl_keyfile", f"cannot be read: {error.strerror}")
    except (ssl.SSLError, ValueError) as error:
        what = "and the certificate cannot be used: they are not PEM, or the key has a passphrase"
        if "KEY_VALUES_MISMATCH" in str(error):
            what = f"is not the key of the certificate in {certificate}"
        yield config.problem("ssl_keyfile", what)


def port_problems(config: Config) -> Iterator[Problem]:
    """Reasons why this process cannot listen on the address."""
    host, port = str(config.get("host")), int(config.get("port"))
    if not 0 <= port <= 65535:
        yield config.problem("port", f"is {port}; it must be from 0 (any free port) to 65535")
        return
    try:
        listening_socket(host, port).close()
    except PermissionError:
        yield config.problem("port", f"is {port}: permission denied", "Use a port of at least 1024.")
    except (OSError, UnicodeError) as error:  # a host name is encoded as IDNA
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            yield config.problem("port", f"is {port}, which {_user_of(port)} already uses", "Choose another.")
        else:
            yield config.problem("host", f'is "{host}", which is not an address of this machine')


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address but not listening yet.

    Raises:
        OSError: the address cannot be bound.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _user_of(port: int) -> str:
    """The process that listens on ``port``, if this user is allowed to see it."""
    import psutil

    try:
        listening = [
            one for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port and one.pid
        ]
        process = psutil.Process(listening[0].pid)
        return f"{process.name()} (process {process.pid})"
    except (psutil.Error, IndexError, OSError):
        return "another process"
