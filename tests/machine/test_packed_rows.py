"""Rows without padding on a CPU: every family of models gives what it gives with padding, or is given padded rows."""

from __future__ import annotations

from typing import Any

import pytest

from swift_toolkit.machine import cpu

pytestmark = pytest.mark.slow

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTHS = [9, 4, 7]


def model_of(kind: str, **more: Any) -> Any:
    """A tiny model with random weights of one of transformers' families."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **more})).eval()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.2 + (weight.dim() == 1)
    return model


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", own)  # put back at the end
    cpu._attend_row_by_row()


@pytest.mark.usefixtures("by_rows")
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 9}),
        ("gemma2", {"sliding_window": 9}),
        ("phi3", {}),
        ("glm4", {}),
        ("olmo2", {}),
        ("gpt2", {}),
        ("gpt_neox", {"num_key_value_heads": 4}),
        ("starcoder2", {}),
    ],
)
def test_a_model_gives_the_same_without_padding(
    kind: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model = model_of(kind, **more)
    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in LENGTHS])
    ids = torch.randint(3, 99, (3, 9)) * mask
    longest = cpu._longest_packed(model)
    rows = cpu._Rows.of(mask, longest)
    assert rows is not None and rows.lengths == LENGTHS
    computed = []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, given: computed.append(given[0].count_nonzero(-1)))
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask).logits
        cpu._compute_without_padding(model.base_model)
        monkeypatch.setattr(cpu._Rows, "current", rows)
        packed = model(input_ids=ids, attention_mask=mask).logits
    real = mask.bool()
    assert (computed[-1][~real] == 0).all() and (computed[-1][real] > 0).all()  # nothing for padding
    torch.testing.assert_close(packed[real], padded[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("bert", {}),  # tokens see those after them
        ("bloom", {"n_head": 4}),  # positions in the mask
        ("doge", {}),  # more than positions in the mask
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("mamba", {}),
        ("recurrent_gemma", {"num_hidden_layers": 3}),
    ],
)
def test_a_model_that_needs_padded_rows_gets_them(kind: str, more: dict[str, Any]) -> None:
    assert cpu._longest_packed(model_of(kind, **more)) == 0


def test_rows_longer_than_the_window_of_the_attention_are_padded() -> None:
    import torch

    model = model_of("mistral", sliding_window=8)
    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in LENGTHS])
    assert cpu._Rows.of(mask, cpu._longest_packed(model)) is None


@pytest.mark.parametrize(
    "mask",
    [
        [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]],  # padding at the beginning
        [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1]],  # a gap
        [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]],  # too little padding
    ],
)
def test_micro_batches_that_are_computed_as_they_are(mask: list[list[int]]) -> None:
    import torch

    assert cpu._Rows.of(torch.tensor(mask), 1000) is None


def test_attention_other_than_sdpa_gets_padded_rows() -> None:
    model = model_of("llama")
    model.set_attn_implementation("eager")
    assert cpu._longest_packed(model) == 0
