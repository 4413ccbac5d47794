"""Python scripts that call ms-swift, read without running them."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from swift_toolkit.config.scripts.python_script import TABLE, PythonScript, is_python
from swift_toolkit.config.scripts.script import from_command
from swift_toolkit.machine.msswift import installed
from swift_toolkit.problems import RequestError

SCRIPT = """
import os
from swift.llm import DatasetName, ModelType, SftArguments, sft_main
os.environ['CUDA_VISIBLE_DEVICES'] = '0'
path = 'a.jsonl'
args = SftArguments(model_type=ModelType.qwen_7b_chat, dataset=[DatasetName.blossom_math_zh, path], lora_rank=8,
                    eval_steps=None, hub_token='abc', learning_rate=-1e-4, max_length=longest(), **others)
sft_main(args)
"""


def exported_names() -> set[str]:
    """The names that the installed ms-swift exports, read from its source."""
    package = {"v3": "swift/llm", "v4": "swift"}[installed().line]
    spec = importlib.util.find_spec("swift")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent.parent / package / "__init__.py").read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in nodes for alias in node.names}


def test_every_successor_can_be_imported() -> None:
    assert {row[installed().line] for row in TABLE.values()} <= exported_names()


def test_a_script_of_version_1() -> None:
    command = from_command(SCRIPT)
    assert command.command == "sft"
    assert command.env == {"CUDA_VISIBLE_DEVICES": "0"}
    assert command.values == {
        "model_type": "qwen-7b-chat",
        "dataset": ["blossom-math-zh", "a.jsonl"],
        "lora_rank": 8,
        "hub_token": "abc",
        "learning_rate": -1e-4,
    }
    assert command.left_out == [
        "line 6: max_length=longest(), which the script computes",
        "line 6: **others, which the script computes",
    ]


def test_pretraining_has_the_arguments_of_training() -> None:
    text = "from swift.llm import pt_main, TrainArguments\npt_main(TrainArguments(model='a/b'))"
    assert from_command(text).command == "pt"


def test_dpo_of_version_2() -> None:
    text = "from swift.llm import dpo_main, DPOArguments\ndpo_main(DPOArguments(model_type='qwen-7b-chat'))"
    assert from_command(text).values == {"model_type": "qwen-7b-chat", "rlhf_type": "dpo"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SCRIPT + "\nSftArguments(lora_rank=4)", "several commands: swift sft in line 6, swift sft in line 10"),
        ("import swift\nx = (", "is not valid Python"),
        ("from swift.llm import get_model_tokenizer, inference\n", "sets no arguments of a command"),
        ("from swift.llm import ExportArguments\nExportArguments(merge_lora=True)", "--merge-lora merge and use"),
        ("from swift.llm import EvalArguments\nEvalArguments(model='a')", "asks and scores your own questions"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(text: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        from_command(text, ("sft",))


def test_shell_is_not_python() -> None:
    assert not is_python("swift sft --model a/b\npython -c 'import swift'")
    assert PythonScript("x = 1").calls == []


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.environ['FOO'] = '1'\nos.system('swift sft --model a/b --lora_rank 8')",
        "import os\nos.environ['FOO'] = '1'\nRANK = 8\nos.system(f'swift sft --model a/b --lora_rank {RANK}')",
        "import os, subprocess\nos.environ['FOO'] = '1'\ncmd = ['swift', 'sft', '--model', 'a/b', '--lora_rank', '8']\nsubprocess.run(cmd, check=True)",
        "import subprocess\nsubprocess.Popen('env FOO=1 swift sft --model a/b --lora_rank 8'.split())",
        "import shlex, subprocess\nline = \"\"\"\nFOO=1 swift sft \\\\\n  --model a/b \\\\\n  --lora_rank 8\n\"\"\"\nsubprocess.check_call(line, shell=True)",
    ],
)  # fmt: skip
def test_a_script_that_runs_a_command_of_the_shell(text: str) -> None:
    found = from_command(text)
    assert (found.command, found.values) == ("sft", {"model": "a/b", "lora_rank": "8"})
    assert found.env == {"FOO": "1"}
