"""A model directory with the shape of Qwen2.5-7B-Instruct, without its weights: for the times of checks.

The configuration, the names, shapes and data types of the tensors, the index of the four shards and the size of the
tokenizer (151,643 tokens) are those of the real model. The tensors are holes in sparse files.
"""

from __future__ import annotations

import json
import shutil
import struct
from itertools import product
from pathlib import Path

LAYERS, HIDDEN, INNER, KEYS, VOCABULARY, TOKENS, SHARDS = 28, 3584, 18944, 512, 152064, 151643, 4

_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}


def write_model(embedded: Path, folder: Path) -> None:
    """Write the model directory.

    Args:
        embedded: the directory of the embedded model, whose tokenizer is the start of this one's.
        folder: the directory to write; it must not exist.
    """
    folder.mkdir(parents=True)
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(embedded / name, folder)
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=2))
    tokenizer = _tokenizer(json.loads((embedded / "tokenizer.json").read_text(encoding="utf-8")))
    text = json.dumps(tokenizer, ensure_ascii=False, indent=2)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    _write_weights(folder)


def _tokenizer(content: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The tokenizer with more merges of pairs of its tokens, until it has as many as the real one."""
    vocabulary: dict[str, int] = content["model"]["vocab"]  # type: ignore[assignment]
    merges: list[str | list[str]] = content["model"]["merges"]  # type: ignore[assignment]
    parts = [token for token in vocabulary if token.isascii() and token.isalpha() and len(token) == 4]
    content["model"]["merges"] = merges = [one if isinstance(one, str) else " ".join(one) for one in merges]
    for pair in product(parts, parts):
        if len(vocabulary) >= TOKENS:
            break
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(" ".join(pair))
    return content


def _shapes() -> dict[str, list[int]]:
    """Names and shapes of all tensors, in the order of the files."""
    found = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN]}
    for layer in (f"model.layers.{number}" for number in range(LAYERS)):
        for name, rows in (("q_proj", HIDDEN), ("k_proj", KEYS), ("v_proj", KEYS)):
            found |= {
                f"{layer}.self_attn.{name}.weight": [rows, HIDDEN],
                f"{layer}.self_attn.{name}.bias": [rows],
            }
        found[f"{layer}.self_attn.o_proj.weight"] = [HIDDEN, HIDDEN]
        found |= {f"{layer}.mlp.{name}.weight": [INNER, HIDDEN] for name in ("gate_proj", "up_proj")}
        found[f"{layer}.mlp.down_proj.weight"] = [HIDDEN, INNER]
        found |= {
            f"{layer}.{name}.weight": [HIDDEN] for name in ("input_layernorm", "post_attention_layernorm")
        }
    return found | {"model.norm.weight": [HIDDEN], "lm_head.weight": [VOCABULARY, HIDDEN]}


def _write_weights(folder: Path) -> None:
    shapes = list(_shapes().items())
    each = -(-len(shapes) // SHARDS)
    weight_map = {}
    for number in range(SHARDS):
        name, header, end = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors", {}, 0
        for tensor, shape in shapes[number * each : (number + 1) * each]:
            start, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            weight_map[tensor] = name
        encoded = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            file.truncate(8 + len(encoded) + end)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
