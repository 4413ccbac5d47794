"""Models and checkpoints that several test files share; each is made for real, once for all test processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if count := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # The test processes share the cores; with more threads, each would wait for those of the others.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))

SMOLLM2 = "builtin/SmolLM2-135M-Instruct"


with contextlib.suppress(ImportError):  # where only a few tests run
    import hypothesis

    hypothesis.settings.register_profile("the same each time", derandomize=True)
    hypothesis.settings.load_profile("the same each time")


def pytest_configure(config: pytest.Config) -> None:
    """No test leaves a process, see `tests.processes`."""
    if not config.pluginmanager.has_plugin("tests.processes"):
        config.pluginmanager.import_plugin("tests.processes")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores: the tests wait for processes that start or end."""
    return (os.cpu_count() or 1) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is meant for the ms-swift that is not installed; files with many slow tests come first, so that no test
    process is busy with one of them when the others are done."""
    from swift_toolkit.machine.msswift import installed

    other = {"v4": ("swift3", "3.12"), "v3": ("swift4", "4")}[installed().line]
    for item in items:
        if item.get_closest_marker(other[0]):
            item.add_marker(pytest.mark.skip(reason=f"needs ms-swift {other[1]}"))
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shipped configs name their data from the project's directory."""
    monkeypatch.chdir(ROOT)
    names = (
        "RANK",
        "WORLD_SIZE",
        "VISIBLE_DEVICES",
        "SWIFT_DEBUG",
        "NPROC_PER",
        "NNODES",
        "MASTER_",
        "SLURM_",
    )
    for name in [name for name in os.environ if name.startswith("PET_") or any(one in name for one in names)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What torch, vLLM and compilers leave in the system's folder for temporary files goes with the session's files."""
    folder = session_root(tmp_path_factory) / "tmp"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


def session_root(factory: pytest.TempPathFactory) -> Path:
    """The folder for files of this session, the same in all test processes."""
    root = factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture
def many_open_files() -> Iterator[None]:
    """More open files than select() takes: further ones get numbers above 1,023."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2048:
        pytest.skip("at most 1,023 files can be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, limits[1]))
    numbers = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    yield
    for number in numbers:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path that ``make`` fills, called by the first of the test processes that comes here."""
    root = session_root(factory)
    path, done = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            make(path)
            done.touch()
    return path


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The directory of the embedded SmolLM2-135M-Instruct."""
    from swift_toolkit.model.builtin import materialise

    return materialise(SMOLLM2)


@pytest.fixture(scope="session")
def tiny_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers and 3 million random weights with the tokenizer of SmolLM2; needs ``model_type`` llama
    and ``template`` chatml."""
    return made_once(tmp_path_factory, "tiny-llama", lambda path: make_tiny_llama(demo_model, path))


def make_tiny_llama(demo_model: Path, path: Path) -> None:
    """Write the model of ``tiny_model`` to ``path``."""
    import numpy
    from safetensors.numpy import save_file

    path.mkdir(parents=True)
    config = json.loads((demo_model / "config.json").read_text())
    hidden, inner, heads = 64, 128, 4
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 2}
    config |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": hidden // heads}
    config |= {"tie_word_embeddings": True, "dtype": "float32", "torch_dtype": "float32"}
    (path / "config.json").write_text(json.dumps(config))
    for file in demo_model.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, path)
    random = numpy.random.default_rng(0)

    def matrix(*shape: int) -> numpy.ndarray:
        return random.normal(0, 0.05, shape).astype("float32")

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    weights["model.norm.weight"] = numpy.ones(hidden, "float32")
    for layer in ("model.layers.0", "model.layers.1"):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{layer}.self_attn.{name}.weight"] = matrix(hidden, hidden)
        for name in ("gate_proj", "up_proj"):
            weights[f"{layer}.mlp.{name}.weight"] = matrix(inner, hidden)
        weights[f"{layer}.mlp.down_proj.weight"] = matrix(hidden, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{name}.weight"] = numpy.ones(hidden, "float32")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a LoRA run of four steps on ``tiny_model``; ``last`` in it is the checkpoint."""
    from finetune_trainer import FineTuner

    settings = {
        "model": str(tiny_model),
        "model_type": "llama",
        "template": "chatml",
        "train_type": "lora",
        "dataset": str(ROOT / "data/self_cognition.jsonl"),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
    }
    return made_once(
        tmp_path_factory,
        "tiny-run",
        lambda output: FineTuner(settings, output_dir=str(output)).run_training(),
    )


@pytest.fixture(scope="session")
def tuned_checkpoint(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of the quickstart's training, with which SmolLM2 says its new name."""
    from finetune_trainer import FineTuner

    config, data = str(ROOT / "configs/quickstart.json"), str(ROOT / "data/self_cognition.jsonl")
    return made_once(
        tmp_path_factory,
        "quickstart",
        lambda output: FineTuner(config, dataset=data, output_dir=str(output)).run_training(),
    )


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model`` (a LLaVA of random weights), ``images`` and ``train.jsonl``."""
    command = [sys.executable, str(ROOT / "tests/tiny_llava.py")]
    return made_once(
        tmp_path_factory, "llava", lambda folder: subprocess.run([*command, str(folder)], check=True)
    )
