"""Everything that depends on the version of ms-swift, and the patches of ms-swift."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import gc
import importlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import time
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, TypeVar, get_args

from swift_toolkit.machine import packages
from swift_toolkit.machine.files import kept, write_json
from swift_toolkit.problems import Problem, RequestError

Command = Literal["sft", "pt", "rlhf", "infer", "deploy", "export", "eval"]
Line = Literal["v3", "v4"]
COMMANDS: tuple[Command, ...] = get_args(Command)
LINES: tuple[Line, ...] = get_args(Line)
"""Oldest first; lists with one value per generation use this order."""

_T = TypeVar("_T")

Generating = dict[str, Any]
"""The arguments that ms-swift passes to its engine for a batch, by name."""


INSTALL = f"{packages.install('ms_swift')}."


@dataclass(frozen=True)
class SwiftInstall:
    """The installed ms-swift.

    Args:
        version: e.g. ``4.6.0``.
        line: ``v3`` for 3.12 and later 3.x, ``v4`` for 4.0 and later.
        transformers_version: e.g. ``5.19.0``; empty if transformers is not installed.
        location: the directory of the package ``swift``.
    """

    version: str
    line: Line
    transformers_version: str
    location: Path

    @property
    def tuner_argument(self) -> str:
        """The argument that chooses the tuner: ``train_type`` until ms-swift 4.0."""
        return self._either("train_type", "tuner_type")

    @property
    def own_engine(self) -> str:
        """The value of ``infer_backend`` for ms-swift's own engine: ``pt`` until ms-swift 4.0."""
        return self._either("pt", "transformers")

    @property
    def guesses_template(self) -> bool:
        """Whether the template is optional for a model type with several: until ms-swift 4.0 the first one was used."""
        return self._either(True, False)

    @property
    def sources(self) -> Sources:
        """Where its source lists models, templates, data sets and trainers."""
        return self._either(_SOURCES_OF_3, _SOURCES_OF_4)

    @property
    def teaches_itself(self) -> bool:
        """Whether the model can be its own teacher (GKD with a column ``teacher_prompt``): only since ms-swift 4.0."""
        return self._either(False, True)

    @property
    def trains_longlora(self) -> bool:
        """Whether the tuner ``longlora`` works. Needed until ms-swift's ``tuners/longlora/llama.py`` no longer reads
        ``num_heads`` of ``LlamaAttention``, which transformers 4.48 removed (3.12 and 4.6 do)."""
        version = [int(number) for number in re.findall(r"\d+", self.transformers_version)[:2]]
        return version < [4, 48]

    @property
    def reads_rope_type(self) -> bool:
        """Whether ``rope_scaling`` must have "rope_type": transformers 5 does not read its older name "type". Until
        ms-swift's ``_init_rope_scaling`` writes "rope_type" (4.6 does not)."""
        return self.transformers_version.partition(".")[0] not in ("", "3", "4")

    @property
    def breaks_swift_lora(self) -> bool:
        """Whether ``use_swift_lora`` fails because PEFT's layers need a configuration (PEFT 0.20 does). Until
        ms-swift's ``tuners/lora_layers.py`` passes it (4.6 does not)."""
        found = [int(number) for number in re.findall(r"\d+", packages.version("peft") or "")[:2]]
        return found >= [0, 20]

    @property
    def drops_rows_of_gkd(self) -> bool:
        """Whether GKD drops the rows that do not fill a batch of a whole step, like GRPO: only since ms-swift 4.0."""
        return self._either(False, True)

    @property
    def pretrains_plainly(self) -> bool:
        """Whether pre-training never uses a chat template; since ms-swift 4.0 ``use_chat_template`` decides."""
        return self._either(True, False)

    @property
    def drops_system_of_plain(self) -> bool:
        """Whether training without a chat template drops system prompts; ms-swift 3.12 fails at such a row."""
        return self._either(False, True)

    @property
    def has_fsdp2(self) -> bool:
        """Whether it has the file for ``--fsdp fsdp2``. Needed until ms-swift 4: the wheel of 3.12 lacks it."""
        return (self.location / self._either("llm/fsdp_config/fsdp2.json", "config/fsdp2.json")).is_file()

    def foreign_generation(self, generation: SwiftGeneration | None) -> str | None:
        """The generation of ms-swift that wrote an adapter's checkpoint, if this one cannot load its optimizer state.

        Until ms-swift 4.0 the parameters of an adapter formed two groups, since then one; torch refuses a state with
        other groups.

        Args:
            generation: the result of `recorded_generation` for the checkpoint's args.json.
        """
        wrote = next((line for line in LINES if line == generation), self.line)
        return None if wrote == self.line else wrote.removeprefix("v")

    def loss_without_default(self, task: str) -> str | None:
        """A loss for a task that ms-swift gives none, so that it stops at its first step; None for other tasks.

        Args:
            task: a name of `config.tasks`.
        """
        if task == "embedding":
            return "infonce"
        if task in ("reranker", "generative_reranker"):
            return self._either(task, "pointwise_reranker")
        return None

    def _either(self, of_3: _T, of_4: _T) -> _T:
        return of_3 if self.line == "v3" else of_4


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the source of ms-swift lists its parts, relative to its package directory.

    Args:
        model_constants: the file with the names of model types.
        models: the directory of the files that register models.
        template_constants: the file with the names of templates.
        template_at: the position of the template among the arguments of ``ModelMeta``.
        datasets: the directory of the files that register data sets.
        trainers: the directory of the trainers of ``rlhf``.
        columns: the file with the class ``RowPreprocessor``, which names the columns of a row.
    """

    model_constants: str
    models: str
    template_constants: str
    template_at: int
    datasets: str
    trainers: str
    columns: str


_SOURCES_OF_3 = Sources(
    model_constants="llm/model/constant.py",
    models="llm/model/model",
    template_constants="llm/template/constant.py",
    template_at=2,
    datasets="llm/dataset/dataset",
    trainers="trainers/rlhf_trainer",
    columns="llm/dataset/preprocessor/core.py",
)
_SOURCES_OF_4 = Sources(
    model_constants="model/constant.py",
    models="model/models",
    template_constants="template/constant.py",
    template_at=3,
    datasets="dataset/dataset",
    trainers="rlhf_trainers",
    columns="dataset/preprocessor/core.py",
)

SwiftGeneration = Literal["v1", "v2", "v3", "v4"]


def recorded_generation(args: Collection[str], is_old_file: bool) -> SwiftGeneration | None:
    """The generation of ms-swift that wrote these arguments; None if it cannot be determined.

    Version 4 records its own name. Version 2 has ``custom_register_path``, which 1 does not have.

    Args:
        args: the names in an args.json or sft_args.json.
        is_old_file: whether it is an sft_args.json, which 1 and 2 wrote.
    """
    if is_old_file:
        return "v2" if "custom_register_path" in args else "v1"
    if "swift_version" in args:
        return "v4"
    return "v3" if "train_type" in args else "v4" if "tuner_type" in args else None


def installed() -> SwiftInstall:
    """Find the installed ms-swift without importing it.

    Raises:
        RequestError: it is not installed, or older than 3.12.
    """
    return installed_in(package_of("swift"))


def installed_in(package: Path | None) -> SwiftInstall:
    """The ms-swift whose package ``swift`` is this directory.

    Raises:
        RequestError: the directory is not ms-swift's, or its version is older than 3.12.
    """
    version = _version(package / "version.py") if package else ""
    if package is None or not version:
        raise RequestError([Problem("ms-swift is not installed", INSTALL)])
    major, minor = (int(number) for number in re.findall(r"\d+", version)[:2])
    if (major, minor) < (3, 12):
        what = f"ms-swift {version} is older than 3.12, the oldest supported version"
        raise RequestError([Problem(what, INSTALL)])
    transformers = package_of("transformers")
    transformers_version = _version(transformers / "__init__.py") if transformers else ""
    return SwiftInstall(version, "v3" if major == 3 else "v4", transformers_version, package)


def version_problems() -> Iterator[Problem]:
    """Installed packages whose version the installed ms-swift does not accept, by its own metadata."""
    record = packages.record_of("ms-swift")
    if record is None:  # a source checkout
        return
    versions = {name: version for name in _SHARED if (version := packages.version(name))}

    def read() -> tuple[list[list[str]], list[Path]]:
        required = packages.requirements(record / "METADATA")
        return [list(one) for one in packages.misfits(required, versions)], [
            record / "METADATA",
            Path(__file__),
        ]

    def decode(found: list[list[str]]) -> list[packages.Misfit]:
        return [packages.Misfit(*one) for one in found]

    place = f"{record} {sorted(versions.items())}"
    version = packages.version("ms-swift")
    for one in kept(f"versions-{version}", place, read, decode):
        what = f"{one.name} {one.version} is installed, but ms-swift {version} needs {one.name}{one.wanted}"
        yield Problem(what, f'Run: pip install "{one.name}{one.wanted}"')


def missing_problems(command: Command) -> Iterator[Problem]:
    """Packages that ms-swift imports at the start of this command and that are not installed, e.g. after an
    installation without dependencies."""
    record = packages.record_of("ms-swift")
    required = packages.requirements(record / "METADATA") if record else []
    for name in packages.not_installed((*_IMPORTED, *_IMPORTED_FOR.get(command, ()))):
        wanted = next((one for one in required if re.match(rf"{name}(?![\w-])", one)), name)
        yield Problem(f"{name} is not installed, but ms-swift needs it", f'Run: pip install "{wanted}"')


_IMPORTED = ("torch", "transformers", "accelerate", "peft", "datasets", "modelscope")
"""Packages that every command of ms-swift imports."""
_IMPORTED_FOR: Mapping[Command, tuple[str, ...]] = {"rlhf": ("trl",), "deploy": ("fastapi", "uvicorn")}

_SHARED = ("transformers", "trl", "peft", "datasets")
"""Packages whose versions ms-swift limits because it relies on their internals."""


# ------------------------------------------------------------------------------------------ what is installed


def package_of(name: str) -> Path | None:
    """The directory of an installed top-level package."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _version(file: Path) -> str:
    """The value that a source file assigns to ``__version__``; "" if it assigns none."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.split("=")[1].strip(" '\"") for line in lines if line.startswith("__version__ =")), "")


def _module(*names: str) -> Any:
    """The first of these modules that exists: ms-swift 4.0 moved them."""
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(
                error.name or "?"
            ):  # the module exists, but one that it imports is missing
                raise
    return importlib.import_module(names[-1])


def _public() -> Any:
    """The module of ms-swift's public names: ``swift.llm`` until ms-swift 4.0."""
    return _module("swift.llm", "swift")


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Import ms-swift without three things that take a third of the time: the garbage collector visits all objects
    again and again, none of which is garbage, several libraries read the metadata of all installed packages, and
    transformers reads the source of all its models twice.
    """
    if "swift" in sys.modules:
        yield
        return
    metadata: Any = importlib.import_module("importlib.metadata")  # slow to import
    read, collects = metadata.packages_distributions, gc.isenabled()
    read_once = functools.cache(read)
    metadata.packages_distributions = lambda: dict(read_once())
    gc.disable()
    try:
        with _patched_on_import("transformers.utils.import_utils", _scan_models_once):
            yield
    finally:
        metadata.packages_distributions = read
        gc.freeze()  # modules are permanent: later collections need not visit them
        if collects:
            gc.enable()


@contextlib.contextmanager
def _patched_on_import(name: str, patch: Callable[[Any], None]) -> Iterator[None]:
    """Patch the module ``name`` when it is imported, before the modules that import it use it."""

    def find_spec(wanted: str, path: Any = None, target: Any = None) -> Any:
        spec = PathFinder.find_spec(wanted, path, target) if wanted == name else None
        if spec and spec.loader:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_patch(module: Any) -> None:
                execute(module)
                patch(module)

            loader.exec_module = execute_and_patch
        return spec

    finder: Any = SimpleNamespace(find_spec=find_spec)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _scan_models_once(import_utils: Any) -> None:
    """Let transformers read the source of all its models once and not twice when it is imported, and search each file
    for the last ``__all__`` without splitting it into lines. Needed until transformers finds a folder that it has
    scanned by any spelling of its path.
    """
    if not {"create_import_structure_from_path", "fetch__all__"} <= vars(import_utils).keys():
        return
    scan = functools.cache(import_utils.create_import_structure_from_path)
    read_names = import_utils.fetch__all__

    def scan_folder(path: Any) -> Any:
        given = Path(path)
        return scan(str(given.parent if given.is_file() else given))

    def read_last_names(source: str) -> list[str]:
        found: list[str] = read_names(source[source.rfind("\n__all__") + 1 :])
        return found

    import_utils.create_import_structure_from_path = scan_folder
    import_utils.fetch__all__ = read_last_names


# ------------------------------------------------------------------------------------------ names that changed


TRUST_VARIABLE = "SWIFT_TOOLKIT_TRUST_CODE"
"""Environment variable for processes that import ms-swift: "1" lets them run the code of a checkpoint."""


def trust(code: bool) -> dict[str, str]:
    """Environment variables that allow or forbid a child process to run the code of a checkpoint."""
    return {TRUST_VARIABLE: "1" if code else "0"}


def refuse_remote_code() -> None:
    """Prevent transformers from running Python code of a checkpoint, unless the environment allows it.

    ms-swift loads everything with ``trust_remote_code``. After this call that argument has no effect: transformers uses
    its own code for a model, and fails if it has none. Call it before importing ms-swift. Needed until ms-swift takes
    ``trust_remote_code`` as an argument.
    """
    if os.environ.get(TRUST_VARIABLE) == "1":
        return
    from transformers import dynamic_module_utils as modules

    def resolve(trusted: Any, model: Any, has_own: bool, has_remote: bool, *_: Any, **__: Any) -> bool:
        if has_remote and not has_own:
            raise ValueError(_UNTRUSTED.format(model))
        return False

    def run(name: Any, module: Any, *_: Any, **__: Any) -> Any:
        raise ValueError(_UNTRUSTED.format(f"{module} ({name})"))

    patches: dict[str, Callable[..., bool]] = {
        "resolve_trust_remote_code": resolve,
        "get_class_in_module": run,
    }
    originals = {name: getattr(modules, name) for name in patches}
    for module in list(sys.modules.values()):
        for name, patch in patches.items():
            if getattr(module, "__dict__", {}).get(name) is originals[name]:
                setattr(module, name, patch)


_UNTRUSTED = (
    "{} holds Python code that must run to load it. Read that code; if you trust it, add --trust-code."
)


@_importing()
def tolerate_failed_login() -> None:
    """Do not let a failed login at ModelScope, for example without network, end a run that may not need it.

    ms-swift logs in whenever MODELSCOPE_API_TOKEN is set. Actions that need the login, such as pushing a model, log in
    again and fail with their own error. Needed until ms-swift logs in only when necessary.
    """
    hub = _module("swift.hub.hub").MSHub
    log_in, create = hub.try_login.__func__, hub.create_model_repo.__func__

    def try_login(cls: Any, token: str | None = None) -> bool:
        try:
            return bool(log_in(cls, token))
        except Exception as error:
            print(
                f"The login at ModelScope failed ({type(error).__name__}); continuing without it.", flush=True
            )
            return False

    def create_model_repo(cls: Any, repo_id: str, token: str | None = None, private: bool = False) -> Any:
        log_in(cls, token)
        return create(cls, repo_id, token, private)

    hub.try_login, hub.create_model_repo = classmethod(try_login), classmethod(create_model_repo)


@_importing()
def template_api(trust_code: bool = False) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """ms-swift's ``get_processor`` and ``get_template`` with their arguments of 4.x. Until ms-swift 4.0 the first was
    part of ``get_model_tokenizer``, and the second took the type before the processor.

    Args:
        trust_code: let them run the Python code of a model.
    """
    spare_imports()
    if not trust_code:
        refuse_remote_code()
    public = _public()
    if not hasattr(public, "get_model_tokenizer"):
        return _module("swift.model").get_processor, public.get_template

    def get_processor_of_3(model: str, **settings: Any) -> Any:
        return public.get_model_tokenizer(model, load_model=False, **settings)[1]

    def get_template_of_3(processor: Any, template_type: str | None, **settings: Any) -> Any:
        return public.get_template(template_type or processor.model_meta.template, processor, **settings)

    return get_processor_of_3, get_template_of_3


@dataclass(frozen=True, kw_only=True)
class TemplateFacts:
    """What the template of a model adds to answers, and which strings its tokenizer reads as special tokens.

    Args:
        end: the tokens after the last answer.
        stops: tokens that end an answer.
        specials: strings that become one special token.
        empty_thought: text put before an answer without a thinking block; "" if there is none.
    """

    end: tuple[int, ...]
    stops: frozenset[int]
    specials: frozenset[str]
    empty_thought: str


def template_facts(template: Any) -> TemplateFacts:
    """The fields of ms-swift's templates that 3.12 and 4.x have under the same names."""
    meta, tokenizer = template.template_meta, template.tokenizer
    end = tuple(template._encode_context_list(meta.suffix)[0]) if meta.suffix else ()
    added = {one.content: number for number, one in tokenizer.added_tokens_decoder.items() if one.special}
    own = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    special = {**added, **dict(own)}
    single = {special[word] for word in meta.stop_words if isinstance(word, str) and word in special}
    stops = {tokenizer.eos_token_id, *single, *set(end).intersection(special.values())}
    return TemplateFacts(
        end=end,
        stops=frozenset(one for one in stops if isinstance(one, int)),
        specials=frozenset(map(str, special)),
        empty_thought=getattr(meta, "non_thinking_prefix", "") or "",
    )


@_importing()
def inference_api() -> SimpleNamespace:
    """The parts of ms-swift needed to query a model. Until ms-swift 4.0 its pipelines were in ``swift.llm``."""
    spare_imports()
    refuse_remote_code()
    tolerate_failed_login()
    names = ("InferRequest", "RequestConfig", "AdapterRequest")
    pipeline = _module("swift.pipelines.infer", "swift.llm.infer")
    public = _public()
    return SimpleNamespace(SwiftInfer=pipeline.SwiftInfer, **{name: getattr(public, name) for name in names})


@_importing()
def serving_api() -> SimpleNamespace:
    """The parts of ms-swift needed to serve a model. Until ms-swift 4.0 its pipelines were in ``swift.llm``."""
    spare_imports()
    refuse_remote_code()
    tolerate_failed_login()
    names = ("AdapterRequest", "DeployArguments", "InferRequest", "RequestConfig")
    pipeline = _module("swift.pipelines.infer.deploy", "swift.llm.infer.deploy")
    public, utils = _public(), _module("swift.utils")
    return SimpleNamespace(
        SwiftDeploy=pipeline.SwiftDeploy,
        parse_args=utils.parse_args,
        **{name: getattr(public, name) for name in names},
    )


@_importing()
def export_function() -> Callable[[list[str]], Any]:
    """ms-swift's ``export_main``, which leaves a merged model unquantised: until ms-swift 4.7 it reads ``quant_method``
    from the args.json of an adapter that was trained on a quantised base, and quantises the merged model again.
    """
    refuse_remote_code()
    tolerate_failed_login()
    module = sys.modules[_public().export_main.__module__]
    _untie_adapted_embeddings(sys.modules[module.merge_lora.__module__])

    def export(arguments: list[str]) -> Any:
        run = module.SwiftExport(arguments)
        if run.args.merge_lora:
            run.args.quant_method = None
        return run.main()

    return export


def _untie_adapted_embeddings(module: Any) -> None:
    """Let a merge store input and output embeddings separately if they are tied and an adapter changes one of them, or
    each differently. Needed until ms-swift unties them itself; it does so only if both are in modules_to_save.
    """
    config_of = module.HfConfigFactory

    def untie(model: Any) -> None:
        import torch
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        ends = model.get_input_embeddings(), model.get_output_embeddings()
        adapted = any(isinstance(end, (BaseTunerLayer, ModulesToSaveWrapper)) for end in ends)
        if not adapted or not config_of.get_config_attr(model.config, "tie_word_embeddings"):
            return
        output = getattr(ends[1], "base_layer", None) or getattr(ends[1], "original_module", ends[1])
        output.weight = torch.nn.Parameter(output.weight.detach().clone(), requires_grad=False)
        config_of.set_config_attr(model.config, "tie_word_embeddings", False)

    module.check_tie_word_embeddings = untie


# ------------------------------------------------------------------------------------------ faster imports


def spare_imports() -> None:
    """Import modules that ms-swift imports, without those that its libraries need only for other models and other runs.

    Call it once, before importing ms-swift. A skipped module is imported when it is first used. Needed until
    transformers imports the losses of object detectors on first use and bitsandbytes compiles its kernels on first use.
    """
    if "swift" in sys.modules:
        return
    with contextlib.suppress(Exception):  # the code that needs it reports the error
        _import_losses()
    if importlib.util.find_spec("bitsandbytes") and "bitsandbytes" not in sys.modules:
        with contextlib.suppress(Exception):
            _import_bitsandbytes()


def spare_deepspeed() -> None:
    """Let accelerate look for a model inside DeepSpeed's only if DeepSpeed is in use: it imports it to compare classes,
    which takes 0.3 s where it is installed."""
    other: Any = importlib.import_module("accelerate.utils.other")
    other.is_deepspeed_available = lambda: "deepspeed" in sys.modules


def _import_losses() -> None:
    """Import transformers' table of losses without the modules of its object detectors, which import scipy."""
    spec = importlib.util.find_spec("transformers.loss")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("loss_*.py")]
    names = {f"transformers.loss.{file.stem}" for file in files} - {"transformers.loss.loss_utils"}
    stand_ins = {name: _stand_in(name) for name in names - sys.modules.keys()}
    sys.modules.update(stand_ins)
    try:
        importlib.import_module("transformers.loss.loss_utils")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _stand_in(module: str) -> ModuleType:
    """A module whose functions import the real module when they are called."""

    def later(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(module), name)(*args, **kwargs)

        if name.startswith("__"):
            raise AttributeError(name)
        call.__module__, call.__name__ = module, name
        return call

    made = ModuleType(module)
    made.__getattr__ = later  # type: ignore[method-assign]
    return made


def _import_bitsandbytes() -> None:
    """Import bitsandbytes, which compiles functions on import and so imports all of ``torch._inductor``; here each
    function is compiled when first called."""
    import torch

    compile_now = torch.compile

    def deferred(function: Any = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(deferred, **options)
        compiled = functools.cache(lambda: compile_now(function, **options))
        return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = deferred
    try:
        importlib.import_module("bitsandbytes")
    finally:
        torch.compile = compile_now


_MAINS = {"sft": ("sft_main",), "pt": ("pretrain_main", "pt_main"), "rlhf": ("rlhf_main",)}
"""Command -> the function that carries it out; the second name is the one until ms-swift 4.0."""


@_importing()
def train_function(command: str, arguments: list[str]) -> Any:
    """ms-swift's training function for ``command``: sft, pt or rlhf."""
    if "--tuner_backend=unsloth" in arguments:
        import unsloth  # noqa: F401  # must be imported before transformers
    spare_imports()
    refuse_remote_code()
    tolerate_failed_login()
    public = _public()
    return next(getattr(public, name) for name in _MAINS[command] if hasattr(public, name))


def default_callbacks() -> list[Any]:
    """The list of callbacks that every Trainer gets. ms-swift replaces it when its trainers are imported (until
    ms-swift 4.0 in ``swift.trainers.callback``), so append to it only afterwards."""
    _module("swift.trainers.patcher", "swift.trainers.callback")
    callbacks: list[Any] = _module("transformers.trainer").DEFAULT_CALLBACKS
    return callbacks


@_importing()
def argument_parser(command: Command) -> tuple[type, Any]:
    """ms-swift's class for a command's arguments, and its parser for them.

    The annotations of the class can be read only with ms-swift's patch of transformers; needed until transformers can
    read them itself.
    """
    module, name = arguments_class(command, installed().line)
    cls = getattr(importlib.import_module(module), name)
    with _module("swift.utils.utils")._patch_get_type_hints():
        return cls, _module("transformers").HfArgumentParser([cls])


_CLASSES: dict[Command, dict[Line, str]] = {
    "sft": {"v3": "TrainArguments", "v4": "SftArguments"},
    "pt": {"v3": "TrainArguments", "v4": "PretrainArguments"},
    "rlhf": {"v3": "RLHFArguments", "v4": "RLHFArguments"},
    "infer": {"v3": "InferArguments", "v4": "InferArguments"},
    "deploy": {"v3": "DeployArguments", "v4": "DeployArguments"},
    "export": {"v3": "ExportArguments", "v4": "ExportArguments"},
    "eval": {"v3": "EvalArguments", "v4": "EvalArguments"},
}


def arguments_class(command: Command, line: Line) -> tuple[str, str]:
    """The module and the name of the class of a command's arguments."""
    return {"v3": "swift.llm.argument", "v4": "swift.arguments"}[line], _CLASSES[command][line]


# ------------------------------------------------------------------------------------------ patches of ms-swift


def log_as_it_is(args: Any) -> None:
    """Log a loss that is NaN or infinite as such; transformers replaces it by an average of the others.

    Needed until ms-swift sets ``logging_nan_inf_filter`` itself.
    """
    args.logging_nan_inf_filter = False


def keep_newest_checkpoint(args: Any) -> None:
    """With ``save_total_limit`` 1 and an evaluation, keep both the newest and the best checkpoint.

    transformers removes one of them: before 5.0 the best one at each save, since then the newest one at the end.
    """
    if args.save_total_limit == 1 and str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no":
        args.save_total_limit = 2


def encode_through(dataset: Callable[..., Any], row: Callable[..., Any]) -> None:
    """Let ms-swift tokenise rows through two functions. Needed until ms-swift reports which rows it drops, and why.

    Args:
        dataset: called as ``dataset(encode, arguments, train, val, ...)``; ``encode(train, val, ...)`` is ms-swift's
            own.
        row: called as ``row(encode, row, ...)``, also in worker processes; ``encode(row, ...)`` is ms-swift's own.
    """
    pipeline = importlib.import_module(train_function("sft", []).__module__)
    sft, lazy, encode = pipeline.SwiftSft, pipeline.LazyLLMDataset, pipeline.EncodePreprocessor
    encode_dataset, init, preprocess = sft._encode_dataset, lazy.__init__, encode.preprocess

    def encoded(self: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset(functools.partial(encode_dataset, self), self.args, *args, **kwargs)

    def preprocessed(self: Any, given: Any) -> Any:
        return row(functools.partial(preprocess, self), given)

    def lazily(self: Any, rows: Any, encode_func: Any, *args: Any, **kwargs: Any) -> None:
        init(self, rows, functools.partial(row, encode_func), *args, **kwargs)

    sft._encode_dataset, encode.preprocess, lazy.__init__ = encoded, preprocessed, lazily


def limit_ppo(args: Any) -> None:
    """Let PPO take ``max_steps`` steps: TRL counts answers (``total_episodes``), and ms-swift has no argument for that.
    Needed until ms-swift passes ``max_steps`` on.

    Args:
        args: ms-swift's own arguments.
    """
    if getattr(args, "rlhf_type", None) == "ppo" and args.max_steps > 0:
        given = args.training_args
        rows = given.per_device_train_batch_size * given.gradient_accumulation_steps * given.world_size
        given.total_episodes = args.max_steps * rows


def reward_function(name: str, args: Any) -> Any | None:
    """One of ms-swift's reward functions, made as its GRPO trainer makes it, which will use this same object; None if
    it needs the model's tokenizer. Until ms-swift 4.0 a function received only the arguments that it names.

    Args:
        name: its name in ``reward_funcs``.
        args: ms-swift's own arguments.

    Raises:
        KeyError: there is no function of that name.
    """
    functions, given = _module("swift.rewards", "swift.plugin").orms, args.training_args
    if installed().line == "v4":
        made = functions[name](args=given)
    else:
        wanted = set(inspect.signature(functions[name].__init__).parameters) - {"self", "args", "kwargs"}
        if "tokenizer" in wanted:
            return None
        made = functions[name](**{key: getattr(given, key) for key in wanted if hasattr(given, key)})
    functions[name] = lambda *_, **__: made
    return made


def trainer_state() -> Any:
    """The state of a training that has not started."""
    return _module("transformers").TrainerState()


def before_the_model(look: Callable[[Any, Callable[[], Any]], None]) -> None:
    """Call ``look`` once, before the model is loaded, to examine what a training run would do. Needed until ms-swift
    reads its data before the model.

    Args:
        look: receives ms-swift's own arguments, and a function that makes a separate template from them.
    """
    sft = _module("swift.pipelines.train.sft", "swift.llm.train.sft").SwiftSft
    rlhf = _module("swift.pipelines.train.rlhf", "swift.llm.train.rlhf").SwiftRLHF
    looked = False

    def laid_over(prepare: Callable[..., Any]) -> Callable[..., Any]:
        def prepared(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal looked
            if not looked:
                looked = True
                look(self.args, functools.partial(template_of, self.args))
            return prepare(self, *args, **kwargs)

        return prepared

    def template_of(args: Any) -> Any:
        return args.get_template(args.get_model_processor(load_model=False)[1])

    for pipeline in (sft, rlhf):
        pipeline._prepare_model_tokenizer = laid_over(pipeline._prepare_model_tokenizer)


def keep_rows(open_folder: Callable[[Any, Any], Path | None], give_up: Callable[[], None]) -> None:
    """Let ms-swift keep the rows that it converted in a folder of the caller's choice. Needed until ms-swift's cache
    keys cover everything that the rows depend on: 4.6 identifies a file by its path and time, and a plugin by its name.

    Args:
        open_folder: from ms-swift's arguments and template to the folder; None lets ms-swift decide. It may replace the
            data sets in the arguments until the rows are prepared.
        give_up: called when the disk of the folder is full, before all rows are read and converted again elsewhere.
    """
    pipeline = importlib.import_module(train_function("sft", []).__module__)
    prepare = pipeline.SwiftSft._prepare_dataset

    def prepared(self: Any) -> Any:
        args = self.args
        given = {name: getattr(args, name) for name in ("load_from_cache_file", "dataset", "val_dataset")}
        folder = open_folder(args, self.template)
        if folder is None:
            return prepare(self)
        args.load_from_cache_file = True
        try:
            with _rows_kept_in(folder):
                return prepare(self)
        except Exception as error:
            if not is_disk_full(error):
                raise
            print(f"rows are not kept: {error}", flush=True)
        finally:
            vars(args).update(given)
        give_up()
        return prepare(self)

    pipeline.SwiftSft._prepare_dataset = prepared


def measure_rows_at_once() -> None:
    """Let ms-swift read the lengths of all rows at once to print their mean. Needed until ms-swift does so: 4.6 reads
    them row by row, 9 s for a million rows."""
    pipeline = importlib.import_module(train_function("sft", []).__module__).SwiftSft
    own = pipeline._stat_dataset

    def measured(dataset: Any) -> Any:
        lengths = row_lengths(dataset)
        return own(dataset if lengths is None else types.SimpleNamespace(packed_length=lengths))

    pipeline._stat_dataset = staticmethod(measured)


def convert_rows_here() -> None:
    """Let ms-swift convert rows in this process where it asks for one process, as ``datasets`` did before 4.0; now it
    starts a process and a server for each conversion, 0.5 s in all. The state of the random numbers stays as it is."""
    from datasets import Dataset

    own = Dataset.map

    def map_here(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("num_proc") != 1:
            return own(self, *args, **kwargs)
        with _random_numbers_kept():
            return own(self, *args, **{**kwargs, "num_proc": None})

    Dataset.map = map_here


@contextlib.contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Restore the state of the random numbers of Python, numpy and torch at the end."""
    import random

    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def _rows_kept_in(folder: Path) -> Iterator[None]:
    """Write the Arrow files that ms-swift makes to ``folder`` instead of ModelScope's cache."""
    readers = [
        _module("swift.dataset.loader", "swift.llm.dataset.loader"),
        _module("swift.dataset.preprocessor.core", "swift.llm.dataset.preprocessor.core"),
    ]
    own = [reader.get_cache_dir for reader in readers]
    for reader in readers:
        reader.get_cache_dir = lambda *_: str(folder)
    try:
        yield
    finally:
        for reader, function in zip(readers, own, strict=True):
            reader.get_cache_dir = function


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that a disk is full."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if full or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def stop_generating(template: Any, gone: Callable[[], Callable[[], bool]]) -> None:
    """Let a generation of the engine pt end at its next token. Needed until ms-swift takes stopping criteria with a
    request.

    Args:
        template: the template that generates.
        gone: called when a generation starts; it returns a function that is called at every token and ends the
            generation by returning True.
    """
    prepare = template.prepare_generate_kwargs

    def prepare_stoppable(generate_kwargs: Generating, **kwargs: Any) -> Generating:
        from torch import full

        stop, prepared = gone(), prepare(generate_kwargs, **kwargs)
        prepared["stopping_criteria"].append(
            lambda ids, scores, **_: full((len(ids),), stop(), device=ids.device)
        )
        return dict(prepared)

    template.prepare_generate_kwargs = prepare_stoppable


def fetch_through(engine: Any, fetch: Callable[[], Any]) -> Callable[[], Any]:
    """Let the worker of ms-swift's own engine take its next batch from ``fetch``; returns the original method. Needed
    until ms-swift batches requests that arrive together."""
    own: Callable[[], Any] = engine._fetch_infer_requests
    engine._fetch_infer_requests = fetch
    return own


def repair_generation(template: Any) -> None:
    """Make ms-swift generate batches with an adapter, and end a stream whose generation failed.

    ms-swift names the adapter once per batch, but PEFT needs it for every sequence; and after a failed generation
    ms-swift waits forever for tokens. Needed until ms-swift fixes both; 4.6 fixes neither.
    """
    generate = template.generate

    def patched(model: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("adapter_names"):
            config = kwargs["generation_config"]
            times = len(kwargs["attention_mask"]) * max(config.num_return_sequences, config.num_beams)
            kwargs["adapter_names"] = kwargs["adapter_names"] * times
        try:
            return generate(model, *args, **kwargs)
        except Exception as error:
            if "streamer" not in kwargs:
                raise
            kwargs["streamer"].put(_Failed(error))
            return None

    template.generate = patched


class _Failed:
    """Takes the place of tokens in the stream, and raises when it is read."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @property
    def ndim(self) -> int:
        """Dimensions of the tokens, 1 or 2."""
        raise self._error


def keep_random_numbers(evaluated: bool) -> None:
    """Let a resumed training draw the random numbers that it would have drawn without the interruption.

    torch draws one number when the workers of a data loader start. Workers are persistent, so an uninterrupted training
    draws it only at its first epoch and its first evaluation; a resumed training would draw it again at the first use
    in the new process, after the random state was restored, and its dropout would differ from there on. Needed until
    torch or transformers gives each loader its own random numbers.

    Args:
        evaluated: whether the training had evaluated before the checkpoint.
    """
    from torch import get_rng_state, set_rng_state
    from torch.utils.data import dataloader
    from transformers import Trainer

    begin, evaluate, first_evaluation = dataloader._BaseDataLoaderIter.__init__, Trainer._evaluate, False

    def started(self: Any, loader: Any) -> None:
        state = get_rng_state()
        begin(self, loader)
        if loader.persistent_workers and not first_evaluation:
            set_rng_state(state)

    def evaluated_by(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal first_evaluation, evaluated
        first_evaluation, evaluated = not evaluated, True
        try:
            return evaluate(self, *args, **kwargs)
        finally:
            first_evaluation = False

    dataloader._BaseDataLoaderIter.__init__, Trainer._evaluate = started, evaluated_by


def read_random_states_of_numpy_1() -> None:
    """Let torch read the random state of a checkpoint that numpy 1 wrote; numpy 2 has another name for the function
    that makes an array. Needed until transformers allows both."""
    from numpy import empty
    from torch.serialization import add_safe_globals

    make_array = empty(0).__reduce__()[0]
    add_safe_globals([(make_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")])


def keep_running_means() -> None:
    """Save in checkpoints what was summed up since the last log, so that the first loss logged after a resume is the
    mean over all of its steps. Needed until transformers 5 saves the sum, and ms-swift that of its own metrics."""
    from transformers import Trainer

    save, load = Trainer._save_rng_state, Trainer._load_rng_state
    _keep_sum_of_losses(Trainer)

    def saved(self: Any, output_dir: str) -> None:
        save(self, output_dir)
        train = getattr(self, "custom_metrics", {}).get("train", {})
        means = {name: [one.state, one.count] for name, one in train.items() if hasattr(one, "count")}
        loss = [self._tr_loss.item(), self._globalstep_last_logged] if hasattr(self, "_tr_loss") else None
        write_json(_running_means(self, output_dir), {"loss": loss, "metrics": means})

    def loaded(self: Any, checkpoint: str) -> None:
        load(self, checkpoint)
        file = _running_means(self, checkpoint or "")
        if not file.is_file() or self.args.resume_only_model:
            return
        kept = json.loads(file.read_text())
        if kept["loss"]:
            _add_to_sum_of_losses(self, kept["loss"][0])
            self._globalstep_last_logged = kept["loss"][1]
        for name, (state, count) in kept["metrics"].items():
            metric = self.custom_metrics["train"][name]
            metric.state, metric.count = state, count

    Trainer._save_rng_state, Trainer._load_rng_state = saved, loaded


def _keep_sum_of_losses(trainer_class: Any) -> None:
    """Let a trainer have the sum of the losses since the last log as ``_tr_loss``. Needed until transformers 5; in 4
    the sum is a variable of the training loop."""
    log = trainer_class._maybe_log_save_evaluate

    def logged(self: Any, tr_loss: Any, *args: Any, **kwargs: Any) -> Any:
        self._tr_loss = tr_loss
        return log(self, tr_loss, *args, **kwargs)

    trainer_class._maybe_log_save_evaluate = logged


def _add_to_sum_of_losses(trainer: Any, loss: float) -> None:
    """Start the sum of the losses with ``loss``. Until transformers 5 the first step after a resume brings it along."""
    if hasattr(trainer, "_tr_loss"):
        trainer._tr_loss += loss
        return

    def first_step(*args: Any, **kwargs: Any) -> Any:
        del trainer.training_step
        return trainer.training_step(*args, **kwargs) + loss

    trainer.training_step = first_step


def _running_means(trainer: Any, checkpoint: str) -> Path:
    return Path(checkpoint) / f"running_means_{trainer.args.process_index}.json"


def keep_epoch() -> None:
    """Let a training that resumes within an epoch use the remaining rows of that epoch. To skip rows, ms-swift 3 makes
    a new data loader, which starts with the order of the first epoch. Needed until ms-swift 4."""
    module: Any = importlib.import_module("swift.trainers.mixin")
    if hasattr(module.SwiftMixin, "_restore_dataloader_epoch"):
        return
    make = module.DataLoaderMixin.get_train_dataloader

    def get_train_dataloader(self: Any, skip_batches: int = 0) -> Any:
        made = make(self, skip_batches)
        sampler: Any = getattr(getattr(made, "batch_sampler", None), "batch_sampler", None)
        if skip_batches and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(self.state.epoch))
        return made

    module.DataLoaderMixin.get_train_dataloader = get_train_dataloader


ABANDONED_SECONDS = 120.0
"""Age in seconds from which a build lock that no process of this machine holds open counts as abandoned; until then a
process of another machine that shares the directory may hold it."""


def take_over_build_locks() -> None:
    """Let DeepSpeed build its extensions although an earlier process was killed during the build: other processes would
    wait forever for the lock it left. Needed until torch's ``FileBaton`` checks that the owner is alive."""
    from torch.utils.file_baton import FileBaton

    acquire = FileBaton.try_acquire

    def try_acquire(self: Any) -> bool:
        lock = Path(self.lock_file_path)
        while not acquire(self):
            if _is_open(lock):
                return False  # another process is building
            with contextlib.suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > ABANDONED_SECONDS:
                    lock.unlink()
            time.sleep(0.2)
        return True

    FileBaton.try_acquire = try_acquire


def _is_open(file: Path) -> bool:
    """Whether a process of this machine has ``file`` open; False if that cannot be determined."""
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if handle.readlink() == file:
                return True
    return False


# ------------------------------------------------------------------------------------------ patches for micro-batches

Partition = Callable[[Sequence[int], int, int], list[list[list[int]]]]
"""Takes the tokens of an optimiser step's rows in ms-swift's order, the number of ranks and the rows per micro-batch;
returns the micro-batches of each rank, as indices."""


def share_rows(choose: Callable[[Any], tuple[Partition, Sequence[int]] | None]) -> None:
    """Let a function decide which rows of an optimiser step share a micro-batch, and on which rank. Needed until
    ms-swift balances rows within a step itself (4.6 has ``group_by_length``, which changes the rows of the steps).

    Every step keeps the rows of ms-swift's sampler, also after a resume within an epoch.

    Args:
        choose: called with a trainer when it makes its data loader; returns the function and the tokens of all rows, or
            None to keep ms-swift's order.
    """
    module: Any = importlib.import_module("swift.trainers.mixin")
    loader, sampler = module.DataLoaderMixin, module.BatchSamplerShard
    make, iterate = loader.get_train_dataloader, sampler.__iter__

    def get_train_dataloader(self: Any, skip_batches: int = 0) -> Any:
        made = make(self, skip_batches)
        inner = getattr(made, "batch_sampler", None)
        inner = getattr(inner, "batch_sampler", inner)  # of accelerate's SkipBatchSampler
        if isinstance(inner, sampler) and (chosen := choose(self)) is not None:
            inner.shared = (*chosen, self.args, skip_batches)
        return made

    def shared(self: Any) -> Iterator[list[int]]:
        return _micro_batches(self, iterate) if hasattr(self, "shared") else iterate(self)

    loader.get_train_dataloader, sampler.__iter__ = get_train_dataloader, shared


def row_lengths(dataset: Any, estimate: Callable[[Sequence[str]], int] | None = None) -> list[int] | None:
    """Tokens of every row (the longer one of a pair); None if not known. 3.12 calls the column ``length``.

    Args:
        dataset: the dataset of a trainer.
        estimate: estimates the tokens of texts, for rows that ms-swift has not counted (``lazy_tokenize``).
    """
    rows = _rows_of(dataset)
    names = getattr(rows, "column_names", None) or ()
    name = next((name for name in ("lengths", "length") if name in names), None)
    if name is not None:
        return [max(length) if isinstance(length, list) else length for length in rows[name][:]]
    if estimate is None or "messages" not in names or not hasattr(rows, "iter"):
        return None
    return [_estimated(row, estimate) for row in rows]


def _estimated(row: Any, estimate: Callable[[Sequence[str]], int]) -> int:
    chosen = [str(message["content"]) for message in row["messages"]]
    rejected = [str(message["content"]) for message in row.get("rejected_messages") or ()]
    other = [*chosen[:-1], str(row.get("rejected_response") or "")]
    return max(estimate(chosen), estimate(rejected), estimate(other) if other[-1] else 0)


def _rows_of(dataset: Any) -> Any:
    """The rows with their columns, also of a LazyLLMDataset, which encodes rows only on access."""
    return dataset if hasattr(dataset, "column_names") else getattr(dataset, "dataset", dataset)


def _micro_batches(sampler: Any, iterate: Callable[[Any], Iterator[list[int]]]) -> Iterator[list[int]]:
    """This rank's micro-batches of an epoch, with empty ones for the steps that the data loader will skip."""
    partition, lengths, arguments, skipped = sampler.shared
    ranks, accumulation = sampler.world_size, arguments.gradient_accumulation_steps
    whole = copy.copy(sampler)  # as if a single rank had all rows
    whole.__class__ = type("Whole", (type(sampler),), {"rank": 0, "world_size": 1})
    whole.total_samples, whole.batch_size = sampler.total_samples * ranks, sampler.batch_size * ranks
    batches = iterate(whole)
    while step := list(itertools.islice(batches, accumulation)):
        skipped -= len(step)
        if skipped >= 0:
            yield from ([] for _ in step)
            continue
        rows = [row for batch in step for row in batch]
        shares = partition([lengths[row] for row in rows], ranks, sampler.batch_size)
        yield from ([rows[index] for index in micro_batch] for micro_batch in shares[sampler.rank])


# ------------------------------------------------------------------------------------------ patches for faster steps


def select_learned_logits() -> None:
    """Let supervised training compute logits only for the learned tokens of micro-batches with several rows. Needed
    until ms-swift does so: 4.6 does it for micro-batches of one row, and otherwise computes the logits of all rows from
    the first learned token of any of them on, a matrix product for each row.
    """
    mixin: Any = importlib.import_module("swift.trainers.mixin").SwiftMixin
    own = mixin.prepare_logits_to_keep

    def prepare(self: Any, inputs: Generating) -> None:
        rows, learns = len(inputs["labels"]), self.model.training and _learns_from_tokens_alone(self)
        if rows == 1 or not learns:
            own(self, inputs)
            return
        if not hasattr(self, "learned_logits"):
            self.learned_logits = _LearnedLogits(self.template.get_base_model(self.model))
        if not self.learned_logits.select(inputs):
            own(self, inputs)

    mixin.prepare_logits_to_keep = prepare


def _learns_from_tokens_alone(trainer: Any) -> bool:
    """Whether a trainer's loss and metrics do not depend on the position of a token in its row."""
    args = trainer.args
    return (
        supervises_text(trainer)
        and trainer.compute_loss_func is None
        and args.acc_strategy == "token"
        and args.tuner_backend != "unsloth"
        and args.n_gpu <= 1
        and len(set(getattr(trainer.model, "hf_device_map", {}).values())) <= 1
        and not (args.enable_channel_loss or args.use_liger_kernel)
    )


def supervises_text(trainer: Any) -> bool:
    """Whether a trainer learns texts from labels with a model as it is: not compiled, and whole on each device."""
    template = trainer.template
    return (
        type(trainer).__name__ == "Seq2SeqTrainer"
        and not (template.model_meta.is_multimodal or template.is_encoder_decoder)
        and not trainer.args.torch_compile
        and not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)
    )


class _LearnedLogits:
    """Reduces the input of a model's output embedding to the tokens that predict learned ones.

    Args:
        model: the model, without adapters around it.
    """

    def __init__(self, model: Any) -> None:
        self._mask: Any = None
        head = model.get_output_embeddings()
        self._works = head is not None and _ends_in(head, model)
        if self._works:
            head.register_forward_pre_hook(self._reduce)

    def select(self, inputs: Generating) -> bool:
        """Change labels and weights of a micro-batch to those of its learned tokens, behind one without a label, which
        a shift by one token drops. False, and no change, if the model computes its logits in a way of its own."""
        from torch.nn.functional import pad

        if not self._works:
            return False
        labels = inputs["labels"]
        learned = labels[:, 1:] != -100
        self._mask = pad(learned, (0, 1), value=False)
        self._mask[-1, -1] = True
        inputs["labels"] = pad(labels[:, 1:][learned], (1, 0), value=-100)[None]
        if inputs.get("loss_scale") is not None:
            inputs["loss_scale"] = pad(inputs["loss_scale"][:, 1:][learned], (1, 0), value=0)[None]
        return True

    def _reduce(self, head: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        mask, self._mask = self._mask, None
        return None if mask is None else (given[0][mask][None], *given[1:])


def _ends_in(head: Any, model: Any) -> bool:
    """Whether a model computes its logits by one call of ``head`` with one vector for each token to keep. It computes a
    few tokens to see that; the random numbers of the training stay the same."""
    import torch

    calls: list[tuple[int, ...]] = []
    hook = head.register_forward_pre_hook(lambda _, given: calls.append(tuple(given[0].shape[:-1])))
    device = next(model.parameters()).device
    tokens = torch.ones((2, 3), dtype=torch.long, device=device)
    try:
        with torch.no_grad(), torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            model(input_ids=tokens, attention_mask=tokens, logits_to_keep=2)
    except Exception:
        return False
    finally:
        hook.remove()
    return calls == [(2, 2)]


def around_training_steps(
    enter: Callable[[Any, Generating], contextlib.AbstractContextManager[None]],
) -> None:
    """Compute every micro-batch of supervised training inside the context that ``enter`` returns for the trainer and
    the micro-batch."""
    trainer: Any = _module("swift.trainers.seq2seq_trainer", "swift.trainers.trainers").Seq2SeqTrainer
    own = trainer.training_step

    def training_step(self: Any, model: Any, inputs: Generating, *args: Any, **kwargs: Any) -> Any:
        with enter(self, inputs):
            return own(self, model, inputs, *args, **kwargs)

    trainer.training_step = training_step


# ------------------------------------------------------------------------------------------ patches for serving


def ignore_file_tags(template: Any) -> None:
    """Prevent ms-swift from opening files that a text names as ``<img>file</img>``.

    Needed until this can be switched off in ms-swift (4.6 does it for every multimodal model if a request has no
    image).
    """
    template._replace_image_tags = lambda inputs: None


def encode_plain_texts(template: Any) -> None:
    """Make ``template.encode`` treat a request with ``plain`` set as a text to continue, without the chat format.

    Needed until ms-swift's engines accept a request without a chat template (4.6 has one template per engine).
    """
    encode, plain = template.encode, copy.copy(template)
    plain.template_meta = template.template_meta.to_generate_template_meta()
    plain.template_meta.init(template.tokenizer)
    plain.use_chat_template = False
    for name in ("encode", "_replace_image_tags"):
        plain.__dict__.pop(name, None)
    ignore_file_tags(plain)

    def either(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not getattr(inputs, "plain", False):
            return encode(inputs, *args, **kwargs)
        plain.mode, plain.model = template.mode, template.model
        return plain.encode(inputs, *args, **kwargs)

    template.encode = either


Hook = Callable[[Generating], Generating]
"""Called with the inputs of a batch before generation; returns them, possibly changed."""


def sampling_hook(
    backend: str,
    *,
    min_p: float | None,
    min_tokens: int,
    ignore_eos: bool,
    stop: Sequence[str],
    seed: int | None,
) -> Hook:
    """A hook that sets what ms-swift's RequestConfig lacks or does not pass on.

    Needed until RequestConfig passes these fields to every engine (4.6 passes ``min_p`` and ``seed`` only to vLLM).

    Args:
        backend: ``pt`` or ``vllm``; others support none of these.
        min_p: minimum probability, relative to the most likely token's.
        min_tokens: minimum length of the answer, in tokens.
        ignore_eos: continue after the end of the answer.
        stop: the request's own stop strings.
        seed: seed of the random numbers.
    """

    def set_vllm(kwargs: Generating) -> Generating:
        config = kwargs["generation_config"]
        config.min_tokens, config.ignore_eos = min_tokens, ignore_eos
        if ignore_eos:
            config.stop, config.stop_token_ids = list(stop), []
        return kwargs

    def set_pt(kwargs: Generating) -> Generating:
        import torch

        config = kwargs["generation_config"]
        if min_p:
            config.min_p = min_p
        if min_tokens:
            config.min_new_tokens = min_tokens
        if ignore_eos:
            config.eos_token_id = [-1]  # None would mean the model's own
            config.stop_words = list(stop) or [_NEVER_SAID]
        if seed is not None:
            torch.manual_seed(seed)
        return kwargs

    return {"pt": set_pt, "vllm": set_vllm}.get(backend, lambda kwargs: kwargs)


_NEVER_SAID = "\0\0never said\0\0"
"""Stands for an empty list of stop strings, which ms-swift would fill with the template's."""


def longest_token(tokenizer: Any) -> int:
    """The largest number of bytes of text that one token can stand for."""
    tokens = list(tokenizer.get_vocab())
    length = max(map(len, tokens))
    long = [one for one in tokens if 4 * len(one) >= length]
    longest = max(len(tokenizer.convert_tokens_to_string([one]).encode("utf-8", "replace")) for one in long)
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return max(1, longest) * (1 if normalizer is None else 4)  # a normalizer may shorten the text


def keep_first_space() -> None:
    """Prevent ms-swift from dropping the space at the start of a streamed answer.

    It counts the leading spaces before there is a token. Needed until it counts them with the first one.
    """
    try:
        from swift.llm.infer.infer_engine.utils import InferStreamer  # ms-swift 3
    except ModuleNotFoundError:
        from swift.infer_engine.utils import InferStreamer
    align = InferStreamer._align_blank_suffix

    def aligned(self: Any, response: str) -> str:
        return align(self, response) if response else response

    InferStreamer._align_blank_suffix = aligned


def has_agent_template(template: Any) -> bool:
    """Whether a template has a tool format; in ms-swift 3 every template has one."""
    return getattr(template, "_agent_template", "react_en") is not None


def dropping_hook(engine: Any, alias: str) -> Hook:
    """A hook that removes an adapter's weights between two batches, in the thread that generates."""

    def drop(kwargs: Generating) -> Generating:
        if engine._adapters_pool.pop(alias, None) is not None:
            engine.model.delete_adapter(alias)
        return kwargs

    return drop


async def drop_from_vllm(engine: Any, alias: str) -> None:
    """Remove an adapter from the processes of vLLM."""
    await engine.engine.remove_lora(engine._adapters_pool[alias].lora_int_id)
