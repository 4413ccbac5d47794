"""Whether a training checkpoint is whole, on files that torch and safetensors wrote."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.model.checkpoints import pickled, training_state
from tests.training_checkpoints import write_checkpoint


class Unsafe:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint-2")


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoint-2"))


def messages(path: Path, every_byte: bool = True) -> list[str]:
    return [str(problem) for problem in training_state.training_state_problems(path, every_byte)]


NEEDED = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
]


def test_a_whole_checkpoint(checkpoint: Path) -> None:
    assert messages(checkpoint) == []
    state = training_state.read_state(checkpoint)
    assert (state.step, state.max_steps, state.processes, state.best) == (2, 4, 1, None)
    assert not (state.evaluated or state.deepspeed)


@pytest.mark.parametrize("name", NEEDED)
def test_each_file_must_be_there(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    (message,) = messages(checkpoint, every_byte=False)
    assert name in message
    assert message.endswith("Resume from an earlier checkpoint.")


@pytest.mark.parametrize("name", NEEDED)
def test_each_file_must_have_its_end(checkpoint: Path, name: str) -> None:
    """Cut at many places, as a kill in the middle of a write does."""
    file = checkpoint / name
    whole = file.read_bytes()
    for part in (0, 1, 2, 8, 9, *range(10, len(whole), max(len(whole) // 40, 1)), len(whole) - 1):
        file.write_bytes(whole[:part])
        assert messages(checkpoint, every_byte=False), f"{name} cut at {part} of {len(whole)}"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_flipped_bit(checkpoint: Path, name: str) -> None:
    """In the middle of the largest tensor, where no structure would tell."""
    file = checkpoint / name
    content = bytearray(file.read_bytes())
    if name == "adapter_model.safetensors":
        place = len(content) - 100
    else:
        with zipfile.ZipFile(file) as archive:
            tensors = [one for one in archive.infolist() if "/data/" in one.filename]
            entry = max(tensors, key=lambda one: one.file_size)
        place = entry.header_offset + 150 + entry.file_size // 2
    content[place] ^= 4
    file.write_bytes(content)
    assert messages(checkpoint, every_byte=False) == []
    (message,) = messages(checkpoint)
    assert str(file) in message
    assert "damaged" in message


def test_a_pickle_that_would_run_code(checkpoint: Path) -> None:
    import torch

    torch.save({"state": Unsafe()}, checkpoint / "scheduler.pt")
    (message,) = messages(checkpoint)
    assert message == (
        f"{checkpoint}/scheduler.pt would run code when it is read: {os.system.__module__}.system. "
        "Do not use it unless you wrote it yourself."
    )


def test_what_torch_allows_is_allowed() -> None:
    """All that ``torch.load(weights_only=True)`` accepts, by its own list."""
    from torch._weights_only_unpickler import _get_allowed_globals

    names = [" ".join(name.rsplit(".", 1)) for name in _get_allowed_globals()]
    assert [name for name in names if not pickled.HARMLESS.fullmatch(name)] == []
    for name in ("torch load", "torch.hub load", "os system", "builtins eval", "numpy load", "posix system"):
        assert not pickled.HARMLESS.fullmatch(name)


def test_each_rank_has_its_random_state(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoint-2", processes=3)
    assert messages(path) == []
    (path / "rng_state_1.pth").unlink()
    assert messages(path) == [
        f"{path} is incomplete: there is no rng_state_1.pth. Resume from an earlier checkpoint."
    ]


def test_a_checkpoint_of_the_model_only(checkpoint: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    assert messages(checkpoint) == [
        f"{checkpoint} was saved with save_only_model: it has no optimizer, scheduler or random state. "
        'Its weights can start a new training: set "resume_only_model" to true together with "resume_from_checkpoint".'
    ]


def test_the_files_of_deepspeed(checkpoint: Path) -> None:
    """ZeRO-2 on two processes: the optimizer lies in a folder of its own, a file a process."""
    args = {"tuner_type": "lora", "global_world_size": 2, "deepspeed": {"zero_optimization": {"stage": 2}}}
    (checkpoint / "args.json").write_text(json.dumps(args))
    (checkpoint / "latest").write_text("global_step2")
    folder = checkpoint / "global_step2"
    folder.mkdir()
    names = ["mp_rank_00_model_states.pt"]
    names += [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
    for name in names:
        shutil.copy(checkpoint / "optimizer.pt", folder / name)
    for rank in (0, 1):
        shutil.copy(checkpoint / "rng_state.pth", checkpoint / f"rng_state_{rank}.pth")
    (checkpoint / "rng_state.pth").unlink()
    (checkpoint / "optimizer.pt").unlink()
    assert messages(checkpoint) == []
    assert training_state.read_state(checkpoint).deepspeed
    for name in names:
        (folder / name).rename(folder / "away")
        (message,) = messages(checkpoint)
        assert name in message
        (folder / "away").rename(folder / name)


@pytest.mark.slow
def test_what_ms_swift_writes_is_whole(tiny_checkpoint: Path) -> None:
    path = (tiny_checkpoint / "last").resolve()
    assert messages(path) == []
    state = training_state.read_state(path)
    assert (state.step, state.max_steps, state.processes) == (4, 4, 1)


@pytest.mark.parametrize("before", [(), (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})])
def test_code_in_a_pickle_of_old_torch(before: tuple[object, ...], tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.bin"
    file.write_bytes(b"".join(pickle.dumps(one, 2) for one in (*before, Unsafe())))
    fault = pickled.fault(file)
    assert fault is not None and "would run code when it is read" in fault[0]


def test_a_harmless_file_of_old_torch(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "adapter_model.bin"
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    assert pickled.fault(file) is None
