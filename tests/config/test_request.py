"""From a request to exact arguments: precedence, presets, types, and the message for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.request import load_config
from swift_toolkit.machine import msswift
from swift_toolkit.problems import RequestError

BASE = {"model": "Qwen/Qwen2.5-7B-Instruct", "dataset": "AI-ModelScope/alpaca-gpt4-data-zh#1000"}


def problems_of(**settings: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_config({**BASE, **settings})
    return str(caught.value)


def values_of(source: Any = None, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    config = load_config(source if source is not None else BASE, overrides or {})
    return {name: setting.value for name, setting in config.settings.items()}


# --- precedence and sources ---------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({**BASE, "train_type": "full", "max_length": 512, "lr_scheduler_type": "linear"}, indent=1)
    )
    config = load_config(path, {"max-length": "1024"}, overrides_from="command line")
    found = {name: (setting.value, str(setting.source)) for name, setting in config.settings.items()}
    assert found == {
        "model": (BASE["model"], f"{path}:2"),
        "dataset": ([BASE["dataset"]], f"{path}:3"),
        "tuner_type": ("full", f"{path}:4"),
        "max_length": (1024, "command line"),
        "lr_scheduler_type": ("linear", f"{path}:6"),
        "learning_rate": (1e-5, "preset: full"),
    }
    assert config.preset == "full"


def test_null_leaves_a_setting_to_ms_swift() -> None:
    config = load_config({**BASE, "learning_rate": None, "use_cpu": None})
    assert "learning_rate" not in config.settings
    config.fill("use_cpu", True, "no accelerator found")
    assert "use_cpu" not in config.settings


def test_an_override_of_null_takes_back_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**BASE, "max_length": 512}))
    assert "max_length" not in load_config(path, {"max_length": None}).settings


def test_arguments_are_one_word_each_and_survive_a_leading_dash() -> None:
    config = load_config(
        {
            **BASE,
            "system": "- be brief",
            "dataset": ["a/b", "c/d"],
            "streaming": False,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 1e-6},
            "num_train_epochs": 3,
        }
    )
    arguments = config.arguments()
    assert "--system=- be brief" in arguments
    assert "--streaming=false" in arguments
    assert '--lr_scheduler_kwargs={"min_lr": 1e-06}' in arguments
    assert "--num_train_epochs=3" in arguments
    at = arguments.index("--dataset")
    assert arguments[at : at + 3] == ["--dataset", "a/b", "c/d"]


def test_max_memory_is_a_python_literal_with_numbers_of_devices() -> None:
    for given in ({"0": "20GB", "cpu": "9GB"}, "{0: '20GB', 'cpu': '9GB'}"):
        config = load_config({**BASE, "max_memory": given})
        assert "--max_memory={0: '20GB', 'cpu': '9GB'}" in config.arguments()


def test_fsdp2_needs_a_file_of_ms_swift() -> None:
    if msswift.installed().has_fsdp2:
        load_config({**BASE, "fsdp": "fsdp2"})
    else:
        said = problems_of(fsdp="fsdp2")
        assert said.startswith(
            '"fsdp" is "fsdp2", but ms-swift 3.12.6 lacks the file with its settings. Set it to'
        )


def test_variables_in_a_file_must_be_set_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**BASE, "ENV": {"SOME_VARIABLE": 1}}))
    with pytest.raises(RequestError, match="these environment variables before: SOME_VARIABLE"):
        load_config(path)
    monkeypatch.setenv("SOME_VARIABLE", "2")  # as ms-swift, which does not replace it
    load_config(path)


# --- presets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "preset", "expected"),
    [
        ({}, "lora", {"tuner_type": "lora", "learning_rate": 1e-4}),
        ({"train_type": "qlora"}, "qlora", {"tuner_type": "lora", "quant_method": "bnb", "quant_bits": 4}),
        ({"train_type": "qlora", "quant_bits": 8}, "qlora", {"quant_method": "bnb", "quant_bits": 8}),
        ({"preset": "qlora"}, "qlora", {"tuner_type": "lora", "quant_bits": 4, "learning_rate": 1e-4}),
        ({"quant_bits": 4}, "qlora", {"quant_method": "bnb"}),
        ({"train_type": "full"}, "full", {"tuner_type": "full", "learning_rate": 1e-5}),
        (
            {"preset": "multimodal"},
            "multimodal",
            {"tuner_type": "lora", "freeze_vit": True, "freeze_llm": False},
        ),
        ({"freeze_vit": False}, "multimodal", {"freeze_vit": False, "freeze_aligner": True}),
        (
            {"preset": "multimodal", "train_type": "full"},
            "multimodal",
            {"tuner_type": "full", "learning_rate": 1e-5},
        ),
        ({"train_type": "adalora"}, None, {"tuner_type": "adalora"}),
    ],
)
def test_presets(settings: dict[str, Any], preset: str | None, expected: dict[str, Any]) -> None:
    config = load_config({**BASE, **settings})
    assert config.preset == preset
    assert {name: config.get(name) for name in expected} == expected


def test_qlora_is_said() -> None:
    config = load_config({**BASE, "train_type": "qlora", "quant_bits": 8})
    assert config.notices == ['train_type "qlora" → tuner_type "lora", quant_method "bnb", quant_bits 8']


def test_multimodal_may_be_named_as_the_tuner() -> None:
    config = load_config({**BASE, "train_type": "multimodal"})
    assert (config.preset, config.tuner, config.get("freeze_vit")) == ("multimodal", "lora", True)
    assert config.notices == ['train_type "multimodal" → tuner_type "lora", preset "multimodal"']


@pytest.mark.parametrize(
    ("file", "flags", "preset", "bits"),
    [
        ({"preset": "lora"}, {"train_type": "qlora"}, "qlora", 4),
        ({"train_type": "qlora"}, {"preset": "lora"}, "lora", None),
        ({"preset": "lora"}, {"train_type": "full"}, "full", None),
        ({"train_type": "lora"}, {"preset": "full"}, "full", None),
        ({"preset": "multimodal"}, {"train_type": "full"}, "multimodal", None),
    ],
)
def test_of_preset_and_tuner_the_command_line_wins(
    file: dict[str, str], flags: dict[str, str], preset: str, bits: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**BASE, **file}))
    config = load_config(path, flags, overrides_from="command line")
    assert (config.preset, config.get("quant_bits")) == (preset, bits)
    assert config.tuner == ("full" if "full" in (*file.values(), *flags.values()) else "lora")


def test_an_overridden_qlora_leaves_no_quantisation_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**BASE, "train_type": "qlora"}))
    assert values_of(path, {"train_type": "full"}) == {
        **BASE,
        "dataset": [BASE["dataset"]],
        "tuner_type": "full",
        "learning_rate": 1e-5,
    }


# --- messages -----------------------------------------------------------------------------------------------

MESSAGES: list[tuple[dict[str, Any], str]] = [
    # names
    ({"lora_rnak": 8}, '"lora_rnak" is not a setting. Did you mean "lora_rank"?'),
    ({"zzz": 8}, '"zzz" is not a setting. Remove it.'),
    ({"weights_decay": 8}, '"weights_decay" is not a setting. Did you mean "weight_decay"?'),
    ({"optimiser": 8}, '"optimiser" is not a setting. Did you mean "optimizer"?'),
    ({"kwargs_scheduler_lr": 1}, '"kwargs_scheduler_lr" is not a setting. Did you mean "lr_scheduler_kwargs"?'),
    ({"cutoff_len": 8}, '"cutoff_len" is a name of LLaMA-Factory. In ms-swift it is "max_length".'),
    ({"finetuning_type": "lora"}, '"finetuning_type" is a name of LLaMA-Factory. In ms-swift it is "train_type".'),
    ({"micro_batch_size": 2}, '"micro_batch_size" is a name of Axolotl. In ms-swift it is "per_device_train_batch_size".'),
    ({"num_epochs": 2}, '"num_epochs" is a name of Axolotl. In ms-swift it is "num_train_epochs".'),
    ({"base_model": "m"}, '"base_model" is a name of Axolotl. In ms-swift it is "model".'),
    ({"r": 8}, '"r" is a name of PEFT. In ms-swift it is "lora_rank".'),
    # types
    ({"lora_rank": "eight"}, '"lora_rank" must be a number, not "eight".'),
    ({"lora_rank": 7.5}, '"lora_rank" must be a whole number, not 7.5.'),
    ({"lora_rank": True}, '"lora_rank" must be a number, not true.'),
    ({"lora_rank": [8, 16]}, '"lora_rank" takes one value, not 2.'),
    ({"lora_rank": ""}, '"lora_rank" is empty. Give a value, or remove it.'),
    ({"learning_rate": "fast"}, '"learning_rate" must be a number, not "fast".'),
    ({"packing": "maybe"}, '"packing" must be true or false, not "maybe".'),
    ({"system": {"a": 1}}, '"system" must be text, not {"a": 1}.'),
    ({"lr_scheduler_kwargs": "{broken"}, '"lr_scheduler_kwargs" is not valid JSON (expecting property name enclosed in double quotes).'),
    # choices
    ({"lr_scheduler_type": "cosin"}, '"lr_scheduler_type" cannot be "cosin". Did you mean "cosine"?'),
    ({"torch_dtype": "int4"}, '"torch_dtype" cannot be "int4". Use one of bfloat16, float16, float32.'),
    ({"train_type": "loraa"}, '"train_type" cannot be "loraa". Did you mean "lora"?'),
    ({"report_to": ["wandbb"]}, '"report_to" cannot be "wandbb". Did you mean "wandb"?'),
    ({"deepspeed": "zero4"}, '"deepspeed" cannot be "zero4". Did you mean "zero3"?'),
    ({"deepspeed": "ds.json"}, '"deepspeed" names the file "ds.json", which does not exist. Check the path.'),
    ({"truncation_strategy": "middle"}, '"truncation_strategy" cannot be "middle". Use one of delete, left, right, split.'),
    ({"preset": "lorra"}, '"preset" cannot be "lorra". Did you mean "lora"?'),
    ({"task": "dpoo"}, '"task" is "dpoo". Did you mean "dpo"?'),
    # numbers
    ({"learning_rate": 0}, '"learning_rate" is 0; it must be greater than 0.'),
    ({"learning_rate": 1e4}, '"learning_rate" is 10000, which would destroy the model. Was an exponent forgotten? Use e.g. 1e-4.'),
    ({"num_train_epochs": -1}, '"num_train_epochs" is -1; it must be greater than 0.'),
    ({"per_device_train_batch_size": 0}, '"per_device_train_batch_size" is 0; it must be greater than 0.'),
    ({"lora_rank": -8}, '"lora_rank" is -8; it must be greater than 0.'),
    ({"lora_dropout": 1.0}, '"lora_dropout" is 1; it must be at least 0 and below 1.'),
    ({"split_dataset_ratio": 1.5}, '"split_dataset_ratio" is 1.5; it must be at least 0 and below 1.'),
    ({"max_steps": 0}, '"max_steps" is 0; it must be greater than 0 (or -1: no limit).'),
    # presets and tuners
    ({"train_type": "full", "quant_bits": 4, "quant_method": "bnb", "lora_rank": 8}, "\n".join([
        '"quant_bits" cannot be used with preset "full", which trains unquantised weights. Remove it, or set "train_type" to "qlora".',
        '"quant_method" cannot be used with preset "full", which trains unquantised weights. Remove it, or set "train_type" to "qlora".',
        '"lora_rank" cannot be used with preset "full", which trains no adapter. Remove it, or set "train_type" to "lora".',
    ])),
    ({"preset": "lora", "freeze_vit": True}, '"freeze_vit" cannot be used with preset "lora", which trains text models; preset "multimodal" takes it. Remove it, or choose another preset.'),
    ({"preset": "lora", "train_type": "qlora"}, '"train_type" is "qlora", but preset "lora" takes "lora". Change one of the two.'),
    ({"optim": "adamw"}, '"optim" cannot be "adamw". Did you mean "adamw_torch"?'),
    ({"preset": "qlora", "train_type": "full"}, '"train_type" is "full", but preset "qlora" takes "lora". Change one of the two.'),
    ({"train_type": "qlora", "quant_method": "hqq", "quant_bits": 4}, '"quant_method" is "hqq", but preset "qlora" uses bnb. Remove it, or set "preset" to "lora" to use it.'),
    ({"train_type": "qlora", "quant_bits": 2}, '"quant_bits" is 2, but bnb supports only 4 and 8. Use 4 or 8.'),
    ({"train_type": "adalora", "quant_bits": 4}, '"quant_bits" is 4 without "quant_method": ms-swift would ignore it. Add "quant_method".'),
    # together
    ({"warmup_ratio": 0.1, "warmup_steps": 10}, '"warmup_steps" cannot be used with "warmup_ratio". Keep one of the two.'),
    ({"streaming": True}, '"streaming" needs "max_steps". Add "max_steps": the length of a stream is not known.'),
    ({"packing": True}, '"packing" needs flash attention. Add "attn_impl": "flash_attn".'),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, '"lr_scheduler_type" needs validation data, but there is none. Add "val_dataset" or "split_dataset_ratio", or remove it.'),
    ({"load_best_model_at_end": True, "split_dataset_ratio": 0.1, "eval_steps": 30, "save_steps": 100}, '"save_steps" is 100, not a multiple of eval_steps 30. With "load_best_model_at_end" it must be.'),
    ({"fp16": True, "bf16": True}, '"fp16" cannot be used with "bf16". Keep one of the two.'),
    ({"external_plugins": ["plugin.py"]}, '"external_plugins" names the file "plugin.py", which does not exist. Check the path.'),
    # secrets and packages
    ({"hub_token": "hf_abc"}, '"hub_token" is a secret, and ms-swift writes it in plain text to its log and args.json. Remove it and set the environment variable MODELSCOPE_API_TOKEN or HF_TOKEN.'),
    ({"model_kwargs": {"Api-Key": "abc-123"}}, '"model_kwargs" holds a secret under "Api-Key", and ms-swift writes it in plain text to its log and args.json. Remove it and set the environment variable API_KEY.'),
    ({"model_kwargs": {"my_token": "abc-123"}}, '"model_kwargs" holds a secret under "my_token", and ms-swift writes it in plain text to its log and args.json. Remove it and set the environment variable MY_TOKEN.'),
    ({"dataset": "https://me:word@host/a.jsonl"}, '"dataset" holds a secret in a URL, and ms-swift writes it in plain text to its log and args.json. Remove it; ~/.netrc can hold user and password.'),
    ({"report_to": "swanlab"}, '"report_to" needs the package swanlab, which is not installed. Run: pip install swanlab'),
    ({"attn_impl": "flash_attn"}, '"attn_impl" needs the package flash-attn, which is not installed. Run: pip install flash-attn --no-build-isolation'),
    ({"model": None, "dataset": None}, '"model" is missing. Give a model, e.g. "Qwen/Qwen2.5-7B-Instruct".\n"dataset" is missing. Give a data file or data set, e.g. "data/train.jsonl".'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"), MESSAGES, ids=[" ".join(settings) for settings, _ in MESSAGES]
)
def test_messages(settings: dict[str, Any], message: str) -> None:
    assert problems_of(**settings) == message


def test_every_problem_of_a_file_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: a/b\ndataset: c/d\nlora_rnak: 8\nlearning_rate: 10\nlr_scheduler_type: cosin\n")
    with pytest.raises(RequestError) as caught:
        load_config(path, {"max-lenght": "5"}, overrides_from="command line")
    assert str(caught.value).splitlines() == [
        f'{path}:3: "lora_rnak" is not a setting. Did you mean "lora_rank"?',
        '"--max-lenght" is not a setting. Did you mean "--max_length"?',
        f'{path}:5: "lr_scheduler_type" cannot be "cosin". Did you mean "cosine"?',
        f'{path}:4: "learning_rate" is 10, which would destroy the model. Was an exponent forgotten? Use e.g. 1e-4.',
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("eval_steps", 100), ("eval_strategy", "steps"), ("early_stop_interval", 2)]
)
def test_evaluation_without_validation_data_is_only_said(name: str, value: object) -> None:
    config = load_config({**BASE, name: value})
    assert config.notices == []
    assert [str(warning) for warning in config.warnings] == [
        f'"{name}" has no effect: there is no validation data, so nothing is evaluated.'
    ]


# --- older names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sft_type": "full"}, {"tuner_type": "full"}),
        ({"quantization_bit": 4}, {"quant_bits": 4, "quant_method": "bnb", "tuner_type": "lora"}),
        ({"load_in_4bit": True}, {"quant_bits": 4, "quant_method": "bnb"}),
        ({"dtype": "bf16"}, {"torch_dtype": "bfloat16"}),
        ({"use_flash_attn": False}, {"attn_impl": "sdpa"}),
        ({"batch_size": 2}, {"per_device_train_batch_size": 2}),
        ({"lora_target_modules": "ALL"}, {"target_modules": ["all-linear"]}),
    ],
)
def test_older_names_are_translated_with_a_notice(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    config = load_config({**BASE, **settings})
    assert {name: config.get(name) for name in expected} == expected
    assert config.notices[0].startswith(next(iter(settings)))


def test_an_old_qlora_brings_the_old_defaults_as_they_are() -> None:
    config = load_config({"model_id_or_path": "a/b", "sft_type": "qlora", "dataset": "c/d"})
    assert (config.preset, config.tuner) == ("qlora", "lora")
    assert (config.get("warmup_ratio"), config.get("quant_bits"), config.get("max_length")) == (0.05, 4, 2048)
    assert str(config.settings["warmup_ratio"].source) == "automatic: the default before ms-swift 3.0"


def test_an_old_name_by_habit_changes_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**BASE, "train_type": "lora", "num_train_epochs": 3}))
    config = load_config(path, {"sft_type": "full"}, overrides_from="command line")
    assert config.notices == ["sft_type → tuner_type"]
    assert {name: setting.value for name, setting in config.settings.items()} == {
        "model": BASE["model"],
        "dataset": [BASE["dataset"]],
        "tuner_type": "full",
        "num_train_epochs": 3,
        "learning_rate": 1e-5,
    }


def test_a_request_of_before_3_0_keeps_its_defaults() -> None:
    config = load_config({"model_id_or_path": "Qwen/Qwen-7B-Chat", "dataset": "a/b", "sft_type": "lora"})
    assert config.get("num_train_epochs") == 1
    assert any(line.startswith("num_train_epochs 1 added") for line in config.notices)


def test_null_and_an_empty_list_leave_a_setting_to_ms_swift() -> None:
    config = load_config({**BASE, "target_modules": [], "train_type": None, "sft_type": None, "system": None})
    assert not {"target_modules", config.tuner_name, "system"} & config.settings.keys()
    assert {"target_modules", config.tuner_name, "system"} <= config.left_alone
    assert problems_of(lora_rnak=None) == '"lora_rnak" is not a setting. Did you mean "lora_rank"?'


@pytest.mark.parametrize(
    ("settings", "dropped"),
    [
        ({"hub_token": "your-sdk-token"}, True),
        ({"hub_token": "<token>"}, True),
        ({"hub_token": "abc", "push_to_hub": "false"}, True),
        ({"hub_token": "abc"}, False),
        ({"hub_token": "your-sdk-token", "push_to_hub": "true"}, False),
    ],
)
def test_a_token_that_is_of_no_use_is_dropped(settings: dict[str, Any], dropped: bool) -> None:
    if dropped:
        config = load_config({**BASE, **settings})
        assert "hub_token" not in config.settings
        assert config.notices == ["hub_token is dropped: nothing is pushed to a hub"]
    else:
        assert '"hub_token" is a secret' in problems_of(**settings)


def test_what_launches_processes_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems_of(NPROC_PER_NODE=2) == (
        '"NPROC_PER_NODE" is not a setting. '
        "Set it in the environment (NPROC_PER_NODE=...) or on the command line (--nproc-per-node ...)."
    )
    assert problems_of(MAX_PIXELS=1003520) == (
        '"MAX_PIXELS" is not a setting. Did you mean "max_pixels"? '
        "If it is an environment variable, set it before the command: MAX_PIXELS=... python ..."
    )


def test_versions_that_ms_swift_does_not_accept_are_named_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(msswift.version_problems()) == []
    for name in ("trl-99.1", "peft-0.1", "Datasets-4.1"):
        (tmp_path / f"{name}.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    swift = msswift.installed().version
    found = problems_of(model="a/b", dataset="c/d", lora_rnak=8).splitlines()
    ours = [line for line in found if " is installed, but " in line]
    assert [line.partition(", but ")[0] for line in ours][:2] == [
        "peft 0.1 is installed",
        "trl 99.1 is installed",
    ]
    assert f", but ms-swift {swift} needs trl<" in ours[1]
    assert ours[1].endswith('"trl<1.0,>=0.15"' if swift == "4.6.0" else '"')
    assert any("lora_rnak" in line for line in found)  # with everything else that is wrong


@pytest.mark.parametrize(
    ("name", "settings"),
    [("datasets", {}), ("accelerate", {}), ("torch", {}), ("trl", {"task": "dpo"})],
)
def test_packages_that_are_missing_are_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # importlib.util.find_spec then finds nothing
    found = problems_of(model="a/b", dataset="c/d", **settings).splitlines()
    start = f'{name} is not installed, but ms-swift needs it. Run: pip install "{name}'
    assert any(line.startswith(start) for line in found)


def test_sft_does_not_need_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert list(msswift.missing_problems("sft")) == []


@pytest.mark.parametrize(("module", "package"), [("msgspec", "msgspec"), ("ruamel.yaml", "ruamel.yaml")])
def test_a_missing_package_of_our_own_is_named(tmp_path: Path, module: str, package: str) -> None:
    (tmp_path / "config.yaml").write_text("model: a/b\ndataset: data/self_cognition.jsonl")
    code = f"import sys; sys.modules[{module!r}] = None; import finetune_trainer; "
    code += "sys.exit(finetune_trainer.main(sys.argv[1:]))"
    words = ["--config", str(tmp_path / "config.yaml"), "--dry-run"]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert run.stderr == f"{package.partition('.')[0]} is not installed. Run: pip install {package}\n"


def test_full_training_from_the_weights_of_a_checkpoint_needs_no_other_model() -> None:
    settings = {
        "dataset": BASE["dataset"],
        "resume_from_checkpoint": "output/v0/checkpoint-2",
        "resume_only_model": True,
    }
    assert load_config({**settings, "train_type": "full"}).get("model") == "output/v0/checkpoint-2"
    for missing in ({"train_type": "lora"}, {"train_type": "full", "resume_only_model": False}):
        with pytest.raises(RequestError, match='"model" is missing'):
            load_config({**settings, **missing})
