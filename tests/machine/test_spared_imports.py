"""What ms-swift's libraries import for other models is spared, and is there when it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys
from swift_toolkit.machine import msswift

msswift.inference_api()
import gc, importlib.metadata
collects, frozen = gc.isenabled(), gc.get_freeze_count()
before = [name for name in ("scipy.optimize", "torch._inductor.compile_fx") if name in sys.modules]

import inspect
import bitsandbytes, torch
from transformers.loss import loss_utils
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher

stand_in = loss_utils.LOSS_MAPPING["ForObjectDetection"]
try:
    stand_in()
except TypeError as error:
    said = str(error)
try:
    ForObjectDetectionLoss()
except TypeError as error:
    real = str(error)

weights = torch.arange(-32.0, 32.0).reshape(1, 64)
packed, state = bitsandbytes.functional.quantize_4bit(weights, blocksize=64, quant_type="nf4")
away = (bitsandbytes.functional.dequantize_4bit(packed, state) - weights).abs().max().item()
print(json.dumps({
    "collects": collects, "frozen": frozen, "read": importlib.metadata.packages_distributions.__name__,
    "before": before, "same": said == real, "matcher": inspect.isclass(HungarianMatcher), "away": away,
    "detectors": len([name for name in loss_utils.LOSS_MAPPING if "Detection" in name]),
}))
"""


STARTS = """
import os, random, sys
import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from swift_toolkit.machine import msswift

def process(row):
    random.random()
    return {"process": os.getpid()}

msswift.convert_rows_here()
msswift.spare_deepspeed()
rows, state = Dataset.from_list([{"a": 1}] * 4), random.getstate()
assert set(rows.map(process, num_proc=1)["process"]) == {os.getpid()}
assert random.getstate() == state
assert os.getpid() not in rows.map(process, num_proc=2)["process"]
extract_model_from_parallel(torch.nn.Linear(1, 1))
assert "deepspeed" not in sys.modules
"""


NAMES = """
import importlib.util, json, os
from swift_toolkit.machine import msswift

msswift.inference_api()
import transformers
from transformers.utils import import_utils

spec = importlib.util.spec_from_file_location("transformers.utils.unpatched", import_utils.__file__)
unpatched = importlib.util.module_from_spec(spec)
spec.loader.exec_module(unpatched)
models = os.path.join(os.path.dirname(transformers.__file__), "models")
first, again = (import_utils.create_import_structure_from_path(path) for path in (models, models + "/__init__.py"))
print(json.dumps({
    "once": first is again,
    "same": import_utils.define_import_structure(models) == unpatched.define_import_structure(models),
    "models": len(first),
}))
"""


@pytest.mark.slow
def test_rows_need_no_process_and_a_plain_model_no_deepspeed() -> None:
    done = subprocess.run([sys.executable, "-c", STARTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_spared_imports_come_when_they_are_used() -> None:
    pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["before"] == []
    assert found["collects"] and found["frozen"] > 100_000 and found["read"] == "packages_distributions"
    assert found["same"] and found["matcher"] and found["detectors"] > 4
    assert found["away"] < 6


@pytest.mark.slow
def test_the_names_of_transformers_are_read_once_and_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", NAMES], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["once"] and found["same"] and found["models"] > 300
