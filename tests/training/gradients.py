"""Trains in ms-swift's own way and with one of our patches, and writes both down for a test.

    python tests/training/gradients.py <request.json>

The request: ``patch``, "shared" (the rows of a step shared out), "learned" (logits of learned tokens only) or "tokens"
(linear layers skip padding) or "onednn" (so they do, and multiply with oneDNN);
``runs``, a list of objects with ``name``, ``command`` and ``arguments``; ``output``, a folder. Of every run
``<output>/<own|patch>-<name>-<rank>.pt`` gets the gradient of the first optimiser step, the losses, the rows of each
micro-batch as their lengths, and the numbers of tokens, logits and inputs of linear layers that were computed. Started
by torch.distributed.run it is one rank of each run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from swift_toolkit.dataset.lengths import BY_BYTES
from swift_toolkit.machine import cpu, msswift
from swift_toolkit.training.process import hooks


def main(request: dict[str, Any]) -> None:
    import torch
    from transformers import TrainerCallback, trainer

    found: dict[str, Any] = {}

    class Spy(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            found["weights"] = _trained(model) if args.deepspeed else {}
            if (head := model.get_output_embeddings()) is not None:
                head.register_forward_hook(count)

        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            if not args.deepspeed and "gradient" not in found:
                named = model.named_parameters()
                found["gradient"] = {name: one.grad.clone() for name, one in named if one.requires_grad}

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if "gradient" not in found:  # DeepSpeed keeps it to itself: what a step of SGD changed
                before = found.pop("weights")
                found["gradient"] = {name: before[name] - one for name, one in _trained(model).items()}

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            found.setdefault("losses", []).extend([logs["loss"]] if "loss" in logs else [])

    def record(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mask = inputs["attention_mask"]
        found.setdefault("rows", []).append(mask.sum(1).tolist())
        found["computed"] = found.get("computed", 0) + mask.numel()
        return step(self, model, inputs, *args, **kwargs)

    def count(head: Any, given: Any, out: Any) -> None:
        found["logits"] = found.get("logits", 0) + out.shape[0] * out.shape[1]

    def linear(x: Any, *args: Any) -> Any:
        found["multiplied"] = found.get("multiplied", 0) + x.numel() // x.shape[-1]
        return multiply(x, *args)

    multiply, torch.nn.functional.linear = torch.nn.functional.linear, linear
    msswift.train_function("sft", [])
    msswift.convert_rows_here()
    hooks.add_callback(lambda *_, **__: None, hooks.StopFlag(), None)
    trainer.DEFAULT_CALLBACKS.append(Spy)
    step = trainer.Trainer.training_step
    trainer.Trainer.training_step = record
    for kind in ("own", request["patch"]):
        if kind == "shared":
            hooks.balance_rows(4.0, BY_BYTES)
        if kind == "learned":
            msswift.select_learned_logits()
        if kind in ("tokens", "onednn"):
            cpu.mkl_lacks_avx512 = lambda: request["patch"] == "onednn"  # type: ignore[assignment]
            cpu.LARGE = 0
            cpu.speed_up_steps()
        for run in request["runs"]:
            found.clear()
            found["multiplied"] = 0
            output = Path(request["output"]) / f"{kind}-{run['name']}"
            msswift.train_function(run["command"], [])([*run["arguments"], f"--output_dir={output}"])
            torch.save(dict(found), f"{output}-{os.environ.get('RANK', '0')}.pt")


def _trained(model: Any) -> dict[str, Any]:
    named = model.named_parameters()
    return {name.removeprefix("module."): one.detach().clone() for name, one in named if one.requires_grad}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
