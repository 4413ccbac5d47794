"""Faster steps of supervised training on a CPU: less is computed for padding, and the library of matrix products is the
faster one for this processor."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from swift_toolkit.machine.device import mkl_lacks_avx512
from swift_toolkit.machine.msswift import Generating, around_training_steps, supervises_text


def speed_up_steps() -> None:
    """Let supervised training on a CPU leave padded positions out of linear layers, which take most of its time, and
    multiply by frozen weights with oneDNN where MKL does not use AVX-512.

    The outputs of linear layers are 0 for padding; no token sees them. Dropout draws the same random numbers as with
    padding. Needed until ms-swift has ``padding_free`` without flash attention, and until MKL uses AVX-512 on AMD's
    processors: on two cores of an EPYC 9004, a step of the quickstart takes 10 to 16% less time with oneDNN.
    """
    from peft.tuners.lora import layer
    from torch import backends, nn, ops

    if mkl_lacks_avx512() and backends.mkldnn.is_available() and hasattr(ops.mkldnn, "_linear_pointwise"):
        _multiply_with_onednn(nn.Linear)
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
        _OneDnn.used = trainer.accelerator.mixed_precision in (None, "no")
        _Padding.current = (
            _Padding.of(inputs.get("attention_mask")) if _treats_tokens_alike(trainer) else None
        )
        yield
    finally:
        _OneDnn.used, _Padding.current = False, None


def _treats_tokens_alike(trainer: Any) -> bool:
    """Whether a trainer's model treats every token alike, and its code is known."""
    base = trainer.template.get_base_model(trainer.model)
    return type(base).__module__.startswith("transformers.") and not trainer.model.model_info.is_moe_model


# ---------------------------------------------------------------------------------------------------- padding


@dataclass(frozen=True)
class _Padding:
    """Which positions of a micro-batch hold tokens.

    Args:
        shape: rows and positions.
        tokens: the positions of the tokens, counted over all rows.
    """

    shape: tuple[int, int]
    tokens: Any

    current: ClassVar[_Padding | None] = None

    @classmethod
    def of(cls, mask: Any) -> _Padding | None:
        """The padding of a micro-batch; None if little of it is padding, or if a row begins with padding."""
        if mask is None or mask.dim() != 2 or not mask[:, 0].all():
            return None
        tokens = mask.flatten().nonzero().squeeze(1)
        return cls(tuple(mask.shape), tokens) if len(tokens) <= 0.97 * mask.numel() else None

    def select(self, inputs: Any) -> Any:
        """The tokens' part of ``inputs`` [rows, positions, features], as [tokens, features]."""
        return _functions_of_padding()[0].apply(inputs, self.tokens)

    def spread(self, outputs: Any) -> Any:
        """The reverse of `select`, with 0 for padding."""
        return _functions_of_padding()[1].apply(outputs, self.tokens, self.shape)


@functools.cache
def _functions_of_padding() -> tuple[Any, Any]:
    """Differentiable functions that select the tokens, and that spread them; each is the derivative of the other."""
    from torch.autograd import Function

    def select(inputs: Any, tokens: Any) -> Any:
        return inputs.flatten(0, 1).index_select(0, tokens)

    def spread(outputs: Any, tokens: Any, shape: tuple[int, int]) -> Any:
        out = outputs.new_zeros(shape[0] * shape[1], outputs.shape[-1])
        return out.index_copy_(0, tokens, outputs).view(*shape, -1)

    class Select(Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, inputs: Any, tokens: Any) -> Any:
            context.tokens, context.shape = tokens, tuple(inputs.shape[:2])
            return select(inputs, tokens)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            return spread(gradient, context.tokens, context.shape), None

    class Spread(Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, outputs: Any, tokens: Any, shape: tuple[int, int]) -> Any:
            context.tokens = tokens
            return spread(outputs, tokens, shape)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            return select(gradient, context.tokens), None, None

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
        alone = padding is not None and x.dim() == 2 and len(x) == len(padding.tokens)
        if padding is None or not alone or not self.training or not 0 < self.p < 1:
            return forward(self, x)
        kept = padding.select(x.new_empty(*padding.shape, x.shape[-1]).bernoulli_(1 - self.p))
        return x * kept.div_(1 - self.p)

    dropout.forward = drop


# --------------------------------------------------------------------------------------------- matrix products

LARGE = 1 << 16
"""Elements of a weight from which on oneDNN saves more time than a function in Python costs."""


class _OneDnn:
    """Whether products with large frozen weights are oneDNN's at the moment."""

    used: ClassVar[bool] = False


def _multiply_with_onednn(layer: Any) -> None:
    """Let a class of linear layers multiply by large frozen weights in float32 with oneDNN."""
    forward = layer.forward

    def multiply(self: Any, x: Any) -> Any:
        if _OneDnn.used and _is_frozen_product(x, self.weight, self.bias):
            return _product().apply(x, self.weight, self.bias)
        return forward(self, x)

    layer.forward = multiply


def _is_frozen_product(x: Any, weight: Any, bias: Any) -> bool:
    """Whether a large weight and its bias are frozen, and all is in float32."""
    import torch

    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    return frozen and weight.numel() >= LARGE and x.dtype == weight.dtype == torch.float32


@functools.cache
def _product() -> Any:
    """The differentiable function of a linear layer with a frozen weight and bias, computed by oneDNN."""
    import torch
    from torch.autograd import Function

    product = torch.ops.mkldnn._linear_pointwise

    class Product(Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, x: Any, weight: Any, bias: Any) -> Any:
            context.save_for_backward(weight)
            return product(x, weight, bias, "none", [], "")

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            (weight,) = context.saved_tensors
            return product(gradient, weight.t(), None, "none", [], ""), None, None

    return Product
