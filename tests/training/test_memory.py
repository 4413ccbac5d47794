"""The memory estimate: part by part by the papers' formulas, and as a whole by figures that others published."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.request import load_config
from swift_toolkit.machine.device import GIB, Device
from swift_toolkit.model import size
from swift_toolkit.training.memory import activations, estimate
from swift_toolkit.training.memory.estimate import Estimate
from swift_toolkit.training.memory.run import MemoryRun, Rows
from swift_toolkit.training.preflight import check_data
from tests.training.test_automatic import planned

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import memory_estimate

SHAPE = size.find_shape("Qwen/Qwen2.5-7B-Instruct")
assert SHAPE is not None
WEIGHTS = SHAPE.parameters
ROWS = Rows(1000, 200, 1000, seen=True)


def run(world: int = 1, devices: int = 1, rows: Rows = ROWS, **settings: Any) -> MemoryRun:
    assert SHAPE is not None
    return MemoryRun({"torch_dtype": "bfloat16", **settings}, SHAPE, rows, devices=devices, world=world)


def parts(request: MemoryRun) -> dict[str, int]:
    return dict(estimate.estimate(request).parts)


def total(request: MemoryRun) -> float:
    return estimate.estimate(request).total / GIB


def test_the_published_figures() -> None:
    figures = list(memory_estimate.published())
    assert len(figures) == 39
    assert all(figure.estimated for figure in figures)
    assert memory_estimate.within(figures, 0.25) >= 0.7
    assert memory_estimate.within(figures, 0.5) >= 0.9


# --- weights, gradients, states -----------------------------------------------------------------------------


def test_full_training_in_bfloat16_takes_8_bytes_a_weight() -> None:
    found = parts(run(tuner_type="full"))
    assert (found["weights"], found["gradients"], found["optimiser"]) == (
        2 * WEIGHTS,
        2 * WEIGHTS,
        4 * WEIGHTS,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_full_training_in_other_types_takes_16(dtype: str) -> None:
    found = parts(run(tuner_type="full", torch_dtype=dtype))
    assert found["weights"] + found["gradients"] + found["optimiser"] == 16 * WEIGHTS


@pytest.mark.parametrize(
    ("deepspeed", "weights", "gradients", "optimiser"),
    [("zero0", 2, 6, 12), ("zero1", 2, 6, 3), ("zero2", 2, 1.5, 3), ("zero3", 0.5, 1, 3)],
)
def test_what_each_stage_of_zero_divides_among_four(
    deepspeed: str, weights: float, gradients: float, optimiser: float
) -> None:
    found = parts(run(world=4, tuner_type="full", deepspeed=deepspeed))
    live = 2e9 if deepspeed == "zero3" else 0
    bucket = 4e8 if deepspeed in ("zero1", "zero2") else 0
    assert found["weights"] == pytest.approx(weights * WEIGHTS + live)
    assert found["gradients"] == pytest.approx(gradients * WEIGHTS + bucket)
    assert found["optimiser"] == pytest.approx(optimiser * WEIGHTS)


def test_offloading_moves_states_and_weights_to_the_machine() -> None:
    two, three = (
        estimate.estimate(run(world=2, tuner_type="full", deepspeed=f"zero{n}_offload")) for n in (2, 3)
    )
    assert "optimiser" not in two.parts
    assert two.parts["weights"] == 2 * WEIGHTS
    assert three.parts["weights"] == 2e9  # what is gathered at once
    assert two.host == pytest.approx((1 + 2 + 6) * WEIGHTS, rel=0.4)
    assert three.host > two.host - 2 * WEIGHTS


def test_a_deepspeed_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}')
    own = estimate.estimate(run(world=2, tuner_type="full", deepspeed=str(file)))
    assert own.host
    assert own.parts["weights"] == parts(run(world=2, tuner_type="full", deepspeed="zero3"))["weights"]


def test_ddp_keeps_a_second_copy_of_gradients_and_fsdp_divides_all() -> None:
    one, two = parts(run(tuner_type="full")), parts(run(world=2, tuner_type="full"))
    assert two["gradients"] == 2 * one["gradients"]
    four = parts(run(world=4, tuner_type="full", fsdp="fsdp2"))
    assert four["gradients"] + four["optimiser"] == pytest.approx(14 / 4 * WEIGHTS)
    assert four["weights"] < one["weights"] / 2


def test_a_spread_model_is_divided_among_the_devices_of_one_process() -> None:
    assert parts(run(devices=4, device_map="auto"))["weights"] == pytest.approx(WEIGHTS / 2, abs=1)


@pytest.mark.parametrize(("bits", "stored"), [(4, 4.127), (8, 8.03)])
def test_quantised_weights(bits: int, stored: float) -> None:
    assert SHAPE is not None
    found = parts(run(quant_bits=bits, quant_method="bnb"))
    linear = WEIGHTS - SHAPE.embeddings
    dequantised = 2 * SHAPE.text.hidden * SHAPE.text.inner
    expected = 2 * SHAPE.embeddings + linear * stored / 8 + dequantised
    assert found["weights"] + found["quantisation"] == pytest.approx(expected, abs=2)


def test_a_lora_adapter_is_counted_by_its_two_factors() -> None:
    # Qwen2.5-7B, rank 8, all linear layers: 20.19 million, as peft counts them
    assert parts(run(lora_rank=8))["adapter"] == pytest.approx(4 * 20.19e6, rel=0.001)
    assert parts(run(lora_rank=16))["adapter"] == 2 * parts(run(lora_rank=8))["adapter"]


def test_the_reference_model_of_preference_training() -> None:
    dpo = {"command": "rlhf", "rlhf_type": "dpo"}
    assert parts(run(tuner_type="full", **dpo))["other models"] == 2 * WEIGHTS
    assert "other models" not in parts(run(**dpo))  # the model without its adapter
    assert "other models" not in parts(run(tuner_type="full", command="rlhf", rlhf_type="simpo"))
    assert estimate.estimate(run(**dpo)).tokens == 2 * estimate.estimate(run()).tokens
    assert (
        estimate.estimate(run(command="rlhf")).tokens == estimate.estimate(run(**dpo)).tokens
    )  # the default


def test_the_teacher_takes_its_own() -> None:
    asked = {"model": "Qwen/Qwen2.5-0.5B", "dataset": "a/b", "rlhf_type": "gkd"}
    request = load_config({**asked, "teacher_model": "Qwen/Qwen2.5-7B"})
    found = planned(request, Device("cuda")).memory_run
    assert found is not None
    assert estimate.estimate(found).parts["other models"] == 2 * WEIGHTS


# --- activations and logits ---------------------------------------------------------------------------------


def test_checkpointing_keeps_the_inputs_of_layers_only() -> None:
    assert SHAPE is not None
    with_it, without = (parts(run(gradient_checkpointing=on))["activations"] for on in (True, False))
    kept = SHAPE.text.layers * SHAPE.text.hidden * 1000 * 2
    layer = (without - kept) / SHAPE.text.layers
    assert kept < with_it < kept + 2 * layer
    assert without > 10 * with_it


def test_activations_and_logits_grow_with_the_batch() -> None:
    one, four = parts(run()), parts(run(per_device_train_batch_size=4))
    assert four["logits"] == 4 * one["logits"] == 4 * 12 * 1000 * 152064
    assert four["activations"] == pytest.approx(4 * one["activations"], rel=0.01)


def test_padding_packing_and_the_longest_row() -> None:
    assert estimate.estimate(run(per_device_train_batch_size=4)).tokens == 4000
    assert estimate.estimate(run(per_device_train_batch_size=4, padding_free=True)).tokens == 1600
    assert estimate.estimate(run(per_device_train_batch_size=4, packing=True, max_length=2048)).tokens == 8192
    assert estimate.estimate(run(max_length=512)).tokens == 512


@pytest.mark.parametrize("other", [{"deepspeed": "zero2"}, {"device_map": "auto"}, {"loss_type": "ce"}])
def test_padding_has_no_logits_unless_all_tokens_get_them(other: dict[str, Any]) -> None:
    def logits(**settings: Any) -> float:
        padded = run(per_device_train_batch_size=4, **settings)
        return parts(padded.with_sizes(4.0, 1500))["logits"] / parts(padded)["logits"]

    assert logits() == pytest.approx(1500 / 4000)
    assert logits(**other) == logits(rlhf_type="dpo", command="rlhf") == 1
    assert run().with_sizes(4.0, 1500).but(per_device_train_batch_size=2).fullest == 0


def test_without_padding_a_batch_has_the_tokens_of_its_rows() -> None:
    batch = run(per_device_train_batch_size=4, padding_free=True)
    assert estimate.estimate(batch.with_sizes(4.0, 2300)).tokens == 2300
    assert estimate.estimate(batch.with_sizes(4.0, 300)).tokens == 1000


def test_the_estimates_of_measured_steps_of_16_rows() -> None:
    """One H100, LoRA in bfloat16 without dropout, rows of 20 to 906 tokens, the fullest step with 4,548: GiB reserved."""
    shape = size.find_shape("Qwen/Qwen2.5-1.5B-Instruct")
    assert shape is not None
    base = {"torch_dtype": "bfloat16", "per_device_train_batch_size": 16, "lora_dropout": 0}
    for settings, measured in (
        ({}, 13.2),
        ({"gradient_checkpointing": False}, 58.0),
        ({"gradient_checkpointing": False, "padding_free": True, "attn_impl": "flash_attn"}, 26.2),
    ):
        step = MemoryRun({**base, **settings}, shape, Rows(906, 142, 906, seen=True), grows_segments=True)
        assert total(step.with_sizes(16.0, 4548)) == pytest.approx(measured, rel=0.2)


def test_sequence_parallelism_divides_a_row() -> None:
    whole, part = (estimate.estimate(run(world=4, **one)) for one in ({}, {"sequence_parallel_size": 4}))
    assert part.tokens == whole.tokens / 4
    assert part.parts["logits"] == whole.parts["logits"] / 4
    packed = run(packing=True, max_length=8192, sequence_parallel_size=4)
    assert estimate.estimate(packed).tokens == 2048


def test_the_longest_validation_row_counts() -> None:
    rows = Rows(100, 50, 8000, seen=True)
    with_it = estimate.estimate(run(rows=rows, val_dataset=["v"]))
    assert with_it.peak == "evaluation"
    assert with_it.parts["logits"] == 10 * 8000 * 152064
    without = estimate.estimate(run(rows=rows))
    assert (without.peak, without.parts["logits"]) == ("training", 12 * 100 * 152064)


def test_what_spares_logits() -> None:
    assert parts(run(use_liger_kernel=True))["logits"] < parts(run())["logits"] / 20
    assert "logits" not in parts(run(task_type="seq_cls"))


def test_eager_attention_keeps_scores() -> None:
    plain, eager = (parts(run(attn_impl=kind))["activations"] for kind in ("sdpa", "eager"))
    assert eager - plain == 1000 * 1000 * 28 * 8  # heads, bytes: of the one layer that is computed again


def test_a_vision_part_frozen_and_trained() -> None:
    shape = size.find_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    assert shape is not None
    rows = Rows(1000, 200, 1000, images=1, seen=True)
    base = MemoryRun({"torch_dtype": "bfloat16", "tuner_type": "full"}, shape, rows)
    frozen, trained = (estimate.estimate(base.but(freeze_vit=on)).parts for on in (True, False))
    assert trained["gradients"] - frozen["gradients"] == 2 * shape.encoder_parameters
    assert trained["activations"] > frozen["activations"]
    text = estimate.estimate(MemoryRun(base.settings, shape, ROWS))
    assert text.tokens < estimate.estimate(base).tokens


def test_image_limits_are_ms_swifts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = size.find_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    assert shape is not None
    request = MemoryRun({}, shape, Rows(images=1))
    assert activations.image_tokens(request) == 1280
    monkeypatch.setenv("MAX_PIXELS", str(28 * 28 * 100))
    assert activations.image_tokens(request) == 100
    monkeypatch.setenv("IMAGE_MAX_TOKEN_NUM", "64")
    assert activations.image_tokens(request) == 64


def test_vllm_takes_its_share_of_the_device() -> None:
    assert SHAPE is not None
    settings = {"command": "rlhf", "rlhf_type": "grpo", "use_vllm": True, "vllm_mode": "colocate"}
    request = MemoryRun({**settings, "vllm_gpu_memory_utilization": 0.5}, SHAPE, ROWS, device_bytes=80 * GIB)
    assert parts(request)["generation"] == 40 * GIB
    asleep = parts(request.but(sleep_level=1))
    assert asleep["generation"] + asleep["activations"] + asleep["logits"] == pytest.approx(40 * GIB)


def test_ppo_trains_a_second_model() -> None:
    full = {"tuner_type": "full", "command": "rlhf"}
    grpo, ppo = (parts(run(rlhf_type=kind, **full)) for kind in ("grpo", "ppo"))
    assert ppo["gradients"] == 2 * grpo["gradients"]
    assert ppo["other models"] == 2 * grpo["other models"]


def test_lisa_trains_some_layers() -> None:
    assert SHAPE is not None
    found = parts(run(tuner_type="full", lisa_activated_layers=7))
    assert found["gradients"] == pytest.approx(2 * (SHAPE.embeddings + SHAPE.text.linear / 4), abs=1)


# --- the whole ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ({"quant_bits": 4}, {"quant_bits": 8}),
        ({"quant_bits": 8}, {}),
        ({}, {"tuner_type": "llamapro"}),
        ({"tuner_type": "llamapro"}, {"tuner_type": "full"}),
        ({"tuner_type": "ia3"}, {"tuner_type": "adalora"}),
        ({"tuner_type": "full", "optim": "adafactor"}, {"tuner_type": "full", "optim": "adamw_8bit"}),
        ({"tuner_type": "full", "optim": "adamw_8bit"}, {"tuner_type": "full"}),
        ({"tuner_type": "full", "use_galore": True}, {"tuner_type": "full"}),
        ({"tuner_type": "full"}, {"tuner_type": "full", "torch_dtype": "float32"}),
        ({"tuner_type": "full", "freeze_parameters_ratio": 0.9}, {"tuner_type": "full"}),
        ({}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ],
)
def test_the_order_of_runs(smaller: dict[str, Any], larger: dict[str, Any]) -> None:
    assert total(run(**smaller)) < total(run(**larger))


def test_the_parts_are_named_and_make_the_whole() -> None:
    found: Estimate = estimate.estimate(run(quant_bits=4))
    assert list(found.parts) == [
        *("weights", "quantisation", "adapter", "gradients", "optimiser", "activations", "logits", "overhead")
    ]
    assert found.total == sum(found.parts.values())


def test_public_data_sets_are_known_by_length() -> None:
    def rows(dataset: str) -> Rows:
        request = load_config({"model": "Qwen/Qwen2.5-7B", "dataset": dataset})
        return planned(request, Device("cuda")).rows

    assert rows("AI-ModelScope/function-calling-chatml#500").longest == 6106
    assert rows("HF::vicgalle/alpaca-gpt4").mean == 168
    assert rows("owner/unknown") == Rows()


def test_rows_here_and_rows_that_are_not() -> None:
    asked = load_config(
        {"model": "Qwen/Qwen2.5-7B", "dataset": ["data/self_cognition.jsonl", "owner/unknown"]}
    )
    assert planned(asked, Device("cuda"), check_data(asked)).rows == Rows()


@pytest.mark.slow
def test_a_real_run_on_this_cpu(tmp_path: Path) -> None:
    figure = memory_estimate.measure("full", tmp_path / "run", 512, True, {"train_type": "full"})
    assert abs(figure.off) <= 0.25
