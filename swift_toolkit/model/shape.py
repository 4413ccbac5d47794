"""The sizes of a model's layers, read from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stack:
    """Transformer layers of one kind.

    Args:
        layers: number of layers.
        hidden: width between the layers.
        inner: width of the MLP for one token; in a mixture of experts, of all experts that a token is routed to.
        queries: total width of the query heads.
        keys: total width of the key heads, equal to that of the value heads.
        heads: number of query heads.
        gated: the MLP has three matrices (SwiGLU and the like), not two.
    """

    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    heads: int
    gated: bool = True

    @property
    def matrices(self) -> int:
        """Matrices of the MLP: up, down and, if gated, the gate."""
        return 3 if self.gated else 2

    @property
    def linear(self) -> int:
        """Weights of the linear layers, without biases and without experts that a token does not use."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        return self.layers * (attention + self.matrices * self.hidden * self.inner)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model.

    Args:
        parameters: total number of weights.
        text: the layers of the language model.
        vocabulary: rows of the embedding.
        tied: whether the output layer shares the embedding's weights.
        experts: weights of routed experts, 0 if there are none.
        encoder: the layers of the vision or audio encoder, None for a text model.
        bits: bits of a weight that is stored quantised, 16 otherwise.
        context: the longest sequence it supports, in tokens; None if not known.
        patches: patches of the largest image if the image size is fixed, None if images keep their own size.
        patches_per_token: patches that become one token.
        answers_only: its code is from transformers 5, whose models can compute the logits of answers only.
        source: where the sizes come from.
    """

    parameters: int
    text: Stack
    vocabulary: int
    tied: bool = False
    experts: int = 0
    encoder: Stack | None = None
    bits: float = 16
    context: int | None = None
    patches: int | None = None
    patches_per_token: int = 1
    answers_only: bool = False
    source: str = ""

    @property
    def encoder_parameters(self) -> int:
        """Weights of the linear layers of the encoder, without the aligner."""
        return self.encoder.linear if self.encoder else 0

    @property
    def embeddings(self) -> int:
        """Weights of the embedding and the output layer."""
        return self.vocabulary * self.text.hidden * (1 if self.tied else 2)


# --- config.json --------------------------------------------------------------------------------------------


class ModelConfig:
    """A model's config.json, or a part of it, read by type: a value of the wrong type counts as missing.

    Args:
        content: the JSON object.
    """

    def __init__(self, content: Mapping[str, object]) -> None:
        self._content = content

    def __bool__(self) -> bool:
        return bool(self._content)

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def part(self, *names: str) -> ModelConfig:
        """The first of these parts that exists, else an empty one."""
        values = map(self._content.get, names)
        return ModelConfig(next((value for value in values if isinstance(value, dict)), {}))

    def over(self, outer: ModelConfig, *names: str) -> ModelConfig:
        """This part, with missing ``names`` filled in from the part around it."""
        return ModelConfig(
            {name: outer._content[name] for name in names if name in outer} | {**self._content}
        )

    def size(self, *names: str) -> int:
        """The first of these sizes that exists, the largest of a list; 0 if there is none."""
        for name in names:
            value = self._content.get(name)
            sizes = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
            if sizes and max(sizes) > 0:
                return max(sizes)
        return 0

    def text(self, *names: str) -> str:
        """The first of these strings that exists, else an empty one."""
        values = map(self._content.get, names)
        return next((value for value in values if isinstance(value, str) and value), "")

    def flag(self, name: str, default: bool = False) -> bool:
        """Whether this is set."""
        return bool(self._content.get(name, default))


def from_config(content: Mapping[str, object], model: str, directory: Path | None) -> ModelShape | None:
    """The sizes in a config.json; None if the main ones are missing."""
    config = ModelConfig(content)
    outer = config.part("thinker_config") or config
    text = outer.part("text_config", "llm_config", "language_config") or outer
    text = text.over(outer, "vocab_size", "tie_word_embeddings")
    stack, vocabulary = _stack(text), text.size("vocab_size", "padded_vocab_size")
    if stack is None or not vocabulary:
        return None
    vision = outer.part("vision_config", "visual", "vit_config", "audio_config", "audio_encoder_config")
    encoder = _encoder(vision)
    tied = text.flag("tie_word_embeddings", default=True)
    experts = _experts(text, stack)
    counted = stack.linear + vocabulary * stack.hidden * (1 if tied else 2) + experts
    counted += encoder.linear if encoder else 0
    bits = _stored_bits(config.part("quantization_config"))
    stored = _stored_bytes(directory) if directory and bits == 16 else 0
    wide = config.text("dtype", "torch_dtype") == "float32"
    return ModelShape(
        stored // (4 if wide else 2) or counted,
        *(stack, vocabulary, tied, experts, encoder, bits),
        context=text.size("max_position_embeddings", "seq_length") or None,
        patches=_patches(vision),
        patches_per_token=(vision.size("spatial_merge_size") or 1) ** 2,
        answers_only=config.text("transformers_version").startswith("5"),
        source="config.json" if directory else f"known for {model}",
    )


def _stack(config: ModelConfig) -> Stack | None:
    hidden = config.size("hidden_size", "n_embd", "d_model")
    layers = config.size("num_hidden_layers", "num_layers", "n_layer")
    heads = config.size("num_attention_heads", "n_head")
    if not (hidden and layers and heads):
        return None
    inner = config.size("intermediate_size", "ffn_hidden_size", "n_inner") or 4 * hidden
    if each := _expert_width(config):
        inner = each * (config.size("num_experts_per_tok", "moe_topk") or 1) + _shared_width(config, each)
    head = config.size("head_dim") or hidden // heads
    keys = config.size("num_key_value_heads", "multi_query_group_num") or heads
    return Stack(layers, hidden, inner, heads * head, keys * head, heads)


def _expert_count(config: ModelConfig) -> int:
    return config.size("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def _expert_width(config: ModelConfig) -> int:
    """Width of one routed expert, 0 without experts."""
    return config.size("moe_intermediate_size", "intermediate_size") if _expert_count(config) > 1 else 0


def _shared_width(config: ModelConfig, each: int) -> int:
    return config.size("shared_expert_intermediate_size") or each * config.size("n_shared_experts")


def _experts(config: ModelConfig, stack: Stack) -> int:
    """Weights of the routed experts that one token does not use."""
    each = _expert_width(config)
    routed = stack.inner - _shared_width(config, each)
    return 3 * stack.layers * stack.hidden * (each * _expert_count(config) - routed) if each else 0


def _encoder(config: ModelConfig) -> Stack | None:
    """The layers of a vision or audio encoder. In Qwen models with an ``embed_dim``, ``hidden_size`` is the output
    width of the encoder."""
    hidden = config.size("embed_dim", "hidden_size", "d_model", "width")
    layers = config.size("depth", "num_hidden_layers", "encoder_layers", "layers")
    heads = config.size("num_heads", "num_attention_heads", "encoder_attention_heads", "heads") or 16
    own = (
        ("out_hidden_size",) if config.text("model_type") == "glm4v_vision" else ()
    )  # its intermediate size belongs to the merger
    inner = config.size(*own, "intermediate_size", "encoder_ffn_dim") or 4 * hidden
    gated = _is_gated(config)
    return Stack(layers, hidden, inner, hidden, hidden, heads, gated) if hidden and layers else None


def _is_gated(encoder: ModelConfig) -> bool:
    """Whether the MLP of an encoder has a gate: it does with SiLU (Qwen2.5-VL, GLM-4.1V, AIMv2) and in Pixtral, but not
    in CLIP, SigLIP, InternViT, Qwen2-VL, Qwen3-VL and Whisper (transformers' modelling code)."""
    activation = encoder.text("hidden_act", "activation_function")
    return activation in ("silu", "swish", "swiglu") or encoder.text("model_type") == "pixtral"


def _patches(config: ModelConfig) -> int | None:
    """Patches of an image if all images are resized to one size."""
    size, patch = config.size("image_size"), config.size("patch_size")
    return (size // patch) ** 2 if size and patch and "spatial_merge_size" not in config else None


def _stored_bits(quantisation: ModelConfig) -> float:
    """Bits of a stored weight: GPTQ and AWQ keep a 16-bit scale and a zero point for every group of 128."""
    if quantisation.flag("load_in_4bit"):
        return 4.127
    if quantisation.text("quant_method") in ("fp8", "fbgemm_fp8") or quantisation.flag("load_in_8bit"):
        return 8.0
    bits = quantisation.size("bits", "w_bit")
    return 4.16 if bits == 4 else float(min(bits, 16) or 16)


def _stored_bytes(directory: Path) -> int:
    files = [path for path in directory.glob("*.safetensors") if not path.name.startswith("adapter_")]
    return sum(path.stat().st_size for path in files or directory.glob("pytorch_model*.bin"))
