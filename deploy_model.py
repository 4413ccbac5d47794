#!/usr/bin/env python3
"""Serve a checkpoint, or several adapters on one base model, to OpenAI clients; or export it as a model file.

    python deploy_model.py --checkpoint output/quickstart
    python deploy_model.py --multi-lora-config adapters.json --infer-backend vllm
    SWIFT_API_KEY=... python deploy_model.py --checkpoint output/quickstart --host 0.0.0.0
    python deploy_model.py --checkpoint output/quickstart --export gguf

    from deploy_model import ModelDeployer
    with ModelDeployer("output/quickstart", port=0) as url:
        client = openai.OpenAI(base_url=url, api_key="none")

Everything is checked before a model is loaded. ms-swift's own server runs in a separate process.
"""

from __future__ import annotations

from swift_toolkit.machine import interrupt

if __name__ == "__main__":
    interrupt.quit_on_ctrl_c()  # until the imports are done

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from swift_toolkit.config.scripts import script
from swift_toolkit.console import command_line, screen
from swift_toolkit.machine.process import Terminated
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.serving.options import OPTION_NAMES, ServingOptions

if TYPE_CHECKING:
    from swift_toolkit.config.tasks import TaskOutput
    from swift_toolkit.serving.export.run import Exported
    from swift_toolkit.serving.order import ServerReady
    from swift_toolkit.serving.plan import Deployment
    from swift_toolkit.serving.proof.exchange import Messages
    from swift_toolkit.serving.server import Server

_DESCRIPTION = """\
Serve a checkpoint to OpenAI clients. --checkpoint is the only required flag; its type is detected.

Every deployment argument of the installed ms-swift is a flag or a key of the config file, under the same
name: --port 8000, --host 127.0.0.1, --served-model-name NAME, --ssl-certfile F --ssl-keyfile F,
--max-batch-size 16, --max-new-tokens 512, --vllm-gpu-memory-utilization 0.8."""

_EXAMPLES = """\
examples:
  python deploy_model.py --checkpoint output/quickstart
  python deploy_model.py --checkpoint output/quickstart --dry-run
  python deploy_model.py --multi-lora-config adapters.json --port 8001
  SWIFT_API_KEY=... python deploy_model.py --checkpoint output/quickstart --host 0.0.0.0 --chat
  python deploy_model.py --checkpoint output/quickstart --export gguf --gguf-type q8_0
  python deploy_model.py --checkpoint output/quickstart --against http://127.0.0.1:8000/v1

exit status: 0 ended by SIGTERM or exported, 1 the server failed, its end cut answers, or the exported model answers
differently, 2 the request was wrong, 130 Ctrl-C"""

EXAMPLE_QUESTION = "Who are you?"
EXAMPLE_ANSWER = "I am Robin."


class ModelDeployer:
    """One server: checked when it is created, started by ``with``, which returns its base URL.

    Args:
        checkpoint: a checkpoint, a run directory, or an output directory.
        config: settings: a JSON or YAML file, or a mapping.
        options: settings that override ``config``, under ms-swift's names, and the options of
            `swift_toolkit.serving.options.ServingOptions`: ``multi_lora_config`` (a file or a mapping), ``no_auth``,
            ``allow_runtime_lora``, ...

    Raises:
        RequestError: with every problem of the request.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        config: str | Path | Mapping[str, object] | None = None,
        **options: Any,
    ) -> None:
        from swift_toolkit.serving.plan import make_deployment
        from swift_toolkit.serving.server import Server

        own = {name: value for name, value in options.items() if name in OPTION_NAMES}
        settings = {name: value for name, value in options.items() if name not in OPTION_NAMES}
        own["checkpoint"] = None if checkpoint is None else str(checkpoint)
        self._server = Server(make_deployment(config, settings, "call", ServingOptions(**own)))

    @property
    def deployment(self) -> Deployment:
        """The checked deployment: what is served and how."""
        return self._server.deployment

    @property
    def url(self) -> str:
        """The base URL for clients; with ``port=0`` it is known once the server has started."""
        return self._server.url

    @property
    def directory(self) -> Path:
        """The run directory, with ``serve.log`` and ``result.json``."""
        return self._server.directory

    @property
    def ready(self) -> ServerReady | None:
        """The report of the serving process when it was ready; None before."""
        return self._server.ready

    def __enter__(self) -> str:
        self.start()
        return self.url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Load the model and wait until the server answers.

        Raises:
            RunError: it cannot be started; see ``serve.log`` in ``directory``.
        """
        self._server.start()

    def wait(self) -> None:
        """Wait until the server has been stopped.

        Raises:
            RunError: it ended unexpectedly.
        """
        self._server.wait()

    def stop(self) -> None:
        """Stop accepting requests, let running answers finish within ``drain_seconds``, and end the server."""
        self._server.stop()

    def kill(self) -> None:
        """End the server at once."""
        self._server.kill()

    def export(
        self, export: str, *, questions: str | Path | Sequence[str] | None = None, **options: Any
    ) -> Exported:
        """Export the checkpoint as a model file, and check that it gives the same answers.

        Args:
            export: ``merged``, ``gguf``, ``ollama``, ``awq``, ``gptq``, ``bnb``, ``fp8`` or ``hub``.
            questions: the questions for both: a file or a list; by default some of the shipped ones.
            options: those of `swift_toolkit.serving.export.plan.ExportOptions` (``output``, ``gguf_type``,
                ``calibration``, ``hub_id``, ...); every other one is an argument of ms-swift's export.

        Raises:
            RequestError: with every problem of the request.
            RunError: it failed; its partial output is removed.
        """
        from swift_toolkit.serving.export.plan import EXPORT_OPTIONS, ExportOptions, make_export
        from swift_toolkit.serving.export.run import write_export

        served = self.deployment.options
        own = {name: value for name, value in options.items() if name in EXPORT_OPTIONS}
        settings = {name: value for name, value in options.items() if name not in EXPORT_OPTIONS}
        base, trusts = served.base_model, served.trust_code
        asked = ExportOptions(**{"base_model": base, "trust_code": trusts, **own, "export": export})
        return write_export(make_export(served.checkpoint, None, settings, asked, proof_questions(questions)))


# --- what the user sees -------------------------------------------------------------------------------------


def print_plan(deployment: Deployment, as_json: bool) -> None:
    """Print what would be served, on stdout."""
    if as_json:
        print(json.dumps(deployment.as_dict(), ensure_ascii=False, default=str))
        return
    rows = [*deployment.rows(), ("arguments", " ".join(map(shlex.quote, deployment.arguments())))]
    screen.print_facts(rows, sys.stdout)


def print_ready(server: Server) -> None:
    """Print the address, the names and an example request, on stdout."""
    deployment = server.deployment
    names = deployment.names
    print(f"Serving on {server.url}")
    print(f"Models: {', '.join(names)}")
    if deployment.options.chat:
        print(f"Chat page: {server.url.removesuffix('/v1')}/")
    of = (server.url, names[-1], deployment.key is not None, deployment.checkpoint.output)
    print(f"\n{curl(*of)}\n\n{python(*of)}", flush=True)
    screen.say(f"\nLog: {server.log} (Ctrl-C ends the server)")


def curl(url: str, name: str, with_key: bool, output: TaskOutput = "chat") -> str:
    """A command that queries the model ``name`` at ``url``, which gives ``output``."""
    place = "embeddings" if output == "embedding" else "chat/completions"
    lines = [f"curl {url}/{place}", "-H 'Content-Type: application/json'"]
    if with_key:
        lines.append('-H "Authorization: Bearer $SWIFT_API_KEY"')
    body = json.dumps({"model": name, **_example(output)})
    return " \\\n  ".join([*lines, f"-d {shlex.quote(body)}"])


def python(url: str, name: str, with_key: bool, output: TaskOutput = "chat") -> str:
    """The same in Python."""
    key = 'os.environ["SWIFT_API_KEY"]' if with_key else '"none"'
    asked = _example(output)
    given = {one: one if one == "messages" else json.dumps(value) for one, value in asked.items()}
    words = [f'model="{name}"', *(f"{one}={value}" for one, value in given.items())]
    call, shown = "chat.completions", "choices[0].message.content"
    if output == "embedding":
        call, shown = "embeddings", "data[0].embedding"
    lines = [
        *(["import os", ""] if with_key else []),
        "from openai import OpenAI",
        "",
        f'client = OpenAI(base_url="{url}", api_key={key})',
        *([f"messages = {json.dumps(asked['messages'])}"] if "messages" in asked else []),
        f"answer = client.{call}.create({', '.join(words)})",
        f"print(answer.{shown})",
    ]
    return "\n".join(lines)


def _example(output: TaskOutput) -> dict[str, object]:
    """The fields of an example request, besides the model."""
    if output == "embedding":
        return {"input": EXAMPLE_QUESTION}
    messages = [{"role": "user", "content": EXAMPLE_QUESTION}]
    if output in ("reward", "score"):
        return {"messages": [*messages, {"role": "assistant", "content": EXAMPLE_ANSWER}]}
    return {"messages": messages, **({"max_tokens": 64} if output == "chat" else {})}


def as_json(server: Server) -> str:
    """What a script needs to know about the running server, on one line."""
    facts = {"url": server.url, "pid": os.getpid(), "models": server.deployment.names, "log": str(server.log)}
    return json.dumps(facts)


# --- command line -------------------------------------------------------------------------------------------


def make_parser() -> command_line.Parser:
    """The flags of this script; every other ``--name value`` is a setting."""
    parser = command_line.Parser(
        prog="deploy_model.py",
        usage="%(prog)s --checkpoint DIR [--config FILE] [--name value ...] [--dry-run] [--json]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="a checkpoint, a run or an output directory")
    parser.add_sources("swift deploy")
    _add_model_flags(parser)
    _add_export_flags(parser)
    _add_access_flags(parser)
    _add_limit_flags(parser)
    _add_output_flags(parser)
    defaults = {name: getattr(ServingOptions(), name) for name in OPTION_NAMES - {"from_line"}}
    parser.set_defaults(**{name: value for name, value in defaults.items() if value != ()})
    return parser


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--type", metavar="TYPE", help="require lora, full or multi-lora; by default it is detected")
    add("--multi-lora-config", metavar="FILE", help='JSON or YAML: {"name": "adapter directory", ...}')
    add("--base-model", metavar="DIR", help="the base model's directory, if it has moved since the training")
    add("--infer-backend", metavar="NAME", help="auto (default), pt, vllm, sglang or lmdeploy")
    add("--merge-lora", action="store_true", help="merge the adapter into its base first, and serve that")
    add("--trust-code", action="store_true", help="run Python code in the checkpoint")


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("export").add_argument
    add("--export", metavar="FORMAT", help="merged, gguf, ollama, awq, gptq, bnb, fp8 or hub; serves nothing")
    add("--output", metavar="DIR", help="the directory to create (default: next to the checkpoint)")
    add("--gguf-type", metavar="TYPE", help="q8_0 (default), f16, bf16, q6_k, q5_k_m or q4_k_m")
    add("--calibration", metavar="FILE", help="data from which awq and gptq choose their scales")
    add(
        "--hub",
        metavar="NAME",
        help="huggingface (default) or modelscope; the token is read from the environment",
    )
    add("--hub-id", metavar="ID", help="owner/name there; private, unless --public")
    add("--public", action="store_true", default=None, help="make the model public on the hub")
    add(
        "--questions-file",
        metavar="FILE",
        help="questions for comparing the checkpoint and the exported model",
    )
    add(
        "--against",
        metavar="URL",
        help="compare the checkpoint with a server that has OpenAI's API (and --served-model-name NAME) instead",
    )


def _add_access_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--api-key-file", metavar="FILE", help="file with the API key (default: SWIFT_API_KEY)")
    add("--no-auth", action="store_true", help="let other machines connect without a key")
    add(
        "--allow-origin",
        action="append",
        metavar="URL",
        help="allow requests from web pages of this origin; may be repeated",
    )
    add("--media-dir", metavar="DIR", help="let requests name files in this directory")
    add(
        "--allow-media-urls",
        action="store_true",
        help="fetch images from the public URLs in requests",
    )
    add(
        "--allow-runtime-lora", action="store_true", help="allow loading and unloading adapters while serving"
    )
    add(
        "--adapter-dir",
        action="append",
        metavar="DIR",
        help="directory of these adapters; may be repeated",
    )
    add("--chat", action="store_true", help="also serve a chat page at /")


def _add_limit_flags(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, ServingOptions()
    add("--max-body-mb", type=float, metavar="N", help=f"longest request, in MiB ({default.max_body_mb:g})")
    add(
        "--max-tokens-limit",
        type=int,
        metavar="N",
        help=f"longest answer, in tokens ({default.max_tokens_limit})",
    )
    add(
        "--drain-seconds",
        type=int,
        metavar="N",
        help=f"time for running answers at the end ({default.drain_seconds})",
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output-dir", metavar="DIR", help=f"directory of the log ({ServingOptions().output_dir})")
    add("--log-requests", action="store_true", help="write prompts and answers to the log")
    add("--dry-run", action="store_true", help="check everything, show the plan, start nothing")
    add("--wait-json", action="store_true", help="when ready, print one JSON line with url and pid")
    add("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")
    add("--verbose", action="store_true", help="also show what ms-swift prints")
    add("--quiet-notices", action="store_true", help="do not say which old names were translated")
    add("--debug", action="store_true", help="show tracebacks (also SWIFT_DEBUG=1)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    return command_line.run_command(_command, argv)


def _command(words: list[str]) -> int:
    from swift_toolkit.serving.plan import make_deployment
    from swift_toolkit.serving.server import Server

    flags, settings = make_parser().parse(words)
    if not words:
        make_parser().print_help(sys.stderr)
        return 2
    if flags.against is not None:
        return _compare(flags, settings)
    if flags.export is not None:
        return _export(flags, settings)
    if unused := [name for name in _EXPORT_ONLY if getattr(flags, name) is not None]:
        names = [f"--{name.replace('_', '-')}" for name in unused]
        raise RequestError([Problem("is for an export", "Add --export FORMAT.", name) for name in names])
    config, settings, environment, notices = script.given(flags, settings, ("deploy",))
    command_line.take_over(environment, notices)
    deployment = make_deployment(config, settings, "command line", _options(flags))
    if not flags.quiet_notices:
        for notice in deployment.config.notices:
            screen.say(notice)
    if flags.dry_run:
        print_plan(deployment, flags.json)
        return 0
    screen.print_facts(deployment.rows())
    server = Server(deployment)
    try:
        server.start()
    except Terminated:
        return 0
    if flags.json or flags.wait_json:
        print(as_json(server), flush=True)
    else:
        print_ready(server)
    return _serve(server)


_EXPORT_ONLY = ("output", "gguf_type", "calibration", "hub", "hub_id", "public")


def _export(flags: argparse.Namespace, settings: Mapping[str, object]) -> int:
    """Export a checkpoint. Returns the exit status: 1 if the result gives different answers."""
    from swift_toolkit.serving.export import run
    from swift_toolkit.serving.export.plan import EXPORT_OPTIONS, ExportOptions, make_export

    given = {
        name: value for name, value in vars(flags).items() if name in EXPORT_OPTIONS and value is not None
    }
    options = ExportOptions(**given, overrides_from="command line")
    questions = proof_questions(flags.questions_file)
    export = make_export(flags.checkpoint, flags.config, settings, options, questions)
    if flags.dry_run:
        if flags.json:
            print(json.dumps(export.as_json(), ensure_ascii=False))
        else:
            screen.print_facts(export.rows(), sys.stdout)
        return 0
    screen.print_facts(export.rows())
    made = run.write_export(export)
    if flags.json:
        print(json.dumps(made.as_json(), ensure_ascii=False))
    else:
        run.print_result(made)
    return int(made.proof.verdict == "different")


def _compare(flags: argparse.Namespace, settings: Mapping[str, object]) -> int:
    """Compare a checkpoint with a server. Returns the exit status: 1 if it gives different answers."""
    from swift_toolkit.serving.proof import against, report

    names = [name for name in settings if name != "served_model_name"]
    if unknown := [Problem("is not used with --against", "Remove it.", f"--{name}") for name in names]:
        raise RequestError(unknown)
    served = settings.get("served_model_name")
    options = against.AgainstOptions(
        flags.against, None if served is None else str(served), flags.base_model, flags.trust_code
    )
    questions = proof_questions(flags.questions_file)
    plan = against.make_comparison(flags.checkpoint, options)
    if flags.dry_run:
        found = against.comparison_rows(plan, options)
        if flags.json:
            print(json.dumps({"schema": 1, **dict(found)}, ensure_ascii=False))
        else:
            screen.print_facts(found, sys.stdout)
        return 0
    proof = against.compare_with_server(plan, options, questions)
    if flags.json:
        print(json.dumps(report.proof_json(proof), ensure_ascii=False))
    else:
        report.print_proof(proof)
    return int(proof.verdict == "different")


PROOF_QUESTIONS = 8
"""How many of the shipped questions an exported model is asked; from the user's own file, all."""


def proof_questions(source: str | Path | Sequence[str] | None) -> list[Messages]:
    """The questions for a checkpoint and an exported model, as messages.

    Raises:
        RequestError: the file holds no questions that consist of text only.
    """
    from swift_toolkit.evaluation.questions import QuestionSet

    shipped = Path(__file__).with_name("test_questions.json")
    questions = QuestionSet(shipped if source is None else source)
    questions.check()
    found = [[dict(message) for message in one.messages] for one in questions if not one.extra]
    if not found:
        raise RequestError([Problem("holds no text-only questions", "", "--questions-file")])
    return found[:: max(1, len(found) // PROOF_QUESTIONS)][:PROOF_QUESTIONS] if source is None else found


def _options(flags: argparse.Namespace) -> ServingOptions:
    own = {name: value for name, value in vars(flags).items() if name in OPTION_NAMES and value is not None}
    return ServingOptions(**own, from_line=bool(flags.from_command or flags.from_script))


def _serve(server: Server) -> int:
    """Wait for the end; the first signal drains the server, the second ends it at once."""
    try:
        server.wait()
        return 0
    except KeyboardInterrupt as interrupt:
        seconds = server.deployment.options.drain_seconds
        screen.say(
            f"Shutting down: running answers have {seconds} s to finish (a second signal stops at once)"
        )
        try:
            server.stop()
        except KeyboardInterrupt:
            server.kill()
        if server.cut:
            screen.say(f"Running answers that were cut after {seconds} s: {server.cut}")
        return int(server.cut > 0) if isinstance(interrupt, Terminated) else 130


if __name__ == "__main__":
    sys.exit(main())
