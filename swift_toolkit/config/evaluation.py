"""Evaluations during training: whether there are any, what they measure, and which checkpoint is the best."""

from __future__ import annotations

from collections.abc import Iterator

from swift_toolkit.config.settings import Config
from swift_toolkit.config.tasks import PAIR_LOSSES
from swift_toolkit.console.words import did_you_mean
from swift_toolkit.problems import Problem

VALIDATION = "val_dataset cached_val_dataset split_dataset_ratio eval_dataset".split()
"""Settings that give a run validation data."""


def has_validation(config: Config) -> bool:
    """Whether the run has validation data; a stream cannot be split."""
    return any(
        config.get(name)
        for name in VALIDATION
        if name != "split_dataset_ratio" or not config.get("streaming")
    )


def best_model(config: Config) -> Iterator[Problem]:
    """``load_best_model_at_end`` requires saving and evaluating at the same steps."""
    if not config.get("load_best_model_at_end") or not has_validation(config):
        return
    saved = config.value("save_strategy")
    evaluated = config.get("eval_strategy", saved)
    if saved == "best":
        return
    if saved != evaluated:
        what = f'is "{evaluated}", but "save_strategy" is "{saved}"'
        do = 'With "load_best_model_at_end" they must be the same.'
        name = "eval_strategy" if "eval_strategy" in config.settings else "save_strategy"
        yield config.problem(name, what if name == "eval_strategy" else f'is "{saved}"', do)
    elif saved == "steps":
        every, between = (
            config.value("save_steps"),
            config.get("eval_steps") or config.value("save_steps"),
        )
        yield from _out_of_step(config, every, between)


_FINE = 1_000_000
"""A factor that makes shares of a run whole numbers."""


def _out_of_step(config: Config, every: float, between: float) -> Iterator[Problem]:
    """Saving that is not at every few evaluations (transformers' ``_validate_args``)."""
    if every % between == 0:
        return
    do = 'With "load_best_model_at_end" it must be.'
    if (every < 1) != (between < 1):
        what = f"is {every:g}, and eval_steps {between:g}: one is a share of the run, the other a number"
        yield config.problem("save_steps", what, "Use two shares or two numbers of steps.")
    elif every >= 1 or every * _FINE % (between * _FINE):
        what = f"is {every:g}, not a multiple of eval_steps {between:g}"
        yield config.problem("save_steps", what, do)


_OF_PAIRS = "loss rewards/margins rewards/chosen rewards/rejected"
_IN_DETAIL = "logps/chosen logps/rejected logits/chosen logits/rejected"
_MEASURED = {
    **dict.fromkeys(("sft", "pt"), "loss token_acc"),
    "seq": "loss seq_acc",
    "predict_with_generate": "rouge-l rouge-1 rouge-2 bleu-4",
    "seq_cls": "loss acc",
    "regression": "loss",
    "infonce": "loss margin mean_pos mean_neg",
    "embedding": "loss "
    + " ".join(
        f"{kind}_{how}"
        for kind in ("spearman", "pearson")
        for how in ("cosine", "euclidean", "manhattan", "dot_product")
    ),
    **dict.fromkeys(("reranker", "generative_reranker"), "loss acc mrr ndcg"),
    **dict.fromkeys(("dpo", "simpo", "cpo"), f"{_OF_PAIRS} rewards/accuracies {_IN_DETAIL}"),
    "orpo": f"{_OF_PAIRS} rewards/accuracies {_IN_DETAIL} log_odds_ratio log_odds_chosen",
    "kto": f"{_OF_PAIRS} kl {_IN_DETAIL}",
    "rm": f"{_OF_PAIRS} rewards/accuracies",
    "gkd": "loss",
}
"""What an evaluation measures, by task or, where the task leaves it open, by the setting that decides."""
_OF_EVERY_EVALUATION = "loss runtime samples_per_second steps_per_second".split()


def metric_problems(config: Config) -> Iterator[Problem]:
    """A metric for choosing the best model that no evaluation measures: the run fails when it saves for the first time.

    Names with "loss" are accepted: models and algorithms add losses of their own.
    """
    name = config.get("metric_for_best_model")
    others = any(map(config.get, ("external_plugins", "eval_use_evalscope")))
    others = others or config.get("eval_metric") not in (None, "acc")
    if not name or others or not is_evaluated(config):
        return
    decides = next((one for one in _deciding(config) if one in _MEASURED), "")
    measured = _MEASURED.get(decides, "").split()
    bare = str(name).removeprefix("eval_")
    if measured and bare not in (*measured, *_OF_EVERY_EVALUATION) and "loss" not in bare:
        what = f'is "{name}", which this run does not measure: it has {", ".join(measured[:4])}'
        do = did_you_mean(bare, measured, "Use one of them.")
        yield config.problem("metric_for_best_model", what, do)


def _deciding(config: Config) -> Iterator[str]:
    """What decides on the metrics, the strongest first."""
    if config.get("predict_with_generate"):
        yield "predict_with_generate"
    if config.task.name in ("sft", "pt"):
        yield str(config.get("acc_strategy"))
    if config.task.name == "embedding":
        yield str(config.get("loss_type") or "infonce")
    if config.task.name == "seq_cls":
        yield "regression" if config.get("num_labels") == 1 else str(config.get("problem_type"))
    yield config.task.name


def package_of_pairs(config: Config) -> str | None:
    """The module that an evaluation of embeddings in pairs imports, after the first steps; None for other runs."""
    pairs = config.task.name == "embedding" and config.get("loss_type") in PAIR_LOSSES
    measured = config.get("eval_metric") or ("paired" if pairs else "")
    return "sklearn" if measured == "paired" and is_evaluated(config) else None


def is_evaluated(config: Config) -> bool:
    """Whether the run evaluates."""
    return has_validation(config) and config.get("eval_strategy", config.value("save_strategy")) != "no"


def strategy_problems(config: Config) -> Iterator[Problem]:
    """``save_strategy`` "best" without ``eval_strategy``, which takes its value and does not know "best"."""
    if config.get("save_strategy") == "best" and not config.get("eval_strategy") and has_validation(config):
        yield config.problem("save_strategy", 'is "best", which needs "eval_strategy"', 'Set it to "steps".')


def patience_warnings(config: Config) -> Iterator[Problem]:
    """Early stopping counts checkpoints (``EarlyStopCallback.on_save``), also those without a new evaluation."""
    patience, saved = config.get("early_stop_interval"), config.value("save_strategy")
    if not patience or not has_validation(config):
        return
    evaluated = config.get("eval_strategy", saved)
    every, between = config.value("save_steps"), config.get("eval_steps") or config.value("save_steps")
    rarely = (saved, evaluated) == ("steps", "epoch")
    steps = config.value("max_steps")
    if steps > 0:
        every, between = (part * steps if part < 1 else part for part in (every, between))
    if saved == evaluated == "steps" and (every < 1) == (between < 1):
        rarely = between > every
    if rarely:
        what = f"is {patience}: it counts checkpoints, of which some are saved without a new evaluation"
        do = 'Evaluate at least as often as checkpoints are saved: "eval_steps" at most "save_steps".'
        yield config.problem("early_stop_interval", what, do)


GROWS = {"loss": False} | dict.fromkeys(
    "reward acc token_acc seq_acc rouge-1 rouge-2 rouge-l bleu-4".split(), True
)
"""Metrics, and whether a higher value is better."""


def direction_warnings(config: Config) -> Iterator[Problem]:
    """A direction that makes the worst model the best one."""
    greater, metric = config.get("greater_is_better"), config.get("metric_for_best_model")
    if metric is None:
        usual = "rouge-l" if config.get("predict_with_generate") else "loss"
        metric = "reward" if config.task.name == "grpo" else usual
    grows = GROWS.get(str(metric).removeprefix("eval_"))
    if None not in (greater, grows) and greater is not grows and has_validation(config):
        what = f"is {str(greater).lower()}, but a {'higher' if grows else 'lower'} {metric} is better: the worst model"
        yield config.problem("greater_is_better", f"{what} would be kept as the best", "Remove it.")
