"""How large a model is: its weights and the sizes that determine its activations.

Read from the model's config.json if there is one on this machine (a directory, an embedded model, the caches of the two
hubs), else taken from the size in its name ("-7B-", "-30B-A3B"). Nothing is read from the network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from math import log
from pathlib import Path

from swift_toolkit.model import builtin
from swift_toolkit.model.shape import ModelShape, Stack, from_config


def find_shape(model: str) -> ModelShape | None:
    """The sizes of ``model``: a directory, an embedded model or a hub name; None if they are unknown."""
    if model in builtin.BUILTIN:
        return from_config(builtin.BUILTIN[model].sizes, model, None)
    for directory in (Path(model).expanduser(), *_cached(model)):
        try:
            config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        shape = from_config(config, model, directory) if isinstance(config, dict) else None
        if shape is not None:
            return shape
    return _from_name(model)


def _cached(model: str) -> Iterable[Path]:
    """Where the hubs' own clients keep ``model``, newest snapshot first."""
    if model.count("/") != 1:
        return
    home = Path.home() / ".cache"
    huggingface = os.environ.get("HF_HUB_CACHE") or Path(
        os.environ.get("HF_HOME") or home / "huggingface", "hub"
    )
    folder = Path(huggingface, "models--" + model.replace("/", "--"), "snapshots")
    yield from sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    modelscope = Path(os.environ.get("MODELSCOPE_CACHE") or home / "modelscope")
    for parts in (("models",), ("hub", "models"), ("hub",)):
        yield modelscope.joinpath(*parts, *(part.replace(".", "___") for part in model.split("/")))


# --- name ---------------------------------------------------------------------------------------------------

# layers, hidden size, width of the MLP, query heads, key heads, size of a head: the config.json of SmolLM2-135M and of
# the Qwen2.5 models, by billions of weights. Models of one size differ little in what matters here.
_LADDER = {
    0.135: (30, 576, 1536, 9, 3, 64),
    0.49: (24, 896, 4864, 14, 2, 64),
    1.54: (28, 1536, 8960, 12, 2, 128),
    3.09: (36, 2048, 11008, 16, 2, 128),
    7.62: (28, 3584, 18944, 28, 4, 128),
    14.8: (48, 5120, 13824, 40, 8, 128),
    32.8: (64, 5120, 27648, 40, 8, 128),
    72.7: (80, 8192, 29568, 64, 8, 128),
}

_NEWEST = 248320  # of models added in transformers 5

# Vocabularies by the prefix of the model's name; from the config.json of each.
_VOCABULARIES = (
    (r"qwen3\.[5-9]|minicpm-v-4\.6", _NEWEST),
    (r"gemma-?3|gemma-?4|medgemma", 262208),
    (r"gemma|paligemma|c4ai|command|aya", 256000),
    (r"gpt-oss|phi-4-m", 201088),
    (r"minimax", 200064),
    (r"kimi|moonlight", 163840),
    (r"deepseek-v[34]|deepseek-r1-0|deepseek-r1$|deepseek-vl2|deepseek-ocr", 129280),
    (r"llama-?[34]|meta-llama-3|deepseek-r1-distill-llama|hermes-3", 128256),
    (r"mistral-(nemo|small|large)|pixtral|ministral|magistral|devstral", 131072),
    (r"baichuan2", 125696),
    (r"deepseek", 102400),
    (r"phi-4", 100352),
    (r"internlm|internvl2-[28]b|internvl2_5-[28]b", 92544),
    (r"minicpm(?!-v|-o|-llama)", 73448),
    (r"chatglm|yi-", 65024),
    (r"smollm|smolvlm", 49280),
    (
        r"phi-|llama|vicuna|mistral|mixtral|tinyllama|llava-(1\.5|v1\.5|v1\.6-(vicuna|mistral))|zephyr|alpaca",
        32064,
    ),
)
_VOCABULARY = 152064  # Qwen2, Qwen2.5 and Qwen3, GLM-4, and models based on them

# Billions of weights where the name does not state them or rounds them a lot; from the model cards.
_PARAMETERS = (
    (r"qwen2\.5-omni-7b", 10.7),
    (r"qwen2\.5-omni-3b", 5.5),
    (r"qwen2(\.5)?-vl-72b", 73.4),
    (r"qwen2(\.5)?-vl-7b", 8.29),
    (r"qwen2\.5-vl-3b", 3.75),
    (r"qwen2-vl-2b", 2.21),
    (r"qwen3-vl-[a-z]*-?8b", 8.77),
    (r"qwen3-vl-[a-z]*-?4b", 4.44),
    (r"qwen2-audio-7b", 8.4),
    (r"qwen3-omni-30b", 35.3),
    (r"deepseek-r1-distill-qwen-1\.5b", 1.78),
    (r"qwen2(\.5)?-([a-z]+-)?7b|deepseek-r1-distill-qwen-7b", 7.62),
    (r"qwen2\.5-([a-z]+-)?14b|deepseek-r1-distill-qwen-14b", 14.8),
    (r"gpt-oss-20b", 20.9),
    (r"deepseek-ocr", 3.34),
    (r"deepseek-vl2-tiny", 3.37),
    (r"deepseek-vl2-small", 16.1),
    (r"deepseek-vl2$", 27.5),
    (r"deepseek-v2-lite|deepseek-moe-16b|deepseek-coder-v2-lite", 15.7),
    (r"deepseek-(v3|r1)(?!.*\d+b)", 671.0),
    (r"kimi-vl-a3b", 16.4),
    (r"minicpm-v-4\.6", 1.3),
    (r"minicpm-v-4[._]5|minicpm-o-2_6", 8.7),
    (r"minicpm-v-2_6|minicpm-llama3-v-2_5", 8.3),
    (r"minicpm-v-4$", 4.1),
    (r"glm-4v-9b", 13.9),
    (r"glm-4\.[56]v(?!-flash)|glm-4\.5-air", 107.0),
    (r"glm-4\.[5-7]$", 355.0),
    (r"emu3", 8.5),
    (r"got-ocr", 0.56),
    (r"phi-4-multimodal", 5.57),
    (r"phi-(3|3\.5|4)-(mini|vision)", 4.0),
    (r"phi-4$", 14.7),
    (r"mixtral-8x7b", 46.7),
    (r"mixtral-8x22b", 141.0),
    (r"gpt-oss-120b", 117.0),
    (r"gemma-3n-e2b", 5.4),
    (r"gemma-3n-e4b", 7.8),
    (r"llama-4-scout", 109.0),
    (r"ovis2\.5-2b", 2.57),
)

# Billions of active weights of models whose name states only the total, or nothing.
_ACTIVE = (
    (r"deepseek-ocr", 0.57),
    (r"deepseek-vl2-tiny", 1.0),
    (r"deepseek-vl2-small|deepseek-v2-lite|deepseek-moe|deepseek-coder-v2-lite", 2.8),
    (r"deepseek-vl2$", 4.5),
    (r"deepseek-(v3|r1)(?!.*\d+b)", 37.0),
    (r"gpt-oss-20b", 3.6),
    (r"gpt-oss-120b", 5.1),
    (r"mixtral-8x7b", 12.9),
    (r"mixtral-8x22b", 39.0),
    (r"glm-4\.[56]v|glm-4\.5-air", 12.0),
    (r"glm-4\.[5-7]$", 32.0),
    (r"llama-4-scout", 17.0),
)

_SEES = (
    r"vl|vision|omni|multimodal|llava|ovis|keye|minicpm-[vo]|ocr|glm-4[.\d]*v|pixtral|gemma-3-|qwen3\.[5-9]|audio"
    r"|florence|molmo|idefics|mllama"
)
_ENCODER = Stack(
    27, 1152, 4304, 1152, 1152, 16, gated=False
)  # SigLIP-so400m; the encoders of most models have about this size
_LARGE_ENCODER = Stack(32, 1280, 3420, 1280, 1280, 16)  # Qwen2-VL and Qwen2.5-VL

_SIZE = re.compile(r"(?<![a-z\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)(b|m)(?![a-z\d])")
_ACTIVE_SIZE = re.compile(r"(?<![a-z\d])a(\d+(?:\.\d+)?)b(?![a-z\d])")


def _from_name(model: str) -> ModelShape | None:
    """The sizes of a model whose name states its size."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    billions = _listed(_PARAMETERS, name) or _size_in(name)
    if not billions:
        return None
    found = _ACTIVE_SIZE.search(name)
    active = float(found[1]) if found else _listed(_ACTIVE, name)
    nearest = min(_LADDER, key=lambda size: abs(_log_ratio(size, active or billions)))
    layers, hidden, inner, heads, keys, head = _LADDER[nearest]
    text = Stack(layers, hidden, inner, heads * head, keys * head, heads)
    vocabulary = int(_listed(_VOCABULARIES, name) or _VOCABULARY)
    tied = (active or billions) < 5 and not active
    encoder = (_LARGE_ENCODER if re.search(r"qwen2", name) else _ENCODER) if re.search(_SEES, name) else None
    parameters = int(billions * 1e9)
    embeddings = vocabulary * hidden * (1 if tied else 2)
    seen = encoder.linear if encoder else 0
    experts = max(0, parameters - text.linear - embeddings - seen) if active else 0
    return ModelShape(
        *(parameters, text, vocabulary, tied, experts, encoder, _bits_in(name)),
        patches_per_token=4,
        answers_only=vocabulary == _NEWEST,
        source="the size in its name" if _size_in(name) else "its name",
    )


def _listed(table: Iterable[tuple[str, float]], name: str) -> float | None:
    return next((value for pattern, value in table if re.search(pattern, name)), None)


def _log_ratio(one: float, other: float) -> float:
    return log(one / other)


def _size_in(name: str) -> float | None:
    """Billions of weights by the name. Experts share attention, so "8x7b" is scaled by 0.83 (Mixtral: 46.7 of 56)."""
    found = _SIZE.search(_ACTIVE_SIZE.sub("", name))
    if not found:
        return None
    experts, size = int(found[1] or 0), float(found[2]) / (1000 if found[3] == "m" else 1)
    return size * experts * 0.83 if experts else size


def _bits_in(name: str) -> float:
    """Bits of a weight of a model that is published quantised."""
    if re.search(r"awq|int4|4bit|w4a16", name):
        return 4.16
    if re.search(r"gptq", name):
        return 8.0 if "int8" in name else 4.16
    return 8.0 if re.search(r"int8|8bit|fp8", name) else 16
