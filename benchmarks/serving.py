#!/usr/bin/env python3
"""Speed of the server, as ratios to raw ``swift deploy`` in one run of this script.

    python benchmarks/serving.py                       # SmolLM2 on this machine with the pt backend; about 8 minutes
    python benchmarks/serving.py --backend vllm        # with VLLM_PLUGINS="" VLLM_CPU_KVCACHE_SPACE=2 on a CPU

The servers are started one at a time, alternately and several times each, because the speed of vLLM's engine varies by
5% between starts, and its worker keeps a core busy for 1 s after each request. Each server answers requests of the same
length at a concurrency of 1, 8 and 32, and the time to the first token of a stream is measured. Raw with its own
defaults, which answers one request at a time, is measured once, at a concurrency of 8.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BATCH = 32
DEFAULTS = "raw at its defaults"
TOKENS = 32
CONCURRENCY = (1, 8, 32)


def main() -> None:
    from swift_toolkit.machine.process import interrupt_on_sigterm

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["pt", "vllm"], default="pt")
    parser.add_argument("--model", help="a model directory (default: the embedded SmolLM2)")
    parser.add_argument("--model-type", default="llama")
    parser.add_argument("--template", default="chatml")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--rounds", type=int, default=4, help="rounds at each concurrency of one start (default 4)"
    )
    parser.add_argument("--starts", type=int, default=3, help="starts of each server (default 3)")
    options = parser.parse_args()
    interrupt_on_sigterm()
    commands = servers(options)
    found: list[dict[str, dict[str, float]]] = []
    for number in range(options.starts):
        names = list(commands) if number % 2 else list(commands)[::-1]
        found.append({name: measures(name, commands[name], options.rounds) for name in names})
    for what in found[0]["ours"]:
        report(what, [{name: of[what] for name, of in one.items() if what in of} for one in found])


def measures(name: str, command: list[str], rounds: int) -> dict[str, float]:
    """The measurements of one start of a server."""
    with running(command) as (port, seconds):
        found = {"seconds to ready": seconds}
        ask(port, 0)
        if name == DEFAULTS:
            return {**found, "tokens/s at 8": throughput(port, 8)}
        found["seconds to the first token"] = statistics.median(first_token(port) for _ in range(4 * rounds))
        for many in CONCURRENCY:
            found[f"tokens/s at {many}"] = statistics.median(throughput(port, many) for _ in range(rounds))
    return found


def servers(options: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each side; ``{port}`` and ``{folder}`` are filled in at each start."""
    from swift_toolkit.model import builtin

    model = options.model or str(builtin.materialise("builtin/SmolLM2-135M-Instruct"))
    shared = [
        "--model_type",
        options.model_type,
        "--template",
        options.template,
        "--torch_dtype",
        options.dtype,
    ]
    shared += ["--served_model_name", "model", "--port", "{port}"]
    if options.backend == "vllm":
        shared += ["--vllm_enforce_eager", "true", "--vllm_max_model_len", "1024"]
    ours = [sys.executable, str(ROOT / "deploy_model.py"), "--checkpoint", model, "--wait-json"]
    ours += ["--infer-backend", options.backend, "--output-dir", "{folder}", *shared]
    raw = [str(Path(sys.executable).with_name("swift")), "deploy", "--model", model, "--verbose", "false"]
    raw += ["--infer_backend", "transformers" if options.backend == "pt" else "vllm", *shared]
    if options.backend == "vllm":
        return {"ours": ours, "raw": raw}
    return {"ours": ours, f"raw, batch {BATCH}": [*raw, "--max_batch_size", str(BATCH)], DEFAULTS: raw}


@contextmanager
def running(command: list[str]) -> Iterator[tuple[int, float]]:
    """A server: its port, and the seconds from the command until it was ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w") as log:
        words = [word.format(port=port, folder=folder) for word in command]
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            wait_until_ready(process, port, Path(folder, "log"))
            yield port, time.perf_counter() - began
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(3)
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                sys.exit(f"the server ended:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)


def request(port: int, number: int, **more: Any) -> urllib.request.Request:
    messages = [{"role": "user", "content": f"Write a long story about the number {number}."}]
    body = {"model": "model", "messages": messages, "max_tokens": TOKENS, "temperature": 0, **more}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    return urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})


def ask(port: int, number: int) -> int:
    """Ask one question. Returns the tokens of the answer."""
    with urllib.request.urlopen(request(port, number)) as response:
        return int(json.load(response)["usage"]["completion_tokens"])


def throughput(port: int, many: int) -> float:
    """Tokens per second for ``many`` concurrent questions."""
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(many) as pool:
        tokens = sum(pool.map(lambda number: ask(port, number), range(many)))
    return tokens / (time.perf_counter() - began)


def first_token(port: int) -> float:
    """Seconds until the first text of a streamed answer."""
    began = time.perf_counter()
    with urllib.request.urlopen(request(port, 1, stream=True)) as response:
        for line in response:
            if re.search(rb'"content": ?"[^"]', line):
                return time.perf_counter() - began
    raise RuntimeError("the stream was empty")


def report(what: str, starts: list[dict[str, float]]) -> None:
    """Print one line: the median of every side, the results of its starts, and the ratios of the medians."""
    names = ["ours", *(name for name in starts[0] if name != "ours")]
    medians = {name: statistics.median(one[name] for one in starts) for name in names}
    figures = [
        f"{name} {medians[name]:.3g} ({' '.join(f'{one[name]:.3g}' for one in starts)})" for name in names
    ]
    ratios = [f"{medians['ours'] / medians[name]:.2f} of {name}" for name in names[1:]]
    print(f"{what}: {', '.join(figures)}; {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
