"""What a checkpoint is, what it was trained from, and where its base model is.

Everything is read from files that ms-swift wrote: args.json (versions 3 and 4), sft_args.json (1 and 2),
adapter_config.json and trainer_state.json. `model.files` checks whether the weights are complete.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from swift_toolkit.config.names import renames
from swift_toolkit.config.tasks import NEW_HEADS, TASKS, TaskOutput
from swift_toolkit.machine.msswift import SwiftGeneration
from swift_toolkit.model.builtin import builtin_of, builtin_problems, is_builtin
from swift_toolkit.model.checkpoints.adapter import adapter_fit
from swift_toolkit.model.checkpoints.code import Code, code_in, code_problems, pickle_problems
from swift_toolkit.model.checkpoints.find import CHECKPOINT, damage, readable
from swift_toolkit.model.checkpoints.recorded import AdapterConfig, RecordedArguments, read_arguments
from swift_toolkit.model.files import (
    CheckpointKind,
    checkpoint_kind,
    is_model,
    missing,
    model_problems,
    read_json,
)
from swift_toolkit.problems import Problem, RequestError

_CLASSIFIER = "ForSequenceClassification"
"""How the names of architectures end that have a head for classes or scores."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint and what its files say about it.

    Args:
        path: its directory, absolute.
        kind: ``lora`` (an adapter of any kind), ``full`` or ``merged``.
        tuner_type: how it was trained (``lora``, ``full``, ``adalora``, ...), if known.
        base: the model it was trained from: an absolute directory, a hub id or a ``builtin/`` name. Always known for a
            local adapter.
        base_source: which file or flag names the base, as a phrase.
        model_type: the architecture, under its name in that generation of ms-swift; None for 1 and 2, where the name
            had another meaning.
        template: the chat format, under its name in that generation of ms-swift.
        system: the system prompt it was trained with, if not its template's own.
        lora_rank: the highest rank of the adapter's matrices.
        task_type: ``causal_lm``, ``seq_cls``, ``embedding``, ...
        torch_dtype: the type of the weights in training, e.g. ``bfloat16``.
        generation: the generation of ms-swift that wrote it, None if another program did.
        args: the arguments of its training.
        trusted: whether its own Python code may run.
    """

    path: Path
    kind: CheckpointKind
    tuner_type: str | None = None
    base: str | None = None
    base_source: str | None = None
    model_type: str | None = None
    template: str | None = None
    system: str | None = None
    lora_rank: int | None = None
    task_type: str | None = None
    torch_dtype: str | None = None
    generation: SwiftGeneration | None = None
    args: RecordedArguments = field(default_factory=RecordedArguments)
    trusted: bool = False

    @property
    def code(self) -> list[Code]:
        """The Python code that the files of the checkpoint and of its base model name."""
        return list(code_in([self.path, *([Path(self.base)] if self.base else [])]))

    @property
    def generates(self) -> bool:
        """Whether it generates text; otherwise it is a classifier, a reward model, an embedding model or similar."""
        return self.output == "chat"

    @property
    def output(self) -> TaskOutput:
        """What it gives: text, a class, a score, vectors, ..."""
        return replace(self.args, task_type=self.task_type).output

    @property
    def base_answers(self) -> bool:
        """Whether the base model can be asked without the adapter; otherwise its head has random weights."""
        if self.task_type not in NEW_HEADS:
            return True
        config, _ = read_json(Path(str(self.base)) / "config.json")
        return _CLASSIFIER in str((config or {}).get("architectures"))


def read_checkpoint(path: Path, base_model: str | None = None, trust_code: bool = False) -> Checkpoint:
    """What the directory ``path`` holds, after checking that it and its base model are complete.

    Args:
        path: a checkpoint, a merged model or any model directory.
        base_model: the base to use instead of the recorded one: a directory, a hub id or a ``builtin/`` name.
        trust_code: accept Python code in it or in its base model.

    Raises:
        RequestError: it cannot be used; lists every reason.
    """
    with readable(path):
        return _read(path.resolve(), base_model, trust_code)


def _read(path: Path, base_model: str | None, trust_code: bool) -> Checkpoint:
    kind = checkpoint_kind(path)
    problems = damage(path)
    if kind is None:
        raise RequestError(problems)
    # ms-swift 1 and 2 wrote their arguments only to the run's directory
    args, fault = read_arguments([path, path.parent] if CHECKPOINT.fullmatch(path.name) else [path])
    problems += [Problem(*fault)] if fault is not None else []
    adapter = AdapterConfig.read(path)
    base, base_problems = _base(path, base_model, args, adapter)
    if kind == "lora" or base_model is not None:
        problems += base_problems
    if kind == "lora" and base is not None and not problems:
        problems += adapter_fit(path, Path(base.model), args)
    problems += _form_problems(path, adapter)
    if args.task_type is not None and args.task_type not in _TASK_TYPES:
        what = f"{path} was trained for {args.task_type}, which this toolkit does not know"
        problems.append(Problem(what, "Use the ms-swift that trained it."))
    problems += [one for one in pickle_problems([path]) if one not in problems]
    if not trust_code:
        problems += code_problems([path, Path(base.model)] if base else [path])
    if problems:
        raise RequestError(problems)
    return Checkpoint(
        path=path,
        kind=kind,
        tuner_type=args.tuner_type or ((adapter.peft_type.lower() or "lora") if kind == "lora" else None),
        base=base.model if base else None,
        base_source=base.source if base else None,
        model_type=None if args.is_old else args.model_type,
        template=args.template,
        system=args.system,
        lora_rank=max(adapter.ranks, default=None),
        task_type=_task_type(path, args, adapter),
        torch_dtype=args.torch_dtype,
        generation=args.generation,
        args=args,
        trusted=trust_code,
    )


def given_base_problems(base: str | None, key: str = "--base-model") -> list[Problem]:
    """What is wrong with a base model that was given with the flag ``key``; nothing if none was."""
    return [replace(problem, key=key) for problem in _given_base(base)[1]] if base is not None else []


def hub_model(model: str, trust_code: bool = False) -> Checkpoint:
    """The model with the hub id ``model``; nothing else is known before ms-swift has downloaded it."""
    return Checkpoint(Path(model), "full", trusted=trust_code)


def hub_adapter(adapter: str, base: str | None, trust_code: bool = False) -> Checkpoint:
    """The adapter with the hub id ``adapter``; without a ``base`` ms-swift reads it from the adapter's args.json."""
    source = None if base is None else "--base-model"
    return Checkpoint(Path(adapter), "lora", base=base, base_source=source, trusted=trust_code)


def _form_problems(path: Path, adapter: AdapterConfig) -> list[Problem]:
    """Why an adapter in ms-swift 1's own format that is not plain LoRA cannot be used: no current version loads it."""
    if adapter.swift_form in ("", "LORA"):
        return []
    what = f"{path} holds an adapter of ms-swift 1 that no current version loads: {adapter.swift_form}"
    return [Problem(what, "Train it again.")]


def _task_type(path: Path, args: RecordedArguments, adapter: AdapterConfig) -> str | None:
    """The model's task, by ms-swift's name: as recorded, or derived from PEFT's name or the architecture."""
    if args.task_type:
        return args.task_type
    config, _ = read_json(path / "config.json")
    architectures = str((config or {}).get("architectures"))
    classifies = adapter.task_type == "SEQ_CLS" or _CLASSIFIER in architectures
    return "seq_cls" if classifies else None


class _Base(NamedTuple):
    model: str
    source: str


def _base(
    path: Path, given: str | None, args: RecordedArguments, adapter: AdapterConfig
) -> tuple[_Base | None, list[Problem]]:
    """The model that ``path`` was trained from, and what is wrong with it."""
    if given is not None:
        return _given_base(given)
    looked_at: list[str] = []
    recorded = _recorded_bases(args, adapter)
    for value, source in recorded:
        places = dict.fromkeys(os.path.normpath(place) for place in _places(value, path, args))
        found = next((place for place in places if is_model(Path(place))), None)
        if found is not None:
            return _Base(found, source), model_problems(Path(found))
        builtin = builtin_of(value)
        if builtin is not None:
            return _Base(builtin, source), builtin_problems(builtin)
        if HUB_ID.fullmatch(value) and args.model_dir not in places:
            return _Base(value, source), []
        looked_at += places
    if not recorded:
        what, do = f"{path} does not say which model it was trained from", _GIVE
    else:
        what, do = _lost_base(recorded[0][0], list(dict.fromkeys(looked_at)))
        what = f"{path} was trained from {what}"
    return None, [Problem(what, do)]


_TASK_TYPES = frozenset(task.task_type for task in TASKS.values())
_GIVE = "Give its base model: --base-model DIR"


def _lost_base(value: str, looked_at: list[str]) -> tuple[str, str]:
    """What is wrong with the recorded base ``value``, which is not in ``looked_at``, and what to do."""
    there = next((place for place in looked_at if Path(place).exists()), None)
    if there is not None:
        kind = "is an adapter itself" if checkpoint_kind(Path(there)) == "lora" else "holds no model"
        return f"{value}, which {kind}", "Give the model below it: --base-model DIR"
    found = next((match for pattern in _IN_A_HUB if (match := re.search(pattern, value))), None)
    if found is not None:
        name = f"{found[1]}/{found[2]}".replace("___", ".")
        return f"{value}, which is not on this machine", f"Give its base model: --base-model {name}"
    return f"{value}, which no longer exists", f"Looked for: {', '.join(looked_at)}. {_GIVE}"


_IN_A_HUB = (
    r"models--([\w.-]+?)--([\w.-]+)/snapshots/",
    r"/modelscope/(?:hub/)?(?:models/)?([\w.-]+)/([\w.-]+)/?$",
    r"^https?://(?:www\.)?(?:huggingface\.co|modelscope\.cn/models)/([\w.-]+)/([\w.-]+)",
)
"""A model in the cache of Hugging Face or ModelScope, or its page there."""


def _given_base(given: str) -> tuple[_Base | None, list[Problem]]:
    path = Path(given).expanduser()
    if path.exists():
        return _Base(str(path.absolute()), "--base-model"), model_problems(path, "--base-model")
    if is_builtin(given):
        return _Base(given, "--base-model"), [replace(p, key="--base-model") for p in builtin_problems(given)]
    if HUB_ID.fullmatch(given):
        return _Base(given, "--base-model"), []
    what, do = missing(path)
    return None, [Problem(f"cannot be used: {what}", do, "--base-model")]


def _recorded_bases(args: RecordedArguments, adapter: AdapterConfig) -> list[tuple[str, str]]:
    """The base model under each recorded name, with where it is recorded, the most reliable first."""
    recorded = [
        (args.model, "model in args.json"),
        (args.model_cache_dir, "model_cache_dir in sft_args.json"),
        (args.model_id_or_path, "model_id_or_path in sft_args.json"),
        (_legacy_model(args), "model_type in sft_args.json"),
        (adapter.base, "base_model_name_or_path in adapter_config.json"),
    ]
    return [(value, source) for value, source in recorded if value]


def _places(value: str, path: Path, args: RecordedArguments) -> Iterator[str]:
    """Where the directory ``value`` may be: relative to the training, to this directory or to the checkpoint."""
    value = str(Path(value).expanduser())
    trained_in = Path(args.output_dir) if args.output_dir and Path(args.output_dir).is_absolute() else None
    checkpoint = path.resolve()
    if not Path(value).is_absolute():
        yield from (str(parent / value) for parent in (trained_in.parents if trained_in else ()))
        yield str(Path.cwd() / value)
        yield from (str(parent / value) for parent in checkpoint.parents)
        return
    yield value
    if trained_in is not None and len(Path(os.path.commonpath([value, trained_in])).parts) > 1:
        # the whole project was moved: the path from the run to the base is unchanged
        yield str(checkpoint.parent / os.path.relpath(value, trained_in))


def _legacy_model(args: RecordedArguments) -> str | None:
    """The hub id of a model type of ms-swift 1 or 2, where each named one model."""
    return renames.legacy_model(args.model_type) if args.is_old and args.model_type else None
