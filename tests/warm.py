"""Processes that begin with ms-swift imported, for tests that are not about starting one.

``python -m swift_toolkit.training.process.worker`` spends half of a small training on imports. Here one process imports
ms-swift once, and every worker that `swift_toolkit.machine.process.Child` starts is a fork of it: the same code with the
same environment, directory and streams, in a session of its own and as a child of the process that asked. What differs in
more than the variables of `OWN` is started in the ordinary way, as is everything that starts without this module, such as
the scripts when a test runs them as commands.

Run as a script, this is the process that forks.
"""

from __future__ import annotations

import array
import ctypes
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

OWN = frozenset(
    "SWIFT_TOOLKIT_REPORT SWIFT_TOOLKIT_TRAINING SWIFT_TOOLKIT_TRUST_CODE PET_LOG_DIR PYTEST_CURRENT_TEST TMPDIR".split()
)
"""Environment variables that each process has for itself; nothing reads them on import."""

WORKERS = frozenset(
    "swift_toolkit.training.process.worker swift_toolkit.inference.worker swift_toolkit.model.worker".split()
)
"""The modules that are forked. The server is not: tests look for secrets in its environment and its command line."""

MOST = 3
"""How many forkers a test process may have, of some 400 MiB each."""

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans below this process become its children


class Forker:
    """The process that has imported ms-swift.

    Args:
        environment: its variables; it forks only processes that have the same, but for `OWN`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        here, there = socket.socketpair()
        self._socket = here
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(there.fileno())],
            env=dict(environment),
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        there.close()

    def fork(self, module: str, environment: Mapping[str, str], streams: list[int]) -> int:
        """The process number of a new child of this process that runs ``module`` with these three streams."""
        order = {
            "module": module,
            "environment": dict(environment),
            "directory": str(Path.cwd()),
            "parent": os.getpid(),
        }
        content = json.dumps(order).encode()
        head = len(content).to_bytes(8, "big")
        libc = ctypes.CDLL(None)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
        try:
            self._socket.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
            self._socket.sendall(content)
            return int.from_bytes(_exactly(self._socket, 8), "big")
        finally:
            libc.prctl(_SUBREAPER, 0, 0, 0, 0)

    def close(self) -> None:
        """End the process; those that it forked live on."""
        self._socket.close()
        self.process.wait()


class Forkers:
    """The forkers of this test process, one for each environment that was asked for more than once."""

    def __init__(self) -> None:
        self._asked: set[frozenset[tuple[str, str]]] = set()
        self._forkers: dict[frozenset[tuple[str, str]], Forker] = {}

    def find(self, environment: Mapping[str, str]) -> Forker | None:
        """The forker with this environment, if there is one by now; none for vLLM, whose engine is most of a start."""
        if "VLLM_PLUGINS" in environment:
            return None
        key = frozenset((name, value) for name, value in environment.items() if name not in OWN)
        if key in self._asked and key not in self._forkers and len(self._forkers) < MOST:
            self._forkers[key] = Forker(environment)
        self._asked.add(key)
        return self._forkers.get(key)

    def pids(self) -> set[int]:
        """The processes that import and fork, not what they forked."""
        return {one.process.pid for one in self._forkers.values()}

    def close(self) -> None:
        """End them."""
        for one in self._forkers.values():
            one.close()
        self._forkers.clear()


FORKERS = Forkers()


class WarmPopen(subprocess.Popen[Any]):
    """`subprocess.Popen` of `swift_toolkit.machine.process`, where a worker is forked if that is possible."""

    def __init__(self, command: list[str], **given: Any) -> None:
        self._is_worker = command[:2] == [sys.executable, "-m"] and command[2] in WORKERS
        self._environment = given["env"]
        super().__init__(command, **given)

    def _execute_child(self, command: list[str], *more: Any) -> None:
        forker = FORKERS.find(self._environment) if self._is_worker else None
        if forker is None:
            super()._execute_child(command, *more)  # type: ignore[misc]
            return
        sys.audit("subprocess.Popen", command[0], command, None, None)
        names = subprocess.Popen._execute_child.__code__.co_varnames[2:]  # type: ignore[attr-defined]
        given = dict(zip(names, more, strict=False))
        streams = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        self.pid = forker.fork(command[2], self._environment, streams)
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*map(given.__getitem__, ends))  # type: ignore[attr-defined]


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = connection.recv(size - len(content))
        if not more:
            raise ConnectionError("the other end is gone")
        content += more
    return content


def _import_everything() -> None:
    from swift_toolkit.machine import msswift

    with msswift._importing():
        msswift.spare_imports()
        importlib.import_module("swift.pipelines.infer.deploy")
        public = msswift._public()
        for name in ("sft_main", "pretrain_main", "rlhf_main", "export_main", "InferRequest"):
            getattr(public, name, None)
        importlib.import_module("transformers.models.llama.modeling_llama")


def _serve(connection: socket.socket) -> str:
    """Fork whenever that is asked for; returns, in a fork, the name of the module to run."""
    while True:
        try:
            head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * 4))
            if not head:
                os._exit(0)
            order = json.loads(_exactly(connection, int.from_bytes(head, "big")))
        except OSError:
            os._exit(0)
        streams = list(array.array("i", b"".join(data for _, _, data in ancillary)))
        if (between := os.fork()) == 0:
            if os.fork():
                os._exit(0)  # so that the fork becomes a child of the process that asked
            _become(order, streams, connection)
            return str(order["module"])
        os.waitpid(between, 0)
        for stream in streams:
            os.close(stream)


def _become(order: Mapping[str, Any], streams: list[int], connection: socket.socket) -> None:
    deadline = time.monotonic() + 10
    while os.getppid() != order["parent"]:  # until the process between has ended
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.001)
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    sys.path[0] = order["directory"]
    with connection:
        connection.sendall(os.getpid().to_bytes(8, "big"))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    _import_everything()
    runpy._run_module_as_main(_serve(socket.socket(fileno=int(sys.argv[1]))))  # type: ignore[attr-defined]
