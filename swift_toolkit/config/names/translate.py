"""Translates setting names of every ms-swift generation to the installed one, by the tables in `renames`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from swift_toolkit.config.fields import Field
from swift_toolkit.config.file import Values
from swift_toolkit.config.names.renames import (
    MISSING,
    RULES,
    Rename,
    as_table_key,
    filled_in,
    legacy_names,
    one_of_both,
    rename_rows,
    renames_table,
    split_text,
    value_text,
    version_of,
)
from swift_toolkit.config.settings import TUNER_NAMES
from swift_toolkit.config.tasks import TRAINING_COMMANDS
from swift_toolkit.machine.msswift import LINES, Command, Line

_SINCE_3 = frozenset({"model", "train_type", "tuner_type"})  # names that no request from before 3.0 has


@dataclass(frozen=True)
class Translation:
    """Settings in the names of the installed ms-swift, and the messages about the translation.

    Args:
        values: exact argument name -> value, as given or as in the table; types are not converted.
        origin: argument name -> the names it came from, itself if unchanged.
        notices: one line for each translation.
        warnings: (old name, text) for names without a successor, which are skipped.
        errors: (old name, what is wrong, what to do).
        unknown: names that no ms-swift ever had.
        added: defaults of an older ms-swift that were added: argument name -> reason.
    """

    values: Values
    origin: dict[str, tuple[str, ...]]
    notices: list[str]
    warnings: list[tuple[str, str]]
    errors: list[tuple[str, str, str]]
    unknown: list[str]
    added: dict[str, str]


def translate(
    values: Mapping[str, object],
    command: Command,
    line: Line,
    fields: Mapping[str, Field],
    beside: Mapping[str, object] | None = None,
) -> Translation:
    """Translate settings of any ms-swift generation to the installed one.

    Args:
        values: name -> value; values are typed or strings as on a command line, and none is None.
        command: the command of ms-swift they are for.
        line: the installed generation.
        fields: the arguments of the command in the installed ms-swift.
        beside: settings that the same request gives elsewhere and that are translated separately; rules that depend on
            several settings take them into account.
    """
    return Translator(values, command, line, fields, beside or {}).run()


class Translator:
    """One translation in progress.

    ``given`` is the whole request, including the settings in ``beside``. Each name in ``values`` is translated in turn;
    a rule may ``take`` other names, which then are not translated again.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        command: Command,
        line: Line,
        fields: Mapping[str, Field],
        beside: Mapping[str, object],
    ) -> None:
        self.values = dict(values)
        self.given = {**beside, **values}
        self.command = command
        self.line = line
        self.fields = fields
        self.result = Translation({}, {}, [], [], [], [], {})
        # names with a rule first, in the order of RULES: a rule may take other names
        self._left = dict(sorted(values.items(), key=lambda item: self._turn(item[0])))
        self._taken: Values = {}
        self._made: Values = {}
        self._notices: dict[str, str] = {}
        self._join = False

    def run(self) -> Translation:
        while self._left:
            name = next(iter(self._left))
            self._taken, self._made, self._join = {}, {}, False
            said = self._said()
            self._spell(name, self.take(name))
            if self._made or self._said() == said:
                self._notice()
        self.result.notices.extend(self._notices[name] for name in self.values if name in self._notices)
        self._keep_defaults()
        place = {name: position for position, name in enumerate(self.values)}
        names = sorted(self.result.values, key=lambda name: place[self.result.origin[name][0]])
        return replace(self.result, values={name: self.result.values[name] for name in names})

    def _said(self) -> int:
        return len(self.result.warnings) + len(self.result.errors) + len(self.result.unknown)

    def _turn(self, name: str) -> int:
        rule = self._rule(name)
        return list(RULES).index(rule) if rule else len(RULES)

    def _rule(self, name: str) -> str:
        row = rename_rows().get((self.command, name))
        return row.rule if row else ""

    def take(self, name: str) -> Any:
        """The value of a setting, None if not given; the setting then counts as translated."""
        if name in self._left:
            self._taken[name] = self._left.pop(name)
        return self._taken.get(name)

    def older_than(self, version: str) -> list[str]:
        """The names in the request that show that it was written for an ms-swift before a version."""
        found = [rename_rows().get((self.command, name)) for name in self.given]
        names = [
            row.old for row in found if row and row.until and version_of(row.until) <= version_of(version)
        ]
        is_legacy = "model_type" in self.given and str(self.given["model_type"]) in legacy_names()["models"]
        return [*names, "model_type"] if is_legacy else names

    def written_before(self, version: str) -> list[str]:
        """The same, but an old name in a request with names from 3.0 or later is a habit and shows nothing."""
        habits = self.older_than("3.0") if not _SINCE_3.isdisjoint(self.given) else []
        return [name for name in self.older_than(version) if name not in habits]

    def fail(self, what: str, do: str, name: str = "") -> None:
        self.result.errors.append((name or next(iter(self._taken)), what, do))

    def warn(self, name: str, text: str) -> None:
        self.result.warnings.append((name, text))

    def _spell(self, name: str, value: Any) -> None:
        row = rename_rows().get((self.command, name))
        if row is None:
            self._put(name, value)
            return
        self._join = self._join or row.join
        for old, setting in self._read(row, value).items():
            new = row.names[self.line] if old == name else old
            if new is None:
                self._lose(row)
            elif new == name or (new in self.fields and row.rule and row.rule == self._rule(new)):
                self._put(new, setting)
            else:
                self._spell(new, setting)

    def _read(self, row: Rename, value: Any) -> Values:
        """The settings that a row makes from a value; they are looked up again."""
        refused = row.refused[self.line]
        if as_table_key(value) in refused:
            self.fail(
                f"is {value_text(value)}, which ms-swift no longer supports", refused[as_table_key(value)]
            )
            return {}
        single = value[0] if isinstance(value, list) and len(value) == 1 else value
        if as_table_key(single) in row.warned:
            self.warn(row.old, row.warned[as_table_key(single)])
        if row.rule:
            settings = RULES[row.rule](self, row.old, value)
            if settings is not None:
                return settings
        table = row.values[self.line]
        if row.split:
            value = split_text(value, row.split)
        new = table.get(as_table_key(value), table.get("*", MISSING))
        if new is MISSING and isinstance(value, list):
            mapped = [table.get(as_table_key(item), item) for item in value]
            new = [item for item in mapped if item is not None] or None
        if new is MISSING:
            return {row.old: value}
        if isinstance(new, dict):
            return {name: filled_in(setting, value) for name, setting in new.items()}
        return {} if new is None else {row.old: new}

    def _put(self, name: str, value: Any) -> None:
        if name not in self.fields:
            if name in self._taken:
                self.result.unknown.append(name)
            else:
                self.fail(f'is "{name}", which the installed ms-swift does not take', "Remove it.")
            return
        if isinstance(value, list) and len(value) == 1 and not self.fields[name].is_list:
            value = value[0]
        known = self.result.values.get(name, MISSING)
        if known is not MISSING:
            joined = one_of_both(known, value, self._join and self.fields[name].is_list)
            if joined is MISSING:
                other = self.result.origin[name][0]
                self.fail(f'and "{other}" both set "{name}", to different values', "Remove one of the two.")
                return
            value = joined
        self.result.values[name] = self._made[name] = value
        names = (*self.result.origin.get(name, ()), *self._taken)
        self.result.origin[name] = tuple(dict.fromkeys(names))

    def _lose(self, row: Rename) -> None:
        if row.error:
            self.fail(*row.error)
        elif row.gone:
            self.warn(row.old, row.gone)
        elif row.names[LINES[-1]]:
            self.fail("needs ms-swift 4", 'Remove it, or run: pip install "ms-swift>=4".')
        else:
            self.warn(row.old, "has no successor in ms-swift and is skipped")

    def _notice(self) -> None:
        """One line for the settings just translated; an unchanged value is not shown."""
        if self._made == self._taken:
            return
        before, after = ({value_text(value) for value in side.values()} for side in (self._taken, self._made))
        old, new = (
            ", ".join(
                name if value_text(value) in before & after else f"{name} {value_text(value)}"
                for name, value in side.items()
            )
            for side in (self._taken, self._made)
        )
        likely = any(
            row.sure == "likely" for name in self._taken if (row := rename_rows().get((self.command, name)))
        )
        close = " (close to it, not the same)" if likely and new else ""
        self._notices[next(iter(self._taken))] = f"{old} → {new or 'left to ms-swift'}{close}"

    def _keep_defaults(self) -> None:
        """Add the defaults of an older ms-swift that differ from today's."""
        values = self.result.values
        for default in renames_table()["defaults"]:
            name, until = default["name"], default["until"]
            old_names = [old for old in self.written_before(until) if old in self.values]
            if self.command not in default["for"].split() or not old_names:
                continue
            said = values.keys() | self.given.keys()
            is_moot = not said.isdisjoint([name, *default["unless"]]) or name not in self.fields
            if not is_moot and said >= set(default["with"]):
                values[name] = default["value"]
                self.result.origin[name] = (old_names[0],)
                self.result.added[name] = f"the default before ms-swift {until}"
                text = f"{name} {value_text(default['value'])} added: {self.result.added[name]}"
                self.result.notices.append(text)
        self._say_defaults()

    def _say_defaults(self) -> None:
        """Report the defaults from before 3.0 that such a request does not set and that are different today."""
        old_names = [old for old in self.written_before("3.0") if old in self.values]
        if self.command not in TRAINING_COMMANDS or not old_names:
            return
        table = [rename_rows().get((self.command, name)) for name in self.given]
        said = {*self.result.values, *self.given, *(row.names[self.line] for row in table if row)}
        tuners = {str(self.result.values.get(name, "")) for name in TUNER_NAMES} - {""} or {"lora"}
        others = [
            f"{one['name']} {one['was']}"
            for one in renames_table()["said"]
            if one["name"] not in said and one.get("tuner") in (None, *tuners)
        ]
        if others:
            text = f"defaults that were different and are not set in this request: {', '.join(others)}"
            self.result.notices.append(f"{text}. Set them to repeat a run from before ms-swift 3.0")
