"""Loading and unloading adapters while the server runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from swift_toolkit.machine import msswift
from swift_toolkit.model.checkpoints.checkpoint import Checkpoint
from swift_toolkit.model.checkpoints.old_adapter import OLD_FOLDER, as_peft, is_old
from swift_toolkit.model.files import ADAPTER_WEIGHTS
from swift_toolkit.problems import RequestError
from swift_toolkit.serving import models
from swift_toolkit.serving.api.request import ApiError
from swift_toolkit.serving.api.schema import RequestBody
from swift_toolkit.serving.engine.router import Router
from swift_toolkit.serving.models import ServedModel


class RuntimeAdapters:
    """Loads and unloads adapters of a running server.

    Args:
        router: the router whose models change.
        directories: adapters are only loaded from below these.
    """

    def __init__(self, router: Router, directories: tuple[str, ...]) -> None:
        self._router = router
        self._directories = [Path(one).resolve() for one in directories]
        self._changing = asyncio.Lock()
        self._made = len(router.loaded)

    async def load(self, body: RequestBody) -> str:
        """``POST /v1/load_lora_adapter``, with ``lora_name`` and ``lora_path``.

        Raises:
            ApiError: the adapter cannot be loaded.
        """
        name, path = _texts(body, "lora_name", "lora_path")
        if not models.MODEL_NAME.fullmatch(name):
            raise ApiError(400, "lora_name may only contain letters, digits and . _ : / -.", "lora_name")
        router = self._router
        async with self._changing:
            if name in router.loaded:
                raise ApiError(400, f"A model {name} is already loaded.", "lora_name")
            most = router.backend.most_adapters(router.engine)
            if most is not None and len(router.loaded) > most:
                raise ApiError(400, f"The server has already loaded {most} adapters, its maximum.")
            model = await asyncio.to_thread(self._read, name, path)
            await self._add(model)
        return f"Success: LoRA adapter '{name}' added successfully."

    async def _add(self, model: ServedModel) -> None:
        router = self._router
        router.loaded[model.name], router.aliases[model.name] = model, f"adapter{self._made}"
        self._made += 1
        try:
            await router.touch(model.name)
        except Exception as error:
            del router.loaded[model.name]
            if isinstance(error, ApiError):
                raise replace(error, param="lora_path") from error
            raise ApiError(400, "The adapter cannot be loaded.", "lora_path") from error

    def _read(self, name: str, path: str) -> ServedModel:
        """Read the adapter at ``path``; the error for a path that is not allowed does not reveal what exists."""
        wrong = ApiError(
            400, "lora_path is not an adapter below one of the --adapter-dir directories.", "lora_path"
        )
        try:
            there = Path(path).resolve()
            allowed = any(there.is_relative_to(one) for one in self._directories)
        except (OSError, ValueError, RuntimeError):
            raise wrong from None
        if not allowed or not there.is_dir():
            raise wrong
        try:
            checkpoint = models.read_adapter(str(there))
        except RequestError:
            raise wrong from None
        resolved = checkpoint.path.resolve()
        if not any(resolved.is_relative_to(one) for one in self._directories):
            raise wrong
        read = resolved / OLD_FOLDER if is_old(resolved) else resolved
        if not (read / ADAPTER_WEIGHTS[0]).is_file():
            raise ApiError(400, "lora_path has weights that are not safetensors.", "lora_path")
        self._check(path, checkpoint)
        peft = as_peft(str(checkpoint.path))
        return ServedModel(name, "lora", peft, checkpoint.base, checkpoint.system, checkpoint.lora_rank)

    def _check(self, path: str, checkpoint: Checkpoint) -> None:
        router = self._router
        if not router.backend.serves_adapter(checkpoint):
            raise ApiError(
                400, f"{router.backend.name} only supports plain LoRA, which lora_path is not.", "lora_path"
            )
        highest = router.backend.highest_rank(router.server.args)
        if highest is not None and (checkpoint.lora_rank or 0) > highest:
            what = (
                f"lora_path has rank {checkpoint.lora_rank}, but the server was started for at most {highest}"
            )
            raise ApiError(400, f"{what}: start it with --vllm_max_lora_rank.", "lora_path")
        base = router.loaded[router.first]
        if os.path.realpath(str(checkpoint.base)) != os.path.realpath(base.path):
            raise ApiError(400, "lora_path was trained on a different base model.", "lora_path")
        for what, own, server in self._compared(checkpoint):
            if own != server:
                message = f"lora_path was trained for the {what} {own}, but the server runs with {server}."
                raise ApiError(400, message, "lora_path")

    def _compared(self, checkpoint: Checkpoint) -> Iterator[tuple[str, object, object]]:
        """What an adapter shares with all others of the server: its name, the adapter's value, the server's."""
        router, args = self._router, checkpoint.args
        yield "task", checkpoint.task_type or "causal_lm", router.facts.task
        if checkpoint.template is not None:
            yield "template", checkpoint.template, router.server.template.template_meta.template_type
        if args.num_labels is not None and router.facts.task == "seq_cls":
            yield "number of classes", args.num_labels, router.engine.model.config.num_labels

    async def unload(self, body: RequestBody) -> str:
        """``POST /v1/unload_lora_adapter``, with ``lora_name``; running answers finish first.

        Raises:
            ApiError: the adapter does not exist.
        """
        (name,) = _texts(body, "lora_name")
        router = self._router
        async with self._changing:
            if name == router.first or name not in router.loaded:
                raise ApiError(404, f"The adapter {name} does not exist.", "lora_name")
            del router.loaded[name]
            while router.running[name]:
                await asyncio.sleep(0.05)
            alias = router.aliases.pop(name)
            if router.backend.in_process:
                await router.touch(router.first, hook=msswift.dropping_hook(router.engine, alias))
            else:
                await msswift.drop_from_vllm(router.engine, alias)
        return f"Success: LoRA adapter '{name}' removed successfully."


def _texts(body: RequestBody, *names: str) -> list[str]:
    for name in names:
        if not isinstance(body.get(name), str) or not body[name]:
            raise ApiError(400, f"{name} is missing.", name)
    return [body[name] for name in names]
