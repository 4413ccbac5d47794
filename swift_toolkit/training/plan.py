"""The plan of a run, made before anything expensive starts: its facts and everything derived from them.

All facts come from files and the operating system; torch is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from swift_toolkit.config.presets import PRESETS
from swift_toolkit.config.settings import Config, Setting, Source
from swift_toolkit.console import screen
from swift_toolkit.console.words import counted
from swift_toolkit.dataset import row_cache
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.machine import device as machine_device
from swift_toolkit.machine.device import Device
from swift_toolkit.machine.msswift import trust
from swift_toolkit.model import layers, quantized, size
from swift_toolkit.model.checkpoints.code import code_in, code_phrase
from swift_toolkit.model.shape import ModelShape
from swift_toolkit.training import preflight
from swift_toolkit.training.batches import batch as batches_batch
from swift_toolkit.training.batches import padding as batches_padding
from swift_toolkit.training.batches.batch import Batch
from swift_toolkit.training.batches.padding import Padding, RowLengths
from swift_toolkit.training.memory import advice, fitting, run
from swift_toolkit.training.memory.run import Rows
from swift_toolkit.training.process.launch import Cluster, Launch

KEPT_ROWS = 2_000
"""Number of rows from which converted rows are kept for later runs; ms-swift converts fewer in 3 s."""

_MARGIN = 1.15
"""Limit of the largest micro-batch relative to that of the simulated steps; the partition enforces it."""

_TOKENS_MARGIN = 1.5
"""The most tokens of a micro-batch of any step, relative to that of the simulated steps: the sum of 16 rows of mixed
length is by two standard deviations above its mean in one of 32 steps, and by four in one of 6,000."""


@dataclass
class TrainingPlan:
    """One run: its settings and what is known about its model, device and data.

    Facts are determined once. Settings can still be added and replaced, so everything derived from them is computed
    on each access, which takes microseconds.

    Args:
        config: the settings.
        device: the device of the run.
        data: what was found in its data.
        cluster: the requested processes and machines.
        trust_code: whether Python code that comes with the model or a checkpoint may run.
    """

    config: Config
    device: Device
    data: DataReport
    cluster: Cluster = field(default_factory=Cluster)
    trust_code: bool = False

    # --- facts --------------------------------------------------------------------------------------------

    @cached_property
    def shape(self) -> ModelShape | None:
        """The dimensions of the model; None if unknown."""
        model = str(self.config.get("model"))
        shape, stored = size.find_shape(model), quantized.stored(model)
        if shape and stored and quantized.is_unpacked(stored, self.device):
            return replace(shape, bits=16)
        return shape

    @cached_property
    def rows(self) -> Rows:
        """The length of the rows, in tokens."""
        return run.rows_of_run(self.config, self.data, bool(self.shape and self.shape.encoder))

    @cached_property
    def other_models(self) -> int:
        """Parameters of the teacher and of reward models, if known."""
        given = [self.config.get(name) or [] for name in ("teacher_model", "reward_model")]
        names = [name for value in given for name in (value if isinstance(value, list) else [value])]
        return sum(shape.parameters for name in names if (shape := size.find_shape(str(name))))

    @cached_property
    def train_rows(self) -> int | None:
        """Number of rows that ms-swift should train on; None if they cannot be counted in advance."""
        return preflight.expected_rows(self.config, self.data)["train"]

    # --- processes and batch ------------------------------------------------------------------------------

    @property
    def launch(self) -> Launch:
        """How the processes are started."""
        return Launch(self.config, self.device, self.cluster)

    @property
    def world_size(self) -> int:
        """Training processes on all nodes together."""
        return self.launch.world_size

    @property
    def batch(self) -> Batch:
        """The rows of one optimiser step."""
        return batches_batch.batch_of(self.config, self.world_size)

    @property
    def steps(self) -> int | None:
        """Optimiser steps; None if the number of rows is unknown."""
        rows, total = self.train_rows, self.data.tokens.total()
        sampled = any(spec.sample is not None for spec in self.data.specs["train"])
        lost = 0 if sampled or not total else preflight.surely_lost(self.config, self.data) / total
        kept = rows if rows is None else rows - round(rows * lost)
        return batches_batch.step_count(self.config, self.batch, kept)

    @property
    def micro_batch_tokens(self) -> int:
        """The fixed cost of a micro-batch, in tokens."""
        trains_all = self.config.tuner == "full"
        return batches_padding.tokens_of_a_micro_batch(self.device, self.shape, trains_all)

    @property
    def row_tokens(self) -> int | None:
        """Approximate number of tokens of a row; None if the data is not on this machine."""
        if not self.data.tokens or self.data.unchecked:
            return None
        limit, step = self.config.get("max_length") or 0, self.data.token_step
        deletes = (self.config.get("truncation_strategy") or "delete") == "delete"
        bars = {
            bar: rows for bar, rows in self.data.tokens.items() if not (limit and deletes) or bar <= limit
        }
        bars = bars or self.data.tokens
        total = sum(min(bar + step // 2, limit or bar + step) * rows for bar, rows in bars.items())
        return int(total / max(sum(bars.values()), 1))

    @property
    def tokens(self) -> int | None:
        """Approximate number of tokens of the whole run; None if unknown."""
        row, steps = self.row_tokens, self.steps
        if row is None or steps is None or self.config.get("packing"):
            return None
        return steps * self.batch.effective * row

    @property
    def keeps_rows(self) -> bool:
        """Whether converted and measured rows are kept for later runs with the same data and settings."""
        config, given = self.config, self.config.get("load_from_cache_file")
        others = any(config.get(name) for name in ("streaming", "cached_dataset", "cached_val_dataset"))
        if given is False or others or self.data.unchecked or (self.shape and self.shape.encoder):
            return False
        return bool(given) or (self.train_rows or 0) >= KEPT_ROWS

    # --- padding ------------------------------------------------------------------------------------------

    @cached_property
    def lengths(self) -> RowLengths:
        """The distribution of row lengths, as read or as assumed."""
        if self.rows.seen and self.data.tokens:
            limit = self.config.get("max_length") or 0
            return RowLengths.seen(self.data.tokens, self.data.token_step, limit)
        return RowLengths.assumed(self.rows.mean, self.rows.longest)

    def padding_of(self, rows: Batch) -> Padding:
        """The padding with these micro-batches, from a simulation."""
        hidden = self.shape.text.hidden if self.shape else 0
        sizes = (rows.feeders, rows.rows, rows.accumulation)
        return batches_padding.simulate(
            self.lengths, *sizes, hidden, batches_padding.padding_kind(self.config)
        )

    @property
    def padding(self) -> Padding | None:
        """The padding; None if the row lengths are unknown."""
        known = self.rows.seen and self.data.tokens and not self.rows.images
        return (
            self.padding_of(self.batch) if known and batches_padding.obstacle(self.config) is None else None
        )

    @property
    def may_balance(self) -> bool:
        """Whether the rows of a step can be distributed by length and the user did not disable it."""
        forbidden = self.config.balance is not None and not self.config.balance.value
        return not forbidden and batches_padding.obstacle(self.config) is None

    @property
    def balances(self) -> bool:
        """Whether the rows of a step are distributed by length."""
        if not self.may_balance or self.batch.rows * self.batch.feeders == 1:
            return False
        return self.config.balance is not None or self.padding is None or self.padding.saves

    @property
    def largest_batch(self) -> float:
        """Size of the largest micro-batch, in rows of the longest length."""
        found = self.padding
        return self.sizes_of(found, self.batch.rows, self.balances)[0] if found else float(self.batch.rows)

    def sizes_of(self, found: Padding, rows: int, balances: bool) -> tuple[float, int]:
        """The same for micro-batches of ``rows`` with the padding ``found``, and the most tokens in one without its
        padding."""
        largest = min(float(rows), max(1.0, _MARGIN * found.largest / self.rows.longest))
        pads = balances and not self.config.get("padding_free")
        return largest if pads else float(rows), int(_TOKENS_MARGIN * found.fullest)

    # --- memory -------------------------------------------------------------------------------------------

    @property
    def memory_run(self) -> run.MemoryRun | None:
        """The inputs of the memory estimate; None if the size of the model is unknown."""
        if self.shape is None:
            return None
        settings = {name: setting.value for name, setting in self.config.settings.items()}
        settings |= {"tuner_type": self.config.tuner, "command": self.config.command}
        device, launch = self.device, self.launch
        shared = launch.processes if device.kind == "cpu" else 1
        known = run.MemoryRun(
            settings,
            self.shape,
            self.rows,
            device.kind,
            device.count,
            launch.world_size,
            device.memory // shared,
            self.other_models,
            grows_segments=launch.grows_segments(),
            install=self.config.install,
        )
        found = self.padding
        return known.with_sizes(*self.sizes_of(found, self.batch.rows, self.balances)) if found else known

    @property
    def verdict(self) -> fitting.Verdict:
        """Whether the run should fit its devices, and otherwise the smallest change that makes it fit."""
        return fitting.judge_memory(self.memory_run)

    @property
    def suggestions(self) -> list[str]:
        """Changes that would save time or memory on a GPU, with their conditions; the user decides."""
        return list(advice.suggestions(self.memory_run))

    @property
    def memory_advice(self) -> list[str]:
        """Changes to try after memory ran out, least intrusive first, with the numbers of this run."""
        return advice.when_memory_ran_out(self.memory_run, self.config)

    # --- what is shown ------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the training processes, in addition to those of this process."""
        own = {**machine_device.environment(self.device), **self.launch.environment()}
        return {**own, **trust(self.trust_code)}

    def facts(self) -> Iterator[tuple[str, str]]:
        """Names and values of the plan, in display order."""
        config, rows = self.config, self.batch
        yield "model", config.settings["model"].shown
        yield from self.data.plan_rows()
        yield "preset", PRESETS[config.preset].says if config.preset else config.tuner
        for line in layers.layer_counts(config):
            yield "layers", line
        yield "device", str(self.device)
        yield "launch", self.launch.phrase()
        feeders = counted(rows.feeders, "process", "processes")
        parts = f"{rows.rows} per device × {rows.accumulation} accumulated × {feeders}"
        yield "batch", f"{rows.effective} = {parts}"
        if self.balances and self.padding is not None:
            yield "padding", str(self.padding)
        if self.keeps_rows:
            kept = f"{screen.mib(row_cache.size())} so far"
            yield "rows", f"cached for later runs in {row_cache.root()} ({kept})"
        yield "steps", str(self.steps or "unknown until the data is read")
        yield "tokens", self._tokens_phrase()
        yield from self.verdict.lines()
        for line in self.suggestions:
            yield "suggestion", line
        if self.code is not None:
            yield "code", self.code

    @cached_property
    def code(self) -> str | None:
        """What happens to the Python code that comes with models and checkpoints; None if there is none."""
        directories, reads_args = preflight.local_directories(self.config), bool(self.config.get("load_args"))
        return code_phrase(code_in(directories, reads_args), self.trust_code)

    def _tokens_phrase(self) -> str:
        known = "unknown" if self.tokens is None else f"about {self.tokens:,}"
        return f"{known}; the remaining time is estimated from the first steps"

    def as_dict(self) -> dict[str, object]:
        """The plan as plain data: exact arguments, their sources, notices, data, memory, launch."""
        settings = self.config.settings
        return {
            "preset": self.config.preset,
            "ms_swift": self.config.install.version,
            "arguments": {name: setting.value for name, setting in settings.items()},
            "sources": {name: str(setting.source) for name, setting in settings.items()},
            "notices": self.config.notices,
            "warnings": [str(warning) for warning in self.config.warnings],
            "code": self.code,
            "data": self.data.as_dict(),
            "memory": self.verdict.as_dict(),
            "launch": {
                "device": str(self.device),
                "processes": self.launch.processes,
                "nodes": self.cluster.nodes,
                "command": self.launch.command(),
                "environment": self.environment,
                "effective_batch_size": self.batch.effective,
                "steps": self.steps,
            },
            "padding": self._padding_dict(),
            "suggestions": self.suggestions,
        }

    def _padding_dict(self) -> dict[str, object]:
        found = self.padding
        computed = {"own": round(found.own, 3), "shared": round(found.shared, 3)} if found else {}
        return {"balance": self.balances, **computed}

    def with_all_data(self, closely: bool = False) -> TrainingPlan:
        """The same plan after checking every row of the data, if ``closely`` also for near-duplicates and secrets."""
        return replace(self, data=preflight.check_data(self.config, whole=True, closely=closely))

    def unpack_models(self) -> None:
        """Replace the name of an embedded model by its directory; unpack it first if needed."""
        preflight.unpack_models(self.config)

    def write_to(self, directory: Path) -> None:
        """Let the run write to ``directory`` instead of creating another one."""
        given = self.config.settings.get("output_dir")
        source = given.source if given else Source("automatic", "named after the model")
        self.config.settings["output_dir"] = Setting(str(directory.absolute()), source, "output_dir")
        reason = Source("automatic", "the run already has its own directory")
        self.config.settings.setdefault("add_version", Setting(False, reason, "add_version"))


def default_output_dir(config: Config) -> str:
    """ms-swift's own default, ``output/<last part of the model's name>``."""
    return f"output/{Path(str(config.get('model'))).name}"
