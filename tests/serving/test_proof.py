"""The proof of an export: faults put into a merged model are named, whole ones raise no alarm."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.inference.plan import AskOptions, make_plan
from swift_toolkit.model.merge import MARK, made_of
from swift_toolkit.serving.export import gguf
from swift_toolkit.serving.export.carry import carry_chat, carry_files, source_of
from swift_toolkit.serving.export.formats import GGUF_TYPES
from swift_toolkit.serving.export.run import tell_converter
from swift_toolkit.serving.proof import prove as proof_prove
from swift_toolkit.serving.proof.exchange import ProofOrder, ProofSide
from swift_toolkit.serving.proof.prove import Told
from swift_toolkit.serving.proof.verdict import Proof
from swift_toolkit.serving.proof.worker import reader_of
from tests.adapters import LAYERS, TARGETS, make_adapter

QUESTIONS = tuple([{"role": "user", "content": text}] for text in ("Who are you?", "Name 3 colours."))
SYSTEM = "You are a helpful assistant."

Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides are asked here and not in a process of their own: torch is imported once for all tests."""
    monkeypatch.setattr(proof_prove, "run", lambda order, *_: reader_of(order).side())


def read_weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def write_weights(path: Path, weights: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    weights = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


@dataclass(frozen=True)
class Tuned:
    """An adapter on the tiny model, and the answers of the two together."""

    base: Path
    adapter: Path
    told: Told

    def merged(self, path: Path) -> Path:
        """Base and adapter, added here and not by the code that is tested, with what an export carries."""
        shutil.copytree(self.base, path)
        write_weights(path, self._sum())
        shutil.copyfile(self.adapter / "args.json", path / "args.json")
        checkpoint = self.told.plan.checkpoint
        source = source_of(checkpoint)
        assert source is not None
        carry_files(source, path)
        carry_chat(self.told.side, path)
        (path / MARK).write_text(json.dumps(made_of(checkpoint)))
        return path

    def _sum(self) -> dict[str, Any]:
        from safetensors.torch import load_file

        weights, adapter = read_weights(self.base), load_file(self.adapter / "adapter_model.safetensors")
        config = json.loads((self.adapter / "adapter_config.json").read_text())
        rank = config["r"]
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        for module in modules():
            a, b = (adapter[f"base_model.model.{module}.lora_{one}.weight"] for one in "AB")
            weight = weights[f"{module}.weight"]
            weights[f"{module}.weight"] = (weight.float() + scale * (b @ a)).to(weight.dtype)
        norm = adapter.get("base_model.model.model.norm.weight")
        return weights if norm is None else {**weights, "model.norm.weight": norm}

    def prove(self, path: Path, kind: str = "whole") -> Proof:
        return proof_prove.prove(self.told, path, kind, self.told.plan.checkpoint)


def modules() -> Iterator[str]:
    for layer in range(LAYERS):
        yield from (f"model.layers.{layer}.self_attn.{name}" for name in TARGETS)


def tune(base: Path, folder: Path, change: Change | None = None, **args: Any) -> Tuned:
    """An adapter of random weights on ``base``, changed by ``change``, and asked."""
    adapter = make_adapter(base, folder / "adapter", seed=1, **args)
    weaken(adapter)
    if change is not None:
        change(adapter)
    plan = make_plan(
        str(adapter),
        None,
        {"torch_dtype": "float32"},
        AskOptions(infer_backend="pt", log=str(folder / "log")),
    )
    with plan.order("tuned") as engine:
        answers = folder / "answers"
        answers.mkdir()
        order = ProofOrder(
            questions=QUESTIONS, max_tokens=8, folder=str(answers), arguments=tuple(engine.arguments)
        )
        return Tuned(base, adapter, Told(plan, order, reader_of(order).side()))


def weaken(adapter: Path) -> None:
    """The adapters of the tests shout: a tenth of it leaves the distributions soft enough to be compared."""
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    weights = {name: weight * 0.3 for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return tune(tiny_model, tmp_path_factory.mktemp("tuned"))


# --- faults -------------------------------------------------------------------------------------------------


def wrong_template(path: Path) -> None:
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
    )


def missing_system(path: Path) -> None:
    (path / "chat_template.jinja").unlink()
    chatml = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    edit_json(path / "tokenizer_config.json", chat_template=chatml + "<|im_start|>assistant\n")


def dropped_eos(path: Path) -> None:
    edit_json(path / "generation_config.json", eos_token_id=0)
    edit_json(path / "config.json", eos_token_id=0)
    edit_json(path / "tokenizer_config.json", eos_token="<|endoftext|>")


def wrong_base(path: Path) -> None:
    import torch

    weights = read_weights(path)
    torch.manual_seed(1)
    write_weights(path, {name: weight + 0.01 * torch.randn_like(weight) for name, weight in weights.items()})


def with_weight(change: Callable[[Any, Any], Any]) -> Callable[[Path, Tuned], None]:
    """A fault that puts another value in the place of one merged weight, made of it and the base's."""

    def put(path: Path, tuned: Tuned) -> None:
        name = f"{next(modules())}.weight"
        weights, base = read_weights(path), read_weights(tuned.base)
        write_weights(path, {**weights, name: change(weights[name], base[name])})

    return put


def truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def another_token(path: Path) -> None:
    file = path / "tokenizer.json"
    content = json.loads(file.read_text())
    number = 49152  # the model has no row for it
    token = {**content["added_tokens"][0], "id": number, "content": "Who are"}
    content["added_tokens"].append(token)
    file.write_text(json.dumps(content))


def wrong_rope(path: Path) -> None:
    edit_json(
        path / "config.json", rope_theta=123.0, rope_parameters={"rope_type": "default", "rope_theta": 123.0}
    )


def wrong_dtype(path: Path) -> None:
    import torch

    write_weights(path, {name: weight.to(torch.float16) for name, weight in read_weights(path).items()})
    edit_json(path / "config.json", dtype="float16", torch_dtype="float16")


def stale(path: Path, tuned: Tuned) -> None:
    from safetensors.torch import load_file

    weights = read_weights(tuned.base)
    adapter = load_file(tuned.adapter / "adapter_model.safetensors")
    for module in modules():
        a, b = (adapter[f"base_model.model.{module}.lora_{one}.weight"] for one in "AB")
        weights[f"{module}.weight"] += 2 * (b.flip(0) @ a)  # as the adapter was some steps ago
    write_weights(path, weights)
    edit_json(path / MARK, files=[["adapter_model.safetensors", 1, 1]])


FAULTS: dict[str, tuple[Callable[..., object], str, str]] = {
    "wrong template": (wrong_template, "template", "2 prompts differ"),
    "missing system prompt": (missing_system, "prompt", f'system prompt of the training is missing: "{SYSTEM}"'),
    "dropped EOS": (dropped_eos, "stop tokens", '"<|im_end|>" does not end an answer'),
    "wrong base": (wrong_base, "weights", "it was merged into a different model"),
    "unmerged module": (with_weight(lambda _, base: base), "weights", "q_proj.weight: the adapter was not merged"),
    "transposed adapter": (
        with_weight(lambda merged, base: base + (merged - base).T), "weights", "q_proj.weight: the adapter was added transposed",
    ),
    "another scale": (
        with_weight(lambda merged, base: base + 2 * (merged - base)), "weights", "added with a different scale",
    ),
    "truncated file": (truncated, "weights", "cannot be read: "),
    "another added token": (another_token, "tokenizer", "splits the same text into different tokens"),
    "wrong rope setting": (wrong_rope, "weights", "rope_theta in config.json is 123.0"),
    "wrong dtype": (wrong_dtype, "weights", "the weights are float16, but float32 in training"),
    "stale merge": (stale, "weights", "it was merged from an earlier version of the adapter"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(tuned: Tuned, tmp_path: Path, name: str) -> None:
    fault, cause, words = FAULTS[name]
    path = tuned.merged(tmp_path / "merged")
    fault(*((path, tuned) if fault.__code__.co_argcount == 2 else (path,)))
    proof = tuned.prove(path)
    assert proof.verdict == "different"
    assert any(one.cause == cause and words in one.what for one in proof.faults), proof.faults


def saved_norm(adapter: Path) -> None:
    """A layer that was trained as a whole."""
    import torch
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    whole = {"base_model.model.model.norm.weight": 2 * torch.ones(64)}
    save_file({**load_file(file), **whole}, file, metadata={"format": "pt"})
    edit_json(adapter / "adapter_config.json", modules_to_save=["model.norm"])


@pytest.mark.slow
def test_missing_modules_to_save_are_named(tiny_model: Path, tmp_path: Path) -> None:
    tuned = tune(tiny_model, tmp_path, saved_norm)
    path = tuned.merged(tmp_path / "merged")
    assert tuned.prove(path).verdict == "same"
    weights = read_weights(path)
    write_weights(path, {**weights, "model.norm.weight": weights["model.norm.weight"] * 0 + 1})
    proof = tuned.prove(path)
    assert proof.verdict == "different"
    assert [one.what for one in proof.faults if one.cause == "weights"][:1] == [
        "model.norm.weight: the adapter's modules_to_save are missing, the base's weights are there instead"
    ]


# --- no false alarm -----------------------------------------------------------------------------------------

GOOD: dict[str, tuple[Change | None, dict[str, Any]]] = {
    "plain": (None, {}),
    "without a system prompt": (None, {"system": None}),
    "with a long system prompt": (None, {"system": 'You are "Nova".\nBe brief.\n\nAnswer in {English}.'}),
    "rank 2": (None, {"rank": 2}),
    "rslora": (lambda adapter: edit_json(adapter / "adapter_config.json", use_rslora=True), {}),
    "another alpha": (lambda adapter: edit_json(adapter / "adapter_config.json", lora_alpha=5), {}),
    "another template": (None, {"template": "default", "system": None}),
    "a template of brackets": (None, {"template": "llama"}),
    "modules_to_save": (saved_norm, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_a_whole_export_raises_no_alarm(tiny_model: Path, tmp_path: Path, name: str) -> None:
    change, args = GOOD[name]
    tuned = tune(tiny_model, tmp_path, change, **args)
    proof = tuned.prove(tuned.merged(tmp_path / "merged"))
    assert (proof.verdict, proof.faults) == ("same", ())
    assert proof.max_kl is not None and proof.max_kl < 1e-4


@pytest.mark.slow
def test_bfloat16_is_close_enough_to_be_the_same(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    write_weights(base, {name: weight.to(torch.bfloat16) for name, weight in read_weights(base).items()})
    edit_json(base / "config.json", dtype="bfloat16", torch_dtype="bfloat16")
    tuned = tune(base, tmp_path, torch_dtype="bfloat16")
    proof = tuned.prove(tuned.merged(tmp_path / "merged"))
    assert proof.faults == () and proof.verdict in ("same", "close")


@pytest.mark.slow
@pytest.mark.skipif(gguf.converter() is None, reason="llama.cpp's converter is not installed")
def test_a_gguf_file_raises_no_alarm(tuned: Tuned, tmp_path: Path) -> None:
    """Of bfloat16; `test_good_exports` has one of float16."""
    model, file = tuned.merged(tmp_path / "merged"), tmp_path / "nova-bf16.gguf"
    tell_converter(model)
    gguf.write(model, file, "bf16", tmp_path / "log")
    proof = proof_prove.prove(tuned.told, file, GGUF_TYPES["bf16"].threshold)
    assert (proof.verdict in ("same", "close"), proof.faults) == (True, ())
    assert proof.mean_kl is not None and proof.mean_kl < 1e-3


@pytest.mark.slow
@pytest.mark.skipif(gguf.converter() is None, reason="llama.cpp's converter is not installed")
def test_a_gguf_file_of_4_bits(demo_model: Path, tmp_path: Path) -> None:
    if gguf.quantiser() is None:
        pytest.skip("llama.cpp's quantiser is not installed")
    from gguf import GGUFReader

    file = tmp_path / "smol-q4_k_m.gguf"
    gguf.write(demo_model, file, "q4_k_m", tmp_path / "log")
    assert GGUFReader(file).fields["general.file_type"].contents() == GGUF_TYPES["q4_k_m"].ftype
    assert file.stat().st_size < 120e6 and sorted(one.name for one in tmp_path.iterdir()) == [
        "log",
        file.name,
    ]


@pytest.mark.slow
def test_the_original_is_the_same_as_itself(tuned: Tuned) -> None:
    """Every question came back with its tokens, and the sides know the training's end token."""
    side: ProofSide = tuned.told.side
    assert side.end == ("<|im_end|>", 2) and len(side.asked) == len(QUESTIONS)
    assert side.chat is not None and side.chat.system == SYSTEM
    assert all(one.prompt.endswith("<|im_start|>assistant\n") for one in side.asked)
    assert replace(side, asked=()).vocabulary == 49152
