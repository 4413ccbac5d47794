"""Compares a checkpoint with a running server, to find out why the server answers differently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from swift_toolkit.console import screen
from swift_toolkit.console.words import shown
from swift_toolkit.inference.plan import AskOptions, Plan, make_plan
from swift_toolkit.machine.device import find_device
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.serving.access import KEY_VARIABLE
from swift_toolkit.serving.proof.exchange import Messages
from swift_toolkit.serving.proof.prove import ask_original
from swift_toolkit.serving.proof.server import prove_server, served_model
from swift_toolkit.serving.proof.verdict import Proof

MAX_TOKENS = 32


@dataclass(frozen=True)
class AgainstOptions:
    """The options of a comparison with a server.

    Args:
        url: base URL of the server.
        model: name of the model on the server; None for the only one.
        base_model: location of the base, if it is no longer where training found it.
        trust_code: accept Python code in the checkpoint.
    """

    url: str
    model: str | None = None
    base_model: str | None = None
    trust_code: bool = False


def make_comparison(checkpoint: str | None, options: AgainstOptions) -> Plan:
    """Check the request; return the plan to run the checkpoint.

    Raises:
        RequestError: with all problems.
    """
    settings = {"torch_dtype": "float32"} if find_device().kind == "cpu" else {}
    how = AskOptions(base_model=options.base_model, trust_code=options.trust_code, infer_backend="pt")
    problems = list(_url_problems(options.url))
    try:
        plan = make_plan(checkpoint, None, settings, how)
    except RequestError as error:
        raise RequestError(problems + error.problems) from None
    if problems:
        raise RequestError(problems)
    return plan


def _url_problems(url: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        do = "Write it as http://127.0.0.1:8000/v1"
        yield Problem(f"is {shown(url)}, which is not the URL of a server", do, "--against")


def comparison_rows(plan: Plan, options: AgainstOptions) -> list[tuple[str, str]]:
    """The comparison as names and values for the screen."""
    return [*plan.rows()[:3], ("server", options.url)]


def compare_with_server(plan: Plan, options: AgainstOptions, questions: Sequence[Messages]) -> Proof:
    """Ask both sides and compare the answers.

    Raises:
        RequestError: the server does not serve the model.
        RunError: one of the sides does not answer.
    """
    screen.print_facts(comparison_rows(plan, options))
    name = served_model(options.url, options.model, KEY_VARIABLE)
    with screen.StartingLine() as line:
        line.note("asking the checkpoint")
        with ask_original(plan, questions, MAX_TOKENS) as told:
            line.note("asking the server")
            return prove_server(told, options.url, name, KEY_VARIABLE)
