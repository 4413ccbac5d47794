"""The process in which one server runs.

Started by server.py through machine/process.py, which writes the order, including the API key, to its stdin. It builds
ms-swift's own ``SwiftDeploy`` from an argument list, puts `gateway.Gateway` in front of its engine and serves it with
uvicorn on a socket that it binds before it loads anything. On SIGTERM, running answers may finish.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from swift_toolkit.inference.backend import BACKENDS
from swift_toolkit.machine import threads
from swift_toolkit.machine.msswift import refuse_remote_code, serving_api
from swift_toolkit.machine.process import Reporter
from swift_toolkit.machine.spawned import end_with_parent
from swift_toolkit.model.checkpoints.old_adapter import with_peft_adapters
from swift_toolkit.serving import access
from swift_toolkit.serving.connections import IDLE_SECONDS, LineLimit, connection_limit, protocol
from swift_toolkit.serving.engine.adapters import RuntimeAdapters
from swift_toolkit.serving.engine.router import Router
from swift_toolkit.serving.gateway import Action, Exchange, Gateway, Policy, place_of
from swift_toolkit.serving.metrics import Metrics
from swift_toolkit.serving.order import (
    ServerFailed,
    ServerImporting,
    ServerLoading,
    ServerReady,
    ServerStopped,
    ServingOrder,
    send_report,
)

RUNTIME_SLOTS = 4
"""Slots that vLLM reserves for adapters loaded while serving."""

CLOSE_SECONDS = 2.0
"""Seconds after the last answer was cut off in which clients may still receive data."""

LINES_PER_SECOND = 100
"""Most log lines about requests per second; the others are only counted."""


def main(report: Reporter) -> int:
    """Serve the order in the first line of stdin. Returns the exit status."""
    report.end_with_starter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    order = ServingOrder.read(sys.stdin.readline())
    if not order.log_requests:
        os.environ.pop("SWIFT_DEBUG", None)  # makes ms-swift log prompts
    report.end_when_a_thread_fails()
    try:
        listening = access.listening_socket(order.host, order.port)
        send_report(report, ServerImporting())
        router = Router(_make_server(order, report), order)
        asyncio.run(_serve(router, order, listening, report))
    except (Exception, SystemExit) as error:  # an argument parser ends with SystemExit
        traceback.print_exc()
        send_report(report, ServerFailed(type(error).__name__, str(error)))
        return 1
    return 0


def _make_server(order: ServingOrder, report: Reporter) -> Any:
    """Create ms-swift's server with its engine loaded, not serving yet."""
    # a second safeguard after the media checks; a directory that cannot exist means that no file is allowed
    allowed = [one for one in (order.limits.media_dir, order.media_folder) if one]
    os.environ["SWIFT_MEDIA_ALLOWED_DIRS"] = ",".join(allowed)
    if BACKENDS[order.backend].in_process:
        threads.spin_while_alone()
    swift = serving_api()
    send_report(report, ServerLoading())
    # with a result file named, ms-swift creates no directories next to the model; nothing is written to it
    words = [*with_peft_adapters(order.arguments), f"--result_path={os.devnull}"]
    arguments, unknown = swift.parse_args(swift.DeployArguments, words)
    if unknown:
        raise ValueError(f"ms-swift does not accept {' '.join(unknown)}")
    if arguments.adapter_mapping:
        arguments.system = order.system  # ms-swift would use the first adapter's for every model
    arguments.result_path = None
    BACKENDS[order.backend].reserve_adapters(arguments, RUNTIME_SLOTS if order.allow_runtime_lora else 0)
    server = swift.SwiftDeploy(arguments)
    server.jsonl_writer = None
    server.infer_engine.strict = False  # a request that cannot be rendered must not fail its whole batch
    return server


# --- HTTP ---------------------------------------------------------------------------------------------------


async def _serve(router: Router, order: ServingOrder, listening: socket.socket, report: Reporter) -> None:
    """Serve until SIGTERM, then let running answers finish."""
    asyncio.get_running_loop().set_exception_handler(_log_failure)
    await router.warm_up()
    if not order.log_requests:
        _quiet_engine()
    log = _Log()
    gateway = Gateway(router, _policy(order), Metrics(log), _actions(router, order))
    server = _http_server(gateway, order)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _stop, server, gateway, order.drain_seconds)
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started and not serving.done():
        await asyncio.wait([serving], timeout=0.01)
    batch = getattr(router.engine, "max_batch_size", None) if router.backend.in_process else None
    send_report(report, ServerReady(listening.getsockname()[1], os.getpid(), batch))
    while not serving.done():
        await asyncio.wait([serving], timeout=1)
        if router.backend.has_died(router.engine) and not server.should_exit:
            raise RuntimeError(f"the engine of {router.backend.name} has died")
    serving.result()
    send_report(report, ServerStopped(log.cut))
    # the engine's thread may still be generating an answer that was cut off, and its event loop is gone
    threading.excepthook = lambda _: None


def _policy(order: ServingOrder) -> Policy:
    page = Path(__file__).with_name("chat_page.html").read_bytes() if order.chat else None
    return Policy(
        key=order.key,
        limits=order.limits,
        hosts=frozenset(order.hosts),
        origins=frozenset(order.origins),
        page=page,
    )


def _actions(router: Router, order: ServingOrder) -> Mapping[str, Action]:
    if not order.allow_runtime_lora:
        return {}
    adapters = RuntimeAdapters(router, order.adapter_dirs)
    return {"/v1/load_lora_adapter": adapters.load, "/v1/unload_lora_adapter": adapters.unload}


def _http_server(gateway: Gateway, order: ServingOrder) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        def capture_signals(self) -> Any:  # uvicorn would raise the signal again after a clean shutdown
            return nullcontext()

    return Server(
        uvicorn.Config(
            gateway,
            http=protocol(connection_limit()),
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            ssl_certfile=order.ssl_certfile,
            ssl_keyfile=order.ssl_keyfile,
        )
    )


def _stop(server: Any, gateway: Gateway, drain_seconds: int) -> None:
    """Stop accepting connections, and cut off answers that do not finish in time."""
    server.should_exit = True
    loop = asyncio.get_running_loop()
    loop.call_later(drain_seconds, gateway.cut_answers)
    loop.call_later(drain_seconds + CLOSE_SECONDS, _close_connections, server)


def _close_connections(server: Any) -> None:
    """Close the remaining connections, such as those of clients that do not read; uvicorn would wait for them."""
    for connection in list(server.server_state.connections):
        connection.transport.abort()


# --- the log ------------------------------------------------------------------------------------------------


_QUOTE_REQUESTS = frozenset("swift ms_swift transformers modelscope".split())


def _quiet_engine() -> None:
    """Silence the warnings of ms-swift and transformers, which quote requests; vLLM's are kept."""
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] in _QUOTE_REQUESTS:
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _log_failure(loop: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
    """Log an error of a background task in one line."""
    error = context.get("exception")
    what = place_of(error) if isinstance(error, BaseException) else context.get("message")
    print(f"{time.strftime('%H:%M:%S')} in the background: {what}", flush=True)


class _Log:
    """Logs one line per request, without its content."""

    def __init__(self) -> None:
        self.cut = 0
        self._limit = LineLimit(LINES_PER_SECOND)

    def __call__(self, one: Exchange) -> None:
        self.cut += one.cut
        lets, held = self._limit.lets()
        if not lets:
            return
        now = time.strftime("%H:%M:%S")
        if held:
            print(f"{now} {held} more requests were not logged", flush=True)
        tokens = f" {one.prompt_tokens}+{one.completion_tokens} tokens" if one.completion_tokens else ""
        failure = f" {one.failure}" if one.failure else ""
        what = f"{one.id} {one.status or 499} {one.method[:8]} {_known(one)} {one.model or '-'}"
        print(f"{now} {what} {one.seconds:.3f} s{tokens}{failure}", flush=True)


def _known(one: Exchange) -> str:
    """The path if it is one of the server's; a client may send any text."""
    return one.path if one.status not in (401, 403, 404, 405) else "-"


if __name__ == "__main__":
    report = Reporter()
    report.exit(main(report))
elif __name__ == "__mp_main__":  # vLLM's engine, spawned by this process
    end_with_parent()
    refuse_remote_code()
