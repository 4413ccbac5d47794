"""What the algorithms of ms-swift require and exclude: the checks of ``RLHFArguments`` and of the trainers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from swift_toolkit.config.limits.conditions import Condition, Conditions
from swift_toolkit.config.settings import Config
from swift_toolkit.problems import Problem

NEEDS = """
reward_funcs=soft_overlong                      soft_cache_length
reward_weights                                  reward_funcs reward_model use_gym_env
advantage_reweight=rlsd                         reward_funcs
vllm_mode                                       use_vllm
vllm_mode=server                                vllm_server_host vllm_server_base_url
use_vllm&task=grpo                              vllm_mode
use_vllm&task=gkd                               vllm_mode
async_generate&task=grpo                        vllm_mode=server
dynamic_sample&task=grpo&teacher_model          reward_funcs
dynamic_sample&task=grpo&teacher_model_server   reward_funcs
scale_rewards=gdpo&task=grpo&teacher_model      reward_funcs
scale_rewards=gdpo&task=grpo&teacher_model_server  reward_funcs
teacher_model_server&task=gkd                   gkd_logits_topk
use_liger_kernel&task=gkd                       teacher_model
chord_sft_dataset&task=grpo                     chord_sft_per_device_train_batch_size
chord_sft_dataset&task=grpo                     chord_mu_warmup_steps
chord_sft_dataset&task=grpo                     chord_mu_decay_steps
chord_sft_dataset&task=grpo                     chord_mu_peak
chord_sft_dataset&task=grpo                     chord_mu_valley
"""
"""Conditions, and the conditions of which one must hold, too."""

EXCLUDES = """
teacher_model_server&task=grpo             teacher_model
teacher_model_server&task=gkd              teacher_model
async_generate                             multi_turn_scheduler
advantage_reweight=rlsd&task=grpo          loss_type=real
advantage_reweight=rlsd&task=grpo          loss_type=fipo
advantage_reweight=rlsd&task=grpo          off_policy_sequence_mask_delta
advantage_reweight=rlsd&task=grpo          teacher_model_server
advantage_reweight=rlsd&task=grpo          use_liger_kernel
sdar_loss_coef>0&task=grpo                 advantage_reweight=rlsd
sdar_loss_coef>0&task=grpo                 teacher_model_server
sdar_loss_coef>0&task=grpo                 use_liger_kernel
teacher_model&task=grpo                    loss_type=real
teacher_model&task=grpo                    loss_type=fipo
teacher_model&task=grpo                    off_policy_sequence_mask_delta
teacher_model&task=grpo                    use_liger_kernel
teacher_model_server&task=grpo             loss_type=real
teacher_model_server&task=grpo             loss_type=fipo
teacher_model_server&task=grpo             off_policy_sequence_mask_delta
teacher_model_server&task=grpo             use_liger_kernel
use_liger_kernel&task=grpo                 delta
use_liger_kernel&task=grpo                 sequence_parallel_size>1
use_liger_kernel&task=grpo                 padding_free
use_liger_kernel&task=grpo                 log_entropy
use_liger_kernel&task=grpo                 top_entropy_quantile<1
use_liger_kernel&task=grpo                 off_policy_sequence_mask_delta
use_liger_kernel&task=grpo                 importance_sampling_level=sequence_token
use_liger_kernel&task=grpo                 advantage_estimator=rloo
use_liger_kernel&task=grpo                 advantage_estimator=reinforce_plus_plus
use_liger_kernel&task=gkd                  gkd_logits_topk
use_liger_kernel&task=gkd                  sft_alpha
"""
"""Conditions that cannot hold together."""

_RANGES = """
advantage_reweight=rlsd&task=grpo  rlsd_lambda               0  1
advantage_reweight=rlsd&task=grpo  rlsd_reweight_clip_range  0  -
task=gkd                           lmbda                     0  1
task=gkd                           beta                      0  1
"""
"""Conditions, a setting, and its lowest and highest value."""


def algorithm_problems(config: Config) -> Iterator[Problem]:
    """What does not fit the algorithm of a request."""
    yield from _out_of_range(config)
    if config.task.name == "grpo" and (config.get("sdar_loss_coef") or 0) > 0:
        gate = config.get("sdar_gate_beta")
        if gate is not None and gate <= 0:
            yield config.problem("sdar_gate_beta", f"is {gate:g}; it must be greater than 0")
    if config.task.name in ("gkd", "grpo"):
        yield from _teacher_servers(config)
    yield from _reference_adapters(config)
    yield from _of_reward_models(config)


def _out_of_range(config: Config) -> Iterator[Problem]:
    for row in _RANGES.strip().splitlines():
        text, name, low, high = row.split()
        value = config.get(name)
        if value is None or not Conditions.parse(text).hold(config):
            continue
        if value < float(low) or (high != "-" and value > float(high)):
            limits = f"{low} or more" if high == "-" else f"from {low} to {high}"
            task = f' with "{config.task.name}"'
            yield config.problem(name, f"is {value:g}; it must be {limits}{task}")


def batches(config: Config, world_size: int, evaluated: int | None) -> Iterator[Problem]:
    """Batches that are too small or too large for the algorithm.

    Args:
        config: the request.
        world_size: number of processes on all machines.
        evaluated: number of rows for validation; None if not known.
    """
    rows = config.value("per_device_train_batch_size") * world_size
    alone = Condition.parse("loss_type=apo_zero_unpaired").holds(config)
    compares = config.task.name == "kto" and not alone
    if compares and rows == 1 and config.get("gradient_accumulation_steps") == 1:
        what = "is 1, and a step has one row: KTO compares the rows of a step"
        yield config.problem("gradient_accumulation_steps", what, "Use at least 2.")
    evaluates = config.get("eval_strategy", "steps") != "no" and not config.get("eval_use_evalscope")
    if config.task.batch_of == "answers" and evaluated and evaluates:
        answers = config.value("per_device_eval_batch_size") * world_size
        prompts = answers // (config.get("num_generations_eval") or config.value("num_generations"))
        if evaluated < prompts:
            what = f"makes a batch of {prompts} prompts, but there are {evaluated} for validation"
            yield config.problem("per_device_eval_batch_size", what, "Lower it, or use more rows.")


# --- teachers -----------------------------------------------------------------------------------------------

_TEACHERS = 'Write a URL, or a list [{"url": "http://...", "tags": ["..."]}, ...].'


def _teacher_servers(config: Config) -> Iterator[Problem]:
    """``teacher_model_server`` is a URL or a list of servers in JSON (``parse_teacher_model_server``)."""
    text = str(config.get("teacher_model_server") or "").strip()
    if not text.startswith("["):
        return
    try:
        servers = json.loads(text)
    except ValueError as error:
        yield config.problem("teacher_model_server", f"is not valid JSON ({error})", _TEACHERS)
        return
    for what in _wrong_servers(servers):
        yield config.problem("teacher_model_server", what, _TEACHERS)


def _wrong_servers(servers: list[Any]) -> Iterator[str]:
    if not servers:
        yield "is an empty list"
    owners: dict[str, int] = {}
    for number, server in enumerate(servers, 1):
        if not isinstance(server, dict):
            yield f"has entry {number}, which is not an object"
            continue
        tags = server.get("tags", [])
        if not server.get("url"):
            yield f'has entry {number} without "url"'
        if not isinstance(tags, list):
            yield f'has entry {number}, whose "tags" are not a list'
            continue
        if len(servers) > 1 and not tags:
            yield f'has entry {number} without "tags", which choose between several teachers'
        for tag in map(str, tags if len(servers) > 1 else []):
            if tag in owners:
                yield f'has the tag "{tag}" in entries {owners[tag]} and {number}'
            owners[tag] = number


# --- reference and reward models ----------------------------------------------------------------------------

_WITH_REFERENCE = ("dpo", "kto", "grpo")


def _reference_adapters(config: Config) -> Iterator[Problem]:
    adapters = config.get("ref_adapters")
    if not adapters or config.command != "rlhf":
        return
    if config.task.name not in _WITH_REFERENCE:
        what = f'cannot be used with "{config.task.name}": only {", ".join(_WITH_REFERENCE)} use a reference adapter'
        yield config.problem("ref_adapters", what, "Remove it.")
    elif len(adapters) > 1:
        yield config.problem("ref_adapters", f"takes one adapter, not {len(adapters)}", "Keep one.")


_OF_REWARD_MODELS = ("reward_model_type", "reward_template", "reward_model_revision", "reward_model_plugin")


def _of_reward_models(config: Config) -> Iterator[Problem]:
    """Settings that give one value for each reward model, and models that are too many."""
    models = config.get("reward_model")
    if not models or config.command != "rlhf":
        return
    count = len(models) if isinstance(models, list) else 1
    if config.task.name == "ppo" and count > 1:
        yield config.problem("reward_model", f'takes one model with "ppo", not {count}', "Keep one.")
    for name in _OF_REWARD_MODELS:
        values = config.get(name)
        if isinstance(values, list) and values and len(values) != count:
            what = f"has {len(values)} values for {count} reward model(s)"
            yield config.problem(name, what, "Give one for each, in the same order.")
