"""Names of every ms-swift generation, translated for the installed one."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swift_toolkit.config.fields import fields as read_fields
from swift_toolkit.config.names import renames
from swift_toolkit.config.names.renames import Foreign, foreign, rename_rows
from swift_toolkit.config.names.translate import Translation, translate
from swift_toolkit.config.settings import OWN_KEYS, TUNER_NAMES
from swift_toolkit.machine.msswift import COMMANDS, LINES, Command, installed

LINE = installed().line
fields = cache(read_fields)


def spelled(command: Command = "sft", **values: Any) -> Translation:
    return translate(values, command, LINE, fields(command))


def without_defaults(**values: Any) -> dict[str, Any]:
    """Translated settings of an old training request in which no changed default plays a part."""
    said: dict[str, Any] = {
        "num_train_epochs": 1,
        "max_length": 2048,
        "warmup_ratio": 0.1,
        "split_dataset_ratio": 0,
    }
    result = spelled(**values, **said)
    assert not result.errors and not result.unknown and not result.warnings
    return {name: value for name, value in result.values.items() if name not in said}


# ------------------------------------------------------------------------------------------ the table


def test_every_name_is_one_of_the_installed_generation() -> None:
    for (command, old), row in rename_rows().items():
        known = fields(command)
        new = row.names[LINE]
        assert new is None or new in known, (command, old)
        if new is None:
            assert old not in known, (command, old)


def test_every_replacement_is_understood() -> None:
    for (command, _), row in rename_rows().items():
        for replacement in row.values[LINE].values():
            if isinstance(replacement, dict):
                result = translate(replacement, command, LINE, fields(command))
                assert not result.unknown and not result.errors, (row.old, replacement)


def test_every_field_of_the_installed_generation_is_left_alone() -> None:
    """A setting that is right today stays as it is, whatever an older ms-swift made of its name."""
    for command in COMMANDS:
        for name in fields(command):
            if (command, name) not in rename_rows() or not rename_rows()[command, name].rule:
                result = translate({name: "x"}, command, LINE, fields(command))
                assert result.values == {name: "x"} or name in ("ckpt_dir", "lora_modules"), name
                assert not result.notices or name in ("ckpt_dir", "lora_modules"), name


def test_rules_and_defaults_are_used() -> None:
    assert {row.rule for row in rename_rows().values() if row.rule} == set(renames.RULES)
    for default in renames.renames_table()["defaults"]:
        for command in default["for"].split():
            assert {default["name"], *default["with"], *default["unless"]} <= set(fields(command))


def test_versions_are_in_order() -> None:
    for row in rename_rows().values():
        assert row.sure in ("certain", "likely") and (row.since == "-" or renames.version_of(row.since))
        if row.until:
            assert renames.version_of(row.since) <= renames.version_of(row.until), row.old


def test_foreign_names_point_to_known_ones() -> None:
    known = {name for command in COMMANDS for name in fields(command)}
    old = {name for _, name in rename_rows()}
    own = {*OWN_KEYS, *TUNER_NAMES}
    wrong = []
    for tool, names in renames._foreign_names().items():
        for name in names:
            found = foreign(name)
            assert found is not None and found.tool == tool, f"{name} is listed twice"
            if name in known | own or (found.name not in known | old | own and not found.do.endswith(".")):
                wrong.append((name, found))
    assert not wrong


@pytest.mark.slow
def test_legacy_names_are_known_to_the_installed_ms_swift() -> None:
    """The families and templates that old names stand for, against the registries of ms-swift."""
    package = "swift.llm" if LINE == "v3" else "swift.model"
    templates = "swift.llm" if LINE == "v3" else "swift.template"
    script = (
        "import json; from swift_toolkit.machine import msswift; msswift.template_api();"  # imports in half the time
        f"from {package} import MODEL_MAPPING; from {templates} import TEMPLATE_MAPPING;"
        "print(json.dumps([list(MODEL_MAPPING), list(TEMPLATE_MAPPING)]))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    known_families, known_templates = json.loads(run.stdout.splitlines()[-1])
    position = LINES.index(LINE)
    legacy = renames.legacy_names()
    for name, (*_, old_template, family_v3, family_v4) in legacy["models"].items():
        assert (family_v3, family_v4)[position] in [*known_families, None], name
        spelled_template = legacy["templates"].get(old_template, [old_template] * 2)[position]
        assert "-generation" in old_template or spelled_template in known_templates, name
    for name, spellings in legacy["templates"].items():
        assert spellings[position] in known_templates, name
    for name, family in legacy["families"][LINE].items():
        assert name not in known_families and family in [*known_families, None], name
    for setting, known in (("model_type", known_families), ("template", known_templates)):
        for name, other in legacy["moved"][setting][LINE].items():
            assert name in known and other in [*known, None], name


# ------------------------------------------------------------------------------------------ names and values


@pytest.mark.swift4
@pytest.mark.parametrize(
    ("old", "new", "notice"),
    [
        ({"model_id_or_path": "a/b"}, {"model": "a/b"}, "model_id_or_path → model"),
        ({"sft_type": "lora"}, {"tuner_type": "lora"}, "sft_type → tuner_type"),
        ({"train_type": "full"}, {"tuner_type": "full"}, "train_type → tuner_type"),
        (
            {"train_type": "qlora"},
            {"tuner_type": "lora", "quant_method": "bnb", "quant_bits": 4},
            'train_type "qlora" → tuner_type "lora", quant_method "bnb", quant_bits 4',
        ),
        ({"dtype": "bf16"}, {"torch_dtype": "bfloat16"}, 'dtype "bf16" → torch_dtype "bfloat16"'),
        ({"torch_dtype": "fp16"}, {"torch_dtype": "float16"}, 'torch_dtype "fp16" → torch_dtype "float16"'),
        ({"dtype": "AUTO"}, {}, 'dtype "AUTO" → left to ms-swift'),
        (
            {"use_flash_attn": True},
            {"attn_impl": "flash_attn"},
            'use_flash_attn true → attn_impl "flash_attn"',
        ),
        ({"use_flash_attn": "false"}, {"attn_impl": "sdpa"}, 'use_flash_attn "false" → attn_impl "sdpa"'),
        (
            {"lora_target_modules": "ALL"},
            {"target_modules": "all-linear"},
            'lora_target_modules "ALL" → target_modules "all-linear"',
        ),
        (
            {"lora_target_modules": ["EMBEDDING", "q_proj"]},
            {"target_modules": ["all-embedding", "q_proj"]},
            'lora_target_modules ["EMBEDDING", "q_proj"] → target_modules ["all-embedding", "q_proj"]',
        ),
        (
            {"target_modules": "q_proj, v_proj"},
            {"target_modules": ["q_proj", "v_proj"]},
            'target_modules "q_proj, v_proj" → target_modules ["q_proj", "v_proj"]',
        ),
        (
            {"deepspeed": "default-zero2"},
            {"deepspeed": "zero2"},
            'deepspeed "default-zero2" → deepspeed "zero2"',
        ),
        (
            {"deepspeed_config_path": "scripts/ds_config/zero3_offload.json"},
            {"deepspeed": "zero3_offload"},
            'deepspeed_config_path "scripts/ds_config/zero3_offload.json" → deepspeed "zero3_offload"',
        ),
        ({"push_hub_strategy": "push_best"}, {"hub_strategy": "every_save"}, None),
        ({"save_total_limit": -1}, {}, "save_total_limit -1 → left to ms-swift"),
        ({"save_total_limit": 0}, {}, "save_total_limit 0 → left to ms-swift"),
        ({"dataset_num_proc": 0}, {"dataset_num_proc": "1"}, 'dataset_num_proc 0 → dataset_num_proc "1"'),
        ({"quantization_bit": 0}, {}, "quantization_bit 0 → left to ms-swift"),
        ({"quantization_bit": 4}, {"quant_method": "bnb", "quant_bits": 4}, None),
        ({"quantization_bit": 3}, {"quant_method": "hqq", "quant_bits": 3}, None),
        ({"quant_method": "gptq"}, {}, 'quant_method "gptq" → left to ms-swift'),
        ({"quant_method": "eetq"}, {"quant_method": "eetq", "quant_bits": 8}, None),
        ({"quant_method": "eetq", "quant_bits": 8}, {"quant_method": "eetq", "quant_bits": 8}, None),
        ({"load_in_8bit": True}, {"quant_method": "bnb", "quant_bits": 8}, None),
        ({"load_in_4bit": "false"}, {}, None),
        ({"freeze_parameters": 0.5}, {"freeze_parameters_ratio": 0.5}, None),
        ({"freeze_parameters": ["a.b"]}, {"freeze_parameters": ["a.b"]}, None),
        (
            {"min_lr": 1e-6},
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
            None,
        ),
        ({"channels": ["a", "b"]}, {"enable_channel_loss": True}, None),
        ({"device_max_memory": ["20GB", "10GB"]}, {"max_memory": {"0": "20GB", "1": "10GB"}}, None),
        ({"template_type": "AUTO"}, {}, None),
        ({"template_type": "qwen2-vl"}, {"template": "qwen2_vl"}, None),
        ({"template_type": "default-generation"}, {"use_chat_template": False}, None),
        ({"check_dataset_strategy": "warning"}, {"strict": False}, None),
        ({"fsdp_min_num_params": 100}, {"fsdp_config": {"min_num_params": 100}}, None),
        ({"metric": "acc"}, {"eval_metric": "acc"}, "metric → eval_metric"),
        ({"loss_type": "listwise_generative_reranker"}, {"loss_type": "listwise_reranker"}, None),
    ],
)
def test_training_names_for_ms_swift_4(old: dict[str, Any], new: dict[str, Any], notice: str | None) -> None:
    result = spelled(**old, num_train_epochs=1, max_length=2048, warmup_ratio=0)
    said = {"num_train_epochs": 1, "max_length": 2048, "warmup_ratio": 0}
    assert result.values == new | said
    assert not result.errors and not result.warnings and not result.unknown
    assert notice is None or result.notices[:1] == [notice]


@pytest.mark.swift3
@pytest.mark.parametrize(
    ("old", "new", "notice"),
    [
        ({"sft_type": "lora"}, {"train_type": "lora"}, ["sft_type → train_type"]),
        ({"train_type": "lora"}, {"train_type": "lora"}, []),
        ({"tuner_type": "lora"}, {"train_type": "lora"}, ["tuner_type → train_type"]),
        ({"eval_metric": "acc"}, {"metric": "acc"}, ["eval_metric → metric"]),
        ({"overwrite_output_dir": True}, {"overwrite_output_dir": True}, []),
        ({"safe_serialization": True}, {"save_safetensors": True}, ["safe_serialization → save_safetensors"]),
        ({"loss_type": "pointwise_reranker"}, {"loss_type": "reranker"}, None),
        ({"packing_strategy": "binpack"}, {}, ['packing_strategy "binpack" → left to ms-swift']),
    ],
)
def test_training_names_for_ms_swift_3(
    old: dict[str, Any], new: dict[str, Any], notice: list[str] | None
) -> None:
    result = spelled(**old, num_train_epochs=1, max_length=2048, warmup_ratio=0)
    assert result.values == new | {"num_train_epochs": 1, "max_length": 2048, "warmup_ratio": 0}
    assert not result.errors and not result.warnings and not result.unknown
    of_names = [one for one in result.notices if not one.startswith("defaults that were different")]
    assert notice is None or of_names == notice


@pytest.mark.swift3
def test_what_is_new_in_4_is_an_error_in_3() -> None:
    result = spelled("rlhf", gkd_logits_topk=5, experts_impl="eager")
    do = 'Remove it, or run: pip install "ms-swift>=4".'
    assert result.errors == [("gkd_logits_topk", "needs ms-swift 4", do)]
    assert result.warnings == [("experts_impl", "needs ms-swift 4 and is skipped")]
    assert result.values == {}


@pytest.mark.swift4
@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("infer", {"infer_backend": "pt"}, {"infer_backend": "transformers"}),
        ("infer", {"infer_backend": "AUTO"}, {}),
        ("infer", {"do_sample": False, "temperature": 0.3}, {"temperature": 0}),
        ("infer", {"do_sample": "true"}, {"temperature": 0.3, "top_k": 20, "top_p": 0.7}),
        (
            "infer",
            {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "do_sample": "true"},
            {"temperature": 0.9, "top_k": 50, "top_p": 0.9},
        ),
        ("infer", {"load_args_from_ckpt_dir": True}, {"load_args": True}),
        ("infer", {"merge_lora_and_save": True}, {"merge_lora": True}),
        ("infer", {"show_dataset_sample": "-1"}, {}),
        ("infer", {"result_dir": "out/"}, {"result_path": "out/infer_result.jsonl"}),
        ("infer", {"max_model_len": 8192}, {"max_model_len": 8192}),
        (
            "infer",
            {"max_model_len": 8192, "gpu_memory_utilization": 0.9},
            {"vllm_max_model_len": 8192, "vllm_gpu_memory_utilization": 0.9},
        ),
        ("deploy", {"vllm_lora_modules": ["a=x"], "lora_modules": "b=y"}, {"adapters": ["a=x", "b=y"]}),
        ("deploy", {"tp": 2, "session_len": 8192}, {"lmdeploy_tp": 2, "lmdeploy_session_len": 8192}),
        (
            "export",
            {"quant_seqlen": 2048, "quant_output_dir": "out"},
            {"max_length": 2048, "output_dir": "out"},
        ),
        ("export", {"quant_bits": 4, "quant_method": "gptq"}, {"quant_bits": 4, "quant_method": "gptq"}),
        ("export", {"mcore_adapters": ["a"]}, {"mcore_adapter": "a"}),
        ("eval", {"eval_token": "secret", "eval_nproc": 8}, {"api_key": "secret", "eval_num_proc": 8}),
        (
            "eval",
            {"eval_dataset": ["ceval"], "eval_few_shot": 3},
            {
                "eval_dataset": ["ceval"],
                "eval_dataset_args": {"ceval": {"few_shot_num": 3}},
                "eval_backend": "OpenCompass",
            },
        ),
        ("eval", {"eval_dataset": ["ceval"]}, {"eval_dataset": ["ceval"]}),
        ("rlhf", {"ref_model_id_or_path": "a", "max_length": 9}, {"ref_model": "a", "max_length": 9}),
        ("rlhf", {"use_vllm": True}, {"use_vllm": True, "vllm_mode": "colocate"}),
        (
            "rlhf",
            {"use_vllm": "true", "vllm_server_host": "a"},
            {"use_vllm": "true", "vllm_mode": "server", "vllm_server_host": "a"},
        ),
        ("rlhf", {"use_vllm": True, "vllm_mode": "server"}, {"use_vllm": True, "vllm_mode": "server"}),
        ("rlhf", {"use_vllm": False}, {"use_vllm": False}),
        ("rlhf", {"multi_turn_func": "f"}, {"multi_turn_scheduler": "f"}),
        ("rlhf", {"tensor_parallel_size": 2}, {"vllm_tensor_parallel_size": 2}),
    ],
)
def test_names_of_the_other_commands(command: Command, old: dict[str, Any], new: dict[str, Any]) -> None:
    result = spelled(command, **old)
    added = {"num_train_epochs", "warmup_ratio"}
    assert {name: value for name, value in result.values.items() if name not in added} == new
    assert not result.errors and not result.warnings and not result.unknown


def test_secrets_are_not_shown() -> None:
    result = spelled("eval", eval_token="secret")
    assert result.notices == ["eval_token → api_key"]
    result = spelled("eval", eval_token="secret", api_key="other")
    assert "secret" not in str(result.errors) and "other" not in str(result.errors).replace("another", "")


def test_order_and_origin() -> None:
    result = spelled(batch_size=2, model="a/b", lora_lr_ratio=16.0, max_steps=2, max_length=1, warmup_steps=1)
    assert list(result.values) == [
        "per_device_train_batch_size",
        "model",
        "lorap_lr_ratio",
        "max_steps",
        "max_length",
        "warmup_steps",
    ]
    assert result.origin["per_device_train_batch_size"] == ("batch_size",)
    assert result.origin["model"] == ("model",)


# ------------------------------------------------------------------------------------------ several settings


def test_model_type_of_one_model() -> None:
    assert without_defaults(model_type="qwen-7b-chat") == {"model": "qwen/Qwen-7B-Chat"}
    assert without_defaults(model_type="qwen-7b-chat", use_hf=True) == {
        "model": "Qwen/Qwen-7B-Chat",
        "use_hf": True,
    }
    assert without_defaults(model_type="qwen-7b") == {"model": "qwen/Qwen-7B", "use_chat_template": False}
    assert without_defaults(model_type="qwen-7b", template_type="qwen") == {
        "model": "qwen/Qwen-7B",
        "template": "qwen",
    }


def test_model_type_beside_a_path(tmp_path: Path) -> None:
    assert without_defaults(model_type="qwen2-vl-7b-instruct", model_id_or_path="a/b") == {"model": "a/b"}
    assert without_defaults(model_type="qwen2-vl-7b-instruct", model_id_or_path=str(tmp_path)) == {
        "model": str(tmp_path),
        "model_type": "qwen2_vl",
        "template": "qwen2_vl",
    }
    both = without_defaults(model_id_or_path="qwen/Qwen-7B-Chat", model_cache_dir=str(tmp_path))
    assert both == {"model": str(tmp_path)}


@pytest.mark.swift3
def test_a_family_that_only_4_has() -> None:
    assert spelled(model_type="qwen3_vl_moe", template="chatglm4").values == {
        "model_type": "qwen3_moe_vl",
        "template": "glm4",
    }
    result = spelled(model_type="deepseek_v3")
    assert result.values == {} and result.notices == ['model_type "deepseek_v3" → left to ms-swift']


@pytest.mark.swift4
def test_a_name_that_4_gives_to_another_family() -> None:
    assert spelled(model_type="glm4").values == {"model_type": "glm4"}
    old = spelled(model_type="glm4", metric="acc")
    assert old.values == {"model_type": "chatglm4", "eval_metric": "acc"}


@pytest.mark.swift4
def test_model_type_of_a_family() -> None:
    assert spelled(model_type="qwen3").values == {"model_type": "qwen3"}
    assert spelled(model_type="qwen2_5").values == {"model_type": "qwen2"}
    result = spelled(model_type="qwen3_thinking")
    assert result.values == {}
    assert result.notices == ['model_type "qwen3_thinking" → left to ms-swift']


@pytest.mark.parametrize("mark", ["adapter_config.json", "default/adapter_config.json", "reft/config.json"])
def test_ckpt_dir_of_an_adapter(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).parent.mkdir(exist_ok=True)
    (tmp_path / mark).write_text("{}")
    result = spelled("infer", ckpt_dir=str(tmp_path), model_type="qwen-7b-chat")
    assert result.values == {"adapters": [str(tmp_path)], "model": "qwen/Qwen-7B-Chat"}


def test_ckpt_dir_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = spelled("infer", model_type="qwen-7b-chat", ckpt_dir=str(tmp_path), model_id_or_path="a/b")
    assert result.values == {"model": str(tmp_path)}


@pytest.mark.parametrize(
    ("values", "new"),
    [
        ({"ckpt_dir": "output/x/checkpoint-10"}, {"adapters": ["output/x/checkpoint-10"]}),
        ({"ckpt_dir": "output/x/checkpoint-10-merged"}, {"model": "output/x/checkpoint-10-merged"}),
    ],
)
def test_ckpt_dir_that_is_not_here(values: dict[str, Any], new: dict[str, Any]) -> None:
    assert spelled("infer", **values).values == new


@pytest.mark.parametrize(
    ("values", "dataset"),
    [
        ({"dataset": "alpaca-zh"}, ["AI-ModelScope/alpaca-gpt4-data-zh"]),
        ({"dataset": ["alpaca-zh#500", "a.jsonl"]}, ["AI-ModelScope/alpaca-gpt4-data-zh#500", "a.jsonl"]),
        ({"dataset": "alpaca-zh,a.jsonl"}, ["AI-ModelScope/alpaca-gpt4-data-zh", "a.jsonl"]),
        ({"dataset": "alpaca-en", "use_hf": "true"}, ["vicgalle/alpaca-gpt4"]),
        ({"dataset": "ms-bench-mini"}, ["iic/ms_bench#20000"]),
        ({"dataset": "ms-bench-mini#7"}, ["iic/ms_bench#7"]),
        ({"dataset": "a.jsonl", "train_dataset_sample": 1000}, ["a.jsonl#1000"]),
        ({"dataset": "a.jsonl", "train_dataset_sample": "-1"}, "a.jsonl"),
        ({"custom_train_dataset_path": "a.jsonl,b.jsonl"}, ["a.jsonl", "b.jsonl"]),
        ({"self_cognition_sample": 500, "dataset": "a.jsonl"}, ["a.jsonl", "swift/self-cognition#500"]),
    ],
)
def test_training_data(values: dict[str, Any], dataset: Any) -> None:
    result = spelled(**values)
    assert result.values["dataset"] == dataset
    assert not result.errors and not result.warnings and not result.unknown


def test_training_data_of_several_sets_is_shared_out() -> None:
    result = spelled(train_dataset_sample=1000, dataset=["a.jsonl", "b.jsonl"])
    assert result.values["dataset"] == ["a.jsonl#500", "b.jsonl#500"]
    text = 'was 1000 rows of all data sets together; now each has its own size, as in "name#1000"'
    assert result.warnings == [("train_dataset_sample", text)]
    assert result.notices[0] == (
        'train_dataset_sample 1000, dataset ["a.jsonl", "b.jsonl"] → dataset ["a.jsonl#500", "b.jsonl#500"]'
    )


def test_file_with_the_name_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("alpaca-zh").mkdir()
    assert spelled(dataset="alpaca-zh").values == {"dataset": "alpaca-zh"}


def test_validation_data() -> None:
    result = spelled(custom_val_dataset_path="v.jsonl", val_dataset_sample=50, dataset="a.jsonl")
    assert result.values["val_dataset"] == ["v.jsonl#50"]
    assert spelled("infer", val_dataset="v.jsonl", val_dataset_sample=50).values == {
        "val_dataset": "v.jsonl",
        "val_dataset_sample": 50,
    }


def test_qlora_keeps_what_is_said() -> None:
    assert without_defaults(sft_type="qlora", quantization_bit=8).items() >= {"quant_bits": 8}.items()
    assert without_defaults(train_type="qlora", quant_bits=8, quant_method="bnb")["quant_bits"] == 8


def test_old_defaults_are_kept_for_old_requests() -> None:
    result = spelled(sft_type="lora", dataset="a.jsonl")
    added = {"split_dataset_ratio": 0.01, "num_train_epochs": 1, "max_length": 2048, "warmup_ratio": 0.05}
    assert added.items() <= result.values.items()
    assert result.notices[1:] == [
        "split_dataset_ratio 0.01 added: the default before ms-swift 3.6",
        "num_train_epochs 1 added: the default before ms-swift 3.0",
        "max_length 2048 added: the default before ms-swift 3.0",
        "warmup_ratio 0.05 added: the default before ms-swift 3.0",
        "defaults that were different and are not set in this request: weight_decay 0.01 before 2.0, adam_beta2 0.999 before 2.3, "
        "max_grad_norm 0.5 from 1.4 to 2.2, lr_scheduler_type linear from 1.6 to 2.1, truncation_strategy left before "
        "1.4, target_modules the query, key and value layers. Set them to repeat a run from before ms-swift 3.0",
    ]
    assert result.origin["max_length"] == ("sft_type",)
    assert spelled(dataset="a.jsonl", train_type="lora").values.keys().isdisjoint(added)
    told = spelled(sft_type="lora", max_length=-1, max_steps=5, warmup_steps=0, val_dataset="v", dataset="a")
    assert told.values.keys().isdisjoint(added)


def test_settings_given_elsewhere_are_seen_but_not_translated() -> None:
    beside = {"warmup_steps": 5, "model_id_or_path": "a/b", "max_steps": 3, "val_dataset": "v.jsonl"}
    values = {"model_type": "qwen-7b-chat", "sft_type": "lora", "dataset": "d.jsonl"}
    result = translate(values, "sft", LINE, fields("sft"), beside)
    tuner = "tuner_type" if LINE == "v4" else "train_type"
    assert result.values == {tuner: "lora", "max_length": 2048, "dataset": "d.jsonl"}
    assert result.origin["max_length"] == ("sft_type",)
    late = translate({"max_steps": 3}, "sft", LINE, fields("sft"), values)
    assert late.values == {"max_steps": 3}


# ------------------------------------------------------------------------------------------ what cannot be


def test_two_names_for_one_setting() -> None:
    assert spelled(model_id_or_path="a/b", model="a/b").errors == []
    result = spelled(model="a/b", model_id_or_path="c/d", max_length=1)
    what = 'and "model_id_or_path" both set "model", to different values'
    assert result.errors == [("model", what, "Remove one of the two.")]


def test_gone_names_and_values() -> None:
    result = spelled(
        "rlhf", ref_model_free=True, max_prompt_length=512, train_dataset_sample="many", loss_type="long-ce"
    )
    assert result.warnings == [("max_prompt_length", "has no successor in ms-swift and is skipped")]
    assert result.errors == [
        ("train_dataset_sample", 'is not a number of rows: "many"', "Give a whole number."),
        (
            "ref_model_free",
            "has no successor in ms-swift, and without it the loss is different",
            'Remove it, or use rlhf_type "simpo" or "orpo", which need no reference model.',
        ),
        (
            "loss_type",
            'is "long-ce", which ms-swift no longer supports',
            "Remove it: ms-swift 3 removed this loss.",
        ),
    ]


@pytest.mark.swift4
def test_a_value_that_4_no_longer_has() -> None:
    do = "Remove it: ms-swift 4 does not learn from the teacher's answers."
    result = spelled("rlhf", seq_kd=True)
    assert result.errors == [("seq_kd", "is true, which ms-swift no longer supports", do)]
    assert spelled("rlhf", seq_kd=False).values == {"seq_kd": False}


def test_what_is_not_as_it_was() -> None:
    text = "was the query, key and value layers; ms-swift now trains all linear ones"
    result = spelled(lora_target_modules=["DEFAULT"], max_length=1, num_train_epochs=1, warmup_ratio=0)
    assert result.warnings == [("lora_target_modules", text)]
    assert "target_modules" not in result.values


def test_unknown_names() -> None:
    result = spelled(lora_rnak=8, cutoff_len=2048)
    assert result.unknown == ["lora_rnak", "cutoff_len"]
    assert result.values == {} and result.notices == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cutoff_len", Foreign("LLaMA-Factory", "max_length")),
        ("finetuning_type", Foreign("LLaMA-Factory", "train_type")),
        ("micro_batch_size", Foreign("Axolotl", "per_device_train_batch_size")),
        ("num_epochs", Foreign("Axolotl", "num_train_epochs")),
        ("base_model", Foreign("Axolotl", "model")),
        ("lora_r", Foreign("Axolotl", "lora_rank")),
        ("r", Foreign("PEFT", "lora_rank")),
        ("model_name_or_path", Foreign("TRL", "model")),
        ("shuffle_data", Foreign("other tools", "dataset_shuffle")),
        (
            "wandb_entity",
            Foreign("Axolotl", do="Set the environment variable WANDB_ENTITY."),
        ),
        ("lora_rank", None),
    ],
)
def test_names_of_other_tools(name: str, found: Foreign | None) -> None:
    assert foreign(name) == found


JSON = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
OLD_NAMES = sorted({old for _, old in rename_rows()})


@pytest.mark.parametrize("name", ["dataset", "val_dataset", "train_dataset_mix_ds"])
def test_a_data_set_that_is_not_text(name: str) -> None:
    (error,) = translate({name: [{"path": "a.jsonl"}]}, "sft", LINE, fields("sft")).errors
    assert error[:2] == (name, "has an entry that is not text")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(COMMANDS), st.dictionaries(st.sampled_from(OLD_NAMES), JSON, max_size=6))
def test_any_value_is_translated_or_refused(command: Command, values: dict[str, Any]) -> None:
    known = fields(command)
    result = translate(values, command, LINE, known)
    assert result.values.keys() <= known.keys()
    assert result.values.keys() == result.origin.keys()
    assert {name for name, *_ in (*result.errors, *result.warnings)} <= values.keys()  # each has a place
    for names in result.origin.values():
        assert names and set(names) <= values.keys()
    again = translate(result.values, command, LINE, known)
    assert not again.unknown
