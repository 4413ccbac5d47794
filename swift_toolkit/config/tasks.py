"""What a training task is: its command, the rows it learns from, the models it needs, what comes out.

One row of ``TASKS`` a task. Code that depends on the task reads its row instead of its name.
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
TaskOutput = Literal["chat", "reward", "class", "embedding", "score", "decision"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training task.

    Args:
        name: its name here.
        rows: what a row holds: ``answer`` a conversation that ends with the answer to learn, ``text`` plain text,
            ``preference`` an answer and a rejected one, ``judged`` an answer with the label true or false, ``prompt``
            a conversation to answer, ``class`` a text with its class, ``documents`` a query with documents that fit
            and do not fit, ``decision`` a state with questions.
        command: the command of ms-swift that trains it.
        rlhf_type: ms-swift's ``rlhf_type``, empty without one.
        task_type: ms-swift's ``task_type``.
        needs: settings of which one must be given.
        excludes: settings that cannot be used with it.
        packs: rows can share a sequence (``packing``, ``padding_free``).
        splits_rows: a row can be spread over devices (``sequence_parallel_size``).
        own_models: only models that ms-swift makes for it can learn it.
        several_losses: ``loss_type`` takes several, with ``loss_weights``.
        output: what the trained model gives.
        sequences: sequences that one row becomes, negatives of a query aside.
        has_negatives: a row also brings up to MAX_NEGATIVE_SAMPLES documents that do not fit.
        keeps_negatives: of rows without documents that do not fit ms-swift wants an empty list.
        logits: the tokens of a row that have logits over the vocabulary.
        generates: answers are generated during training.
        follows_prompt: what is generated is trained on, behind the prompt.
        has_reference: a second copy of the model judges unless adapters are trained.
        has_values: a model of the values is trained, too.
        has_teacher: a teacher's logits stand beside the model's own.
        batch_of: what ``per_device_train_batch_size`` counts.
        trainer: the trainer whose source names the loss types, empty where ``loss_type`` is not an algorithm's.
        loss_over: what the loss is the mean of in one optimiser step: all ``tokens`` that are learned, however they
            are spread over devices and accumulated batches, or ``rows``: the mean of the means of the batches.
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
        """The argument of ms-swift that chooses the task, beside the command, and its value."""
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
        excludes=("cached_dataset", "cached_val_dataset"),
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
        excludes=("async_generate", "seq_kd"),
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
TRAINING_COMMANDS = tuple(dict.fromkeys(task.command for task in _ROWS))
"""The commands of ms-swift that train."""


def task_of(command: str = "sft", rlhf_type: str | None = None, task_type: str | None = None) -> Task:
    """The task that decides what a row must hold, from ms-swift's own settings.

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
