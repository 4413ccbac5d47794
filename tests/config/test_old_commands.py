"""Commands as people wrote them for each generation of ms-swift, for the installed one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from swift_toolkit.config.fields import fields
from swift_toolkit.config.names.translate import Translation, translate
from swift_toolkit.config.scripts.script import from_command
from swift_toolkit.machine.msswift import COMMANDS, installed

LINE = installed().line
TUNER = "tuner_type" if LINE == "v4" else "train_type"
PYTORCH = "transformers" if LINE == "v4" else "pt"

# Script, and what it comes to on the installed ms-swift.
COMMANDS_OF_OLD: dict[str, tuple[str, dict[str, Any]]] = {
    "1.1 sft": (
        """nproc_per_node=2
CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=$nproc_per_node --master_port 29501 src/llm_sft.py \\
    --model_type qwen-7b-chat --model_cache_dir ./qwen --sft_type lora --template_type chatml --dtype bf16 \\
    --dataset alpaca-zh,alpaca-en --train_dataset_sample -1 --num_train_epochs 2 --max_length 1024 \\
    --quantization_bit 4 --bnb_4bit_comp_dtype AUTO --lora_target_modules ALL --lora_dropout_p 0.1 \\
    --batch_size 1 --gradient_accumulation_steps $(expr 16 / $nproc_per_node) --warmup_ratio 0.03 \\
    --save_total_limit -1 --use_flash_attn false --push_hub_strategy push_best --hub_private_repo true
""",
        {
            "model": "./qwen",
            TUNER: "lora",
            "template": "chatml",
            "torch_dtype": "bfloat16",
            "dataset": ["AI-ModelScope/alpaca-gpt4-data-zh", "AI-ModelScope/alpaca-gpt4-data-en"],
            "num_train_epochs": "2",
            "max_length": "1024",
            "quant_method": "bnb",
            "quant_bits": "4",
            "target_modules": "all-linear",
            "lora_dropout": "0.1",
            "per_device_train_batch_size": "1",
            "gradient_accumulation_steps": "8",
            "warmup_ratio": "0.03",
            "attn_impl": "sdpa",
            "hub_strategy": "every_save",
            "hub_private_repo": "true",
            "split_dataset_ratio": 0.01,
        },
    ),
    "1.1 infer": (
        """python llm_infer.py --model_type baichuan2-7b-chat --sft_type lora --dtype bf16 \\
    --ckpt_dir "output/baichuan2-7b-chat/v0/checkpoint-100" --eval_human false --dataset alpaca-zh \\
    --dataset_test_ratio 0.02 --show_dataset_sample 20 --max_new_tokens 512 --do_sample false""",
        {
            "model": "baichuan-inc/Baichuan2-7B-Chat",
            TUNER: "lora",
            "torch_dtype": "bfloat16",
            "adapters": ["output/baichuan2-7b-chat/v0/checkpoint-100"],
            "dataset": ["AI-ModelScope/alpaca-gpt4-data-zh"],
            "split_dataset_ratio": "0.02",
            "val_dataset_sample": "20",
            "max_new_tokens": "512",
            "temperature": 0,
        },
    ),
    "1.7 sft": (
        """swift sft --model_id_or_path qwen/Qwen-7B --sft_type full --freeze_parameters 0.25 \\
    --custom_train_dataset_path a.jsonl --custom_val_dataset_path b.jsonl --train_dataset_sample 500 \\
    --self_cognition_sample 100 --model_name Ada --model_author Us --deepspeed default-zero3 \\
    --max_length -1 --max_steps 10 --warmup_steps 5 --only_save_model true --neftune_alpha 5 \\
    --check_dataset_strategy warning --tuner_backend swift --test_oom_error false""",
        {
            "model": "qwen/Qwen-7B",
            TUNER: "full",
            "freeze_parameters_ratio": 0.25,
            "dataset": ["a.jsonl#500", "swift/self-cognition#100"],
            "val_dataset": ["b.jsonl"],
            "model_name": "Ada",
            "model_author": "Us",
            "deepspeed": "zero3",
            "max_steps": "10",
            "warmup_steps": "5",
            "save_only_model": "true",
            "neftune_noise_alpha": "5",
            "strict": False,
            "tuner_backend": "peft",
        },
    ),
    "1.7 dpo": (
        """swift dpo --model_type yi-6b-chat --ref_model_id_or_path 01ai/Yi-6B-Chat --beta 0.1 \\
    --sft_beta 0.1 --dataset hh-rlhf-cn-harmless-base-cn --max_length 1024 --num_train_epochs 1 \\
    --warmup_ratio 0.1""",
        {
            "rlhf_type": "dpo",
            "model": "01ai/Yi-6B-Chat",
            "ref_model": "01ai/Yi-6B-Chat",
            "beta": "0.1",
            "rpo_alpha": "0.1",
            "dataset": ["AI-ModelScope/hh_rlhf_cn:harmless_base_cn"],
            "max_length": "1024",
            "num_train_epochs": "1",
            "warmup_ratio": "0.1",
            "split_dataset_ratio": 0.01,
        },
    ),
    "2.6 sft": (
        """MAX_PIXELS=100000 swift sft --model_type qwen2-vl-7b-instruct \\
    --model_id_or_path Qwen/Qwen2-VL-7B-Instruct \\
    --template_type qwen2-vl --quant_method bnb --quantization_bit 8 --lora_lr_ratio 16 --use_liger true \\
    --dataset 'latex-ocr-print#2000' --target_modules EMBEDDING ALL --eval_batch_size 2 \\
    --loss_name loss-scale --evaluation_strategy steps --dataset_seed 7 --preprocess_num_proc 2 \\
    --num_train_epochs 1 \\
    --max_length 512 --warmup_ratio 0 --dataset_test_ratio 0""",
        {
            "model": "Qwen/Qwen2-VL-7B-Instruct",
            "template": "qwen2_vl",
            "quant_method": "bnb",
            "quant_bits": "8",
            "lorap_lr_ratio": "16",
            "use_liger_kernel": "true",
            "dataset": ["AI-ModelScope/LaTeX_OCR:default#2000"],
            "target_modules": ["all-embedding", "all-linear"],
            "per_device_eval_batch_size": "2",
            "eval_strategy": "steps",
            "data_seed": "7",
            "dataset_num_proc": "2",
            "num_train_epochs": "1",
            "max_length": "512",
            "warmup_ratio": "0",
            "split_dataset_ratio": "0",
        },
    ),
    "2.6 deploy": (
        """swift deploy --ckpt_dir out/checkpoint-9-merged --model_type qwen2-7b-instruct \\
    --infer_backend vllm --gpu_memory_utilization 0.8 --max_model_len 4096 \\
    --tensor_parallel_size 2 --lora_modules a=x b=y""",
        {
            "model": "out/checkpoint-9-merged",
            "infer_backend": "vllm",
            "vllm_gpu_memory_utilization": "0.8",
            "vllm_max_model_len": "4096",
            "vllm_tensor_parallel_size": "2",
            "adapters": ["a=x", "b=y"],
        },
    ),
    "2.6 export": (
        """swift export --model_type qwen2-7b-instruct --quant_bits 4 --quant_method awq \\
    --quant_seqlen 2048 --dataset alpaca-zh#64 --quant_output_dir out --merge_lora true""",
        {
            "model": "qwen/Qwen2-7B-Instruct",
            "quant_bits": "4",
            "quant_method": "awq",
            "max_length": "2048",
            "dataset": ["AI-ModelScope/alpaca-gpt4-data-zh#64"],
            "output_dir": "out",
            "merge_lora": "true",
        },
    ),
    "2.6 eval": (
        """swift eval --model_type qwen2-7b-instruct --eval_dataset ceval mmlu \\
    --eval_few_shot 2 --eval_limit 10""",
        {
            "model": "qwen/Qwen2-7B-Instruct",
            "eval_dataset": ["ceval", "mmlu"],
            "eval_dataset_args": {"ceval": {"few_shot_num": "2"}, "mmlu": {"few_shot_num": "2"}},
            "eval_limit": "10",
            "eval_backend": "OpenCompass",
        },
    ),
    "3.0 pt": (
        """swift pt --model Qwen/Qwen2.5-7B --train_type full --dataset c.jsonl --packing true \\
    --enable_cache false""",
        {
            "model": "Qwen/Qwen2.5-7B",
            TUNER: "full",
            "dataset": "c.jsonl",
            "packing": "true",
            "split_dataset_ratio": 0.01,
        },
    ),
    "3.5 grpo": (
        """swift rlhf --rlhf_type grpo --model Qwen/Qwen2.5-7B --train_type lora --use_vllm true \\
    --vllm_mode colocate --gpu_memory_utilization 0.5 --tensor_parallel_size 1 \\
    --multi_turn_func f --split_dataset_ratio 0""",
        {
            "rlhf_type": "grpo",
            "model": "Qwen/Qwen2.5-7B",
            TUNER: "lora",
            "use_vllm": "true",
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": "0.5",
            "vllm_tensor_parallel_size": "1",
            "multi_turn_scheduler": "f",
            "split_dataset_ratio": "0",
        },
    ),
    "3.12 infer": (
        "swift infer --adapters out/checkpoint-5 --infer_backend pt --max_batch_size 8 --stream",
        {"adapters": "out/checkpoint-5", "infer_backend": PYTORCH, "max_batch_size": "8", "stream": True},
    ),
    "4.6 sft": (
        "swift sft --model a --tuner_type lora --dataset d.jsonl --eval_metric acc --safe_serialization true",
        {
            "model": "a",
            TUNER: "lora",
            "dataset": "d.jsonl",
            ("eval_metric" if LINE == "v4" else "metric"): "acc",
            ("safe_serialization" if LINE == "v4" else "save_safetensors"): "true",
        },
    ),
}


def translated(script: str) -> tuple[str, Translation]:
    found = from_command(script)
    assert found.left_out == []
    return found.command, translate(found.values, found.command, LINE, fields(found.command))


@pytest.mark.parametrize(("script", "settings"), COMMANDS_OF_OLD.values(), ids=COMMANDS_OF_OLD)
def test_command_is_translated(script: str, settings: dict[str, Any]) -> None:
    _, result = translated(script)
    assert result.values == settings
    assert not result.unknown and not result.errors and not result.warnings


@pytest.mark.slow
def test_commands_are_accepted_by_ms_swift() -> None:
    """The argument parsers of the installed ms-swift take every one, with nothing left over."""
    lists = []
    for script, _ in COMMANDS_OF_OLD.values():
        command, result = translated(script)
        words = []
        for name, value in result.values.items():
            items = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(item if isinstance(item, str) else json.dumps(item) for item in items)]
        lists.append((command, words))
    program = """
import json, sys
from swift_toolkit.machine.msswift import argument_parser
for command, words in json.load(sys.stdin):
    _, rest = argument_parser(command)[1].parse_known_args(words)
    assert not rest, (command, rest)
print("accepted")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(lists), capture_output=True, text=True
    )
    assert run.stdout.splitlines()[-1:] == ["accepted"], run.stderr[-2000:]


def test_every_command_is_among_them() -> None:
    assert {translated(script)[0] for script, _ in COMMANDS_OF_OLD.values()} == set(COMMANDS)
