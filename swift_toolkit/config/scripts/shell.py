"""A shell script parsed into simple commands, without running any of it.

Variables, arrays and sums that the script assigns are substituted, also from the script's directory and the user's
environment; functions, comments, continued lines, quotes and redirections are supported. Loops and conditions are not
evaluated: what depends on them is noted.
"""

from __future__ import annotations

import ast
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swift_toolkit.config.scripts import expansion, pipeline
from swift_toolkit.config.scripts.blocks import Function, functions_of, without_texts
from swift_toolkit.console import secrets as console_secrets
from swift_toolkit.console.command_line import LONG_DASH, long_dash
from swift_toolkit.console.words import short
from swift_toolkit.problems import Problem

# A backslash continues a line, even before a comment.
_CONTINUED = r"[ \t\r]*(?:[ \t]\#[^\n]*)?\n"
_SUBSTITUTED = r"\$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
# Within a word: 'quoted', "quoted", $(substituted), `substituted`, $variable, ${variable}, escaped, ordinary.
_PIECE = re.compile(
    rf"""\$'(?:\\.|[^'\\])*' | '[^']*' | "(?:\\.|{_SUBSTITUTED}|[^"\\])*" | {_SUBSTITUTED} | `[^`]*` | \$\w+
    | \$\{{(?:[^{{}}]|\$\{{[^{{}}]*\}})*\}}
    | \\(?!{_CONTINUED}). | [^\s'"\\;&|<>()`]""",
    re.VERBOSE | re.DOTALL,
)
_TOKEN = re.compile(
    rf"""
    (?P<blank> [ \t\r]+ | \\{_CONTINUED}(?:(?:[ \t]*\#[^\n]*\n)+(?=[ \t]*-))?)  # an option may be commented out
  | (?P<comment> (?<![^\s;&|(])\#[^\n]*)
  | (?P<redirection> \d?(?:&>>?|>>|>&?|<<<|<)(?P<handle>(?<=&)\d)?)
  | (?P<array> (?P<name>[A-Za-z_]\w*)(?P<more>\+?)=\((?P<items>(?:{_PIECE.pattern}|\s|\\\n|\#[^\n]*\n)*)\))
  | (?P<end> \n | ;+ | &&? | \|\|? | [()])
  | (?P<word> (?:{_PIECE.pattern})+)
  | (?P<stray> .)
    """,
    re.VERBOSE | re.DOTALL,
)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_VARIABLE = re.compile(
    r"(?<!\\)\$(?:(?P<name>\w+)|\{(?P<braced>\w+)(?:\[(?P<index>-?\d+)\])?(?P<how>(?:[^{}]|\$\{[^{}]*\})*)\})"
)
_LENGTH = re.compile(r"\$\{#(?P<name>\w+)(?P<array>\[[@*]\])?\}|\$#")
_ARRAY = re.compile(r"(?P<quote>\"?)\$\{(?P<name>\w+)\[[@*]\]\}(?P=quote)")
_ONE_OUTPUT = re.compile(r"\$\([^()]*\)")
_ARGUMENTS = re.compile(r"(?P<quote>\"?)\$(?:[@*]|\{[@*]\})(?P=quote)")
_OUTPUT = re.compile(r"\$\((?P<new>[^()]*)\)|`(?P<old>[^`]*)`")
_SUM = re.compile(r"\$\(\((?P<sum>[^()]*)\)\)|\$\(\s*expr\s(?P<expr>[^()]*)\)|`\s*expr\s(?P<old>[^`]*)`")
_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_SCRIPT_NAME = r"""(?:"?\$\{?(?:0|BASH_SOURCE(?:\[0\])?)\}?"?)"""
_DIRNAME = re.compile(rf"\$\(\s*dirname\s+(?:--\s+)?{_SCRIPT_NAME}\s*\)|`\s*dirname\s+{_SCRIPT_NAME}\s*`")
_PWD = re.compile(r"\$\(\s*pwd(?:\s+-\w)?\s*\)|`\s*pwd\s*`")
_CD_PWD = re.compile(
    rf"\$\(\s*cd\s+\"?(?P<where>{_DIRNAME.pattern})(?P<below>[^\"&;]*)\"?\s*(?:>\s*/dev/null\s*)?(?:&&|;)\s*pwd(?:\s+-\w)?\s*\)"
)
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSW", re.IGNORECASE)
LEAST_SECRET = 6
"""Number of characters; shorter values of variables such as ``MAX_TOKENS=2048`` are shown."""
_DECLARES = {"export", "env", "declare", "local", "readonly", "typeset"}
_OF_ENV = ("-u", "--unset", "-C", "--chdir")
"""Options of ``env`` that take a word."""
_BEGINS = {"then", "else", "do", "{"}
"""Words that stand before a command and are not part of it."""
_ENDS = {"fi": "if", "esac": "case", "done": "for"}
_NESTED = 8
"""How deep functions call each other at most."""
_MOST_SOURCED = 1 << 16
"""Size of the largest file that ``source`` reads here, in bytes."""
_FOR_OTHER_SHELLS = (
    (re.compile(r"(?m)(?<=[ \t])\^[ \t\r]*$"), '"^" continues lines in cmd.exe'),
    (re.compile(r"(?m)(?<=[ \t])`[ \t\r]*$"), '"`" continues lines in PowerShell'),
)
_SETS_FOR_OTHER_SHELLS = (
    (re.compile(r"(?mi)^[ \t]*(?P<shown>\$env:(?P<name>\w+))[ \t]*="), "PowerShell sets"),
    (re.compile(r"(?mi)^[ \t]*(?P<shown>set[ \t]+(?P<name>[a-z_]\w*)=)"), "cmd.exe sets"),
)
_READS_FOR_CMD = re.compile(r"%(?P<name>[A-Za-z_]\w*)%")
_CASE = re.compile(r"\s*(?:\|\s*[^\s|()]+\s*)*\)")
"""The rest of a pattern of ``case``: ``--model|-m)``."""
_DIGITS = re.compile(r"\d+(?:,\d*)*")
_WINDOWS_PATH = re.compile(r"(?:.*=)?(?P<path>[A-Za-z]:\\\w.*)")
_TYPED_QUOTES = frozenset("“”„‟‘’‚«»")


@dataclass
class Statement:
    """One simple command of a script: where it starts, the variables set only for it, its words, and those of a command
    of ms-swift that belong to no setting; ``here`` is the text after ``<<<``.

    ``str`` shows it without secrets; ``secrets`` are those that the script assigns to variables.
    """

    line: int = 0
    env: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    here: str = ""
    secrets: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        text = self.without_secrets(" ".join(console_secrets.masked_words(self.words)))
        return short(text)

    def without_secrets(self, text: str) -> str:
        """``text`` without the secrets."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, console_secrets.HIDDEN)
        return console_secrets.masked(text)


def shell_problems(text: str, file: str | None = None) -> Iterator[Problem]:
    """Syntax that no Linux shell reads as intended: line continuations of other shells, and dashes and quotes from a
    word processor or web page."""
    for pattern, what in _FOR_OTHER_SHELLS:
        if found := pattern.search(text):
            yield Problem(
                what, 'Write "\\" at the end of the line.', file=file, line=_line(text, found.start())
            )
    for pattern, sets in _SETS_FOR_OTHER_SHELLS:
        for found in pattern.finditer(text):
            what = f'"{found["shown"]}" is how {sets} a variable'
            yield Problem(
                what, f"Write export {found['name']}=...", file=file, line=_line(text, found.start())
            )
    starts, is_foreign = False, any(pattern.search(text) for pattern, _ in _FOR_OTHER_SHELLS)
    text = without_texts(text)
    for token in _TOKEN.finditer(f"{text}\n\n"):
        word = token["word"] or ""
        is_case = _CASE.match(text, token.end()) is not None
        if starts and not is_foreign and not is_case and re.match(r"--[A-Za-z]", word):
            what = f'"{word}" is at the beginning of a command'
            do = 'Write "\\" at the end of the line before.'
            yield Problem(what, do, file=file, line=_line(text, token.start()))
        starts = token["end"] == "\n" or (starts and not word)
        if path := _WINDOWS_PATH.fullmatch(word):
            what = f'"{path["path"]}" is a path of Windows, from which the shell removes "\\"'
            yield Problem(
                what, 'Write it with "/", or in quotes.', file=file, line=_line(text, token.start())
            )
        if dashed := LONG_DASH.fullmatch(word):
            yield long_dash(word, dashed, file, _line(text, token.start()))
        if read := _READS_FOR_CMD.search(word):
            what = f'"{read[0]}" is how cmd.exe reads a variable'
            yield Problem(what, f"Write ${{{read['name']}}}.", file=file, line=_line(text, token.start()))
        plain = [piece for piece in _PIECE.findall(word) if piece in _TYPED_QUOTES]
        if plain:
            what = f'"{plain[0]}" is a typographic quotation mark, which the shell reads as a letter'
            yield Problem(what, "Write \" or '.", file=file, line=_line(text, token.start()))


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def value_problems(statement: Statement, file: str | None = None) -> Iterator[Problem]:
    """A space in the value of a variable before a command: ``CUDA_VISIBLE_DEVICES=0, 1 swift sft``."""
    first = statement.words[0] if statement.words else ""
    name, value = next(reversed(statement.env.items()), ("", ""))
    if name and _DIGITS.fullmatch(first):
        do = f"Write {name}={value}{first}."
        yield Problem(
            f'"{name}={value} {first}" has a space in the value', do, file=file, line=statement.line
        )


def name_problems(
    statement: Statement, values: Iterable[object], file: str | None = None
) -> Iterator[Problem]:
    """Spaces around the "=" of a variable that is used in ``values``: ``MODEL = a/b``."""
    first, *rest = statement.words
    used = first.isidentifier() and re.search(rf"\$\{{?{first}\b", str([*values]))
    if rest[:1] == ["="] and used:
        do = f"Write {first}={' '.join(rest[1:2])}."
        yield Problem(f'"{statement}" has spaces around "="', do, file=file, line=statement.line)


class Script:
    """The simple commands of a script, with the variables it assigns substituted.

    Args:
        text: the script.
        file: its path, for ``$(dirname "$0")``; None for a command of the user's.
        environment: the variables that are set outside it.
    """

    def __init__(
        self, text: str, file: str | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._text, self._functions = functions_of(without_texts(text))
        self.directory = str(Path(file).parent) if file else "."
        around = os.environ if environment is None else environment
        self.environment = {name: value for name, value in around.items() if not _SECRET.search(name)}
        self.variables: dict[str, str] = {"PWD": str(Path.cwd())}
        self.arrays: dict[str, list[str]] = {}
        self.exported: dict[str, str] = {}
        self._arguments: list[str] = []
        self._within: list[str] = []  # the open "if", "case" and "for"
        self._calls = 0
        self._exports_all = self._after_a_condition = False
        self._conditional: set[str] = set()
        self._loops: dict[str, list[str]] = {}
        self._secrets: set[str] = set()
        self._statement = Statement(secrets=self._secrets)

    @property
    def moved(self) -> str | None:
        """The directory to which the script has changed; None if it is the current one."""
        return None if self.variables["PWD"] == str(Path.cwd()) else self.variables["PWD"]

    def statements(self) -> Iterator[Statement]:
        """The simple commands in order, including those that run nothing."""
        yield from self._run(self._text, 0)

    def _run(self, text: str, lines_before: int) -> Iterator[Statement]:
        redirected = ""
        for token in _TOKEN.finditer(f"{text}\n\n"):  # the last line may end in a backslash
            if token["redirection"]:
                redirected = "" if token["handle"] else token["redirection"]
            elif token["word"] and redirected == "<<<":
                self._statement.here, redirected = "".join(self._pieces(token["word"])), ""
            elif token["word"] and redirected:
                self._statement.notes.append(f"{redirected} {token['word']}")
                redirected = ""
            elif token["array"]:
                self._keep_array(token["name"], bool(token["more"]), token["items"])
            elif token["word"]:
                if not self._statement.line:
                    self._statement.line = lines_before + _line(text, token.start())
                self._add(token["word"])
            elif token["end"]:
                yield from self._end(token["end"])

    def _end(self, sign: str) -> Iterator[Statement]:
        """The statement that ends here, or those of the function that it calls."""
        self._assign()
        done, self._statement = self._statement, Statement(secrets=self._secrets)
        self._after_a_condition = sign in ("&&", "||") and bool(done.words or self._after_a_condition)
        if (sourced := self._sourced(done)) is not None:
            for _ in self._run(without_texts(sourced), 0):
                pass
            return
        function = self._functions.get(done.words[0]) if done.words else None
        if function is None or self._calls >= _NESTED:
            yield done
            return
        yield from self._call(function, done)

    def _sourced(self, statement: Statement) -> str | None:
        """The text of a file of the script's own that it reads with ``source``; None for any other statement."""
        name, *rest = statement.words or [""]
        if name not in ("source", ".") or len(rest) != 1 or Path(rest[0]).is_absolute():
            return None
        path = Path(self.variables["PWD"]) / rest[0]
        try:
            text = path.read_text(encoding="utf-8") if path.stat().st_size <= _MOST_SOURCED else None
        except (OSError, ValueError):
            return None
        return None if path.name == "activate" or self._calls >= _NESTED else text

    def _call(self, function: Function, call: Statement) -> Iterator[Statement]:
        before, places = (
            self._arguments,
            {str(number): self.variables.get(str(number)) for number in range(1, 10)},
        )
        self._arguments, self._calls = call.words[1:], self._calls + 1
        self.variables |= {str(number): word for number, word in enumerate(self._arguments, 1)}
        exported, self.exported = self.exported, self.exported | call.env
        yield from self._run(function.body, function.line - 1)
        self.exported = exported
        self._arguments, self._calls = before, self._calls - 1
        for name, value in places.items():
            self.variables.pop(name, None)
            self.variables |= {} if value is None else {name: value}

    def _keep_array(self, name: str, adds: bool, items: str) -> None:
        outside, self._statement = self._statement, Statement()
        for token in _TOKEN.finditer(items):
            if token["word"]:
                self._add(token["word"], is_item=True)
        words = self._statement.words
        outside.notes += self._statement.notes
        self._statement = outside
        self.arrays[name] = [*(self.arrays.get(name, []) if adds else []), *words]
        self.variables[name] = self.arrays[name][0] if self.arrays[name] else ""

    def _add(self, word: str, is_item: bool = False) -> None:
        words = self._statement.words
        assignment = None if is_item else _ASSIGNMENT.fullmatch(word)
        if not words and not self._statement.env and not is_item and word in _BEGINS:
            return
        if assignment and _may_assign(words):
            self._keep(*assignment.groups())
        elif (array := _ARRAY.fullmatch(word)) and array["name"] in self.arrays:
            words += self.arrays[array["name"]]
        elif _ARGUMENTS.fullmatch(word):
            words += self._arguments
        elif _VARIABLE.fullmatch(word) or _ONE_OUTPUT.fullmatch(
            word
        ):  # not quoted: the shell splits its value into words
            text = self._with_variables(word)
            words += [text] if "$(" in text else text.split()
        else:
            text = "".join(self._pieces(word))
            words += expansion.words_of(text) if not set(word) & set("'\"\\`$") else [text]

    def _keep(self, name: str, adds: str, value: str) -> None:
        """Note an assignment of the current statement."""
        before = self.variables.get(name, "") if adds else ""
        text = before + "".join(self._pieces(value))
        if re.search(r"\$[\w{(]", text) and {"if", "case"} & {*self._within}:
            self._conditional.add(name)  # and the value from before the condition stays
            return
        self._statement.env[name] = text
        if _SECRET.search(name) and len(text) >= LEAST_SECRET:
            self._secrets.add(text)
        named = {found["name"] or found["braced"] for found in _VARIABLE.finditer(value)}
        if self._after_a_condition or {"if", "case"} & {*self._within} or named & self._conditional:
            self._conditional.add(name)
        elif not adds:
            self._conditional.discard(name)

    def _assign(self) -> None:
        """Apply a statement that changes the state of the shell, and store the variables of one that runs nothing."""
        statement = self._statement
        name, *rest = statement.words or [""]
        if name in ("if", "case", "while", "until", "for", "select"):
            self._within.append({"if": "if", "case": "case"}.get(name, "for"))
            if name in ("for", "select") and rest[1:2] == ["in"]:
                self._start_loop(rest[0], rest[2:])
        elif name in _ENDS:
            if self._within and self._within[-1] == _ENDS[name]:
                self._within.pop()
            statement.words = []
        elif name == "unset":
            for one in rest:
                self.variables.pop(one, None)
                self.exported.pop(one, None)
        elif name in ("let", "read", "printf", "set", "shift") and self._computes(name, rest):
            statement.words = []
        elif name == "set" and rest and rest[-1] in ("-a", "allexport", "+a"):
            self._exports_all = rest[0][0] == "-"
        elif name in ("cd", "pushd") and len(rest) == 1 and "$" not in rest[0]:
            where = Path(self.variables["PWD"]) / expansion.at_home(rest[0])
            self.variables["PWD"] = os.path.normpath(where)
        elif not statement.words or (name in _DECLARES - {"env"}):
            self._store(statement)

    def _computes(self, name: str, words: list[str]) -> bool:
        """Apply a command of the shell that sets variables from its words. Returns whether it was understood."""
        if name == "set" and words[:1] == ["--"]:
            self._give_arguments(words[1:])
        elif name == "shift":
            self._give_arguments(self._arguments[int(words[0]) if words and words[0].isdecimal() else 1 :])
        elif name == "let":
            return all(map(self._sets_sum, words))
        elif name == "printf" and words[:1] == ["-v"] and len(words) > 2:
            try:
                self.variables[words[1]] = pipeline.formatted(words[2:])
            except (ValueError, TypeError):
                return False
        elif name == "read" and self._statement.here:
            self._read(words)
        else:
            return False
        return True

    def _give_arguments(self, words: list[str]) -> None:
        """Let ``$1``, ``$2`` … and ``$@`` be these words."""
        for number in range(1, 10):
            self.variables.pop(str(number), None)
        self._arguments = words
        self.variables |= {str(number): word for number, word in enumerate(words[:9], 1)}

    def _sets_sum(self, text: str) -> bool:
        """Apply ``N = 2 * M``, ``N += 1`` or ``N++``."""
        found = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(?:([-+*/]?)=(?!=)\s*(.+)|(\+\+|--))\s*", text)
        if found is None:
            return False
        name, sign, terms, step = found.groups()
        value = _SUM.sub(self._sum, f"$(({terms or 1}))")
        if sign or step:
            value = _SUM.sub(self._sum, f"$(({name} {sign or step[0]} {value}))")
        if not value.lstrip("-").isdecimal():
            return False
        self.variables[name] = value
        return True

    def _read(self, words: list[str]) -> None:
        """``IFS=, read -ra NAME <<< "0,1"``: the text after ``<<<``, in parts."""
        flags = [word for word in words if word.startswith("-")]
        names = [word for word in words if word and not word.startswith("-")]
        text, between = self._statement.here, self._statement.env.pop("IFS", None)
        parts = re.split(f"[{re.escape(between)}]", text) if between else text.split()
        if any("a" in flag for flag in flags) and names:
            self.arrays[names[-1]] = parts
            self.variables[names[-1]] = parts[0] if parts else ""
        elif len(names) == 1:
            self.variables[names[0]] = text.strip()
        else:
            self.variables |= dict(zip(names, parts, strict=False))

    def _start_loop(self, name: str, items: list[str]) -> None:
        self.variables.pop(name, None)
        self._loops[name] = items
        if len(items) == 1:
            self.variables[name] = items[0]

    def _store(self, statement: Statement) -> None:
        """Store the variables of a statement that runs nothing."""
        name, *rest = statement.words or [""]
        self.variables |= statement.env
        exports = self._exports_all or name == "export" or "-x" in rest
        again = {one: value for one, value in statement.env.items() if exports or one in self.exported}
        self.exported |= again
        if exports:
            self.exported |= {one: self.variables[one] for one in rest if one in self.variables}
        statement.words = []

    def _pieces(self, word: str) -> Iterator[str]:
        """The parts of a word as the shell would pass them on."""
        for match in _PIECE.finditer(word):
            piece = match[0]
            if piece.startswith("$'"):
                yield expansion.unescaped(piece[2:-1])
            elif piece.startswith("'"):
                yield piece[1:-1]
            elif piece.startswith('"'):
                yield re.sub(r"\\([$`\"\\])|\\\n", r"\1", self._with_variables(piece[1:-1]))
            elif piece.startswith("\\"):
                yield piece[1:]
            else:
                yield self._with_variables(piece)

    def _with_variables(self, text: str) -> str:
        """The text with paths, variables and sums substituted; what is not known is noted and kept."""
        text = self._with_places(text)
        text = _SUM.sub(self._sum, self._with_names(text))
        text = _OUTPUT.sub(self._output, text)
        for left in re.findall(r"(?<!\\)(?:\$\(.*\)|`.*?`|\$\{.*?\}|\$\w+)", text):
            self._statement.notes.append(self._unknown(left))
        return text

    def _unknown(self, left: str) -> str:
        """The note on a variable or command whose value is not known."""
        name = left.strip("${}")
        if name not in self._loops:
            return f"{left} is not known here and is kept unchanged"
        values = f": {', '.join(self._loops[name])}" if self._loops[name] else ""
        return f"the loop over {name}{values}; give one value for the setting, or train with each: --sweep"

    def _with_names(self, text: str) -> str:
        return _VARIABLE.sub(self._variable, _LENGTH.sub(self._length, text))

    def _length(self, match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return str(len(self._arguments))
        known = self.arrays.get(name) if match["array"] else self.variables.get(name)
        return match[0] if known is None else str(len(known))

    def _output(self, match: re.Match[str]) -> str:
        printed = pipeline.output_of(match["new"] or match["old"] or "")
        return match[0] if printed is None else printed

    def _with_places(self, text: str) -> str:
        """The text with the script's directory and the current directory substituted."""
        here = str(Path(self.directory).absolute())
        text = _CD_PWD.sub(lambda match: os.path.normpath(here + match["below"]), text)
        text = _DIRNAME.sub(lambda _: self.directory, text)
        return _PWD.sub(lambda _: self.variables["PWD"], text)

    def _variable(self, match: re.Match[str]) -> str:
        name = match["name"] or match["braced"]
        known = self.variables.get(name, self.environment.get(name))
        if match["index"] and match["index"] != "0":
            items = self.arrays.get(name, [])
            known = dict(enumerate(items)).get(int(match["index"]) % max(len(items), 1))
        if name in self._conditional and known is not None:
            note = f"the condition under which {name} is set; its last value, {known}, is used"
            self._statement.notes += [note] if note not in self._statement.notes else []
        elif name in self._conditional:
            self._statement.notes.append(f"the condition under which {name} is set; it counts as not set")
        how = match["how"] or ""
        value = expansion.expanded(known, self._with_names(how))
        if known is None and value is not None and how.startswith((":=", "=")):
            self.variables[name] = value
        return match[0] if value is None else value

    def _sum(self, match: re.Match[str]) -> str:
        terms = match["sum"] or match["expr"] or match["old"]
        if match["sum"]:  # in which variables need no dollar sign
            terms = re.sub(r"[A-Za-z_]\w*", lambda name: self.variables.get(name[0], name[0]), terms)
        terms = terms.replace("\\", "").replace("/", "//").strip()
        try:
            return str(_value_of(ast.parse(terms, mode="eval").body))
        except (
            SyntaxError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ):
            return match[0]


def _may_assign(words: list[str]) -> bool:
    """Whether ``NAME=VALUE`` after these words sets a variable: they declare, as ``export`` and ``env -u NAME`` do."""
    pairs = zip(["", *words], words, strict=False)
    return all(one in _DECLARES or one[0] == "-" or before in _OF_ENV for before, one in pairs)


def _value_of(node: ast.expr) -> int:
    """The value of a sum of integers."""
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_value_of(node.left), _value_of(node.right))
    return int(ast.literal_eval(node))
