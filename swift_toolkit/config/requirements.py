"""What settings require and exclude, and what is legal but probably a mistake.

ms-swift accepts most of this and fails after its import, after the model is loaded, or not at all. The tables come from
its own assertions (``arguments/`` and ``rlhf_trainers/`` of 3.12 and 4.6) and those of transformers and PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from swift_toolkit.config.evaluation import VALIDATION, direction_warnings, has_validation, patience_warnings
from swift_toolkit.config.limits import algorithms, trainer, tuners
from swift_toolkit.config.limits.conditions import Condition, Conditions
from swift_toolkit.config.settings import Config
from swift_toolkit.config.tasks import DECISION_LOSSES, PAIR_LOSSES
from swift_toolkit.problems import Problem

_DATA = 'Add "val_dataset" or "split_dataset_ratio", or remove it.'


# --- needs --------------------------------------------------------------------------------------------------

_NEEDS = """
lr_scheduler_type=cosine_with_min_lr         lr_scheduler_kwargs.min_lr lr_scheduler_kwargs.min_lr_rate
lr_scheduler_type=cosine_warmup_with_min_lr  lr_scheduler_kwargs.min_lr lr_scheduler_kwargs.min_lr_rate
lr_scheduler_type=warmup_stable_decay        lr_scheduler_kwargs.num_decay_steps
"""
"""Conditions, and the conditions of which one must hold, too."""
_ON_SOME_LAYERS = tuple(
    f"optim={kind}{layerwise}"
    for kind in ("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw")
    for layerwise in ("", "_layerwise")
)
"""Optimizers that need ``optim_target_modules``."""


def needs(config: Config, rejected: Collection[str]) -> Iterator[Problem]:
    """Settings whose requirements are missing."""
    task = (f"task={config.task.name}", *config.task.needs)
    tables = (_NEEDS, algorithms.NEEDS, trainer.NEEDS, tuners.NEEDS)
    optimizers = ((text, "optim_target_modules") for text in _ON_SOME_LAYERS)
    rows = [row.split() for table in tables for row in table.strip().splitlines()]
    for text, *wanted in (task, *rows, *optimizers):
        conditions, one_of = Conditions.parse(text), [Condition.parse(name) for name in wanted]
        is_known = {one.setting.partition(".")[0] for one in one_of}.isdisjoint(rejected)
        if not one_of or not is_known or any(one.is_given(config) for one in one_of):
            continue
        if text == "task=grpo" and config.get("vllm_mode") == "server":
            continue  # the server may have a gym, which gives the rewards
        if conditions.hold(config):
            names, first = " or ".join(one.named(config) for one in one_of), conditions.first
            yield config.problem(first.blamed(config), f"{first.shown}needs {names}", _how(config, one_of))
    yield from _needs_validation(config, rejected)
    yield from _needs_steps(config)


def _how(config: Config, one_of: list[Condition]) -> str:
    setting, _, key = one_of[0].setting.partition(".")
    if key:
        return f'Add "{setting}": {{"{key}": ...}}.'
    if one_of[0].value != "*":
        return f'Set "{one_of[0].blamed(config)}" to "{one_of[0].value}".'
    return "Add one of them." if len(one_of) > 1 else "Add it."


_AFTER_EVALUATION = [
    "load_best_model_at_end",
    "lr_scheduler_type=reduce_lr_on_plateau",
    "lr_scheduler_type=greedy",
]
"""Conditions of settings that do not work without an evaluation."""
_IN_EVALUATION = (
    "early_stop_interval",
    "eval_strategy",
    "eval_steps",
    "predict_with_generate",
    "save_strategy=best",
)
"""Conditions of settings without effect if nothing is evaluated; ms-swift trains all the same."""


def _needs_validation(config: Config, rejected: Collection[str]) -> Iterator[Problem]:
    if has_validation(config) or not set(VALIDATION).isdisjoint(rejected):
        return
    dropped = config.get("streaming") and config.get("split_dataset_ratio")
    for name in _AFTER_EVALUATION:
        if not Condition.parse(name).holds(config):
            continue
        name = name.partition("=")[0]
        if dropped:
            what = 'needs validation data, and ms-swift drops "split_dataset_ratio" with "streaming"'
            yield config.problem(name, what, 'Set "val_dataset" to a file, or remove it.')
        else:
            yield config.problem(name, "needs validation data, but there is none", _DATA)


def _needs_steps(config: Config) -> Iterator[Problem]:
    if config.get("streaming") and config.value("max_steps") <= 0:
        do = 'Add "max_steps": the length of a stream is not known.'
        if config.get("max_epochs"):
            do += ' "max_epochs" may end the run earlier.'
        yield config.problem("streaming", 'needs "max_steps"', do)


# --- excludes -----------------------------------------------------------------------------------------------

_EXCLUDES = """
warmup_steps             warmup_ratio
fsdp                     deepspeed
lazy_tokenize            packing
lazy_tokenize            streaming
device_map               deepspeed=zero3
device_map               deepspeed=zero3_offload
"""
"""Pairs of conditions that cannot both hold."""
_FLASH = ("packing", "padding_free")


def excludes(config: Config) -> Iterator[Problem]:
    """Settings that cannot be used together."""
    tables = (_EXCLUDES, algorithms.EXCLUDES, trainer.EXCLUDES, tuners.EXCLUDES)
    rows = [row.split() for table in tables for row in table.strip().splitlines()]
    rows += [[setting, f"task={config.task.name}"] for setting in config.task.excludes]
    for row in rows:
        first, second = Conditions.parse(row[0]), Condition.parse(row[1])
        if first.hold(config) and second.holds(config):
            what = f"{first.first.shown}cannot be used with {second.named(config)}"
            yield config.problem(first.first.blamed(config), what, "Keep one of the two.")
    for rule in (algorithms.algorithm_problems, trainer.trainer_problems, tuners.tuner_problems):
        yield from rule(config)
    yield from _algorithm(config)
    yield from _truncation(config)
    yield from _interleaving(config)
    yield from _all_frozen(config)


def _interleaving(config: Config) -> Iterator[Problem]:
    """Shares of data sets that do not fit the data sets (ms-swift ignores them for a single one)."""
    shares, sets = config.get("interleave_prob") or [], config.get("dataset") or []
    if not shares or len(sets) < 2:
        return
    if len(shares) != len(sets):
        what = f"has {len(shares)} share(s) for {len(sets)} data sets"
        yield config.problem("interleave_prob", what, "Give one for each of them.")
    elif abs(sum(shares) - 1) > 1e-6:
        yield config.problem(
            "interleave_prob", f"adds up to {sum(shares):g}, not to 1", "Correct the shares."
        )


def _all_frozen(config: Config) -> Iterator[Problem]:
    """Full training of which nothing is left to train."""
    thaws = config.get("trainable_parameters") or config.get("trainable_parameters_regex")
    if config.tuner == "full" and config.get("freeze_parameters_ratio") == 1 and not thaws:
        do = 'Add "trainable_parameters", or lower the ratio.'
        yield config.problem("freeze_parameters_ratio", "is 1: no parameter would be trained", do)


def _truncation(config: Config) -> Iterator[Problem]:
    """What becomes of rows that are too long: ms-swift finds out after the model is loaded."""
    strategy, task = config.get("truncation_strategy"), config.task
    is_chat = config.get("use_chat_template", task.name != "pt")
    if strategy in ("right", "split") and task.name == "grpo":
        yield config.problem("truncation_strategy", f'is "{strategy}", but GRPO takes "left" or "delete"')
    elif strategy == "split" and (task.name not in ("sft", "pt") or is_chat):
        do = (
            'Use "left" or "right".'
            if task.name != "sft"
            else 'Use "left" or "right", or set "task" to "pt".'
        )
        yield config.problem("truncation_strategy", 'is "split", which is for pre-training', do)
    elif strategy == "split" and config.get("lazy_tokenize"):
        yield config.problem(
            "lazy_tokenize", 'cannot be used with "truncation_strategy" "split"', "Remove it."
        )


def _algorithm(config: Config) -> Iterator[Problem]:
    """What one algorithm or tuner does not support and others do."""
    task = config.task
    name = f'"{task.name}"'
    if (config.get("lisa_activated_layers") or 0) > 0 and config.tuner != "full":
        what = f'cannot be used with "{config.tuner}": LISA is for full training'
        yield config.problem("lisa_activated_layers", what, "Remove it.")
    if config.tuner == "longlora" and not config.install.trains_longlora:
        what = 'is "longlora", which ms-swift cannot train with transformers 4.48 or later'
        do = 'Use "lora"; for long rows also "sequence_parallel_size" or "gradient_checkpointing".'
        yield config.problem(config.tuner_name, what, do)
    if not task.packs:
        for setting in _FLASH:
            if config.get(setting):
                yield config.problem(setting, f"cannot be used with {name}", "Remove it.")
    if not task.splits_rows and config.value("sequence_parallel_size") > 1:
        yield config.problem("sequence_parallel_size", f"cannot be used with {name}", "Remove it.")
    loses_reference = task.batch_of == "answers" and config.get("beta") == 0
    if (
        config.get("ref_model")
        and not loses_reference
        and not (task.has_reference and config.tuner == "full")
    ):
        why = "the model without its adapter is the reference" if task.has_reference else f"{name} has none"
        yield config.problem("ref_model", f"cannot be used here: {why}", "Remove it.")
    yield from _loss_of_task(config)
    if task.generates and config.get("temperature") == 0:
        what = f'is 0, but "{task.name}" needs different answers, and divides by it'
        yield config.problem("temperature", what, "Use e.g. 1.")
    yield from _divisions(config)
    loss_types = config.get("loss_type")
    if isinstance(loss_types, list) and len(loss_types) > 1 and not task.several_losses:
        yield config.problem("loss_type", f"takes one value with {name}, not {len(loss_types)}", "Keep one.")
    count = len(loss_types) if isinstance(loss_types, list) and loss_types else 1
    weights = config.get("loss_weights")
    if weights and loss_types and not task.several_losses:
        yield config.problem("loss_weights", f"cannot be used with {name}", "Remove it.")
    elif weights and task.several_losses and len(weights) != count:
        yield config.problem("loss_weights", f"has {len(weights)} values for {count} loss type(s)")


_DIVIDES_BY_BETA = frozenset({"simpo", "ipo", "sppo_hard"})
"""Losses that divide by ``beta``."""


def _losses(config: Config) -> list[str]:
    """The losses of an algorithm: those that are set, or its name."""
    given = config.get("loss_type") or [config.task.name]
    return list(map(str, given if isinstance(given, list) else [given]))


def _divisions(config: Config) -> Iterator[Problem]:
    """A ``beta`` of 0 that the loss divides by."""
    beta, losses = config.get("beta"), _losses(config)
    if beta == 0 and config.command == "rlhf" and (by := _DIVIDES_BY_BETA.intersection(losses)):
        yield config.problem("beta", f'is 0, and the loss "{min(by)}" divides by it', "Use e.g. 0.1.")


def _loss_of_task(config: Config) -> Iterator[Problem]:
    """A loss of embeddings, rerankers or decisions for a task with other outputs; ms-swift fails in the first step."""
    loss = config.get("loss_type")
    if config.command == "rlhf" or not isinstance(loss, str):
        return
    if loss in DECISION_LOSSES and config.task.name != "decision":
        what = f'is "{loss}", a loss of decisions, but the task is "{config.task.name}"'
        yield config.problem("loss_type", what, 'Set "task_type" to "decision", or remove it.')
    reranks = loss.endswith("reranker")
    if reranks or loss in (*PAIR_LOSSES, "infonce"):
        meant = "reranker" if reranks else "embedding"
        if not config.task.name.endswith(meant):
            what = f'is "{loss}", a loss of {meant}s, but the task is "{config.task.name}"'
            yield config.problem("loss_type", what, f'Set "task_type" to "{meant}", or remove it.')


# --- rewards and batches of GRPO ------------------------------------------------------------------------------


def rewards(config: Config) -> Iterator[Problem]:
    """Reward functions, reward models and their weights."""
    models = config.get("reward_model") or []
    sources = [*(config.get("reward_funcs") or []), *(models if isinstance(models, list) else [models])]
    count = len(sources) + bool(config.get("use_gym_env"))
    weights = config.get("reward_weights")
    if weights is not None and count and len(weights) != count:
        what = f"has {len(weights)} values for {count} rewards ({', '.join(map(str, sources))})"
        yield config.problem("reward_weights", what, "Give one for each.")


def processes(config: Config, world_size: int) -> Iterator[Problem]:
    """How processes share a sequence: ``sequence_parallel_size`` of them form a group.

    Args:
        config: the request.
        world_size: number of processes on all machines.
    """
    size = config.value("sequence_parallel_size") or 1
    if size > 1 and world_size % size:
        what = f"is {size}, but {world_size} process(es) cannot be divided into groups of {size}"
        yield config.problem("sequence_parallel_size", what, f"Start e.g. {size} (--nproc-per-node {size}).")


def generations(config: Config, world_size: int) -> Iterator[Problem]:
    """How GRPO's answers are divided into batches (``RolloutTrainerArgumentsMixin`` and TRL's GRPOConfig).

    Args:
        config: the request.
        world_size: number of processes on all machines.
    """
    if config.task.batch_of != "answers":
        return
    size, count = generation_batch(config, world_size), config.value("num_generations")
    given, steps = config.get("generation_batch_size"), config.get("steps_per_generation")
    batch = config.value("per_device_train_batch_size") * world_size
    if given and steps and steps > 0 and given != batch * steps:
        what = f"is {given}, but {batch} answers of {world_size} process(es) × {steps} steps make {batch * steps}"
        yield config.problem("generation_batch_size", what, "Remove one of the two.")
        return
    if count < 2 and not (config.get("teacher_model") or config.get("teacher_model_server")):
        yield config.problem("num_generations", f"is {count}; GRPO compares at least 2 answers to a prompt")
        return
    if count > 1 and size % count:
        yield config.problem(
            "num_generations",
            f"is {count}, but generation_batch_size {size} is not a multiple of it",
            _divisible(config, size, count),
        )
    if size % batch:
        what = f"is {size}, not a multiple of the {batch} answers of {world_size} process(es)"
        yield config.problem("generation_batch_size", what, f"Use e.g. {batch * count}.")
    if has_validation(config) and config.get("eval_strategy", "steps") != "no":
        count = config.get("num_generations_eval") or count
        batch = config.value("per_device_eval_batch_size") * world_size
        if count > 1 and batch % count:
            what = f"gives {batch} answers on {world_size} process(es), not a multiple of the {count} generations"
            yield config.problem("per_device_eval_batch_size", what, f"Use e.g. {count}.")


def _divisible(config: Config, size: int, count: int) -> str:
    if config.get("generation_batch_size"):
        return f'Use e.g. "generation_batch_size": {math.lcm(size, count)}.'
    step = size // config.value("per_device_train_batch_size")
    use = next(n for n in range(1, count + 1) if n * step % count == 0)
    return f'Use e.g. "per_device_train_batch_size": {use}.'


def generation_batch(config: Config, world_size: int) -> int:
    """Number of answers that GRPO generates at once."""
    batch = config.value("per_device_train_batch_size") * world_size
    steps = config.get("steps_per_generation") or config.get("gradient_accumulation_steps") or 1
    return int(config.get("generation_batch_size") or batch * steps)


# --- warnings -----------------------------------------------------------------------------------------------

_USUAL = """
learning_rate        tuner=full  4e-3  1e-6 to 1e-4 (ms-swift's default for full training: 1e-5)
learning_rate        tuner=lora  4e-3  1e-5 to 1e-3 (ms-swift's default: 1e-4; Dettmers et al. 2023: 1e-4 and 2e-4)
num_train_epochs     -           50    1 to 16 (ms-swift's default: 3; Ouyang et al. 2022: 16)
lora_rank            tuner=lora  512   4 to 256 (ms-swift's default: 8; Hu et al. 2021, section 7.2: 1 to 64)
lora_dropout         tuner=lora  0.5   0 to 0.1 (ms-swift's default: 0.05; Dettmers et al. 2023: 0.05 and 0.1)
weight_decay         -           1     0 to 0.1 (ms-swift's default: 0.1)
warmup_ratio         -           0.5   0 to 0.1 (ms-swift's default: 0)
max_grad_norm        -           100   0.3 to 1 (transformers' default: 1; Dettmers et al. 2023: 0.3)
neftune_noise_alpha  -           50    5 to 15 (Jain et al. 2023)
"""
"""Setting, condition, the value above which a warning is given, and the usual range with its source."""
MOST_SCALE = 64
"""lora_alpha divided by lora_rank; ms-swift's default is 4, and 1 to 8 are usual."""


def unusual_values(config: Config) -> Iterator[Problem]:
    """What is legal but probably a mistake."""
    for row in _USUAL.strip().splitlines():
        name, condition, limit, usual = row.split(maxsplit=3)
        value = config.get(name)
        applies = condition == "-" or Condition.parse(condition).holds(config)
        if applies and isinstance(value, (int, float)) and value > float(limit):
            yield config.problem(name, f"is {value:g}; usual is {usual}", "Is this intended?")
    yield from _adapter_warnings(config)
    yield from _evaluation_warnings(config)
    if config.get("save_strategy") == "no":
        do = 'Remove it, or set it to "steps" or "epoch".'
        yield config.problem("save_strategy", 'is "no": no checkpoint is kept and the result is lost', do)
    yield from patience_warnings(config)
    yield from _epoch_warnings(config)
    yield from direction_warnings(config)
    yield from _strength_warnings(config)
    yield from _teacher_warnings(config)
    yield from warmup_warnings(config, config.value("max_steps"))


def warmup_warnings(config: Config, steps: int | None) -> Iterator[Problem]:
    """A warm-up as long as the run or longer.

    Args:
        config: the request.
        steps: optimiser steps of the run; None or less than 1 if not known.
    """
    warmup = config.get("warmup_steps") or 0
    if 0 < (steps or 0) <= warmup:
        what = (
            f"is {warmup:g}, and the run has {steps:,} steps: the learning rate never reaches its full value"
        )
        yield config.problem("warmup_steps", what)


def _strength_warnings(config: Config) -> Iterator[Problem]:
    """A weight of 0 that makes the loss of an algorithm constant."""
    if config.task.batch_of == "answers" and config.get("top_k") == 1:
        what = "is 1: all answers to a prompt are the same, and there is nothing to compare"
        yield config.problem("top_k", what, "Use e.g. 50, or remove it.")
    needs_none = config.get("rpo_alpha") or not {"sft", *_DIVIDES_BY_BETA}.isdisjoint(_losses(config))
    if config.task.name in ("dpo", "kto") and config.get("beta") == 0 and not needs_none:
        what = f'is 0, with which the loss of "{config.task.name}" is constant: nothing is learned'
        yield config.problem("beta", what, "Use e.g. 0.1, ms-swift's default.")
    yield from _smoothing_warnings(config)
    for name, weights in _weights(config):
        if weights and not any(weights):
            yield config.problem(name, "gives nothing any weight: nothing is learned", "Use e.g. 1.")


def _smoothing_warnings(config: Config) -> Iterator[Problem]:
    """A share of wrong labels with which the answers are not told apart, or are taken for their opposite."""
    share = config.get("label_smoothing") or 0
    if share >= 0.5:
        result = "nothing is learned" if share == 0.5 else "rejected answers are preferred"
        yield config.problem("label_smoothing", f"is {share:g}: {result}", "Use a value below 0.5.")


def _weights(config: Config) -> Iterator[tuple[str, list[float]]]:
    """Weights of which one must be above 0, with the setting to name."""
    yield "reward_weights", config.get("reward_weights") or []
    if config.task.name == "kto":
        yield "desirable_weight", [config.value(f"{kind}desirable_weight") for kind in ("", "un")]


def _teacher_warnings(config: Config) -> Iterator[Problem]:
    """A model that is to learn from itself: its answers are those of its teacher from the beginning."""
    teacher, alone = config.get("teacher_model"), not (config.get("sft_alpha") or config.get("adapters"))
    if config.task.name == "gkd" and alone and teacher is not None and teacher == config.get("model"):
        what = "is the model itself, so there is nothing to learn, unless rows have a teacher_prompt"
        do = 'Name a better model, or set "sft_alpha" to learn from the answers of the data, too.'
        yield config.problem("teacher_model", what, do)


def _adapter_warnings(config: Config) -> Iterator[Problem]:
    if config.tuner not in ("lora", "longlora", "adalora"):
        return
    alpha, rank = config.get("lora_alpha"), config.value("lora_rank")
    if alpha is not None and rank > 0 and alpha / rank > MOST_SCALE and not config.get("use_rslora"):
        factor = alpha / rank
        what = f"is {alpha:g} with rank {rank:g}: a factor of {factor:g}; usual is 1 to 8 (ms-swift's default: 4)"
        yield config.problem("lora_alpha", what, "Is this intended?")


def _epoch_warnings(config: Config) -> Iterator[Problem]:
    """``max_epochs`` ends a run early, but does not make it longer (``DefaultFlowCallbackNew.on_epoch_end``)."""
    most, epochs = config.get("max_epochs"), config.value("num_train_epochs")
    if most and most > epochs and config.value("max_steps") <= 0 and not config.get("streaming"):
        what = f'is {most:g}, but "num_train_epochs" is {epochs:g}, after which the run ends'
        yield config.problem("max_epochs", what, 'Set "num_train_epochs" instead.')


def _unused_steps(config: Config) -> Iterator[Problem]:
    """Steps between saves, evaluations or log lines that happen once per epoch."""
    for kind in ("save", "eval", "logging"):
        strategy = config.get(f"{kind}_strategy", config.get("save_strategy") if kind == "eval" else None)
        if strategy == "epoch" and config.get(f"{kind}_steps"):
            what = f'has no effect: "{kind}_strategy" is "epoch"'
            yield config.problem(f"{kind}_steps", what, 'Remove it, or set the strategy to "steps".')


def _evaluation_warnings(config: Config) -> Iterator[Problem]:
    uses, asked = bool(config.get("eval_use_evalscope")), bool(config.get("eval_dataset"))
    if uses != asked:
        given, missing = ("eval_use_evalscope", "eval_dataset")[:: 1 if uses else -1]
        yield config.problem(given, f'has no effect without "{missing}"', "Add it.")
    yield from _unused_steps(config)
    if has_validation(config):
        if config.get("val_dataset") and config.get("eval_strategy") == "no":
            yield config.problem(
                "val_dataset", 'is not used: "eval_strategy" is "no"', "Remove one of the two."
            )
        return
    if config.get("streaming") and config.get("split_dataset_ratio"):
        what = 'has no effect: with "streaming" ms-swift sets it to 0, so nothing is evaluated'
        yield config.problem("split_dataset_ratio", what, 'Set "val_dataset" to a file.')
        return
    for condition in map(Condition.parse, _IN_EVALUATION):
        if condition.holds(config):
            what = "has no effect: there is no validation data, so nothing is evaluated"
            yield config.problem(condition.setting, what)
            return
