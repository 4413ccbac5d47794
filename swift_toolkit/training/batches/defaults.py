"""Defaults for settings without which a task does not start or learns nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from swift_toolkit.config.evaluation import has_validation, is_evaluated
from swift_toolkit.config.settings import Config
from swift_toolkit.config.tasks import PAIR_LOSSES
from swift_toolkit.dataset.classes import find_classes
from swift_toolkit.dataset.report import DataReport
from swift_toolkit.dataset.rows.flaws import FlawError
from swift_toolkit.dataset.spec import DatasetSpec
from swift_toolkit.problems import Problem

EMBEDDING_ROWS = 8
"""Rows of a batch of embeddings: each row is compared with the documents of the other rows."""


def fill_for_task(config: Config, world: int) -> None:
    """Set what the task of ``config`` needs, with reasons, before the request is checked.

    Args:
        config: the request.
        world: number of training processes on all machines.
    """
    task = config.task.name
    if loss := config.install.loss_without_default(task):
        config.fill("loss_type", loss, f'"{task}" has no default loss in ms-swift')
    _fill_answers(config, world)
    _fill_classes(config)
    _fill_embedding(config)


def _fill_answers(config: Config, world: int) -> None:
    """GRPO: all answers to one prompt must be part of the same generation batch."""
    if config.task.batch_of != "answers":
        return
    count = config.value("num_generations")
    if not isinstance(count, int) or count < 2:
        return
    own = ("generation_batch_size", "steps_per_generation", "gradient_accumulation_steps")
    batch = config.value("per_device_train_batch_size") * world
    if config.effective_batch is None and not any(config.get(name) for name in own):
        steps = count // math.gcd(batch, count)
        if steps > 1:
            reason = f"{batch} × {steps} answers, a multiple of the {count} per prompt (num_generations)"
            config.fill("gradient_accumulation_steps", steps, reason)
    if has_validation(config) and config.get("eval_strategy", "steps") != "no":
        count = config.get("num_generations_eval") or count
        rows = count // math.gcd(world, count)
        config.fill("per_device_eval_batch_size", rows, f"a multiple of the {count} answers per prompt")


def _fill_classes(config: Config) -> None:
    """A classifier: the number of classes, from its data."""
    given = {"num_labels", "problem_type"} & config.settings.keys()
    one_number = config.get("num_labels") == 1 and given == {"num_labels"}
    if config.task.name != "seq_cls" or (given and not one_number):
        return
    columns = config.get("columns")
    found = find_classes(config.value("dataset"), columns if isinstance(columns, dict) else None)
    if one_number:
        if found is not None and found.count == 2:
            what = f"is 1, with which ms-swift learns a number instead of classes, but the data has {found.phrase}"
            config.warnings.append(config.problem("num_labels", what, "Set it to 2 for two classes."))
        return
    if found is None and any(map(_is_on_hub, config.value("dataset"))):
        what = "is not set and the labels are on a hub: ms-swift assumes 2 classes"
        config.warnings.append(config.problem("num_labels", what, "Set it if there are more."))
    if found is not None:
        config.fill("num_labels", found.count, f"{found.phrase} in the data")
        if found.problem_type:
            config.fill("problem_type", found.problem_type, f"{found.phrase} in the data")


def _is_on_hub(entry: str) -> bool:
    try:
        return DatasetSpec.parse(entry).kind == "hub"
    except FlawError:  # the data check reports it
        return False


def _is_infonce(config: Config) -> bool:
    return config.task.name == "embedding" and config.get("loss_type") == "infonce"


def _fill_embedding(config: Config) -> None:
    """Embeddings: rows are compared with one another, so a batch of one row teaches nothing."""
    if not _is_infonce(config):
        return
    reason = "the rows of a batch are compared with one another"
    if config.effective_batch is None:
        config.fill("per_device_train_batch_size", EMBEDDING_ROWS, reason)
    if is_evaluated(config):
        config.fill("per_device_eval_batch_size", EMBEDDING_ROWS, reason)


def nothing_to_compare(config: Config, report: DataReport, world: int) -> Iterator[Problem]:
    """A loss that compares documents, for data and batches without anything to compare with: it is always 0."""
    if report.unchecked or any("negative_messages" in file.columns for file in report.files):
        return
    what = "the rows have no negative documents: there is nothing to compare with, and the loss is 0"
    sizes = ["per_device_train_batch_size"] + ["per_device_eval_batch_size"] * is_evaluated(config)
    alone = [size for size in sizes if config.get(size) == 1 and world == 1 and _is_infonce(config)]
    for size in alone:
        yield config.problem(size, f"is 1, and {what}", "Use at least 2.")
    if config.task.has_negatives and config.get("loss_type") == "listwise_reranker":
        do = 'Add "negative_messages", or use "pointwise_reranker".'
        yield config.problem("loss_type", f'is "listwise_reranker", and {what}', do)


def label_warnings(config: Config, report: DataReport) -> Iterator[Problem]:
    """Rows without the labels that a loss of embeddings reads; ms-swift takes each for a pair that fits."""
    loss, columns = config.get("loss_type"), {name for file in report.files for name in file.columns}
    if config.task.name == "embedding" and loss in PAIR_LOSSES and columns and "label" not in columns:
        what = f'is "{loss}", which reads "label"; the rows have none, so all texts are made alike'
        yield config.problem("loss_type", what, 'Add labels, or use "infonce".')
