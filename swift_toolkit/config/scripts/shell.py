"""A shell script parsed into simple commands, without running any of it.

Variables, arrays and sums that the script assigns are substituted, also from the script's directory and the user's
environment; comments, continued lines, quotes and redirections are supported. Loops and conditions are not evaluated.
"""

from __future__ import annotations

import ast
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swift_toolkit.console import secrets as console_secrets
from swift_toolkit.console.command_line import LONG_DASH, long_dash
from swift_toolkit.console.words import short
from swift_toolkit.problems import Problem

# A backslash continues a line, even before a comment.
_CONTINUED = r"[ \t\r]*(?:[ \t]\#[^\n]*)?\n"
_SUBSTITUTED = r"\$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
# Within a word: 'quoted', "quoted", $(substituted), `substituted`, $variable, ${variable}, escaped, ordinary.
_PIECE = re.compile(
    rf"""'[^']*' | "(?:\\.|{_SUBSTITUTED}|[^"\\])*" | {_SUBSTITUTED} | `[^`]*` | \$\w+ | \$\{{[^}}]*\}}
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
_VARIABLE = re.compile(r"(?<!\\)\$(?:(?P<name>\w+)|\{(?P<braced>\w+)(?:\[0\])?(?::?-(?P<default>[^}]*))?\})")
_ARRAY = re.compile(r"(?P<quote>\"?)\$\{(?P<name>\w+)\[[@*]\]\}(?P=quote)")
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
_FOR_OTHER_SHELLS = (
    (re.compile(r"(?m)(?<=[ \t])\^[ \t\r]*$"), '"^" continues lines in cmd.exe'),
    (re.compile(r"(?m)(?<=[ \t])`[ \t\r]*$"), '"`" continues lines in PowerShell'),
)
_SETS_FOR_OTHER_SHELLS = re.compile(r"(?mi)^[ \t]*\$env:(?P<name>\w+)[ \t]*=")
_WINDOWS_PATH = re.compile(r"(?:.*=)?(?P<path>[A-Za-z]:\\\w.*)")
_AROUND = re.compile(
    r"(?m)^[ \t]*(?:```\w*|%%(?:bash|sh|script.*))[ \t]*\r?$|^[ \t]*!(?=[\w./])|[\u200b\u2060\ufeff]"
)
"""What surrounds a line copied from a page or a notebook: fences, cell marks, ``!``, invisible characters."""
_TYPED_QUOTES = frozenset("“”„‟‘’‚«»")


@dataclass
class Statement:
    """One simple command of a script: where it starts, the variables set only for it, its words.

    ``str`` shows it without secrets; ``secrets`` are those that the script assigns to variables.
    """

    line: int = 0
    env: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        text = self.without_secrets(" ".join(console_secrets.masked_words(self.words)))
        return short(text)

    def without_secrets(self, text: str) -> str:
        """``text`` without the secrets."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, console_secrets.HIDDEN)
        return console_secrets.masked(text)


def without_surroundings(text: str) -> str:
    """The text without the marks of the page or notebook that it was copied from; lines keep their numbers."""
    return _AROUND.sub("", text)


def shell_problems(text: str, file: str | None = None) -> Iterator[Problem]:
    """Syntax that no Linux shell reads as intended: line continuations of other shells, and dashes and quotes from a
    word processor or web page."""
    for pattern, what in _FOR_OTHER_SHELLS:
        if found := pattern.search(text):
            yield Problem(
                what, 'Write "\\" at the end of the line.', file=file, line=_line(text, found.start())
            )
    for found in _SETS_FOR_OTHER_SHELLS.finditer(text):
        what = f'"$env:{found["name"]}" is how PowerShell sets a variable'
        yield Problem(what, f"Write export {found['name']}=...", file=file, line=_line(text, found.start()))
    starts, is_foreign = False, any(pattern.search(text) for pattern, _ in _FOR_OTHER_SHELLS)
    for token in _TOKEN.finditer(f"{text}\n\n"):
        word = token["word"] or ""
        if starts and not is_foreign and re.match(r"--[A-Za-z]", word):
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
        plain = [piece for piece in _PIECE.findall(word) if piece in _TYPED_QUOTES]
        if plain:
            what = f'"{plain[0]}" is a typographic quotation mark, which the shell reads as a letter'
            yield Problem(what, "Write \" or '.", file=file, line=_line(text, token.start()))


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


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
        self.text = f"{text}\n\n"  # the last line may end in a backslash
        self.directory = str(Path(file).parent) if file else "."
        around = os.environ if environment is None else environment
        self.environment = {name: value for name, value in around.items() if not _SECRET.search(name)}
        self.variables: dict[str, str] = {"PWD": str(Path.cwd())}
        self.arrays: dict[str, list[str]] = {}
        self.exported: dict[str, str] = {}
        self._secrets: set[str] = set()
        self._statement = Statement(secrets=self._secrets)

    def statements(self) -> Iterator[Statement]:
        """The simple commands in order, including those that run nothing."""
        redirected = ""
        for token in _TOKEN.finditer(self.text):
            if token["redirection"]:
                redirected = "" if token["handle"] else token["redirection"]
            elif token["word"] and redirected:
                self._statement.notes.append(f"{redirected} {token['word']}")
                redirected = ""
            elif token["array"]:
                self._keep_array(token["name"], bool(token["more"]), token["items"])
            elif token["word"]:
                self._statement.line = self._statement.line or _line(self.text, token.start())
                self._add(token["word"])
            elif token["end"]:
                self._assign()
                yield self._statement
                self._statement = Statement(secrets=self._secrets)

    def _keep_array(self, name: str, adds: bool, items: str) -> None:
        outside, self._statement = self._statement, Statement()
        for token in _TOKEN.finditer(items):
            if token["word"]:
                self._add(token["word"])
        words = self._statement.words
        outside.notes += self._statement.notes
        self._statement = outside
        self.arrays[name] = [*(self.arrays.get(name, []) if adds else []), *words]
        self.variables[name] = self.arrays[name][0] if self.arrays[name] else ""

    def _add(self, word: str) -> None:
        assignment = _ASSIGNMENT.fullmatch(word)
        if assignment and all(one in _DECLARES or one[0] == "-" for one in self._statement.words):
            name, adds, value = assignment.groups()
            before = self.variables.get(name, "") if adds else ""
            text = before + "".join(self._pieces(value))
            self._statement.env[name] = text
            if _SECRET.search(name) and len(text) >= LEAST_SECRET:
                self._secrets.add(text)
        elif (array := _ARRAY.fullmatch(word)) and array["name"] in self.arrays:
            self._statement.words += self.arrays[array["name"]]
        elif _VARIABLE.fullmatch(word):  # not quoted: the shell splits its value into words
            text = self._with_variables(word)
            self._statement.words += [text] if "$(" in text else text.split()
        else:
            self._statement.words.append("".join(self._pieces(word)))

    def _assign(self) -> None:
        """Store the variables of a statement that runs nothing."""
        words = self._statement.words
        declares = bool(words) and words[0] in _DECLARES - {"env"}
        if declares or not words:
            self.variables |= self._statement.env
            self.exported |= self._statement.env if words[:1] == ["export"] else {}
            self._statement.words = []

    def _pieces(self, word: str) -> Iterator[str]:
        """The parts of a word as the shell would pass them on."""
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
        """The text with paths, variables and sums substituted; what is not known is noted and kept."""
        text = self._with_places(text)
        text = _SUM.sub(self._sum, _VARIABLE.sub(self._variable, text))
        for left in re.findall(r"(?<!\\)(?:\$\(.*\)|`.*?`|\$\{.*?\}|\$\w+)", text):
            self._statement.notes.append(f"{left} is not known here and is kept unchanged")
        return text

    def _with_places(self, text: str) -> str:
        """The text with the script's directory and the current directory substituted."""
        here = str(Path(self.directory).absolute())
        text = _CD_PWD.sub(lambda match: os.path.normpath(here + match["below"]), text)
        text = _DIRNAME.sub(lambda _: self.directory, text)
        return _PWD.sub(lambda _: self.variables["PWD"], text)

    def _variable(self, match: re.Match[str]) -> str:
        name, default = match["name"] or match["braced"], match["default"]
        known = self.variables.get(name, self.environment.get(name))
        if known is not None:
            return known
        return match[0] if default is None else default

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


def _value_of(node: ast.expr) -> int:
    """The value of a sum of integers."""
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_value_of(node.left), _value_of(node.right))
    return int(ast.literal_eval(node))
