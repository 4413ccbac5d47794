"""Faster steps of supervised training on a CPU: less is computed for padding, frozen layers and their adapters are
computed at once, and the library of matrix products is the faster one for this processor."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from swift_toolkit.machine.device import mkl_lacks_avx512
from swift_toolkit.machine.msswift import Generating, around_training_steps, supervises_text


def speed_up_steps() -> None:
    """Let supervised training on a CPU leave padded positions out of linear layers, which take most of its time,
    compute a frozen layer and its adapter at once, and multiply by frozen weights with oneDNN where MKL does not use
    AVX-512.

    The outputs of linear layers are 0 for padding; no token sees them. Dropout draws the same random numbers as with
    padding. Needed until ms-swift has ``padding_free`` without flash attention, and until MKL uses AVX-512 on AMD's
    processors: on two cores of an EPYC 9004, a step of the quickstart takes 10 to 16% less time with oneDNN, and
    6% less with adapters at once.
    """
    from peft.tuners.lora import layer
    from torch import backends, nn, ops

    if mkl_lacks_avx512() and backends.mkldnn.is_available() and hasattr(ops.mkldnn, "_linear_pointwise"):
        _Products.by_onednn = True
        _multiply_with_onednn(nn.Linear)
    _compute_adapters_at_once(layer.Linear)
    _skip_padding_in(nn.Linear)
    _skip_padding_in(layer.Linear)
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
        _Padding.current = (
            _Padding.of(inputs.get("attention_mask")) if _treats_tokens_alike(trainer) else None
        )
        yield
    finally:
        _Products.in_float32, _Padding.current = False, None


def _treats_tokens_alike(trainer: Any) -> bool:
    """Whether a trainer's model treats every token alike, and its code is known."""
    base = trainer.template.get_base_model(trainer.model)
    return type(base).__module__.startswith("transformers.") and not trainer.model.model_info.is_moe_model


# ---------------------------------------------------------------------------------------------------- padding


MOST_TOKENS = 0.88
"""Share of tokens in a micro-batch from which on leaving out its padding costs as much as it saves: each layer copies
its tokens out and back (measured on an Intel Xeon, with the rows of the quickstart)."""


@dataclass(frozen=True)
class _Padding:
    """Which positions of a micro-batch hold tokens.

    Args:
        shape: rows and positions.
        tokens: the positions of the tokens, counted over all rows.
    """

    shape: tuple[int, int]
    tokens: Any
    _last: list[_Selected] = field(default_factory=list, init=False, compare=False)

    current: ClassVar[_Padding | None] = None

    @classmethod
    def of(cls, mask: Any) -> _Padding | None:
        """The padding of a micro-batch; None if little of it is padding, or if a row begins with padding."""
        if mask is None or mask.dim() != 2 or not mask[:, 0].all():
            return None
        tokens = mask.flatten().nonzero().squeeze(1)
        return cls(tuple(mask.shape), tokens) if len(tokens) <= MOST_TOKENS * mask.numel() else None

    def select(self, inputs: Any) -> Any:
        """The tokens' part of ``inputs`` [rows, positions, features], as [tokens, features]; several layers in a row
        that are given the same inputs share it."""
        if self._last and self._last[0].comes_from(inputs):
            return self._last[0].outputs
        outputs = _functions_of_padding()[0].apply(inputs, self.tokens)
        self._last[:] = [_Selected(inputs, inputs._version, outputs)] if outputs.requires_grad else []
        return outputs

    def is_selected(self, x: Any) -> bool:
        """Whether ``x`` may be what `select` returns."""
        return x.dim() == 2 and len(x) == len(self.tokens)

    def spread(self, outputs: Any) -> Any:
        """The reverse of `select`, with 0 for padding."""
        return _functions_of_padding()[1].apply(outputs, self.tokens, self.shape)


@dataclass(frozen=True)
class _Selected:
    """The tokens' part of the inputs of a layer, and the version of the inputs that it was taken from."""

    inputs: Any
    version: int
    outputs: Any

    def comes_from(self, inputs: Any) -> bool:
        """Whether it is the tokens' part of ``inputs`` as they are now."""
        return inputs is self.inputs and inputs._version == self.version


def _select(inputs: Any, tokens: Any) -> Any:
    return inputs.flatten(0, 1).index_select(0, tokens)


def _spread(outputs: Any, tokens: Any, shape: tuple[int, int]) -> Any:
    out = outputs.new_zeros(shape[0] * shape[1], outputs.shape[-1])
    return out.index_copy_(0, tokens, outputs).view(*shape, -1)


@functools.cache
def _functions_of_padding() -> tuple[Any, Any]:
    """`_select` and `_spread` as differentiable functions; each is the derivative of the other."""
    from torch.autograd import Function

    class Select(Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, inputs: Any, tokens: Any) -> Any:
            context.tokens, context.shape = tokens, tuple(inputs.shape[:2])
            return _select(inputs, tokens)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            return _spread(gradient, context.tokens, context.shape), None

    class Spread(Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, outputs: Any, tokens: Any, shape: tuple[int, int]) -> Any:
            context.tokens = tokens
            return _spread(outputs, tokens, shape)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            return _select(gradient, context.tokens), None, None

    return Select, Spread


def _skip_padding_in(layer: Any) -> None:
    """Let a class of linear layers compute the tokens of a padded micro-batch only."""
    forward = layer.forward

    def without_padding(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        padding = _Padding.current
        if padding is None or kwargs or x.dim() != 3 or tuple(x.shape[:2]) != padding.shape:
            return forward(self, x, *args, **kwargs)
        return padding.spread(forward(self, padding.select(x), *args))

    layer.forward = without_padding


def _drop_as_if_padded(dropout: Any) -> None:
    """Let dropout draw for tokens without padding what it would draw for them with padding."""
    forward = dropout.forward

    def drop(self: Any, x: Any) -> Any:
        padding = _Padding.current
        alone = padding is not None and padding.is_selected(x)
        return x * _kept(self.p, x) if alone and self.training and 0 < self.p < 1 else forward(self, x)

    dropout.forward = drop


def _kept(p: float, x: Any) -> Any:
    """What dropout multiplies ``x`` by: 0 for the share ``p`` of the elements."""
    padding = _Padding.current
    if padding is None or not padding.is_selected(x):
        return x.new_empty(x.shape).bernoulli_(1 - p).div_(1 - p)
    kept = x.new_empty(*padding.shape, x.shape[-1]).bernoulli_(1 - p)
    return _select(kept, padding.tokens).div_(1 - p)


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
