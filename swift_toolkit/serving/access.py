"""Who may reach a server: address, port, key, certificate."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift_toolkit.config.settings import Config
from swift_toolkit.problems import Problem

KEY_VARIABLE = "SWIFT_API_KEY"
"""Environment variable that holds the API key."""

MIN_KEY_LENGTH = 8
"""Characters; a shorter key is a slip, such as an empty file or a placeholder."""


# --- who may reach it ---------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether ``host`` is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def find_key(file: str | None) -> tuple[str | None, list[Problem]]:
    """The API key: the content of ``file``, else the environment's. Messages never show it."""
    if file is None:
        key = os.environ.get(KEY_VARIABLE) or None
        where = Problem("", key=KEY_VARIABLE)
    else:
        where = Problem("", key="--api-key-file")
        try:
            key = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            return None, [replace(where, what=f"names {file}, which cannot be read: {reason}")]
    if key is None:
        return None, []
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        what = "does not hold a key"
        do = f"A key is one word of at least {MIN_KEY_LENGTH} ASCII letters, digits and signs."
        return None, [replace(where, what=what, do=do)]
    return key, []


def access_problems(config: Config, flags: Mapping[str, Any], key: str | None) -> Iterator[Problem]:
    wants_key = f"Set {KEY_VARIABLE} or --api-key-file"
    if flags.get("no_auth") and key is not None:
        do = f"Remove it, or unset {KEY_VARIABLE} and --api-key-file."
        yield Problem("cannot be used with a key", do, "--no-auth")
    host = str(config.get("host"))
    given = flags.get("api_key_file") is not None or os.environ.get(KEY_VARIABLE)
    if not is_loopback(host) and not given and not flags.get("no_auth"):
        what = f'is "{host}", which other machines can reach, and there is no key'
        yield config.problem("host", what, f"{wants_key}, or allow everybody in with --no-auth.")
    if flags.get("allow_runtime_lora") and not given:
        yield Problem("needs a key", f"{wants_key}.", "--allow-runtime-lora")


def tls_problems(config: Config) -> list[Problem]:
    """What is wrong with the certificate and its key."""
    names = ("ssl_certfile", "ssl_keyfile")
    files = {name: Path(config.get(name)).expanduser() for name in names if config.get(name)}
    if not files:
        return []
    for name in names:
        if name not in files:
            other = names[1 - names.index(name)]
            return [config.problem(other, f'needs "{name}"', "Give both, or neither.")]
    problems = [
        config.problem(name, f'names the file "{file}", which does not exist', "Check the path.")
        for name, file in files.items()
        if not file.is_file()
    ]
    return problems or _certificate_problems(config, *files.values())


def _certificate_problems(config: Config, certificate: Path, key: Path) -> list[Problem]:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password=lambda: "")
    except PermissionError as error:
        return [config.problem("ssl_keyfile", f"cannot be read: {error.strerror}")]
    except (ssl.SSLError, ValueError) as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            return [config.problem("ssl_keyfile", f"is not the key of the certificate in {certificate}")]
        what = "and the certificate cannot be used: they are not PEM, or the key has a passphrase"
        return [config.problem("ssl_keyfile", what)]
    return []


def port_problems(config: Config) -> list[Problem]:
    """What keeps this process from listening where it should."""
    host, port = str(config.get("host")), int(config.get("port"))
    if not 0 <= port <= 65535:
        return [config.problem("port", f"is {port}; it must be from 0 (any that is free) to 65535")]
    try:
        listening_socket(host, port).close()
    except socket.gaierror:
        return [config.problem("host", f'is "{host}", which is no address of this machine')]
    except PermissionError:
        return [config.problem("port", f"is {port}, which this user may not use", "Use one from 1024 on.")]
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return [config.problem("host", f'is "{host}", which is no address of this machine')]
        return [config.problem("port", f"is {port}, which {_user_of(port)} uses already", "Choose another.")]
    return []


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet.

    Raises:
        OSError: it cannot be bound.
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
    """The process that listens on ``port``, as far as this user may know."""
    import psutil

    try:
        listening = [
            one for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port and one.pid
        ]
        process = psutil.Process(listening[0].pid)
        return f"{process.name()} (process {process.pid})"
    except (psutil.Error, IndexError, OSError):
        return "another process"
