"""What is read from the source of ms-swift: a small source tree, and the installed one against its parser."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from swift_toolkit.config import fields as config_fields
from swift_toolkit.config.fields import Field, default, fields
from swift_toolkit.config.request import load_config
from swift_toolkit.machine import msswift
from swift_toolkit.machine.msswift import COMMANDS, SwiftInstall, installed
from swift_toolkit.problems import RequestError

ARGUMENTS = """
    from dataclasses import dataclass, field
    from typing import ClassVar, Dict, List, Literal, Optional, Union

    from transformers import TrainingArguments as HfArguments
    from .base import BaseArguments


    class Mixin:
        not_a_field: int = 1


    @dataclass
    class SftArguments(Mixin, BaseArguments, HfArguments):
        seed: int = 42
        scheduler: str = 'cosine'
        dataset: List[str] = field(default_factory=list)
        weights: Optional[List[float]] = None
        tuner: Literal['lora', 'full'] = 'lora'
        bits: Literal[4, 8, 'float8'] = None
        dtype: Literal['bfloat16', None] = None
        config: Union[Dict, str, None] = None
        limit: int | None = None
        total: int = field(init=False, default=0)
        kinds: ClassVar[int] = 3

        def __post_init__(self):
            raise AssertionError('never run')
"""
BASE = """
    from dataclasses import dataclass
    from typing import Optional


    @dataclass
    class BaseArguments:
        model: Optional[str] = None
        seed: int = 1
"""
TRANSFORMERS = """
    from typing import TYPE_CHECKING

    __version__ = "5.19.0"

    if TYPE_CHECKING:
        from .training_args import TrainingArguments
"""
TRAINING_ARGS = '''
    from dataclasses import dataclass, field
    from enum import Enum

    levels = {"info": 1}


    class ExplicitEnum(str, Enum):
        """An enum."""


    class Scheduler(ExplicitEnum):
        LINEAR = "linear"
        COSINE = "cosine"


    class Debug(ExplicitEnum):
        OVERFLOW = "overflow"


    @dataclass
    class TrainingArguments:
        learning_rate: float = field(default=5e-5, metadata={"help": "The rate."})
        scheduler: Scheduler | str = "linear"
        debug: str | list[Debug] = field(default="")
        count_tokens: str | bool = False
        backend: str = field(default="auto", metadata={"choices": ["auto", "apex"]})
        level: str = field(default="info", metadata={"choices": levels.keys()})
'''


@pytest.fixture
def source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages swift and transformers that hold nothing but argument classes; an empty cache."""
    packages = {
        "swift/__init__.py": "",
        "swift/version.py": "__version__ = '4.6.0'\n",
        "swift/arguments/__init__.py": "from .sft import SftArguments\n",
        "swift/arguments/sft.py": ARGUMENTS,
        "swift/arguments/base.py": BASE,
        "transformers/__init__.py": TRANSFORMERS,
        "transformers/training_args.py": TRAINING_ARGS,
    }
    for name, text in packages.items():
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
    for name in ("swift", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "site"


def test_install_is_found_without_import(source_tree: Path) -> None:
    assert installed() == SwiftInstall("4.6.0", "v4", "5.19.0", source_tree / "swift")
    assert "swift" not in sys.modules


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            "3.11.3",
            'ms-swift 3.11.3 is older than 3.12, the oldest supported version. Run: pip install "ms-swift==4.6.0".',
        ),
        (None, 'ms-swift is not installed. Run: pip install "ms-swift==4.6.0".'),
    ],
)
def test_unusable_install_is_an_error(source_tree: Path, version: str | None, message: str) -> None:
    file = source_tree / "swift" / "version.py"
    file.write_text(f"__version__ = '{version}'\n") if version else file.unlink()
    with pytest.raises(RequestError) as error:
        installed()
    assert str(error.value) == message


@pytest.mark.parametrize(("version", "line"), [("3.12.6", "v3"), ("4.0.0", "v4"), ("4.7.0.dev0", "v4")])
def test_line_follows_the_version(source_tree: Path, version: str, line: str) -> None:
    (source_tree / "swift" / "version.py").write_text(f"__version__ = '{version}'\n")
    assert installed().line == line


def test_fields_of_a_source_tree(source_tree: Path) -> None:
    expected = [
        Field("learning_rate", "float", default="5e-05"),
        Field("scheduler", "str", choices=("linear", "cosine"), default="'cosine'"),
        Field("debug", "str", is_list=True, choices=("overflow",), default="''"),
        Field("count_tokens", "bool", default="False"),
        Field("backend", "str", choices=("auto", "apex"), default="'auto'"),
        Field("level", "str", default="'info'"),
        Field("model", "str", optional=True, default="None"),
        Field("seed", "int", default="42"),
        Field("dataset", "str", is_list=True, default="list"),
        Field("weights", "float", is_list=True, optional=True, default="None"),
        Field("tuner", "str", choices=("lora", "full"), default="'lora'"),
        Field("bits", "int", choices=(4, 8, "float8"), default="None"),
        Field("dtype", "str", optional=True, choices=("bfloat16",), default="None"),
        Field("config", "dict", optional=True, default="None"),
        Field("limit", "int", optional=True, default="None"),
    ]
    assert list(fields("sft").values()) == expected
    assert list(fields("sft").values()) == expected, "the cached ones are the same"


def test_changed_source_is_read_again(source_tree: Path) -> None:
    assert "lora_rank" not in fields("sft")
    base = source_tree / "swift" / "arguments" / "base.py"
    base.write_text(base.read_text() + "    lora_rank: int = 8\n")
    assert fields("sft")["lora_rank"] == Field("lora_rank", "int", default="8")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"files": {}, "fields": [[1]]}'])
def test_damaged_cache_is_replaced(source_tree: Path, tmp_path: Path, damage: str) -> None:
    whole = fields("sft")
    (cache,) = (tmp_path / "cache").rglob("fields-4.6.0-sft-*.json")
    kept = cache.read_text()
    cache.write_text(damage)
    assert fields("sft") == whole
    assert cache.read_text() == kept


def test_cache_that_cannot_be_written_does_not_matter(source_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    assert fields("sft")["seed"].default == "42"


def test_source_that_cannot_be_followed_and_import_that_fails(source_tree: Path) -> None:
    (source_tree / "swift" / "arguments" / "__init__.py").write_text("SftArguments = make()\n")
    with pytest.raises(RequestError) as error:
        fields("sft")
    assert str(error.value).startswith("ms-swift 4.6.0 cannot be imported: ")


# What the parser cannot say: plain strings to it, which transformers' training arguments turn into enums.
CHECKED_LATER = {"lr_scheduler_type", "eval_strategy", "ddp_backend"}
# What the source cannot say: choices taken from a dict when transformers is imported.
COMPUTED_CHOICES = {"log_level", "log_level_replica"}


@pytest.fixture(scope="module")
def parsers() -> dict[str, dict[str, Field]]:
    """What the argument parsers of the installed ms-swift take, by command, found by importing it."""
    script = (
        "import json; from dataclasses import astuple; from swift_toolkit.config import fields as s; from swift_toolkit.machine.msswift import COMMANDS;"
        "print(json.dumps({c: [astuple(f) for f in s._fields_by_import(c)] for c in COMMANDS}))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    return {
        command: {field.name: field for field in config_fields._fields_from_json(rows)}
        for command, rows in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_source_and_parser_agree(command: msswift.Command, parsers: dict[str, dict[str, Field]]) -> None:
    read, parsed = fields(command), parsers[command]
    assert read.keys() == parsed.keys()
    for name, field in parsed.items():
        choices = read[name].choices
        if name in CHECKED_LATER and command in ("sft", "pt", "rlhf"):
            assert choices and not field.choices, name
        elif name not in COMPUTED_CHOICES:
            assert choices == field.choices, name
        assert read[name] == replace(field, choices=choices, default=read[name].default)


@pytest.mark.slow
def test_source_that_cannot_be_followed_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsers: dict[str, dict[str, Field]]
) -> None:
    def lose_the_way(*_: object) -> list[Field]:
        raise config_fields.UnresolvedError("SftArguments in swift.arguments")

    monkeypatch.setattr(config_fields._Source, "fields", lose_the_way)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fields("infer") == parsers["infer"]
    assert fields("infer") == parsers["infer"], "the cached ones are the same"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_rank", 8),
        ("num_train_epochs", 3.0),
        ("save_strategy", "steps"),
        ("freeze_vit", True),
        ("dataset", []),
        ("optim", None),  # ms-swift's source decides it by the version of torch
        ("not_an_argument", None),
    ],
)
def test_the_value_that_ms_swift_takes_without_one(name: str, value: object) -> None:
    config = load_config({"model": "a/b", "dataset": "c/d"})
    assert default(name, "sft", config.install) == value
    assert config.value(name) == (["c/d"] if name == "dataset" else value)
    assert load_config({"model": "a/b", "dataset": "c/d", "lora_rank": 4}).value("lora_rank") == 4
