"""The door to ms-swift's training: the process in which one run, or one rank of it, takes place.

Started by finetune_trainer.py through process.py, alone or under torch.distributed.run, with the request in the
environment. It calls ms-swift's own ``sft_main`` (or ``pretrain_main``, ``rlhf_main``) with an argument list and
reports every step. SIGTERM, to one process of the run, lets the step in hand end, saves a checkpoint and stops all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from swift_toolkit.machine import msswift
from swift_toolkit.machine.msswift import train_function
from swift_toolkit.machine.process import Reporter
from swift_toolkit.model.checkpoints import training_state
from swift_toolkit.problems import first_line
from swift_toolkit.training.process import events, peers
from swift_toolkit.training.process.hooks import StopFlag, add_callback, balance_rows, count_rows
from swift_toolkit.training.process.peers import Peers

REQUEST_VARIABLE = "SWIFT_TOOLKIT_TRAINING"
"""Environment variable that holds the `events.Request` as JSON."""

MEETING_SECONDS = 300
"""How long processes that have been started wait for one another."""

_MESSAGE_LENGTH = 600  # so that a line stays whole in a pipe that several processes write to (PIPE_BUF)


def main() -> int:
    """Run the training that the environment asks for. Returns the exit status."""
    content = os.environ.pop(REQUEST_VARIABLE)
    return _Training(msgspec.json.decode(content, type=events.RunOrder)).carry_out()


class _Training:
    """This process's part of a run."""

    def __init__(self, request: events.RunOrder) -> None:
        self.command, self.directory = request.command, request.directory
        self.words = dict(request.arguments)
        self.asked, self.data_check = request.peers, request.data_check
        self.rank, self.world = _number("RANK", 0), _number("WORLD_SIZE", 1)
        self.leads = _number("LOCAL_RANK", 0) == 0
        self.peers: Peers | None = None
        self.stop = StopFlag()
        self.pipe = Reporter()
        self.own_starter = self.asked is not None and self.asked.own_starter

    def carry_out(self) -> int:
        self.pipe.end_with_starter()
        signal.signal(signal.SIGTERM, self.stop.ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter decides what Ctrl-C means
        self.report(events.Importing(pid=os.getpid()))
        try:
            if self.asked is not None and not self._agree(self.asked):
                return 2
            if self.rank:
                _print_to(Path(self.directory) / "logs" / f"rank{self.rank}.log")
            balance = self.words.pop("balance", None)
            arguments = [word for words in self.words.values() for word in words]
            train = train_function(self.command, arguments)
            if self.data_check is not None and self.rank == 0:
                count_rows(self.report, self.data_check.lost)
            add_callback(self.report, self.stop, self.data_check.path if self.data_check else None)
            self._prepare_resume()
            if balance:
                balance_rows(float(*balance))
            self._prepare_deepspeed()
            self.report(events.Loading())
            outcome = train(arguments)
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk that holds the log may be full
                traceback.print_exc()
            self._fail(error)
            if self.world > 1:
                _end_now()  # the ordinary way waits for connections to processes that may not be there any more
            return 1
        if self.peers:
            self.peers.leave()
        self.report(events.Done(**{key: outcome.get(key) for key in _KEPT}, stopped=self.stop.asked))
        return 0

    def report(self, event: events.RunEvent) -> None:
        """Tell the starter; of the processes that one starter has, the first speaks for all."""
        if self.leads or self.own_starter:
            self.pipe(**events.encode(event))

    def _agree(self, asked: events.PeersOrder) -> bool:
        """Compare this process's request with that of rank 0, whose automatic settings and directory hold for all.
        False if they differ."""
        mine = peers.PeerRequest(
            node=asked.node,
            given=asked.given,
            automatic={name: self.words[name] for name in asked.automatic},
            data=asked.data,
            versions=asked.versions,
            directory=self.directory,
        )
        node, nodes = _number("GROUP_RANK", 0), _number("GROUP_WORLD_SIZE", 1)
        self.peers = peers.Peers(_connect, self.rank, self.world, node, nodes, self.leads)
        first, differences = self.peers.agree(mine)
        if differences:
            self.report(events.Refused(differences=differences))
            return False
        for name in mine.automatic:
            del self.words[name]
        self.words |= {name: list(words) for name, words in first.automatic.items()}
        self.words["output_dir"] = [f"--output_dir={first.directory}"]
        self.directory = first.directory
        self.report(events.Agreed(directory=self.directory))
        self.peers.watch(self._on_loss)
        return True

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
        failed = events.Failed(
            rank=self.rank, of=self.world, time=time.time(), type=kind, message=message, cause=cause
        )
        self.pipe(**events.encode(failed))


_KEPT = ("global_step", "best_model_checkpoint", "model_parameter_info", "train_dataset", "val_dataset")


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
