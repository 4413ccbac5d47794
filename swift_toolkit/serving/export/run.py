"""Runs an export: ask the original, merge the adapter, write the format, ask the artefact, and only then rename the
artefact to its final name. Ctrl-C at any time leaves an earlier export unchanged.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from swift_toolkit.console import screen
from swift_toolkit.console.words import shown
from swift_toolkit.machine import packages
from swift_toolkit.machine.device import environment
from swift_toolkit.machine.files import whole_text, write_json
from swift_toolkit.machine.msswift import trust
from swift_toolkit.machine.scratch import ScratchFolder
from swift_toolkit.model.checkpoints.recorded import RecordedArguments
from swift_toolkit.model.files import read_json
from swift_toolkit.model.loading import fill_model, local
from swift_toolkit.model.merge import MARK, made_of, merge_into, run_export
from swift_toolkit.problems import RunError
from swift_toolkit.serving.export import gguf, hub
from swift_toolkit.serving.export.card import Card
from swift_toolkit.serving.export.carry import TEMPLATE, carry_chat, carry_files, source_of
from swift_toolkit.serving.export.modelfile import modelfile
from swift_toolkit.serving.export.plan import EXPORT_RECORD, Export, license_of
from swift_toolkit.serving.proof import report
from swift_toolkit.serving.proof.prove import Told, ask_original, prove
from swift_toolkit.serving.proof.verdict import Proof

SCHEMA = 1
"""Version of export.json, raised when a key changes its meaning."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export.

    Args:
        export: the export.
        path: directory of the artefact.
        file: the GGUF file in it, None for other formats.
        proof: comparison of its answers with those of the checkpoint.
        notes: additions to the files of the training.
        seconds: wall-clock seconds of each step.
        address: address on the hub, None without an upload.
    """

    export: Export
    path: Path
    file: Path | None
    proof: Proof
    notes: Sequence[str]
    seconds: dict[str, float]
    address: str | None = None

    def as_json(self) -> dict[str, object]:
        """The content of export.json."""
        return {
            "schema": SCHEMA,
            **self.export.as_json(),
            "file": self.file and self.file.name,
            "files": dict(hub.files_of(self.path)),
            "made_of": made_of(self.export.checkpoint),
            "notes": list(self.notes),
            "proof": report.proof_json(self.proof),
            "seconds": self.seconds,
            "address": self.address,
            "versions": packages.versions(),
        }


class _Clock:
    """Measures the wall-clock time of the steps and shows the current one on the live line."""

    def __init__(self, line: screen.StartingLine) -> None:
        self._line = line
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str, note: str) -> Iterator[None]:
        self._line.note(note)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


def write_export(export: Export) -> Exported:
    """Make the artefact and compare it with the checkpoint. It is kept whatever the verdict, which is recorded in it.

    Raises:
        RunError: a step failed; nothing of the artefact is left.
    """
    with screen.StartingLine() as line:
        clock = _Clock(line)
        with _write_errors(export.output):
            export.output.parent.mkdir(parents=True, exist_ok=True)
            with (
                ScratchFolder(export.output.parent, f".{export.output.name}.partial-") as folder,
                _write_errors(export.output),
            ):
                made = _made(export, folder / export.output.name, clock)
                put_in_place(made.path, export.output)
        made = replace(made, path=export.output, file=made.file and export.output / made.file.name)
        if export.format.name == "hub" and made.proof.verdict != "different":
            with clock.part("upload", f"uploading to {export.options.hub}"):
                made = replace(made, address=_upload(export))
            write_json(made.path / EXPORT_RECORD, made.as_json())
        return made


_FULL = 1 << 20
"""A disk with fewer free bytes is full."""


@contextmanager
def _write_errors(output: Path) -> Iterator[None]:
    """Raise a RunError for an OSError, and for any failure on a full disk."""
    try:
        yield
    except (OSError, RunError) as error:
        parent = output.parent
        if parent.is_dir() and shutil.disk_usage(parent).free < _FULL:
            raise RunError(f"cannot write {output}: no space left on the disk of {parent}") from None
        if isinstance(error, OSError):
            raise RunError(f"cannot write {output}: {error.strerror or error}") from None
        raise


def put_in_place(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; an earlier ``path`` is removed afterwards, or restored if this is interrupted."""
    old = new.with_name("old")
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)


def _made(export: Export, path: Path, clock: _Clock) -> Exported:
    plan = replace(export.plan, log=export.log)
    with ExitStack() as stack:
        with clock.part("original", "asking the checkpoint"):
            told = stack.enter_context(ask_original(plan, export.questions, export.options.proof_tokens))
        return _made_from(export, path, clock, told)


def _made_from(export: Export, path: Path, clock: _Clock, told: Told) -> Exported:
    model, notes = _whole_model(export, path, clock, told)
    file = None
    if export.format.gguf:
        file = _write_gguf(export, model, path, clock, told)
        notes = _gguf_notes(told)
    elif export.format.quantised:
        _quantise(export, model, path, clock)
        notes += [*_carry(export, path, told)]
    with clock.part("artefact", "asking the artefact"):
        merged_from = None if export.format.gguf or export.format.quantised else export.checkpoint
        proof = prove(told, file or path, export.threshold, merged_from)
    made = Exported(
        export=export,
        path=path,
        file=file,
        proof=proof,
        notes=tuple(dict.fromkeys(notes)),
        seconds=clock.seconds,
    )
    _write_records(made)
    return made


def _whole_model(export: Export, path: Path, clock: _Clock, told: Told) -> tuple[Path, list[str]]:
    """The unquantised model that the format is made from; ``path`` itself if that is the requested format."""
    final = not (export.format.gguf or export.format.quantised)
    model = path if final else path.with_name("model")
    with clock.part("merging", "merging the adapter into its base"):
        if export.checkpoint.kind == "lora":
            merge_into(replace(export.plan, log=export.log), model)
            if final:
                write_json(model / MARK, made_of(export.checkpoint))
        else:
            copy = shutil.copy2 if final else _link_weights
            shutil.copytree(export.checkpoint.path, model, copy_function=copy)
    return model, [*_carry(export, model, told)]


def _link_weights(source: str, target: str) -> str:
    """Link to a weight file, which no later step changes; copy any other file."""
    if source.endswith((".safetensors", ".bin")):
        Path(target).symlink_to(Path(source).resolve())
        return target
    return str(shutil.copyfile(source, target))


def _carry(export: Export, model: Path, told: Told) -> Iterator[str]:
    source = source_of(export.checkpoint)
    if source is not None and source != model:
        names = carry_files(source, model)
        yield f"files of {source.name}, byte for byte: {', '.join(names)}"
    else:
        yield "the tokenizer was written by ms-swift: that of the training is not on this machine"
    yield from carry_chat(told.side, model)


def _gguf_notes(told: Told) -> list[str]:
    """What a GGUF file contains besides the weights."""
    chat = told.side.chat
    if chat is None or not chat.jinja:
        return []
    system = f", with the system prompt {shown(chat.system)}" if chat.system else ""
    return [f"the file contains the chat template of the training{system}"]


def _write_gguf(export: Export, model: Path, path: Path, clock: _Clock, told: Told) -> Path:
    name = export.options.gguf_type
    path.mkdir()
    file = path / f"{_model_name(export)}-{name.upper()}.gguf"
    with clock.part("converting", f"converting to GGUF, {name}"):
        tell_converter(model)
        gguf.write(model, file, name, export.log)
    write_json(path / "args.json", _recorded(export))
    if export.format.name == "ollama" and told.side.chat is not None:
        with whole_text(path / "Modelfile") as out:
            out.write(modelfile(told.side.chat, file.name, model))
    return file


def _recorded(export: Export) -> dict[str, object]:
    """What this toolkit and ms-swift need to know about a GGUF file, with the keys of a training's args.json."""
    checkpoint = export.checkpoint
    return {
        "swift_version": packages.version("ms-swift"),
        "tuner_type": "full",
        "model_type": checkpoint.model_type,
        "template": checkpoint.template,
        "system": checkpoint.system,
        "task_type": "causal_lm",
        "torch_dtype": checkpoint.torch_dtype,
    }


def tell_converter(model: Path) -> None:
    """Put the chat template where llama.cpp's converter looks first; it would use the base's own otherwise."""
    template, file = model / TEMPLATE, model / "tokenizer_config.json"
    config = read_json(file)[0]
    if template.is_file() and config is not None:
        write_json(file, {**config, "chat_template": template.read_text(encoding="utf-8")})


def _model_name(export: Export) -> str:
    return Path(str(export.checkpoint.base or export.checkpoint.path)).name


def _quantise(export: Export, model: Path, path: Path, clock: _Clock) -> None:
    """Quantise the merged model with ms-swift's own export."""
    config = replace(export.config, settings=dict(export.config.settings))
    whole = replace(export.checkpoint, path=model, kind="merged", tuner_type=None, args=RecordedArguments())
    fill_model(config, whole, model=str(model), adapter=None)
    config.fill("quant_method", export.format.name, "--export")
    if export.format.name != "fp8":
        config.fill("quant_bits", 4, "")
    if export.options.calibration is not None:
        config.fill(
            "dataset", [str(Path(export.options.calibration).expanduser().absolute())], "--calibration"
        )
    config.fill("output_dir", str(path), "")
    where = {**environment(export.plan.device), **trust(export.checkpoint.trusted)}
    with clock.part("quantising", f"quantising with {export.format.name}"):
        run_export(config.arguments(), where, export.log, "quantise the model")


def _write_records(made: Exported) -> None:
    export = made.export
    card = Card(
        name=export.options.hub_id or export.output.name,
        checkpoint=export.checkpoint,
        license=license_of(local(export.checkpoint.base) if export.checkpoint.base else None),
        format=export.format.what,
        file=made.file.name if made.file else None,
        ollama=export.format.name == "ollama",
        notes=made.notes,
        proof=made.proof,
    )
    with whole_text(made.path / "README.md") as out:
        out.write(card.text())
    write_json(made.path / EXPORT_RECORD, made.as_json())


def _upload(export: Export) -> str:
    options = export.options
    assert options.hub_id is not None  # checked by the plan
    return hub.upload(options.hub, options.hub_id, export.output, options.public)


def print_result(made: Exported) -> None:
    """Print the verdict and the location of the artefact to stdout."""
    report.print_proof(made.proof)
    size = sum(size for _, size in hub.files_of(made.path))
    rows = [("note", note) for note in made.notes]
    rows.append(("output", f"{screen.short_path(made.file or made.path)} ({screen.mib(size)})"))
    if made.address is not None:
        rows.append(("address", made.address))
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in made.seconds.items())
    screen.print_facts(
        [*rows, ("time", took), ("record", screen.short_path(made.path / EXPORT_RECORD))], sys.stdout
    )
