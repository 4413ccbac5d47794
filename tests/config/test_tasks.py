"""The table of tasks against the ms-swift that is installed."""

from __future__ import annotations

from swift_toolkit.config.fields import fields
from swift_toolkit.config.tasks import TASKS, TRAINING_COMMANDS, task_of
from swift_toolkit.machine.msswift import installed


def test_every_task_of_ms_swift_is_a_row() -> None:
    rlhf_types = set(fields("rlhf")["rlhf_type"].choices or ())
    task_types = set(fields("sft")["task_type"].choices or ())
    assert rlhf_types == {task.rlhf_type for task in TASKS.values() if task.rlhf_type}
    known = {task.task_type for task in TASKS.values()}
    assert task_types == known if installed().line == "v4" else task_types <= known


def test_a_task_is_found_by_the_settings_that_make_it() -> None:
    assert TRAINING_COMMANDS == ("sft", "pt", "rlhf")
    for task in TASKS.values():
        assert task_of(task.command, task.rlhf_type or None, task.task_type) is task
