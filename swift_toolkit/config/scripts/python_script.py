"""A Python script that calls ms-swift, read as commands with settings.

    sft_main(SftArguments(model_type=ModelType.qwen_7b_chat, dataset=["a.jsonl"], lora_rank=8))
    # "sft", {"model_type": "qwen-7b-chat", "dataset": ["a.jsonl"], "lora_rank": 8}

Nothing is run. Literal values, names that the script assigns literals to and the model and data set constants of
ms-swift 1 and 2 are read; a value that is computed is reported instead.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from swift_toolkit.config.file import Values
from swift_toolkit.config.names.renames import legacy_names
from swift_toolkit.machine.msswift import LINES, Command, Line

_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+swift[.\w]*[ \t]+import|import[ \t]+swift)\b", re.MULTILINE)

_ARGUMENTS: dict[str, Command] = {
    "SftArguments": "sft",
    "TrainArguments": "sft",
    "PtArguments": "pt",
    "PretrainArguments": "pt",
    "RLHFArguments": "rlhf",
    "DPOArguments": "rlhf",
    "InferArguments": "infer",
    "DeployArguments": "deploy",
    "ExportArguments": "export",
    "EvalArguments": "eval",
}
_SUCCESSORS = """
SftArguments                TrainArguments       SftArguments
TrainArguments              TrainArguments       SftArguments
PtArguments                 TrainArguments       PretrainArguments
PretrainArguments           TrainArguments       PretrainArguments
DPOArguments                RLHFArguments        RLHFArguments
AppUIArguments              AppArguments         AppArguments
AppArguments                AppArguments         AppArguments
RLHFArguments               RLHFArguments        RLHFArguments
InferArguments              InferArguments       InferArguments
DeployArguments             DeployArguments      DeployArguments
ExportArguments             ExportArguments      ExportArguments
EvalArguments               EvalArguments        EvalArguments
sft_main                    sft_main             sft_main
pt_main                     pt_main              pretrain_main
pretrain_main               pt_main              pretrain_main
dpo_main                    rlhf_main            rlhf_main
rlhf_main                   rlhf_main            rlhf_main
infer_main                  infer_main           infer_main
deploy_main                 deploy_main          deploy_main
export_main                 export_main          export_main
eval_main                   eval_main            eval_main
app_ui_main                 app_main             app_main
app_main                    app_main             app_main
merge_lora                  merge_lora           merge_lora
merge_lora_main             merge_lora           merge_lora
run_deploy                  run_deploy           run_deploy
PtEngine                    PtEngine             TransformersEngine
TransformersEngine          PtEngine             TransformersEngine
VllmEngine                  VllmEngine           VllmEngine
LmdeployEngine              LmdeployEngine       LmdeployEngine
inference                   PtEngine             TransformersEngine
inference_stream            PtEngine             TransformersEngine
get_vllm_engine             VllmEngine           VllmEngine
inference_vllm              VllmEngine           VllmEngine
inference_stream_vllm       VllmEngine           VllmEngine
get_lmdeploy_engine         LmdeployEngine       LmdeployEngine
inference_lmdeploy          LmdeployEngine       LmdeployEngine
InferRequest                InferRequest         InferRequest
RequestConfig               RequestConfig        RequestConfig
VllmGenerationConfig        RequestConfig        RequestConfig
LmdeployGenerationConfig    RequestConfig        RequestConfig
AdapterRequest              AdapterRequest       AdapterRequest
InferClient                 InferClient          InferClient
get_model_tokenizer         get_model_tokenizer  get_model_processor
get_model_processor         get_model_tokenizer  get_model_processor
get_template                get_template         get_template
get_dataset                 load_dataset         load_dataset
load_dataset                load_dataset         load_dataset
"""
"""Name in a script -> the name in ms-swift 3.12 and in ms-swift 4."""

_PACKAGES: dict[Line, str] = dict(zip(LINES, ("swift.llm", "swift"), strict=True))

TABLE = {
    name: dict(zip(LINES, new, strict=True)) for name, *new in map(str.split, _SUCCESSORS.split("\n")[1:-1])
}


def imports_swift(text: str) -> bool:
    """Whether a text has a line of Python that imports ms-swift."""
    return _IMPORT.search(text) is not None


def is_python(text: str, file: str | None = None) -> bool:
    """Whether a text is a Python script that imports ms-swift, by its file name or because it is valid."""
    if not imports_swift(text):
        return False
    if file is not None and file.lower().endswith(".py"):
        return True
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True


_STARTS = ("os.system", "os.popen", "subprocess.")
"""How a call begins that runs a command of the shell."""


def shell_of(text: str) -> str | None:
    """The commands that a Python script runs in a shell, as a script of the shell: ``os.system("swift sft ...")``; None
    if the text is no such script."""
    if not any(start in text for start in _STARTS):
        return None
    try:
        script = PythonScript(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    commands = list(script.commands())
    sets = [f"export {name}={shlex.quote(value)}" for name, value in script.env.items()]
    return "\n".join([*sets, *commands]) if commands else None


@dataclass(frozen=True)
class Call:
    """A call that sets the arguments of a command.

    Args:
        command: the command.
        line: where it is, counted from 1.
        values: setting -> value.
        computed: settings whose values the script computes, as written.
    """

    command: Command
    line: int
    values: Values
    computed: list[str] = field(default_factory=list)


class PythonScript:
    """A parsed script.

    Args:
        text: the script.

    Raises:
        SyntaxError: it is not Python.
    """

    def __init__(self, text: str) -> None:
        self._tree = ast.parse(text)

    @cached_property
    def calls(self) -> list[Call]:
        """The calls that set arguments, in order."""
        found = [node for node in ast.walk(self._tree) if isinstance(node, ast.Call)]
        return sorted((call for node in found if (call := self._call(node))), key=lambda call: call.line)

    @cached_property
    def env(self) -> dict[str, str]:
        """The environment variables that it sets."""
        found = {}
        for node in (one for one in ast.walk(self._tree) if isinstance(one, ast.Assign)):
            target = node.targets[0]
            if isinstance(target, ast.Subscript) and ast.unparse(target.value) == "os.environ":
                name, value = _constant(target.slice, {}), _constant(node.value, self._names)
                if isinstance(name, str) and isinstance(value, str):
                    found[name] = value
        return found

    def commands(self) -> Iterator[str]:
        """The commands that it runs in a shell, as far as their words can be read."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).startswith(_STARTS):
                command = _constant(node.args[0], self._names)
                if isinstance(command, list) and all(isinstance(word, str) for word in command):
                    command = shlex.join(command)
                if isinstance(command, str):
                    yield command

    def imports(self, line: Line) -> str:
        """What the script imports from ms-swift, as the installed one names it; "" if nothing is known."""
        names = dict.fromkeys(TABLE[name][line] for name in self._imported() if name in TABLE)
        return f"from {_PACKAGES[line]} import {', '.join(names)}" if names else ""

    def _imported(self) -> Iterator[str]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "swift":
                yield from (alias.name for alias in node.names)

    @cached_property
    def _names(self) -> dict[str, object]:
        """The names to which the script assigns one value that can be read."""
        found: dict[str, object] = {}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                value = _constant(node.value, found)
                if value is not None:
                    found[node.targets[0].id] = value
        return found

    def _call(self, node: ast.Call) -> Call | None:
        name = ast.unparse(node.func).rpartition(".")[2]
        return self._of_arguments(node, self._command(name)) if name in _ARGUMENTS else None

    def _command(self, name: str) -> Command:
        """The command of an arguments class; TrainArguments is also that of pre-training."""
        imported, plain = {*self._imported()}, _ARGUMENTS[name]
        pretrains = imported & {"pt_main", "pretrain_main"} and "sft_main" not in imported
        return "pt" if plain == "sft" and pretrains else plain

    def _of_arguments(self, node: ast.Call, command: Command) -> Call:
        values: Values = {}
        computed = []
        for keyword in node.keywords:
            value = _constant(keyword.value, self._names)
            if keyword.arg is not None and value is not None:
                values[keyword.arg] = value
            elif keyword.arg is None or not _is_none(keyword.value):
                computed.append(ast.unparse(keyword))
        if ast.unparse(node.func).endswith("DPOArguments"):
            values.setdefault("rlhf_type", "dpo")
        return Call(command, node.lineno, values, computed)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _constant(node: ast.expr, names: Mapping[str, object]) -> object:
    """The value of an expression; None if it is computed."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_constant(item, names) for item in node.elts]
        return None if None in items else items
    if isinstance(node, ast.JoinedStr):
        parts = [one.value if isinstance(one, ast.FormattedValue) else one for one in node.values]
        texts = [_constant(part, names) for part in parts]
        return None if None in texts else "".join(map(str, texts))
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".split", "shlex.split")):
        whole = node.args[0] if node.args else getattr(node.func, "value", node)
        text = _constant(whole, names) if whole is not node else None
        return shlex.split(text) if isinstance(text, str) else None
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return _of_class(node.value.id, node.attr)
    try:
        value: object = ast.literal_eval(node)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value


def _of_class(owner: str, name: str) -> str | None:
    """The value of a constant such as ``ModelType.qwen_7b_chat``."""
    known = {"ModelType": "models", "DatasetName": "datasets", "TemplateType": "templates"}.get(owner)
    names: dict[str, list[str]] = legacy_names()[known] if known else {}  # type: ignore[literal-required]
    return next((one for one in names if re.sub(r"\W", "_", one) == name), None)
