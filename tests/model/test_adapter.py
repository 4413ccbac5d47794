"""Adapters that do not fit their base, or are no weights at all, are refused before anything is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from swift_toolkit.model.checkpoints.adapter import OWN_BASE, adapter_fit
from swift_toolkit.model.checkpoints.recorded import RecordedArguments
from swift_toolkit.model.files import adapter_problems
from tests.adapters import make_adapter

PREFIX = "base_model.model.model.layers"
FIRST = f"{PREFIX}.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_model, tmp_path / "adapter", 1)


def change(path: Path, **changes: Any) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | changes))


def rewrite(path: Path, make: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = path / "adapter_model.safetensors"
    save_file(make(load_file(file)), file)


def said(path: Path, base: Path, **args: Any) -> list[str]:
    return [str(problem) for problem in adapter_fit(path, base, RecordedArguments(**args))]


def test_an_adapter_of_its_base(adapter: Path, tiny_model: Path) -> None:
    assert said(adapter, tiny_model) == []


def test_layers_of_another_architecture(adapter: Path, tiny_model: Path) -> None:
    rewrite(
        adapter, lambda old: {name.replace(".layers", ".language_model.layers"): old[name] for name in old}
    )
    (problem,) = said(adapter, tiny_model)
    layer = "layers.0.self_attn.q_proj"
    assert problem == (
        f"{adapter} was not trained from {tiny_model}: none of the 4 layers of the adapter, e.g. "
        f"model.language_model.{layer}, is in the model, which has model.{layer}. {OWN_BASE}"
    )


def test_transformers_renames_the_parts_of_a_model_that_sees(
    adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The files of Qwen2.5-VL say model.layers where the loaded model has model.language_model.layers."""
    base = tmp_path / "vl"
    base.mkdir()
    (base / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "x", "vision_config": {"depth": 1}}))
    rewrite(
        adapter, lambda old: {name.replace(".layers", ".language_model.layers"): old[name] for name in old}
    )
    assert said(adapter, base) == []


def test_more_layers_than_the_base_has(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: {**old, **{name.replace("layers.1", "layers.2"): old[name] for name in old}})
    (problem,) = said(adapter, tiny_model)
    assert (
        f"model.layers.2.self_attn.q_proj and 1 more of its layers are not in the model. {OWN_BASE}"
        in problem
    )


def test_gpt2_leaves_its_outermost_name_out_of_its_files(tmp_path: Path) -> None:
    base, path = tmp_path / "gpt2", tmp_path / "adapter"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"h.0.attn.c_attn.weight": numpy.zeros((4, 12), "float32")}, base / "model.safetensors")
    path.mkdir()
    layer = "base_model.model.transformer.h.0.attn.c_attn"
    pair = {"lora_A": (8, 4), "lora_B": (12, 8)}
    save_file(
        {f"{layer}.{name}.weight": numpy.ones(shape, "float32") for name, shape in pair.items()},
        path / "adapter_model.safetensors",
    )
    (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    assert said(path, base) == []


def test_weights_that_zero3_left_empty(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: dict.fromkeys(old, numpy.zeros(0, "float32")))
    (problem,) = said(adapter, tiny_model)
    assert problem == (
        f"{adapter} has empty weights: 8 of its 8 tensors have the shape [0]. They were saved under DeepSpeed ZeRO-3 "
        "without being gathered: use another checkpoint."
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_weights_that_are_not_numbers(adapter: Path, tiny_model: Path, value: float, kind: str) -> None:
    rewrite(adapter, lambda old: {name: numpy.full_like(old[name], value, dtype=kind) for name in old})
    (problem,) = said(adapter, tiny_model)
    assert "holds values that are not numbers (NaN or infinite), e.g. in base_model.model." in problem


def test_bfloat16_that_is_not_a_number(tmp_path: Path) -> None:
    for value, count in ((0x7FC0, 1), (0x7F7F, 0)):  # NaN; the largest number
        entry = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}
        header = json.dumps({FIRST: entry}).encode()
        content = struct.pack("<Q", len(header)) + header + struct.pack("<4H", 1, 2, 3, value)
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
        assert len(list(adapter_fit(tmp_path, None, RecordedArguments()))) == count


def test_another_rank_than_the_configuration_says(adapter: Path, tiny_model: Path) -> None:
    change(adapter, r=16)
    (problem,) = said(adapter, tiny_model)
    assert problem.startswith(f"{adapter}/adapter_config.json says rank 16, but base_model.model.")
    change(adapter, rank_pattern={"q_proj": 8, "v_proj": 8})
    assert said(adapter, tiny_model) == []


def test_an_embedding_with_more_tokens_than_the_base(adapter: Path, tiny_model: Path) -> None:
    rows = numpy.zeros((49160, 64), "float32")
    rewrite(adapter, lambda old: {**old, "base_model.model.model.embed_tokens.weight": rows})
    (problem,) = said(adapter, tiny_model)
    assert "model.embed_tokens is 49160 x 64 in the adapter and 49152 x 64 in the model" in problem
    assert said(adapter, tiny_model, new_special_tokens=["<a>"]) == []


def test_a_head_that_was_made_for_the_task(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: {**old, "base_model.model.score.weight": numpy.zeros((2, 64), "float32")})
    assert said(adapter, tiny_model) == []


def wrapped(name: str, prefix: str = "base_model.model.") -> str:
    return name.replace("base_model.model.", prefix)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: wrapped(name, "base_model.model._orig_mod."),  # torch.compile
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",  # data parallelism
        lambda name: wrapped(name, ""),
        lambda name: name.replace(".weight", ".default.weight"),  # state_dict() instead of save_pretrained()
        lambda name: name.replace("lora_A", "lora_a").replace("lora_B", "lora_b"),
        lambda name: name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."),  # diffusers
    ],
)
def test_names_of_weights_that_peft_does_not_load(
    adapter: Path, tiny_model: Path, rename: Callable[[str], str]
) -> None:
    rewrite(adapter, lambda old: {rename(name): old[name] for name in old})
    (problem,) = said(adapter, tiny_model)
    assert problem == (
        f"{adapter} was not saved by PEFT, which would not load 8 of its 8 weights, e.g. {rename(FIRST)}: "
        "PEFT's names are like base_model.model.<layer>.lora_A.weight. Save it with PEFT (save_pretrained), or rename "
        "its weights."
    )


def test_a_name_too_long_by_one_module(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: {wrapped(name, "base_model.model.model."): old[name] for name in old})
    (problem,) = said(adapter, tiny_model)
    assert "none of the 4 layers of the adapter, e.g. model.model.layers.0.self_attn.q_proj" in problem


def test_a_model_without_its_head_has_shorter_names(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: {name.replace(".model.layers", ".layers"): old[name] for name in old})
    (problem,) = said(adapter, tiny_model)
    assert "none of the 4 layers" in problem
    change(adapter, task_type="FEATURE_EXTRACTION")
    assert said(adapter, tiny_model) == []


def test_weights_of_another_type_of_adapter_have_other_names(adapter: Path, tiny_model: Path) -> None:
    vera = {f"base_model.vera_{one}": numpy.ones((4, 64), "float32") for one in "AB"}
    vectors = {f"{PREFIX}.0.self_attn.q_proj.vera_lambda_{one}": numpy.ones(4, "float32") for one in "bd"}
    rewrite(adapter, lambda old: vera | vectors)
    change(adapter, peft_type="VERA")
    assert said(adapter, tiny_model) == []


def test_a_file_without_weights(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: {})
    assert said(adapter, tiny_model) == [
        f"{adapter} holds no weights: its file lists no tensor. Use another checkpoint."
    ]


def test_a_second_file_is_not_loaded(adapter: Path, tiny_model: Path) -> None:
    save_file({FIRST: numpy.zeros(0, "float32")}, adapter / "optimizer.safetensors")
    assert said(adapter, tiny_model) == []


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("r", "8", "a whole number of at least 1"),
        ("r", 8.0, "a whole number of at least 1"),
        ("r", None, "a whole number of at least 1"),
        ("lora_alpha", "16", "a number other than 0"),
        ("lora_alpha", 0, "a number other than 0"),
        ("lora_dropout", "0.1", "a number from 0 to 1"),
        ("lora_dropout", 2, "a number from 0 to 1"),
        ("bias", "some", '"none", "all" or "lora_only"'),
        ("rank_pattern", None, "an object with whole numbers"),
        ("rank_pattern", {"q_proj": "8"}, "an object with whole numbers"),
        ("alpha_pattern", {"q_proj": "32"}, "an object with numbers"),
        ("use_dora", "false", "true or false"),
        ("modules_to_save", "lm_head", "a list of strings"),
        ("target_modules", {"q_proj": 1}, "a string or a list of strings"),
    ],
)
def test_values_that_peft_cannot_use(
    adapter: Path, tiny_model: Path, key: str, value: object, rule: str
) -> None:
    change(adapter, **{key: value})
    shown = json.dumps(value)
    assert said(adapter, tiny_model) == [
        f'{adapter}/adapter_config.json has "{key}": {shown}, which must be {rule}. Correct it.'
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 16.5},
        {"lora_dropout": 0},
        {"task_type": None},
        {"target_modules": None},
        {"init_lora_weights": "pissa_niter_4"},
        {"a_key_of_tomorrow": {"a": 1}},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.self_attn\.[qv]_proj"},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        {"modules_to_save": ["score"]},
    ],
)
def test_values_that_peft_can_use(adapter: Path, tiny_model: Path, changes: dict[str, Any]) -> None:
    change(adapter, **changes)
    assert said(adapter, tiny_model) == []


def test_names_that_the_installed_peft_lacks(adapter: Path, tiny_model: Path) -> None:
    file = f"{adapter}/adapter_config.json"
    change(adapter, task_type="CAUSAL_LN", init_lora_weights="kaiming")
    assert said(adapter, tiny_model) == [
        f'{file} has "init_lora_weights": "kaiming", which the installed PEFT does not have. '
        "Set it to true: the weights are already trained.",
        f'{file} has "task_type": "CAUSAL_LN", which the installed PEFT does not have. Did you mean "CAUSAL_LM"?',
    ]


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"target_modules": ["q_proj"]}, "0.self_attn.v_proj and 1 more of the layers"),
        ({"target_modules": ["k_proj", "o_proj"]}, "0.self_attn.q_proj and 3 more of the layers"),
        ({"target_modules": "q_proj"}, "0.self_attn.q_proj and 3 more of the layers"),
        ({"exclude_modules": ["layers.0.self_attn.v_proj"]}, "0.self_attn.v_proj, one of the layers"),
        ({"layers_to_transform": [0]}, "1.self_attn.q_proj and 1 more of the layers"),
        ({"layers_to_transform": 0, "layers_pattern": ["h"]}, "0.self_attn.q_proj and 3 more of the layers"),
    ],
)
def test_targets_that_leave_out_layers_of_the_adapter(
    adapter: Path, tiny_model: Path, changes: dict[str, Any], lost: str
) -> None:
    change(adapter, **changes)
    (problem,) = said(adapter, tiny_model)
    assert (
        f"which leaves out model.layers.{lost} that the weights are for. Use the adapter_config.json"
        in problem
    )


def test_a_block_that_the_adapter_has_lost(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: {name: old[name] for name in old if "layers.1" not in name})
    (problem,) = said(adapter, tiny_model)
    layer = "model.layers.1.self_attn.q_proj"
    assert problem.startswith(
        f'{adapter} is not whole: "target_modules" names {layer} and 1 more layers, which'
    )
    change(adapter, layers_to_transform=[0])
    assert said(adapter, tiny_model) == []


def test_blocks_that_the_adapter_repeats(adapter: Path, tiny_model: Path) -> None:
    """``layer_replication`` makes a deeper model of the base when it is loaded."""
    rewrite(adapter, lambda old: {**old, **{name.replace("layers.1", "layers.2"): old[name] for name in old}})
    change(adapter, layer_replication=[[0, 2], [1, 2]])
    assert said(adapter, tiny_model) == []


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_fully_trained_layers_that_were_not_saved(adapter: Path, tiny_model: Path, module: str) -> None:
    change(adapter, modules_to_save=[module])
    (problem,) = said(adapter, tiny_model)
    assert problem == (
        f'{adapter} is not whole: "modules_to_save" names {module}, which it has no weights for. Download it again, or '
        "use another checkpoint."
    )
    name = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}[module]
    rows = numpy.zeros((49152, 64), "float32")
    rewrite(adapter, lambda old: {**old, f"base_model.model.{name}.weight": rows})
    assert said(adapter, tiny_model) == []


def test_matrices_of_an_embedding_with_another_vocabulary(adapter: Path, tiny_model: Path) -> None:
    pair = {"lora_embedding_A": (8, 49160), "lora_embedding_B": (64, 8)}
    more = {
        f"base_model.model.model.embed_tokens.{name}": numpy.ones(shape, "float32")
        for name, shape in pair.items()
    }
    rewrite(adapter, lambda old: old | more)
    change(adapter, target_modules=["q_proj", "v_proj", "embed_tokens"])
    (problem,) = said(adapter, tiny_model)
    assert "model.embed_tokens is 49160 x 64 in the adapter and 49152 x 64 in the model" in problem


def test_magnitudes_that_the_configuration_does_not_know(adapter: Path, tiny_model: Path) -> None:
    name = FIRST.replace("lora_A.weight", "lora_magnitude_vector")
    rewrite(adapter, lambda old: {**old, name: numpy.ones(64, "float32")})
    (problem,) = said(adapter, tiny_model)
    assert 'does not say "use_dora", but the weights hold magnitudes' in problem


@pytest.mark.parametrize(
    ("kind", "bits"), [("F64", 0x7FF8_0000_0000_0000), ("F8_E4M3", 0x7F), ("F8_E5M2", 0x7E)]
)
def test_other_types_that_are_not_numbers(tmp_path: Path, kind: str, bits: int) -> None:
    size = 8 if kind == "F64" else 1
    for value, count in ((bits, 1), (0x3C, 0)):
        entry = {"dtype": kind, "shape": [1, 1], "data_offsets": [0, size]}
        header = json.dumps({FIRST: entry}).encode()
        content = struct.pack("<Q", len(header)) + header + value.to_bytes(size, "little")
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
        assert len(list(adapter_fit(tmp_path, None, RecordedArguments()))) == count


def test_both_matrices_of_a_large_adapter_are_checked(tmp_path: Path) -> None:
    weights = {
        f"{PREFIX}.{layer}.mlp.up_proj.lora_{one}.weight": numpy.full((2, 2), value, "float32")
        for layer in range(96)
        for one, value in (("A", 1.0), ("B", numpy.nan))
    }
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (problem,) = said(tmp_path, tmp_path / "no-base")
    assert "holds values that are not numbers (NaN or infinite)" in problem


def as_bin(path: Path, nested: bool = False) -> None:
    import torch

    file = path / "adapter_model.safetensors"
    weights: dict[str, Any] = {name: torch.from_numpy(one) for name, one in load_file(file).items()}
    torch.save({"state_dict": weights} if nested else weights, path / "adapter_model.bin")
    file.unlink()


def test_weights_in_a_file_of_torch(adapter: Path, tiny_model: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    as_bin(adapter)
    assert said(adapter, tiny_model) == []
    change(adapter, r=16)
    assert "says rank 16, but base_model.model.model.layers" in said(adapter, tiny_model)[0]
    change(adapter, r=8)
    changes: list[tuple[str, Callable[[str, Any], tuple[str, Any]]]] = [
        ("holds values that are not numbers", lambda name, one: (name, numpy.full_like(one, numpy.nan))),
        ("none of the 4 layers", lambda name, one: (name.replace("model.layers", "transformer.h"), one)),
        ("8 of its 8 tensors have the shape [0]", lambda name, one: (name, numpy.zeros(0, "float32"))),
    ]
    for what, make in changes:
        file.write_bytes(whole)
        rewrite(adapter, lambda old, make=make: dict(make(name, old[name]) for name in old))
        as_bin(adapter)
        (problem,) = said(adapter, tiny_model)
        assert what in problem
    file.write_bytes(whole)
    as_bin(adapter, nested=True)
    assert "holds no weights: its file lists no tensor" in said(adapter, tiny_model)[0]


def test_a_base_in_a_file_of_torch(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text((tiny_model / "config.json").read_text())
    weights = {
        name: torch.from_numpy(one) for name, one in load_file(tiny_model / "model.safetensors").items()
    }
    torch.save(weights, base / "pytorch_model.bin")
    assert said(adapter, base) == []
    torch.save(
        {name.replace("q_proj", "wq"): one for name, one in weights.items()}, base / "pytorch_model.bin"
    )
    (problem,) = said(adapter, base)
    assert "model.layers.0.self_attn.q_proj and 1 more of its layers are not in the model" in problem


def test_what_is_there_instead_of_the_weights(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.unlink()
    none = f"{adapter} has no weights: neither adapter_model.safetensors nor adapter_model.bin is there"
    (adapter / "model.safetensors").write_bytes(whole)
    (problem,) = map(str, adapter_problems(adapter))
    advice = "If these are the adapter's weights, rename it to adapter_model.safetensors."
    assert problem == f"{none}, but model.safetensors. {advice}"
    (adapter / "model.safetensors").rename(adapter / "adapter_model-00001-of-00002.safetensors")
    (adapter / "adapter_model-00002-of-00002.safetensors").write_bytes(whole)
    (problem,) = map(str, adapter_problems(adapter))
    assert problem.endswith("PEFT loads one file: merge them into adapter_model.safetensors.")
    file.symlink_to("../../blobs/0123")
    (problem,) = map(str, adapter_problems(adapter))
    assert problem == f"{file} is a link to ../../blobs/0123, which does not exist. Download it again."


def test_a_byte_order_mark(adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert [str(problem) for problem in adapter_problems(adapter)] == [
        f"{file} begins with a byte order mark, which transformers and PEFT do not accept. "
        "Save it as UTF-8 without BOM."
    ]
