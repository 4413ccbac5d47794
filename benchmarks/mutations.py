"""Which of 1,600 wrong commands the trainer rejects, compared with ms-swift itself.

    python benchmarks/mutations.py             # our answers, compared with the tables of ms-swift's answers
    python benchmarks/mutations.py --draw 2    # only the second draw
    python benchmarks/mutations.py --limits    # ms-swift's answers to the rows of tests/limits.txt
    python benchmarks/mutations.py --raw       # add the answers of ms-swift that the tables lack: about 1 s each

The commands follow the style of ms-swift's own examples (sft, pt, rlhf), with a tiny model and small files. A seeded
generator makes one mistake in each: a misspelled key, a misspelled value, a wrong type, a missing file, an invalid
pair of settings, a missing requirement. The later draws have other seeds, no command of an earlier one, and one more
kind, which is half of the fourth: any argument of ms-swift with a value that may be wrong. ms-swift's answer is the
result of ``SwiftSft`` and its subclasses up to ``trainer.train``, without network. The answers are stored in
``mutations.jsonl`` and ``mutations_N.jsonl``; the first line of each names the version of ms-swift.

The exit status is 1 if in a draw less than 98% of the commands that ms-swift rejects are rejected here with status 2
and the name of the setting in less than 1 s, or if an unchanged command is rejected.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from swift_toolkit.config.fields import fields  # noqa: E402
from swift_toolkit.config.names import renames  # noqa: E402
from swift_toolkit.machine.msswift import Command  # noqa: E402

WANTED, SECONDS = 0.98, 1.0
RAW_TIMEOUT = 60
TOKENS = 1000
"""Number of tokens of the model's tokenizer."""

# --- the commands -------------------------------------------------------------------------------------------

_MODEL = "--model models/tiny --model_type llama --template chatml --check_model false --use_cpu true --output_dir out"
_LORA = "--tuner_type lora --lora_rank 8 --lora_alpha 32 --target_modules all-linear --learning_rate 1e-4"
_FULL = "--tuner_type full --learning_rate 1e-5"
_BATCH = "--per_device_train_batch_size 1 --gradient_accumulation_steps 4 --num_train_epochs 1"
_LOOK = "--eval_steps 50 --save_steps 50 --save_total_limit 2 --logging_steps 5 --max_length 512"
_USUAL = f"{_BATCH} {_LOOK} --warmup_ratio 0.05 --dataset_num_proc 1 --torch_dtype float32"
_GRPO = "--num_generations 4 --max_completion_length 64 --temperature 1.0 --beta 0.04"

COMMANDS = f"""
sft lora         {_LORA} {_USUAL} --dataset sft.jsonl --system prompt.txt --model_author swift --model_name bot
sft share        {_LORA} {_USUAL} --dataset sft.jsonl#20 --split_dataset_ratio 0.1 --seed 7 --data_seed 7
sft full         {_FULL} {_USUAL} --dataset sft.jsonl --val_dataset val.jsonl --lr_scheduler_type cosine
sft freeze       {_FULL} {_USUAL} --dataset sft.jsonl --freeze_parameters_ratio 0.5 --trainable_parameters lm_head
sft targets      --tuner_type lora --target_modules q_proj k_proj v_proj {_USUAL} --dataset sft.jsonl val.jsonl
sft dora         {_LORA} {_USUAL} --dataset sft.jsonl --use_dora true --lora_dropout 0.05 --init_weights pissa
sft rslora       {_LORA} {_USUAL} --dataset sft.jsonl --use_rslora true --lora_bias none --neftune_noise_alpha 5
sft plus         {_LORA} {_USUAL} --dataset sft.jsonl --lorap_lr_ratio 16 --optimizer lorap
sft minimum      {_LORA} {_USUAL} --dataset sft.jsonl --lr_scheduler_type cosine_with_min_lr \
                 --lr_scheduler_kwargs '{{"min_lr": 1e-6}}'
sft best         {_LORA} {_USUAL} --dataset sft.jsonl --val_dataset val.jsonl --load_best_model_at_end true \
                 --metric_for_best_model loss --early_stop_interval 3
sft stream       {_LORA} {_USUAL} --dataset sft.jsonl --streaming true --max_steps 20 --val_dataset val.jsonl
sft epochs       {_LORA} {_USUAL} --dataset sft.jsonl --val_dataset val.jsonl --save_strategy epoch \
                 --eval_strategy epoch
sft tools        {_LORA} {_USUAL} --dataset tools.jsonl --agent_template hermes --loss_scale hermes
sft weights      {_LORA} {_USUAL} --dataset sft.jsonl --loss_scale last_round --truncation_strategy left
sft tokens       {_LORA} {_USUAL} --dataset sft.jsonl --new_special_tokens tokens.txt --modules_to_save embed_tokens
sft classes      {_LORA} {_USUAL} --dataset cls.jsonl --task_type seq_cls --num_labels 2 --val_dataset cls.jsonl
sft many         {_LORA} {_USUAL} --dataset many.jsonl --task_type seq_cls --num_labels 3 \
                 --problem_type multi_label_classification
sft embedding    {_LORA} {_USUAL} --dataset emb.jsonl --task_type embedding --loss_type infonce
sft reranker     {_LORA} {_USUAL} --dataset rank.jsonl --task_type reranker --loss_type pointwise_reranker
sft lazy         {_LORA} {_USUAL} --dataset sft.jsonl --lazy_tokenize true --packing false --group_by_length true
sft columns      {_LORA} {_USUAL} --dataset other.jsonl --columns '{{"frage": "query", "antwort": "response"}}'
sft plugin       {_LORA} {_USUAL} --dataset sft.jsonl --external_plugins plugin.py
sft adapters     {_USUAL} --tuner_type lora --dataset sft.jsonl --adapters adapter/checkpoint-2
sft resume       {_USUAL} --tuner_type lora --dataset sft.jsonl --resume_from_checkpoint adapter/checkpoint-2 \
                 --resume_only_model true
pt full          {_FULL} {_USUAL} --dataset pt.jsonl --adam_beta2 0.95 --weight_decay 0.1
pt lora          {_LORA} {_USUAL} --dataset pt.jsonl --split_dataset_ratio 0.1
pt stream        {_FULL} {_USUAL} --dataset pt.jsonl --streaming true --max_steps 10 --shuffle_buffer_size 100
rlhf dpo         {_LORA} {_USUAL} --rlhf_type dpo --dataset dpo.jsonl --beta 0.1 --rpo_alpha 0.1
rlhf ipo         {_LORA} {_USUAL} --rlhf_type dpo --dataset dpo.jsonl --loss_type sigmoid sft --loss_weights 1 0.5
rlhf dpo_full    {_FULL} {_USUAL} --rlhf_type dpo --dataset dpo.jsonl --ref_model models/tiny --ref_model_type llama
rlhf orpo        {_LORA} {_USUAL} --rlhf_type orpo --dataset dpo.jsonl --split_dataset_ratio 0.1
rlhf simpo       {_LORA} {_USUAL} --rlhf_type simpo --dataset dpo.jsonl --simpo_gamma 1 --cpo_alpha 1
rlhf cpo         {_LORA} {_USUAL} --rlhf_type cpo --dataset dpo.jsonl --loss_type sigmoid
rlhf rm          {_LORA} {_USUAL} --rlhf_type rm --dataset dpo.jsonl --center_rewards_coefficient 0.01
rlhf kto         {_LORA} {_USUAL} --rlhf_type kto --dataset kto.jsonl --desirable_weight 1 --undesirable_weight 1
rlhf gkd         {_LORA} {_USUAL} --rlhf_type gkd --dataset sft.jsonl --teacher_model models/teacher \
                 --teacher_model_type llama --lmbda 0.5 --max_completion_length 64
rlhf grpo        {_LORA} {_LOOK} --rlhf_type grpo --dataset grpo.jsonl --reward_funcs format repetition {_GRPO} \
                 --per_device_train_batch_size 4 --reward_weights 1 0.5
rlhf grpo_plugin {_LORA} {_LOOK} --rlhf_type grpo --dataset grpo.jsonl --external_plugins plugin.py {_GRPO} \
                 --per_device_train_batch_size 4 --reward_funcs closeness --loss_type dr_grpo
rlhf grpo_full   {_FULL} {_LOOK} --rlhf_type grpo --dataset grpo.jsonl --reward_funcs soft_overlong {_GRPO} \
                 --per_device_train_batch_size 4 --soft_cache_length 16 --advantage_estimator rloo
"""
"""ms-swift's command, a name, and the flags in addition to `_MODEL`; a backslash continues a line."""


@functools.cache
def commands() -> dict[str, list[str]]:
    """The unchanged commands: name -> arguments of ``swift``."""
    lines = COMMANDS.strip().replace("\\\n", "").splitlines()
    found = {}
    for line in lines:
        command, name, flags = line.split(maxsplit=2)
        found[f"{command} {name}"] = [command, *shlex.split(f"{_MODEL} {flags}")]
    return found


_TALKS = [{"messages": [_ask, _say]} for _ask, _say in [
    ({"role": "user", "content": f"What comes after {n}?"}, {"role": "assistant", "content": f"{n + 1} does."})
    for n in range(24)
]]  # fmt: skip
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_PLUGIN = """
from swift.rewards import ORM, orms

class Closeness(ORM):
    def __call__(self, completions, solution, **kwargs):
        return [float(text == one) for text, one in zip(completions, solution)]

orms["closeness"] = Closeness
"""


def _files() -> Iterator[tuple[str, str | list[dict[str, object]]]]:
    """Names and contents of the files other than models."""
    yield "sft.jsonl", _TALKS  # type: ignore[misc]
    yield "val.jsonl", _TALKS[:8]  # type: ignore[misc]
    yield "pt.jsonl", [{"messages": [talk["messages"][1]]} for talk in _TALKS]
    yield "dpo.jsonl", [{**talk, "rejected_response": "No idea."} for talk in _TALKS]
    yield "kto.jsonl", [{**talk, "label": bool(n % 2)} for n, talk in enumerate(_TALKS)]
    yield (
        "grpo.jsonl",
        [{"messages": talk["messages"][:1], "solution": str(n)} for n, talk in enumerate(_TALKS)],
    )
    yield "cls.jsonl", [{"messages": talk["messages"][:1], "label": n % 2} for n, talk in enumerate(_TALKS)]
    yield (
        "many.jsonl",
        [{"messages": talk["messages"][:1], "label": [n % 3]} for n, talk in enumerate(_TALKS)],
    )
    documents = {"positive_messages": [[{"role": "user", "content": "a b"}]]}
    others = {"negative_messages": [[{"role": "user", "content": "c d"}]]}
    yield "emb.jsonl", [{"messages": talk["messages"][:1], **documents, **others} for talk in _TALKS]
    yield "rank.jsonl", [{"messages": talk["messages"][:1], **documents, **others} for talk in _TALKS]
    yield "tools.jsonl", [{**talk, "tools": json.dumps([_TOOL])} for talk in _TALKS]
    yield "other.jsonl", [{"frage": f"{n}?", "antwort": f"{n}!"} for n in range(12)]
    yield "empty.jsonl", ""
    yield "broken.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n{"messages": [{"role"\n'
    yield "plugin.py", _PLUGIN
    yield "prompt.txt", "You are a careful assistant."
    yield "tokens.txt", "<happy>\n<sad>\n"


def lay_out(folder: Path) -> None:
    """Write the models, an adapter and the files that the commands name."""
    from swift_toolkit.model.builtin import materialise
    from tests.adapters import make_adapter
    from tests.conftest import make_tiny_llama

    demo = folder / "demo"
    _shrink(materialise("builtin/SmolLM2-135M-Instruct"), demo)
    for name in ("tiny", "teacher"):
        make_tiny_llama(demo, folder / "models" / name)
    make_adapter(folder / "models/tiny", folder / "adapter/checkpoint-2", seed=1)
    (folder / "adapter/checkpoint-2/trainer_state.json").write_text('{"global_step": 2, "max_steps": 2}')
    for name, content in _files():
        text = content if isinstance(content, str) else "".join(f"{json.dumps(row)}\n" for row in content)
        (folder / name).write_text(text, encoding="utf-8")


def _shrink(model: Path, small: Path) -> None:
    """Write the configuration of a model, and its tokenizer with only the first tokens, so that it loads quickly."""
    small.mkdir(parents=True)
    for file in model.glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if file.name == "config.json":
            content["vocab_size"] = TOKENS
        if file.name == "tokenizer.json":
            vocabulary = {token: at for token, at in content["model"]["vocab"].items() if at < TOKENS}
            merges = [one if isinstance(one, list) else one.split(" ") for one in content["model"]["merges"]]
            content["model"]["vocab"] = vocabulary
            content["model"]["merges"] = [one for one in merges if vocabulary.keys() >= {*one, "".join(one)}]
        (small / file.name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


# --- the mutations ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """A command with one mistake.

    Args:
        kind: the kind of mistake.
        base: the name of the original command.
        words: the arguments of ``swift``.
        key: the wrong setting, without dashes.
    """

    kind: str
    base: str
    words: tuple[str, ...]
    key: str


def _flags(words: list[str]) -> dict[str, list[str]]:
    """Flag -> its values."""
    found: dict[str, list[str]] = {}
    for word in words[1:]:
        if word.startswith("--"):
            values = found.setdefault(word, [])
        else:
            values.append(word)
    return found


def _joined(command: str, flags: dict[str, list[str]]) -> tuple[str, ...]:
    return (command, *(word for flag, values in flags.items() for word in (flag, *values)))


def misspelled(text: str, dice: random.Random) -> str:
    """The text with one letter doubled, omitted, swapped with its neighbour or replaced."""
    places = [n for n, letter in enumerate(text) if letter.isalpha()]
    while True:
        at = dice.choice(places)
        new = dice.choice([
            text[:at] + text[at] + text[at:],
            text[:at] + text[at + 1 :],
            text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :],
            text[:at] + dice.choice("aeiostrn") + text[at + 1 :],
        ])  # fmt: skip
        if new != text and new.strip("-_"):
            return new


_FILES = (".jsonl", ".txt", ".py", "models/", "adapter/")


def _is_word(value: str) -> bool:
    numeric = value.replace(".", "").replace("-", "").replace("e", "").isdigit()
    is_file = any(mark in value for mark in _FILES)
    return not numeric and not is_file and value not in ("true", "false", "out") and value[0] != "{"


_FREE = ("--model_author", "--model_name")


def _key(
    flags: dict[str, list[str]], dice: random.Random, command: Command
) -> tuple[dict[str, list[str]], str]:
    wrong = dice.choice(list(flags))
    new = misspelled(wrong[2:], dice)
    return {f"--{new}" if flag == wrong else flag: values for flag, values in flags.items()}, new


def _value(
    flags: dict[str, list[str]], dice: random.Random, command: Command
) -> tuple[dict[str, list[str]], str]:
    places = [
        (flag, n)
        for flag, values in flags.items()
        for n, value in enumerate(values)
        if flag not in _FREE and _is_word(value)
    ]
    flag, at = dice.choice(places)
    values = list(flags[flag])
    values[at] = misspelled(values[at], dice)
    return {**flags, flag: values}, flag[2:]


def _type(
    flags: dict[str, list[str]], dice: random.Random, command: Command
) -> tuple[dict[str, list[str]], str]:
    places = [
        flag for flag, values in flags.items() if len(values) == 1 and not _is_word(values[0]) and values[0] != "out"
        and not any(mark in values[0] for mark in _FILES)
    ]  # fmt: skip
    flag = dice.choice(places)
    before = flags[flag][0]
    if before in ("true", "false"):
        new = dice.choice(["maybe", "2", "tru", "none", "[]"])
    elif before[0] == "{":
        new = dice.choice([before[:-1], "min_lr=1e-6", before.replace('"', ""), "[1]"])
    else:
        new = dice.choice(
            ["abc", f"{before}x", "1e", "ten", "one,two", "true", f"{before} {before}", "1.5.2"]
        )
        new = new if "." in before or "e-" in before else dice.choice([new, f"{before}.5"])
    return {**flags, flag: [new]}, flag[2:]


def _file(
    flags: dict[str, list[str]], dice: random.Random, command: Command
) -> tuple[dict[str, list[str]], str]:
    places = [
        (flag, n)
        for flag, values in flags.items()
        for n, value in enumerate(values)
        if any(mark in value for mark in _FILES)
    ]
    flag, at = dice.choice(places)
    values = list(flags[flag])
    folder, slash, name = values[at].rpartition("/")
    stem, dot, ending = name.partition(".")
    values[at] = dice.choice([
        f"{folder}{slash}{misspelled(stem, dice)}{dot}{ending}",
        f"./data/{values[at]}",
        f"/nowhere/{values[at]}",
    ])  # fmt: skip
    return {**flags, flag: values}, flag[2:]


_PAIRS = """
packing true
padding_free true
streaming true
fsdp fsdp2 deepspeed zero2
deepspeed zero2
deepspeed zero7
deepspeed missing.json
lazy_tokenize true streaming true max_steps 5
eval_strategy epoch save_strategy steps load_best_model_at_end true val_dataset val.jsonl
load_best_model_at_end true eval_strategy no
per_device_train_batch_size 3 num_generations 4
per_device_train_batch_size 0
gradient_accumulation_steps 0
lora_rank 0
lora_rank -8
lora_dropout 1.5
learning_rate -1e-4
num_train_epochs 0
max_length 0
warmup_ratio 1.5
warmup_steps -5
split_dataset_ratio 1.5
split_dataset_ratio -0.1
save_total_limit 0
logging_steps 0
save_steps 0
eval_steps 0 val_dataset val.jsonl
max_steps 0 streaming true
adam_beta1 1.5
freeze_parameters_ratio 2
num_labels 0 task_type seq_cls
quant_method bnb quant_bits 3
quant_bits 4
quant_method gptq quant_bits 4
bf16 true fp16 true
attn_impl flash_attn
optim adamw_bnb_8bit
optim adamv
report_to wandb
report_to tensorbord
use_liger_kernel true
tuner_backend unsloth
reward_weights 1 2 3
reward_model models/nowhere
ref_model models/nowhere
teacher_model models/nowhere
adapters out/none
ref_adapters out/none
resume_from_checkpoint out/checkpoint-7
loss_type sigmoid hinge
loss_weights 1 2 3
loss_scale react+ignore
lr_scheduler_type cosine_with_min_lr
lr_scheduler_type warmup_stable_decay
lr_scheduler_kwargs {"num_cycle":3} lr_scheduler_type cosine_with_restarts
use_vllm true
vllm_mode colocate
async_generate true
dataset sft.jsonl#0
dataset sft.jsonl#many
dataset empty.jsonl
dataset broken.jsonl
target_modules q_prj
target_regex (q|v
modules_to_save head
freeze_parameters model.layer
init_weights olora2
metric_for_best_model bleu load_best_model_at_end true val_dataset val.jsonl
eval_metric accuracy
predict_with_generate true
sequence_parallel_size 2
template llama3x
model_type lama
torch_dtype float8
device_map carefully
rlhf_type dppo
task_type classification
truncation_strategy middle
padding_side top
max_new_tokens 0 predict_with_generate true val_dataset val.jsonl
dataset_num_proc 0
interleave_prob 0.5 0.5
columns {"a":"query","b":"query"}
custom_dataset_info missing.json
galore_rank 0 use_galore true
neftune_noise_alpha -5
label_smoothing_factor 2
max_grad_norm -1
weight_decay -1
beta -1
temperature -1
top_p 2
seed -1
lisa_activated_layers 2 tuner_type lora
train_type lora
epochs 3
lr 1e-4
batch_size 8
output out
lora_r 8
cutoff_len 1024
finetuning_type lora
"""


def _pair(
    flags: dict[str, list[str]], dice: random.Random, command: Command
) -> tuple[dict[str, list[str]], str]:
    words = dice.choice(_PAIRS.strip().splitlines()).split()
    settings: dict[str, list[str]] = {}
    for at, word in enumerate(words):
        is_name = at == 0 or (word[0].isalpha() and "_" in word and "." not in word and word not in _VALUES)
        is_name = is_name or word in ("deepspeed", "streaming", "fp16", "optim")
        if is_name:
            values = settings.setdefault(f"--{word}", [])
        else:
            values.append(word)
    return {**flags, **settings}, words[0]


_VALUES = frozenset(
    """cosine_with_min_lr warmup_stable_decay cosine_with_restarts adamw_bnb_8bit q_prj flash_attn zero2
    seq_cls""".split()
)


def _dropped(
    flags: dict[str, list[str]], dice: random.Random, command: Command
) -> tuple[dict[str, list[str]], str]:
    needed = """--model --dataset --reward_funcs --num_labels --max_steps --teacher_model --soft_cache_length
        --rlhf_type --lr_scheduler_kwargs --val_dataset --columns --per_device_train_batch_size --external_plugins
        --loss_type --task_type --target_modules --agent_template --template --model_type"""
    if dice.random() < 0.35:  # drop the value of a flag
        flag = dice.choice(
            [flag for flag in flags if flags[flag] and flags[flag][0] not in ("true", "false")]
        )
        return {**flags, flag: []}, flag[2:]
    flag = dice.choice([flag for flag in needed.split() if flag in flags])
    return {one: values for one, values in flags.items() if one != flag}, flag[2:]


_NETWORK = ("hub", "url", "token", "host", "swanlab", "webhook")
"""Parts of the names of arguments whose values mean something only with a network."""
_ODD = {
    "bool": "true false maybe".split(),
    "int": "-1 0 1 2 3 1000000 1.5 many".split(),
    "float": "-1 0 0.3 1 2 1e6 1,5 little".split(),
    "str": "word nowhere/file.json -1 true auto model.layers.0".split(),
    "dict": ['{"a": 1}', "{a", "[1]", "nowhere/file.json", "word", "{}"],
}
"""Type of an argument -> values that may be wrong."""


def _other(
    flags: dict[str, list[str]], dice: random.Random, command: Command
) -> tuple[dict[str, list[str]], str]:
    """Any argument of the command, with a value that may be wrong."""
    known = fields(command)
    names = [
        name
        for name in sorted(known)
        if f"--{name}" not in flags and not any(part in name for part in _NETWORK)
    ]
    field = known[dice.choice(names)]
    words = _ODD[field.kind]
    if field.choices:
        choices = [str(choice) for choice in field.choices]
        words = [*choices, *(misspelled(choice, dice) for choice in choices if choice.isalpha()), "word"]
    count = dice.choice([1, 1, 2]) if field.is_list else 1
    return {**flags, f"--{field.name}": [dice.choice(words) for _ in range(count)]}, field.name


_Kind = Callable[[dict[str, list[str]], random.Random, Command], tuple[dict[str, list[str]], str]]
_KINDS: dict[str, _Kind] = {
    "misspelled key": _key,
    "misspelled value": _value,
    "wrong type": _type,
    "missing file": _file,
    "impossible": _pair,
    "dropped": _dropped,
    "any argument": _other,
}


@dataclass(frozen=True)
class Draw:
    """Wrong commands, and the table of ms-swift's answers to them.

    Args:
        table: the file with the answers.
        seed: the seed of the generator.
        count: number of commands.
        kinds: the kinds of mistakes, in turn.
    """

    table: Path
    seed: int
    count: int
    kinds: tuple[str, ...]


_SIX = tuple(_KINDS)[:6]
DRAWS = (
    Draw(Path(__file__).with_suffix(".jsonl"), 16, 1000, _SIX),
    Draw(Path(__file__).with_name("mutations_2.jsonl"), 2026, 200, (*_SIX, "any argument", "any argument")),
    Draw(Path(__file__).with_name("mutations_3.jsonl"), 777, 250, (*_SIX, "any argument", "any argument")),
    Draw(Path(__file__).with_name("mutations_4.jsonl"), 31337, 150, (*_SIX, *["any argument"] * 6)),
)


def mutations(draw: Draw = DRAWS[0]) -> list[Mutation]:
    """The wrong commands of a draw, always the same, and none of an earlier draw."""
    dice, bases, found = random.Random(draw.seed), commands(), {}
    earlier = {one.words for other in DRAWS[: DRAWS.index(draw)] for one in mutations(other)}
    while len(found) < draw.count:
        base = dice.choice(list(bases))
        kind = draw.kinds[len(found) % len(draw.kinds)]
        command: Command = bases[base][0]  # type: ignore[assignment]
        flags, key = _KINDS[kind](_flags(bases[base]), dice, command)
        words = _joined(command, flags)
        if list(words) != bases[base] and words not in found and words not in earlier:
            found[words] = Mutation(kind, base, words, key)
    return list(found.values())


# --- ms-swift's answers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """ms-swift's answer to a command: its error, or no error before the first step."""

    number: int
    error: str | None


def raw_answers(asked: Sequence[tuple[int, Mutation]], folder: Path) -> Iterator[Answer]:
    """ms-swift's answers, each from a separate process that is forked after the imports."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    from swift.pipelines import train  # noqa: F401
    from swift.pipelines.train.pretrain import SwiftPretrain
    from swift.pipelines.train.rlhf import SwiftRLHF
    from swift.pipelines.train.sft import SwiftSft
    from swift.trainers import TrainerFactory  # noqa: F401

    torch.set_num_threads(1)
    pipelines = {"sft": SwiftSft, "pt": SwiftPretrain, "rlhf": SwiftRLHF}
    os.chdir(folder)
    for name in ("sft lora", "rlhf dpo", "rlhf grpo"):  # do the late imports once
        words = commands()[name]
        _ask(pipelines[words[0]], words[1:])
    for number, mutation in asked:
        error = _in_a_fork(lambda words=mutation.words: _ask(pipelines[words[0]], list(words[1:])), folder)  # type: ignore[misc]
        yield Answer(number, error)


def _ask(pipeline: type, words: list[str]) -> None:
    """Run the pipeline up to training, without network and without waiting for it."""
    import socket

    from swift.hub import HFHub, MSHub

    connect, sleep = socket.socket.connect, time.sleep

    def local(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            raise ConnectionError("no network")
        connect(self, address)  # type: ignore[arg-type]

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    for hub in (MSHub, HFHub):  # they would retry for a minute
        hub.load_dataset = hub.download_model = unreachable
    _without_pools()
    socket.getaddrinfo = unreachable  # type: ignore[assignment]
    socket.socket.connect = local  # type: ignore[method-assign,assignment]
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    pipeline.train = lambda self, trainer: {}  # type: ignore[attr-defined]
    pipeline(words).main()  # type: ignore[call-arg]


def _without_pools() -> None:
    """Avoid that `datasets` starts a process when one is enough."""
    from datasets import Dataset

    whole = Dataset.map

    def here(self: Dataset, *words: object, num_proc: int | None = None, **names: object) -> Dataset:
        return whole(self, *words, num_proc=None if num_proc == 1 else num_proc, **names)

    Dataset.map = here


def _in_a_fork(work: Callable[[], None], folder: Path) -> str | None:
    """None if ``work`` succeeds in a child process, else its error."""
    import select
    import signal

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.setsid()
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(silence, descriptor)
        said = tempfile.TemporaryFile()  # noqa: SIM115
        os.dup2(said.fileno(), 2)
        text = ""
        try:
            work()
        except SystemExit as error:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            text = lines[-1] if error.code and lines else f"exit {error.code}" if error.code else ""
        except BaseException as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        os.write(write, (text or "ok")[:160].encode())
        os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], RAW_TIMEOUT)
    answer = os.read(read, 1000).decode(errors="replace") if ready else "no answer in time"
    os.close(read)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None if answer == "ok" else answer or "died"


# --- our answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The trainer's answer to a command."""

    status: int
    said: str
    seconds: float

    @property
    def refused(self) -> bool:
        return self.status == 2

    def names(self, mutation: Mutation) -> bool:
        """Whether the message names the mistake: the setting, or its value, such as a file."""
        words = [word.removeprefix("--") for word in (*mutation.words[1:], mutation.key)]
        words += [word.partition("#")[0] for word in words]
        return any(len(word) > 1 and f"{word}{end}" in self.said for word in words for end in ('"', ":"))


def ours(words: tuple[str, ...] | list[str]) -> Verdict:
    """The trainer's dry run of a command, in this process and in the current directory."""
    import finetune_trainer

    command, *flags = words
    task = [] if command == "sft" else ["--task", command]
    out, before, start = io.StringIO(), dict(os.environ), time.perf_counter()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = finetune_trainer.main([*task, *flags, "--dry-run"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Verdict(status, out.getvalue(), time.perf_counter() - start)


def is_old(mutation: Mutation) -> bool:
    """Whether the setting belongs to an older ms-swift and is translated here."""
    command: Command = mutation.words[0]  # type: ignore[assignment]
    return renames.is_known(mutation.key, command) and mutation.key not in fields(command)


# --- the comparison -----------------------------------------------------------------------------------------


def kept_answers(draw: Draw = DRAWS[0]) -> dict[tuple[str, ...], Answer]:
    """The table: arguments of a command -> ms-swift's answer."""
    asked = mutations(draw)
    lines = draw.table.read_text(encoding="utf-8").splitlines()[1:] if draw.table.exists() else []
    answers = [Answer(**json.loads(line)) for line in lines]
    return {asked[answer.number].words: answer for answer in answers}


def ask_raw(draw: Draw, folder: Path, most: int) -> None:
    """Add at most ``most`` of the answers that the table lacks."""
    from importlib.metadata import version

    known = kept_answers(draw)
    missing = [(number, one) for number, one in enumerate(mutations(draw)) if one.words not in known]
    if not known:
        unchanged = [Mutation("", name, tuple(words), "") for name, words in commands().items()]
        for answer in raw_answers(list(enumerate(unchanged)), folder):
            print(f"{unchanged[answer.number].base}: {answer.error or 'ok'}", flush=True)
        draw.table.write_text(json.dumps({"ms-swift": version("ms-swift"), "seed": draw.seed}) + "\n")
    with draw.table.open("a", encoding="utf-8") as file:
        for answer in raw_answers(missing[:most], folder):
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
            file.flush()


@dataclass(frozen=True)
class Limit:
    """A row of ``tests/limits.txt``.

    Args:
        wrong: a command that ms-swift rejects.
        near: a similar command that it accepts, None if there is none.
    """

    wrong: Mutation
    near: Mutation | None


@functools.cache
def limits(file: Path = ROOT / "tests/limits.txt") -> list[Limit]:
    """The commands of ``tests/limits.txt``."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            base, wrong, key, *near = line.split(" | ")
            mutations = [Mutation("limit", base, _changed(base, text), key) for text in (wrong, *near)]
            found.append(Limit(mutations[0], mutations[1] if near else None))
    return found


def _changed(base: str, text: str) -> tuple[str, ...]:
    """A command with other settings; ``--no-NAME`` removes one."""
    words = commands()[base]
    flags = _flags(words)
    for flag, values in _flags(["", *shlex.split(text)]).items():
        if flag.startswith("--no-"):
            flags.pop(f"--{flag[5:]}", None)
        else:
            flags[flag] = values
    return _joined(words[0], flags)


def ask_limits(folder: Path) -> bool:
    """Whether ms-swift rejects and accepts what ``tests/limits.txt`` says; prints the rows that differ."""
    rows = limits()
    asked = [(row.wrong, True) for row in rows] + [(row.near, False) for row in rows if row.near]
    answers = raw_answers([(number, one) for number, (one, _) in enumerate(asked)], folder)
    differ = 0
    for answer, (mutation, rejects) in zip(answers, asked, strict=True):
        if (answer.error is not None) != rejects:
            differ += 1
            print(f"DIFFERS {shlex.join(mutation.words)}: {answer.error}", flush=True)
    print(f"{len(asked)} commands of tests/limits.txt, {differ} answers differ")
    return not differ


def compare_unchanged() -> bool:
    """Whether no unchanged command is rejected; prints how many are accepted."""
    false = [name for name, words in commands().items() if ours(words).status != 0]
    print(f"unchanged: {len(commands()) - len(false)} of {len(commands())} accepted {', '.join(false)}")
    return not false


def compare(draw: Draw, show: bool) -> bool:
    """Print how many of the commands that ms-swift rejects are rejected here. Returns whether they are enough."""
    answers = kept_answers(draw)
    asked: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    alone, translated, slowest = 0, 0, 0.0
    for mutation in mutations(draw):
        if (answer := answers.get(mutation.words)) is None:
            continue
        found = ours(mutation.words)
        if answer.error is not None and is_old(mutation) and found.status == 0:
            translated += 1
            continue
        if answer.error is None:
            alone += found.refused
            if show and found.refused:
                print(
                    f"rejected only here: {mutation.kind}: {mutation.base}: {mutation.key}: {found.said.strip()[:300]}"
                )
            continue
        asked[mutation.kind] += 1
        slowest = max(slowest, found.seconds)
        if found.refused and found.seconds < SECONDS and found.names(mutation):
            caught[mutation.kind] += 1
        elif show:
            print(f"MISSED {mutation.kind}: swift {shlex.join(mutation.words)}\n   ms-swift: {answer.error}")
            print(f"   here {found.status}, {found.seconds:.2f} s: {found.said.strip()[-300:]}")
    for kind, count in asked.items():
        print(f"{kind:18} {caught[kind]:4} of {count:4}")
    share = caught.total() / max(asked.total(), 1)
    print(
        f"rejected by ms-swift {asked.total()}, of these here {caught.total()}: {share:.1%}, slowest {slowest:.2f} s"
    )
    print(f"accepted by ms-swift {len(answers) - asked.total()}, of these rejected here {alone}")
    return share >= WANTED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--draw", type=int, choices=range(1, len(DRAWS) + 1), help="only this one (default: all)"
    )
    parser.add_argument("--raw", action="store_true", help="add the answers of ms-swift that the tables lack")
    parser.add_argument("--most", type=int, default=2000, help="with --raw: at most so many answers")
    parser.add_argument(
        "--show", action="store_true", help="print each command that is missed here or rejected only here"
    )
    parser.add_argument(
        "--limits", action="store_true", help="ask ms-swift about the rows of tests/limits.txt"
    )
    options = parser.parse_args()
    draws = [DRAWS[options.draw - 1]] if options.draw else DRAWS
    with tempfile.TemporaryDirectory() as name:
        lay_out(Path(name))
        if options.limits:
            return 0 if ask_limits(Path(name)) else 1
        if options.raw:
            for draw in draws:
                ask_raw(draw, Path(name), options.most)
            return 0
        os.chdir(name)
        passed = [compare_unchanged()]
        for number, draw in enumerate(draws):
            print(f"draw {options.draw or number + 1}, seed {draw.seed}:")
            passed.append(compare(draw, options.show))
        return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
