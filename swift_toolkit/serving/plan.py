"""What a server is to serve and how, decided before anything heavy starts: models, names, address, limits.

``make_deployment`` is the one way in. It reads the checkpoints and the settings and raises everything that is wrong
with them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from swift_toolkit.config.request import read_request
from swift_toolkit.config.rules import SECRETS
from swift_toolkit.config.settings import Config
from swift_toolkit.inference import plan
from swift_toolkit.inference.backend import Backend, backend_problems, choose_backend
from swift_toolkit.machine.device import Device, cpu_computes_bfloat16, find_device
from swift_toolkit.model import loading
from swift_toolkit.model.checkpoint import Checkpoint
from swift_toolkit.model.merge import problems
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.serving.access import (
    KEY_VARIABLE,
    access_problems,
    find_key,
    is_loopback,
    port_problems,
    tls_problems,
)
from swift_toolkit.serving.models import (
    Given,
    ServedModel,
    Type,
    adapters_together,
    name_problems,
    read_models,
    served_models,
)
from swift_toolkit.serving.request import Limits


@dataclass
class Deployment:
    """A checked server that is not started yet.

    Args:
        type: what is served: one adapter on its base, one whole model, or several adapters on one base.
        models: the names, the base or whole model first.
        checkpoints: what was read, in the order of the adapters.
        config: the settings, without what the checkpoints decide.
        backend: what generates.
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
    backend: Backend
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
        loading.fill_model(config, checkpoint, model=model or first.path, adapter=None)
        adapters = [f"{one.name}={one.path}" for one in self.models if one.kind == "lora"]
        if adapters:
            config.fill("adapters", adapters, "named, so that the name asked for decides")
        config.fill("served_model_name", first.name, "")
        return config.arguments()

    def order(self, model: str) -> dict[str, Any]:
        """What the serving process is told, the key included; see serving.py."""
        return {
            "arguments": self.arguments(model),
            "backend": self.backend.name,
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
            ("backend", f"{self.backend.name} ({self.backend_why}) on {self.device}"),
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
            "backend": self.backend.name,
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
    given = Given.take(config, flags, problems)
    problems += backend_problems(given.backend)
    names, checkpoints, kind = read_models(given, flags, problems)
    for checkpoint in checkpoints[:1]:
        problems += loading.naming_problems(config, checkpoint)
    config.fill("host", "127.0.0.1", "this machine only")
    config.fill("port", 8000, "")
    key, key_problems = find_key(flags.get("api_key_file"))
    problems += [*key_problems, *access_problems(config, flags, key), *tls_problems(config)]
    problems += port_problems(config)
    if problems or kind is None:
        raise RequestError(problems)
    device = find_device()
    backend, why = choose_backend(given.backend, checkpoints, device)
    merge: Literal["no", "beside", "aside"] = "no"
    if kind == "lora" and (given.merge or not backend.serves_adapter(checkpoints[0])):
        merge = "beside" if given.merge else "aside"
    models = served_models(kind, names, checkpoints, config, merge)
    problems = [*name_problems(models, config), *adapters_together(kind, names, checkpoints, backend)]
    if given.merge:
        problems += _merge_problems(kind, checkpoints)
    if problems:
        raise RequestError(problems)
    _fill(config, backend, device, models, flags)
    body, urls = int(flags["max_body_mb"] * (1 << 20)), config.install.line != "v3"
    limits = Limits(flags["max_tokens_limit"], body, _media_dir(flags), urls)
    return Deployment(kind, models, checkpoints, config, backend, why, device, merge, limits, key, flags)


def _merge_problems(kind: Type, checkpoints: list[Checkpoint]) -> list[Problem]:
    if kind == "lora":
        return problems(checkpoints[0])
    do = "Remove it." if kind == "full" else "Remove it: merged adapters are models of their own."
    return [Problem("needs one adapter", do, "--merge-lora")]


def _fill(
    config: Config, backend: Backend, device: Device, models: list[ServedModel], flags: Mapping[str, Any]
) -> None:
    """Choose what nobody has set and the server needs."""
    backend.fill(config, [model.rank or 0 for model in models if model.kind == "lora"])
    config.fill("verbose", bool(flags.get("log_requests")), "prompts are logged with --log-requests only")
    config.fill("log_interval", -1, "the server has /metrics")
    if device.kind == "cpu" and not cpu_computes_bfloat16():
        config.fill(
            "torch_dtype", "float32", "this CPU has no bfloat16 arithmetic and would be many times slower"
        )


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
    from_line = bool(flags.get("from_command") or flags.get("from_script"))
    yield from plan.other_ways(config, _OTHER_WAYS, from_line)
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
