"""Checkpoints of every generation of ms-swift, asked and served by the installed one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from deploy_model import ModelDeployer
from inference_test import InferenceTester
from swift_toolkit.machine.msswift import installed
from swift_toolkit.model.checkpoints.checkpoint import read_checkpoint
from swift_toolkit.model.checkpoints.old_adapter import as_peft, name_in_peft, with_peft_adapters
from swift_toolkit.problems import RequestError
from tests.generations import LAYOUTS, lay_out

QUESTION = "Who are you?"
OTHER_LINE = "3.12" if installed().line == "v4" else "4.6"


@pytest.fixture(scope="module")
def checkpoints(
    tiny_checkpoint: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One trained adapter, as each generation would have left it."""
    folder = tmp_path_factory.mktemp("generations")
    trained = (tiny_checkpoint / "last").resolve()
    return {name: lay_out(name, trained, tiny_model, folder) for name in LAYOUTS}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted adapters are kept in a cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("SWIFT_API_KEY", raising=False)
        yield


@pytest.mark.slow
def test_each_is_asked_and_served_alike(
    checkpoints: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """The same adapter gives the same answer, whichever generation wrote it; and another than its base."""
    adapters = {f"v{name}": str(checkpoint) for name, checkpoint in checkpoints.items()}
    with ModelDeployer(multi_lora_config=adapters, port=0, output_dir=str(tmp_path / "deploy")) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        (answer,) = {_ask(client, name) for name in adapters}
        assert _ask(client, tiny_model.name) != answer
    for name in ("1.7", "2.6", OTHER_LINE):
        with InferenceTester(checkpoints[name], max_new_tokens=12, log=tmp_path / "infer.log") as tester:
            assert tester.ask(QUESTION).strip() == answer


def _ask(client: openai.OpenAI, name: str) -> str:
    messages = [{"role": "user", "content": QUESTION}]
    answer = client.chat.completions.create(model=name, messages=messages, max_tokens=12, temperature=0)  # type: ignore[arg-type]
    return (answer.choices[0].message.content or "").strip()


@pytest.mark.slow
def test_a_copy_is_made_once(checkpoints: dict[str, Path]) -> None:
    first = Path(as_peft(str(checkpoints["1.7"])))
    written = (first / "adapter_model.safetensors").stat().st_mtime_ns
    assert as_peft(str(checkpoints["1.7"])) == str(first)
    assert (first / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in first.parent.iterdir() if "." in path.name] == []
    assert as_peft(str(checkpoints["2.6"])) == str(checkpoints["2.6"])


def test_other_words_are_left_alone() -> None:
    words = ["--system=" + "Be brief. " * 1000, "--adapters", "a=x", "--stream=true"]
    assert with_peft_adapters(words) == words


def test_other_adapters_of_ms_swift_1_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    from tests.adapters import make_adapter
    from tests.generations import write_json

    path = make_adapter(tiny_model, tmp_path / "adapter", seed=0)
    write_json(path / "adapter_config.json", {"swift_type": "ADAPTER", "dim": 8})
    with pytest.raises(RequestError) as caught:
        read_checkpoint(path)
    expected = (
        f"{path} holds an adapter of ms-swift 1 that no current version loads: ADAPTER. Train it again."
    )
    assert [str(problem) for problem in caught.value.problems] == [expected]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("m.q_proj.loramodule_default.lora_A", "base_model.model.m.q_proj.lora_A.weight"),
        ("m.q_proj.loramodule_default.lora_B.default.weight", "base_model.model.m.q_proj.lora_B.weight"),
        ("m.q_proj.lora_A.default.weight", "base_model.model.m.q_proj.lora_A.weight"),
        ("base_model.model.m.q_proj.lora_A.weight", "base_model.model.m.q_proj.lora_A.weight"),
        ("m.embed.lora_embedding_A.default", "base_model.model.m.embed.lora_embedding_A"),
        ("m.lm_head.weight", "base_model.model.m.lm_head.weight"),
    ],
)
def test_names_of_weights(old: str, new: str) -> None:
    assert name_in_peft(old) == new
