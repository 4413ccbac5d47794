"""Which values make sense, alone and together, for a training run.

`request` checks types and Literal choices from ms-swift's own source. This module checks what ms-swift accepts, or
reports only after minutes: each rule is a row of a table or a small function that yields problems.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from swift_toolkit.config import evaluation, named_files, requirements, sharding
from swift_toolkit.config.limits import plugins, rope
from swift_toolkit.config.names import benchmarks, registries
from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.console import secrets
from swift_toolkit.machine import packages
from swift_toolkit.machine.device import BFLOAT16_FACTOR, Device, cpu_computes_bfloat16
from swift_toolkit.problems import Problem


@dataclass(frozen=True)
class Bounds:
    """Limits of a number: ``low < x`` (``low <= x`` if closed), and the same for ``high`` if it is given."""

    low: float
    closed: bool = False
    high: float | None = None
    high_closed: bool = False
    words: str = ""

    def hold(self, number: float) -> bool:
        """Whether ``number`` is within the bounds."""
        above = number >= self.low if self.closed else number > self.low
        if self.high is None:
            return above
        return above and (number <= self.high if self.high_closed else number < self.high)


POSITIVE = Bounds(0, words="greater than 0")
AT_LEAST_0 = Bounds(0, closed=True, words="0 or more")
SHARE_BELOW_1 = Bounds(0, closed=True, high=1, words="at least 0 and below 1")
_SEED = Bounds(0, closed=True, high=2**32, words="from 0 to 4294967295")
_SHARE_INSIDE = Bounds(0, high=1, words="greater than 0 and below 1")
_SHARE = Bounds(0, closed=True, high=1, high_closed=True, words="from 0 to 1")

BOUNDS: dict[str, Bounds] = {
    name: bounds
    for bounds, names in (
        (
            POSITIVE,
            """learning_rate vit_lr aligner_lr num_train_epochs max_epochs per_device_train_batch_size
            per_device_eval_batch_size gradient_accumulation_steps save_steps eval_steps logging_steps
            max_length packing_length lora_rank lora_alpha vera_rank galore_rank adalora_init_r
            adalora_target_r num_labels max_new_tokens dataset_num_proc shuffle_buffer_size early_stop_interval
            adam_epsilon max_pixels ddp_timeout sequence_parallel_size torch_empty_cache_steps
            steps_per_generation gkd_logits_topk max_completion_length num_iterations fourier_n_frequency
            adapter_length reft_rank adalora_deltaT adalora_orth_reg_weight llamapro_num_new_blocks
            llamapro_num_groups dataloader_prefetch_factor generation_num_beams""",
        ),
        (
            AT_LEAST_0,
            """warmup_steps weight_decay max_grad_norm dataloader_num_workers temperature
            neftune_noise_alpha boft_block_size boft_block_num boft_n_butterfly_factor""",
        ),
        (_SHARE_INSIDE, "adalora_beta1 adalora_beta2"),
        (
            SHARE_BELOW_1,
            """lora_dropout vera_dropout boft_dropout warmup_ratio split_dataset_ratio adam_beta1 adam_beta2
            label_smoothing_factor""",
        ),
        (_SHARE, "freeze_parameters_ratio top_p label_smoothing"),
        (_SEED, "seed data_seed"),
    )
    for name in names.split()
}

CHOICES: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "lr_scheduler_type": """linear cosine cosine_with_restarts polynomial constant constant_with_warmup
            inverse_sqrt reduce_lr_on_plateau cosine_with_min_lr cosine_warmup_with_min_lr warmup_stable_decay
            greedy""",
        "eval_strategy": "no steps epoch",
        "torch_compile_mode": "default reduce-overhead max-autotune max-autotune-no-cudagraphs",
        "debug": "underflow_overflow tpu_metrics_debug",
        "ddp_backend": "nccl gloo mpi xccl ccl hccl cncl mccl",
        "bnb_4bit_quant_storage": "float16 float32 int8 uint8 float64 bfloat16",
        "log_level": "detail debug info warning error critical passive",
        "log_level_replica": "detail debug info warning error critical passive",
        "attn_impl": """sdpa eager flash_attn flash_attention_2 flash_attention_3 flash_attention_4 flex_attention
            flash_attn_2 flash_attn_3""",
        "report_to": """none all tensorboard wandb swanlab mlflow comet_ml neptune clearml trackio azure_ml codecarbon
            dagshub flyte dvclive kubeflow""",
    }.items()
}
"""Values that ms-swift's source allows but its code does not."""
SECRETS: dict[str, tuple[str, ...]] = {
    "hub_token": ("MODELSCOPE_API_TOKEN", "HF_TOKEN"),
    "push_to_hub_token": ("HF_TOKEN",),
    "swanlab_token": ("SWANLAB_API_KEY",),
    "swanlab_secret": (),
    "swanlab_webhook_url": (),
}
"""Arguments that ms-swift would print and save in plain text, with the environment variables that replace them."""


MODULES: dict[
    tuple[str, str], str
] = {  # (argument, value; "*" for any that is not false) -> the module it needs
    ("quant_method", "bnb"): "bitsandbytes",
    ("quant_method", "hqq"): "hqq",
    ("quant_method", "eetq"): "eetq",
    ("quant_method", "quanto"): "optimum.quanto",
    ("deepspeed", "*"): "deepspeed",
    ("attn_impl", "flash_attn"): "flash_attn",
    ("attn_impl", "flash_attention_2"): "flash_attn",
    ("use_liger_kernel", "*"): "liger_kernel",
    ("tuner_backend", "unsloth"): "unsloth",
    ("use_galore", "*"): "galore_torch",
    ("report_to", "tensorboard"): "tensorboard",
    ("report_to", "wandb"): "wandb",
    ("report_to", "swanlab"): "swanlab",
    ("report_to", "mlflow"): "mlflow",
    ("report_to", "trackio"): "trackio",
    ("reward_funcs", "accuracy"): "math_verify",
    ("reward_funcs", "cosine"): "math_verify",
    ("eval_metric", "nlg"): "jieba",
    ("predict_with_generate", "*"): "jieba",
    ("eval_use_evalscope", "*"): "evalscope",
    ("use_vllm", "*"): "vllm",
    ("use_flash_ckpt", "*"): "dlrover",
    ("init_weights", "lora-ga"): "lora_ga",
    ("tuner_type", "reft"): "pyreft",
    ("train_type", "reft"): "pyreft",
    **{
        ("optim", name): module
        for module, names in {
            "bitsandbytes": """adamw_bnb_8bit adamw_8bit ademamix ademamix_8bit lion_8bit lion_32bit paged_adamw_32bit
                paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit rmsprop_bnb
                rmsprop_bnb_8bit rmsprop_bnb_32bit""",
            "galore_torch": """galore_adamw galore_adamw_8bit galore_adafactor galore_adamw_layerwise
                galore_adamw_8bit_layerwise galore_adafactor_layerwise""",
            "apollo_torch": "apollo_adamw apollo_adamw_layerwise",
            "lomo_optim": "lomo adalomo",
            "schedulefree": "schedule_free_radam schedule_free_adamw schedule_free_sgd",
            "torchao": "adamw_torch_4bit adamw_torch_8bit",
            "grokadamw": "grokadamw",
            "optimi": "stable_adamw",
        }.items()
        for name in names.split()
    },
}


def rule_problems(config: Config, rejected: Collection[str] = ()) -> Iterator[Problem]:
    """Every problem with the values of a translated and typed request.

    Args:
        config: the request.
        rejected: names whose values have already been reported; they count as given.
    """
    wrong = set()
    for rule in (_required, _numbers, _choices, _secrets, _requirements, _quantisation, _attention):
        for problem in rule(config, rejected):
            wrong.add(problem.key)
            yield problem
    yield from (problem for problem in _packages(config) if problem.key not in wrong)


def _requirements(config: Config, rejected: Collection[str]) -> Iterator[Problem]:
    yield from requirements.needs(config, rejected)
    yield from requirements.excludes(config)
    yield from requirements.rewards(config)
    yield from evaluation.best_model(config)
    yield from evaluation.strategy_problems(config)
    yield from evaluation.metric_problems(config)
    yield from named_files.named_file_problems(config)
    yield from rope.rope_problems(config)
    yield from plugins.plugin_problems(config)
    yield from sharding.sharding_problems(config)


def _required(config: Config, rejected: Collection[str]) -> Iterator[Problem]:
    given = {*config.settings, *rejected}
    if "model" not in given:
        yield config.problem("model", "is missing", 'Give a model, e.g. "Qwen/Qwen2.5-7B-Instruct".')
    if not given & {"dataset", "cached_dataset"}:
        yield config.problem(
            "dataset", "is missing", 'Give a data file or data set, e.g. "data/train.jsonl".'
        )


def _numbers(config: Config, rejected: Collection[str]) -> Iterator[Problem]:
    for name, bounds in BOUNDS.items():
        number = config.get(name)
        if number is None:
            continue
        if not bounds.hold(number):
            yield config.problem(name, f"is {_shown(number)}; it must be {bounds.words}")
        elif name in ("learning_rate", "vit_lr", "aligner_lr") and number >= 0.1:
            what = f"is {_shown(number)}, which would destroy the model"
            yield config.problem(name, what, "Was an exponent forgotten? Use e.g. 1e-4.")
    yield from _intervals(config)
    if config.value("max_steps") == 0 or config.value("max_steps") < -1:
        yield config.problem(
            "max_steps", f"is {config.get('max_steps')}; it must be greater than 0 (or -1: no limit)"
        )


def _intervals(config: Config) -> Iterator[Problem]:
    """Steps between two events, which must be a whole number, or a share of the run if below 1."""
    for name in ("save_steps", "eval_steps", "logging_steps"):
        number = config.get(name)
        if number is not None and number > 1 and number != int(number):
            yield config.problem(name, f"is {_shown(number)}; it must be a whole number, or a share below 1")


def _shown(number: float) -> str:
    return f"{number:g}"


def _choices(config: Config, rejected: Collection[str]) -> Iterator[Problem]:
    for name, words in CHOICES.items():
        values = config.get(name, [])
        for value in values if isinstance(values, list) else [values]:
            if value not in words and not (name == "attn_impl" and _is_hub_kernel(str(value))):
                yield config.problem(name, *not_one_of(value, words))
    yield from registries.registry_problems(config)
    yield from benchmarks.benchmark_problems(config)
    device_map = config.get("device_map")
    if isinstance(device_map, str) and not _DEVICE_MAP.fullmatch(device_map):
        yield config.problem("device_map", *not_one_of(device_map, _DEVICE_MAPS))


_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda:0")
_DEVICE_MAP = re.compile(
    r"auto|balanced|balanced_low_0|sequential|(?:cpu|cuda|npu|xpu|mps|mlu|hpu|musa|meta|disk)(?::\d+)?|\d+|\s*\{.*|.*\.json",
    re.DOTALL,
)


def _is_hub_kernel(value: str) -> bool:
    """Whether transformers reads this as a kernel on a hub: ``owner/name``, maybe with a version and a function."""
    return re.fullmatch(r"(?:paged\|)?[\w.-]+/[\w.-]+(?:@[\w.-]+)?(?::\w+)?", value) is not None


_PLACEHOLDER = re.compile(r"(?i)<.*|\$.*|\.\.\.|x+|(?:hf_)?x+|your.*|.*(?:sdk[-_ ]?token|placeholder).*")


def unused_secrets(config: Config) -> Iterator[tuple[str, str]]:
    """Names of secrets that have no use in a request and can be dropped, each with a notice."""
    token, pushes = config.get("hub_token"), config.get("push_to_hub")
    if token is not None and not pushes and (pushes is False or _PLACEHOLDER.fullmatch(str(token))):
        yield "hub_token", "hub_token is dropped: nothing is pushed to a hub"


def secret_advice(name: str) -> str:
    """What to do instead of giving the secret ``name`` as a setting, "" if there is no alternative."""
    variables = SECRETS[name]
    return f"Remove it and set the environment variable {' or '.join(variables)}." if variables else ""


def _secrets(config: Config, rejected: Collection[str]) -> Iterator[Problem]:
    yield from secret_problems(config)


def secret_problems(config: Config) -> Iterator[Problem]:
    """Settings that are secrets or contain one."""
    written = "and ms-swift writes it in plain text to its log and args.json"
    for name in SECRETS:
        if config.get(name) is not None:
            yield config.problem(name, f"is a secret, {written}", secret_advice(name) or "Remove it.")
    for name, setting in config.settings.items():
        for place in secrets.places(setting.value):
            yield config.problem(name, f"holds a secret {place}, {written}", _advice_for_part(name, place))


def _advice_for_part(name: str, place: secrets.SecretPlace) -> str:
    if place.in_url:
        return "Remove it; ~/.netrc can hold user and password."
    if name == "model_kwargs":  # ms-swift turns them into environment variables
        variable = re.sub(r"\W", "_", place.key.upper(), flags=re.ASCII)  # what a shell accepts
        return f"Remove it and set the environment variable {variable}."
    return "Remove it."


def _quantisation(config: Config, rejected: Collection[str]) -> Iterator[Problem]:
    method, bits = config.get("quant_method"), config.get("quant_bits")
    if config.preset == "full":  # already refuses both
        return
    if config.preset == "qlora" and method not in (None, "bnb"):
        do = 'Remove it, or set "preset" to "lora" to use it.'
        yield config.problem("quant_method", f'is "{method}", but preset "qlora" uses bnb', do)
    elif method == "bnb" and bits not in (None, 4, 8):
        yield config.problem("quant_bits", f"is {bits}, but bnb supports only 4 and 8", "Use 4 or 8.")
    elif method is None and bits is not None:
        what = f'is {json.dumps(bits)} without "quant_method": ms-swift would ignore it'
        yield config.problem("quant_bits", what, 'Add "quant_method".')
    elif method not in (None, "fp8", "bnb") and bits is None and "quant_bits" not in rejected:
        yield config.problem("quant_method", 'needs "quant_bits"', 'Add "quant_bits".')


def _attention(config: Config, rejected: Collection[str]) -> Iterator[Problem]:
    flash = str(config.get("attn_impl")).startswith("flash_att")
    for name in ("packing", "padding_free"):
        if config.get(name) and not flash and "attn_impl" not in rejected:
            do = 'Add "attn_impl": "flash_attn".'
            yield config.problem(name, "needs flash attention", do)


def _packages(config: Config) -> Iterator[Problem]:
    for (name, value), module in MODULES.items():
        given = config.get(name)
        asked = bool(given) if value == "*" else value in (given if isinstance(given, list) else [given])
        if asked and not packages.is_installed(module):
            what = f"needs the package {packages.distribution(module)}, which is not installed"
            yield config.problem(name, what, packages.install(module))
    of_pairs = evaluation.package_of_pairs(config)
    if of_pairs and not packages.is_installed(of_pairs):
        what = f"needs the package {packages.distribution(of_pairs)} to evaluate, which is not installed"
        do = f"{packages.install(of_pairs)}, or remove the validation data."
        yield config.problem("eval_metric" if config.get("eval_metric") else "loss_type", what, do)


def slow_dtype(config: Config, device: Device) -> Iterator[Problem]:
    """bfloat16 requested on a CPU without bfloat16 instructions, which is legal but hardly ever intended."""
    if device.kind != "cpu" or config.get("torch_dtype") != "bfloat16" or cpu_computes_bfloat16():
        return
    what = f"is bfloat16, which takes about {BFLOAT16_FACTOR} times as long as float32 on this CPU"
    yield config.problem("torch_dtype", what, "Use float32.")
