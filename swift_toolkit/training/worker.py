"""The door to ms-swift's training: the process in which one run, or one rank of it, takes place.

Started by finetune_trainer.py through process.py, alone or under torch.distributed.run, with the request in the
environment. It calls ms-swift's own ``sft_main`` (or ``pretrain_main``, ``rlhf_main``) with an argument list and
reports every step. SIGTERM, to one process of the run, lets the step in hand end, saves a checkpoint and stops all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from swift_toolkit.machine import msswift
from swift_toolkit.machine.msswift import train_function
from swift_toolkit.machine.process import Reporter
from swift_toolkit.model import training_state
from swift_toolkit.problems import first_line
from swift_toolkit.training import peers
from swift_toolkit.training.hooks import StopFlag, add_callback, balance_rows, count_rows
from swift_toolkit.training.peers import Peers

REQUEST_VARIABLE = "SWIFT_TOOLKIT_TRAINING"
"""Environment variable that holds the request: ``command`` of ms-swift; ``arguments``, the words of each by its name;
``directory`` of the run; ``peers``, what the processes that others start must agree on, null if there are none;
``gate``, the files of data_gate.py, null if the starter does not hold the run back."""


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
        self.stop = StopFlag()
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
            balance = self.words.pop("balance", None)
            arguments = [word for words in self.words.values() for word in words]
            train = train_function(self.command, arguments)
            if self.gate is not None and self.rank == 0:
                count_rows(self.report, self.gate["lost"])
            add_callback(self.report, self.stop, self.gate and self.gate["path"])
            self._prepare_resume()
            if balance:
                balance_rows(float(*balance))
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

    def _prepare_resume(self) -> None:
        """Whoever goes on from a checkpoint takes the rows, and draws the random numbers, of the training that wrote
        it."""
        msswift.keep_running_means()
        words = self.words.get("resume_from_checkpoint")
        if words and "--resume_only_model=true" not in self.words.get("resume_only_model", []):
            state = training_state.read_state(Path(words[0].partition("=")[2]))
            msswift.read_random_states_of_numpy_1()
            msswift.keep_random_numbers(state.evaluated)
            msswift.keep_epoch()

    def _prepare_deepspeed(self) -> None:
        """On CPUs: DeepSpeed, left to itself, would ask for a backend that needs Intel's oneCCL for ZeRO-3."""
        if "deepspeed" not in self.words:
            return
        msswift.take_over_build_locks()
        if os.environ.get("DS_ACCELERATOR") == "cpu":
            import deepspeed

            deepspeed.init_distributed(dist_backend="gloo")

    def _fail(self, error: Exception) -> None:
        kind, message = type(error).__name__, str(error)[:_MESSAGE_LENGTH]
        cause = self.peers.cause(str(error)) if self.peers else None
        if self.peers and not cause:
            first = first_line(f"rank {self.rank}: {kind}: {message}")
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


if __name__ == "__main__":
    sys.exit(main())
