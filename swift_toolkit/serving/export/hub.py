"""Uploading an exported model: private by default, with a token from the environment only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.config.values import not_one_of
from swift_toolkit.machine import packages
from swift_toolkit.model.checkpoints.checkpoint import HUB_ID
from swift_toolkit.problems import Problem, RunError, first_line

LOCAL = ("args.json", "merged_from.json", "export.json")
"""Files that are not uploaded: they name directories of this machine, and args.json may contain keys. Their information
about the model is in its README.md, chat template and config."""


@dataclass(frozen=True)
class Hub:
    """A model hub.

    Args:
        variables: environment variables that may contain the token.
        module: module of its client.
        upload: uploads a directory; takes the id, directory, token and whether it is public, and returns the address.
    """

    variables: tuple[str, ...]
    module: str
    upload: Callable[[str, Path, str, bool], str]


def _to_huggingface(name: str, folder: Path, token: str, public: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    address = api.create_repo(name, private=not public, exist_ok=True)
    api.upload_folder(
        repo_id=name,
        folder_path=str(folder),
        commit_message="Upload by swift-toolkit",
        ignore_patterns=list(LOCAL),
    )
    return str(address)


def _to_modelscope(name: str, folder: Path, token: str, public: bool) -> str:
    from modelscope_hub.api import HubApi

    api = HubApi(token=token)
    if not api.repo_exists(name, "model"):
        api.create_repo(name, "model", visibility="public" if public else "private")
    api.upload_folder(
        name, "model", str(folder), commit_message="Upload by swift-toolkit", ignore_patterns=list(LOCAL)
    )
    return f"https://modelscope.cn/models/{name}"


HUBS = {
    "huggingface": Hub(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "huggingface_hub", _to_huggingface),
    "modelscope": Hub(("MODELSCOPE_API_TOKEN", "MODELSCOPE_SDK_TOKEN"), "modelscope_hub", _to_modelscope),
}
"""Every hub by its name."""


def hub_problems(hub: str, name: str | None) -> Iterator[Problem]:
    """Yield the reasons why a model cannot be uploaded."""
    if hub not in HUBS:
        yield Problem(*not_one_of(hub, HUBS), key="--hub")
        return
    if name is None:
        yield Problem("is needed", "Name the repository on the hub: --hub-id owner/name", "--hub-id")
    elif HUB_ID.fullmatch(name) is None:
        yield Problem(f'is "{name}"', "Write owner/name.", "--hub-id")
    if token_of(hub) is None:
        yield Problem(
            f"needs a token for {hub}", f"Set the environment variable {HUBS[hub].variables[0]}.", "--hub"
        )
    for module in packages.not_installed([HUBS[hub].module]):
        yield Problem(f"is {hub}, whose client is not installed", packages.install(module), "--hub")


def token_of(hub: str) -> str | None:
    """The token in the environment, None if there is none."""
    return next((os.environ[name] for name in HUBS[hub].variables if os.environ.get(name)), None)


def files_of(folder: Path) -> list[tuple[str, int]]:
    """The files below ``folder``: names and sizes in bytes."""
    found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [(str(file.relative_to(folder)), file.stat().st_size) for file in found]


def upload(hub: str, name: str, folder: Path, public: bool) -> str:
    """Upload ``folder`` and return its address.

    Raises:
        RunError: the hub refuses the upload or cannot be reached.
    """
    token = token_of(hub)
    assert token is not None  # checked by `hub_problems`
    try:
        return HUBS[hub].upload(name, folder, token, public)
    except Exception as error:  # each client has its own exception types
        said = first_line(error).replace(token, "***")
        raise RunError(f"cannot upload {name} to {hub}: {said}\nThe exported model is in {folder}.") from None
