"""What is recorded with the weights: ms-swift's arguments of the training, and PEFT's configuration of an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from swift_toolkit.config.tasks import TASKS, TaskOutput
from swift_toolkit.machine.msswift import SwiftGeneration, recorded_generation
from swift_toolkit.model.files import ARGS_FILES, Fault, JsonObject, adapter_root, read_json, tuner_type

_T = TypeVar("_T")

_OLD_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # ms-swift 1 and 2


@dataclass(frozen=True, kw_only=True)
class RecordedArguments:
    """The arguments of a training that this toolkit needs; an args.json also holds keys and tokens.

    A value that is not recorded, or has the wrong type, is None.

    Args:
        generation: the generation of ms-swift that wrote them, None if another program did.
        model: the model it was trained from, as the user named it.
        model_cache_dir: its directory (ms-swift 1 and 2).
        model_id_or_path: its name (ms-swift 1 and 2).
        model_dir: where ms-swift found the model.
        model_type: the architecture; in 1 and 2 the name of a single model.
        template: the chat format.
        system: the system prompt, if not the template's own.
        task_type: ``causal_lm``, ``seq_cls``, ``embedding``, ...
        rlhf_type: ``dpo``, ``rm``, ...
        torch_dtype: the type of the weights, e.g. ``bfloat16``.
        tuner_type: how it was trained: ``lora``, ``full``, ...
        quant_method: how the model was quantised.
        num_labels: the number of classes.
        new_special_tokens: whether tokens were added.
        output_dir: the output directory of the training.
        zero_stage: the stage of DeepSpeed's ZeRO, if known.
        deepspeed: whether DeepSpeed was used.
        processes: number of training processes.
        num_train_epochs: as given.
        max_steps: as given.
        data: validation and training data, as named.
    """

    generation: SwiftGeneration | None = None
    model: str | None = None
    model_cache_dir: str | None = None
    model_id_or_path: str | None = None
    model_dir: str | None = None
    model_type: str | None = None
    template: str | None = None
    system: str | None = None
    task_type: str | None = None
    rlhf_type: str | None = None
    torch_dtype: str | None = None
    tuner_type: str | None = None
    quant_method: str | None = None
    num_labels: int | None = None
    new_special_tokens: bool = False
    output_dir: str | None = None
    zero_stage: int | None = None
    deepspeed: bool = False
    processes: int | None = None
    num_train_epochs: float | None = None
    max_steps: int | None = None
    data: tuple[str, ...] = ()

    @property
    def output(self) -> TaskOutput:
        """What the trained model gives: text, a class, a score, vectors, ..."""
        if self.task_type == "seq_cls" and self.rlhf_type == "rm":
            return "reward"
        outputs = {task.task_type: task.output for task in TASKS.values() if not task.rlhf_type}
        return outputs.get(self.task_type or "causal_lm", "chat")

    @property
    def is_old(self) -> bool:
        """Whether ms-swift 1 or 2 wrote them, where ``model_type`` and others have another meaning."""
        return self.generation in ("v1", "v2")

    @classmethod
    def of(cls, content: JsonObject, is_old_file: bool = False) -> RecordedArguments:
        """The arguments in the content of an args.json or, with ``is_old_file``, of an sft_args.json."""
        dtype = _typed(content, "dtype", str) or ""
        texts = "model model_cache_dir model_id_or_path model_dir model_type system task_type rlhf_type quant_method"
        texts += " output_dir"
        deepspeed = content.get("deepspeed")
        zero = deepspeed.get("zero_optimization") if isinstance(deepspeed, dict) else None
        size = _typed(content, "global_world_size", int)
        epochs = content.get("num_train_epochs")
        return cls(
            generation=recorded_generation(content, is_old_file),
            template=_typed(content, "template_type" if is_old_file else "template", str),
            torch_dtype=_OLD_DTYPES.get(dtype) if is_old_file else _typed(content, "torch_dtype", str),
            tuner_type=tuner_type(content),
            new_special_tokens=bool(content.get("new_special_tokens")),
            zero_stage=_typed(zero, "stage", int) if isinstance(zero, dict) else None,
            deepspeed=bool(deepspeed),
            processes=size if size and size > 0 else None,
            num_train_epochs=epochs if isinstance(epochs, (int, float)) else None,
            max_steps=_typed(content, "max_steps", int),
            num_labels=_typed(content, "num_labels", int),
            data=tuple(one for name in ("val_dataset", "dataset") for one in _texts(content.get(name))),
            **{name: _typed(content, name, str) or None for name in texts.split()},
        )


@dataclass(frozen=True)
class AdapterConfig:
    """The adapter_config.json of an adapter.

    Args:
        peft_type: ``LORA``, ``ADALORA``, ...; "" if not given.
        task_type: PEFT's name for the task of the model, e.g. ``SEQ_CLS``; "" if not given.
        base: the model it was trained from, as it was given.
        rank: the rank of its matrices, if it has one.
        rank_pattern: regular expression -> the rank of the layers that it fits, instead of ``rank``.
        alpha_pattern: regular expressions for layers whose alpha differs.
        peft_version: the version of PEFT that wrote it; "" if not given.
        content: the whole object.
        has_parameters: it adapts parameters that are not layers, such as those of several experts.
        swift_form: the type of an adapter in ms-swift 1's own format, ``LORA`` for plain LoRA; "" for PEFT's format.
    """

    peft_type: str = ""
    task_type: str = ""
    base: str | None = None
    rank: int | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: tuple[str, ...] = ()
    peft_version: str = ""
    content: JsonObject = field(default_factory=dict)
    has_parameters: bool = False
    swift_form: str = ""

    @classmethod
    def of(cls, content: JsonObject) -> AdapterConfig:
        """The configuration in the content of an adapter_config.json."""
        ranks = _typed(content, "rank_pattern", dict) or {}
        form = str(content.get("swift_type") or "")
        odd = next((name for name in ("use_qa_lora", "use_merged_linear") if content.get(name)), form)
        return cls(
            peft_type=_typed(content, "peft_type", str) or "",
            task_type=_typed(content, "task_type", str) or "",
            base=_typed(content, "base_model_name_or_path", str) or None,
            rank=_typed(content, "r", int),
            rank_pattern={key: rank for key, rank in ranks.items() if isinstance(rank, int)},
            alpha_pattern=tuple(_typed(content, "alpha_pattern", dict) or ()),
            peft_version=_typed(content, "peft_version", str) or "",
            content=content,
            has_parameters=bool(content.get("target_parameters")),
            swift_form=form and odd,
        )

    @classmethod
    def read(cls, path: Path) -> AdapterConfig:
        """The configuration of the adapter in the directory ``path``; an empty one if there is none."""
        root = adapter_root(path)
        content, _ = read_json(root / "adapter_config.json") if root is not None else (None, None)
        return cls.of(content or {})

    @property
    def ranks(self) -> set[int]:
        """Every rank that a layer may have."""
        return {*self.rank_pattern.values(), *([] if self.rank is None else [self.rank])}


def read_arguments(directories: Sequence[Path]) -> tuple[RecordedArguments, Fault | None]:
    """The arguments from the first of these directories that has any, and what is wrong with their file."""
    for file in (directory / name for directory in directories for name in ARGS_FILES):
        if file.is_file():
            content, fault = read_json(file)
            return RecordedArguments.of(content or {}, file.name == ARGS_FILES[-1]), fault
    return RecordedArguments(), None


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _typed(content: Mapping[str, object], name: str, kind: type[_T]) -> _T | None:
    value = content.get(name)
    return value if isinstance(value, kind) else None
