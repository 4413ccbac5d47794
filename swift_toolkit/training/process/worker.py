"""The training process: one run, or one rank of it.

finetune_trainer.py starts it, directly or through torch.distributed.run, with the request in an environment variable.
It calls ms-swift's ``sft_main`` (or ``pretrain_main``, ``rlhf_main``) with an argument list and reports every step.
After SIGTERM to any process of the run, all finish the current step, save a checkpoint and stop.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from swift_toolkit.dataset.lengths import Lengths
from swift_toolkit.dataset.row_cache import RowKeeper
from swift_toolkit.machine import cpu, msswift, threads
from swift_toolkit.machine.msswift import train_function
from swift_toolkit.machine.process import Reporter
from swift_toolkit.model.checkpoints import training_state
from swift_toolkit.problems import first_line
from swift_toolkit.training.process import events, peers, rewards
from swift_toolkit.training.process.hooks import StopFlag, add_callback, audit_rows, balance_rows, count_rows
from swift_toolkit.training.process.peers import Peers

REQUEST_VARIABLE = "SWIFT_TOOLKIT_TRAINING"
"""Environment variable that holds the `events.RunOrder` as JSON."""

MEETING_SECONDS = 300
"""How long the processes wait for each other at the start, in seconds."""

_MESSAGE_LENGTH = 600  # short enough to be written atomically to a pipe that processes share (PIPE_BUF)


def main() -> int:
    """Run the training that `REQUEST_VARIABLE` describes. Returns the exit status."""
    content = os.environ.pop(REQUEST_VARIABLE)
    return _Training(msgspec.json.decode(content, type=events.RunOrder)).carry_out()


class _Training:
    """The part of a run that this process does."""

    def __init__(self, request: events.RunOrder) -> None:
        self.command, self.directory = request.command, request.directory
        self.words = dict(request.arguments)
        self.asked, self.data_check, self.audit = request.peers, request.data_check, request.audit
        self.rank, self.world = _number("RANK", 0), _number("WORLD_SIZE", 1)
        self.leads = _number("LOCAL_RANK", 0) == 0
        self.peers: Peers | None = None
        self.stop = StopFlag()
        self.pipe = Reporter()
        self.own_starter = self.asked is not None and self.asked.own_starter

    def carry_out(self) -> int:
        self.pipe.end_with_starter()
        signal.signal(signal.SIGTERM, self.stop.ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter handles Ctrl-C
        self.report(events.Importing(pid=os.getpid()))
        threads.spin_while_alone()
        try:
            if self.asked is not None and not self._agree(self.asked):
                return 2
            if self.rank:
                _print_to(Path(self.directory) / "logs" / f"rank{self.rank}.log")
            self._offer_stacks()
            balance, keeper = self.words.pop("balance", None), RowKeeper()
            keeps_rows = self.words.pop("keep_rows", None)
            arguments = [word for words in self.words.values() for word in words]
            train = train_function(self.command, arguments)
            if self.data_check is not None and self.rank == 0:
                count_rows(self.report, self.data_check.lost, keeper)
            if self.audit is not None and self.rank == 0:
                rewards.try_rewards(self.report, self.audit)
                audit_rows(self.report, self.audit)
            add_callback(self.report, self.stop, self.data_check.path if self.data_check else None)
            msswift.spare_deepspeed()
            msswift.convert_rows_here()
            msswift.measure_rows_at_once()
            msswift.select_learned_logits()
            cpu.speed_up_steps()
            if keeps_rows:
                msswift.keep_rows(keeper.open, keeper.drop)
            self._prepare_resume()
            if balance:
                largest, letter, mark, byte, message, row = map(float, balance)
                balance_rows(largest, Lengths(letter, mark, byte, message, row))
            self._prepare_deepspeed()
            self.report(events.Loading())
            outcome = train(arguments)
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk that holds the log may be full
                traceback.print_exc()
            self._fail(error)
            if self.world > 1:
                _end_now()  # a normal exit waits for connections to processes that may be gone
            return 1
        if self.peers:
            self.peers.leave()
        self.report(events.Done(**{key: outcome.get(key) for key in _KEPT}, stopped=self.stop.asked))
        return 0

    def report(self, event: events.RunEvent) -> None:
        """Report to the starter. Of several processes with the same starter, only the first reports."""
        if self.leads or self.own_starter:
            self.pipe(**events.encode_event(event))

    def _agree(self, asked: events.PeersOrder) -> bool:
        """Compare this process's request with that of rank 0, and adopt rank 0's automatic settings and directory.
        False if the requests differ."""
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

    def _offer_stacks(self) -> None:
        """Let the starter request the Python stacks of this rank, even while it hangs in native code."""
        file = Path(self.directory) / "logs" / f"stacks-rank{self.rank}.txt"
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            self.stacks = file.open("w")  # stays open
            faulthandler.register(events.STACKS_SIGNAL, self.stacks)
            self.pipe(**events.encode_event(events.Ready(rank=self.rank, pid=os.getpid())))

    def _prepare_resume(self) -> None:
        """Make a resumed training use the rows and random numbers of the training that wrote the checkpoint."""
        msswift.keep_running_means()
        words = self.words.get("resume_from_checkpoint")
        if words and "--resume_only_model=true" not in self.words.get("resume_only_model", []):
            state = training_state.read_state(Path(words[0].partition("=")[2]))
            msswift.read_random_states_of_numpy_1()
            msswift.keep_random_numbers(state.evaluated)
            msswift.keep_epoch()

    def _prepare_deepspeed(self) -> None:
        """On CPUs, choose gloo: DeepSpeed's default backend needs Intel's oneCCL for ZeRO-3."""
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
            published = self.peers.tell(first)
            cause = None if published.endswith(first) else published
        self._report_error(kind, message, cause)

    def _on_loss(self, reason: str) -> None:
        """End now that another node is lost: collective operations would wait for it for hours."""
        print(reason, file=sys.stderr, flush=True)
        self._report_error("", "", reason)
        _end_now()

    def _report_error(self, kind: str, message: str, cause: str | None) -> None:
        failed = events.Failed(
            rank=self.rank, of=self.world, time=time.time(), type=kind, message=message, cause=cause
        )
        self.pipe(**events.encode_event(failed))


_KEPT = ("global_step", "best_model_checkpoint", "model_parameter_info", "train_dataset", "val_dataset")


def _number(variable: str, default: int) -> int:
    return int(os.environ.get(variable, default))


def _connect() -> Any:
    """A connection to the store whose address torchrun set in the environment."""
    from torch import distributed

    store, _, _ = next(distributed.rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS)))
    return distributed.PrefixStore(f"swift_toolkit/{_number('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _end_now() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _print_to(log: Path) -> None:
    """Redirect everything that this process prints to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    sys.exit(main())
