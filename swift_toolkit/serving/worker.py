"""The process in which one server runs.

Started by deploy_model.py through process.py, which writes the order, the API key included, to its stdin. It builds
ms-swift's own ``SwiftDeploy`` from an argument list, puts `gateway.Gateway` in front of its FastAPI app and serves it
with uvicorn on a socket that it has held since before anything was loaded. SIGTERM lets running answers end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from swift_toolkit.inference.backend import BACKENDS
from swift_toolkit.machine.msswift import serving_api
from swift_toolkit.machine.process import Reporter, end_with_parent
from swift_toolkit.model.old_adapter import with_peft_adapters
from swift_toolkit.serving import access
from swift_toolkit.serving.gateway import Action, Exchange, Gateway, Policy
from swift_toolkit.serving.metrics import Metrics
from swift_toolkit.serving.order import Order
from swift_toolkit.serving.router import Router


def main(report: Reporter) -> int:
    """Serve what the first line of stdin orders. Returns the exit status."""
    report.end_with_starter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter decides what Ctrl-C means
    order = Order.read(sys.stdin.readline())
    if not order.log_requests:
        os.environ.pop("SWIFT_DEBUG", None)  # makes ms-swift log prompts
    _end_when_a_thread_fails(report)
    try:
        listening = access.listening_socket(order.host, order.port)
        report("importing")
        server = _make_server(order, report)
        asyncio.run(_serve(Router(server, order), order, listening, report))
    except (Exception, SystemExit) as error:  # an argument parser ends with SystemExit
        traceback.print_exc()
        report("failed", type=type(error).__name__, message=str(error))
        return 1
    return 0


def _end_when_a_thread_fails(report: Reporter) -> None:
    """A thread of the engine that dies leaves requests unanswered for good: end, and say so."""

    def ended(failure: threading.ExceptHookArgs) -> None:
        traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
        report("failed", type=failure.exc_type.__name__, message=str(failure.exc_value))
        report.exit(1)

    threading.excepthook = ended


def _make_server(order: Order, report: Reporter) -> Any:
    """ms-swift's server with its engine loaded, not serving yet."""
    # a second line behind api_request; of nothing but a folder that cannot be there, no file is allowed
    os.environ["SWIFT_MEDIA_ALLOWED_DIRS"] = order.limits.media_dir or f"{os.devnull}/none"
    swift = serving_api()
    report("loading")
    # a file for results that is named makes no folders beside the model; nothing is written to it
    words = [*with_peft_adapters(order.arguments), f"--result_path={os.devnull}"]
    arguments, unknown = swift.parse_args(swift.DeployArguments, words)
    if unknown:
        raise ValueError(f"ms-swift does not know {' '.join(unknown)}")
    if arguments.adapter_mapping:
        arguments.system = order.system  # read from the first adapter, it would be every model's
    arguments.result_path = None
    BACKENDS[order.backend].reserve_adapters(arguments, RUNTIME_SLOTS if order.allow_runtime_lora else 0)
    server = swift.SwiftDeploy(arguments)
    server.jsonl_writer = None
    server.infer_engine.strict = False  # a request that cannot be rendered fails alone, not its whole batch
    return server


RUNTIME_SLOTS = 4
"""How many more adapters than at the start vLLM can hold where they may be loaded while serving."""


# --- HTTP ---------------------------------------------------------------------------------------------------


async def _serve(router: Router, order: Order, listening: Any, report: Reporter) -> None:
    """Serve until SIGTERM, then let running answers end."""
    import uvicorn

    await router.warm_up()
    page = Path(__file__).with_name("chat_page.html").read_bytes() if order.chat else None
    policy = Policy(order.key, router.limits, order.default_tokens, page)
    actions: dict[str, Action] = {}
    if order.allow_runtime_lora:
        actions = {"/v1/load_lora_adapter": router.load, "/v1/unload_lora_adapter": router.unload}
    gateway = Gateway(router.server.app, policy, router.models, router.running, Metrics(_log), actions)

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            batch = getattr(router.engine, "max_batch_size", None) if router.backend.in_process else None
            report("ready", port=listening.getsockname()[1], pid=os.getpid(), max_batch_size=batch)

        def capture_signals(self) -> Any:  # uvicorn would die of the signal after a clean end
            return nullcontext()

    server = Server(
        uvicorn.Config(
            gateway,
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            ssl_certfile=order.ssl_certfile,
            ssl_keyfile=order.ssl_keyfile,
            timeout_graceful_shutdown=order.drain_seconds,
        )
    )

    def stop() -> None:
        server.should_exit = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    serving = asyncio.create_task(server.serve([listening]))
    while not serving.done():
        await asyncio.wait([serving], timeout=1)
        if router.backend.has_died(router.engine) and not server.should_exit:
            raise RuntimeError("the engine of vLLM has died")
    serving.result()
    # the engine's thread, still at an answer that was cut short, finds no loop any more
    threading.excepthook = lambda _: None


def _log(one: Exchange) -> None:
    """One line for a request: never what it said."""
    tokens = f" {one.prompt_tokens}+{one.completion_tokens} tokens" if one.completion_tokens else ""
    what = f"{one.status} {one.path} {one.model or '-'}"
    print(f"{time.strftime('%H:%M:%S')} {what} {one.seconds:.3f} s{tokens}", flush=True)


if __name__ == "__main__":
    report = Reporter()
    report.exit(main(report))
elif __name__ == "__mp_main__":  # vLLM's engine, spawned by this process
    end_with_parent()
