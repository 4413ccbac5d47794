"""The one door to what differs between the versions of ms-swift."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, get_args

from swift_toolkit.machine.files import write_json
from swift_toolkit.machine import packages
from swift_toolkit.problems import Problem, RequestError

Command = Literal["sft", "pt", "rlhf", "infer", "deploy", "export", "eval"]
Line = Literal["v3", "v4"]
COMMANDS: tuple[Command, ...] = get_args(Command)


INSTALL = f"{packages.install('ms_swift')}."


@dataclass(frozen=True)
class SwiftInstall:
    """The ms-swift of this environment.

    Args:
        version: e.g. ``4.6.0``.
        line: ``v3`` for 3.12 and later 3.x, ``v4`` for what came after.
        transformers_version: e.g. ``5.19.0``; empty if transformers is not installed.
        location: the directory of the package ``swift``.
    """

    version: str
    line: Line
    transformers_version: str
    location: Path


def installed() -> SwiftInstall:
    """Finds the installed ms-swift without importing it.

    Raises:
        RequestError: it is not installed, or older than 3.12.
    """
    swift, transformers = package_of("swift"), package_of("transformers")
    version = _version(swift / "version.py") if swift else ""
    if swift is None or not version:
        raise RequestError([Problem("ms-swift is not installed", INSTALL)])
    major, minor = (int(number) for number in re.findall(r"\d+", version)[:2])
    if (major, minor) < (3, 12):
        raise RequestError(
            [Problem(f"ms-swift {version} is older than 3.12, the oldest that works", INSTALL)]
        )
    transformers_version = _version(transformers / "__init__.py") if transformers else ""
    return SwiftInstall(version, "v3" if major == 3 else "v4", transformers_version, swift)


# ------------------------------------------------------------------------------------------ what is installed


def package_of(name: str) -> Path | None:
    """The directory of an installed top-level package."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _version(file: Path) -> str:
    """What a source file assigns to ``__version__``; empty if nothing."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.split("=")[1].strip(" '\"") for line in lines if line.startswith("__version__ =")), "")


def template_api() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """ms-swift's ``get_processor`` and ``get_template`` with the arguments they have in 4.x."""
    try:
        from swift.llm import get_model_tokenizer  # ms-swift 3
        from swift.llm import get_template as get_template_by_name
    except ModuleNotFoundError:
        from swift import get_template
        from swift.model import get_processor

        return get_processor, get_template

    def get_processor_of_3(model: str, **settings: Any) -> Any:
        return get_model_tokenizer(model, load_model=False, **settings)[1]

    def get_template_of_3(processor: Any, template_type: str | None, **settings: Any) -> Any:
        return get_template_by_name(template_type or processor.model_meta.template, processor, **settings)

    return get_processor_of_3, get_template_of_3


def inference_api() -> SimpleNamespace:
    """What is used of ms-swift, under its names of 4.x."""
    spare_imports()
    try:
        from swift.llm import InferRequest, RequestConfig  # ms-swift 3
        from swift.llm.infer import AdapterRequest, SwiftInfer
    except ModuleNotFoundError:
        from swift import AdapterRequest, InferRequest, RequestConfig
        from swift.pipelines.infer import SwiftInfer
    return SimpleNamespace(
        SwiftInfer=SwiftInfer,
        InferRequest=InferRequest,
        RequestConfig=RequestConfig,
        AdapterRequest=AdapterRequest,
    )


def serving_api() -> SimpleNamespace:
    """What is used of ms-swift, under its names of 4.x."""
    spare_imports()
    try:
        from swift.llm import AdapterRequest, DeployArguments, InferRequest, RequestConfig  # ms-swift 3
        from swift.llm.infer.deploy import SwiftDeploy
    except ModuleNotFoundError:
        from swift import AdapterRequest, DeployArguments, InferRequest, RequestConfig
        from swift.pipelines.infer.deploy import SwiftDeploy
    from swift.utils import parse_args

    return SimpleNamespace(
        AdapterRequest=AdapterRequest,
        DeployArguments=DeployArguments,
        InferRequest=InferRequest,
        RequestConfig=RequestConfig,
        SwiftDeploy=SwiftDeploy,
        parse_args=parse_args,
    )


def export_function() -> Callable[[list[str]], Any]:
    """ms-swift's ``export_main``."""
    try:
        from swift.llm import export_main  # ms-swift 3
    except ModuleNotFoundError:
        from swift import export_main
    main: Callable[[list[str]], Any] = export_main
    return main


# ------------------------------------------------------------------------------------------ the start


def spare_imports() -> None:
    """Import what ms-swift imports without what its libraries import only for other models and other runs; once,
    before ms-swift. Nothing is hidden: what is spared is imported when it is first used. Until transformers imports the
    losses of object detectors when they are used, and bitsandbytes compiles its kernels then.
    """
    if "swift" in sys.modules:
        return
    with contextlib.suppress(Exception):  # whoever needs what cannot be imported will say so
        _import_losses()
    if importlib.util.find_spec("bitsandbytes") and "bitsandbytes" not in sys.modules:
        with contextlib.suppress(Exception):
            _import_bitsandbytes()


def _import_losses() -> None:
    """transformers' table of losses, without the modules of the object detectors in it, which import scipy."""
    spec = importlib.util.find_spec("transformers.loss")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("loss_*.py")]
    names = {f"transformers.loss.{file.stem}" for file in files} - {"transformers.loss.loss_utils"}
    stand_ins = {name: _stand_in(name) for name in names - sys.modules.keys()}
    sys.modules.update(stand_ins)
    try:
        importlib.import_module("transformers.loss.loss_utils")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _stand_in(module: str) -> ModuleType:
    """A module whose functions import the real one when they are called."""

    def later(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(module), name)(*args, **kwargs)

        if name.startswith("__"):
            raise AttributeError(name)
        call.__module__, call.__name__ = module, name
        return call

    made = ModuleType(module)
    made.__getattr__ = later  # type: ignore[method-assign]
    return made


def _import_bitsandbytes() -> None:
    """bitsandbytes, which compiles functions when it is imported and so imports all of ``torch._inductor``; here each
    is compiled at its first call."""
    import torch

    compile_now = torch.compile

    def deferred(function: Any = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(deferred, **options)
        compiled = functools.cache(lambda: compile_now(function, **options))
        return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = deferred
    try:
        importlib.import_module("bitsandbytes")
    finally:
        torch.compile = compile_now


_MAINS = {"sft": ("sft_main",), "pt": ("pretrain_main", "pt_main"), "rlhf": ("rlhf_main",)}


def train_function(command: str, arguments: list[str]) -> Any:
    """ms-swift's function that trains: the one of ``command``, sft, pt or rlhf."""
    if "--tuner_backend=unsloth" in arguments:
        import unsloth  # noqa: F401  # it must come before transformers
    spare_imports()
    try:
        module: Any = importlib.import_module("swift.llm")  # ms-swift 3
    except ModuleNotFoundError:
        module = importlib.import_module("swift")
    return next(getattr(module, name) for name in _MAINS[command] if hasattr(module, name))


def keep_random_numbers(evaluated: bool) -> None:
    """Let a training that goes on from a checkpoint draw the random numbers that it would have drawn uninterrupted.

    torch draws one number when the workers of a data loader start. Workers are persistent, so an uninterrupted training
    draws it at its first epoch and at its first evaluation only; one that goes on would draw it again at the first use
    in the new process, after the random state was restored, and drop out other neurons from there on. Until torch or
    transformers gives each loader random numbers of its own.

    Args:
        evaluated: the training had evaluated before the checkpoint.
    """
    from torch import get_rng_state, set_rng_state
    from torch.utils.data import dataloader
    from transformers import Trainer

    begin, evaluate, first_evaluation = dataloader._BaseDataLoaderIter.__init__, Trainer._evaluate, False

    def started(self: Any, loader: Any) -> None:
        state = get_rng_state()
        begin(self, loader)
        if loader.persistent_workers and not first_evaluation:
            set_rng_state(state)

    def evaluated_by(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal first_evaluation, evaluated
        first_evaluation, evaluated = not evaluated, True
        try:
            return evaluate(self, *args, **kwargs)
        finally:
            first_evaluation = False

    dataloader._BaseDataLoaderIter.__init__, Trainer._evaluate = started, evaluated_by


def read_random_states_of_numpy_1() -> None:
    """Let torch read the random state that a checkpoint holds where numpy 1 wrote it; numpy 2 calls the function that
    makes an array by another name. Until transformers allows both."""
    from numpy import empty
    from torch.serialization import add_safe_globals

    make_array = empty(0).__reduce__()[0]
    add_safe_globals([(make_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")])


def keep_running_means() -> None:
    """Let a checkpoint hold what was summed up since the last log, so that the first loss that is logged after a resume
    is the mean over all of its steps. Until transformers 5 saves the sum, and ms-swift that of its own metrics."""
    from transformers import Trainer

    save, load = Trainer._save_rng_state, Trainer._load_rng_state

    def saved(self: Any, output_dir: str) -> None:
        save(self, output_dir)
        train = getattr(self, "custom_metrics", {}).get("train", {})
        means = {name: [one.state, one.count] for name, one in train.items() if hasattr(one, "count")}
        loss = [self._tr_loss.item(), self._globalstep_last_logged] if hasattr(self, "_tr_loss") else None
        write_json(_running_means(self, output_dir), {"loss": loss, "metrics": means})

    def loaded(self: Any, checkpoint: str) -> None:
        load(self, checkpoint)
        file = _running_means(self, checkpoint or "")
        if not file.is_file() or self.args.resume_only_model:
            return
        kept = json.loads(file.read_text())
        if kept["loss"] and hasattr(self, "_tr_loss"):
            self._tr_loss += kept["loss"][0]
            self._globalstep_last_logged = kept["loss"][1]
        for name, (state, count) in kept["metrics"].items():
            metric = self.custom_metrics["train"][name]
            metric.state, metric.count = state, count

    Trainer._save_rng_state, Trainer._load_rng_state = saved, loaded


def _running_means(trainer: Any, checkpoint: str) -> Path:
    return Path(checkpoint) / f"running_means_{trainer.args.process_index}.json"


def keep_epoch() -> None:
    """Let a training that goes on within an epoch take the rows of that epoch that are left. ms-swift 3 makes a new
    data loader to skip rows, which begins with the order of the first epoch. Until ms-swift 4."""
    module: Any = importlib.import_module("swift.trainers.mixin")
    if hasattr(module.SwiftMixin, "_restore_dataloader_epoch"):
        return
    make = module.DataLoaderMixin.get_train_dataloader

    def get_train_dataloader(self: Any, skip_batches: int = 0) -> Any:
        made = make(self, skip_batches)
        sampler: Any = getattr(getattr(made, "batch_sampler", None), "batch_sampler", None)
        if skip_batches and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(self.state.epoch))
        return made

    module.DataLoaderMixin.get_train_dataloader = get_train_dataloader


# ------------------------------------------------------------------------------------------ patches

Partition = Callable[[Sequence[int], int, int], list[list[list[int]]]]
"""From the tokens of the rows of an optimiser step in ms-swift's order, the ranks, and the rows of a micro-batch to the
micro-batches of each rank, as indices."""


def share_rows(choose: Callable[[Any], Partition | None]) -> None:
    """Let a function say which rows of an optimiser step share a micro-batch, and on which rank: until ms-swift
    balances rows within a step itself (4.6 has ``group_by_length``, which changes the rows of the steps).

    The rows of every step stay those of ms-swift's sampler, also after a resume in the middle of an epoch.

    Args:
        choose: from a trainer, when it makes its data loader, to the function; None keeps ms-swift's order.
    """
    module: Any = importlib.import_module("swift.trainers.mixin")
    loader, sampler = module.DataLoaderMixin, module.BatchSamplerShard
    make, iterate = loader.get_train_dataloader, sampler.__iter__

    def get_train_dataloader(self: Any, skip_batches: int = 0) -> Any:
        made = make(self, skip_batches)
        inner = getattr(made, "batch_sampler", None)
        inner = getattr(inner, "batch_sampler", inner)  # of accelerate's SkipBatchSampler
        if isinstance(inner, sampler) and (partition := choose(self)) is not None:
            inner.shared = (partition, row_lengths(self.train_dataset), self.args, skip_batches)
        return made

    def shared(self: Any) -> Iterator[list[int]]:
        return _micro_batches(self, iterate) if hasattr(self, "shared") else iterate(self)

    loader.get_train_dataloader, sampler.__iter__ = get_train_dataloader, shared


def has_row_lengths(dataset: Any) -> bool:
    """Whether ms-swift has noted how many tokens each row has: not with ``lazy_tokenize`` or ``streaming``."""
    return bool({"lengths", "length"} & set(getattr(_rows_of(dataset), "column_names", None) or ()))


def row_lengths(dataset: Any) -> list[int]:
    """Tokens of every row, of the longer one of a pair; 3.12 calls the column ``length``."""
    rows = _rows_of(dataset)
    column = rows["lengths" if "lengths" in rows.column_names else "length"]
    return [max(length) if isinstance(length, list) else length for length in column]


def _rows_of(dataset: Any) -> Any:
    """The rows with their columns, also of a LazyLLMDataset, which encodes them when they are needed."""
    return dataset if hasattr(dataset, "column_names") else getattr(dataset, "dataset", dataset)


def _micro_batches(sampler: Any, iterate: Callable[[Any], Iterator[list[int]]]) -> Iterator[list[int]]:
    """This rank's micro-batches of an epoch; empty ones in place of the steps that the data loader will skip."""
    partition, lengths, arguments, skipped = sampler.shared
    ranks, accumulation = sampler.world_size, arguments.gradient_accumulation_steps
    whole = copy.copy(sampler)  # as if there were one rank, with the rows of all
    whole.__class__ = type("Whole", (type(sampler),), {"rank": 0, "world_size": 1})
    whole.total_samples, whole.batch_size = sampler.total_samples * ranks, sampler.batch_size * ranks
    batches = iterate(whole)
    while step := list(itertools.islice(batches, accumulation)):
        skipped -= len(step)
        if skipped >= 0:
            yield from ([] for _ in step)
            continue
        rows = [row for batch in step for row in batch]
        shares = partition([lengths[row] for row in rows], ranks, sampler.batch_size)
        yield from ([rows[index] for index in micro_batch] for micro_batch in shares[sampler.rank])
