"""A checkpoint compared with a running server: why does my server answer differently?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swift_toolkit.console import screen
from swift_toolkit.inference.plan import AskOptions, make_plan
from swift_toolkit.machine.device import find_device
from swift_toolkit.serving.access import KEY_VARIABLE
from swift_toolkit.serving.proof.exchange import Messages
from swift_toolkit.serving.proof.prove import ask_original
from swift_toolkit.serving.proof.server import prove_server
from swift_toolkit.serving.proof.verdict import Proof

MAX_TOKENS = 32


@dataclass(frozen=True)
class AgainstOptions:
    """How a server is compared.

    Args:
        url: its base URL.
        base_model: where the base of the checkpoint is now.
        trust_code: accept Python code that the checkpoint brings.
    """

    url: str
    base_model: str | None = None
    trust_code: bool = False


def compare(checkpoint: str | None, options: AgainstOptions, questions: Sequence[Messages]) -> Proof:
    """Ask both, and judge.

    Raises:
        RequestError: with everything that is wrong with the checkpoint.
        RunError: one of the two does not answer.
    """
    settings = {"torch_dtype": "float32"} if find_device().kind == "cpu" else {}
    how = AskOptions(base_model=options.base_model, trust_code=options.trust_code, infer_backend="pt")
    plan = make_plan(checkpoint, None, settings, how)
    screen.print_facts([*plan.rows()[:3], ("server", options.url)])
    with screen.StartingLine() as line:
        line.note("asking the checkpoint")
        with ask_original(plan, questions, MAX_TOKENS) as told:
            line.note("asking the server")
            return prove_server(told, options.url, None, KEY_VARIABLE)
