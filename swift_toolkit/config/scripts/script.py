"""A shell command or script that starts ms-swift, read as a command with settings.

    from_command("CUDA_VISIBLE_DEVICES=0 swift sft --model a/b --dataset c.jsonl d.jsonl --packing")
    # "sft", {"CUDA_VISIBLE_DEVICES": "0"},
    # {"model": "a/b", "dataset": ["c.jsonl", "d.jsonl"], "packing": True}

Nothing is run. Variables that the script assigns are substituted; comments, continued lines, quotes, redirections and
all ways to start ms-swift in any generation (``swift sft``, ``torchrun … swift/cli/sft.py``, ``python llm_sft.py``) are
supported. Loops and conditions are not evaluated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swift_toolkit.config import fields as config_fields
from swift_toolkit.config import tasks
from swift_toolkit.config.file import EXTENSIONS, Values, environment_in, read_small
from swift_toolkit.config.names import benchmarks, translate
from swift_toolkit.config.scripts import blocks, python_script, shell
from swift_toolkit.config.scripts.python_script import Call, PythonScript
from swift_toolkit.config.scripts.shell import Script, Statement
from swift_toolkit.console import secrets
from swift_toolkit.machine import msswift
from swift_toolkit.machine.msswift import COMMANDS, Command
from swift_toolkit.problems import Problem, RequestError


class SwiftCommand(NamedTuple):
    """One command of ms-swift.

    Args:
        command: its name.
        env: the environment variables that the script sets for it.
        values: setting -> string, list of strings, or True for a flag without a value; ``config`` is the file from
            which ms-swift would read more of them.
        left_out: one line for each part of the script that does not belong to it, or could not be evaluated.
        notices: messages for the user.
    """

    command: Command
    env: dict[str, str]
    values: Values
    left_out: list[str]
    notices: list[str]


def from_command(text: str, wanted: Collection[Command] = COMMANDS, file: str | None = None) -> SwiftCommand:
    """Read the only command of ms-swift in a shell command or script.

    Args:
        text: the command or script.
        wanted: the commands to look for; others in the script are skipped.
        file: the source of the text, for error messages.

    Raises:
        RequestError: the script has no such command, or several.
    """
    if python_script.is_python(text, file):
        return _from_python(text, wanted, file)
    text = blocks.without_surroundings(python_script.shell_of(text) or text)
    if strange := list(shell.shell_problems(text, file)):
        raise RequestError(strange)
    found: list[tuple[Statement, SwiftCommand]] = []
    others: list[tuple[Statement, SwiftCommand | None]] = []
    for statement, command in _commands(text, file):
        if command is not None and command.command in wanted:
            found.append((statement, command))
        elif statement.words:
            others.append((statement, command))
    if not found and python_script.imports_swift(text):
        return _from_python(text, wanted, file)
    if len(found) != 1:
        raise RequestError([_not_one(found, others, wanted, file)])
    statement, command = found[0]
    strange += [*shell.value_problems(statement, file), *_stray_problems(statement, file)]
    for other, _ in others:
        strange += [*shell.name_problems(other, command.values.values(), file)]
    if strange:
        raise RequestError(strange)
    return command._replace(
        left_out=command.left_out + [f"line {other.line}: {other}" for other, _ in others]
    )


def _stray_problems(statement: Statement, file: str | None) -> Iterator[Problem]:
    """Words that belong to no setting, which ms-swift refuses, too."""
    for word in statement.stray:
        where, shown = (file, statement.line), statement.without_secrets(word)
        if re.fullmatch(r"-[A-Za-z]\w+(?:=.*)?", word):
            yield Problem(f'"{shown}" starts with one dash', f"Write -{shown}.", None, *where)
        else:
            yield Problem(
                f'"{shown}" belongs to no setting', "Remove it, or write --NAME before it.", None, *where
            )


def _from_python(text: str, wanted: Collection[Command], file: str | None) -> SwiftCommand:
    """The only call of a Python script that sets the arguments of one of these commands."""
    try:
        script = python_script.PythonScript(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        raise RequestError([Problem("is not valid Python", "Correct it.", file=file, line=line)]) from None
    found = [call for call in script.calls if call.command in wanted]
    if len(found) != 1:
        raise RequestError([_not_one_call(script, found, wanted, file)])
    (call,) = found
    left_out = [f"line {call.line}: {text}, which the script computes" for text in call.computed]
    left_out += [f"line {other.line}: swift {other.command}" for other in script.calls if other is not call]
    shared = _one_process(call.command, script.env)
    return SwiftCommand(
        call.command,
        script.env | shared.env,
        call.values,
        [secrets.masked_words([text])[0] for text in left_out],
        [*_imports_now(script), *shared.notes],
    )


def _imports_now(script: PythonScript) -> list[str]:
    install = msswift.installed()
    names = script.imports(install.line)
    return [f"in ms-swift {install.version} the script starts with: {names}"] if names else []


def _not_one_call(
    script: PythonScript, found: list[Call], wanted: Collection[Command], file: str | None
) -> Problem:
    """The problem of a Python script without a call for one of these commands, or with several."""
    if found:
        places = ", ".join(f"swift {call.command} in line {call.line}" for call in found)
        return Problem(f"sets the arguments of several commands: {places}", "Keep one of them.", file=file)
    now = " ".join(f"{text[0].upper()}{text[1:]}." for text in _imports_now(script))
    for call in script.calls:
        if call.command in _SCRIPTS:
            what = f"sets the arguments of swift {call.command}"
            do = f"Pass it to {_SCRIPTS[call.command]}. {now}".strip()
            return Problem(what, do, file=file, line=call.line)
    what, do = "is a Python script that sets no arguments of a command", _HERE
    for call in script.calls:
        what = f"sets the arguments of swift {call.command}, which cannot be run here"
        do = _INSTEAD.get("merge-lora" if "merge_lora" in call.values else call.command, _HERE)
    return Problem(what, f"{do} {now}".strip(), file=file)


_HERE = "Here: finetune_trainer.py trains, inference_test.py --checkpoint DIR asks a model, deploy_model.py serves it."


def all_commands(text: str) -> list[SwiftCommand]:
    """Every command of ms-swift in a script, in order."""
    return [command for _, command in _commands(text) if command]


def _commands(
    text: str, file: str | None = None, around: Mapping[str, str] | None = None
) -> Iterator[tuple[Statement, SwiftCommand | None]]:
    """The statements of a script, with the command of ms-swift that they run.

    Args:
        text: the script.
        file: its path.
        around: the variables that a script around it sets for it.
    """
    around = around or {}
    script = Script(text, file, {**os.environ, **around})
    for statement in script.statements():
        exported = {**around, **script.exported}
        if (inner := _inner_script(statement)) is not None:
            yield from _within(statement, inner, file, exported)
            continue
        command = _swift_command(statement, exported)
        if command and script.moved:
            moved = (
                f"the script changes to {script.moved}; relative paths are read from the current directory"
            )
            command = command._replace(left_out=[*command.left_out, moved])
        yield statement, command


def _within(
    statement: Statement, inner: str, file: str | None, exported: dict[str, str]
) -> Iterator[tuple[Statement, SwiftCommand | None]]:
    """The statements of a text that a statement runs."""
    sets = exported | statement.env | _container_variables(statement.words)
    for place, command in _commands(inner, file, sets):
        place.line = statement.line
        notes = [statement.without_secrets(note) for note in statement.notes]
        yield place, command and command._replace(left_out=[*notes, *command.left_out])


_PASSES_ON = frozenset(
    "ssh tmux screen su sudo docker podman nerdctl kubectl singularity apptainer eval srun sbatch script nohup timeout"
    " conda mamba parallel xargs".split()
)
"""Programs that run a text which one of their arguments holds."""
_CONTAINERS = frozenset("docker podman nerdctl".split())


def _inner_script(statement: Statement) -> str | None:
    """The text that a program is told to run: ``bash -c "swift sft ..."``, ``ssh host "swift sft ..."``."""
    words = statement.words
    for position, word in enumerate(words[:-2]):
        is_text = re.fullmatch(r"-[a-z]*c", words[position + 1])
        if _base_name(word) in ("bash", "sh", "zsh", "dash") and is_text:
            return words[position + 2]
    if words and _base_name(words[0]) in _PASSES_ON:
        texts = [word.partition("=")[2] if word.startswith("--wrap=") else word for word in words[1:]]
        return next((one for one in texts if re.search(r"(?:\bswift|\.py)\s+\S", one)), None)
    return None


def _container_variables(words: Sequence[str]) -> dict[str, str]:
    """The variables that ``docker run -e NAME=VALUE`` sets."""
    if not words or _base_name(words[0]) not in _CONTAINERS:
        return {}
    given = [words[place + 1] for place, word in enumerate(words[:-1]) if word in ("-e", "--env")]
    given += [word.partition("=")[2] for word in words if word.startswith("--env=")]
    return {name: value for name, sign, value in (one.partition("=") for one in given) if sign}


def _not_one(
    found: list[tuple[Statement, SwiftCommand]],
    others: list[tuple[Statement, SwiftCommand | None]],
    wanted: Collection[Command],
    file: str | None,
) -> Problem:
    """The problem of a script with no command or with several."""
    if found:
        places = ", ".join(f"swift {one.command} in line {place.line}" for place, one in found)
        return Problem(f"contains several commands of ms-swift: {places}", "Keep one of them.", file=file)
    for other, command in others:
        if command is not None and command.command in _SCRIPTS:
            what = f'"{other}" is a command for another script'
            do = f"Pass it to {_SCRIPTS[command.command]}."
            return Problem(what, do, file=file, line=other.line)
        if other.words and (served := _served(other.words)):
            do = f"Here: deploy_model.py --checkpoint {served.model} --infer-backend {served.backend}"
            return Problem(f'"{other}" is a command of {served.backend}', do, file=file, line=other.line)
        if other.words and (tool := _OTHER_TOOLS.get(_base_name(other.words[0]))):
            do = (
                f"Write its settings to a .json or .yaml file and pass it with --config: names of {tool} are "
            )
            do += "pointed out, with those of ms-swift."
            return Problem(f'"{other}" is a command of {tool}', do, file=file, line=other.line)
        if command is not None or _is_swift(other):
            what = f'"{other}" is a command that cannot be run here'
            raw, instead = command and _for_the_installed(command), _instead(other)
            do = " ".join(filter(None, [instead, raw])) or _which(wanted)
            return Problem(what, do, file=file, line=other.line)
    is_config = file is not None and Path(file).suffix.lower() in EXTENSIONS
    do = "Pass a file of settings with --config." if is_config else _which(wanted)
    return Problem("contains no command of ms-swift", do, file=file)


class _Served(NamedTuple):
    """What a command of another server serves, and with which engine."""

    model: str
    backend: str


def _served(words: Sequence[str]) -> _Served | None:
    """The model that ``vllm serve``, ``lmdeploy serve`` or a module of vLLM or SGLang serves; None for others."""
    known = re.search(
        r"(?:^|[\s/])(vllm|lmdeploy|sglang)(?= serve|\.(?:entrypoints|launch_server))", " ".join(words)
    )
    if known is None:
        return None
    values, plain = _arguments(list(words))
    model = (
        values.get("model")
        or values.get("model_path")
        or next((one for one in reversed(plain) if "/" in one), "DIR")
    )
    return _Served(str(model), known[1])


_OTHER_TOOLS = {
    "llamafactory-cli": "LLaMA-Factory", "trl": "TRL", "axolotl": "Axolotl", "xtuner": "XTuner", "tune": "torchtune",
    "mlx_lm.lora": "mlx-lm",
}  # fmt: skip


_SCRIPTS: dict[Command, str] = {
    **dict.fromkeys(tasks.TRAINING_COMMANDS, "finetune_trainer.py"),
    "infer": "inference_test.py",
    "deploy": "deploy_model.py",
}


_INSTEAD = {
    "app": "Here: deploy_model.py --checkpoint DIR --chat serves a chat page.",
    "web-ui": "Here: finetune_trainer.py trains and deploy_model.py --checkpoint DIR --chat serves a chat page.",
    "merge-lora": "Here: deploy_model.py and inference_test.py --checkpoint DIR --merge-lora merge and use the result.",
    "eval": "Here: inference_test.py --checkpoint DIR --questions-file FILE asks and scores your own questions.",
}
"""The toolkit's equivalents of other commands of ms-swift."""


def _instead(statement: Statement) -> str:
    names = {word.rpartition(".")[2].replace("_", "-") for word in statement.words[:4]}
    merges = "export" in names and "--merge_lora" in statement.words
    return next(
        (text for name, text in _INSTEAD.items() if name in names or (merges and name == "merge-lora")), ""
    )


def _for_the_installed(command: SwiftCommand) -> str:
    """How to run the command with the installed ms-swift itself; "" if it cannot be translated."""
    install = msswift.installed()
    fields = config_fields.fields(command.command, install)
    done = translate.translate(command.values, command.command, install.line, fields)
    if done.errors or done.unknown:
        return ""
    words = ["swift", command.command]
    for name, value in done.values.items():
        items = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(one if isinstance(one, str) else json.dumps(one) for one in items)]
    lost = "".join(f" {name} {text}." for name, text in done.warnings)
    if command.command == "eval":
        unknown = benchmarks.unknown_benchmarks(
            done.values.get("eval_dataset"), done.values.get("eval_backend")
        )
        lost += "".join(f" {text}" for text in unknown)
    return f"With ms-swift {install.version}: {shlex.join(secrets.masked_words(words))}{lost and f' ({lost.strip()})'}"


def _is_swift(statement: Statement) -> bool:
    """Whether a statement runs a command of ms-swift that the toolkit lacks: ``megatron sft``, ``swift app``."""
    first, *rest = statement.words
    return _base_name(first) in ("megatron", "swift") or any(word.startswith("swift.cli.") for word in rest)


def _which(wanted: Collection[Command]) -> str:
    names = [f"swift {command}" for command in wanted]
    return f"Give a line with {' or '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}."


# --- reading a command ---------------------------------------------------------------------------------------

_RLHF_TYPES = [task.rlhf_type for task in tasks.TASKS.values() if task.rlhf_type]
_MODULE = re.compile(r"swift\.cli\.(\w+)")
_SCRIPT = re.compile(r"(?:.*/)?(?:swift/cli/(\w+)|(?:llm_)(\w+)|(rlhf))\.py")
_LAUNCHERS = """
torchrun    nproc_per_node=NPROC_PER_NODE nnodes=NNODES node_rank=NODE_RANK master_addr=MASTER_ADDR
torchrun    master_port=MASTER_PORT
accelerate  num_processes=NPROC_PER_NODE num_machines=NNODES machine_rank=NODE_RANK main_process_ip=MASTER_ADDR
accelerate  main_process_port=MASTER_PORT gpu_ids=CUDA_VISIBLE_DEVICES
deepspeed   num_gpus=NPROC_PER_NODE num_nodes=NNODES node_rank=NODE_RANK master_addr=MASTER_ADDR
deepspeed   master_port=MASTER_PORT
"""
"""Flags of launchers, and the environment variables that ms-swift reads instead."""


def _swift_command(statement: Statement, exported: dict[str, str]) -> SwiftCommand | None:
    """The command of ms-swift that a statement runs, if it runs one."""
    for position, word in enumerate(statement.words):
        rest = statement.words[position + 1 :]
        match = _MODULE.fullmatch(word) or _SCRIPT.fullmatch(word)
        if _base_name(word) == "swift" or (match and match[match.lastindex or 0] == "main"):
            name, rest = (rest[0], rest[1:]) if rest else ("", [])
        elif match:
            name = match[match.lastindex or 0]
        else:
            continue
        settings = _command_settings(name)
        if settings is None:
            continue
        command, fixed = settings
        values, stray = _arguments([word for word in rest if word not in ("...", "…")])
        if stray and stray[0].endswith((".yaml", ".yml", ".json")):
            values = {"config": stray.pop(0)} | values
        statement.stray = stray
        before = statement.words[:position]
        launched = _launched(before)
        env, unknown = _known(exported | statement.env | _container_variables(before) | launched.env)
        if env.get("USE_HF", "").lower() in ("1", "true"):
            fixed["use_hf"] = "true"
        kept = tuple(f"{value} is not" for value in unknown.values())
        notes = [note for note in statement.notes if not note.startswith(kept)]
        notes += launched.notes
        notes += [f"{name}={value}, which is not known here" for name, value in unknown.items()]
        notes = [statement.without_secrets(note) for note in notes]
        shared = _one_process(command, env)
        return SwiftCommand(command, env | shared.env, fixed | values, notes, shared.notes)
    return None


def _known(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables whose values are known, and the others."""
    unknown = {name: value for name, value in env.items() if re.search(r"\$[({\w]|`", value)}
    return {name: value for name, value in env.items() if name not in unknown}, unknown


def _command_settings(name: str) -> tuple[Command, Values] | None:
    """The current command for a name, and the setting it implies."""
    if name in _RLHF_TYPES:
        return "rlhf", {"rlhf_type": name}
    if name in ("merge-lora", "merge_lora"):
        return "export", {"merge_lora": "true"}
    return next(((command, {}) for command in COMMANDS if command == name), None)


def _arguments(words: list[str]) -> tuple[Values, list[str]]:
    """Settings from ``--name value ...``, ``--name=value`` and ``--flag``; and the words that belong to none."""
    values: Values = {}
    stray: list[str] = []
    given: list[str] = stray
    for word in words:
        option = re.fullmatch(r"--([A-Za-z][\w-]*)(?:=(.*))?", word, re.DOTALL)
        if option:
            given = []
            values[option[1].replace("-", "_")] = given if option[2] is None else [option[2]]
            given = given if option[2] is None else stray  # as in argparse: "=" gives the whole value
        else:
            (stray if re.match(r"-[A-Za-z]\w", word) else given).append(word)
    return {name: _value(texts) for name, texts in values.items()}, stray


def _value(texts: list[str]) -> Any:
    return True if not texts else texts[0] if len(texts) == 1 else texts


class _Launched(NamedTuple):
    """Environment variables that ms-swift reads, and notes on what they cannot express."""

    env: dict[str, str]
    notes: list[str]


def _launched(words: list[str]) -> _Launched:
    """The arguments of a launcher in front of ms-swift."""
    launcher = _launcher(words)
    values, _ = _arguments([word for word in words if word != "-m"])
    env: dict[str, str] = {}
    notes = []
    for name, value in values.items():
        variable = _variables(launcher).get(name)
        if variable is None:
            shown = "" if value is True else " ".join(value) if isinstance(value, list) else value
            notes.append(f"{launcher} --{name} {shown}".rstrip())
        elif variable == "NPROC_PER_NODE" and value in ("gpu", "auto"):
            continue  # as many as there are devices, which is also the default here
        elif "$" in str(value):
            notes.append(f"{launcher} --{name} {value}, which is not set here")
        else:
            env[variable] = str(value)
    machines, processes = env.get("NNODES", "1"), env.get("NPROC_PER_NODE", "")
    if launcher == "accelerate" and processes.isdecimal() and machines.isdecimal():  # it counts all processes
        env["NPROC_PER_NODE"] = str(max(1, int(processes) // max(1, int(machines))))
    if (
        included := re.fullmatch(r"localhost:([\d,]+)", str(values.get("include")))
    ) and launcher == "deepspeed":
        env |= {"CUDA_VISIBLE_DEVICES": included[1], "NPROC_PER_NODE": str(included[1].count(",") + 1)}
        notes = [note for note in notes if not note.startswith("deepspeed --include")]
    if launcher in ("mpirun", "mpiexec", "horovodrun"):
        start = next((place for place, word in enumerate(words) if _base_name(word) == launcher), 0)
        notes = [f"{' '.join(words[start:])}; start processes with --nproc-per-node and --nnodes"]
    if "hostfile" in values:
        notes.append("a hostfile: start this on each machine with --nnodes, --node-rank and --master-addr")
    return _Launched(env, notes)


def _launcher(words: list[str]) -> str:
    """The program in front of ms-swift that starts it: a known launcher, else the first word."""
    known = next((one for word in words if (one := _base_name(word)) in ("accelerate", "deepspeed")), "")
    if known or any("torchrun" in word or "torch.distributed" in word for word in words):
        return known or "torchrun"
    return _base_name(words[0]) if words else ""


def _variables(launcher: str) -> dict[str, str]:
    rows = [row.split()[1:] for row in _LAUNCHERS.strip().splitlines() if row.startswith(launcher)]
    return dict(pair.split("=") for row in rows for pair in row)


def _one_process(command: Command, env: Mapping[str, str]) -> _Launched:
    """One process over several devices (ms-swift's ``device_map``), if a script names them and uses no launcher."""
    devices = env.get("CUDA_VISIBLE_DEVICES", env.get("ASCEND_RT_VISIBLE_DEVICES", ""))
    count = len(devices.split(","))
    launched = {"NPROC_PER_NODE", "NNODES"} & (env.keys() | os.environ.keys())
    if command not in tasks.TRAINING_COMMANDS or count < 2 or launched or "$" in devices:
        return _Launched({}, [])
    note = f"one process over {count} devices, as written; --nproc-per-node {count} uses them all at once"
    return _Launched({"NPROC_PER_NODE": "1"}, [note])


def _base_name(word: str) -> str:
    return word.rpartition("/")[2]


class Given(NamedTuple):
    """The input on a command line of one of the scripts.

    Args:
        source: a config file or the settings of an ms-swift command; None if neither is given.
        settings: those that override it.
        environment: the variables that an ms-swift command or script sets.
        notices: sentences for the user.
    """

    source: str | Values | None
    settings: Values
    environment: Mapping[str, str] = {}
    notices: tuple[str, ...] = ()


def given(options: argparse.Namespace, settings: Mapping[str, object], wanted: Sequence[Command]) -> Given:
    """The source of the settings: a config file, a command or script that starts ms-swift, or flags only.

    Args:
        options: with the flags of `Parser.add_sources`.
        settings: those given as flags.
        wanted: the commands of ms-swift that the script covers. A ``task`` in the result tells which of several was
            found.

    Raises:
        RequestError: several sources are given, or the command or script does not contain exactly one such command.
    """
    named = [flag for flag in ("config", "from_command", "from_script") if getattr(options, flag)]
    if len(named) > 1:
        names = " and ".join("--" + flag.replace("_", "-") for flag in named)
        raise RequestError([Problem(f"{names} cannot be used together", "Keep one of them.")])
    if not named:
        return Given(None, dict(settings))
    if options.config:
        return _with_environment(options.config, settings)
    text = text_of(options.from_script) if options.from_script else options.from_command
    command = from_command(text, wanted, options.from_script)
    notices = (*(f"skipped: {line}" for line in command.left_out), *command.notices)
    values = dict(command.values)
    config = values.pop("config", None)
    if command.command in tasks.TRAINING_COMMANDS[1:]:
        values = {"task": command.command, **values}
    if config is None:
        return Given(values, dict(settings), command.env, notices)
    read = _with_environment(str(config), {**values, **settings})
    return read._replace(environment={**read.environment, **command.env}, notices=(*notices, *read.notices))


def _with_environment(config: str, settings: Mapping[str, object]) -> Given:
    """A config file, with the environment variables in it."""
    environment = environment_in(config)
    shown = [
        f"{name}={os.environ[name]} (set before the command)" if name in os.environ else f"{name}={value}"
        for name, value in environment.items()
    ]
    notices = (f"ENV of {config}: {', '.join(secrets.masked_words(shown))}",) if shown else ()
    return Given(config, dict(settings), environment, notices)


def text_of(script: str) -> str:
    """The text of a script, or of the cells of a notebook.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        text = read_small(Path(script), script).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError([Problem("is not UTF-8 text", "Save it as UTF-8.", file=script)]) from None
    return _cells_of(text, script) if script.lower().endswith(".ipynb") else text


def _cells_of(text: str, notebook: str) -> str:
    """The code of a notebook: its Python if that calls ms-swift, else the commands in its cells."""
    try:
        cells = json.loads(text)["cells"]
        codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, LookupError, TypeError):
        raise RequestError([Problem("is not a Jupyter notebook", "Check the file.", file=notebook)]) from None
    python = "\n".join(re.sub(r"(?m)^[ \t]*[!%].*", "", code) for code in codes if not code.startswith("%%"))
    if python_script.is_python(python) and python_script.PythonScript(python).calls:
        return python
    commands = (
        re.findall(r"(?ms)^[ \t]*!.*?(?<!\\)$", code) if "%%" not in code else [code] for code in codes
    )
    return "\n".join(line for found in commands for line in found)
