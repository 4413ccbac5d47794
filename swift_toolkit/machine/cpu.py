"""Faster steps of supervised training on a CPU: nothing is computed for padding, frozen layers and their adapters are
computed at once, and the library of matrix products is the faster one for this processor."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from swift_toolkit.machine.device import mkl_lacks_avx512
from swift_toolkit.machine.msswift import Generating, around_training_steps, supervises_text


def speed_up_steps() -> None:
    """Let supervised training on a CPU concatenate the rows of a micro-batch instead of padding them, compute a frozen
    layer and its adapter at once, and multiply by frozen weights with oneDNN where MKL does not use AVX-512.

    Dropout of adapters and of layers draws the same random numbers as with padding. Needed until ms-swift has
    ``padding_free`` without flash attention, and until MKL uses AVX-512 on AMD's processors: on two cores of an EPYC
    9004, a step of the quickstart takes 10 to 16% less time with oneDNN, and 6% less with adapters at once; on two
    cores of an Intel Xeon it takes 5 to 9% less without padding.
    """
    from peft.tuners.lora import layer
    from torch import backends, nn, ops

    if mkl_lacks_avx512() and backends.mkldnn.is_available() and hasattr(ops.mkldnn, "_linear_pointwise"):
        _Products.by_onednn = True
        _multiply_with_onednn(nn.Linear)
    _compute_adapters_at_once(layer.Linear)
    _attend_row_by_row()
    _drop_as_if_padded(nn.Dropout)
    around_training_steps(_faster)


@contextlib.contextmanager
def _faster(trainer: Any, inputs: Generating) -> Iterator[None]:
    """What a micro-batch is computed in."""
    if trainer.args.device.type != "cpu" or not supervises_text(trainer):
        yield
        return
    try:
        _Products.in_float32 = trainer.accelerator.mixed_precision in (None, "no")
        if not hasattr(trainer, "longest_packed"):
            trainer.longest_packed = _pack_rows(trainer)
        _Rows.current = _Rows.of(inputs.get("attention_mask"), trainer.longest_packed)
        yield
    finally:
        _Products.in_float32, _Rows.current = False, None


# ---------------------------------------------------------------------------------------------------- padding


ROW_TOKENS = 2
"""What it costs more, in tokens, to compute the attention of a row by itself than as part of a padded micro-batch: 30
layers times about 0.2 ms in SmolLM2-135M, where a token takes 3 ms (two cores of an Intel Xeon)."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a micro-batch while they are computed without padding, one after the other in a single row.

    Args:
        shape: rows and positions with padding.
        lengths: tokens of each row.
        tokens: the positions of the tokens, counted over all rows.
    """

    shape: tuple[int, int]
    lengths: list[int]
    tokens: Any

    current: ClassVar[_Rows | None] = None

    @classmethod
    def of(cls, mask: Any, longest: int) -> _Rows | None:
        """The rows of a micro-batch; None if too little of it is padding, if a row is longer than ``longest``, or if
        there is padding other than at the end of rows."""
        if mask is None or mask.dim() != 2 or mask.shape[1] > longest:
            return None
        if not mask[:, 0].all() or (mask[:, 1:] > mask[:, :-1]).any():
            return None
        tokens = mask.flatten().nonzero().squeeze(1)
        if mask.numel() - len(tokens) <= ROW_TOKENS * len(mask):
            return None
        return cls(tuple(mask.shape), mask.sum(1).tolist(), tokens)

    def are_in(self, x: Any) -> bool:
        """Whether ``x`` [1, tokens, features] may be what a layer computes of the rows."""
        return x.dim() == 3 and len(x) == 1 and x.shape[1] == len(self.tokens)

    def select(self, x: Any) -> Any:
        """The tokens' part of ``x`` [rows, positions, ...], as [1, tokens, ...]."""
        return x.flatten(0, 1).index_select(0, self.tokens)[None]

    def spread(self, x: Any) -> Any:
        """The reverse of `select`, with 0 for padding."""
        rows, positions = self.shape
        padded = x.new_zeros(rows * positions, x.shape[-1]).index_copy(0, self.tokens, x[0])
        return padded.view(rows, positions, -1)


def _pack_rows(trainer: Any) -> int:
    """Let a trainer's model compute the rows of `_Rows` without padding. Returns how long they may be, in tokens; 0 if
    the model must be given padded rows."""
    model = trainer.template.get_base_model(trainer.model)
    longest = 0 if trainer.model.model_info.is_moe_model else _longest_packed(model)
    if longest:
        _compute_without_padding(model.base_model)
    return longest


def _longest_packed(model: Any) -> int:
    """Up to what number of tokens a row of ``model`` depends on its own tokens and their positions alone, if all of its
    attention is `_attend_row_by_row`'s; 0 if it is not, or if that is not known."""
    from torch import nn

    config, modules = model.config, list(model.modules())
    kinds = set(getattr(config, "layer_types", None) or ())
    known = type(model).__module__.startswith("transformers.") and model.base_model is not model
    attends = getattr(model, "_supports_attention_backend", False) and config._attn_implementation == "sdpa"
    others = getattr(model, "_is_stateful", False) or any(isinstance(one, nn.Conv1d) for one in modules)
    both_ways = not all(getattr(one, "is_causal", True) for one in modules)
    if not known or not attends or others or both_ways or config.model_type in _OWN_MASKS:
        return 0
    if kinds - {"full_attention", "sliding_attention"}:
        return 0
    return getattr(config, "sliding_window", None) or _UNLIMITED


_OWN_MASKS = ("doge",)
"""Models of transformers that add to the mask of their attention: with tiny models of all its families that
`_longest_packed` accepts, only these gave other outputs without padding."""

_UNLIMITED = 1 << 62


def _compute_without_padding(decoder: Any) -> None:
    """Let a model without its output embedding compute the tokens of `_Rows` only, and return 0 for padding."""
    forward = decoder.forward

    def without_padding(
        input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any
    ) -> Any:
        rows = _Rows.current
        if rows is None or input_ids is None or tuple(input_ids.shape) != rows.shape:
            return forward(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )
        places = (rows.tokens % rows.shape[1])[None] if position_ids is None else rows.select(position_ids)
        outputs = forward(
            input_ids=rows.select(input_ids), attention_mask=None, position_ids=places, **kwargs
        )
        outputs.last_hidden_state = rows.spread(outputs.last_hidden_state)
        return outputs

    decoder.forward = without_padding


def _attend_row_by_row() -> None:
    """Let transformers' models compute the attention of `_Rows` row by row: tokens see those before them in their own
    row, without a mask."""
    from torch import cat
    from transformers import modeling_utils

    functions = getattr(modeling_utils, "ALL_ATTENTION_FUNCTIONS", {})  # since transformers 4.48
    if "sdpa" not in functions:
        return
    own = functions["sdpa"]

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
    ) -> tuple[Any, None]:
        rows = _Rows.current
        if rows is None or query.shape[2] != len(rows.tokens):
            found: tuple[Any, None] = own(module, query, key, value, attention_mask, **kwargs)
            return found
        parts = zip(*(one.split(rows.lengths, 2) for one in (query, key, value)), strict=True)
        return cat([own(module, *part, None, **kwargs)[0] for part in parts], 1), None

    functions["sdpa"] = attend


def _drop_as_if_padded(dropout: Any) -> None:
    """Let dropout draw for tokens without padding what it would draw for them with padding."""
    forward = dropout.forward

    def drop(self: Any, x: Any) -> Any:
        rows = _Rows.current
        packed = rows is not None and rows.are_in(x)
        return x * _kept(self.p, x) if packed and self.training and 0 < self.p < 1 else forward(self, x)

    dropout.forward = drop


def _kept(p: float, x: Any) -> Any:
    """What dropout multiplies ``x`` by: 0 for the share ``p`` of the elements."""
    rows = _Rows.current
    if rows is None or not rows.are_in(x):
        return x.new_empty(x.shape).bernoulli_(1 - p).div_(1 - p)
    return rows.select(x.new_empty(*rows.shape, x.shape[-1]).bernoulli_(1 - p)).div_(1 - p)


# --------------------------------------------------------------------------------------------- matrix products

LARGE = 1 << 16
"""Elements of a weight from which on oneDNN saves more time than a function in Python costs."""


class _Products:
    """Whether all products are in float32 at the moment, and whether oneDNN computes the large ones."""

    in_float32: ClassVar[bool] = False
    by_onednn: ClassVar[bool] = False


def _multiply_with_onednn(layer: Any) -> None:
    """Let a class of linear layers multiply by large frozen weights in float32 with oneDNN."""
    forward = layer.forward

    def multiply(self: Any, x: Any) -> Any:
        if self.weight.numel() >= LARGE and _is_frozen_product(x, self.weight, self.bias):
            return _product().apply(x, self.weight, self.bias)
        return forward(self, x)

    layer.forward = multiply


def _is_frozen_product(x: Any, weight: Any, bias: Any) -> bool:
    """Whether a weight and its bias are frozen, and all is in float32."""
    import torch

    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    return _Products.in_float32 and frozen and x.dtype == weight.dtype == torch.float32


def _times(x: Any, weight: Any, bias: Any = None) -> Any:
    """The product of a linear layer, by the faster library for this processor."""
    from torch import nn, ops

    if _Products.by_onednn and weight.numel() >= LARGE:
        return ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


@functools.cache
def _product() -> Any:
    """The differentiable function of a linear layer with a frozen weight and bias."""
    from torch.autograd import Function

    class Product(Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, x: Any, weight: Any, bias: Any) -> Any:
            context.save_for_backward(weight)
            return _times(x, weight, bias)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            (weight,) = context.saved_tensors
            return _times(gradient, weight.t()), None, None

    return Product


# --------------------------------------------------------------------------------------------------- adapters


def _compute_adapters_at_once(layer: Any) -> None:
    """Let a class of LoRA layers compute a frozen linear layer and its adapter as one differentiable function."""
    forward = layer.forward

    def adapt(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        base, name = self.base_layer, None if args or kwargs else _plain_adapter(self)
        if name is None or x.dim() < 2 or not _is_frozen_product(x, base.weight, base.bias):
            return forward(self, x, *args, **kwargs)
        a, b, dropout = self.lora_A[name].weight, self.lora_B[name].weight, self.lora_dropout[name]
        kept = _kept(dropout.p, x) if dropout.training and getattr(dropout, "p", 0) else None
        return _adapted().apply(x, a, b, base.weight, base.bias, kept, self.scaling[name])

    layer.forward = adapt


def _plain_adapter(layer: Any) -> str | None:
    """The name of the adapter that a LoRA layer trains, if it is the only one, in float32 and of no variant of LoRA,
    and if nothing looks at the layer's parts."""
    from torch import float32, nn

    if not layer.training or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in getattr(layer, "lora_variant", layer.lora_A):
        return None
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    known = all(type(one) is nn.Linear for one in (layer.base_layer, a, b))
    known = known and type(dropout) in (nn.Dropout, nn.Identity) and getattr(dropout, "p", 0) < 1
    hooked = any(
        one._forward_hooks or one._forward_pre_hooks or one._backward_hooks or one._backward_pre_hooks
        for one in (layer.base_layer, a, b, dropout)
    )
    float32s = a.weight.dtype == b.weight.dtype == float32 and b.bias is None
    return name if known and not hooked and float32s else None


@functools.cache
def _adapted() -> Any:
    """The differentiable function of a linear layer with a frozen weight and bias, and its adapter ``b`` times ``a``.

    It differs from peft's ``W x + b(a(dropout(x))) * scale`` by the order of its sums: fewer passes over large tensors,
    and products with the short side of an adapter in the order that MKL computes fastest.
    """
    from torch.autograd import Function

    class Adapted(Function):  # type: ignore[misc]
        @staticmethod
        def forward(
            context: Any, x: Any, a: Any, b: Any, weight: Any, bias: Any, kept: Any, scale: float
        ) -> Any:
            rows = x.flatten(0, -2)
            dropped = rows if kept is None else rows * kept.flatten(0, -2)
            inner = a.mm(dropped.t())
            context.save_for_backward(a, b, weight, kept, dropped, inner)
            context.scale = scale
            out = _times(rows, weight, bias).addmm_(inner.t(), b.t(), alpha=scale)
            return out.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            a, b, weight, kept, dropped, inner = context.saved_tensors
            rows = gradient.flatten(0, -2)
            inside = b.t().mm(rows.t()).mul_(context.scale)
            to_a, to_b = inside.mm(dropped), inner.mm(rows).mul_(context.scale).t()
            if not context.needs_input_grad[0]:
                return None, to_a, to_b, None, None, None, None
            to_x = _times(rows, weight.t())
            if kept is None:
                to_x.addmm_(inside.t(), a)
            else:
                to_x.addcmul_(inside.t().mm(a), kept.flatten(0, -2))
            return to_x.view(*gradient.shape[:-1], -1), to_a, to_b, None, None, None, None

    return Adapted
