"""Which run and checkpoint a training goes on from, whether it may, and what must be tidied before it does."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swift_toolkit.config.settings import Config
from swift_toolkit.machine import files
from swift_toolkit.model import builtin
from swift_toolkit.model.checkpoints import training_state
from swift_toolkit.model.checkpoints.adapter import adapter_fit
from swift_toolkit.model.checkpoints.find import CHECKPOINT, RUN, checkpoints_of, runs_of
from swift_toolkit.model.checkpoints.training_state import TrainingState
from swift_toolkit.model.files import adapter_root, checkpoint_kind, read_json, tuner_type
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.runs import directory as runs_directory

RECORD = "request.json"
"""What a run was asked for, written before it starts."""

_SECRET = re.compile("token|secret|password|api_key|webhook|credential")


@dataclass(frozen=True)
class StoredRequest:
    """What a run is asked for, as far as it decides what is learned.

    Args:
        config: the config file, absolute; None without one.
        given: the settings that the user gave, by name, as text; without secrets.
        automatic: the names of those that nobody gave.
        data: what tells the content of the data, for each split.
        base: what tells the base model.
        processes: how many take part.
        batch: rows of an optimiser step.
    """

    config: str | None
    given: Mapping[str, str]
    automatic: tuple[str, ...]
    data: Mapping[str, list[str]]
    base: str
    processes: int
    batch: int

    def write(self, directory: Path) -> None:
        """Note it in the run's directory."""
        files.write_json(directory / RECORD, asdict(self))


def request_of(config: Config, data: Mapping[str, list[str]], processes: int, batch: int) -> StoredRequest:
    """The request that ``config`` makes."""
    settings = config.settings
    return StoredRequest(
        config=str(Path(config.path).expanduser().absolute()) if config.path else None,
        given={name: one.shown for name, one in settings.items() if not _SECRET.search(name)},
        automatic=tuple(name for name, one in settings.items() if one.source.kind == "automatic"),
        data=data,
        base=_base_mark(str(config.get("model"))),
        processes=processes,
        batch=batch,
    )


def stored_request(directory: Path) -> StoredRequest | None:
    """What the run in ``directory`` was asked for; None if it was not noted."""
    content, _ = read_json(directory / RECORD) if (directory / RECORD).is_file() else (None, None)
    with suppress(TypeError):
        return StoredRequest(**content) if content else None
    return None


def _base_mark(model: str) -> str:
    """What tells the model in a local directory: its config and the sizes of its weights; else its name."""
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        return model
    weights = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))
    sizes = [f"{file.name} {file.stat().st_size}" for file in weights]
    content = (path / "config.json").read_bytes() + "\n".join(sizes).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


# --- which ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResumePoint:
    """Where a training goes on.

    Args:
        directory: the run that goes on; None if a new run goes on from a checkpoint of another.
        checkpoint: the newest whole one; None if there is none and the run starts from the beginning.
        state: of the checkpoint.
        damaged: what is wrong with newer checkpoints of the run.
    """

    directory: Path | None
    checkpoint: Path | None = None
    state: TrainingState | None = None
    damaged: tuple[Problem, ...] = field(default=())

    @property
    def step(self) -> int:
        """The steps that are done."""
        return self.state.step if self.state else 0

    def lines(self) -> Iterator[str]:
        """What the user should know, a sentence each."""
        for problem in self.damaged:
            yield f"Skipping a checkpoint: {problem.what}."
        if self.checkpoint is None:
            yield f"{self.directory} holds no whole checkpoint: the run starts from the beginning."
        else:
            yield f"Resuming from {self.checkpoint}, step {self.step}."


def find_resumable(
    place: Path, wanted: StoredRequest | None = None, every_byte: bool = True
) -> ResumePoint | None:
    """The newest whole checkpoint that ``place`` means.

    Args:
        place: a checkpoint, a run directory (vN-<time>) or an output directory, which holds runs.
        wanted: of several runs in an output directory, the newest that was asked for like this is meant, if there is
            one.
        every_byte: compare checksums too.

    Raises:
        RequestError: the checkpoint ``place`` is not whole.
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
    """The newest of ``runs`` that had the same config file, or the same settings without one."""
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


# --- whether -------------------------------------------------------------------------------------------------


def resume_problems(point: ResumePoint, config: Config, wanted: StoredRequest) -> Iterator[Problem]:
    """Why the training cannot go on with ``config``, whatever is forced."""
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
        what = f"DeepSpeed wrote {point.checkpoint} with {processes} process(es), and there are {wanted.processes}"
        yield Problem(
            what, f"Start {processes} (--nproc-per-node), or train on from its weights alone: {_WEIGHTS}"
        )


_WEIGHTS = 'set "resume_only_model" to true beside "resume_from_checkpoint".'

_OF_THE_ADAPTER = {
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
}
"""Settings that are read from the checkpoint's adapter_config.json, with their names there."""


def fit_problems(checkpoint: Path, config: Config, key: str = "resume_from_checkpoint") -> Iterator[Problem]:
    """Why what is trained cannot be what ``checkpoint`` holds: another tuner, another shape, another base.

    Args:
        checkpoint: an adapter or a model.
        config: the request.
        key: the setting that names the checkpoint.
    """
    args, _ = read_json(checkpoint / "args.json") if (checkpoint / "args.json").is_file() else ({}, None)
    adapter = checkpoint_kind(checkpoint) == "lora"
    trained = tuner_type(args or {}) or ("lora" if adapter else "full")
    if key == "resume_from_checkpoint" and trained != config.tuner:
        what = f'is "{config.tuner}", and {checkpoint} was trained with "{trained}"'
        yield config.problem(config.tuner_name, what, f'Set it to "{trained}".')
        return
    if not adapter:
        return
    if key == "resume_from_checkpoint":
        yield from _other_generation(checkpoint, args or {}, config)
    root = adapter_root(checkpoint) or checkpoint
    shape, _ = read_json(root / "adapter_config.json")
    for name, there in _OF_THE_ADAPTER.items():
        value, trained_with = config.get(name), (shape or {}).get(there)
        if value is not None and trained_with is not None and value != trained_with:
            what = f"is {value} and has no effect: {checkpoint} has {trained_with}"
            yield config.problem(name, what, f"Set it to {trained_with}, or remove it.")
    yield from base_problems(checkpoint, config)


def base_problems(adapter: Path, config: Config) -> Iterator[Problem]:
    """Why an adapter cannot be loaded on the model of a training: it is of another one, or holds no weights."""
    model, args = str(config.get("model")), adapter / "args.json"
    base = builtin.cached_path(model) if model in builtin.BUILTIN else Path(model).expanduser()
    recorded = read_json(args)[0] if args.is_file() else None
    yield from adapter_fit(adapter, base, recorded or {}, do='Set "model" to its own base.')


def _other_generation(checkpoint: Path, args: Mapping[str, Any], config: Config) -> Iterator[Problem]:
    """ms-swift 3 divides the parameters of an adapter into two groups, 4 has one: torch refuses the other's state."""
    wrote = "v4" if "swift_version" in args else "v3" if "train_type" in args else config.install.line
    if wrote != config.install.line:
        what = f"{checkpoint} holds the optimizer of ms-swift {wrote[1]}, which {config.install.version} cannot load"
        yield Problem(
            what, f"Resume it with ms-swift {wrote[1]}, or train on from its weights alone: {_WEIGHTS}"
        )


def _finished(state: TrainingState, config: Config) -> Iterator[Problem]:
    steps = _steps(state, config)
    if state.step < steps or not steps:
        return
    name = "max_steps" if (config.get("max_steps") or 0) > 0 else "num_train_epochs"
    what = f"{state.path} is at step {state.step} of {steps}: there is nothing left to train"
    yield Problem(what, f'To train longer, raise "{name}".')


def _steps(state: TrainingState, config: Config) -> int:
    """The steps that ``config`` asks for, told from those of the training before; 0 if that is not known."""
    if (asked := config.get("max_steps") or 0) > 0:
        return int(asked)
    epochs, before = config.get("num_train_epochs"), state.args.get("num_train_epochs")
    if (state.args.get("max_steps") or 0) > 0:
        return 0
    share = float(epochs) / float(before) if epochs and before else 1.0
    return int(state.max_steps * share)


# --- what changed --------------------------------------------------------------------------------------------

_NEUTRAL = re.compile(
    r"output_dir|add_version|resume_\w+|model|dataset|val_dataset|ref_model|logging_\w+|save_\w+|eval_\w+|report_to"
    r"|run_name|dataloader_(?!drop_last)\w+|dataset_num_proc|load_from_cache_file|hub_\w+|push_to_hub|use_hf"
    r"|check_model|swanlab_\w+|wandb_\w+|per_device_\w+_batch_size|gradient_accumulation_steps|gradient_checkpointing\w*"
    r"|vit_gradient_checkpointing|ddp_\w+|deepspeed\w*|fsdp\w*|device_map|max_memory|attn_impl|use_liger_kernel"
    r"|torch_compile\w*|torch_empty_cache_steps|max_steps|num_train_epochs|early_stop_interval|load_best_model_at_end"
    r"|metric_for_best_model|greater_is_better|create_checkpoint_symlink|ignore_args_error|disable_tqdm|acc_strategy"
    r"|vllm_\w+|sleep_level|log_completions|use_cpu|lazy_tokenize|strict|use_logits_to_keep"
)
"""Settings that do not decide what is learned, or are compared in another way."""

_SILENT = re.compile(r"output_dir|add_version|resume_\w+|model|dataset|val_dataset|(train|tuner)_type")


def changes(point: ResumePoint, wanted: StoredRequest) -> tuple[list[str], list[str]]:
    """What is not as it was when the run began, a phrase each: what does not change what is learned, and what does."""
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


# --- tidying -------------------------------------------------------------------------------------------------


def tidy(point: ResumePoint, output: Path) -> None:
    """Make the run's directory what it was at the checkpoint: its logs and curves end there, and no checkpoint after
    it is left.

    A checkpoint whose save did not end is removed; one that was damaged later is kept as ``damaged-checkpoint-N``.
    """
    if point.directory is None:
        return
    for checkpoint in checkpoints_of(point.directory):
        if int(checkpoint.name.rpartition("-")[2]) <= point.step:
            continue
        if (checkpoint / training_state.STATE).exists():
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
        else:
            shutil.rmtree(checkpoint)
    _cut_log(point.directory / "logging.jsonl", point.step)
    for events in point.directory.glob("runs/**/events.out.tfevents.*"):
        _cut_events(events, point.step)
    for name in ("last", "best"):
        link = output / name
        if link.is_symlink() and not link.exists():
            link.unlink()
    runs_directory.link(output, "last", point.checkpoint)
    if point.state and point.state.best:
        runs_directory.link(output, "best", point.directory / point.state.best)


def _cut_log(log: Path, step: int) -> None:
    """Keep the lines of ``logging.jsonl`` up to ``step``, and no summary of an end that was not the end."""
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

    A file of records: length (8 bytes), its checksum (4), an ``Event`` message, its checksum (4); see
    https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto.
    """
    content, kept, at = file.read_bytes(), [], 0
    while at + 12 <= len(content):
        end = at + 16 + struct.unpack_from("<Q", content, at)[0]
        if end > len(content):
            break  # cut by the kill
        if _event_step(content[at + 12 : end - 4]) <= step:
            kept.append(content[at:end])
        at = end
    with files.whole_file(file) as out:
        out.write(b"".join(kept))


def _event_step(event: bytes) -> int:
    """Field 2 of an ``Event``, which follows field 1, the time; 0 is not written."""
    at = 9 if event[:1] == b"\x09" else 0
    if event[at : at + 1] != b"\x10":
        return 0
    value = shift = 0
    for byte in event[at + 1 :]:
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            break
    return value
