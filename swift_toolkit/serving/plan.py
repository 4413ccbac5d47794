"""The plan of a server, made before anything heavy starts: models, names, address, limits.

``make_deployment`` is the entry point. It reads the checkpoints and the settings and raises all problems together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from swift_toolkit.config.request import read_request
from swift_toolkit.config.rules import secret_problems, slow_dtype
from swift_toolkit.config.settings import Config
from swift_toolkit.inference import plan
from swift_toolkit.inference.backend import Backend, backend_problems, choose_backend
from swift_toolkit.machine.device import Device, cpu_computes_bfloat16, find_device
from swift_toolkit.model import loading
from swift_toolkit.model.checkpoints.checkpoint import Checkpoint
from swift_toolkit.model.checkpoints.code import code_phrase
from swift_toolkit.model.merge import merge_problems as merging_problems
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.serving.access import (
    KEY_VARIABLE,
    access_problems,
    find_key,
    host_names,
    is_loopback,
    port_problems,
    tls_problems,
)
from swift_toolkit.serving.api.request import Limits
from swift_toolkit.serving.models import (
    FoundModels,
    RequestedModel,
    ServedModel,
    Type,
    adapter_name_problems,
    adapters_together,
    name_problems,
    read_models,
    served_models,
    take_asked,
)
from swift_toolkit.serving.options import ServingOptions
from swift_toolkit.serving.order import ServingOrder

Merge = Literal["no", "beside", "aside"]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A checked server that has not been started.

    Args:
        type: what is served: one adapter on its base, one whole model, or several adapters on one base.
        models: the served models, the base or whole model first.
        checkpoints: the checkpoints, in the order of the adapters.
        config: the settings, without those that the checkpoints determine.
        backend: the engine that generates.
        backend_why: why this backend was chosen.
        device: the device it runs on.
        merge: ``no``; ``beside`` to keep the merged model next to the checkpoint; ``aside`` to merge for this run
            only, because the backend cannot load the adapter.
        limits: limits of one request.
        key: the API key, None for no key. Never shown.
        options: the toolkit's own options, as given.
        log: log file for merging the adapter.
    """

    type: Type
    models: tuple[ServedModel, ...]
    checkpoints: tuple[Checkpoint, ...]
    config: Config
    backend: Backend
    backend_why: str
    device: Device
    merge: Merge
    limits: Limits
    key: str | None = field(repr=False)
    options: ServingOptions
    log: Path = Path("serve.log")

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint; the first one if there are several adapters."""
        return self.checkpoints[0]

    @property
    def names(self) -> list[str]:
        """The names that clients can request."""
        return [one.name for one in self.models if one.offered]

    @property
    def host(self) -> str:
        """The address to listen on."""
        return str(self.config.get("host"))

    @property
    def port(self) -> int:
        """The port to listen on; 0 for any free port."""
        return int(self.config.get("port"))

    @property
    def tls(self) -> bool:
        """Whether clients must use TLS."""
        return self.config.get("ssl_certfile") is not None

    def url(self, port: int | None = None) -> str:
        """The base URL for clients, with the loopback address if the server listens on every interface."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http{'s' if self.tls else ''}://{host}:{port or self.port}/v1"

    def arguments(self, model: str | None = None) -> list[str]:
        """The argument list for ms-swift's DeployArguments; ``model`` replaces the recorded model."""
        config, first = deepcopy(self.config), self.models[0]
        with_adapters = any(one.kind == "lora" for one in self.models)
        # Router applies the system prompt of each adapter by its name
        checkpoint = replace(self.checkpoint, system=None) if with_adapters else self.checkpoint
        loading.fill_model(config, checkpoint, model=model or first.path, adapter=None)
        adapters = [f"{one.name}={one.path}" for one in self.models if one.kind == "lora"]
        if adapters:
            config.fill("adapters", adapters, "named, so that requests select one by name")
        config.fill("served_model_name", first.name, "")
        return config.arguments()

    def order(self, model: str, media_folder: str) -> ServingOrder:
        """The order for the serving process, including the key; ``model`` as for `arguments`."""
        options = self.options
        return ServingOrder(
            arguments=tuple(self.arguments(model)),
            backend=self.backend.name,
            host=self.host,
            port=self.port,
            ssl_certfile=self.config.get("ssl_certfile"),
            ssl_keyfile=self.config.get("ssl_keyfile"),
            models=self.models,
            system=self.config.get("system"),
            limits=self.limits,
            max_batch_size=self.config.get("max_batch_size"),
            default_tokens=self.config.get("max_new_tokens"),
            key=self.key,
            log_requests=options.log_requests,
            allow_runtime_lora=options.allow_runtime_lora,
            adapter_dirs=tuple(str(Path(one).expanduser().resolve()) for one in options.adapter_dir),
            hosts=tuple(host_names(self.host, options.allow_origin)),
            origins=tuple(one.lower() for one in options.allow_origin),
            media_folder=media_folder,
            chat=options.chat,
            drain_seconds=options.drain_seconds,
        )

    @property
    def code(self) -> str | None:
        """How Python code in the checkpoints and their base is handled; None if there is no code."""
        found = dict.fromkeys(code for one in self.checkpoints for code in one.code)
        return code_phrase(found, any(one.trusted for one in self.checkpoints))

    def rows(self) -> list[tuple[str, str]]:
        """The deployment as names and values for the screen."""
        access = "with an API key" if self.key else "without a key"
        reach = "this machine only" if is_loopback(self.host) else "other machines"
        rows = [(one.name, str(one)) for one in self.models]
        rows += [
            ("address", f"{self.url() if self.port else 'any free port'} ({reach}, {access})"),
            ("backend", f"{self.backend.name} ({self.backend_why}) on {self.device}"),
        ]
        if self.merge != "no":
            rows.append(("merging", f"the adapter into its base, {MERGING[self.merge]}"))
        if self.code is not None:
            rows.append(("code", self.code))
        body = f"{self.limits.max_body / (1 << 20):g} MiB"
        rows.append(("limits", f"answers up to {self.limits.max_tokens} tokens, requests up to {body}"))
        if self.limits.urls:
            rows.append(("media", "fetched from public addresses"))
        warnings = [
            one for checkpoint in self.checkpoints for one in plan.served_warnings(self.config, checkpoint)
        ]
        warnings += slow_dtype(self.config, self.device)
        return [*rows, *(("warning", text) for text in dict.fromkeys(map(str, warnings)))]

    def as_dict(self) -> dict[str, object]:
        """The deployment as plain data, without the key."""
        return {
            "type": self.type,
            "models": [asdict(one) for one in self.models],
            "url": self.url(),
            "authentication": self.key is not None,
            "code": self.code,
            "backend": self.backend.name,
            "device": str(self.device),
            "merge": self.merge,
            "limits": asdict(self.limits),
            "arguments": self.arguments(),
            "sources": {name: str(setting.source) for name, setting in self.config.settings.items()},
            "notices": self.config.notices,
        }


MERGING = {
    "beside": "kept next to the checkpoint",
    "aside": "for this run: the backend cannot load this adapter",
}


def make_deployment(
    source: str | Path | Mapping[str, object] | None,
    overrides: Mapping[str, object],
    overrides_from: Literal["command line", "call"],
    options: ServingOptions,
) -> Deployment:
    """Check the request and make the plan.

    Args:
        source: settings, as a file or a mapping.
        overrides: settings that override ``source``.
        overrides_from: how messages refer to the overrides.
        options: the toolkit's own options.

    Raises:
        RequestError: with all problems.
    """
    config, problems = read_request(source, overrides, command="deploy", overrides_from=overrides_from)
    problems += [
        *_other_ways(config, options),
        *plan.generation_problems(config),
        *_option_problems(options),
        *adapter_name_problems(config),
    ]
    if options.checkpoint is not None and "adapters" in config.settings:
        problems.append(config.problem("adapters", *plan.two_models(options.checkpoint)))
    asked = take_asked(config, options)
    problems += backend_problems(asked.backend)
    found = _collect(problems, lambda: read_models(asked))
    if found is not None:
        problems += loading.naming_problems(config, found.checkpoints[0])
    config.fill("host", "127.0.0.1", "this machine only")
    config.fill("port", 8000, "")
    key = _collect(problems, lambda: find_key(options.api_key_file), instead="")
    problems += [
        *access_problems(config, options, key is not None),
        *tls_problems(config),
        *port_problems(config),
    ]
    if problems or found is None:
        raise RequestError(problems)
    return _decide(config, options, asked, found, key)


_Value = TypeVar("_Value")


def _collect(
    problems: list[Problem], find: Callable[[], _Value | None], instead: _Value | None = None
) -> _Value | None:
    """Return the result of ``find``; if it raises, add its problems to ``problems`` and return ``instead``."""
    try:
        return find()
    except RequestError as error:
        problems += error.problems
        return instead


def _decide(
    config: Config, options: ServingOptions, asked: RequestedModel, found: FoundModels, key: str | None
) -> Deployment:
    """Make the deployment of a request whose parts are valid.

    Raises:
        RequestError: the parts cannot be combined.
    """
    device = find_device()
    backend, why = choose_backend(asked.backend, found.checkpoints, device)
    merge: Merge = "no"
    if found.type == "lora" and (asked.merge or not backend.serves_adapter(found.checkpoints[0])):
        merge = "beside" if asked.merge else "aside"
    models = served_models(found, config, merge)
    problems = [*name_problems(models), *adapters_together(found, backend), *_task_problems(found)]
    if asked.merge:
        problems += _merge_problems(found)
    elif merge == "aside":
        problems += plan.aside_problems(backend, found.checkpoints[0])
    if problems:
        raise RequestError(problems)
    _fill(config, backend, device, models, options)
    return Deployment(
        type=found.type,
        models=models,
        checkpoints=found.checkpoints,
        config=config,
        backend=backend,
        backend_why=why,
        device=device,
        merge=merge,
        limits=_limits(options),
        key=key,
        options=options,
    )


def _task_problems(found: FoundModels) -> Iterator[Problem]:
    """The problem of a model that the API has no request for."""
    first = found.checkpoints[0]
    if first.output == "decision":
        what = f"{first.path} was trained for decision and cannot be served here"
        yield Problem(what, "Run it in ms-swift itself: swift infer --val_dataset.")


def _limits(options: ServingOptions) -> Limits:
    body = int(options.max_body_mb * (1 << 20))
    return Limits(
        max_tokens=options.max_tokens_limit,
        max_body=body,
        media_dir=_directory(options.media_dir),
        urls=options.allow_media_urls,
    )


def _merge_problems(found: FoundModels) -> Iterable[Problem]:
    if found.type == "lora":
        return merging_problems(found.checkpoints[0])
    do = "Remove it." if found.type == "full" else "Remove it: a merged adapter is a separate model."
    return [Problem("needs one adapter", do, "--merge-lora")]


def _fill(
    config: Config,
    backend: Backend,
    device: Device,
    models: Sequence[ServedModel],
    options: ServingOptions,
) -> None:
    """Fill in unset settings that the server needs."""
    backend.fill(config, [model.rank or 0 for model in models if model.kind == "lora"])
    config.fill("verbose", options.log_requests, "prompts are logged only with --log-requests")
    config.fill("log_interval", -1, "the server has /metrics")
    if device.kind == "cpu" and not cpu_computes_bfloat16():
        config.fill(
            "torch_dtype", "float32", "this CPU has no bfloat16 arithmetic and would be many times slower"
        )


# --- settings that have an equivalent option ----------------------------------------------------------------

_OTHER_WAYS = {
    **dict.fromkeys(("dataset", "val_dataset", "result_path", "stream", "metric"), "Remove it."),
    "load_args": "Remove it: the checkpoint's own settings are always read.",
    "verbose": "Use --log-requests.",
}


def _other_ways(config: Config, options: ServingOptions) -> Iterator[Problem]:
    if "api_key" in config.settings:
        do = f"Set the environment variable {KEY_VARIABLE}, or use --api-key-file."
        yield config.problem("api_key", "is a secret that others could read there", do)
    yield from plan.other_ways(config, _OTHER_WAYS, options.from_line)
    yield from secret_problems(config)


def _option_problems(options: ServingOptions) -> Iterator[Problem]:
    for name, least in (("max_tokens_limit", 1), ("max_body_mb", 0.001), ("drain_seconds", 0)):
        value = getattr(options, name)
        if not least <= value < float("inf"):
            yield Problem(f"must be at least {least}, not {value}", key=f"--{name.replace('_', '-')}")
    directories = [("--adapter-dir", one) for one in options.adapter_dir]
    if options.media_dir is not None:
        directories.append(("--media-dir", options.media_dir))
    for flag, directory in directories:
        if not _is_directory(directory):
            yield Problem(f"names the directory {directory}, which does not exist", key=flag)
    if options.allow_runtime_lora and not options.adapter_dir:
        do = "Name the directories from which adapters may be loaded: --adapter-dir DIR"
        yield Problem("needs --adapter-dir", do, "--allow-runtime-lora")


def _is_directory(path: str) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # such as ~nobody, or a name with 300 characters
        return False


def _directory(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().resolve())
