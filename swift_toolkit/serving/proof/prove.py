"""Runs the comparison: asks both sides, each in its own process, and judges the answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from swift_toolkit.inference.plan import Plan
from swift_toolkit.machine.device import environment
from swift_toolkit.machine.failure import ENDED, child_failure
from swift_toolkit.machine.msswift import trust
from swift_toolkit.machine.process import Child
from swift_toolkit.machine.scratch import ScratchFolder
from swift_toolkit.model.checkpoints.checkpoint import Checkpoint
from swift_toolkit.model.files import is_model, model_problems, read_json
from swift_toolkit.model.loading import local
from swift_toolkit.model.merge import MARK, made_of
from swift_toolkit.serving.proof.exchange import Deviation, Messages, ProofOrder, ProofSide
from swift_toolkit.serving.proof.verdict import Proof, give_verdict

ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
"""Keys of config.json that determine token positions."""


@dataclass(frozen=True)
class Told:
    """The answers of the original.

    Args:
        plan: how the original was run.
        order: the order with the questions.
        side: its answers.
    """

    plan: Plan
    order: ProofOrder
    side: ProofSide

    @property
    def questions(self) -> list[str]:
        """The last message of each question."""
        return [messages[-1]["content"] for messages in self.order.questions]


@contextmanager
def ask_original(plan: Plan, questions: Sequence[Messages], max_tokens: int) -> Iterator[Told]:
    """Ask the checkpoint; its answers are available for the duration of the block.

    Raises:
        RunError: the checkpoint cannot be loaded.
    """
    with ScratchFolder() as folder, plan.order("tuned") as engine:
        order = ProofOrder(
            questions=tuple(questions),
            max_tokens=max_tokens,
            folder=str(folder),
            arguments=tuple(engine.arguments),
            device=plan.device.kind,
        )
        yield Told(plan, order, run(order, engine.environment, plan.log))


def prove(told: Told, path: Path, kind: str, merged_from: Checkpoint | None = None) -> Proof:
    """Ask the artefact the same questions and judge the answers.

    Args:
        told: the answers of the original.
        path: the artefact: a model directory or a GGUF file.
        kind: how its weights are stored, a key of `THRESHOLDS`.
        merged_from: the checkpoint whose adapter was merged into it, unquantised; None to skip the check of tensors.

    Raises:
        RunError: the process that asks the artefact ended without an answer.
    """
    seen = list(_file_faults(path, merged_from))
    if seen and seen[0].what.startswith("cannot be read"):
        nothing = replace(told.side, asked=())
        return give_verdict(nothing, nothing, (), kind, seen)
    order = artefact_order(told, path, merged_from)
    where = {**environment(told.plan.device), **trust(told.plan.checkpoint.trusted)}
    artefact = run(order, where, told.plan.log)
    return give_verdict(told.side, artefact, told.questions, kind, seen)


def artefact_order(told: Told, path: Path, merged_from: Checkpoint | None) -> ProofOrder:
    """The order for the artefact at ``path``."""
    base = adapter = ""
    if merged_from is not None and merged_from.kind == "lora":
        base, adapter = local(merged_from.base) or "", str(merged_from.path)
    base = base if is_model(Path(base)) else ""
    return replace(told.order, arguments=(), path=str(path), original=told.side, base=base, adapter=adapter)


def _file_faults(path: Path, merged_from: Checkpoint | None) -> Iterator[Deviation]:
    """Yield problems in the files of a model directory that are visible without loading it."""
    if not path.is_dir():
        return
    for problem in model_problems(path):
        yield Deviation("weights", f"cannot be read: {problem.what}")
    if merged_from is None:
        return
    mark = read_json(path / MARK)[0]
    if mark is not None and mark != made_of(merged_from):
        yield Deviation(
            "weights", "it was merged from an earlier version of the adapter, or from a different one"
        )
    base = Path(local(merged_from.base) or "") if merged_from.kind == "lora" else merged_from.path
    mine, told = (read_json(one / "config.json")[0] or {} for one in (path, base))
    if not told:
        return
    for key in ROPE:
        if key in told and key in mine and told[key] != mine[key]:
            yield Deviation("weights", f"{key} in config.json is {mine[key]}, but {told[key]} in the base")
    wanted = merged_from.torch_dtype
    stored = mine.get("dtype") or mine.get("torch_dtype")
    if wanted and stored and wanted != stored:
        yield Deviation("weights", f"the weights are {stored}, but {wanted} in training")


def run(order: ProofOrder, variables: Mapping[str, str], log: Path) -> ProofSide:
    """Ask one side in a separate process.

    Raises:
        RunError: the process failed.
    """
    import msgspec

    command = [sys.executable, "-m", "swift_toolkit.serving.proof.worker"]
    with Child(command, log, environment=variables, listens=True) as child:
        child.send(msgspec.to_builtins(order))
        events = (event for event in child.events() if event is not None)
        event = next((one for one in events if one["event"] in ("asked", "failed")), ENDED)
        if event["event"] != "asked":
            what = "the checkpoint could not be run" if order.arguments else "the artefact could not be run"
            raise child_failure(event, what[0].upper() + what[1:], child, log)
        return msgspec.convert(event["side"], ProofSide)
