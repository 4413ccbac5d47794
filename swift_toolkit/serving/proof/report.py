"""Shows a comparison as tables and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from swift_toolkit.console import screen
from swift_toolkit.console.words import short
from swift_toolkit.serving.proof.verdict import Proof


def proof_json(proof: Proof) -> dict[str, object]:
    """The comparison as plain data."""
    pairs = [{**asdict(pair), "divergence": pair.divergence} for pair in proof.pairs]
    return {"schema": 1, **asdict(proof), "pairs": pairs, "equal_answers": proof.equal_answers}


def print_proof(proof: Proof) -> None:
    """Print the comparison as tables to stdout."""
    if rows := proof_rows(proof):
        screen.print_table(("question", "prompt", "answer", "mean KL", "ended"), rows, sys.stdout)
    screen.print_facts(verdict_rows(proof), sys.stdout)


_QUESTION = 40
"""Maximum width of a question in the table, in characters; export.json has the whole ones."""


def proof_rows(proof: Proof) -> list[Sequence[str]]:
    """One row for each question."""
    return [
        (
            short(" ".join(pair.question.split()), _QUESTION),
            "equal" if pair.original.prompt_ids == pair.artefact.prompt_ids else "differs",
            "equal" if pair.divergence is None else f"differs from token {pair.divergence + 1}",
            f"{sum(pair.artefact.kl) / len(pair.artefact.kl):.2g}" if pair.artefact.kl else "-",
            _ended(pair.original.ended, pair.artefact.ended),
        )
        for pair in proof.pairs
    ]


def _ended(original: bool, artefact: bool) -> str:
    if original == artefact:
        return "both" if original else "neither (cut off)"
    return "only the checkpoint" if original else "only the artefact"


def verdict_rows(proof: Proof) -> list[tuple[str, str]]:
    """The verdict and its causes, as names and values for the screen."""
    rows = [("verdict", f"{proof.verdict} ({proof.why})")]
    rows += [(fault.cause, fault.what) for fault in proof.faults]
    if proof.mean_kl is not None and proof.max_kl is not None:
        rows.append(("KL", f"mean {proof.mean_kl:.2g}, max {proof.max_kl:.2g}, read by {proof.read_by}"))
    return rows
