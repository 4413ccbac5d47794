"""Checks before anything expensive starts: the model, the checkpoints, the data, the output directory, the disk."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from swift_toolkit.config.evaluation import has_validation
from swift_toolkit.config.names import registries
from swift_toolkit.config.settings import Config
from swift_toolkit.config.tasks import TaskName
from swift_toolkit.console.screen import gib
from swift_toolkit.console.words import did_you_mean_path, near_path
from swift_toolkit.dataset import copies, verify
from swift_toolkit.dataset.lengths import BY_BYTES
from swift_toolkit.dataset.rows.media import SPEAKS_OF_MEDIA
from swift_toolkit.dataset.rows.template import ANY_TEMPLATE, TemplateRules
from swift_toolkit.model import adapter_sizes, builtin, layers, registry, templates
from swift_toolkit.model import files as model_files
from swift_toolkit.model.checkpoints import training_state
from swift_toolkit.model.checkpoints.code import code_problems, pickle_problems
from swift_toolkit.model.checkpoints.find import CHECKPOINT
from swift_toolkit.model.files import NO_OWNERS, adapter_root, looks_local
from swift_toolkit.problems import Problem
from swift_toolkit.runs import resume

DATA_SECONDS = 2.0
"""Approximate time for checking the data before a run, in seconds; ``--verify-data`` checks all of it."""

_MODELS = ("model", *registry.OTHER_MODELS)
_BASES = {"ref_adapters": "model", "teacher_adapters": "teacher_model", "reward_adapters": "reward_model"}
"""Settings that name reference, teacher or reward adapters, each with the setting of its base model."""
_CHECKPOINTS = ("adapters", "resume_from_checkpoint", *_BASES)


def file_problems(config: Config, trust_code: bool = False) -> Iterator[Problem]:
    """Problems of the files that a training run reads and of the directory that it writes to.

    Args:
        config: the request.
        trust_code: whether Python code that comes with a model or checkpoint may run.
    """
    yield from _models(config)
    if not trust_code:
        yield from code_problems(local_directories(config), bool(config.get("load_args")))
    yield from pickle_problems(local_directories(config))
    yield from registry.model_type_problems(config)
    yield from templates.template_problems(config)
    yield from layers.layer_problems(config)
    yield from adapter_sizes.size_problems(config)
    yield from _checkpoints(config)
    yield from _media(config)
    yield from _output(config)
    yield from _upload(config)


def local_directories(config: Config) -> list[Path]:
    """The directories of the models and checkpoints that a run loads."""
    values = [config.get(name) for name in (*_MODELS, *_CHECKPOINTS)]
    names = [one for value in values for one in (value if isinstance(value, list) else [value])]
    found = [
        Path(name).expanduser() for name in names if isinstance(name, str) and not builtin.is_builtin(name)
    ]
    return [path for path in dict.fromkeys(found) if path.is_dir()]


def unpack_models(config: Config) -> None:
    """Replace the name of an embedded model by its directory; unpack it first if needed."""
    for name in _MODELS:
        model = config.get(name)
        if isinstance(model, str) and builtin.is_builtin(model):
            config.replace(name, str(builtin.materialise(model)))


def _models(config: Config) -> Iterator[Problem]:
    for name in _MODELS:
        value = config.get(name)
        for model in value if isinstance(value, list) else [value]:
            if not isinstance(model, str):
                continue
            if builtin.is_builtin(model):
                for problem in builtin.builtin_problems(model):
                    yield config.problem(name, problem.what, problem.do)
            elif _is_path(config, model):
                yield from _local_model(config, name, model)


def _is_path(config: Config, name: str) -> bool:
    """Whether a name means a local directory: it is a path; or its first part is a directory, or usually is one, and
    ms-swift does not know a hub model by the rest. Hugging Face has models without an owner, such as gpt2."""
    owner = name.partition("/")[0]
    if _BARE_ID.fullmatch(name) and registries.uses_hugging_face(config):
        return Path(name).exists() or bool(near_path(Path(name)))
    return looks_local(name) or (
        (owner in NO_OWNERS or Path(owner).is_dir()) and registry.registry(config.install).named(name) is None
    )


_BARE_ID = re.compile(r"[A-Za-z0-9][\w.-]*")

_HUB_PAGE = re.compile(
    r"https?://(?:huggingface\.co|hf\.co|hf-mirror\.com|(?:www\.)?modelscope\.(?:cn|ai)/models)/"
    r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:/.*)?"
    r"|([A-Za-z0-9][\w.-]*/[\w.-]+)/"
)
"""The address of a model's page on a hub, or its id with a slash at the end."""


def _local_model(config: Config, name: str, model: str) -> Iterator[Problem]:
    path = Path(model).expanduser()
    if not path.exists():
        do = did_you_mean_path(path, "Check the path, or name a hub model as owner/name.")
        if (found := _HUB_PAGE.fullmatch(model)) and not _is_path(config, meant := found[1] or found[2]):
            do = f'Did you mean the hub model "{meant}"?'
        yield config.problem(name, f'names the directory "{model}", which does not exist', do)
        return
    where = config.problem(name, "")
    if name == "reward_model" and (root := adapter_root(path)) is not None:
        yield config.problem(
            name, f'names the adapter "{model}", but ms-swift needs a complete model', _merge(root)
        )
        return
    yield from model_files.model_problems(path, where.key, where.file, where.line)


def _merge(adapter: Path) -> str:
    merged = adapter.with_name(f"{adapter.name}-merged")
    command = f"swift export --adapters {adapter} --merge_lora true --output_dir {merged}"
    return f'Merge it with "{command}", and name "{merged}".'


def _checkpoints(config: Config) -> Iterator[Problem]:
    for name in _CHECKPOINTS:
        value = config.get(name)
        for given in value if isinstance(value, list) else [value]:
            if not isinstance(given, str) or not (
                name == "resume_from_checkpoint" or _is_path(config, given)
            ):
                continue
            path = Path(given).expanduser()
            if not path.is_dir():
                do = did_you_mean_path(path, "Check the path.")
                if name == "resume_from_checkpoint" and given.lower() in ("latest", "last", "auto", "true"):
                    do = "--resume finds the newest checkpoint."
                yield config.problem(name, f'names the directory "{given}", which does not exist', do)
            else:
                yield from _checkpoint(config, name, path)


def _checkpoint(config: Config, name: str, path: Path) -> Iterator[Problem]:
    """Why the checkpoint ``path`` cannot be used as the setting ``name``."""
    if name != "resume_from_checkpoint" or config.get("resume_only_model"):
        found = training_state.weight_problems(path)
    elif not CHECKPOINT.fullmatch(path.resolve().name) and not (path / training_state.STATE).exists():
        do = "Name a checkpoint-N directory of a training run."
        found = [Problem(f'"{path}" has no trainer_state.json to resume from', do)]
    else:
        found = training_state.training_state_problems(path)
    for problem in found:
        yield config.problem(name, f"cannot be used: {problem.what}", problem.do)
    is_model = name != "resume_from_checkpoint" and config.tuner != "full" and adapter_root(path) is None
    if is_model and not found and (path / "config.json").is_file():
        do = 'Name it with "model", and an adapter here.' if name == "adapters" else "Name an adapter."
        yield config.problem(name, f'names "{path}", which is a complete model, not an adapter', do)
        return
    if not found and name not in _BASES:
        yield from resume.fit_problems(path, config, name)
    elif not found and adapter_root(path) is not None:
        yield from resume.base_problems(path, config, _BASES[name])


# --- data ---------------------------------------------------------------------------------------------------


def check_data(
    config: Config, whole: bool = False, by_tokenizer: bool = True, closely: bool = False
) -> verify.DataReport:
    """The contents and problems of the data of a training run.

    Args:
        config: the request.
        whole: check every row; otherwise about as many as fit into ``DATA_SECONDS``.
        by_tokenizer: count tokens with the model's tokenizer, which takes 0.1 s to load; otherwise estimate by bytes.
        closely: look for near-duplicates and secrets in every row, not only in the first; with ``whole``.
    """
    arguments = verify_arguments(config)
    if not by_tokenizer:
        arguments["tokenizer"] = None
    return verify.verify(**arguments, closely=closely, limit_seconds=None if whole else DATA_SECONDS)


def _answers_itself(config: Config) -> bool:
    """Whether GKD trains on generated answers only (``GKDTrainer.training_step``), so that rows need none."""
    on_policy = config.task.name == "gkd" and config.value("lmbda") >= 1
    return on_policy and not has_validation(config)


class VerifyArguments(TypedDict):
    """Arguments of `dataset.verify.verify`."""

    train: list[str]
    val: list[str]
    task: TaskName
    answers_itself: bool
    multimodal: bool
    num_labels: int | None
    problem_type: str | None
    max_length: int | None
    truncation: str
    columns: dict[str, str] | None
    tokenizer: Path | None
    template: TemplateRules
    loss_type: str | None


def verify_arguments(config: Config) -> VerifyArguments:
    """The arguments of `dataset.verify.verify` for the data of a training run."""
    columns = config.get("columns")
    return {
        "train": config.value("dataset"),
        "val": config.value("val_dataset"),
        "task": config.task.name,
        "answers_itself": _answers_itself(config),
        "multimodal": config.preset == "multimodal",
        "num_labels": config.get("num_labels"),
        "problem_type": config.get("problem_type"),
        "max_length": config.get("max_length"),
        "truncation": config.get("truncation_strategy") or "delete",
        "columns": columns if isinstance(columns, dict) else None,
        "template": template_rules(config),
        "loss_type": config.get("loss_type") if config.task.name == "embedding" else None,
        "tokenizer": _tokenizer(str(config.get("model") or "")),
    }


def template_rules(config: Config) -> TemplateRules:
    """What the template of a training run cannot write."""
    used = templates.used(config)
    refuses_tools = used is not None and not used.agent and not config.get("agent_template")
    if templates.is_plain(config):
        return _plain_rules(config, refuses_tools)
    if used is None:
        return ANY_TEMPLATE
    return TemplateRules(
        name=f'the template "{used.name}"',
        system="used" if used.system_in_rows else "refused",
        tools="refused" if refuses_tools else "used",
        rounds=used.rounds,
        thinking=used.thinking,
    )


def _plain_rules(config: Config, refuses_tools: bool) -> TemplateRules:
    """What training without a chat template leaves out: ms-swift 3.12 rejects system prompts, 4.x drops them."""
    always = config.install.pretrains_plainly and config.command == "pt"
    instead = 'train with "sft"' if always else 'set "use_chat_template" to true'
    return TemplateRules(
        name="training without a chat template",
        system="dropped" if config.install.drops_system_of_plain else "refused",
        tools="refused" if refuses_tools else "dropped",
        rounds=False,
        instead=instead,
        for_tools=f"{instead.capitalize()}.",
    )


def _tokenizer(model: str) -> Path | None:
    """The model's tokenizer file, if it is on this machine."""
    directory = builtin.cached_path(model) if builtin.is_builtin(model) else Path(model).expanduser()
    file = directory / "tokenizer.json" if directory is not None else None
    return file if file is not None and file.is_file() else None


def column_problems(config: Config, report: verify.DataReport) -> Iterator[Problem]:
    """Columns that the reward functions or the teacher need but that the data files lack."""
    files = [file for file in report.files if file.split == "train" and file.columns]
    for name, wanted in registries.demanded_columns(config).items():
        for file in files:
            for column in sorted(set(wanted) - set(file.columns)):
                what = f'includes "{name}", which needs a column "{column}"; {file.path} has none'
                yield config.problem(
                    "reward_funcs", what, "Add it to each row, or use another reward function."
                )
    if config.task.has_teacher and not (config.get("teacher_model") or config.get("teacher_model_server")):
        teaches_itself = config.install.teaches_itself and any(
            "teacher_prompt" in file.columns for file in files
        )
        if not teaches_itself and not report.unchecked:
            what = f'is "{config.task.name}", which needs "teacher_model" or a column "teacher_prompt"'
            yield config.problem("rlhf_type", what, "Add one of them.")


FINGERPRINT_BYTES = 1 << 26
"""Number of bytes of a data file that its fingerprint covers."""


def fingerprints(report: verify.DataReport) -> dict[str, str]:
    """The fingerprint of each data file: its size and a hash; of a large file, the hash of 64 blocks spread over it."""
    return {file.path: _fingerprint(Path(file.path).expanduser()) for file in report.files}


def _fingerprint(path: Path) -> str:
    size, mark = path.stat().st_size, hashlib.blake2b(digest_size=8)
    block = FINGERPRINT_BYTES // 64
    with path.open("rb") as file:
        for number in range(64):
            file.seek(max(number * block, (size - block) * number // 63))
            mark.update(file.read(block))
    return f"{size:,} bytes, {mark.hexdigest()}"


_ENDS = 1 << 20  # bytes at the beginning and at the end, where Parquet names its columns


def _media(config: Config) -> Iterator[Problem]:
    """A problem if the preset "multimodal" was chosen for data without media."""
    asked = config.preset == "multimodal" and config.preset_asked
    names = config.value("dataset") if asked else []
    files = [path for name in names if (path := Path(name.rpartition("#")[0] or name)).is_file()]
    if not files or len(files) < len(names) or any(path.suffix in (".gz", ".zst") for path in files):
        return
    if not any(SPEAKS_OF_MEDIA.search(_ends(path)) for path in files):
        do = 'Add them to the rows, or set "preset" to "lora".'
        what = 'has no images, videos or audios, which the preset "multimodal" expects'
        yield config.problem("dataset", what, do)


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        beginning = file.read(_ENDS)
        file.seek(max(path.stat().st_size - _ENDS, 0))
        return beginning + file.read()


def expected_rows(config: Config, report: verify.DataReport) -> dict[verify.Split, int | None]:
    """Rows of each split that ms-swift should get from this data, counted as in its ``DatasetLoader.post_process``.

    That is all rows or "#N" of each data set, minus the share held out for validation. None if some data is on a hub,
    or if ``interleave_prob`` mixes the data sets.
    """
    train = val = 0
    known = bool(report.specs["train"]) and not config.get("interleave_prob")
    for spec, good in zip(report.specs["train"], report.good_rows("train"), strict=True):
        rows = good if spec.sample is None else spec.sample
        if rows is None:
            return {"train": None, "val": None}
        held_out = _held_out(config, rows if good is None else min(rows, good))
        train, val = train + rows - held_out, val + held_out
    if config.get("val_dataset"):
        given = report.val_rows
        return {"train": train if known else None, "val": given}
    return {"train": train, "val": val} if known else {"train": None, "val": None}


def _held_out(config: Config, rows: int) -> int:
    share = 0 if config.get("val_dataset") or config.get("streaming") else config.value("split_dataset_ratio")
    return max(int(rows * share), 1) if share else 0


def count_problems(config: Config, report: verify.DataReport) -> Iterator[Problem]:
    """Requested numbers of rows that ms-swift cannot get from this data."""
    for spec, good in zip(report.specs["val"], report.good_rows("val"), strict=True):
        if good and spec.sample is not None and spec.sample > good:
            what = f'requests {spec.sample:,} rows of "{spec.path}", which has {good:,}'
            yield config.problem("val_dataset", what, "ms-swift repeats training rows only.")
    rows, batch = expected_rows(config, report)["train"], config.get("per_device_train_batch_size") or 1
    if config.get("dataloader_drop_last") and rows is not None and 0 < rows < batch:
        what = f"drops every row: a batch has {batch:,} rows, and the data {rows:,}"
        yield config.problem("dataloader_drop_last", what, "Lower per_device_train_batch_size.")
    for spec, good in zip(report.specs["train"], report.good_rows("train"), strict=True):
        if not good:
            continue
        rows = good if spec.sample is None else spec.sample
        if _held_out(config, min(rows, good)) >= rows:
            what = f'leaves no training row of "{spec.text}"'
            yield config.problem(
                "split_dataset_ratio", what, 'Name validation data as "val_dataset" instead.'
            )


_SURELY, _SURELY_BY_BYTES = 1.25, 4
"""How much longer than allowed a row must be by the estimate so that it is too long for certain: with the model's
tokenizer, and without it."""


def surely_lost(config: Config, report: verify.DataReport) -> int:
    """How many training rows ms-swift deletes for certain because they are longer than ``max_length``."""
    limit, strategy = config.get("max_length"), config.get("truncation_strategy") or "delete"
    if not limit or strategy != "delete" or config.task.rows == "prompt" or report.unchecked:
        return 0
    if report.all_too_long:
        return report.tokens.total()
    margin = _SURELY_BY_BYTES if report.rules.lengths is BY_BYTES else _SURELY
    return sum(rows for tokens, rows in report.tokens.items() if tokens > margin * limit)


def length_problems(config: Config, report: verify.DataReport, allowed: str) -> Iterator[Problem]:
    """A limit that is shorter than so many rows that the run would be stopped after the model is loaded.

    Args:
        config: the request.
        report: what is known about the data.
        allowed: how many rows ms-swift may drop: "N" or "P%".
    """
    lost, rows = surely_lost(config, report), report.tokens.total()
    sampled = any(spec.sample is not None for spec in report.specs["train"])
    if not lost or (lost < rows and (sampled or lost <= copies.bad_rows_allowed(allowed, rows))):
        return
    which = f"{lost:,} of {rows:,} rows are" if lost < rows else "every row is"
    do = 'Raise it, or set "truncation_strategy" to "right" or "left".'
    if lost < rows:
        do += f" Allow it with --max-lost-rows {-(-100 * lost // rows)}%."
    yield config.problem(
        "max_length", f"is {config.get('max_length'):,}, but {which} longer and would be deleted", do
    )


# --- output -------------------------------------------------------------------------------------------------


def _output(config: Config) -> Iterator[Problem]:
    output = Path(str(config.get("output_dir") or "output")).expanduser()
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield config.problem("output_dir", f'"{existing}" is a file, not a directory', "Choose another path.")
    elif not os.access(existing, os.W_OK | os.X_OK):
        do = "Choose another directory, or change its permissions."
        yield config.problem("output_dir", f'cannot write to "{existing}": permission denied', do)


_HF_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def _upload(config: Config) -> Iterator[Problem]:
    """An upload without a token: ms-swift would fail after loading the model or after the training."""
    if not config.get("push_to_hub") or config.get("hub_token"):
        return
    uses_hf = registries.uses_hugging_face(config)
    names, hub = (_HF_TOKENS, "Hugging Face") if uses_hf else (("MODELSCOPE_API_TOKEN",), "ModelScope")
    cache = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    stored = Path(os.environ.get("HF_TOKEN_PATH") or f"{cache}/token").expanduser()
    logged_in = uses_hf and stored.is_file()
    if not logged_in and not any(map(os.environ.get, names)):
        do = f"Set the environment variable {names[0]}{' or run hf auth login' if uses_hf else ''}."
        yield config.problem("push_to_hub", f"needs a token of {hub}", do)


def disk_problems(config: Config, steps: int | None, resumed: bool) -> Iterator[Problem]:
    """Why the disk is too small for the checkpoints that the run keeps: all of them for full training, one for an
    adapter, because its size is only estimated.

    Args:
        config: the request.
        steps: optimiser steps of the run; None if unknown.
        resumed: the run already has checkpoints, so only the next one is counted.
    """
    count = _kept(config, steps) if config.tuner == "full" and not resumed else 1
    return _lack_of_disk(config, count)


def disk_warnings(config: Config, steps: int | None, resumed: bool) -> Iterator[Problem]:
    """Whether the disk may be too small for all checkpoints of an adapter; see `disk_problems`."""
    if config.tuner != "full" and not resumed:
        yield from _lack_of_disk(config, _kept(config, steps))


def _lack_of_disk(config: Config, count: int) -> Iterator[Problem]:
    output = Path(str(config.get("output_dir") or "output")).expanduser()
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    one, free = checkpoint_bytes(config), shutil.disk_usage(existing).free
    if one is None or count * one <= free:
        return
    checkpoints = "one checkpoint takes" if count == 1 else f"{count:,} checkpoints take"
    what = f"has {gib(free)} free, and {checkpoints} about {gib(count * one)}"
    do = "Free some space, or choose another disk."
    if count > 1:
        limit = max(1, free // one - 1)
        do = f'Free some space, choose another disk, or set "save_total_limit" to at most {limit:,}.'
    yield config.problem("output_dir", what, do)


def _kept(config: Config, steps: int | None) -> int:
    """The maximum number of checkpoints at a time. A new one is written before an old one is removed."""
    if config.get("save_strategy") == "no":
        return 1
    every = float(config.get("save_steps") or 500)
    saves = 1
    if config.get("save_strategy") == "epoch":
        saves = math.ceil(float(config.get("num_train_epochs") or 1))
    elif steps:
        saves = math.ceil(1 / every if every < 1 else steps / every)
    limit = max(config.get("save_total_limit") or 0, 0)
    return max(1, min(saves, limit + 1) if limit else saves)


def checkpoint_bytes(config: Config) -> int | None:
    """Approximate size of one checkpoint in bytes; None if the model is not a local directory.

    A full checkpoint holds the weights and, unless ``save_only_model`` is set, AdamW's two states of the same size. An
    adapter is estimated as 1% of the weights.
    """
    model = Path(str(config.get("model"))).expanduser()
    if builtin.is_builtin(str(config.get("model"))) or not model.is_dir():
        return None
    names = [path for path in model.iterdir() if path.suffix in (".safetensors", ".bin") and path.is_file()]
    weights = sum(path.stat().st_size for path in names)
    parts = 1 if config.get("save_only_model") else 3
    return parts * (weights if config.tuner == "full" else weights // 100)
