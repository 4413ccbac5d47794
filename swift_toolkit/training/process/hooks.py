"""Hooks into ms-swift's trainer: row counts, progress, stopping, distribution of rows."""

from __future__ import annotations

import functools
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swift_toolkit.console.words import short
from swift_toolkit.dataset.audit import sample
from swift_toolkit.dataset.audit.look import Looker
from swift_toolkit.dataset.lengths import Lengths
from swift_toolkit.dataset.report import Split
from swift_toolkit.dataset.row_cache import RowKeeper
from swift_toolkit.machine import msswift
from swift_toolkit.machine.msswift import default_callbacks, encode_through
from swift_toolkit.model.checkpoints import training_state
from swift_toolkit.problems import first_line
from swift_toolkit.training.batches import balance
from swift_toolkit.training.process import events
from swift_toolkit.training.process.events import RunEvent


class StopFlag:
    """Whether SIGTERM has asked the run to stop. Before the first step, SIGTERM ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self.training = False

    def ask(self, signum: int, frame: object) -> None:
        self.asked = True
        if not self.training:
            os._exit(128 + signum)


def count_rows(report: Callable[[RunEvent], None], lost: str, keeper: RowKeeper) -> None:
    """Report how many rows ms-swift reads and how many it keeps after tokenizing; write the reasons to ``lost``."""
    reported = False

    def counted(
        encode: Callable[..., Any], args: Any, train: Any, val: Any, *more: Any, **kwargs: Any
    ) -> Any:
        nonlocal reported
        loaded = _sizes(train, val)
        out = encode(train, val, *more, **kwargs)
        if not reported:  # later calls are for other data, which the starter does not count
            reported = True
            later = args.lazy_tokenize or not kwargs.get("pre_process", True)
            used: dict[Split, int | None] = {"train": None, "val": None}
            used = used if later else _sizes(*out)
            keeper.note_skipped(Path(lost))
            report(events.RowsCounted(loaded=loaded, used=used))
        return out

    encode_through(counted, functools.partial(_noting, lost))


def _sizes(train: Any, val: Any) -> dict[Split, int | None]:
    """Rows of each split: 0 if it does not exist, None if it is read during training."""
    return {"train": _size(train), "val": _size(val)}


def _size(rows: Any) -> int | None:
    return len(rows or ()) if hasattr(rows or (), "__len__") else None


def _noting(lost: str, encode: Callable[..., Any], row: Any, **kwargs: Any) -> Any:
    """``encode`` the row; if that fails, append the reason to the file ``lost``. Loader processes do so too."""
    try:
        return encode(row, **kwargs)
    except Exception as error:
        kind, words = type(error).__name__, first_line(str(error))
        reason = "too long for max_length" if kind == "MaxLengthError" else f"{kind}: {short(words, 100)}"
        with open(lost, "a", encoding="utf-8") as file:  # noqa: PTH123  # one write per line keeps lines whole
            file.write(json.dumps(reason) + "\n")
        raise


def audit_rows(report: Callable[[RunEvent], None], order: events.AuditOrder) -> None:
    """Encode some rows with ms-swift's template before the model is loaded, and report which tokens are learned."""

    def look(args: Any, make_template: Callable[[], Any]) -> None:
        if args.tuner_backend == "unsloth":  # has no tokenizer without its model
            return
        try:
            template = make_template()
            if not template.use_model:  # needs its model to encode
                report(_audited(order, template, args))
        except Exception:
            traceback.print_exc()  # ms-swift itself will report what is wrong with the tokenizer or the data

    msswift.before_the_model(look)


def _audited(order: events.AuditOrder, template: Any, args: Any) -> events.Audited:
    template.set_mode(order.rules.task.template_mode)
    looker = Looker(
        template=template,
        rules=order.rules,
        limit=template.max_length,
        truncation=args.truncation_strategy,
        added=args.new_special_tokens or (),
        knows_marks=True,
    )
    found = sample.audit(looker, order.data)
    groups = list(found.groups(looker))
    return events.Audited(
        rows=found.rows,
        tokens=found.tokens,
        learned=found.learned if looker.learns else None,
        errors=[group.examples[0] for group in groups if sample.stops(found, group.kind)],
        warnings=[
            (group.examples[0], group.count) for group in groups if not sample.stops(found, group.kind)
        ],
    )


def add_callback(report: Callable[[RunEvent], None], stop: StopFlag, go: str | None) -> None:
    """Add a callback to every Trainer: it reports, stops on request, and waits for the file ``go``."""
    callbacks = default_callbacks()
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            msswift.log_as_it_is(args)
            msswift.keep_newest_checkpoint(args)
            if go is not None:
                self.wait_for(Path(go))
            stop.training = True
            world = args.world_size
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
            step, steps = state.global_step, state.max_steps
            report(events.Begin(step=step, max_steps=steps, batch=batch, time=time.time()))

        def wait_for(self, go: Path) -> None:
            if not go.exists():
                report(events.Waiting())
            while not go.exists():
                time.sleep(0.05)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            report(events.Step(step=state.global_step, saves=bool(control.should_save)))
            if _any_rank(stop.asked, args):
                stop.asked = True
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            report(events.Log(step=state.global_step, memory=_memory(), logs=_numbers(logs or {})))

        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            report(events.Evaluating(step=state.global_step))

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step, best = state.global_step, state.best_model_checkpoint
            checkpoint = os.path.join(args.output_dir, f"checkpoint-{step}")  # noqa: PTH118
            if args.should_save:
                training_state.write_checksums(Path(checkpoint))
            report(events.CheckpointSaved(step=step, checkpoint=checkpoint, best=best))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            report(events.End(step=state.global_step, time=time.time()))

    callbacks.append(Reporting)


def balance_rows(largest: float, lengths: Lengths) -> None:
    """Group the rows of every optimiser step into micro-batches of similar length if the gradient stays the same.

    Args:
        largest: size limit of a micro-batch, in rows of the longest length.
        lengths: estimates the tokens of rows that ms-swift has not counted (``lazy_tokenize``).
    """
    msswift.share_rows(functools.partial(_partition, largest, lengths))


def _partition(
    largest: float, estimate: Lengths, trainer: Any
) -> tuple[msswift.Partition, Sequence[int]] | None:
    """How the rows of a step are distributed, and the number of tokens of each row; None if the gradient would change
    or the lengths are unknown."""
    args, template = trainer.args, trainer.template
    if template.packing or args.group_by_length or args.n_gpu > 1:
        return None
    by_tokens = _divides_by_learned_tokens(trainer)
    if not by_tokens and (template.padding_free or not _divides_by_rows(trainer)):
        return None
    hidden = getattr(trainer.model.config.get_text_config(), "hidden_size", None) or 0
    across = not by_tokens or args.average_tokens_across_devices
    if template.padding_free and not across:
        return None
    of_texts = None if template.model_meta.is_multimodal else estimate.of_texts
    tokens = msswift.row_lengths(trainer.train_dataset, of_texts)
    if not tokens:
        return None
    limit = int(largest * max(tokens))

    def partition(lengths: Sequence[int], ranks: int, batch: int) -> balance.Shares:
        if template.padding_free:
            return balance.share_out_unpadded(lengths, ranks, batch, hidden)
        if across:
            return balance.share_out(lengths, ranks, batch, equal=not by_tokens, hidden=hidden, limit=limit)
        return balance.share_out_within_ranks(lengths, ranks, batch, limit)

    return partition, tokens


def _divides_by_learned_tokens(trainer: Any) -> bool:
    """Whether the loss is a sum over tokens divided by the learned tokens of the whole step (``num_items_in_batch``).
    The grouping of rows into micro-batches then has no effect on it."""
    args = trainer.args
    return (
        type(trainer).__name__ == "Seq2SeqTrainer"
        and trainer.model_accepts_loss_kwargs
        and trainer.compute_loss_func is None
        and trainer.label_smoother is None
        and not args.neftune_noise_alpha  # its noise depends on the padded length
        and not (
            trainer.model.model_info.is_moe_model and args.router_aux_loss_coef
        )  # balances a micro-batch
    )


_PAIRWISE_LOSSES = ("sigmoid", "robust", "hinge", "ipo", "sppo_hard", "nca_pair", "apo_zero", "apo_down")
"""DPO losses that are a mean over independent pairs."""


def _divides_by_rows(trainer: Any) -> bool:
    """Whether the loss of a micro-batch is the mean over its rows: micro-batches of equal size then weigh the same."""
    args, name = trainer.args, type(trainer).__name__
    if args.neftune_noise_alpha or trainer.compute_loss_func is not None:
        return False
    if name == "DPOTrainer":
        kinds = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
        others = args.rpo_alpha is not None or trainer.aux_loss_enabled
        return not others and set(kinds) <= set(_PAIRWISE_LOSSES)
    return name == "Trainer" and trainer.label_smoother is None


def _any_rank(asked: bool, args: Any) -> bool:
    """Whether any rank was asked to stop; all ranks must stop at the same step."""
    if args.world_size == 1:
        return asked
    import torch

    flag = torch.tensor([int(asked)], device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def _numbers(logs: Mapping[str, object]) -> dict[str, float]:
    return {key: float(value) for key, value in logs.items() if isinstance(value, (int, float))}


def _memory() -> int:
    """Peak memory of this process in bytes: on its accelerator, or resident memory on a CPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) << 10
    return int(psutil.Process().memory_info().rss)
