"""The tables of renamed arguments, and the rules that convert old values into new ones.

ms-swift renamed its arguments in 2.0, 3.0 and 4.0 and kept no aliases. ``renames.json`` has one row for each name whose
spelling, values or meaning changed; ``legacy_names.json`` has the models, templates and data sets that had their own
names before 3.0, and the families of models by their names in 3 and 4 (``families``; ``moved`` lists names that were
reused for another family). To add a rename, add a row:

    for     the commands that have the name, or "all"
    old     the name; it may still be in use if only its values or its meaning changed
    v3, v4  its name in ms-swift 3.12 and in ms-swift 4; null if it has no successor
    since   the first ms-swift that had the old name; "-" for a name from another tool
    until   the first ms-swift that no longer had it
    sure    "certain", or "likely" if the successor does nearly the same
    values  old value -> new value; null lets ms-swift decide, an object stands for several settings, "*" is any
            other value and "$" the given value
    values_v3, values_v4    the same, for one of the two
    refused old value -> what to do, for values without a successor; refused_v3, refused_v4 for one of the two
    warned  old value -> how the new one differs
    split   the separator of several values written as one string
    rule    one of ``RULES``, for names that depend on other settings
    join    several old names are merged into one list
    gone    the message if the name has no successor
    error   [what is wrong, what to do] if skipping the setting would change the result; a name that is new
            in ms-swift 4 and has no "gone" is an error in ms-swift 3
    note    for the maintainer

``defaults`` has the defaults whose change in ms-swift changed the result. A request with names from before the change,
and none from 3.0 or later, gets the old default: ``name`` and ``value``, ``until`` the ms-swift that changed it,
``with`` the settings it matters to and ``unless`` those that make it irrelevant.

``said`` has the defaults from before 3.0 that cannot be dated by a name in the request: they are reported, not kept.
``was`` is the old default and its version, ``tuner`` the only tuner it applies to.

Names and values that a row produces are looked up again: ``sft_type "qlora"`` becomes ``train_type "lora"`` and two
more settings, and then, for ms-swift 4, ``tuner_type "lora"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypedDict

from swift_toolkit.config import tasks
from swift_toolkit.config.file import Values
from swift_toolkit.machine.files import exists
from swift_toolkit.machine.msswift import COMMANDS, LINES, Command, Line

MISSING = object()
_OPTIONAL = ("until", "rule", "split", "join", "gone")


class Work(Protocol):
    """The parts of the translation that a rule can use, see `translate.Translator`."""

    given: Values
    command: Command
    line: Line

    def take(self, name: str) -> Any:
        """The value of a setting, None if not given; the setting then counts as translated."""

    def older_than(self, version: str) -> list[str]:
        """The names that date a request to before ``version``."""

    def written_before(self, version: str) -> list[str]:
        """The same, without names that people still use out of habit."""

    def fail(self, what: str, do: str, name: str = "") -> None:
        """Report an error of the setting ``name``."""

    def warn(self, name: str, text: str) -> None:
        """Report a warning of the setting ``name``."""


@dataclass(frozen=True)
class Foreign:
    """A setting of another tool.

    Args:
        tool: its name.
        name: the setting of ms-swift that does the same, or the nearest one; "" if ``do`` says what to do instead.
        do: a sentence.
    """

    tool: str
    name: str = ""
    do: str = ""


def foreign(name: str) -> Foreign | None:
    """What another tool's setting is in ms-swift; None if no tool is known to have it."""
    for tool, names in _foreign_names().items():
        if (found := names.get(name)) is not None:
            return Foreign(tool, do=found) if " " in found else Foreign(tool, found)
    return None


@cache
def _foreign_names() -> dict[str, dict[str, str]]:
    """``foreign.json``: tool -> its setting -> the name in ms-swift, or a sentence that says what to do."""
    text = Path(__file__).with_name("foreign.json").read_text(encoding="utf-8")
    names: dict[str, dict[str, str]] = json.loads(text)
    return names


def legacy_model(model_type: str) -> str | None:
    """The hub id of a ``model_type`` of ms-swift 1 or 2, where each named one model."""
    names = legacy_names()["models"].get(model_type)
    return names[0] if names else None


def in_other_line(setting: str, value: str, line: Line) -> str | None:
    """A ``model_type`` or ``template`` written by the other generation (ms-swift 3 or 4), whose name means a
    different one in ``line``: its name in ``line``, None if there are several. Otherwise ``value`` itself.
    """
    return legacy_names()["moved"][setting][line].get(value, value)


@dataclass(frozen=True)
class Rename:
    """One row of the table; the module's docstring explains each field."""

    commands: tuple[Command, ...]
    old: str
    names: dict[Line, str | None]
    values: dict[Line, Values]
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


OldDefault = TypedDict(
    "OldDefault",
    {"for": str, "name": str, "value": object, "until": str, "with": list[str], "unless": list[str]},
)
"""One of the ``defaults``; the module's docstring explains each field."""


class RenamesTable(TypedDict):
    """The content of ``renames.json``."""

    rows: list[Values]
    defaults: list[OldDefault]
    said: list[dict[str, str]]


class LegacyNames(TypedDict):
    """The content of ``legacy_names.json``: lists have one name per hub and then one per generation of ms-swift."""

    models: dict[str, list[str]]
    families: dict[Line, dict[str, str | None]]
    moved: dict[str, dict[Line, dict[str, str | None]]]
    templates: dict[str, list[str]]
    datasets: dict[str, list[str]]


@cache
def renames_table() -> RenamesTable:
    text = Path(__file__).with_name("renames.json").read_text(encoding="utf-8")
    table: RenamesTable = json.loads(text)
    return table


@cache
def legacy_names() -> LegacyNames:
    text = Path(__file__).with_name("legacy_names.json").read_text(encoding="utf-8")
    names: LegacyNames = json.loads(text)
    return names


@cache
def rename_rows() -> dict[tuple[Command, str], Rename]:
    """The table by command and old name."""
    found = {}
    for entry in renames_table()["rows"]:
        optional = {key: entry[key] for key in _OPTIONAL if key in entry}
        common = entry.get("values", {})
        row = Rename(
            commands=tuple(
                name for name in COMMANDS if entry["for"] == "all" or name in entry["for"].split()
            ),
            old=entry["old"],
            names={line: entry[line] for line in LINES},
            values={line: common | entry.get(f"values_{line}", {}) for line in LINES},
            refused={line: entry.get("refused", {}) | entry.get(f"refused_{line}", {}) for line in LINES},
            warned=entry.get("warned", {}),
            since=entry["since"],
            sure=entry["sure"],
            error=tuple(entry["error"]) if "error" in entry else None,
            **optional,
        )
        found.update({(command, row.old): row for command in row.commands})
    return found


def is_known(name: str, command: Command) -> bool:
    """Whether some ms-swift command has or had an argument of this name that was renamed."""
    return (command, name) in rename_rows()


def current_name(name: str, command: Command, line: Line) -> str:
    """The name of an argument in ``line``; unchanged if it was not renamed or has no successor."""
    seen = {name}
    while (row := rename_rows().get((command, name))) and (new := row.names[line]) and new not in seen:
        name = new
        seen.add(new)
    return name


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("."))


def as_table_key(value: Any) -> str:
    """A value as the tables write it: ``true``, ``-1``, ``auto``."""
    return str(value).lower()


def filled_in(setting: Any, value: Any) -> Any:
    """Replace ``$`` in the table's value by the given value."""
    if isinstance(setting, dict):
        return {name: filled_in(item, value) for name, item in setting.items()}
    return value if setting == "$" else setting


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def split_text(value: Any, separator: str) -> Any:
    """A list from one string with separators; other values unchanged."""
    items = _list(value)
    is_json = len(items) == 1 and isinstance(items[0], str) and items[0].lstrip().startswith("[")
    if len(items) == 1 and isinstance(items[0], str) and separator in items[0] and not is_json:
        return [item.strip() for item in items[0].split(separator) if item.strip()]
    return value


def one_of_both(first: Any, second: Any, join: bool) -> Any:
    """One value from two for the same setting; ``MISSING`` if they contradict each other."""
    if as_table_key(first) == as_table_key(second):
        return first
    if isinstance(first, dict) and isinstance(second, dict) and not first.keys() & second.keys():
        return first | second
    if join:
        return _list(first) + [item for item in _list(second) if item not in _list(first)]
    return MISSING


def value_text(value: Any) -> str:
    """A value as a notice shows it; a list of one value is shown as that value."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return json.dumps(value, ensure_ascii=False, default=str)


# --- rules --------------------------------------------------------------------------------------------------
#
# A rule receives the translation in progress, the name and the value. It returns settings that are looked up again, or
# None to use the row's table.


def _model_path(work: Work, name: str, value: Any) -> Values | None:
    """If ``model_cache_dir`` was given, it held the weights, and ``model_id_or_path`` only their name."""
    return {"model": work.take("model_cache_dir") or work.take("model_id_or_path")}


def _model_type(work: Work, name: str, value: Any) -> Values | None:
    """Before 3.0 a model type was one model with its template; since then it is a family of models."""
    legacy = legacy_names()["models"].get(str(value))
    if legacy is None:
        families = legacy_names()["families"][work.line]
        if work.line == LINES[-1] and set(work.written_before("4.0")) - {"train_type"}:
            families = families | legacy_names()["moved"]["model_type"][work.line]
        if str(value) not in families:
            return None
        return {name: families[str(value)]} if families[str(value)] else {}
    modelscope, huggingface, template, *families_by_line = legacy
    settings: Values = {}
    paths = [work.given[key] for key in ("model", "model_id_or_path", "model_cache_dir") if key in work.given]
    is_local = bool(paths) and exists(paths[0])
    if is_local:
        settings["model_type"] = families_by_line[LINES.index(work.line)]
    elif not paths:
        use_hf = as_table_key(work.given.get("use_hf", False)) == "true"
        settings["model"] = (huggingface or modelscope) if use_hf else (modelscope or huggingface)
    has_template = bool({"template", "template_type"} & work.given.keys())
    if not has_template and (is_local or template.startswith("default-generation")):
        settings["template_type"] = template
    return settings


def _template(work: Work, name: str, value: Any) -> Values | None:
    """``*-generation`` were the templates of base models: the text unchanged, without roles."""
    if "-generation" in str(value):
        return {"use_chat_template": False}
    if as_table_key(value) == "auto":
        return {}
    spelled = legacy_names()["templates"].get(str(value))
    return {"template": spelled[LINES.index(work.line)] if spelled else value}


_LORA: Values = {"train_type": "lora"}
_LORA_PLUS = {**_LORA, "lorap_lr_ratio": 16}
_TUNERS: dict[str, Values] = {
    "dora": {**_LORA, "use_dora": True},
    "qdora": {**_LORA, "use_dora": True, "quant_method": "bnb", "quant_bits": 4},
    "rslora": {**_LORA, "use_rslora": True},
    "rs-lora": {**_LORA, "use_rslora": True},
    "pissa": {**_LORA, "init_weights": "pissa"},
    "olora": {**_LORA, "init_weights": "olora"},
    "lora-ga": {**_LORA, "init_weights": "lora-ga"},
    **dict.fromkeys(("lora+", "loraplus", "lora_plus"), _LORA_PLUS),
    "galore": {"train_type": "full", "use_galore": True},
    "lisa": {"train_type": "full", "lisa_activated_layers": 2},
}
"""Training methods by their usual names, with ms-swift's settings for them. The ratio of LoRA+ is from its paper (Hayou
et al. 2024, section 4), the layers of LISA from its paper (Pan et al. 2024, table 2)."""


def _tuner(work: Work, name: str, value: Any) -> Values | None:
    """QLoRA is LoRA on weights quantised by bitsandbytes, to four bits by default."""
    if (known := _TUNERS.get(as_table_key(value))) is not None:
        return dict(known)
    if as_table_key(value) != "qlora":
        return None
    settings: Values = {"train_type": "lora"}
    if _is_stored(work):  # LoRA on weights that are already quantised
        return settings
    if not {"quant_method", "load_in_4bit", "load_in_8bit"} & work.given.keys():
        settings["quant_method"] = "bnb"
    if not {"quant_bits", "quantization_bit", "load_in_4bit", "load_in_8bit"} & work.given.keys():
        settings["quant_bits"] = 4
    return settings


STORED_METHODS = ("gptq", "awq", "aqlm")
"""Methods by which a model is stored quantised; ms-swift reads them, and the bits, from its config.json."""


def _is_stored(work: Work) -> bool:
    return as_table_key(work.given.get("quant_method")) in STORED_METHODS


def _quant_bits(work: Work, name: str, value: Any) -> Values | None:
    """A stored quantised model keeps its own bits; 0 meant none."""
    return {} if as_table_key(value) == "0" or _is_stored(work) else {"quant_bits": value}


def _quantization_bit(work: Work, name: str, value: Any) -> Values | None:
    """ms-swift 2 chose the method by the number of bits if none was given."""
    if as_table_key(value) == "0" or _is_stored(work):
        return {}
    if "quant_method" in work.given or as_table_key(work.given.get("sft_type")) == "qlora":
        return {"quant_bits": value}
    return {"quant_method": "bnb" if as_table_key(value) in ("4", "8") else "hqq", "quant_bits": value}


def _checkpoint(work: Work, name: str, value: Any) -> Values | None:
    """A checkpoint is an adapter or a full model; if its directory is missing, its name and the tuner decide."""
    path = Path(str(value))
    if exists(path):
        marks = ("adapter_config.json", "default/adapter_config.json", "reft")
        is_adapter = any((path / mark).exists() for mark in marks)
    else:
        tuner = next(
            (work.given[key] for key in ("sft_type", "train_type", "tuner_type") if key in work.given), ""
        )
        is_adapter = "merged" not in path.name and as_table_key(tuner) != "full"
    if is_adapter:
        return {"adapters": [value]}
    for other in ("model_id_or_path", "model_cache_dir", "model"):
        work.take(other)
    if str(work.given.get("model_type")) in legacy_names()["models"]:
        work.take("model_type")
    return {"model": value}


def _train_data(work: Work, name: str, value: Any) -> Values | None:
    """The training data and its size used to be spread over six settings."""
    sets = [_dataset(item, work, "dataset") for item in _list(_split_datasets(work.take("dataset")))]
    sets += map(str, _list(split_text(work.take("custom_train_dataset_path"), ",")))
    sets = _sampled(work, "train_dataset_sample", sets)
    for item in _list(work.take("train_dataset_mix_ds")):
        sets.append(_dataset(item, work, "train_dataset_mix_ds"))
    if work.take("train_dataset_mix_ratio") is not None:
        work.warn(
            "train_dataset_mix_ratio",
            'no longer exists: give the number of rows of each data set, as in "name#1000"',
        )
    cognition = _count(work, "self_cognition_sample")
    if cognition > 0:
        sets = [item for item in sets if "self-cognition" not in item] + [f"swift/self-cognition#{cognition}"]
    return _as_given("dataset", sets, work)


def _val_data(work: Work, name: str, value: Any) -> Values | None:
    """The validation data and its size used to be spread over three settings."""
    sets = [_dataset(item, work, "val_dataset") for item in _list(_split_datasets(work.take("val_dataset")))]
    sets += map(str, _list(split_text(work.take("custom_val_dataset_path"), ",")))
    if work.command in tasks.TRAINING_COMMANDS:  # other commands still have the setting
        sets = _sampled(work, "val_dataset_sample", sets)
    return _as_given("val_dataset", sets, work)


def _as_given(name: str, sets: list[str], work: Work) -> Values:
    """The data sets under their one current name, unchanged if nothing was translated."""
    if not sets:
        return {}
    return {name: work.given[name] if _list(work.given.get(name)) == sets else sets}


def _sampled(work: Work, name: str, sets: list[str]) -> list[str]:
    """Append the number of rows, which used to be a separate setting: ``file.jsonl#1000``."""
    count = _count(work, name)
    if count <= 0:
        return sets
    if not sets:
        work.warn(name, "limits data that is not in this request and is skipped")
        return sets
    if len(sets) > 1:
        work.warn(
            name, f'was {count} rows of all data sets together; now each has its own size, as in "name#1000"'
        )
    return [f"{item.split('#')[0]}#{max(count // len(sets), 1)}" for item in sets]


def _count(work: Work, name: str) -> int:
    """The number of rows in a setting; 0 if there is none."""
    value = work.take(name)
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        work.fail(f"is not a number of rows: {value_text(value)}", "Give a whole number.", name)
        return 0


def _split_datasets(value: Any) -> Any:
    """Data sets written as one string with commas, unless a file has that name."""
    items = _list(value)
    return value if len(items) == 1 and exists(items[0]) else split_text(value, ",")


def _dataset(item: Any, work: Work, name: str) -> str:
    """The hub id of a data set in the setting ``name`` that had a short name before 3.0 (``alpaca-zh:subset#1000``)."""
    if isinstance(item, (dict, list)):
        do = 'Write its file or hub ID as text, with the number of rows after it: "data.jsonl#1000".'
        work.fail("has an entry that is not text", do, name)
    parts = re.fullmatch(r"([^:#]+)(:[^#]*)?(#.*)?", str(item))
    ids = legacy_names()["datasets"].get(parts[1]) if parts else None
    if not parts or not ids or exists(item) or exists(parts[1]):
        return str(item)
    use_hf = as_table_key(work.given.get("use_hf", False)) == "true"
    hub_id = (ids[1] or ids[0]) if use_hf else (ids[0] or f"HF::{ids[1]}")
    plain, subset, sample = re.fullmatch(r"((?:HF::)?[^:#]+)(:[^#]*)?(#.*)?", hub_id).groups()  # type: ignore[union-attr]
    return f"{plain}{parts[2] or subset or ''}{parts[3] or sample or ''}"


def _freeze_parameters(work: Work, name: str, value: Any) -> Values | None:
    """ms-swift 1 froze a share of the parameters, later versions those with a given name."""
    try:
        (share,) = _list(value)
        return {"freeze_parameters_ratio": float(share)}
    except (TypeError, ValueError):
        return None


def _deepspeed(work: Work, name: str, value: Any) -> Values | None:
    """The configurations included in ms-swift, by their path in its repository."""
    shipped = re.fullmatch(r".*?(zero[0123])(?:[-_](offload))?\.json", str(value))
    if shipped is None or exists(value):
        return None
    return {"deepspeed": "_".join(filter(None, shipped.groups()))}


_SAMPLING: Values = {"temperature": 0.3, "top_k": 20, "top_p": 0.7}
"""The defaults of sampling before ms-swift 3 (`InferArguments` of 1.6 to 2.6)."""


def _do_sample(work: Work, name: str, value: Any) -> Values | None:
    """Without sampling the temperature did not matter; now temperature 0 means no sampling."""
    if as_table_key(value) != "false":
        asks = work.command in ("infer", "deploy") and as_table_key(value) == "true"
        return {name: one for name, one in _SAMPLING.items() if name not in work.given} if asks else {}
    work.take("temperature")
    return {"temperature": 0}


def _vllm_length(work: Work, name: str, value: Any) -> Values | None:
    """``max_model_len`` was vLLM's limit before 3.7; since then it is the model's own."""
    return {"vllm_max_model_len": value} if work.older_than("3.7") else None


def _result_dir(work: Work, name: str, value: Any) -> Values | None:
    return {"result_path": f"{str(value).rstrip('/')}/infer_result.jsonl"}


def _max_memory(work: Work, name: str, value: Any) -> Values | None:
    """One limit per device, in order."""
    return {"max_memory": {str(device): limit for device, limit in enumerate(_list(value))}}


def _use_vllm(work: Work, name: str, value: Any) -> Values | None:
    """By default vLLM ran in the training process, and on a server if an address was given."""
    if as_table_key(value) != "true" or "vllm_mode" in work.given:
        return None
    is_elsewhere = not {"vllm_server_host", "vllm_server_base_url"}.isdisjoint(work.given)
    return {name: value, "vllm_mode": "server" if is_elsewhere else "colocate"}


def _few_shot(work: Work, name: str, value: Any) -> Values | None:
    """The number of examples is now part of each data set's name."""
    sets = _list(work.given.get("eval_dataset"))
    return {"eval_dataset_args": {str(item): {"few_shot_num": value} for item in sets}}


def _eval_dataset(work: Work, name: str, value: Any) -> Values | None:
    """Before 3.0 ``no`` meant no data set."""
    sets = [item for item in _list(value) if item != "no"]
    return {name: value if sets == _list(value) else sets} if sets else {}


RULES: dict[str, Callable[[Work, str, Any], Values | None]] = {
    "checkpoint": _checkpoint,
    "model_path": _model_path,
    "model_type": _model_type,
    "template": _template,
    "tuner": _tuner,
    "quantization_bit": _quantization_bit,
    "quant_bits": _quant_bits,
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
