"""Memory of weights, gradients and optimiser states."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swift_toolkit.model.shape import Stack
from swift_toolkit.training.memory.run import MemoryRun

# --- sharding and offloading --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sharing:
    """The number of devices that share each part, and what is offloaded to host memory.

    DeepSpeed stage 1 shards the optimiser states, 2 also the gradients, 3 also the weights (Rajbhandari et al.,
    section 5); FSDP2 shards all three. ``device_map`` spreads the layers over the devices of one process.
    """

    stage: int | None = None
    fsdp: bool = False
    weights: int = 1
    gradients: int = 1
    optimiser: int = 1
    layers: int = 1
    offloads_optimiser: bool = False
    offloads_weights: bool = False


def sharing(run: MemoryRun) -> _Sharing:
    world = run.world
    if run.value("deepspeed"):
        stage, optimiser, weights = _zero(run.value("deepspeed"))
        return _Sharing(
            stage,
            weights=world if stage >= 3 else 1,
            gradients=world if stage >= 2 else 1,
            optimiser=world if stage >= 1 else 1,
            offloads_optimiser=optimiser,
            offloads_weights=weights,
        )
    if run.value("fsdp"):
        return _Sharing(None, True, world, world, world)
    if run.value("device_map") and run.devices > 1:
        spread = run.devices
        return _Sharing(weights=spread, gradients=spread, optimiser=spread, layers=spread)
    return _Sharing()


def _zero(deepspeed: Any) -> tuple[int, bool, bool]:
    """The ZeRO stage, and whether the optimiser and the weights are offloaded.

    Args:
        deepspeed: a name such as ``zero3_offload``, a file, JSON text or a mapping.
    """
    if isinstance(deepspeed, str) and deepspeed.startswith("zero") and deepspeed[4:5].isdigit():
        offload = deepspeed.endswith("offload")
        return int(deepspeed[4]), offload, offload and deepspeed[4] == "3"
    try:
        config = deepspeed if isinstance(deepspeed, dict) else _json(str(deepspeed))
    except (OSError, ValueError):
        config = {}
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    zero = zero if isinstance(zero, dict) else {}
    parts = [zero.get(name) for name in ("offload_optimizer", "offload_param")]
    optimiser, weights = (isinstance(part, dict) and part.get("device") in ("cpu", "nvme") for part in parts)
    stage = zero.get("stage")
    return stage if isinstance(stage, int) else 0, optimiser, weights


def _json(text: str) -> Any:
    return json.loads(
        text if text.lstrip().startswith("{") else Path(text).expanduser().read_text(encoding="utf-8")
    )


# --- weights ------------------------------------------------------------------------------------------------

_QUANTISED_BITS = {
    # NF4 with blocks of 64 and double quantisation: Dettmers et al. 2023, QLoRA, section 3
    ("bnb", 4): 4.127,
    ("bnb", 8): 8.03,  # a 32-bit scale per row: Dettmers et al. 2022, LLM.int8()
    ("hqq", 4): 4.5,  # 16-bit scale and zero for groups of 64: Badri and Shaji 2023, HQQ
    ("hqq", 8): 8.5,
}


def _bits(run: MemoryRun) -> float:
    """Bits per weight of a linear layer; 16 or 32 if not quantised."""
    bits, method = run.value("quant_bits"), run.value("quant_method") or "bnb"
    if bits and run.tuner != "full":
        return _QUANTISED_BITS.get((method, bits), float(bits + 0.5))
    return run.shape.bits if run.shape.bits < 16 else 8 * run.width


def _fused_experts(run: MemoryRun) -> int:
    """Expert weights that bitsandbytes does not quantise: transformers 5 stores those of a layer in one tensor, which
    is not a linear layer."""
    fused = run.value("quant_method") == "bnb" and run.install.transformers_version.startswith("5")
    if not (fused and run.value("quant_bits") and run.shape.experts and run.tuner != "full"):
        return 0
    text = run.shape.text
    return run.shape.experts + text.layers * text.matrices * text.hidden * text.inner


def weight_bytes(run: MemoryRun) -> tuple[int, int]:
    """Bytes of the model's weights, and of their quantisation constants.

    All libraries quantise linear layers only, not the embeddings and the output layer.
    """
    bits, shape = _bits(run), run.shape
    left = shape.embeddings + _fused_experts(run)
    linear = shape.parameters - left
    plain = left * run.width
    return int(plain + linear * min(bits, int(bits)) / 8), int(linear * (bits - int(bits)) / 8)


def frozen_bytes(run: MemoryRun, share: _Sharing) -> dict[str, float]:
    """Bytes of the loaded weights, by part.

    ZeRO-3 gathers up to ``stage3_max_live_parameters`` (1e9 in ms-swift's zero3.json) when they are needed; FSDP2
    gathers two layers at a time (the current one and the next) and the embeddings.
    """
    weights, constants = weight_bytes(run)
    whole = weights + constants
    parts: dict[str, float] = {"weights": weights / share.weights, "quantisation": constants / share.weights}
    live = 0.0
    if share.stage == 3:
        live = min(whole, 1e9 * run.width)
    elif share.fsdp:
        numbers = 2 * run.shape.parameters / run.shape.text.layers + run.shape.embeddings
        live = min(whole, run.width * numbers)
    if share.offloads_weights:
        parts = {"weights": 0, "quantisation": 0}
    parts["weights"] += live if share.weights > 1 or share.offloads_weights else 0
    if constants or run.shape.bits < 16:  # one matrix at a time is dequantised for multiplication
        parts["quantisation"] += run.width * run.shape.text.hidden * min(run.shape.text.inner, 1 << 16)
    if constants and run.kind == "cpu" and run.shape.bits == 16:  # the original file remains mapped
        parts["quantisation"] += 2 * run.shape.parameters
    copies = _needs_reference(run) + run.task.has_values  # PPO trains an additional value model
    others = run.width * run.others + copies * weights
    parts["other models"] = others / share.weights
    return parts


def _needs_reference(run: MemoryRun) -> bool:
    """Whether there is a second copy of the model as reference; with adapters, the base model is the reference."""
    if not run.task.has_reference or (run.task.batch_of == "answers" and run.value("beta") == 0):
        return False
    return bool(run.whole or run.value("ref_model"))


# --- what is trained ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """Trained parameters: ``own`` are weights of the model itself, ``added`` are weights of an adapter."""

    own: float = 0
    added: float = 0
    copied: float = 0  # complete modules that are trained as copies (modules_to_save)
    encoder: bool = False


def trained_parts(run: MemoryRun) -> tuple[Trained, int]:
    """The trained parameters, and the bytes of those that are not part of the base model."""
    shape, text = run.shape, run.shape.text
    encoder = shape.encoder is not None and not run.value("freeze_vit")
    if layers := run.value("lisa_activated_layers"):
        return Trained(shape.embeddings + text.linear * min(1, layers / text.layers)), 0
    if run.tuner == "full":
        own = 0 if run.value("freeze_llm") else shape.parameters - shape.encoder_parameters
        own += shape.encoder_parameters if encoder else 0
        return Trained(own * (1 - run.value("freeze_parameters_ratio")), encoder=encoder), 0
    if run.tuner == "llamapro":
        new = text.linear / text.layers * run.value("llamapro_num_new_blocks")
        return Trained(new), int(new * run.width)
    large = [name for name in run.value("modules_to_save") if "embed" in name or "head" in name]
    copied = len(large) * shape.vocabulary * text.hidden
    added = _adapter_numbers(run, text)
    if run.tuner == "lora_llm" and shape.encoder is not None and run.value("freeze_vit") is not True:
        return Trained(shape.encoder_parameters, added, copied, True), int(4 * added + run.width * copied)
    if encoder and shape.encoder:
        added += _adapter_numbers(run, shape.encoder)
    return Trained(0, added, copied, encoder), int(4 * added + run.width * copied)


def _adapter_numbers(run: MemoryRun, stack: Stack) -> float:
    """Parameters of the adapter of ``stack``.

    LoRA has ``r * (in + out)`` for every linear layer (Hu et al. 2021, section 4.1); AdaLoRA starts with 1.5 times as
    many (peft's ``init_r`` 12 for ``target_r`` 8); a bottleneck adapter has two matrices after attention and MLP
    (Houlsby et al. 2019); the others have vectors.
    """
    ends = (
        2 * stack.hidden
        + 2 * stack.queries
        + 2 * (stack.hidden + stack.keys)
        + stack.matrices * (stack.hidden + stack.inner)
    )
    if run.tuner == "adapter":
        return float(stack.layers * 4 * stack.hidden * run.value("adapter_length"))
    if run.tuner in ("ia3", "vera", "boft", "fourierft", "reft"):
        return float(stack.layers * ends)
    rank = run.value("lora_rank") * (1.5 if run.tuner == "adalora" else 1)
    return float(stack.layers * rank * ends)


# --- gradients and the optimiser ----------------------------------------------------------------------------


@dataclass
class _States:
    """Bytes of gradients and optimiser states, on the device and offloaded."""

    device: dict[str, float] = field(default_factory=dict)
    host: float = 0


def state_bytes(run: MemoryRun, trained: Trained, share: _Sharing) -> _States:
    """Bytes of gradients and optimiser states. Both have the type of the weights; AdamW has two states (Rajbhandari et
    al., section 3.1).

    ms-swift loads the model in ``torch_dtype`` and trains it in that type: with bfloat16, 2 + 2 + 4 bytes per weight.
    float16 is converted to float32 first; peft keeps adapters in float32. DeepSpeed adds 16 bytes per trained
    parameter: a float32 copy, its gradient and the states; in stage 3 there is no other gradient
    (``estimate_zero2_model_states_mem_needs``, ``estimate_zero3_model_states_mem_needs``). FSDP2 keeps trained weights
    in float32 (accelerate, ``fsdp2_prepare_model``).
    """
    own = trained.own + trained.copied
    numbers = own + trained.added
    wide = run.width == 4 or share.fsdp or run.value("torch_dtype") == "float16"
    if share.stage is not None and run.width == 2:
        gradients = (6 if share.stage < 3 else 4) * numbers
        optimiser = (4 + 4 * _state_count(run)) * numbers
    else:
        gradients = own * (4 if wide else 2) + 4 * trained.added
        optimiser = gradients * _state_count(run)
        optimiser += 2 * own if wide and run.width == 2 else 0  # the weights, counted above in 16 bits
    if run.world > 1 and share.stage is None and not share.fsdp:
        gradients *= (
            2  # DistributedDataParallel's buckets hold a second copy (gradient_as_bucket_view is off)
        )
    bucket = 2 * _bucket(run) if share.stage in (1, 2) else 0
    if share.offloads_optimiser:
        return _States({"gradients": 2 * bucket}, (gradients + optimiser) / share.optimiser)
    return _States(
        {"gradients": gradients / share.gradients + bucket, "optimiser": optimiser / share.optimiser}
    )


def _bucket(run: MemoryRun) -> float:
    """Number of parameters that ZeRO reduces at once: ``reduce_bucket_size`` in ms-swift's zero2.json."""
    return 2e8 if run.world > 1 else 0


def _state_count(run: MemoryRun) -> float:
    """Optimiser states per parameter, in the type of AdamW's states."""
    if run.value("use_galore") or run.value("use_q_galore"):
        # Zhao et al. 2024 (GaLore), table 1: both states have galore_rank rows instead of the hidden size
        text, embedded = run.shape.text, run.shape.embeddings / run.shape.parameters
        return float(2 * (embedded + (1 - embedded) * min(1, run.value("galore_rank") / text.hidden)))
    if run.value("optimizer") == "muon":
        return 1  # momentum only: Jordan et al. 2024
    name = run.value("optim") or "adamw_torch_fused"
    if "8bit" in name:
        return 0.5
    if "adafactor" in name:
        return 0.01  # a row and a column instead of a matrix: Shazeer and Stern 2018
    if "sgd" in name:
        return 1 if run.value("optim_args") else 0
    return 1 if "lion" in name else 2
