"""The door to ms-swift's training: the process in which one run, or one rank of it, takes place.

Started by finetune_trainer.py through process.py, alone or under torch.distributed.run, with the request in the
environment. It calls ms-swift's own ``sft_main`` (or ``pretrain_main``, ``rlhf_main``) with an argument list and
reports every step. SIGTERM, to one process of the run, lets the step in hand end, saves a checkpoint and stops all.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from swift_toolkit.machine.process import Reporter

if TYPE_CHECKING:
    from swift_toolkit.training.peers import Peers

REQUEST_VARIABLE = "SWIFT_TOOLKIT_TRAINING"
"""Environment variable that holds the request: ``command`` of ms-swift; ``arguments``, the words of each by its name;
``directory`` of the run; ``peers``, what the processes that others start must agree on, null if there are none;
``gate``, the files of data_gate.py, null if the starter does not hold the run back."""

_MAINS = {"sft": ("sft_main",), "pt": ("pretrain_main", "pt_main"), "rlhf": ("rlhf_main",)}

MEETING_SECONDS = 300
"""How long processes that have been started wait for one another."""

_MESSAGE_LENGTH = 600  # so that a line stays whole in a pipe that several processes write to (PIPE_BUF)


def main() -> int:
    """Run the training that the environment asks for. Returns the exit status."""
    return _Training(json.loads(os.environ.pop(REQUEST_VARIABLE))).carry_out()


class _Training:
    """This process's part of a run."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.command, self.directory = request["command"], request["directory"]
        self.words: dict[str, list[str]] = request["arguments"]
        self.asked, self.gate = request["peers"], request["gate"]
        self.rank, self.world = _number("RANK", 0), _number("WORLD_SIZE", 1)
        self.leads = _number("LOCAL_RANK", 0) == 0
        self.peers: Peers | None = None
        self.stop = _StopFlag()
        self.pipe = Reporter()
        self.own_starter = self.asked is not None and self.asked["own_starter"]

    def carry_out(self) -> int:
        self.pipe.end_with_starter()
        signal.signal(signal.SIGTERM, self.stop.ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter decides what Ctrl-C means
        self.report("importing", pid=os.getpid())
        try:
            if self.asked is not None and not self._agree():
                return 2
            if self.rank:
                _print_to(Path(self.directory) / "logs" / f"rank{self.rank}.log")
            arguments = [word for words in self.words.values() for word in words]
            train = _train_function(self.command, arguments)
            if self.gate is not None and self.rank == 0:
                _count_rows(self.command, self.report, self.gate["lost"])
            _add_callback(self.report, self.stop, self.gate and self.gate["path"])
            self._prepare_deepspeed()
            self.report("loading")
            outcome = train(arguments)
        except Exception as error:
            traceback.print_exc()
            self._fail(error)
            if self.world > 1:
                _end_now()  # the ordinary way waits for connections to processes that may not be there any more
            return 1
        if self.peers:
            self.peers.leave()
        self.report("result", **{key: outcome.get(key) for key in _KEPT}, stopped=self.stop.asked)
        return 0

    def report(self, event: str, **details: Any) -> None:
        """Tell the starter; of the processes that one starter has, the first speaks for all."""
        if self.leads or self.own_starter:
            self.pipe(event, **details)

    def _agree(self) -> bool:
        """Compare this process's request with that of rank 0, whose automatic settings and directory hold for all.
        False if they differ."""
        from swift_toolkit.training import peers

        mine = peers.Request(automatic=self._automatic(), directory=self.directory, **self.asked["same"])
        node, nodes = _number("GROUP_RANK", 0), _number("GROUP_WORLD_SIZE", 1)
        self.peers = peers.Peers(_connect, self.rank, self.world, node, nodes, self.leads)
        first, differences = self.peers.agree(mine)
        if differences:
            self.report("refused", differences=differences)
            return False
        for name in mine.automatic:
            del self.words[name]
        self.words |= {name: list(words) for name, words in first.automatic.items()}
        self.words["output_dir"] = [f"--output_dir={first.directory}"]
        self.directory = first.directory
        self.report("agreed", directory=self.directory)
        self.peers.watch(self._on_loss)
        return True

    def _automatic(self) -> dict[str, list[str]]:
        return {name: self.words[name] for name in self.asked["automatic"]}

    def _prepare_deepspeed(self) -> None:
        """On CPUs: DeepSpeed, left to itself, would ask for a backend that needs Intel's oneCCL for ZeRO-3."""
        if "deepspeed" in self.words and os.environ.get("DS_ACCELERATOR") == "cpu":
            import deepspeed

            deepspeed.init_distributed(dist_backend="gloo")

    def _fail(self, error: Exception) -> None:
        kind, message = type(error).__name__, str(error)[:_MESSAGE_LENGTH]
        cause = self.peers.cause(str(error)) if self.peers else None
        if self.peers and not cause:
            first = f"rank {self.rank}: {kind}: {message}".splitlines()[0]
            told = self.peers.tell(first)
            cause = None if told.endswith(first) else told
        self._report_error(kind, message, cause)

    def _on_loss(self, reason: str) -> None:
        """Another node has gone: end now, for whoever waits for it would wait for hours."""
        print(reason, file=sys.stderr, flush=True)
        self._report_error("", "", reason)
        _end_now()

    def _report_error(self, kind: str, message: str, cause: str | None) -> None:
        place = {"rank": self.rank, "of": self.world, "time": time.time()}
        self.pipe("error", **place, type=kind, message=message, cause=cause)


_KEPT = (
    *("last_model_checkpoint", "best_model_checkpoint", "best_metric", "global_step", "memory"),
    *("model_parameter_info", "train_dataset", "val_dataset"),
)


def _number(variable: str, default: int) -> int:
    return int(os.environ.get(variable, default))


def _connect() -> Any:
    """A connection to the store whose address torchrun puts into the environment."""
    from torch import distributed

    store, _, _ = next(distributed.rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS)))
    return distributed.PrefixStore(f"swift_toolkit/{_number('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _end_now() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _print_to(log: Path) -> None:
    """From now on, all that this process prints goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


class _StopFlag:
    """Whether SIGTERM has asked for the end; before the first step it ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self.training = False

    def ask(self, signum: int, frame: object) -> None:
        self.asked = True
        if not self.training:
            os._exit(128 + signum)


def _train_function(command: str, arguments: list[str]) -> Any:
    if "--tuner_backend=unsloth" in arguments:
        import unsloth  # noqa: F401  # it must come before transformers
    import importlib

    try:
        module: Any = importlib.import_module("swift.llm")  # ms-swift 3
    except ModuleNotFoundError:
        module = importlib.import_module("swift")
    return next(getattr(module, name) for name in _MAINS[command] if hasattr(module, name))


def _count_rows(command: str, report: Callable[..., None], lost: str) -> None:
    """Report how many rows ms-swift reads and how many are left when all are tokens; note why in the file ``lost``."""
    import importlib

    pipeline = importlib.import_module(_train_function("sft", []).__module__)
    sft, lazy, encode = pipeline.SwiftSft, pipeline.LazyLLMDataset, pipeline.EncodePreprocessor
    encode_dataset, init, preprocess = sft._encode_dataset, lazy.__init__, encode.preprocess
    reported = False

    def counted(self: Any, train: Any, val: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal reported
        loaded = _sizes(train, val)
        out = encode_dataset(self, train, val, *args, **kwargs)
        if not reported:  # later calls are for further data, of which the starter knows nothing
            reported = True
            later = self.args.lazy_tokenize or not kwargs.get("pre_process", True)
            used = {"train": None, "val": None} if later else _sizes(*out)
            report("rows", loaded=loaded, used=used)
        return out

    def noted(self: Any, row: Any) -> Any:
        return _noting(lambda given: preprocess(self, given), lost, row)

    def lazily(self: Any, dataset: Any, encode_func: Any, *args: Any, **kwargs: Any) -> None:
        init(self, dataset, functools.partial(_noting, encode_func, lost), *args, **kwargs)

    sft._encode_dataset, encode.preprocess, lazy.__init__ = counted, noted, lazily


def _sizes(train: Any, val: Any) -> dict[str, int | None]:
    """Rows of each split, 0 of one that is not there, None of one that is read while it is trained on."""
    of = {"train": train, "val": val}
    return {split: len(rows or ()) if hasattr(rows or (), "__len__") else None for split, rows in of.items()}


def _noting(encode: Callable[..., Any], lost: str, row: Any, **kwargs: Any) -> Any:
    """``encode`` the row; if that fails, say why in a line of the file ``lost``, also from a worker process."""
    try:
        return encode(row, **kwargs)
    except Exception as error:
        kind, words = type(error).__name__, (str(error).splitlines() or [""])[0]
        reason = "too long for max_length" if kind == "MaxLengthError" else f"{kind}: {words[:100]}"
        with open(lost, "a", encoding="utf-8") as file:  # noqa: PTH123  # one write a line: lines stay whole
            file.write(json.dumps(reason) + "\n")
        raise


def _add_callback(report: Callable[..., None], stop: _StopFlag, gate: str | None) -> None:
    """Give every Trainer that will be made a callback that reports and stops, and waits for the file ``gate``."""
    import importlib

    # ms-swift replaces the list of default callbacks when its trainers are imported: append after that.
    try:
        importlib.import_module("swift.trainers.patcher")
    except ModuleNotFoundError:
        importlib.import_module("swift.trainers.callback")  # ms-swift 3
    from transformers import TrainerCallback, trainer

    class Reporting(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if gate is not None:
                self.wait_for(Path(gate))
            stop.training = True
            world = args.world_size
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
            self.say("begin", step=state.global_step, max_steps=state.max_steps, batch=batch)

        def wait_for(self, gate: Path) -> None:
            if not gate.exists():
                self.say("waiting")
            while not gate.exists():
                time.sleep(0.05)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.say("step", step=state.global_step, max_steps=state.max_steps)
            if _any_rank(stop.asked, args):
                stop.asked = True
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.say("log", step=state.global_step, memory=_memory(), logs=_numbers(logs or {}))

        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.say("evaluating", step=state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            checkpoint = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")  # noqa: PTH118
            self.say("save", step=state.global_step, checkpoint=checkpoint, best=state.best_model_checkpoint)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.say("end", step=state.global_step)

        def say(self, event: str, **details: Any) -> None:
            report(event, time=time.time(), **details)

    trainer.DEFAULT_CALLBACKS.append(Reporting)


def _any_rank(asked: bool, args: Any) -> bool:
    """Whether any rank was asked to stop: all must stop at the same step."""
    if args.world_size == 1:
        return asked
    import torch

    flag = torch.tensor([int(asked)], device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def _numbers(logs: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in logs.items() if isinstance(value, (int, float))}


def _memory() -> int:
    """Most bytes this process has held: on its accelerator, or resident on a CPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) << 10
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    sys.exit(main())
