#!/usr/bin/env python3
"""Serve a checkpoint, or several adapters on one base, to OpenAI clients.

    python deploy_model.py --checkpoint output/quickstart
    python deploy_model.py --multi-lora-config adapters.json --infer-backend vllm
    SWIFT_API_KEY=... python deploy_model.py --checkpoint output/quickstart --host 0.0.0.0

    from deploy_model import ModelDeployer
    with ModelDeployer("output/quickstart", port=0) as url:
        client = openai.OpenAI(base_url=url, api_key="none")

Everything is checked before a model is loaded; ms-swift's own server does the serving, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from swift_toolkit.config import script
from swift_toolkit.console import command_line, screen
from swift_toolkit.machine.process import Terminated
from swift_toolkit.problems import RunError

if TYPE_CHECKING:
    from swift_toolkit.machine.process import Child
    from swift_toolkit.serving.plan import Deployment

DESCRIPTION = """\
Serve a checkpoint to OpenAI clients. --checkpoint alone is enough: what it is, is found out.

Every deployment argument of the installed ms-swift is a flag or a key of the config file, under its own
name: --port 8000, --host 127.0.0.1, --served-model-name NAME, --ssl-certfile F --ssl-keyfile F,
--max-batch-size 16, --max-new-tokens 512, --vllm-gpu-memory-utilization 0.8."""

EXAMPLES = """\
examples:
  python deploy_model.py --checkpoint output/quickstart
  python deploy_model.py --checkpoint output/quickstart --dry-run
  python deploy_model.py --multi-lora-config adapters.json --port 8001
  SWIFT_API_KEY=... python deploy_model.py --checkpoint output/quickstart --host 0.0.0.0 --chat

exit status: 0 ended by SIGTERM, 1 the server failed, 2 the request was wrong, 130 Ctrl-C"""

EXAMPLE_QUESTION = "Who are you?"


class ModelDeployer:
    """One server: checked when it is made, started by ``with``, which gives its base URL.

    Args:
        checkpoint: a checkpoint, a run directory, or an output directory.
        config: settings: a JSON or YAML file, or a mapping.
        options: settings laid over ``config`` under ms-swift's names, and the flags of the command line:
            ``multi_lora_config`` (a file or a mapping), ``no_auth``, ``allow_runtime_lora``, ...

    Raises:
        RequestError: with every problem of the request.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        config: str | Path | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        flags = vars(make_parser().parse_args([]))
        settings = {name: value for name, value in options.items() if name not in flags}
        flags |= {name: value for name, value in options.items() if name in flags}
        flags["checkpoint"] = None if checkpoint is None else str(checkpoint)
        self._setup(config, settings, "call", flags)

    @classmethod
    def from_command_line(cls, flags: argparse.Namespace, settings: Mapping[str, Any]) -> ModelDeployer:
        """The same, with messages that speak of flags."""
        deployer = cls.__new__(cls)
        deployer._setup(flags.config, settings, "command line", vars(flags))
        return deployer

    def _setup(
        self,
        config: str | Path | Mapping[str, Any] | None,
        settings: Mapping[str, Any],
        source: Literal["command line", "call"],
        flags: Mapping[str, Any],
    ) -> None:
        from swift_toolkit.serving.plan import make_deployment

        self.deployment: Deployment = make_deployment(config, settings, source, flags)
        self.flags = flags
        self.url = self.deployment.url()
        self.ready: dict[str, Any] = {}
        self.directory = self._output = Path(flags["output_dir"]).expanduser()
        self._stack = ExitStack()
        self._child: Child
        self._events: Iterator[dict[str, Any] | None]

    def __enter__(self) -> str:
        self.start()
        return self.url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Load the model and wait until the server answers; what goes on is shown on stderr.

        Raises:
            RunError: it cannot be started; ``serve.log`` in ``directory`` says more.
        """
        from swift_toolkit.machine import device
        from swift_toolkit.machine.process import Child
        from swift_toolkit.runs import directory

        self.ready, self._started = {}, time.time()
        try:
            self.directory = directory.claim_run_directory(self._output).absolute()
        except OSError as error:
            raise RunError(
                f"{self.directory}: the run directory cannot be made ({error.strerror})."
            ) from None
        self.deployment.log = self.directory / "serve.log"
        try:
            with screen.StartingLine() as line:
                model = self._stack.enter_context(self._model(line))
                command = [sys.executable, "-m", "swift_toolkit.serving.worker"]
                echo = sys.stderr if self.flags.get("verbose") else None
                log, environment = self.deployment.log, device.environment(self.deployment.device)
                self._child = Child(command, log, environment, echo=echo, listens=True)
                self._stack.enter_context(self._child)
                self._child.send(self.deployment.order(model))
                self._events = self._child.events()
                self._wait_until_ready(line)
        except BaseException as error:
            self._end(error)
            raise

    def _model(self, line: screen.StartingLine) -> Any:
        """The model to load, merged first where needed."""
        from contextlib import nullcontext

        from swift_toolkit.model.builtin import is_builtin, materialise
        from swift_toolkit.model.merge import merged

        deployment = self.deployment
        if deployment.merge != "no":
            line.note("merging the adapter into its base")
            return merged(deployment)
        path = deployment.models[0].path
        return nullcontext(str(materialise(path)) if is_builtin(path) else path)

    def _wait_until_ready(self, line: screen.StartingLine) -> None:
        for event in self._events:
            if event is None:
                continue
            if event["event"] == "ready":
                self.ready = event
                self.url = self.deployment.url(event["port"])
                self._write("serving")
                return
            if event["event"] == "failed":
                raise self._failure(event)
            line.note(_STARTING[event["event"]])
        raise self._failure({})

    def wait(self) -> None:
        """Return when the server has ended because it was told to.

        Raises:
            RunError: it ended by itself.
        """
        failure: dict[str, Any] = {}
        for event in self._events:
            if event is not None and event["event"] == "failed":
                failure = event
        if failure or self._child.process.wait() != 0:
            error = self._failure(failure)
            self._end(error)
            raise error
        self._end(None)

    def stop(self) -> None:
        """Stop accepting, let running answers end for as long as ``drain_seconds``, and end the server."""
        if not self.ready or self._child.process.poll() is not None:
            self._end(None)
            return
        self._child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.flags["drain_seconds"] + _GRACE_SECONDS
        for _ in self._events:
            if time.monotonic() > deadline:
                break
        self._end(None)

    def kill(self) -> None:
        """End the server at once."""
        self._child.end(patience=0)
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self._stack.close()
        if self.deployment.log.is_file():
            self._write("failed" if isinstance(error, RunError) else "ended", str(error) if error else None)

    def _failure(self, event: Mapping[str, Any]) -> RunError:
        from swift_toolkit.machine.failure import engine_error

        where = f"The whole log: {self.deployment.log}"
        what = "The server could not be started" if not self.ready else "The server has ended"
        if event:
            first = (str(event["message"]).strip().splitlines() or [""])[0]
            cause = engine_error(self.deployment.log) or f"{event['type']}: {first}"
            return RunError(f"{what}: {cause.rstrip('.')}. {where}")
        status = self._child.process.wait()
        if status == -signal.SIGKILL:
            return RunError(f"{what}: it was killed, most often for lack of memory. {where}")
        return RunError(f"{what}: its process ended with status {status}. {where}")

    def _write(self, status: str, error: str | None = None) -> None:
        from swift_toolkit.machine import files

        content = {
            "status": status,
            "error": error,
            "seconds": round(time.time() - self._started, 2),
            "max_batch_size": self.ready.get("max_batch_size"),
            **self.deployment.as_dict(),
            "url": self.url,
        }
        files.write_json(self.directory / "result.json", content)

    # --- what the user sees ---------------------------------------------------------------------------------

    def print_plan(self) -> None:
        """Show what is served, on stderr."""
        screen.print_facts(self.deployment.rows())

    def print_ready(self) -> None:
        """The address, the names, and how to ask, on stdout."""
        names = [model.name for model in self.deployment.models]
        print(f"Serving on {self.url}")
        print(f"Models: {', '.join(names)}")
        if self.flags.get("chat"):
            print(f"Chat page: {self.url.removesuffix('/v1')}/")
        print(f"\n{self.curl(names[-1])}\n\n{self.python(names[-1])}", flush=True)
        screen.say(f"\nLog: {self.deployment.log} (Ctrl-C ends the server)")

    def curl(self, name: str) -> str:
        """A command that asks the model ``name``."""
        body = {"model": name, "messages": [{"role": "user", "content": EXAMPLE_QUESTION}], "max_tokens": 64}
        lines = [f"curl {self.url}/chat/completions", "-H 'Content-Type: application/json'"]
        if self.deployment.key:
            lines.append('-H "Authorization: Bearer $SWIFT_API_KEY"')
        return " \\\n  ".join([*lines, f"-d {shlex.quote(json.dumps(body))}"])

    def python(self, name: str) -> str:
        """The same in Python."""
        key = 'os.environ["SWIFT_API_KEY"]' if self.deployment.key else '"none"'
        return "\n".join(
            [
                *(["import os", ""] if self.deployment.key else []),
                "from openai import OpenAI",
                "",
                f'client = OpenAI(base_url="{self.url}", api_key={key})',
                f'messages = [{{"role": "user", "content": "{EXAMPLE_QUESTION}"}}]',
                f'answer = client.chat.completions.create(model="{name}", messages=messages, max_tokens=64)',
                "print(answer.choices[0].message.content)",
            ]
        )

    def as_json(self) -> str:
        """What a script wants to know of the running server, on one line."""
        names = [model.name for model in self.deployment.models]
        log = str(self.deployment.log)
        return json.dumps({"url": self.url, "pid": os.getpid(), "models": names, "log": log})


_STARTING = {"importing": "importing ms-swift", "loading": "loading the model"}
_GRACE_SECONDS = 5.0  # for what comes after the last answer


# --- command line -------------------------------------------------------------------------------------------


def make_parser() -> command_line.Parser:
    """The flags of this script; every other ``--name value`` is a setting."""
    parser = command_line.Parser(
        prog="deploy_model.py",
        usage="%(prog)s --checkpoint DIR [--config FILE] [--name value ...] [--dry-run] [--json]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="a checkpoint, a run directory, or an output directory")
    parser.add_sources("swift deploy")
    add("--type", metavar="TYPE", help="insist on lora, full or multi-lora; by itself it is found out")
    add("--multi-lora-config", metavar="FILE", help='JSON or YAML: {"name": "adapter directory", ...}')
    add("--base-model", metavar="DIR", help="where the base is now, if it is not where training found it")
    add("--infer-backend", metavar="NAME", help="auto (default), pt, vllm, sglang or lmdeploy")
    add("--merge-lora", action="store_true", help="merge the adapter into its base first, and serve that")
    add("--trust-code", action="store_true", help="accept a checkpoint that names Python files to import")
    add("--api-key-file", metavar="FILE", help="file that holds the API key; else SWIFT_API_KEY does")
    add("--no-auth", action="store_true", help="let other machines in without a key")
    add("--log-requests", action="store_true", help="write prompts and answers to the log")
    add("--media-dir", metavar="DIR", help="let requests name files in this directory")
    add("--max-body-mb", type=float, default=16, metavar="N", help="longest request, in MiB (16)")
    add("--max-tokens-limit", type=int, default=4096, metavar="N", help="longest answer, in tokens (4096)")
    add("--drain-seconds", type=int, default=30, metavar="N", help="time for running answers at the end (30)")
    add("--allow-runtime-lora", action="store_true", help="adapters may be loaded and unloaded while serving")
    add("--chat", action="store_true", help="also serve a chat page at /")
    add("--output-dir", default="output/deploy", metavar="DIR", help="where the log goes (output/deploy)")
    add("--dry-run", action="store_true", help="check everything, show the plan, start nothing")
    add("--wait-json", action="store_true", help="when ready, print one JSON line with url and pid")
    add("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")
    add("--verbose", action="store_true", help="also show all that ms-swift prints")
    add("--quiet-notices", action="store_true", help="do not say which old names were translated")
    add("--debug", action="store_true", help="show tracebacks (also SWIFT_DEBUG=1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    return command_line.run(_command, argv)


def _command(words: list[str]) -> int:
    flags, settings = make_parser().parse(words)
    if not words:
        make_parser().print_help(sys.stderr)
        return 2
    flags.config, settings = script.request(flags, settings, ("deploy",))
    deployer = ModelDeployer.from_command_line(flags, settings)
    if not flags.quiet_notices:
        for notice in deployer.deployment.config.notices:
            screen.say(notice)
    if flags.dry_run:
        _print_plan(deployer.deployment, flags.json)
        return 0
    deployer.print_plan()
    try:
        deployer.start()
    except Terminated:
        return 0
    if flags.json or flags.wait_json:
        print(deployer.as_json(), flush=True)
    else:
        deployer.print_ready()
    return _serve(deployer)


def _serve(deployer: ModelDeployer) -> int:
    """Wait for the end; the first signal drains, the second ends at once."""
    try:
        deployer.wait()
        return 0
    except KeyboardInterrupt as interrupt:
        seconds = deployer.flags["drain_seconds"]
        screen.say(f"Ending: running answers have {seconds} s (a second signal ends at once)")
        try:
            deployer.stop()
        except KeyboardInterrupt:
            deployer.kill()
        return 0 if isinstance(interrupt, Terminated) else 130


def _print_plan(deployment: Deployment, as_json: bool) -> None:
    if as_json:
        print(json.dumps(deployment.as_dict(), ensure_ascii=False, default=str))
        return
    rows = [*deployment.rows(), ("arguments", " ".join(map(shlex.quote, deployment.arguments())))]
    screen.print_facts(rows, sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
