"""How much memory a training run takes on each device, estimated before it starts, part by part.

Weights, gradients and optimiser states follow Rajbhandari et al. 2020 ("ZeRO: Memory Optimizations Toward Training
Trillion Parameter Models", section 3); activations are counted as Korthikanti et al. 2022 ("Reducing Activation
Recomputation in Large Transformer Models", section 4) count them, for the layers of today's models. Nothing is
imported that computes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swift_toolkit.model.size import Stack
from swift_toolkit.training.memory.run import Run

GIB = 1 << 30

UNSEEN_IMAGE, MIDDLING_IMAGE = 1280, 391
"""Tokens of an image whose size nothing limits, and of a middling one: a megapixel, and 640 by 480 pixels, to Qwen2-VL,
whose tokens are 28 by 28 pixels."""


@dataclass(frozen=True)
class Estimate:
    """Peak memory of one device, and of the machine where parts are offloaded.

    Args:
        parts: bytes on a device by what takes them, in the order of `PARTS`.
        host: bytes offloaded to the memory of the machine, per process.
        tokens: of a batch on one device, at most.
        peak: ``training`` or ``evaluation``, whichever takes more.
    """

    parts: Mapping[str, int]
    host: int = 0
    tokens: int = 0
    peak: str = "training"

    @property
    def total(self) -> int:
        """Bytes on a device."""
        return sum(self.parts.values())


PARTS = (
    *(
        "weights",
        "quantisation",
        "other models",
        "adapter",
        "gradients",
        "optimiser",
        "activations",
        "logits",
    ),
    *("generation", "overhead"),
)


def estimate(run: Run) -> Estimate:
    """The peak of ``run`` on its fullest device."""
    share = _sharing(run)
    trained, adapter = _trained(run)
    if run.rlhf == "ppo":
        trained = replace(trained, own=2 * trained.own, added=2 * trained.added)
    states = _states(run, trained, share)
    batch = run.get("per_device_train_batch_size", 1)
    tokens = _batch_tokens(run, batch, run.rows.longest, image_tokens(run))
    training = {**_moving(run, tokens, trained), "logits": _logits(run)}
    evaluation = {"activations": 0.0, "logits": _eval_logits(run)}
    peak = "training" if sum(training.values()) >= sum(evaluation.values()) else "evaluation"
    parts = {
        **_frozen(run, share),
        **states.device,
        **(training if peak == "training" else evaluation),
        "adapter": adapter // share.weights,
        "generation": _generation(run, sum(training.values())),
    }
    parts["overhead"] = _overhead(run, parts)
    host = states.host + (_weights(run)[0] if share.offloads_weights else 0)
    return Estimate({name: int(parts[name]) for name in PARTS if parts.get(name)}, int(host), tokens, peak)


# --- who holds what -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sharing:
    """Among how many devices each part is divided, and what goes to the machine's own memory instead.

    DeepSpeed stage 1 divides the optimiser's states, 2 the gradients too, 3 the weights too (Rajbhandari et al.,
    section 5), FSDP2 all three; ``device_map`` spreads the layers over the devices of one process.
    """

    stage: int | None = None
    fsdp: bool = False
    weights: int = 1
    gradients: int = 1
    optimiser: int = 1
    layers: int = 1
    offloads_optimiser: bool = False
    offloads_weights: bool = False


def _sharing(run: Run) -> _Sharing:
    world = run.world
    if run.get("deepspeed"):
        stage, optimiser, weights = _zero(run.get("deepspeed"))
        return _Sharing(
            stage,
            weights=world if stage >= 3 else 1,
            gradients=world if stage >= 2 else 1,
            optimiser=world if stage >= 1 else 1,
            offloads_optimiser=optimiser,
            offloads_weights=weights,
        )
    if run.get("fsdp"):
        return _Sharing(None, True, world, world, world)
    if run.get("device_map") and run.devices > 1:
        spread = run.devices
        return _Sharing(weights=spread, gradients=spread, optimiser=spread, layers=spread)
    return _Sharing()


def _zero(deepspeed: Any) -> tuple[int, bool, bool]:
    """Stage, and whether optimiser and weights are offloaded, of a name such as ``zero3_offload``, a file or a
    mapping."""
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
    # NF4, blocks of 64 whose scales are quantised again: Dettmers et al. 2023, QLoRA, section 3
    ("bnb", 4): 4.127,
    ("bnb", 8): 8.03,  # a 32-bit scale for each row: Dettmers et al. 2022, LLM.int8()
    ("hqq", 4): 4.5,  # 16-bit scale and zero for groups of 64: Badri and Shaji 2023, HQQ
    ("hqq", 8): 8.5,
}


def _bits(run: Run) -> float:
    """Bits of a weight of a linear layer; 16 or 32 unquantised."""
    bits, method = run.get("quant_bits"), run.get("quant_method") or "bnb"
    if bits and run.tuner != "full":
        return _QUANTISED_BITS.get((method, bits), float(bits + 0.5))
    return run.shape.bits if run.shape.bits < 16 else 8 * run.width


def _weights(run: Run) -> tuple[int, int]:
    """Bytes of the model's weights, and of the constants of their quantisation.

    Quantisation leaves embeddings and output layer as they are, and so does every library: only linear layers are.
    """
    bits, shape = _bits(run), run.shape
    linear = shape.parameters - shape.embeddings
    plain = shape.embeddings * run.width
    return int(plain + linear * min(bits, int(bits)) / 8), int(linear * (bits - int(bits)) / 8)


def _frozen(run: Run, share: _Sharing) -> dict[str, float]:
    """Weights as they lie there, before anything is trained.

    ZeRO-3 gathers up to ``stage3_max_live_parameters`` (a thousand million in ms-swift's zero3.json) where they are
    needed, FSDP2 two layers at a time (the one at work and the next) and the embeddings.
    """
    weights, constants = _weights(run)
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
    if constants or run.shape.bits < 16:  # one matrix at a time is dequantised for its product
        parts["quantisation"] += run.width * run.shape.text.hidden * min(run.shape.text.inner, 1 << 16)
    if constants and run.kind == "cpu" and run.shape.bits == 16:  # the file they were made from stays mapped
        parts["quantisation"] += 2 * run.shape.parameters
    copies = _needs_reference(run) + (run.rlhf == "ppo")  # PPO trains a model of the values besides
    others = run.width * run.others + copies * weights
    parts["other models"] = others / share.weights
    return parts


def _needs_reference(run: Run) -> bool:
    """Whether a second copy of the model judges: with adapters, the model without them is the reference."""
    if run.rlhf not in ("dpo", "kto", "grpo", "ppo"):
        return False
    if run.rlhf == "grpo" and run.get("beta") == 0:
        return False
    return bool(run.whole or run.get("ref_model"))


# --- what is trained ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trained:
    """Numbers that are trained: ``own`` are weights of the model itself, ``added`` an adapter beside it."""

    own: float = 0
    added: float = 0
    copied: float = 0  # whole modules that are trained as copies (modules_to_save)
    encoder: bool = False


def _trained(run: Run) -> tuple[_Trained, int]:
    """What is trained, and the bytes that come to the model for it."""
    shape, text = run.shape, run.shape.text
    encoder = shape.encoder is not None and not run.get("freeze_vit", True)
    if layers := run.get("lisa_activated_layers"):
        return _Trained(shape.embeddings + text.linear * min(1, layers / text.layers)), 0
    if run.tuner == "full":
        own = 0 if run.get("freeze_llm") else shape.parameters - shape.encoder_parameters
        own += shape.encoder_parameters if encoder else 0
        return _Trained(own * (1 - run.get("freeze_parameters_ratio", 0.0)), encoder=encoder), 0
    if run.tuner == "llamapro":
        new = text.linear / text.layers * run.get("llamapro_num_new_blocks", 4)
        return _Trained(new), int(new * run.width)
    large = [name for name in run.get("modules_to_save", []) if "embed" in name or "head" in name]
    copied = len(large) * shape.vocabulary * text.hidden
    added = _adapter_numbers(run, text)
    if run.tuner == "lora_llm" and shape.encoder is not None and run.get("freeze_vit") is not True:
        return _Trained(shape.encoder_parameters, added, copied, True), int(4 * added + run.width * copied)
    if encoder and shape.encoder:
        added += _adapter_numbers(run, shape.encoder)
    return _Trained(0, added, copied, encoder), int(4 * added + run.width * copied)


def _adapter_numbers(run: Run, stack: Stack) -> float:
    """Weights of the adapter of ``stack``.

    LoRA has ``r * (in + out)`` beside every linear layer (Hu et al. 2021, section 4.1); AdaLoRA begins with half as
    much again (peft's ``init_r`` 12 for ``target_r`` 8); a bottleneck adapter two matrices after attention and MLP
    (Houlsby et al. 2019); the others have vectors.
    """
    ends = (
        2 * stack.hidden
        + 2 * stack.queries
        + 2 * (stack.hidden + stack.keys)
        + 3 * (stack.hidden + stack.inner)
    )
    if run.tuner == "adapter":
        return float(stack.layers * 4 * stack.hidden * run.get("adapter_length", 128))
    if run.tuner in ("ia3", "vera", "boft", "fourierft", "reft"):
        return float(stack.layers * ends)
    rank = run.get("lora_rank", 8) * (1.5 if run.tuner == "adalora" else 1)
    return float(stack.layers * rank * ends)


# --- gradients and the optimiser ----------------------------------------------------------------------------


@dataclass
class _States:
    """Bytes of gradients and optimiser states, on the device and offloaded."""

    device: dict[str, float] = field(default_factory=dict)
    host: float = 0


def _states(run: Run, trained: _Trained, share: _Sharing) -> _States:
    """Gradients have the type of their weights, AdamW two states likewise (Rajbhandari et al., section 3.1).

    ms-swift loads the model in ``torch_dtype`` and trains it there: with bfloat16, 2 + 2 + 4 bytes a weight. float16
    becomes float32 first; peft keeps adapters in float32. DeepSpeed has 16 bytes for each trained number besides, a
    float32 copy, its gradient and the states, and stage 3 no other gradient (``estimate_zero2_model_states_mem_needs``,
    ``estimate_zero3_model_states_mem_needs``). FSDP2 keeps trained weights in float32 (accelerate,
    ``fsdp2_prepare_model``).
    """
    own = trained.own + trained.copied
    numbers = own + trained.added
    wide = run.width == 4 or share.fsdp or run.get("torch_dtype") == "float16"
    if share.stage is not None and run.width == 2:
        gradients = (6 if share.stage < 3 else 4) * numbers
        optimiser = (4 + 4 * _state_count(run)) * numbers
    else:
        gradients = own * (4 if wide else 2) + 4 * trained.added
        optimiser = gradients * _state_count(run)
        optimiser += 2 * own if wide and run.width == 2 else 0  # the weights, counted above in 16 bits
    if run.world > 1 and share.stage is None and not share.fsdp:
        gradients *= 2  # DistributedDataParallel's buckets are a second copy (gradient_as_bucket_view is off)
    bucket = 2 * _bucket(run) if share.stage in (1, 2) else 0
    if share.offloads_optimiser:
        return _States({"gradients": 2 * bucket}, (gradients + optimiser) / share.optimiser)
    return _States(
        {"gradients": gradients / share.gradients + bucket, "optimiser": optimiser / share.optimiser}
    )


def _bucket(run: Run) -> float:
    """Numbers that ZeRO reduces at once: ``reduce_bucket_size`` of ms-swift's zero2.json."""
    return 2e8 if run.world > 1 else 0


def _state_count(run: Run) -> float:
    """States of the optimiser for each number, in the width of AdamW's."""
    if run.get("use_galore") or run.get("use_q_galore"):
        # Zhao et al. 2024 (GaLore), table 1: both states have galore_rank rows instead of the hidden size
        text, embedded = run.shape.text, run.shape.embeddings / run.shape.parameters
        return float(2 * (embedded + (1 - embedded) * min(1, run.get("galore_rank", 128) / text.hidden)))
    if run.get("optimizer") == "muon":
        return 1  # momentum only: Jordan et al. 2024
    name = str(run.get("optim", "adamw_torch_fused"))
    if "8bit" in name:
        return 0.5
    if "adafactor" in name:
        return 0.01  # a row and a column instead of a matrix: Shazeer and Stern 2018
    if "sgd" in name:
        return 1 if run.get("optim_args") else 0
    return 1 if "lion" in name else 2


# --- activations and logits ---------------------------------------------------------------------------------


def _row_factor(run: Run) -> int:
    """Sequences that one row of the data becomes: chosen and rejected, or a question with its documents."""
    if run.rlhf:
        return 2 if run.rlhf in ("dpo", "kto", "orpo", "simpo", "cpo", "rm") else 1
    if run.get("task_type") in ("reranker", "generative_reranker"):
        negatives = os.environ.get("MAX_NEGATIVE_SAMPLES", "")
        return 1 + (int(negatives) if negatives.isdecimal() else 7)
    return 2 if run.get("task_type") == "embedding" else 1


def image_tokens(run: Run) -> int:
    """Tokens of the largest image, as ms-swift's environment variables or the model limit it; 0 of a text model."""
    shape = run.shape
    if shape.encoder is None:
        return 0
    if shape.patches:
        return shape.patches // shape.patches_per_token
    if (tokens := os.environ.get("IMAGE_MAX_TOKEN_NUM", "")).isdecimal():
        return int(tokens)
    if (pixels := os.environ.get("MAX_PIXELS", "")).isdecimal():
        return int(pixels) // 28**2
    return UNSEEN_IMAGE


def _length(run: Run, text: int, image: int) -> int:
    """Tokens of a row with so many of text, its images of so many each, and what is generated; with sequence
    parallelism, the part of a row that one device has."""
    length = text + run.rows.images * image
    limit = run.get("max_length") or run.shape.context
    length = min(length, limit) if limit else length
    if run.rlhf in ("grpo", "ppo"):
        length += run.get("max_completion_length") or run.get("response_length") or 512
    return math.ceil(length / (run.get("sequence_parallel_size") or 1))


def _batch_tokens(run: Run, batch: int, longest: int, image: int) -> int:
    """Tokens of the largest batch of so many rows on one device.

    Packing fills every row. Without padding a batch has the longest row and others as they come; with it, all of
    its rows are as long as the longest.

    Args:
        run: the run.
        batch: rows.
        longest: tokens of text in the longest row.
        image: tokens of its images, each; 0 to count text alone.
    """
    row = _length(run, longest, image)
    if run.get("packing"):
        full = run.get("packing_length") or run.get("max_length")
        return batch * (math.ceil(full / (run.get("sequence_parallel_size") or 1)) if full else row)
    if run.get("padding_free"):
        row += (batch - 1) * _length(run, min(run.rows.mean, longest), min(image, MIDDLING_IMAGE))
        return row * _row_factor(run)
    return batch * row * _row_factor(run)


def _moving(run: Run, tokens: int, trained: _Trained) -> dict[str, float]:
    """Activations of a training step."""
    spread = _sharing(run).layers
    checkpointing = run.get("gradient_checkpointing", True)
    kept = _kept(run, run.shape.text, tokens, checkpointing)
    kept = kept / spread
    if (encoder := run.shape.encoder) is not None and run.rows.images:
        patches = image_tokens(run) * run.shape.patches_per_token * run.rows.images
        patches *= run.get("per_device_train_batch_size", 1) * _row_factor(run)
        if trained.encoder:
            kept += _kept(run, encoder, patches, run.get("vit_gradient_checkpointing", checkpointing))
        else:
            kept += patches * run.width * (4 * encoder.hidden + 2 * encoder.inner)
    return {"activations": kept}


def _kept(run: Run, stack: Stack, tokens: int, checkpointing: bool) -> float:
    """Bytes that ``stack`` keeps for the way back: with checkpointing the inputs of its layers, and one layer whole
    while it is computed again (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost")."""
    layer = tokens * _layer_bytes(run, stack) + _score_bytes(run, stack, tokens)
    back = (
        tokens * run.width * (3 * stack.inner + 2 * stack.hidden)
    )  # gradients inside the layer that is at work
    if checkpointing:
        return stack.layers * tokens * stack.hidden * run.width + layer + back
    return stack.layers * layer + back


def _layer_bytes(run: Run, stack: Stack) -> float:
    """Bytes that one layer keeps for each token, as Korthikanti et al. count them (section 4.1) for the layers of
    Llama and Qwen (RMSNorm, rotary positions, grouped queries, SwiGLU; transformers' modelling code).

    Both norms keep their input in float32. Attention (a fused kernel) keeps queries, keys, values and its output, the
    MLP its gate, the gate's activation, and the other branch. A trained weight keeps its input besides; a LoRA
    adapter the input after dropout and the dropout's mask, and its own inner result.
    """
    width, hidden, inner = run.width, stack.hidden, stack.inner
    kept = 8 * hidden + width * (2 * stack.queries + 2 * stack.keys + 3 * inner)
    if run.whole:
        return float(kept + width * (4 * hidden + inner))
    if run.tuner in ("lora", "lora_llm", "adalora", "longlora"):
        inputs = 5 * hidden + stack.queries + inner  # of q, k, v, gate and up; of o; of down
        mask = (4 if run.kind == "cpu" else 1) if run.get("lora_dropout", 0.05) else 0
        return float(kept + inputs * (width + mask) + 7 * width * run.get("lora_rank", 8))
    return float(kept)


def _score_bytes(run: Run, stack: Stack, tokens: int) -> float:
    """Bytes of attention scores where attention is not fused: the scores, and their softmax in float32 and as it is
    handed on, for every pair of tokens of a row."""
    if run.get("attn_impl") != "eager":
        return 0
    length = min(tokens, _length(run, run.rows.longest, image_tokens(run)))
    return float(tokens * length * stack.heads * (2 * run.width + 4))


def _logits(run: Run) -> float:
    """Bytes of the output layer's results for a batch and of the loss made from them.

    As transformers computes it (``loss_utils.ForCausalLMLoss``), on the way back: the log softmax, its gradient and
    that of the logits, in float32. The way there takes less: the logits as computed, in float32, and the log softmax.
    On a CPU another float32 copy stays (measured, SmolLM2: 13 to 20 bytes a logit in all).
    Liger makes them in pieces as large as the hidden states (Hsu et al. 2024, section 3.2). A classifier has none.
    """
    tokens = _judged_tokens(run, run.get("per_device_train_batch_size", 1), run.rows.longest)
    tokens *= 2 if run.rlhf == "gkd" else 1  # the teacher's besides
    task = run.get("task_type", "causal_lm")
    if task == "generative_reranker":
        return (
            tokens * run.shape.vocabulary * 2 * run.width
        )  # and their gradient: only the last token's go on
    if run.get("use_liger_kernel"):
        return tokens * run.shape.text.hidden * (run.width + 8)
    return float(tokens * run.shape.vocabulary * (16 if run.kind == "cpu" else 12))


def _eval_logits(run: Run) -> float:
    """The same for an evaluation, which has no way back: the logits, in float32, and the log softmax."""
    data = run.get("val_dataset") or run.get("split_dataset_ratio")
    if not data or run.get("eval_strategy") == "no" or run.get("use_liger_kernel"):
        return 0
    tokens = _judged_tokens(run, run.get("per_device_eval_batch_size", 1), run.rows.longest_val)
    ranks = run.get("task_type") == "generative_reranker"
    return tokens * run.shape.vocabulary * (run.width + (0 if ranks else 8))


def _judged_tokens(run: Run, batch: int, longest: int) -> int:
    """Tokens of a batch that have logits: of newer models not those of images, which come before the answer (ms-swift's
    ``use_logits_to_keep``); of a classifier none."""
    task = run.get("task_type", "causal_lm")
    if task in ("seq_cls", "embedding", "reranker") or run.rlhf == "rm":
        return 0
    keeps_all = not run.shape.answers_only or task != "causal_lm" or run.get("packing")
    return _batch_tokens(run, batch, longest, image_tokens(run) if keeps_all else 0)


def _generation(run: Run, training: float) -> float:
    """What answers are written with: vLLM takes its share of the device, only while it writes if it sleeps between
    (``sleep_level``); without it, keys and values of a batch are kept."""
    if run.rlhf not in ("grpo", "ppo", "gkd"):
        return 0
    if run.get("use_vllm") and run.get("vllm_mode") == "colocate":
        taken = float(run.get("vllm_gpu_memory_utilization", 0.9) * run.device_bytes)
        return max(0, taken - training) if run.get("sleep_level") else taken
    text = run.shape.text
    row = _length(run, run.rows.longest, image_tokens(run)) * text.layers * 2 * text.keys * run.width
    return float(run.get("per_device_train_batch_size", 1) * row)


# --- overhead -----------------------------------------------------------------------------------------------

CUDA_CONTEXT = 0.6 * GIB
"""What a process takes on a GPU before any tensor: the context and the libraries' kernels and workspaces."""

NCCL_BUFFERS = 0.4 * GIB
"""What its connections to other GPUs take."""

FRAGMENTS, FEW_FRAGMENTS = 0.25, 0.05
"""Of what comes and goes, how much more PyTorch's caching allocator holds: rows of many lengths leave gaps between its
blocks, but for packed rows, all of one length, or with ``expandable_segments`` ("CUDA semantics")."""

CPU_PROCESS = 0.7 * GIB
"""Resident bytes of a training process before its model: Python with torch, transformers and ms-swift."""


def _overhead(run: Run, parts: Mapping[str, float]) -> float:
    moving = sum(parts.get(name, 0) for name in ("activations", "logits"))
    if run.kind == "cpu":
        return CPU_PROCESS
    connections = NCCL_BUFFERS if run.world > 1 else 0
    allocator = os.environ.get("PYTORCH_ALLOC_CONF", "") + os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    even = run.get("packing") or "expandable_segments:True" in allocator
    return CUDA_CONTEXT + connections + (FEW_FRAGMENTS if even else FRAGMENTS) * moving
