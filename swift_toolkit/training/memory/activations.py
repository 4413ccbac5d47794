"""Memory of activations, logits and generation."""

from __future__ import annotations

import math
import os

from swift_toolkit.model.shape import Stack
from swift_toolkit.training.memory.run import MemoryRun
from swift_toolkit.training.memory.weights import Trained, sharing

UNSEEN_IMAGE, MIDDLING_IMAGE = 1280, 391
"""Tokens of an image without a size limit (one megapixel) and of a typical image (640 × 480 pixels), for Qwen2-VL with
its 28 × 28 pixels per token."""


# --- activations and logits ---------------------------------------------------------------------------------


def _row_factor(run: MemoryRun) -> int:
    """Number of sequences per row: the chosen and the rejected answer, or a question with its documents."""
    negatives = os.environ.get("MAX_NEGATIVE_SAMPLES", "") if run.task.has_negatives else "0"
    return run.task.sequences + (int(negatives) if negatives.isdecimal() else 7)


def image_tokens(run: MemoryRun) -> int:
    """Tokens of the largest image, limited by ms-swift's environment variables or the model; 0 for a text model."""
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


def _length(run: MemoryRun, text: int, image: int) -> int:
    """Tokens of a row: ``text``, ``image`` tokens per image, and generated tokens. With sequence parallelism, the
    tokens of the row on one device."""
    length = text + run.rows.images * image
    limit = run.value("max_length") or run.shape.context
    length = min(length, limit) if limit else length
    if run.task.follows_prompt:
        length += run.value("max_completion_length") or run.value("response_length") or 512
    return math.ceil(length / (run.value("sequence_parallel_size") or 1))


def batch_tokens(run: MemoryRun, batch: float, longest: int, image: int) -> int:
    """Tokens of the largest batch of ``batch`` rows on one device.

    With packing every row is full. With ``padding_free`` a batch has the tokens of its rows or, if their lengths are
    unknown, one row of the longest length and others of average length; otherwise all rows are padded to the longest.

    Args:
        run: the run.
        batch: number of rows; can be fractional if rows of similar length share a batch.
        longest: text tokens of the longest row.
        image: tokens of each image; 0 to count text only.
    """
    row = _length(run, longest, image)
    if run.value("packing"):
        full = run.value("packing_length") or run.value("max_length")
        return math.ceil(
            batch * (math.ceil(full / (run.value("sequence_parallel_size") or 1)) if full else row)
        )
    if run.value("padding_free"):
        others = (batch - 1) * _length(run, min(run.rows.mean, longest), min(image, MIDDLING_IMAGE))
        tokens = max(row, run.fullest) if run.fullest else row + others
        return math.ceil(tokens) * _row_factor(run)
    return math.ceil(batch * row) * _row_factor(run)


def moving_bytes(run: MemoryRun, tokens: int, trained: Trained) -> dict[str, float]:
    """Activations of a training step, in bytes."""
    spread = sharing(run).layers
    checkpointing = run.value("gradient_checkpointing")
    kept = _kept(run, run.shape.text, tokens, checkpointing)
    kept = kept / spread
    if (encoder := run.shape.encoder) is not None and run.rows.images:
        vit = run.value("vit_gradient_checkpointing")
        patches = image_tokens(run) * run.shape.patches_per_token * run.rows.images
        patches *= run.value("per_device_train_batch_size") * _row_factor(run)
        if trained.encoder:
            kept += _kept(run, encoder, patches, checkpointing if vit is None else vit)
        else:
            kept += patches * run.width * (4 * encoder.hidden + 2 * encoder.inner)
    return {"activations": kept}


def _kept(run: MemoryRun, stack: Stack, tokens: int, checkpointing: bool) -> float:
    """Bytes that ``stack`` keeps for the backward pass. With checkpointing these are the inputs of its layers, and one
    whole layer during its recomputation (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost")."""
    layer = tokens * _layer_bytes(run, stack) + _score_bytes(run, stack, tokens)
    back = (
        tokens * run.width * (stack.matrices * stack.inner + 2 * stack.hidden)
    )  # gradients inside the current layer
    if checkpointing:
        return stack.layers * tokens * stack.hidden * run.width + layer + back
    return stack.layers * layer + back


def _layer_bytes(run: MemoryRun, stack: Stack) -> float:
    """Bytes that one layer keeps per token, counted as in Korthikanti et al. (section 4.1), for the layers of Llama and
    Qwen (RMSNorm, rotary positions, grouped queries, SwiGLU; transformers' modelling code).

    Both norms keep their input in float32. Attention (a fused kernel) keeps queries, keys, values and its output. The
    MLP keeps its gate, the gate's activation and the other branch; without a gate, one branch and its activation. A
    trained weight also keeps its input; a LoRA adapter keeps the input after dropout, the dropout mask and its own
    intermediate result.
    """
    width, hidden, inner = run.width, stack.hidden, stack.inner
    kept = 8 * hidden + width * (2 * stack.queries + 2 * stack.keys + stack.matrices * inner)
    if run.whole:
        return float(kept + width * (4 * hidden + inner))
    if run.tuner in ("lora", "lora_llm", "adalora", "longlora"):
        inputs = (2 + stack.matrices) * hidden + stack.queries + inner  # of q, k, v, gate, up; of o; of down
        mask = (4 if run.kind == "cpu" else 1) if run.value("lora_dropout") else 0
        return float(kept + inputs * (width + mask) + 7 * width * run.value("lora_rank"))
    return float(kept)


def _score_bytes(run: MemoryRun, stack: Stack, tokens: int) -> float:
    """Bytes of attention scores if attention is not fused: for every pair of tokens of a row, the score, its softmax in
    float32, and the softmax in the computation type."""
    if run.value("attn_impl") != "eager":
        return 0
    length = min(tokens, _length(run, run.rows.longest, image_tokens(run)))
    return float(tokens * length * stack.heads * (2 * run.width + 4))


def logit_bytes(run: MemoryRun) -> float:
    """Bytes of the logits of a batch and of the loss computed from them.

    As transformers computes it (``loss_utils.ForCausalLMLoss``), the backward pass holds the log softmax, its gradient
    and the gradient of the logits, all in float32. The forward pass takes less: the logits as computed and in float32,
    and the log softmax. On a CPU another float32 copy remains (measured with SmolLM2: 13 to 20 bytes per logit in
    total). Liger computes them in chunks as large as the hidden states (Hsu et al. 2024, section 3.2). A classifier has
    no logits.
    """
    tokens = _judged_tokens(run, run.longest_rows, run.rows.longest)
    if _selects_learned_tokens(run):
        tokens = min(tokens, run.fullest)
    tokens *= 2 if run.task.has_teacher else 1  # also those of the teacher
    if run.task.logits == "last":
        return (
            tokens * run.shape.vocabulary * 2 * run.width
        )  # and their gradient; only the last token is used
    if run.value("use_liger_kernel"):
        return tokens * run.shape.text.hidden * (run.width + 8)
    return float(tokens * run.shape.vocabulary * (16 if run.kind == "cpu" else 12))


_ALL_TOKENS = ("deepspeed", "fsdp", "device_map", "torch_compile", "enable_channel_loss", "loss_type")
"""Settings with which `msswift.select_learned_logits` leaves the logits of all tokens."""


def _selects_learned_tokens(run: MemoryRun) -> bool:
    """Whether padding gets no logits, see `msswift.select_learned_logits`, and the tokens without it are known."""
    tokens = run.task.loss_over == "tokens" and run.settings.get("acc_strategy", "token") == "token"
    whole = not any(map(run.settings.get, _ALL_TOKENS)) and run.settings.get("tuner_backend") != "unsloth"
    return bool(run.fullest and tokens and whole and run.shape.encoder is None)


def eval_logits(run: MemoryRun) -> float:
    """The same for an evaluation without a backward pass: the logits, also in float32, and the log softmax."""
    data = run.value("val_dataset") or run.value("split_dataset_ratio")
    if not data or run.value("eval_strategy") == "no" or run.value("use_liger_kernel"):
        return 0
    tokens = _judged_tokens(run, run.value("per_device_eval_batch_size"), run.rows.longest_val)
    ranks = run.task.logits == "last"
    return tokens * run.shape.vocabulary * (run.width + (0 if ranks else 8))


def _judged_tokens(run: MemoryRun, batch: float, longest: int) -> int:
    """Tokens of a batch that have logits. Newer models have none for image tokens, which precede the answer
    (ms-swift's ``use_logits_to_keep``); a classifier has none at all."""
    if run.task.logits == "none":
        return 0
    keeps_all = not run.shape.answers_only or run.task.logits == "last" or run.value("packing")
    return batch_tokens(run, batch, longest, image_tokens(run) if keeps_all else 0)


def generation_bytes(run: MemoryRun, training: float) -> float:
    """Memory for generating answers, in bytes. vLLM takes its share of the device, with ``sleep_level`` only while it
    generates; without vLLM, the keys and values of a batch are kept."""
    if not run.task.generates:
        return 0
    if run.value("use_vllm") and run.value("vllm_mode") == "colocate":
        taken = float(run.value("vllm_gpu_memory_utilization") * run.device_bytes)
        return max(0, taken - training) if run.value("sleep_level") else taken
    text = run.shape.text
    row = _length(run, run.rows.longest, image_tokens(run)) * text.layers * 2 * text.keys * run.width
    return float(run.value("per_device_train_batch_size") * row)
