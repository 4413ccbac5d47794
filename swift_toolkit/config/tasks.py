"""The properties of a training task: its command, its rows, the models it needs, its output.

``TASKS`` has one row per task. Code that depends on the task reads its row instead of its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from swift_toolkit.machine.msswift import Command

TaskName = Literal[
    "sft", "pt", "dpo", "orpo", "simpo", "cpo", "rm", "kto", "ppo", "grpo", "gkd",
    "seq_cls", "embedding", "reranker", "generative_reranker", "decision",
]  # fmt: skip
TaskRows = Literal["answer", "text", "preference", "judged", "prompt", "class", "documents", "decision"]
DECISION_LOSSES = ("scoring", "distill_rps", "smooth_brier", "ce_rps")
PAIR_LOSSES = ("cosine_similarity", "contrastive", "online_contrastive")
"""Losses of embeddings that compare the two texts of a row by its label."""

TaskOutput = Literal["chat", "reward", "class", "embedding", "score", "decision"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training task.

    Args:
        name: its name in the toolkit.
        rows: what a row holds: ``answer`` a conversation that ends with the answer to learn, ``text`` plain text,
            ``preference`` an answer and a rejected one, ``judged`` an answer labelled true or false, ``prompt``
            a conversation to answer, ``class`` a text with its class, ``documents`` a query with matching and
            non-matching documents, ``decision`` a state with questions.
        command: the command of ms-swift that trains it.
        rlhf_type: ms-swift's ``rlhf_type``, "" if it has none.
        task_type: ms-swift's ``task_type``.
        needs: settings of which one must be given.
        excludes: settings that cannot be used with it.
        packs: rows can share a sequence (``packing``, ``padding_free``).
        splits_rows: a row can be spread over devices (``sequence_parallel_size``).
        own_models: only models that ms-swift makes for it support it.
        several_losses: ``loss_type`` takes several, with ``loss_weights``.
        output: the output of the trained model.
        sequences: number of sequences that one row becomes, without the negatives of a query.
        has_negatives: a row also has up to MAX_NEGATIVE_SAMPLES non-matching documents.
        keeps_negatives: ms-swift needs an empty list in rows without non-matching documents.
        logits: the tokens of a row that have logits over the vocabulary.
        generates: answers are generated during training.
        follows_prompt: generated text is trained on, after the prompt.
        has_reference: a second copy of the model is the reference unless adapters are trained.
        has_values: a value model is trained, too.
        has_teacher: a teacher's logits are held in addition to the model's own.
        batch_of: what ``per_device_train_batch_size`` counts.
        trainer: the trainer whose source names the loss types, "" if ``loss_type`` does not belong to an algorithm.
        loss_over: what the loss of one optimiser step is averaged over: all learned ``tokens``, across devices and
            accumulated batches, or ``rows``: the mean of the batches' means.
    """

    name: TaskName
    rows: TaskRows
    command: Command = "sft"
    rlhf_type: str = ""
    task_type: str = "causal_lm"
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    packs: bool = False
    splits_rows: bool = False
    own_models: bool = False
    several_losses: bool = False
    output: TaskOutput = "chat"
    sequences: int = 1
    has_negatives: bool = False
    keeps_negatives: bool = False
    logits: Literal["all", "last", "none"] = "all"
    generates: bool = False
    follows_prompt: bool = False
    has_reference: bool = False
    has_values: bool = False
    has_teacher: bool = False
    batch_of: Literal["rows", "answers"] = "rows"
    trainer: str = ""
    loss_over: Literal["tokens", "rows"] = "rows"

    @property
    def setting(self) -> tuple[str, str]:
        """The argument of ms-swift that chooses the task, in addition to the command, and its value."""
        return ("rlhf_type", self.rlhf_type) if self.rlhf_type else ("task_type", self.task_type)

    @property
    def has_answers(self) -> bool:
        """Whether a row must end with an answer."""
        return self.rows in ("answer", "preference", "judged")

    @property
    def has_label(self) -> bool:
        """Whether the column ``label`` is used."""
        return self.rows in ("judged", "class", "documents")

    @property
    def template_mode(self) -> str:
        """The mode of ms-swift's template."""
        return {"preference": "rlhf", "judged": "kto"}.get(self.rows, "train")


def _rlhf(name: TaskName, **attributes: object) -> Task:
    return Task(**{"name": name, "command": "rlhf", "rlhf_type": name, **attributes})  # type: ignore[arg-type]


def _preference(name: TaskName, **attributes: object) -> Task:
    return _rlhf(name, **{"rows": "preference", "sequences": 2, **attributes})


def _kind(name: TaskName, **attributes: object) -> Task:
    row = {"name": name, "task_type": name, "logits": "none", "packs": True, "splits_rows": True}
    return Task(**{**row, **attributes})  # type: ignore[arg-type]


_ROWS = (
    Task(name="sft", rows="answer", loss_over="tokens", packs=True, splits_rows=True),
    Task(name="pt", rows="text", command="pt", loss_over="tokens", packs=True, splits_rows=True),
    _preference("dpo", has_reference=True, trainer="dpo", packs=True, splits_rows=True, several_losses=True),
    _preference("orpo"),
    _preference("simpo", trainer="cpo"),
    _preference("cpo", trainer="cpo"),
    _preference("rm", task_type="seq_cls", output="reward", logits="none"),
    _rlhf("kto", rows="judged", sequences=2, has_reference=True, trainer="kto", packs=True),
    _rlhf(
        "ppo",
        rows="prompt",
        needs=("reward_model",),
        generates=True,
        follows_prompt=True,
        has_reference=True,
        has_values=True,
    ),
    _rlhf(
        "grpo",
        rows="prompt",
        needs=("reward_funcs", "reward_model", "use_gym_env", "teacher_model", "teacher_model_server"),
        excludes=("cached_dataset", "cached_val_dataset", "vllm_reasoning_parser"),
        packs=True,
        splits_rows=True,
        generates=True,
        follows_prompt=True,
        has_reference=True,
        batch_of="answers",
        trainer="grpo",
    ),
    _rlhf(
        "gkd",
        rows="answer",
        excludes=("async_generate",),
        packs=True,
        generates=True,
        has_teacher=True,
    ),
    _kind("seq_cls", rows="class", output="class"),
    _kind("embedding", rows="documents", output="embedding", sequences=2, keeps_negatives=True),
    _kind("reranker", rows="documents", output="score", has_negatives=True),
    _kind("generative_reranker", rows="documents", output="score", has_negatives=True, logits="last"),
    _kind("decision", rows="decision", output="decision", needs=("loss_type",), own_models=True),
)
TASKS: dict[TaskName, Task] = {task.name: task for task in _ROWS}
RERANKERS = tuple(task.task_type for task in _ROWS if task.output == "score")
"""The ``task_type`` of models that score a document for a query."""
NEW_HEADS = frozenset(
    task.task_type for task in _ROWS if task.logits == "none" and task.output in ("class", "reward", "score")
)
"""The ``task_type`` of models that get a head of random weights for training."""
TRAINING_COMMANDS = tuple(dict.fromkeys(task.command for task in _ROWS))
"""The commands of ms-swift that train."""


def task_of(command: str = "sft", rlhf_type: str | None = None, task_type: str | None = None) -> Task:
    """The task that determines what a row must hold, from ms-swift's own settings.

    Args:
        command: one of `COMMANDS`.
        rlhf_type: with "rlhf"; ms-swift's default is "dpo".
        task_type: ms-swift's ``task_type``; with "rlhf" it follows from ``rlhf_type``.

    Raises:
        ValueError: there is no such task.
    """
    name = (rlhf_type or "dpo") if command == "rlhf" else command
    if command != "rlhf" and task_type not in (None, "causal_lm"):
        name = str(task_type)
    for task in _ROWS:
        if task.name == name:
            return task
    raise ValueError(f"unknown task {name!r}, one of {', '.join(TASKS)}")
