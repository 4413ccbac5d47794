"""The door to ms-swift's training: the process in which one run takes place.

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
from typing import Any

from swift_toolkit.process import Reporter

REQUEST_VARIABLE = "SWIFT_TOOLKIT_TRAINING"
"""Environment variable that holds the request: ``{"command": "sft", "arguments": [...]}``."""

_MAINS = {"sft": ("sft_main",), "pt": ("pretrain_main", "pt_main"), "rlhf": ("rlhf_main",)}


def main() -> int:
    """Run the training that the environment asks for. Returns the exit status."""
    request = json.loads(os.environ.pop(REQUEST_VARIABLE))
    pipe = Reporter()
    pipe.end_with_starter()
    reporter = pipe if os.environ.get("RANK", "0") == "0" else None
    stop = _StopFlag()
    signal.signal(signal.SIGTERM, stop.ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter decides what Ctrl-C means
    if reporter:
        reporter("importing", pid=os.getpid())
    try:
        train = _train_function(request["command"], request["arguments"])
        _add_callback(reporter, stop)
        if reporter:
            reporter("loading")
        outcome = train(request["arguments"])
    except Exception as error:
        traceback.print_exc()
        if reporter:
            reporter("error", type=type(error).__name__, message=str(error))
        return 1
    if reporter:
        reporter("result", **{key: outcome.get(key) for key in _KEPT}, stopped=stop.asked)
    return 0


_KEPT = (
    *("last_model_checkpoint", "best_model_checkpoint", "best_metric", "global_step", "memory"),
    *("model_parameter_info", "train_dataset", "val_dataset"),
)


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


def _add_callback(reporter: Reporter | None, stop: _StopFlag) -> None:
    """Give every Trainer that will be made a callback that reports and stops."""
    import importlib

    # ms-swift replaces the list of default callbacks when its trainers are imported: append after that.
    importlib.import_module("swift.trainers.patcher")
    from transformers import TrainerCallback, trainer

    class Reporting(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stop.training = True
            world = args.world_size
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
            self.say("begin", step=state.global_step, max_steps=state.max_steps, batch=batch)

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
            if reporter:
                reporter(event, time=time.time(), **details)

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
    """Peak bytes this process holds on its accelerator, or its resident bytes on a CPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    sys.exit(main())
