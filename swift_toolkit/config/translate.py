"""The names of every ms-swift generation, spelled for the installed one.

ms-swift renamed its arguments in 2.0, 3.0 and 4.0 and kept no aliases. ``vocabulary.json`` holds one row
for each name that changed its spelling, its values or its meaning, and ``legacy_names.json`` the models,
templates and data sets that had names of their own before 3.0, with the families of models by their names in 3 and 4
(``families``, ``families_v3``, and ``moved``: the same name for another family). Adding a rename is adding a row:

    for     the commands that know the name, or "all"
    old     the name; it may still be in use, when only its values or its meaning changed
    v3, v4  what it is called in ms-swift 3.12 and in ms-swift 4; null where it has no successor
    since   the first ms-swift that had the old name; "-" for a name of another tool
    until   the first that no longer had it
    sure    "certain", or "likely" where the successor does nearly the same
    values  old value -> new value; null leaves the setting to ms-swift, an object stands for several
            settings, "*" is any other value and "$" the value given
    values_v3, values_v4    the same, for one of the two
    refused old value -> what to do, for values without a successor; refused_v3, refused_v4 for one of the two
    warned  old value -> what is not as it was with the new one
    split   what separates several values written as one string
    rule    a function of this module, for what depends on other settings
    join    several old names add up to one list
    gone    what to say when the name has no successor
    error   [what is wrong, what to do] where leaving the setting out would change the result; what is new in
            ms-swift 4 and has no "gone" is an error in ms-swift 3
    note    for the maintainer

``defaults`` holds the defaults that changed the result when ms-swift changed them. A request with names from
before then, and none from 3.0 or later, gets the old one: ``name`` and ``value``, ``until`` the ms-swift that
changed it, ``with`` the settings it matters to and ``unless`` those that make it void.

Names and values made by a row are looked up again: ``sft_type "qlora"`` becomes ``train_type "lora"`` and two
settings more, and then, for ms-swift 4, ``tuner_type "lora"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from swift_toolkit.config.fields import COMMANDS, Command, Field, Line

_MISSING = object()
_SINCE_3 = frozenset({"model", "train_type", "tuner_type"})  # names that no request of before 3.0 can do with
_OPTIONAL = ("until", "rule", "split", "join", "gone")


@dataclass(frozen=True)
class Translation:
    """Settings in the names of the installed ms-swift, and what has to be said about them.

    Args:
        values: exact argument name -> value, as given or as the vocabulary says; types are not coerced.
        origin: argument name -> the names it came from, itself if unchanged.
        notices: one line for each translation.
        warnings: (old name, text) of what has no successor and is left out.
        errors: (old name, what is wrong, what to do).
        unknown: names that no ms-swift ever had.
        added: what an older ms-swift did where nothing was said: argument name -> where it comes from.
    """

    values: dict[str, Any]
    origin: dict[str, tuple[str, ...]]
    notices: list[str]
    warnings: list[tuple[str, str]]
    errors: list[tuple[str, str, str]]
    unknown: list[str]
    added: dict[str, str]


def translate(
    values: Mapping[str, Any],
    command: Command,
    line: Line,
    fields: Mapping[str, Field],
    beside: Mapping[str, Any] | None = None,
) -> Translation:
    """Spells settings of any ms-swift generation for the installed one.

    Args:
        values: name -> value; values may be of their type or strings as on a command line, and none is None.
        command: the command of ms-swift they are for.
        line: which generation is installed.
        fields: the arguments the command takes there.
        beside: settings that the same request gives elsewhere, and that are translated by themselves; what
            depends on several settings takes notice of them.
    """
    return _Translator(values, command, line, fields, beside or {}).run()


def suggestions(name: str, fields: Iterable[str]) -> list[str]:
    """Up to three names that a misspelled one may stand for, the likeliest first."""
    from difflib import get_close_matches

    return get_close_matches(name.lower().replace("-", "_"), list(fields), n=3, cutoff=0.75)


def foreign(name: str) -> tuple[str, str] | None:
    """The ms-swift name of another tool's setting, and that tool; None if there is no such setting."""
    found = _vocabulary()["foreign"].get(name)
    return (found[0], found[1]) if found else None


def legacy_model(model_type: str) -> str | None:
    """The hub id of a ``model_type`` of ms-swift 1 or 2, which named one model each."""
    names = _legacy()["models"].get(model_type)
    return str(names[0]) if names else None


def in_other_line(setting: str, value: str, line: Line) -> str | None:
    """A ``model_type`` or ``template`` that the other of ms-swift 3 and 4 wrote, where ``line`` gives its name to
    another one: by its name in ``line``, None where there are several. Else ``value`` itself.
    """
    moved: dict[str, str | None] = _legacy()["moved"][setting][line]
    return moved.get(value, value)


# ------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Row:
    """One row of the table; see the module's docstring."""

    commands: tuple[Command, ...]
    old: str
    names: dict[Line, str | None]
    values: dict[Line, dict[str, Any]]
    refused: dict[Line, dict[str, str]]
    warned: dict[str, str]
    since: str
    sure: str
    until: str = ""
    rule: str = ""
    split: str = ""
    join: bool = False
    gone: str = ""
    error: tuple[str, str] | None = None


@cache
def _vocabulary() -> dict[str, Any]:
    text = Path(__file__).with_name("vocabulary.json").read_text(encoding="utf-8")
    vocabulary: dict[str, Any] = json.loads(text)
    return vocabulary


@cache
def _legacy() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("legacy_names.json").read_text(encoding="utf-8")
    names: dict[str, dict[str, Any]] = json.loads(text)
    return names


@cache
def rows() -> dict[tuple[Command, str], Row]:
    """The table by command and old name."""
    found = {}
    for entry in _vocabulary()["rows"]:
        optional = {key: entry[key] for key in _OPTIONAL if key in entry}
        common = entry.get("values", {})
        row = Row(
            commands=tuple(
                name for name in COMMANDS if entry["for"] == "all" or name in entry["for"].split()
            ),
            old=entry["old"],
            names={"v3": entry["v3"], "v4": entry["v4"]},
            values={"v3": common | entry.get("values_v3", {}), "v4": common | entry.get("values_v4", {})},
            refused={
                "v3": entry.get("refused", {}) | entry.get("refused_v3", {}),
                "v4": entry.get("refused", {}) | entry.get("refused_v4", {}),
            },
            warned=entry.get("warned", {}),
            since=entry["since"],
            sure=entry["sure"],
            error=tuple(entry["error"]) if "error" in entry else None,
            **optional,
        )
        found.update({(command, row.old): row for command in row.commands})
    return found


# ------------------------------------------------------------------------------------------ translating


class _Translator:
    """One translation under way.

    ``given`` is the whole request, those beside included. Each name in ``values`` is translated in turn; a rule
    may ``take`` others along with it, which then are not translated again.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        command: Command,
        line: Line,
        fields: Mapping[str, Field],
        beside: Mapping[str, Any],
    ) -> None:
        self.values = dict(values)
        self.given = {**beside, **values}
        self.command = command
        self.line = line
        self.fields = fields
        self.result = Translation({}, {}, [], [], [], [], {})
        # names with a rule first, in the order of RULES: a rule may take others along
        self._left = dict(sorted(values.items(), key=lambda item: self._turn(item[0])))
        self._taken: dict[str, Any] = {}
        self._made: dict[str, Any] = {}
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
        row = rows().get((self.command, name))
        return row.rule if row else ""

    def take(self, name: str) -> Any:
        """The value of a setting, None if not given; it now belongs to the one being translated."""
        if name in self._left:
            self._taken[name] = self._left.pop(name)
        return self._taken.get(name)

    def older_than(self, version: str) -> list[str]:
        """The names in the request that show it was written for an ms-swift before a version."""
        found = [rows().get((self.command, name)) for name in self.given]
        names = [row.old for row in found if row and row.until and _version(row.until) <= _version(version)]
        is_legacy = "model_type" in self.given and str(self.given["model_type"]) in _legacy()["models"]
        return [*names, "model_type"] if is_legacy else names

    def written_before(self, version: str) -> list[str]:
        """The same, but a name from before 3.0 beside one from since then is a habit and shows nothing."""
        habits = self.older_than("3.0") if not _SINCE_3.isdisjoint(self.given) else []
        return [name for name in self.older_than(version) if name not in habits]

    def fail(self, what: str, do: str, name: str = "") -> None:
        self.result.errors.append((name or next(iter(self._taken)), what, do))

    def warn(self, name: str, text: str) -> None:
        self.result.warnings.append((name, text))

    def _spell(self, name: str, value: Any) -> None:
        row = rows().get((self.command, name))
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

    def _read(self, row: Row, value: Any) -> dict[str, Any]:
        """What a row makes of a value, as settings still to be spelled."""
        refused = row.refused[self.line]
        if _key(value) in refused:
            self.fail(f"is {_text(value)}, which ms-swift no longer has", refused[_key(value)])
            return {}
        single = value[0] if isinstance(value, list) and len(value) == 1 else value
        if _key(single) in row.warned:
            self.warn(row.old, row.warned[_key(single)])
        if row.rule:
            settings = RULES[row.rule](self, row.old, value)
            if settings is not None:
                return settings
        table = row.values[self.line]
        if row.split:
            value = _split(value, row.split)
        new = table.get(_key(value), table.get("*", _MISSING))
        if new is _MISSING and isinstance(value, list):
            mapped = [table.get(_key(item), item) for item in value]
            new = [item for item in mapped if item is not None] or None
        if new is _MISSING:
            return {row.old: value}
        if isinstance(new, dict):
            return {name: _fill(setting, value) for name, setting in new.items()}
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
        known = self.result.values.get(name, _MISSING)
        if known is not _MISSING:
            joined = _joined(known, value, self._join and self.fields[name].is_list)
            if joined is _MISSING:
                other = self.result.origin[name][0]
                self.fail(f'and "{other}" both set "{name}", to different values', "Remove one of the two.")
                return
            value = joined
        self.result.values[name] = self._made[name] = value
        names = (*self.result.origin.get(name, ()), *self._taken)
        self.result.origin[name] = tuple(dict.fromkeys(names))

    def _lose(self, row: Row) -> None:
        if row.error:
            self.fail(*row.error)
        elif row.gone:
            self.warn(row.old, row.gone)
        elif row.names["v4"]:
            self.fail("needs ms-swift 4", 'Remove it, or run: pip install "ms-swift>=4".')
        else:
            self.warn(row.old, "has no successor in ms-swift and is left out")

    def _notice(self) -> None:
        """One line for the settings just translated; a value that stayed the same is not shown."""
        if self._made == self._taken:
            return
        before, after = ({_text(value) for value in side.values()} for side in (self._taken, self._made))
        old, new = (
            ", ".join(
                name if _text(value) in before & after else f"{name} {_text(value)}"
                for name, value in side.items()
            )
            for side in (self._taken, self._made)
        )
        likely = any(
            row.sure == "likely" for name in self._taken if (row := rows().get((self.command, name)))
        )
        close = " (close to it, not the same)" if likely and new else ""
        self._notices[next(iter(self._taken))] = f"{old} → {new or 'left to ms-swift'}{close}"

    def _keep_defaults(self) -> None:
        """Says what an older ms-swift did where nothing was said, if that was something else than today."""
        values = self.result.values
        for default in _vocabulary()["defaults"]:
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
                text = f"{name} {_text(default['value'])} added: {self.result.added[name]}"
                self.result.notices.append(text)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("."))


def _key(value: Any) -> str:
    """A value as the tables write it: ``true``, ``-1``, ``auto``."""
    return str(value).lower()


def _fill(setting: Any, value: Any) -> Any:
    """Puts the value given where the table says ``$``."""
    if isinstance(setting, dict):
        return {name: _fill(item, value) for name, item in setting.items()}
    return value if setting == "$" else setting


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _split(value: Any, separator: str) -> Any:
    """A list out of one string with separators, anything else unchanged."""
    items = _list(value)
    if len(items) == 1 and isinstance(items[0], str) and separator in items[0]:
        return [item.strip() for item in items[0].split(separator) if item.strip()]
    return value


def _joined(first: Any, second: Any, join: bool) -> Any:
    """One value out of two for the same setting; ``_MISSING`` if they contradict each other."""
    if _key(first) == _key(second):
        return first
    if isinstance(first, dict) and isinstance(second, dict) and not first.keys() & second.keys():
        return first | second
    if join:
        return _list(first) + [item for item in _list(second) if item not in _list(first)]
    return _MISSING


def _text(value: Any) -> str:
    """A value as a notice shows it; one value is no list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return json.dumps(value, ensure_ascii=False, default=str)


# ------------------------------------------------------------------------------------------ rules
#
# A rule gets the translation under way, the name and the value, and returns settings still to be spelled, or
# None where the row's table decides.


def _model_path(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """``model_cache_dir``, where given, held the weights and ``model_id_or_path`` only their name."""
    return {"model": work.take("model_cache_dir") or work.take("model_id_or_path")}


def _model_type(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """Before 3.0 a model type was one model and its template, since then it is a family of models."""
    legacy = _legacy()["models"].get(str(value))
    if legacy is None:
        families = _legacy()["families" if work.line == "v4" else "families_v3"]
        if work.line == "v4" and set(work.written_before("4.0")) - {"train_type"}:
            families = families | _legacy()["moved"]["model_type"]["v4"]
        if str(value) not in families:
            return None
        return {name: families[str(value)]} if families[str(value)] else {}
    modelscope, huggingface, template, *families_by_line = legacy
    settings: dict[str, Any] = {}
    paths = [work.given[key] for key in ("model", "model_id_or_path", "model_cache_dir") if key in work.given]
    is_local = bool(paths) and _exists(paths[0])
    if is_local:
        settings["model_type"] = families_by_line[work.line == "v4"]
    elif not paths:
        use_hf = _key(work.given.get("use_hf", False)) == "true"
        settings["model"] = (huggingface or modelscope) if use_hf else (modelscope or huggingface)
    has_template = bool({"template", "template_type"} & work.given.keys())
    if not has_template and (is_local or template.startswith("default-generation")):
        settings["template_type"] = template
    return settings


def _template(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """``*-generation`` were the templates of base models: the text as it is, without roles."""
    if "-generation" in str(value):
        return {"use_chat_template": False}
    if _key(value) == "auto":
        return {}
    spelled = _legacy()["templates"].get(str(value))
    return {"template": spelled[work.line == "v4"] if spelled else value}


def _tuner(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """QLoRA is LoRA on weights quantised by bitsandbytes, to four bits if nothing else is said."""
    if _key(value) != "qlora":
        return None
    settings: dict[str, Any] = {"train_type": "lora"}
    if not {"quant_method", "load_in_4bit", "load_in_8bit"} & work.given.keys():
        settings["quant_method"] = "bnb"
    if not {"quant_bits", "quantization_bit", "load_in_4bit", "load_in_8bit"} & work.given.keys():
        settings["quant_bits"] = 4
    return settings


def _quantization_bit(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """ms-swift 2 chose the method by the number of bits where none was named."""
    if _key(value) == "0":
        return {}
    if "quant_method" in work.given or _key(work.given.get("sft_type")) == "qlora":
        return {"quant_bits": value}
    return {"quant_method": "bnb" if _key(value) in ("4", "8") else "hqq", "quant_bits": value}


def _checkpoint(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """A checkpoint is an adapter or a whole model; without the directory, its name and the tuner tell."""
    path = Path(str(value))
    if _exists(path):
        marks = ("adapter_config.json", "default/adapter_config.json", "reft")
        is_adapter = any((path / mark).exists() for mark in marks)
    else:
        tuner = next(
            (work.given[key] for key in ("sft_type", "train_type", "tuner_type") if key in work.given), ""
        )
        is_adapter = "merged" not in path.name and _key(tuner) != "full"
    if is_adapter:
        return {"adapters": [value]}
    for other in ("model_id_or_path", "model_cache_dir", "model"):
        work.take(other)
    if str(work.given.get("model_type")) in _legacy()["models"]:
        work.take("model_type")
    return {"model": value}


def _train_data(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """The training data and its size were spread over six settings."""
    sets = [_dataset(item, work) for item in _list(_split_datasets(work.take("dataset")))]
    sets += map(str, _list(_split(work.take("custom_train_dataset_path"), ",")))
    sets = _sampled(work, "train_dataset_sample", sets)
    for item in _list(work.take("train_dataset_mix_ds")):
        sets.append(_dataset(item, work))
    if work.take("train_dataset_mix_ratio") is not None:
        work.warn(
            "train_dataset_mix_ratio",
            'is gone: say how many rows of each data set to take, as in "name#1000"',
        )
    cognition = _count(work, "self_cognition_sample")
    if cognition > 0:
        sets = [item for item in sets if "self-cognition" not in item] + [f"swift/self-cognition#{cognition}"]
    return _as_given("dataset", sets, work)


def _val_data(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """The validation data and its size were spread over three settings."""
    sets = [_dataset(item, work) for item in _list(_split_datasets(work.take("val_dataset")))]
    sets += map(str, _list(_split(work.take("custom_val_dataset_path"), ",")))
    if work.command in ("sft", "pt", "rlhf"):  # the others still have the setting
        sets = _sampled(work, "val_dataset_sample", sets)
    return _as_given("val_dataset", sets, work)


def _as_given(name: str, sets: list[str], work: _Translator) -> dict[str, Any]:
    """The data sets under their one name, as they were given if nothing changed."""
    if not sets:
        return {}
    return {name: work.given[name] if _list(work.given.get(name)) == sets else sets}


def _sampled(work: _Translator, name: str, sets: list[str]) -> list[str]:
    """Appends the number of rows that a setting of its own used to say: ``file.jsonl#1000``."""
    count = _count(work, name)
    if count <= 0:
        return sets
    if not sets:
        work.warn(name, "limits data that is not named here and is left out")
        return sets
    if len(sets) > 1:
        work.warn(
            name, f'was {count} rows of all data sets together; now each has its own size, as in "name#1000"'
        )
    return [f"{item.split('#')[0]}#{max(count // len(sets), 1)}" for item in sets]


def _count(work: _Translator, name: str) -> int:
    """A number of rows that a setting says; 0 if it says none."""
    value = work.take(name)
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        work.fail(f"is not a number of rows: {_text(value)}", "Give a whole number.", name)
        return 0


def _exists(path: Any) -> bool:
    """Whether there is such a file or directory; a text that cannot be a path is none."""
    try:
        return Path(str(path)).exists()
    except OSError:
        return False


def _split_datasets(value: Any) -> Any:
    """Data sets written as one string with commas, unless a file has that name."""
    items = _list(value)
    return value if len(items) == 1 and _exists(items[0]) else _split(value, ",")


def _dataset(item: Any, work: _Translator) -> str:
    """A data set that had a short name before 3.0 (``alpaca-zh:subset#1000``) by its id on the hub."""
    parts = re.fullmatch(r"([^:#]+)(:[^#]*)?(#.*)?", str(item))
    ids = _legacy()["datasets"].get(parts[1]) if parts else None
    if not parts or not ids or _exists(item) or _exists(parts[1]):
        return str(item)
    use_hf = _key(work.given.get("use_hf", False)) == "true"
    hub_id = (ids[1] or ids[0]) if use_hf else (ids[0] or f"HF::{ids[1]}")
    plain, subset, sample = re.fullmatch(r"((?:HF::)?[^:#]+)(:[^#]*)?(#.*)?", hub_id).groups()  # type: ignore[union-attr]
    return f"{plain}{parts[2] or subset or ''}{parts[3] or sample or ''}"


def _freeze_parameters(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """ms-swift 1 froze a share of the parameters, later ones those with a given name."""
    try:
        (share,) = _list(value)
        return {"freeze_parameters_ratio": float(share)}
    except (TypeError, ValueError):
        return None


def _deepspeed(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """The configurations that came with ms-swift, by their path in its repository."""
    shipped = re.fullmatch(r".*?(zero[0123])(?:[-_](offload))?\.json", str(value))
    if shipped is None or _exists(value):
        return None
    return {"deepspeed": "_".join(filter(None, shipped.groups()))}


def _do_sample(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """Without sampling the temperature did not matter; now it says so itself."""
    if _key(value) != "false":
        return {}
    work.take("temperature")
    return {"temperature": 0}


def _vllm_length(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """``max_model_len`` was vLLM's before 3.7, since then it is the model's own."""
    return {"vllm_max_model_len": value} if work.older_than("3.7") else None


def _result_dir(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    return {"result_path": f"{str(value).rstrip('/')}/infer_result.jsonl"}


def _max_memory(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """One limit for each device in order."""
    return {"max_memory": {str(device): limit for device, limit in enumerate(_list(value))}}


def _use_vllm(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """Where nothing was said, vLLM ran beside the training, and elsewhere if an address was given."""
    if _key(value) != "true" or "vllm_mode" in work.given:
        return None
    is_elsewhere = not {"vllm_server_host", "vllm_server_base_url"}.isdisjoint(work.given)
    return {name: value, "vllm_mode": "server" if is_elsewhere else "colocate"}


def _few_shot(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """The number of examples is now said for each data set."""
    sets = _list(work.given.get("eval_dataset"))
    return {"eval_dataset_args": {str(item): {"few_shot_num": value} for item in sets}}


def _eval_dataset(work: _Translator, name: str, value: Any) -> dict[str, Any] | None:
    """Before 3.0 ``no`` meant no data set."""
    sets = [item for item in _list(value) if item != "no"]
    return {name: value if sets == _list(value) else sets} if sets else {}


RULES: dict[str, Callable[[_Translator, str, Any], dict[str, Any] | None]] = {
    "checkpoint": _checkpoint,
    "model_path": _model_path,
    "model_type": _model_type,
    "template": _template,
    "tuner": _tuner,
    "quantization_bit": _quantization_bit,
    "train_data": _train_data,
    "val_data": _val_data,
    "freeze_parameters": _freeze_parameters,
    "deepspeed": _deepspeed,
    "do_sample": _do_sample,
    "vllm_length": _vllm_length,
    "result_dir": _result_dir,
    "max_memory": _max_memory,
    "use_vllm": _use_vllm,
    "few_shot": _few_shot,
    "eval_dataset": _eval_dataset,
}
