"""Resuming a training: find the run and checkpoint, check whether it is possible, clean up the directory."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from swift_toolkit.config.settings import Config
from swift_toolkit.console import secrets
from swift_toolkit.console.words import counted
from swift_toolkit.machine import files
from swift_toolkit.model import builtin
from swift_toolkit.model.checkpoints import training_state
from swift_toolkit.model.checkpoints.adapter import adapter_fit
from swift_toolkit.model.checkpoints.find import CHECKPOINT, RUN, checkpoints_of, runs_of
from swift_toolkit.model.checkpoints.recorded import RecordedArguments, read_arguments
from swift_toolkit.model.checkpoints.training_state import TrainingState
from swift_toolkit.model.files import adapter_root, checkpoint_kind, read_json
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.runs import directory as runs_directory
from swift_toolkit.runs.history import LOG
from swift_toolkit.runs.record import MEASURED, read_record

RECORD = "request.json"
"""The file in a run's directory with its request; written before the run starts."""


def is_secret(name: str) -> bool:
    """Whether the setting or flag ``name`` holds a secret, judged by its name."""
    return "webhook" in name or secrets.SECRET_NAME.search(name) is not None


@dataclass(frozen=True)
class StoredRequest:
    """The request of a run, as far as it determines what is learned.

    Args:
        config: absolute path of the config file; None without one.
        given: all settings by name, as text; without secrets.
        automatic: the names of those that were chosen automatically.
        data: identification of the data of each split.
        base: identification of the base model.
        processes: the number of training processes.
        batch: rows of an optimiser step.
        command: the command line that started the run; without secrets. Empty if it was started from Python.
        task: the training task, a name of `TASKS`.
    """

    config: str | None
    given: Mapping[str, str]
    automatic: tuple[str, ...]
    data: Mapping[str, Sequence[str]]
    base: str
    processes: int
    batch: int
    command: tuple[str, ...] = ()
    task: str = "sft"

    def write(self, directory: Path) -> None:
        """Write the request to the run's directory."""
        files.write_json(directory / RECORD, asdict(self))


def request_of(
    config: Config, data: Mapping[str, list[str]], processes: int, batch: int, command: Sequence[str] = ()
) -> StoredRequest:
    """The request described by ``config``."""
    settings = config.settings
    return StoredRequest(
        config=str(Path(config.path).expanduser().absolute()) if config.path else None,
        given={name: one.shown for name, one in settings.items() if not is_secret(name)},
        automatic=tuple(name for name, one in settings.items() if one.source.kind == "automatic"),
        data=data,
        base=_base_mark(str(config.get("model"))),
        processes=processes,
        batch=batch,
        command=tuple(_without_secrets(command)),
        task=config.task.name,
    )


def _without_secrets(words: Sequence[str]) -> Iterator[str]:
    """The words of a command line, with ``***`` in place of secrets."""
    hidden = False
    for word in secrets.masked_words(words):
        name, equals, _ = word.partition("=")
        flag = name.startswith("--")
        yield (
            f"{name}={secrets.HIDDEN}"
            if flag and equals and is_secret(name)
            else secrets.HIDDEN
            if hidden
            else word
        )
        hidden = flag and not equals and is_secret(name)


def stored_request(directory: Path) -> StoredRequest | None:
    """The request of the run in ``directory``; None if it has no readable record."""
    return read_record(directory / RECORD, StoredRequest)[0]


def _base_mark(model: str) -> str:
    """Identification of a model: for a local directory its config and the sizes of its weights, else its name."""
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        return model
    weights = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))
    sizes = [f"{file.name} {file.stat().st_size}" for file in weights]
    content = (path / "config.json").read_bytes() + "\n".join(sizes).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


# --- finding the checkpoint ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResumePoint:
    """Where a training resumes.

    Args:
        directory: the run that is resumed; None if a new run starts from a checkpoint of another.
        checkpoint: the newest complete checkpoint; None if there is none and the run starts from the beginning.
        state: the training state in the checkpoint.
        damaged: problems of newer checkpoints of the run.
    """

    directory: Path | None
    checkpoint: Path | None = None
    state: TrainingState | None = None
    damaged: tuple[Problem, ...] = field(default=())

    @property
    def step(self) -> int:
        """Number of optimiser steps done so far."""
        return self.state.step if self.state else 0

    def lines(self) -> Iterator[str]:
        """Messages for the user, one sentence each."""
        for problem in self.damaged:
            yield f"Skipping a checkpoint: {problem.what}."
        if self.checkpoint is None:
            yield f"{self.directory} has no complete checkpoint: the run starts from the beginning."
        else:
            yield f"Resuming from {self.checkpoint}, step {self.step}."


def find_resumable(
    place: Path, wanted: StoredRequest | None = None, every_byte: bool = True
) -> ResumePoint | None:
    """The newest complete checkpoint in ``place``.

    Args:
        place: a checkpoint, a run directory (vN-<time>) or an output directory with runs.
        wanted: the request; of several runs in an output directory, the newest one with the same request is preferred.
        every_byte: also verify checksums.

    Raises:
        RequestError: ``place`` is an incomplete checkpoint.
    """
    place = place.resolve()
    if CHECKPOINT.fullmatch(place.name):
        if problems := training_state.training_state_problems(place, every_byte):
            raise RequestError(problems)
        newest = _newest(place.parent, every_byte) if RUN.fullmatch(place.parent.name) else None
        goes_on = newest is not None and newest.checkpoint == place
        return newest if goes_on else ResumePoint(None, place, training_state.read_state(place))
    runs = runs_of(place)
    if runs:
        return _newest(_matching(runs, wanted) if wanted else runs[0], every_byte)
    return _newest(place, every_byte) if RUN.fullmatch(place.name) or checkpoints_of(place) else None


def _matching(runs: list[Path], wanted: StoredRequest) -> Path:
    """The newest of ``runs`` with the same config file or, without one, the same settings."""
    for run in runs:
        before = stored_request(run)
        if before and before.config == wanted.config and (wanted.config or before.given == wanted.given):
            return run
    return runs[0]


def _newest(run: Path, every_byte: bool) -> ResumePoint:
    damaged: list[Problem] = []
    for checkpoint in checkpoints_of(run):
        problems = training_state.training_state_problems(checkpoint, every_byte)
        if training_state.is_model_only(checkpoint) and (checkpoint / training_state.STATE).exists():
            raise RequestError(problems)
        if not problems:
            state = training_state.read_state(checkpoint)
            return ResumePoint(run, checkpoint, state, tuple(damaged))
        damaged.append(problems[0])
    return ResumePoint(run, None, None, tuple(damaged))


# --- compatibility -------------------------------------------------------------------------------------------


def resume_problems(point: ResumePoint, config: Config, wanted: StoredRequest) -> Iterator[Problem]:
    """Why the training cannot be resumed with ``config``, even with --force."""
    if point.checkpoint is None or point.state is None:
        return
    yield from fit_problems(point.checkpoint, config)
    yield from _finished(point.state, config)
    before = stored_request(point.checkpoint.parent)
    if before is not None and before.base != wanted.base:
        what = f'is not the model that {point.checkpoint} was trained from, "{before.given.get("model")}"'
        yield config.problem("model", what, "Set it back.")
    processes = point.state.processes
    if point.state.deepspeed and processes is not None and processes != wanted.processes:
        what = (
            f"{point.checkpoint} was written by DeepSpeed with {counted(processes, 'process', 'processes')}, "
        )
        what += f"but this run has {wanted.processes}"
        do = f"Use --nproc-per-node {processes}, or start a new training from its weights only: {_WEIGHTS}"
        yield Problem(what, do)


_WEIGHTS = 'set "resume_only_model" to true together with "resume_from_checkpoint".'

_OF_THE_ADAPTER = {
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
}
"""Settings that a resumed adapter takes from its adapter_config.json, with their names in that file."""


def fit_problems(checkpoint: Path, config: Config, key: str = "resume_from_checkpoint") -> Iterator[Problem]:
    """Why ``checkpoint`` does not fit the request: another tuner, adapter shape or base model.

    Args:
        checkpoint: an adapter or a model.
        config: the request.
        key: the setting that names the checkpoint.
    """
    args, _ = read_arguments([checkpoint])
    adapter = checkpoint_kind(checkpoint) == "lora"
    trained = args.tuner_type or ("lora" if adapter else "full")
    if key == "resume_from_checkpoint" and trained != config.tuner:
        what = f'is "{config.tuner}", but {checkpoint} was trained with "{trained}"'
        yield config.problem(config.tuner_name, what, f'Set it to "{trained}".')
        return
    if not adapter:
        return
    if key == "resume_from_checkpoint":
        yield from _other_generation(checkpoint, args, config)
    root = adapter_root(checkpoint) or checkpoint
    shape, _ = read_json(root / "adapter_config.json")
    for name, there in _OF_THE_ADAPTER.items():
        value, trained_with = config.get(name), (shape or {}).get(there)
        if value is not None and trained_with is not None and value != trained_with:
            what = f"is {value} and has no effect: {checkpoint} was trained with {trained_with}"
            yield config.problem(name, what, f"Set it to {trained_with}, or remove it.")
    yield from base_problems(checkpoint, config)


def base_problems(adapter: Path, config: Config, base_is: str = "model") -> Iterator[Problem]:
    """Why an adapter cannot be loaded on a model of the training: another base model, or no weights.

    Args:
        adapter: the adapter directory.
        config: the request.
        base_is: the setting that names its base model; of several models, the first is used.
    """
    value = config.get(base_is)
    model = str((value or [""])[0] if isinstance(value, list) else value)
    base = builtin.cached_path(model) if model in builtin.BUILTIN else Path(model).expanduser()
    recorded, _ = read_arguments([adapter])
    yield from adapter_fit(adapter, base, recorded, do=f'Set "{base_is}" to its base model.')


def _other_generation(checkpoint: Path, args: RecordedArguments, config: Config) -> Iterator[Problem]:
    if (wrote := config.install.foreign_generation(args.generation)) is not None:
        what = f"ms-swift {config.install.version} cannot load the optimizer state in {checkpoint}, "
        do = f"Resume with ms-swift {wrote}, or start a new training from its weights only: {_WEIGHTS}"
        yield Problem(f"{what}which ms-swift {wrote} wrote", do)


def _finished(state: TrainingState, config: Config) -> Iterator[Problem]:
    steps = _steps(state, config)
    if state.step < steps or not steps:
        return
    name = "max_steps" if (config.get("max_steps") or 0) > 0 else "num_train_epochs"
    what = f"{state.path} is at step {state.step} of {steps}: the run is finished"
    yield Problem(what, f'To train longer, raise "{name}".')


def _steps(state: TrainingState, config: Config) -> int:
    """The number of steps that ``config`` requests, derived from that of the earlier training; 0 if unknown."""
    if (asked := config.get("max_steps") or 0) > 0:
        return int(asked)
    epochs, before = config.get("num_train_epochs"), state.args.num_train_epochs
    if (state.args.max_steps or 0) > 0:
        return 0
    share = float(epochs) / float(before) if epochs and before else 1.0
    return int(state.max_steps * share)


# --- changed settings ----------------------------------------------------------------------------------------

_NEUTRAL = re.compile(
    r"output_dir|add_version|resume_\w+|model|dataset|val_dataset|ref_model|logging_\w+|save_\w+|eval_\w+|report_to"
    r"|run_name|dataloader_(?!drop_last)\w+|dataset_num_proc|load_from_cache_file|hub_\w+|push_to_hub|use_hf"
    r"|check_model|swanlab_\w+|wandb_\w+|per_device_\w+_batch_size|gradient_accumulation_steps|gradient_checkpointing\w*"
    r"|vit_gradient_checkpointing|ddp_\w+|deepspeed\w*|fsdp\w*|device_map|max_memory|attn_impl|use_liger_kernel"
    r"|torch_compile\w*|torch_empty_cache_steps|max_steps|num_train_epochs|early_stop_interval|load_best_model_at_end"
    r"|metric_for_best_model|greater_is_better|create_checkpoint_symlink|ignore_args_error|disable_tqdm|acc_strategy"
    r"|vllm_\w+|sleep_level|log_completions|use_cpu|lazy_tokenize|strict|use_logits_to_keep"
)
"""Settings that do not affect what is learned, or that are compared separately."""

_SILENT = re.compile(r"output_dir|add_version|resume_\w+|model|dataset|val_dataset|(train|tuner)_type")


def changes(point: ResumePoint, wanted: StoredRequest) -> tuple[list[str], list[str]]:
    """Changes since the run started, one phrase each: those without and those with an effect on what is learned."""
    before = stored_request(point.checkpoint.parent) if point.checkpoint else None
    if before is None:
        return [], []
    harmless: list[str] = []
    harmful: list[str] = []
    for name in sorted({*before.given, *wanted.given}):
        old, new = before.given.get(name), wanted.given.get(name)
        if old == new or _SILENT.fullmatch(name):
            continue
        chosen = name in (*before.automatic, *wanted.automatic)
        phrase = f'"{name}" {_or_unset(old)} → {_or_unset(new)}'
        (harmless if chosen or _NEUTRAL.fullmatch(name) else harmful).append(phrase)
    if before.batch != wanted.batch:
        harmful.append(f"rows of an optimiser step: {before.batch} → {wanted.batch}")
    harmful += [
        f"the data of {split}" for split in wanted.data if before.data.get(split) != wanted.data[split]
    ]
    return harmless, harmful


def _or_unset(value: str | None) -> str:
    return "not set" if value is None else value


# --- clean-up ------------------------------------------------------------------------------------------------


def tidy(point: ResumePoint, output: Path) -> None:
    """Restore the run's directory to its state at the checkpoint: truncate logs and curves, remove newer checkpoints.

    A newer checkpoint whose save was interrupted is removed; a damaged one is renamed to ``damaged-checkpoint-N``.
    """
    if point.directory is None:
        return
    for checkpoint in checkpoints_of(point.directory):
        if int(checkpoint.name.rpartition("-")[2]) <= point.step:
            continue
        if (checkpoint / training_state.STATE).exists():
            runs_directory.set_aside(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    for name in (LOG, MEASURED):
        _cut_log(point.directory / name, point.step)
    for events in point.directory.glob("runs/**/events.out.tfevents.*"):
        _cut_events(events, point.step)
    runs_directory.unlink_missing(output)
    runs_directory.link(output, "last", point.checkpoint)
    if point.state and point.state.best:
        runs_directory.link(output, "best", point.directory / point.state.best)


def _cut_log(log: Path, step: int) -> None:
    """Keep the lines of ``log`` up to ``step``, without the final summary of a training."""
    if not log.is_file():
        return
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    with files.whole_file(log) as out:
        out.write("".join(line for line in lines if _is_up_to(line, step)).encode())


def _is_up_to(line: str, step: int) -> bool:
    try:
        content = json.loads(line)
        reached = str(content["global_step/max_steps"]).partition("/")[0]
        return "train_runtime" not in content and int(reached) <= step
    except (ValueError, KeyError, TypeError):
        return False


def _cut_events(file: Path, step: int) -> None:
    """Keep TensorBoard's events up to ``step``.

    The file consists of records: length (8 bytes), its checksum (4), an ``Event`` message, its checksum (4); see
    https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto.
    """
    content, kept, at = file.read_bytes(), [], 0
    while at + 12 <= len(content):
        end = at + 16 + struct.unpack_from("<Q", content, at)[0]
        if end > len(content):
            break  # truncated by the kill
        if _event_step(content[at + 12 : end - 4]) <= step:
            kept.append(content[at:end])
        at = end
    with files.whole_file(file) as out:
        out.write(b"".join(kept))


def _event_step(event: bytes) -> int:
    """The step of an ``Event``: field 2, after the time in field 1; step 0 is not written."""
    at = 9 if event[:1] == b"\x09" else 0
    if event[at : at + 1] != b"\x10":
        return 0
    value = shift = 0
    for byte in event[at + 1 :]:
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            break
    return value
