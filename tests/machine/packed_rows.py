"""Computes tiny models of transformers' families with padding and without, and prints what it finds as JSON.

    python tests/machine/packed_rows.py <request.json>

The request: a list of [kind, settings of the configuration]. For each, the answer has ``longest`` (of
`cpu._longest_packed`) and, unless that is 0 or shorter than the rows, ``computed`` (which positions the output
embedding was given features for) and ``furthest`` (the largest difference between the logits of tokens, relative to
the largest logit).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from swift_toolkit.machine import cpu

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


def main(request: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    cpu._attend_row_by_row()
    return [compare(model_of(kind, **more)) for kind, more in request]


def model_of(kind: str, attention: str = "sdpa", **more: Any) -> Any:
    """A tiny model with random weights."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **more})).eval()
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.2 + (weight.dim() == 1)
    return model


def compare(model: Any) -> dict[str, Any]:
    mask = torch.tensor([[1] * length + [0] * (max(LENGTHS) - length) for length in LENGTHS])
    ids = torch.randint(3, 99, mask.shape) * mask
    longest = cpu._longest_packed(model)
    rows = cpu._Rows.of(mask, longest)
    if rows is None:
        return {"longest": longest}
    computed: list[Any] = []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, given: computed.append(given[0].count_nonzero(-1) > 0))
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask).logits
        cpu._compute_without_padding(model.base_model)
        cpu._Rows.current = rows
        packed = model(input_ids=ids, attention_mask=mask).logits
        cpu._Rows.current = None
    real = mask.bool()
    furthest = (packed - padded)[real].abs().max() / padded[real].abs().max()
    return {"longest": longest, "computed": computed[-1].sum(1).tolist(), "furthest": float(furthest)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
