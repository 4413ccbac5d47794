"""What a server is to serve and how, decided before anything heavy starts: models, names, address, limits.

``make_deployment`` is the one way in. It reads the checkpoints and the settings and raises everything that is wrong
with them at once.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from swift_toolkit.config.file import ConfigFile, read_config_file
from swift_toolkit.config.request import Config, not_one_of, read_request
from swift_toolkit.config.rules import SECRETS
from swift_toolkit.inference import plan
from swift_toolkit.model.builtin import is_builtin, materialise
from swift_toolkit.model.checkpoint import Checkpoint, find_checkpoint, hub_model, read_checkpoint
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.training.automatic import Device, cpu_computes_bfloat16, find_device

Type = Literal["lora", "full", "multi-lora"]
TYPES: tuple[Type, ...] = ("lora", "full", "multi-lora")

KEY_VARIABLE = "SWIFT_API_KEY"
"""Environment variable that holds the API key."""

MIN_KEY_LENGTH = 8
"""Characters; a shorter key is a slip, such as an empty file or a placeholder."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
"""A model name that every client and every backend can take."""


@dataclass(frozen=True)
class ServedModel:
    """One name that clients can ask for.

    Args:
        name: the name.
        kind: what answers to it.
        path: the directory of the adapter or model, or a hub id.
        base: the model under an adapter.
        system: the system prompt a request without one gets; None for the template's own.
        rank: of an adapter.
    """

    name: str
    kind: Literal["base", "lora", "full", "merged"]
    path: str
    base: str | None = None
    system: str | None = None
    rank: int | None = None

    def __str__(self) -> str:
        if self.kind != "lora":
            return f"{self.path} ({self.kind})"
        return f"{self.path} (lora{f', rank {self.rank}' if self.rank else ''}, on {self.base})"


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        max_tokens: longest answer, in tokens; also the length where a request names none.
        max_body: bytes of a request.
        media_dir: the only directory from which requests may name files; None for no files at all.
        urls: whether pictures are fetched from where requests say. ms-swift 3 would fetch from this machine and its
            network too.
    """

    max_tokens: int = 4096
    max_body: int = 16 << 20
    media_dir: str | None = None
    urls: bool = True


@dataclass
class Deployment:
    """A checked server that is not started yet.

    Args:
        type: what is served: one adapter on its base, one whole model, or several adapters on one base.
        models: the names, the base or whole model first.
        checkpoints: what was read, in the order of the adapters.
        config: the settings, without what the checkpoints decide.
        backend: ``pt``, ``vllm``, ``sglang`` or ``lmdeploy``.
        backend_why: why it is this backend.
        device: what it runs on.
        merge: ``no``; ``beside`` the checkpoint, to be kept; ``aside``, because the backend takes no adapter.
        limits: of one request.
        key: the API key, None without one. Never shown.
        flags: the toolkit's own, as given.
    """

    type: Type
    models: list[ServedModel]
    checkpoints: list[Checkpoint]
    config: Config
    backend: str
    backend_why: str
    device: Device
    merge: Literal["no", "beside", "aside"]
    limits: Limits
    key: str | None = field(repr=False)
    flags: Mapping[str, Any]
    log: Path = Path("serve.log")

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, of several adapters the first."""
        return self.checkpoints[0]

    @property
    def host(self) -> str:
        """The address to listen on."""
        return str(self.config.get("host"))

    @property
    def port(self) -> int:
        """The port to listen on; 0 for any that is free."""
        return int(self.config.get("port"))

    @property
    def tls(self) -> bool:
        """Whether clients must speak TLS."""
        return self.config.get("ssl_certfile") is not None

    def url(self, port: int | None = None) -> str:
        """The base URL for clients; an address that means every interface is named by this machine's loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http{'s' if self.tls else ''}://{host}:{port or self.port}/v1"

    def arguments(self, model: str | None = None) -> list[str]:
        """The argument list for ms-swift's DeployArguments; ``model`` stands in for the recorded model."""
        config, first = deepcopy(self.config), self.models[0]
        with_adapters = any(one.kind == "lora" for one in self.models)
        # the system prompt of an adapter goes with its name: see serving.py
        checkpoint = replace(self.checkpoint, system=None) if with_adapters else self.checkpoint
        plan.fill_model(config, checkpoint, model=model or first.path, adapter=None)
        adapters = [f"{one.name}={one.path}" for one in self.models if one.kind == "lora"]
        if adapters:
            config.fill("adapters", adapters, "named, so that the name asked for decides")
        config.fill("served_model_name", first.name, "")
        return config.arguments()

    def order(self, model: str) -> dict[str, Any]:
        """What the serving process is told, the key included; see serving.py."""
        return {
            "arguments": self.arguments(model),
            "backend": self.backend,
            "host": self.host,
            "port": self.port,
            "ssl_certfile": self.config.get("ssl_certfile"),
            "ssl_keyfile": self.config.get("ssl_keyfile"),
            "models": [asdict(one) for one in self.models],
            "system": self.config.get("system"),
            "limits": asdict(self.limits),
            "max_batch_size": self.config.get("max_batch_size"),
            "default_tokens": self.config.get("max_new_tokens"),
            "key": self.key,
            **{
                name: self.flags[name]
                for name in ("log_requests", "allow_runtime_lora", "chat", "drain_seconds")
            },
        }

    def rows(self) -> list[tuple[str, str]]:
        """The deployment as names and values for the screen."""
        access = "with an API key" if self.key else "without a key"
        reach = "this machine only" if is_loopback(self.host) else "other machines"
        rows = [(one.name, str(one)) for one in self.models]
        rows += [
            ("address", f"{self.url() if self.port else 'a port that is free'} ({reach}, {access})"),
            ("backend", f"{self.backend} ({self.backend_why}) on {self.device}"),
        ]
        if self.merge != "no":
            rows.append(("merging", f"the adapter into its base, {MERGING[self.merge]}"))
        body = f"{self.limits.max_body / (1 << 20):g} MiB"
        rows.append(("limits", f"answers of {self.limits.max_tokens} tokens, requests of {body}"))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The deployment as plain data, without the key."""
        return {
            "type": self.type,
            "models": [asdict(one) for one in self.models],
            "url": self.url(),
            "authentication": self.key is not None,
            "backend": self.backend,
            "device": str(self.device),
            "merge": self.merge,
            "limits": asdict(self.limits),
            "arguments": self.arguments(),
            "sources": {name: str(setting.source) for name, setting in self.config.settings.items()},
            "notices": self.config.notices,
        }


MERGING = {
    "beside": "kept beside the checkpoint",
    "aside": "for this run: the backend cannot load this adapter",
}


def make_deployment(
    source: str | Path | Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    overrides_from: Literal["command line", "call"],
    flags: Mapping[str, Any],
) -> Deployment:
    """Check what is asked and decide how.

    Args:
        source: a file of settings, or a mapping.
        overrides: settings laid over it.
        overrides_from: what to call the overrides in messages.
        flags: the toolkit's own; see ``make_parser`` in deploy_model.py.

    Raises:
        RequestError: with everything that is wrong.
    """
    config, problems = read_request(source, overrides, command="deploy", overrides_from=overrides_from)
    problems += [
        *_other_ways(config, flags),
        *plan.generation_problems(config),
        *_limit_problems(flags),
    ]
    given = _Given.take(config, flags, problems)
    problems += plan.backend_problems(given.backend)
    names, checkpoints, kind = _read(given, flags, problems)
    for checkpoint in checkpoints[:1]:
        problems += plan.naming_problems(config, checkpoint)
    config.fill("host", "127.0.0.1", "this machine only")
    config.fill("port", 8000, "")
    key, key_problems = find_key(flags.get("api_key_file"))
    problems += [*key_problems, *_access_problems(config, flags, key), *tls_problems(config)]
    problems += port_problems(config)
    if problems or kind is None:
        raise RequestError(problems)
    device = find_device()
    backend, why = _choose_backend(given.backend, checkpoints, device)
    merge: Literal["no", "beside", "aside"] = "no"
    if kind == "lora" and (given.merge or not plan.serves_adapter(backend, checkpoints[0])):
        merge = "beside" if given.merge else "aside"
    models = _models(kind, names, checkpoints, config, merge)
    problems = [*_name_problems(models, config), *_adapters_together(kind, names, checkpoints, backend)]
    if given.merge:
        problems += _merge_problems(kind, checkpoints)
    if problems:
        raise RequestError(problems)
    _fill(config, backend, device, models, flags)
    body, urls = int(flags["max_body_mb"] * (1 << 20)), config.install.line != "v3"
    limits = Limits(flags["max_tokens_limit"], body, _media_dir(flags), urls)
    return Deployment(kind, models, checkpoints, config, backend, why, device, merge, limits, key, flags)


# --- what is served -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """What the settings and flags name together."""

    checkpoint: str | None
    several: str | Mapping[str, str] | None
    on_hub: bool
    base: str | None
    backend: str
    merge: bool

    @classmethod
    def take(cls, config: Config, flags: Mapping[str, Any], problems: list[Problem]) -> _Given:
        """Take it out of ``config``; ms-swift's own ``adapters`` and ``model`` stand for a checkpoint and its
        base."""

        def taken(name: str) -> Any:
            setting = config.settings.pop(name, None)
            return None if setting is None else setting.value

        named = _named_adapters(config, problems)
        adapters, model, merge = taken("adapters"), taken("model"), taken("merge_lora")
        backend = flags.get("infer_backend") or taken("infer_backend") or "auto"
        checkpoint, several, on_hub = flags.get("checkpoint"), flags.get("multi_lora_config"), False
        if checkpoint is None and several is None and named:
            several = named
        elif checkpoint is None and several is None and adapters:
            checkpoint = adapters[0]
        elif checkpoint is None and several is None:
            checkpoint, model, on_hub = model, None, plan.is_on_hub(model)
        base = flags.get("base_model") or model
        return cls(checkpoint, several, on_hub, base, backend, bool(flags.get("merge_lora") or merge))


def _named_adapters(config: Config, problems: list[Problem]) -> dict[str, str]:
    """Name -> directory of the adapters, where ms-swift's ``adapters`` names them: ``name=directory``."""
    adapters = config.get("adapters", [])
    pairs = [one.split("=", 1) for one in adapters if "=" in one and not Path(one).exists()]
    if len(adapters) > 1 and len(pairs) < len(adapters):
        do = "Write name=DIR for each: clients ask for an adapter by its name."
        problems.append(config.problem("adapters", "has several adapters, and not every one has a name", do))
    return dict(pairs)


def _read(
    given: _Given, flags: Mapping[str, Any], problems: list[Problem]
) -> tuple[list[str], list[Checkpoint], Type | None]:
    """The adapters' names (of several), the checkpoints, and what they are together; None if something is wrong."""
    asked, several = flags.get("type"), given.several
    if asked is not None and asked not in TYPES:
        problems.append(Problem(*not_one_of(asked, TYPES), key="--type"))
        return [], [], None
    if several is not None:
        return _read_several(several, given, flags, problems)
    if asked == "multi-lora":
        do = 'Name a file of {"name": "adapter directory"}: --multi-lora-config FILE'
        problems.append(Problem('is "multi-lora" without a list of adapters', do, "--type"))
        return [], [], None
    if given.checkpoint is None:
        do = "Name a checkpoint, a run or an output directory."
        problems.append(Problem("is needed", do, "--checkpoint"))
        return [], [], None
    try:
        trust = bool(flags.get("trust_code"))
        checkpoint = (
            hub_model(given.checkpoint) if given.on_hub else _checkpoint(given.checkpoint, given.base, trust)
        )
    except RequestError as error:
        problems += error.problems
        return [], [], None
    kind: Type = "lora" if checkpoint.kind == "lora" else "full"
    if asked not in (None, kind):
        what = f'is "{asked}", but {checkpoint.path} holds {_SAID[checkpoint.kind]}'
        problems.append(Problem(what, f"Use --type {kind}, or leave it out.", "--type"))
        return [], [], None
    return [], [checkpoint], kind


_SAID = {"lora": "an adapter", "full": "a full model", "merged": "a merged model"}


def _checkpoint(path: str, base: str | None, trust_code: bool) -> Checkpoint:
    if is_builtin(path):
        return replace(read_checkpoint(materialise(path)), base=path)
    return read_checkpoint(find_checkpoint(Path(path).expanduser()).path, base, trust_code)


def read_adapter(path: str) -> Checkpoint:
    """The adapter that ``path`` means.

    Raises:
        RequestError: it cannot be served.
    """
    checkpoint = _checkpoint(path, None, False)
    if checkpoint.kind != "lora":
        raise RequestError([Problem(f"{checkpoint.path} holds {_SAID[checkpoint.kind]}, not an adapter")])
    return checkpoint


def _read_several(
    several: str | Mapping[str, str], given: _Given, flags: Mapping[str, Any], problems: list[Problem]
) -> tuple[list[str], list[Checkpoint], Type | None]:
    """The adapters that a file (or, from Python, a mapping) names."""
    found: list[Problem] = []
    for name, value in (("--type", flags.get("type")), ("--checkpoint", given.checkpoint)):
        if value not in (None, "multi-lora"):
            what = f'is "{value}", but --multi-lora-config names several adapters'
            found.append(Problem(what, "Remove one of the two.", name))
    file, lines, values = None, {}, dict(several) if isinstance(several, Mapping) else {}
    if not isinstance(several, Mapping):
        read = _read_list(several)
        file, lines, values = read.path, read.lines, read.values
    checkpoints = []
    for name, path in values.items():
        where = Problem("", key=name, file=file, line=lines.get(name))
        if not isinstance(path, str):
            found.append(replace(where, what="must be the directory of an adapter"))
            continue
        try:
            checkpoint = _checkpoint(path, given.base, bool(flags.get("trust_code")))
        except RequestError as error:
            found += [
                replace(where, what=f"cannot be served: {one.what}", do=one.do) for one in error.problems
            ]
            continue
        if checkpoint.kind != "lora":
            what = f"is {_SAID[checkpoint.kind]}, not an adapter"
            found.append(replace(where, what=what, do="Serve it alone."))
        checkpoints.append(checkpoint)
    if not values:
        found.append(Problem("names no adapter", _LIST_FORM, file=file))
    problems += found
    return list(values), checkpoints, None if found else "multi-lora"


_LIST_FORM = 'Write {"name": "adapter directory", ...}.'


def _read_list(path: str) -> ConfigFile:
    try:
        return read_config_file(path)
    except RequestError as error:
        forms = [one.what.startswith(("holds", "is empty")) for one in error.problems]
        raise RequestError(
            [
                replace(one, do=_LIST_FORM) if of_form else one
                for one, of_form in zip(error.problems, forms, strict=True)
            ]
        ) from None


def _models(
    kind: Type, names: list[str], checkpoints: list[Checkpoint], config: Config, merge: str
) -> list[ServedModel]:
    """The names to serve: of adapters, the base's own first."""
    first, asked = checkpoints[0], config.settings.pop("served_model_name", None)
    base_name = Path(str(first.base)).name
    given = str(asked.value) if asked else None
    if kind == "full":
        kind_of: Literal["full", "merged"] = "merged" if first.kind == "merged" else "full"
        return [ServedModel(given or _own_name(first.path), kind_of, str(first.path))]
    if merge != "no":
        return [ServedModel(given or f"{base_name}-lora", "merged", str(first.path), first.base)]
    if kind == "lora":
        names = [given or f"{base_name}-lora"]
    base = ServedModel(given if given and kind == "multi-lora" else base_name, "base", str(first.base))
    return [base, *(_adapter(name, one) for name, one in zip(names, checkpoints, strict=True))]


def _own_name(path: Path) -> str:
    """What to call a model: its directory, or of ``<output>/<run>/checkpoint-N`` the output directory."""
    return path.parent.parent.name if path.name.startswith("checkpoint-") else path.name


def _adapter(name: str, checkpoint: Checkpoint) -> ServedModel:
    return ServedModel(
        name, "lora", str(checkpoint.path), checkpoint.base, checkpoint.system, checkpoint.lora_rank
    )


def _name_problems(models: list[ServedModel], config: Config) -> Iterator[Problem]:
    for model in models:
        if not NAME.fullmatch(model.name):
            do = "Use letters, digits and . _ : / - only, at most 128, a letter or digit first."
            yield Problem(f"{json.dumps(model.name)} cannot be the name of a model", do)
        if model.kind == "lora" and "=" in model.path:
            what = f'{model.path} has a "=" in its path, which ms-swift takes for the end of the name'
            yield Problem(what, "Rename the directory.")
    base, adapters = models[0], models[1:]
    if any(model.name == base.name for model in adapters):
        do = "Choose another name for the adapter."
        yield Problem(f'"{base.name}" is the name of the base model and of an adapter', do)


def _adapters_together(
    kind: Type, names: list[str], checkpoints: list[Checkpoint], backend: str
) -> Iterator[Problem]:
    """What keeps several adapters from being served side by side."""
    if kind != "multi-lora":
        return
    first = checkpoints[0]
    for what, of in _MUST_AGREE.items():
        for name, checkpoint in zip(names[1:], checkpoints[1:], strict=True):
            if of(checkpoint) != of(first):
                sides = f"{of(first)} for {names[0]}, {of(checkpoint)} for {name}"
                yield Problem(f"The adapters differ in their {what}: {sides}", "Serve them apart.")
    if backend not in ("pt", "vllm"):
        do = "Use --infer-backend pt or vllm."
        yield Problem(f"{backend} cannot serve several adapters on one base", do)
        return
    for name, checkpoint in zip(names, checkpoints, strict=True):
        if not plan.serves_adapter(backend, checkpoint):
            what = f'"{name}" cannot be served by {backend}, which takes plain LoRA up to rank 512 only'
            yield Problem(what, "Use --infer-backend pt.")


_MUST_AGREE: dict[str, Callable[[Checkpoint], Any]] = {
    "base model": lambda one: one.base,
    "template": lambda one: one.template,
    "task": lambda one: one.task_type or "causal_lm",
    "quantisation of the base": lambda one: one.args.get("quant_method"),
}


def _choose_backend(asked: str, checkpoints: list[Checkpoint], device: Device) -> tuple[str, str]:
    choices = [plan.choose_backend(asked, one, device) for one in checkpoints]
    return next((choice for choice in choices if choice[0] != "vllm"), choices[0])


def _merge_problems(kind: Type, checkpoints: list[Checkpoint]) -> list[Problem]:
    from swift_toolkit.model.merge import problems

    if kind == "lora":
        return problems(checkpoints[0])
    do = "Remove it." if kind == "full" else "Remove it: merged adapters are models of their own."
    return [Problem("needs one adapter", do, "--merge-lora")]


def _fill(
    config: Config, backend: str, device: Device, models: list[ServedModel], flags: Mapping[str, Any]
) -> None:
    """Choose what nobody has set and the server needs."""
    name = "transformers" if backend == "pt" and config.install.line == "v4" else backend
    config.fill("infer_backend", name, "")
    config.fill("verbose", bool(flags.get("log_requests")), "prompts are logged with --log-requests only")
    config.fill("log_interval", -1, "the server has /metrics")
    if device.kind == "cpu" and not cpu_computes_bfloat16():
        config.fill(
            "torch_dtype", "float32", "this CPU has no bfloat16 arithmetic and would be many times slower"
        )
    adapters = [model for model in models if model.kind == "lora"]
    if backend == "vllm" and adapters:
        highest = max(model.rank or 0 for model in adapters)
        rank = next(rank for rank in plan.VLLM_RANKS if rank >= highest)
        config.fill("vllm_max_lora_rank", rank, f"the adapters have rank {highest} at most")


# --- settings that have another way here --------------------------------------------------------------------

_OTHER_WAYS = {
    **dict.fromkeys(("dataset", "val_dataset", "result_path", "stream", "metric"), "Remove it."),
    "load_args": "Remove it: what the checkpoint says is always read.",
    "verbose": "Use --log-requests.",
}


def _other_ways(config: Config, flags: Mapping[str, Any]) -> Iterator[Problem]:
    if "api_key" in config.settings:
        do = f"Set the environment variable {KEY_VARIABLE}, or use --api-key-file."
        yield config.problem("api_key", "is a secret, and would not stay one", do)
    yield from plan.other_ways(config, _OTHER_WAYS, flags)
    for name, variables in SECRETS.items():
        if name in config.settings:
            do = f"Set the environment variable {' or '.join(variables)}." if variables else "Remove it."
            yield config.problem(name, "is a secret, and ms-swift would write it in clear to its log", do)


def _limit_problems(flags: Mapping[str, Any]) -> Iterator[Problem]:
    for name, least in (("max_tokens_limit", 1), ("max_body_mb", 0.001), ("drain_seconds", 0)):
        if flags[name] < least:
            yield Problem(f"must be at least {least}, not {flags[name]}", key=f"--{name.replace('_', '-')}")
    media = flags.get("media_dir")
    if media is not None and not Path(media).expanduser().is_dir():
        yield Problem(f"names the directory {media}, which does not exist", key="--media-dir")


def _media_dir(flags: Mapping[str, Any]) -> str | None:
    media = flags.get("media_dir")
    return None if media is None else str(Path(media).expanduser().resolve())


# --- who may reach it ---------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether ``host`` is reached from this machine only."""
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def find_key(file: str | None) -> tuple[str | None, list[Problem]]:
    """The API key: the content of ``file``, else the environment's. Messages never show it."""
    if file is None:
        key = os.environ.get(KEY_VARIABLE) or None
        where = Problem("", key=KEY_VARIABLE)
    else:
        where = Problem("", key="--api-key-file")
        try:
            key = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            return None, [replace(where, what=f"names {file}, which cannot be read: {reason}")]
    if key is None:
        return None, []
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        what = "does not hold a key"
        do = f"A key is one word of at least {MIN_KEY_LENGTH} ASCII letters, digits and signs."
        return None, [replace(where, what=what, do=do)]
    return key, []


def _access_problems(config: Config, flags: Mapping[str, Any], key: str | None) -> Iterator[Problem]:
    wants_key = f"Set {KEY_VARIABLE} or --api-key-file"
    if flags.get("no_auth") and key is not None:
        do = f"Remove it, or unset {KEY_VARIABLE} and --api-key-file."
        yield Problem("cannot be used with a key", do, "--no-auth")
    host = str(config.get("host"))
    given = flags.get("api_key_file") is not None or os.environ.get(KEY_VARIABLE)
    if not is_loopback(host) and not given and not flags.get("no_auth"):
        what = f'is "{host}", which other machines can reach, and there is no key'
        yield config.problem("host", what, f"{wants_key}, or allow everybody in with --no-auth.")
    if flags.get("allow_runtime_lora") and not given:
        yield Problem("needs a key", f"{wants_key}.", "--allow-runtime-lora")


def tls_problems(config: Config) -> list[Problem]:
    """What is wrong with the certificate and its key."""
    names = ("ssl_certfile", "ssl_keyfile")
    files = {name: Path(config.get(name)).expanduser() for name in names if config.get(name)}
    if not files:
        return []
    for name in names:
        if name not in files:
            other = names[1 - names.index(name)]
            return [config.problem(other, f'needs "{name}"', "Give both, or neither.")]
    problems = [
        config.problem(name, f'names the file "{file}", which does not exist', "Check the path.")
        for name, file in files.items()
        if not file.is_file()
    ]
    return problems or _certificate_problems(config, *files.values())


def _certificate_problems(config: Config, certificate: Path, key: Path) -> list[Problem]:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password=lambda: "")
    except PermissionError as error:
        return [config.problem("ssl_keyfile", f"cannot be read: {error.strerror}")]
    except (ssl.SSLError, ValueError) as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            return [config.problem("ssl_keyfile", f"is not the key of the certificate in {certificate}")]
        what = "and the certificate cannot be used: they are not PEM, or the key has a passphrase"
        return [config.problem("ssl_keyfile", what)]
    return []


def port_problems(config: Config) -> list[Problem]:
    """What keeps this process from listening where it should."""
    host, port = str(config.get("host")), int(config.get("port"))
    if not 0 <= port <= 65535:
        return [config.problem("port", f"is {port}; it must be from 0 (any that is free) to 65535")]
    try:
        listening_socket(host, port).close()
    except socket.gaierror:
        return [config.problem("host", f'is "{host}", which is no address of this machine')]
    except PermissionError:
        return [config.problem("port", f"is {port}, which this user may not use", "Use one from 1024 on.")]
    except OSError as error:
        import errno

        if error.errno != errno.EADDRINUSE:
            return [config.problem("host", f'is "{host}", which is no address of this machine')]
        return [config.problem("port", f"is {port}, which {_user_of(port)} uses already", "Choose another.")]
    return []


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet.

    Raises:
        OSError: it cannot be bound.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _user_of(port: int) -> str:
    """The process that listens on ``port``, as far as this user may know."""
    import psutil

    try:
        listening = [
            one for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port and one.pid
        ]
        process = psutil.Process(listening[0].pid)
        return f"{process.name()} (process {process.pid})"
    except (psutil.Error, IndexError, OSError):
        return "another process"
