"""What is installed, how to install it, and its version."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import pytest

from swift_toolkit.machine import packages


def test_what_is_installed() -> None:
    assert packages.not_installed(["json.decoder", "no_such_package", "no_such_package.part", "yaml"]) == [
        "no_such_package",
        "no_such_package.part",
    ]


def test_a_folder_of_the_same_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("deepspeed_x/configs", "flash_attn_x/cute"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "flash_attn_x" / "cute" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    names = ["deepspeed_x", "flash_attn_x"]
    assert packages.not_installed([*names, "flash_attn_x.cute"]) == names


@pytest.mark.parametrize(
    ("modules", "line"),
    [
        (["vllm"], "Run: pip install vllm"),
        (["sglang"], 'Run: pip install "sglang[all]"'),
        (["optimum.quanto"], "Run: pip install optimum-quanto"),
        (["flash_attn"], "Run: pip install flash-attn --no-build-isolation"),
        (["rouge_score", "sacrebleu"], "Run: pip install rouge-score sacrebleu"),
    ],
)
def test_the_line_that_installs(modules: list[str], line: str) -> None:
    assert packages.install(*modules) == line


def test_versions() -> None:
    found = packages.versions()
    assert found["python"] == platform.python_version()
    assert found["ms-swift"] == metadata.version("ms-swift")
    assert packages.versions("yaml") == found | {"yaml": metadata.version("pyyaml")}
    assert packages.version("no-such-package") is None
