"""A shell line or script that starts ms-swift, read as a command with settings.

    from_command("CUDA_VISIBLE_DEVICES=0 swift sft --model a/b --dataset c.jsonl d.jsonl --packing")
    # "sft", {"CUDA_VISIBLE_DEVICES": "0"},
    # {"model": "a/b", "dataset": ["c.jsonl", "d.jsonl"], "packing": True}

Nothing is run. Variables that the script assigns are put in; comments, continued lines, quotes, redirections
and the ways to start ms-swift of all its generations (``swift sft``, ``torchrun … swift/cli/sft.py``,
``python llm_sft.py``) are understood. Loops and conditions are not followed.
"""

from __future__ import annotations

import argparse
import ast
import json
import operator
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from swift_toolkit.config import fields as config_fields
from swift_toolkit.config import script as config_script
from swift_toolkit.config import tasks, translate
from swift_toolkit.console import screen
from swift_toolkit.machine import msswift
from swift_toolkit.machine.msswift import COMMANDS, Command
from swift_toolkit.problems import Problem, RequestError


class SwiftCommand(NamedTuple):
    """One command of ms-swift.

    Args:
        command: which one.
        env: the environment variables the script sets for it.
        values: setting -> text, list of texts, or True for a flag without a value; ``config`` is the file
            that ms-swift was to read more of them from.
        left_out: one line for each thing in the script that is not part of it, or could not be worked out.
    """

    command: Command
    env: dict[str, str]
    values: dict[str, Any]
    left_out: list[str]


def from_command(text: str, wanted: Collection[Command] = COMMANDS, file: str | None = None) -> SwiftCommand:
    """Reads the one command of ms-swift in a shell line or script.

    Args:
        text: the line or script.
        wanted: the commands to look for; others in the script are left out.
        file: where the text comes from, for error messages.

    Raises:
        RequestError: there is no such command in it, or there are several.
    """
    found: list[tuple[int, SwiftCommand]] = []
    others: list[tuple[_Statement, SwiftCommand | None]] = []
    for statement, command in _commands(text):
        if command is not None and command.command in wanted:
            found.append((statement.line, command))
        elif statement.words:
            others.append((statement, command))
    if len(found) != 1:
        raise RequestError([_not_one(found, others, wanted, file)])
    _, command = found[0]
    return command._replace(
        left_out=command.left_out + [f"line {other.line}: {other}" for other, _ in others]
    )


def all_commands(text: str) -> list[SwiftCommand]:
    """Every command of ms-swift in a script, in order."""
    return [command for _, command in _commands(text) if command]


def _commands(text: str) -> Iterator[tuple[_Statement, SwiftCommand | None]]:
    """The statements of a script, with the command of ms-swift that they run."""
    script = _Script(text)
    for statement in script.statements():
        yield statement, _swift_command(statement, script.exported)


def _not_one(
    found: list[tuple[int, SwiftCommand]],
    others: list[tuple[_Statement, SwiftCommand | None]],
    wanted: Collection[Command],
    file: str | None,
) -> Problem:
    """What to say of a script with no command or with several."""
    if found:
        places = ", ".join(f"swift {command.command} in line {line}" for line, command in found)
        return Problem(f"several commands of ms-swift are in it: {places}", "Keep one of them.", file=file)
    for other, command in others:
        if command is not None and command.command in _SCRIPTS:
            what = f'"{other}" is a command for another script'
            do = f"Give it to {_SCRIPTS[command.command]}."
            return Problem(what, do, file=file, line=other.line)
        if command is not None or _is_swift(other):
            what = f'"{other}" is a command that cannot be run here'
            do = (command and _for_the_installed(command)) or _which(wanted)
            return Problem(what, do, file=file, line=other.line)
    return Problem("no command of ms-swift is in it", _which(wanted), file=file)


_SCRIPTS: dict[Command, str] = {
    **dict.fromkeys(tasks.COMMANDS, "finetune_trainer.py"),
    "infer": "inference_test.py",
    "deploy": "deploy_model.py",
}


def _for_the_installed(command: SwiftCommand) -> str:
    """How to run the command with ms-swift itself, in the names of the installed one; empty if that cannot be said."""
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
    return f"With ms-swift {install.version}: {shlex.join(words)}{lost and f' ({lost.strip()})'}"


def _is_swift(statement: _Statement) -> bool:
    """Whether a statement runs a command of ms-swift that is none of ours: ``megatron sft``, ``swift app``."""
    first, *rest = statement.words
    return _base_name(first) in ("megatron", "swift") or any(word.startswith("swift.cli.") for word in rest)


def _which(wanted: Collection[Command]) -> str:
    names = [f"swift {command}" for command in wanted]
    return f"Give a line with {' or '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}."


# ------------------------------------------------------------------------------------------ reading a script

# Within a word: 'quoted', "quoted", $(substituted), `substituted`, $variable, ${variable}, escaped, ordinary.
_PIECE = re.compile(
    r"""'[^']*' | "(?:\\.|[^"\\])*" | \$\((?:[^()]|\([^()]*\))*\) | `[^`]*` | \$\w+ | \$\{[^}]*\}
    | \\(?![ \t\r]*\n). | [^\s'"\\;&|<>()`]""",
    re.VERBOSE | re.DOTALL,
)
_TOKEN = re.compile(
    rf"""
    (?P<blank> [ \t\r]+ | \\[ \t\r]*\n(?:(?:[ \t]*\#[^\n]*\n)+(?=[ \t]*-))?)  # an option may be commented out
  | (?P<comment> (?<![^\s;&|(])\#[^\n]*)
  | (?P<redirection> \d?(?:&>>?|>>|>&?|<<<|<)(?P<handle>(?<=&)\d)?)
  | (?P<end> \n | ;+ | &&? | \|\|? | [()])
  | (?P<word> (?:{_PIECE.pattern})+)
  | (?P<stray> .)
    """,
    re.VERBOSE | re.DOTALL,
)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"(?<!\\)\$(?:(?P<name>\w+)|\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\})")
_SUM = re.compile(r"\$\(\((?P<sum>[^()]*)\)\)|\$\(\s*expr\s(?P<expr>[^()]*)\)|`\s*expr\s(?P<old>[^`]*)`")
_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass
class _Statement:
    """One simple command of a script: where it begins, the variables set for it alone, its words."""

    line: int = 0
    env: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = " ".join(self.words)
        return text if len(text) <= 60 else f"{text[:57]}..."


class _Script:
    """The simple commands of a script, with the variables it assigns put in."""

    def __init__(self, text: str) -> None:
        self.text = f"{text}\n\n"  # the last line may end in a backslash
        self.variables: dict[str, str] = {}
        self.exported: dict[str, str] = {}
        self._statement = _Statement()

    def statements(self) -> Iterator[_Statement]:
        redirected = ""
        for token in _TOKEN.finditer(self.text):
            if token["redirection"]:
                redirected = "" if token["handle"] else token["redirection"]
            elif token["word"] and redirected:
                self._statement.notes.append(f"{redirected} {token['word']}")
                redirected = ""
            elif token["word"]:
                self._statement.line = self._statement.line or self.text.count("\n", 0, token.start()) + 1
                self._add(token["word"])
            elif token["end"]:
                self._assign()
                yield self._statement
                self._statement = _Statement()

    def _add(self, word: str) -> None:
        assignment = _ASSIGNMENT.fullmatch(word)
        if assignment and self._statement.words in ([], ["export"], ["env"]):
            self._statement.env[assignment[1]] = "".join(self._pieces(assignment[2]))
        elif _VARIABLE.fullmatch(word):  # not quoted: the shell makes words of what is in it
            text = self._with_variables(word)
            self._statement.words += [text] if "$(" in text else text.split()
        else:
            self._statement.words.append("".join(self._pieces(word)))

    def _assign(self) -> None:
        """Keeps the variables of a statement that runs nothing."""
        exports = self._statement.words == ["export"]
        if exports or not self._statement.words:
            self.variables |= self._statement.env
            self.exported |= self._statement.env if exports else {}
            self._statement.words = []

    def _pieces(self, word: str) -> Iterator[str]:
        """The parts of a word as the shell would hand them over."""
        for match in _PIECE.finditer(word):
            piece = match[0]
            if piece.startswith("'"):
                yield piece[1:-1]
            elif piece.startswith('"'):
                yield re.sub(r"\\([$`\"\\])|\\\n", r"\1", self._with_variables(piece[1:-1]))
            elif piece.startswith("\\"):
                yield piece[1:]
            else:
                yield self._with_variables(piece)

    def _with_variables(self, text: str) -> str:
        """The text with variables and sums worked out; what cannot be is noted and kept."""
        text = _SUM.sub(self._sum, _VARIABLE.sub(self._variable, text))
        for left in re.findall(r"(?<!\\)(?:\$\(.*\)|`.*?`|\$\{.*?\}|\$\w+)", text):
            self._statement.notes.append(f"{left} is not known here and kept as it stands")
        return text

    def _variable(self, match: re.Match[str]) -> str:
        name, default = match["name"] or match["braced"], match["default"]
        return self.variables.get(name, match[0] if default is None else default)

    def _sum(self, match: re.Match[str]) -> str:
        terms = match["sum"] or match["expr"] or match["old"]
        if match["sum"]:  # where variables need no dollar sign
            terms = re.sub(r"[A-Za-z_]\w*", lambda name: self.variables.get(name[0], name[0]), terms)
        terms = terms.replace("\\", "").replace("/", "//").strip()
        try:
            return str(_value_of(ast.parse(terms, mode="eval").body))
        except (SyntaxError, LookupError, TypeError, ValueError, ArithmeticError):
            return match[0]


def _value_of(node: ast.expr) -> int:
    """The value of a sum of whole numbers."""
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_value_of(node.left), _value_of(node.right))
    return int(ast.literal_eval(node))


# ------------------------------------------------------------------------------------------ reading a command

_RLHF_TYPES = [task.rlhf_type for task in tasks.TASKS.values() if task.rlhf_type]
_MODULE = re.compile(r"swift\.cli\.(\w+)")
_SCRIPT = re.compile(r"(?:.*/)?(?:swift/cli/(\w+)|(?:llm_)(\w+)|(rlhf))\.py")
_LAUNCHER = {
    name: name.upper() for name in ("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port")
}


def _swift_command(statement: _Statement, exported: dict[str, str]) -> SwiftCommand | None:
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
        env = exported | statement.env | _launcher_environment(statement.words[:position])
        if env.get("USE_HF", "").lower() in ("1", "true"):
            fixed["use_hf"] = "true"
        notes = [*statement.notes, *(f"{text} belongs to no setting" for text in stray)]
        return SwiftCommand(command, env, fixed | values, notes)
    return None


def _command_settings(name: str) -> tuple[Command, dict[str, Any]] | None:
    """The command of today behind a name, and the setting it implies."""
    if name in _RLHF_TYPES:
        return "rlhf", {"rlhf_type": name}
    if name in ("merge-lora", "merge_lora"):
        return "export", {"merge_lora": "true"}
    return next(((command, {}) for command in COMMANDS if command == name), None)


def _arguments(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings out of ``--name value ...``, ``--name=value`` and ``--flag``; and the words of none."""
    values: dict[str, Any] = {}
    stray: list[str] = []
    given: list[str] = stray
    for word in words:
        option = re.fullmatch(r"--([A-Za-z][\w-]*)(?:=(.*))?", word, re.DOTALL)
        if option:
            given = [] if option[2] is None else [option[2]]
            values[option[1].replace("-", "_")] = given
        else:
            given.append(word)
    return {name: _value(texts) for name, texts in values.items()}, stray


def _value(texts: list[str]) -> Any:
    return True if not texts else texts[0] if len(texts) == 1 else texts


def _launcher_environment(words: list[str]) -> dict[str, str]:
    """What ``torchrun`` is told, as the environment variables that ms-swift reads."""
    values, _ = _arguments(words)
    return {_LAUNCHER[name]: str(value) for name, value in values.items() if name in _LAUNCHER}


def _base_name(word: str) -> str:
    return PurePosixPath(word).name


def request(
    options: argparse.Namespace, settings: Mapping[str, Any], wanted: Sequence[Command]
) -> tuple[str | dict[str, Any] | None, dict[str, Any]]:
    """Where the settings come from: a config file, a line or script that starts ms-swift, or flags alone.

    What is left out of a line or script is said on stderr, and its environment variables are set where they are not.

    Args:
        options: with the flags of `Parser.add_sources`.
        settings: those given as flags.
        wanted: the commands of ms-swift that the script stands for.

    Returns:
        The source and the settings laid over it. A ``task`` in them says which of several commands was found.

    Raises:
        RequestError: several sources are named, or there is not one such command in the line or script.
    """
    given = [flag for flag in ("config", "from_command", "from_script") if getattr(options, flag)]
    if len(given) > 1:
        names = " and ".join("--" + flag.replace("_", "-") for flag in given)
        raise RequestError([Problem(f"{names} cannot be used together", "Keep one of them.")])
    if not given or options.config:
        return options.config, dict(settings)
    text = _text_of(options.from_script) if options.from_script else options.from_command
    command = config_script.from_command(text, wanted, options.from_script)
    for line in command.left_out:
        screen.say(f"left out: {line}")
    for name, value in command.env.items():
        os.environ.setdefault(name, value)
    values = dict(command.values)
    config = values.pop("config", None)
    if command.command in tasks.COMMANDS[1:]:
        values = {"task": command.command, **values}
    if config is None:
        return values, dict(settings)
    return str(config), {**values, **settings}


def _text_of(script: str) -> str:
    try:
        return Path(script).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RequestError([Problem(f"cannot be read ({what})", file=script)]) from None
