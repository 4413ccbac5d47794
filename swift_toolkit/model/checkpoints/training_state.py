"""Whether a checkpoint is complete enough to resume from: weights, optimizer, scheduler, random state.

transformers writes the weights first and ``trainer_state.json`` last, each in place, so a process that is killed in
between leaves a directory that looks like a checkpoint. DeepSpeed keeps the optimizer in ``global_step<N>``, one file
per process; FSDP keeps it in ``optimizer_0``.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from swift_toolkit.machine import files
from swift_toolkit.model.checkpoints import pickled
from swift_toolkit.model.checkpoints.recorded import RecordedArguments, read_arguments
from swift_toolkit.model.files import (
    AGAIN,
    Fault,
    JsonObject,
    adapter_problems,
    checkpoint_kind,
    model_problems,
    read_json,
)
from swift_toolkit.problems import Problem

STATE = "trainer_state.json"
CHECKSUMS = "checksums.json"
"""CRC-32 of the weights by file name; safetensors files have no checksum of their own."""

SMALL_ENOUGH = 1 << 30
"""Size in bytes up to which a weight file's checksum is recorded and compared, which takes about a second."""

_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
_EARLIER = "Resume from an earlier checkpoint."


@dataclass(frozen=True)
class TrainingState:
    """The state of the training that wrote a checkpoint.

    Args:
        path: the checkpoint.
        step: optimiser steps done.
        max_steps: the planned number of optimiser steps.
        logs: what it had logged: losses by step, and evaluations.
        best: the name of the best checkpoint so far, e.g. ``checkpoint-40``; None without evaluation.
        processes: number of training processes; None if not known.
        deepspeed: whether DeepSpeed wrote the optimizer.
        args: the arguments of the training.
    """

    path: Path
    step: int
    max_steps: int
    logs: tuple[JsonObject, ...]
    best: str | None
    processes: int | None
    deepspeed: bool
    args: RecordedArguments

    @property
    def evaluated(self) -> bool:
        """Whether it had evaluated before."""
        return any(key.startswith("eval_") for log in self.logs for key in log)


def read_state(path: Path) -> TrainingState:
    """The state of the checkpoint ``path``, which `problems` has found complete."""
    state, _ = read_json(path / STATE)
    state, (args, _) = state or {}, read_arguments([path])
    best = state.get("best_model_checkpoint")
    logs = state.get("log_history") or []
    return TrainingState(
        path=path,
        step=int(state.get("global_step") or 0),
        max_steps=int(state.get("max_steps") or 0),
        logs=tuple(logs),
        best=Path(best).name if best else None,
        processes=_processes(path, args),
        deepspeed=_sharded_by_deepspeed(path, args),
        args=args,
    )


def training_state_problems(path: Path, every_byte: bool = False) -> list[Problem]:
    """Why the checkpoint ``path`` is incomplete; nothing if a training can resume from it.

    Args:
        path: a directory ``checkpoint-N``.
        every_byte: also compare checksums: of all pickled files, and of weight files up to ``SMALL_ENOUGH``.
    """
    try:
        if not (path / STATE).exists():
            do = f"Either the training ended while it was written, or it is not a training checkpoint. {_EARLIER}"
            return [Problem(f"{path} is incomplete: there is no {STATE}", do)]
        if is_model_only(path):
            return [_only_the_model(path)]
        found = weight_problems(path) + [Problem(*fault) for fault in _state_faults(path, every_byte)]
    except OSError as error:
        return [Problem(f"{error.filename or path} cannot be read: {error.strerror}")]
    return [replace(problem, do=_EARLIER if problem.do in ("", AGAIN) else problem.do) for problem in found]


def seems_complete(path: Path) -> bool:
    """Whether every file of the checkpoint ``path`` is there and none has lost its end.

    For lists of many checkpoints: takes a tenth of the time of `training_state_problems`, which checks the contents.
    """
    try:
        if not (path / STATE).exists() or is_model_only(path) or weight_problems(path):
            return False
        args, _ = read_arguments([path])
        return not any(
            not file.is_file() or pickled.is_cut_short(file) for file in _pickled_files(path, args)
        )
    except OSError:
        return False


def weight_problems(path: Path) -> list[Problem]:
    """Why the weights of the checkpoint ``path`` cannot be loaded; FSDP's shards are not checked."""
    if any(path.glob("pytorch_model_fsdp*")):
        return []
    return adapter_problems(path) if checkpoint_kind(path) == "lora" else model_problems(path)


def is_model_only(path: Path) -> bool:
    """Whether ``path`` was saved with ``save_only_model``, which omits what a training needs to resume."""
    parts = (*_OPTIMIZERS, "scheduler.pt", "latest", "rng_state*.pth", "optimizer_*", "global_step*")
    return not any(found for name in parts for found in path.glob(name))


def _only_the_model(path: Path) -> Problem:
    do = 'Its weights can start a new training: set "resume_only_model" to true together with "resume_from_checkpoint".'
    return Problem(
        f"{path} was saved with save_only_model: it has no optimizer, scheduler or random state", do
    )


def write_checksums(path: Path) -> None:
    """Record the CRC-32 of each weight file of the checkpoint ``path`` that is small enough."""
    files.write_json(path / CHECKSUMS, {file.name: _checksum(file) for file in _weights(path)})


# --- the parts ----------------------------------------------------------------------------------------------


def _state_faults(path: Path, every_byte: bool) -> Iterator[Fault]:
    state, fault = read_json(path / STATE)
    if fault is not None:
        yield fault
    elif not isinstance((state or {}).get("global_step"), int):
        yield f"{path / STATE} has no global_step", ""
    for file in _pickled_files(path, read_arguments([path])[0]):
        if not file.is_file():
            yield f"{path} is incomplete: there is no {file.relative_to(path)}", ""
        elif (found := pickled.fault(file, every_byte)) is not None:
            yield found
    if every_byte:
        yield from _changed_weights(path)


def _pickled_files(path: Path, args: RecordedArguments) -> Iterator[Path]:
    """The files that a training of this kind has in its checkpoint in addition to the weights."""
    processes = _processes(path, args) or 1
    if _sharded_by_deepspeed(path, args):
        yield from _deepspeed_files(path, processes, args)
    elif not any(path.glob("optimizer_*/.metadata")):  # FSDP's directory of shards
        yield next((path / name for name in _OPTIMIZERS if (path / name).exists()), path / _OPTIMIZERS[0])
        yield path / "scheduler.pt"
    if (path / "scaler.pt").exists():
        yield path / "scaler.pt"
    if processes == 1:
        yield path / "rng_state.pth"
    else:
        yield from (path / f"rng_state_{rank}.pth" for rank in range(processes))


def _deepspeed_files(path: Path, processes: int, args: RecordedArguments) -> Iterator[Path]:
    """ZeRO's files: the optimizer of each process, and the weights of one process, or in stage 3 of each."""
    latest = path / "latest"
    step = latest.read_text(encoding="utf-8").strip() if latest.is_file() else f"global_step{path.name[11:]}"
    folder = path / step
    if not latest.is_file():
        yield latest
    names = [file.name for file in folder.glob("*.pt")]
    if args.zero_stage == 3 or any(
        name.startswith("zero_pp_rank_") and "model_states" in name for name in names
    ):
        yield from (folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(processes))
    else:
        yield folder / "mp_rank_00_model_states.pt"
    if args.zero_stage == 0:
        return
    kind = "bf16_" if any(name.startswith("bf16_") for name in names) else ""
    yield from (folder / f"{kind}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(processes))


def _sharded_by_deepspeed(path: Path, args: RecordedArguments) -> bool:
    return args.deepspeed or (path / "latest").is_file() or any(path.glob("global_step*"))


def _random(path: Path) -> list[int]:
    """The ranks whose random state is saved; 0 for a single process."""
    found = [re.fullmatch(r"rng_state(?:_(\d+))?\.pth", file.name) for file in path.glob("rng_state*.pth")]
    return sorted(int(match[1] or 0) for match in found if match)


def _processes(path: Path, args: RecordedArguments) -> int | None:
    """How many processes wrote the checkpoint: by args.json, else by the saved random states."""
    if args.processes is not None:
        return args.processes
    ranks = _random(path)
    return ranks[-1] + 1 if ranks else None


# --- checksums of weights -----------------------------------------------------------------------------------


def _weights(path: Path) -> Iterator[Path]:
    for file in sorted(path.rglob("*.safetensors")):
        if file.stat().st_size <= SMALL_ENOUGH:
            yield file


def _checksum(file: Path) -> str:
    crc = 0
    for block in files.blocks(file):
        crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def _changed_weights(path: Path) -> Iterator[Fault]:
    noted, _ = read_json(path / CHECKSUMS) if (path / CHECKSUMS).is_file() else (None, None)
    for file in _weights(path) if noted else ():
        if noted is not None and noted.get(file.name, "") not in ("", _checksum(file)):
            yield f"{file} is damaged: its checksum differs from the recorded one", ""
