"""What a training task is: its command, the rows it learns from, what it needs."""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal[
    "sft", "pt", "dpo", "orpo", "simpo", "cpo", "rm", "kto", "ppo", "grpo", "gkd",
    "seq_cls", "embedding", "reranker", "generative_reranker",
]  # fmt: skip
TASKS: tuple[Task, ...] = get_args(Task)
PREFERENCE_TASKS = frozenset({"dpo", "orpo", "simpo", "cpo", "rm"})
PROMPT_TASKS = frozenset({"ppo", "grpo"})
RANKING_TASKS = frozenset({"embedding", "reranker", "generative_reranker"})
ANSWER_TASKS = PREFERENCE_TASKS | {"sft", "kto", "gkd"}
LABEL_TASKS = RANKING_TASKS | {"kto", "seq_cls"}


def task_of(command: str = "sft", rlhf_type: str | None = None, task_type: str | None = None) -> Task:
    """The task that decides what a row must hold, from ms-swift's own settings.

    Args:
        command: "sft", "pt" or "rlhf".
        rlhf_type: with "rlhf"; ms-swift's default is "dpo".
        task_type: "causal_lm", "seq_cls", "embedding", "reranker" or "generative_reranker".

    Raises:
        ValueError: there is no such task.
    """
    name = (rlhf_type or "dpo") if command == "rlhf" else command
    if command != "rlhf" and task_type not in (None, "causal_lm"):
        name = str(task_type)
    for task in TASKS:
        if task == name:
            return task
    raise ValueError(f"unknown task {name!r}, one of {', '.join(TASKS)}")
