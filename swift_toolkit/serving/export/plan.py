"""The plan of an export, made before anything heavy starts: format, output, size, memory, packages.

``make_export`` is the entry point. It reads the checkpoint and the settings and raises all problems together.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from swift_toolkit.config.file import Values
from swift_toolkit.config.request import read_request
from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.console import screen
from swift_toolkit.inference.plan import AskOptions, Plan, make_plan, other_ways
from swift_toolkit.machine.device import find_device, free_memory
from swift_toolkit.model.checkpoints.checkpoint import Checkpoint
from swift_toolkit.model.files import gguf_in
from swift_toolkit.model.loading import is_on_hub
from swift_toolkit.model.merge import unmergeable
from swift_toolkit.model.size import find_shape
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.serving.export import gguf
from swift_toolkit.serving.export import hub as export_hub
from swift_toolkit.serving.export.carry import present, source_of
from swift_toolkit.serving.export.formats import EXPORTS, GGUF_TYPES, Format, GgufType
from swift_toolkit.serving.proof.exchange import Messages

EXPORT_RECORD = "export.json"
"""The file in an artefact that records how it was made and how its answers compare."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of an export. Their defaults are defined only here.

    Args:
        export: the format, a key of `EXPORTS`.
        output: the directory to create; next to the checkpoint by default.
        base_model: location of the base, if it is no longer where training found it.
        trust_code: accept Python code in the checkpoint or its base.
        gguf_type: how a GGUF file stores its weights.
        calibration: a dataset from which awq and gptq choose their scales.
        hub: the hub that ``hub`` uploads to.
        hub_id: repository on the hub, ``owner/name``.
        public: make the repository public.
        proof_tokens: longest answer of the comparison, in tokens.
        overrides_from: how messages refer to the settings.
    """

    export: str
    output: str | None = None
    base_model: str | None = None
    trust_code: bool = False
    gguf_type: str = "q8_0"
    calibration: str | None = None
    hub: str = "huggingface"
    hub_id: str | None = None
    public: bool = False
    proof_tokens: int = 32
    overrides_from: Literal["command line", "call"] = "call"


_ESTIMATED = ("config.json", "model.safetensors", "README.md")
"""Files whose sizes are estimates until they exist."""

EXPORT_OPTIONS = frozenset(one.name for one in fields(ExportOptions)) - {"overrides_from"}


@dataclass(frozen=True, kw_only=True)
class Export:
    """A checked export that has not been started.

    Args:
        format: the format.
        options: the options, as given.
        plan: how the checkpoint is run for the comparison.
        config: settings for ms-swift's own export.
        output: the directory to create.
        questions: the messages of each question that both sides answer.
    """

    format: Format
    options: ExportOptions
    plan: Plan
    config: Config
    output: Path
    questions: tuple[Messages, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint to export."""
        return self.plan.checkpoint

    @property
    def log(self) -> Path:
        """The log of ms-swift and the converters, next to the output."""
        return self.output.with_name(f"{self.output.name}.log")

    @property
    def gguf_type(self) -> GgufType:
        """How a GGUF file stores its weights."""
        return GGUF_TYPES[self.options.gguf_type]

    @property
    def threshold(self) -> str:
        """The key of the row in the table of thresholds."""
        if self.checkpoint.args.quant_method and self.checkpoint.kind == "lora":
            return "quantised base"
        if self.format.name == "bnb" and self.config.get("quant_bits") == 8:
            return "8 bits"
        return self.gguf_type.threshold if self.format.gguf else self.format.threshold

    @property
    def parameters(self) -> int | None:
        """The number of weights of the model, None if not known."""
        shape = find_shape(self.checkpoint.base or str(self.checkpoint.path))
        return shape.parameters if shape else None

    @property
    def size(self) -> int | None:
        """Bytes of the artefact, None if not known."""
        bits = self.gguf_type.bits if self.format.gguf else self.format.bits or self._stored_bits()
        if self.format.quantised and self.config.get("quant_bits") == 8:
            bits = 8.5
        whole = self._unquantised() if self.format.quantised else 0
        return None if self.parameters is None else int(
            ((self.parameters - whole) * bits + whole * self._stored_bits()) / 8
        )  # fmt: skip

    def _unquantised(self) -> int:
        """Weights of the embedding and the output layer, which quantisation leaves as they are."""
        shape = find_shape(self.checkpoint.base or str(self.checkpoint.path))
        return 0 if shape is None else shape.vocabulary * shape.text.hidden * (1 if shape.tied else 2)

    @property
    def disk(self) -> int | None:
        """Bytes of disk the export needs: the artefact, the merged model, and a 16-bit GGUF file."""
        if self.parameters is None or self.size is None:
            return None
        merging = self.checkpoint.kind == "lora" and self.format.name not in ("merged", "hub")
        between = self._stored_bits() if merging else 0
        between += 16 if self.format.gguf and self.gguf_type.ftype else 0
        return self.size + int(self.parameters * between / 8)

    @property
    def memory(self) -> int | None:
        """Bytes of memory that merging and running the model need."""
        bits = 32 if self.plan.device.kind == "cpu" else self._stored_bits()
        return None if self.parameters is None else int(self.parameters * bits / 8 * 1.1)

    def _stored_bits(self) -> int:
        return 32 if self.checkpoint.torch_dtype == "float32" else 16

    def rows(self) -> list[tuple[str, str]]:
        """The plan as names and values for the screen."""
        checkpoint = self.checkpoint
        rows = [("checkpoint", f"{checkpoint.path} ({self.plan.why})")]
        if checkpoint.base is not None:
            rows.append(("base", f"{checkpoint.base} ({checkpoint.base_source})"))
        if checkpoint.args.quant_method:
            rows.append(("merging", "into the unquantised base; the adapter was trained on a quantised one"))
        what = self.format.what + (f", {self.options.gguf_type}" if self.format.gguf else "")
        rows.append(("export", f"{self.format.name}: {what}"))
        rows.append(("output", str(self.output)))
        if self.size is not None and self.disk is not None and self.memory is not None:
            needs = f"{_size_of(self.disk)} of disk, {_size_of(self.memory)} of memory"
            rows.append(("size", f"about {_size_of(self.size)}; the export needs {needs}"))
        if self.format.name == "hub":
            visible = "public" if self.options.public else "private"
            rows.append(("upload", f"to {self.options.hub} as {self.options.hub_id}, {visible}"))
            exact = (self.output / EXPORT_RECORD).is_file()
            estimated = () if exact else _ESTIMATED
            rows += [
                ("file", f"{name}, {'about ' if name in estimated else ''}{size:,} bytes")
                for name, size in self.files()
            ]
            if not exact:
                rows.append(("file", "chat_template.jinja, if the base's own renders different prompts"))
        rows.append(("proof", f"{len(self.questions)} questions, both sides on {self.plan.device}"))
        return rows

    def as_json(self) -> Mapping[str, object]:
        """The plan as plain data."""
        return {
            "format": self.format.name,
            "gguf_type": self.options.gguf_type if self.format.gguf else None,
            "checkpoint": str(self.checkpoint.path),
            "base": self.checkpoint.base,
            "output": str(self.output),
            "bytes": self.size,
            "disk": self.disk,
            "memory": self.memory,
            "questions": len(self.questions),
            "device": str(self.plan.device),
            "files": dict(self.files()) if self.format.name == "hub" else None,
        }

    def files(self) -> list[tuple[str, int]]:
        """Names and sizes in bytes of the files to upload; the size of the weights is estimated until they exist."""
        if (self.output / EXPORT_RECORD).is_file():
            return [
                (name, size)
                for name, size in export_hub.files_of(self.output)
                if name not in export_hub.LOCAL
            ]
        source = source_of(self.checkpoint)
        found = [] if source is None else [(name, (source / name).stat().st_size) for name in present(source)]
        return [*found, *zip(_ESTIMATED, (1000, self.size or 0, 2000), strict=True)]


def make_export(
    checkpoint: str | None,
    config: str | Path | Values | None,
    settings: Mapping[str, object],
    options: ExportOptions,
    questions: Sequence[Messages],
) -> Export:
    """Check the request and make the plan.

    Args:
        checkpoint: a checkpoint, a run directory or an output directory.
        config: settings for ms-swift's export: a file or a mapping.
        settings: settings that override ``config``.
        options: the toolkit's own options.
        questions: the questions that both sides answer.

    Raises:
        RequestError: with all problems.
    """
    asked, problems = read_request(config, settings, command="export", overrides_from=options.overrides_from)
    problems += other_ways(asked, _OTHER_WAYS, from_line=False)
    problems += _option_problems(options)
    plan = None
    try:
        plan = _plan(checkpoint, options, asked)
    except RequestError as error:
        problems += error.problems
    if plan is None or options.export not in EXPORTS or options.gguf_type not in GGUF_TYPES:
        raise RequestError(problems)
    made = Export(
        format=EXPORTS[options.export],
        options=options,
        plan=plan,
        config=asked,
        output=_output(plan.checkpoint, options),
        questions=tuple(questions),
    )
    problems += _export_problems(made)
    if problems:
        raise RequestError(problems)
    return made


def _plan(checkpoint: str | None, options: ExportOptions, asked: Config) -> Plan:
    """The plan to run the checkpoint: with pt, and on a CPU in float32, so that only the weights differ."""
    settings = {name: asked.get(name) for name in ("model_type", "template", "system") if asked.get(name)}
    if find_device().kind == "cpu":
        settings["torch_dtype"] = "float32"
    how = AskOptions(
        base_model=options.base_model,
        infer_backend="pt",
        trust_code=options.trust_code,
        overrides_from=options.overrides_from,
    )
    return make_plan(checkpoint, None, settings, how)


def _output(checkpoint: Checkpoint, options: ExportOptions) -> Path:
    if options.output is not None:
        return Path(options.output).expanduser().absolute()
    suffix = EXPORTS[options.export].suffix
    return checkpoint.path.with_name(f"{checkpoint.path.name}-{suffix}")


_OTHER_WAYS = {
    **dict.fromkeys(("quant_method", "merge_lora", "to_ollama", "push_to_hub"), "Use --export."),
    **dict.fromkeys(("model", "adapters", "load_args"), "Use --checkpoint and --base-model."),
    **dict.fromkeys(
        ("hub_model_id", "hub_private_repo"),
        "Use --hub-id; the repository is private unless --public is given.",
    ),
    "hub_token": "Set the environment variable HF_TOKEN or MODELSCOPE_API_TOKEN.",
    "output_dir": "Use --output.",
    "dataset": "Use --calibration.",
}


def _option_problems(options: ExportOptions) -> Iterator[Problem]:
    if options.export not in EXPORTS:
        yield Problem(*not_one_of(options.export, EXPORTS), key="--export")
        return
    made = EXPORTS[options.export]
    yield from made.needs(find_device())
    if made.gguf:
        yield from gguf.converter_problems(options.gguf_type)
    if made.calibrated and options.calibration is None:
        yield Problem(
            "is needed",
            f"{made.name} chooses its scales from data like that of the training.",
            "--calibration",
        )
    if options.calibration is not None and not Path(options.calibration).expanduser().is_file():
        yield Problem(f"{options.calibration} does not exist", "", "--calibration")
    if made.name == "hub":
        yield from export_hub.hub_problems(options.hub, options.hub_id)
    if options.proof_tokens < 1:
        yield Problem(f"must be at least 1, not {options.proof_tokens}", "", "--proof-tokens")


def _export_problems(made: Export) -> Iterator[Problem]:
    """Yield problems with the checkpoint, the output and the machine."""
    checkpoint = made.checkpoint
    if not checkpoint.path.is_absolute() or is_on_hub(str(checkpoint.path)):
        what = f"cannot export {checkpoint.path}: it is on a hub"
        yield Problem(what, "Download it and name its directory.", "--checkpoint")
        return
    if gguf_in(checkpoint.path) is not None:
        what = f"cannot export {checkpoint.path}: it contains a GGUF file"
        yield Problem(what, "Export the checkpoint it was made from.", "--checkpoint")
    if not checkpoint.generates:
        what = f"cannot export {checkpoint.path}: it was trained for {checkpoint.task_type}"
        yield Problem(what, "Only models that generate text can be exported.", "--checkpoint")
    if made.format.name == "merged" and checkpoint.kind != "lora":
        what = f'is "merged", but {checkpoint.path} already contains a whole model'
        yield Problem(what, "Use it as it is.", "--export")
    yield from unmergeable(checkpoint)
    yield from _place_problems(made)


def _place_problems(made: Export) -> Iterator[Problem]:
    """Yield the reasons why the output cannot be written or the model cannot be loaded."""
    elsewhere = "Name another directory with --output."
    if made.output.exists() and not is_own(made.output):
        what = f"cannot write {made.output}: it exists and was not made by this command"
        yield Problem(what, "Move it away, or name another directory with --output.", "--output")
    parent = _existing(made.output.parent)
    if not parent.is_dir():
        yield Problem(f"cannot write {made.output}: {parent} is not a directory", elsewhere, "--output")
        return
    if not os.access(parent, os.W_OK | os.X_OK):
        yield Problem(f"cannot write {made.output}: permission denied", elsewhere, "--output")
    free = shutil.disk_usage(parent).free
    if made.disk is not None and made.disk > free:
        what = f"needs {_size_of(made.disk)} of disk, but {parent} has {_size_of(free)} free"
        yield Problem(what, f"Free some space. {elsewhere}", "--export")
    if made.plan.device.kind == "cpu" and made.memory is not None and made.memory > free_memory():
        what = f"needs {_size_of(made.memory)} of memory, but only {_size_of(free_memory())} is free"
        yield Problem(what, "Export on a machine with more memory.", "--export")


def _size_of(size: int) -> str:
    """Bytes as ``135 MiB`` or ``1.5 GiB``."""
    return screen.gib(size) if size >= 1 << 30 else screen.mib(size)


def is_own(path: Path) -> bool:
    """Whether this toolkit made the directory ``path``, so that it may be replaced."""
    return any((path / name).is_file() for name in (EXPORT_RECORD, "merged_from.json"))


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def license_of(model: str | None) -> str | None:
    """The licence that the card of a model on this machine states."""
    readme = Path(model or "") / "README.md"
    try:
        lines = readme.read_text(encoding="utf-8").splitlines()[:40]
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), None)
