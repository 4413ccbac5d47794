#!/usr/bin/env python3
"""Speed of inference_test.py, as ratios to raw ms-swift and raw vLLM in one run of this script.

    python benchmarks/inference.py --checkpoint output/quickstart             # everything except vllm; about 15 minutes
    python benchmarks/inference.py checks                                     # help, a misspelled setting; 1 minute
    python benchmarks/inference.py first throughput --checkpoint output/quickstart
    .venv-vllm/bin/python benchmarks/inference.py vllm --checkpoint output/quickstart

Both sides run alternately, so that changes in the machine's speed affect both. The figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

COMMAND = [sys.executable, str(ROOT / "inference_test.py")]
RAW = [str(Path(sys.executable).with_name("swift")), "infer"]
NEW_TOKENS = 32
QUESTIONS = 64

OFFLINE_VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    model = LLM(order["model"], enable_lora=True, max_lora_rank=order["rank"], max_model_len=1024, enforce_eager=True,
                dtype=order["dtype"], seed=42)
    prompts = [{"prompt_token_ids": ids} for ids in order["prompts"]]
    settings = SamplingParams(temperature=0, max_tokens=order["new_tokens"], stop_token_ids=order["stop"])
    adapter = LoRARequest("tuned", 1, order["adapter"])
    model.generate(prompts[:1], settings, lora_request=adapter, use_tqdm=False)
    began = time.perf_counter()
    outputs = model.generate(prompts, settings, lora_request=adapter, use_tqdm=False)
    seconds = time.perf_counter() - began
    print("RESULT", sum(len(output.outputs[0].token_ids) for output in outputs) / seconds)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=["checks", "first", "throughput", "vllm", []], default=[])
    parser.add_argument("--checkpoint", default="output/quickstart", help="default output/quickstart")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each side (default 3)")
    options = parser.parse_args()
    parts = options.parts or ["checks", "first", "throughput"]
    if "checks" in parts:
        checks(options.checkpoint, max(options.runs, 5))
    with tempfile.TemporaryDirectory() as folder:
        for name, part in {"first": first_answer, "throughput": throughput, "vllm": vllm}.items():
            if name in parts:
                part(options.checkpoint, Path(folder), options.runs)


def report(name: str, values: list[float], unit: str = "s") -> float:
    """Print the median of ``values`` and return it."""
    median = statistics.median(values)
    print(f"{name:<48} {median:8.2f} {unit}   ({', '.join(f'{value:.2f}' for value in values)})", flush=True)
    return median


def run(command: list[str], status: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **more)
    if done.returncode != status:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}, not {status}:\n{done.stderr[-2000:]}")
    return done


def in_turn(runs: int, *sides: Callable[[], float]) -> list[list[float]]:
    """The figures of each side, measured alternately."""
    rounds = [[side() for side in sides] for _ in range(runs)]
    return [list(values) for values in zip(*rounds, strict=True)]


def checks(checkpoint: str, runs: int) -> None:
    """Startup times before anything is loaded."""
    for name, words, status in (
        ("--help", ["--help"], 0),
        ("a misspelled setting", ["--checkpoint", checkpoint, "--temprature", "1"], 2),
        ("a correct --dry-run", ["--checkpoint", checkpoint, "--dry-run"], 0),
    ):
        values = []
        for _ in range(runs + 1):  # the first fills the caches
            began = time.perf_counter()
            run([*COMMAND, *words], status)
            values.append(time.perf_counter() - began)
        report(name, values[1:])


def raw_arguments(checkpoint: str) -> list[str]:
    """The arguments with which raw ms-swift loads the same model."""
    from inference_test import InferenceTester
    from swift_toolkit.model.loading import local

    plan = InferenceTester(checkpoint, infer_backend="pt", max_new_tokens=NEW_TOKENS).plan
    return plan.arguments("tuned", local(plan.model_of("tuned")))


def first_answer(checkpoint: str, folder: Path, runs: int) -> None:
    """Time from the command to the first piece of an answer."""
    data = folder / "one.jsonl"
    data.write_text(json.dumps({"messages": [{"role": "user", "content": "Who are you?"}]}) + "\n")
    ask = [*COMMAND, "--checkpoint", checkpoint, "--infer-backend", "pt", "--question", "Who are you?"]
    raw = [*RAW, *raw_arguments(checkpoint), "--val_dataset", str(data), "--stream", "true"]
    raw += ["--result_path", str(folder / "one-out.jsonl")]
    ours, theirs = in_turn(
        runs,
        lambda: seconds_until([*ask, "--max-new-tokens", str(NEW_TOKENS)], r"\S"),
        lambda: seconds_until(raw, r"\[RESPONSE\] *\S"),
    )
    ratio = report("first answer, inference_test.py", ours) / report("first answer, raw swift infer", theirs)
    print(f"{'ratio (at most 1.0)':<48} {ratio:8.2f}\n", flush=True)


def seconds_until(command: list[str], pattern: str) -> float:
    """Wall-clock time until ``pattern`` is in the output of the command on stdout."""
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        text = ""
        while not re.search(pattern, text):
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                sys.exit(f"{' '.join(command)} ended without an answer")
            text += piece.decode("utf-8", "replace")
        took = time.perf_counter() - began
        process.stdout.read()
    return took


def mixed_questions(folder: Path) -> Path:
    """Questions with 1 to 200 words, in random order."""
    words = ("Here is some context that may or may not matter for what is asked at its end. " * 12).split()
    rows = []
    for number in range(QUESTIONS):
        context = " ".join(words[: (number * 37) % 200])
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"{context} Tell me about the number {number}.".strip()}
                ]
            }
        )
    path = folder / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def throughput(checkpoint: str, folder: Path, runs: int) -> None:
    """Tokens per second for mixed questions: automatic batches, raw's default, raw at the same batch size."""
    data, arguments = mixed_questions(folder), raw_arguments(checkpoint)
    largest = 32  # the choice on a CPU, see engine_process.largest_batch
    ours, one, same = in_turn(
        runs,
        lambda: our_speed(checkpoint, data, folder, []),
        lambda: raw_speed(arguments, data, folder, 1),
        lambda: raw_speed(arguments, data, folder, largest),
    )
    speed = report("inference_test.py", ours, "tokens/s")
    alone = report("raw swift infer, its default batch size", one, "tokens/s")
    batched = report(f"raw swift infer, batch size {largest}", same, "tokens/s")
    print(f"{'ratio to the default (at least 3)':<48} {speed / alone:8.2f}")
    print(f"{'ratio at the same batch size (at least 1)':<48} {speed / batched:8.2f}\n", flush=True)


def our_speed(checkpoint: str, data: Path, folder: Path, more: list[str]) -> float:
    output = folder / "ours.json"
    output.unlink(missing_ok=True)
    words = ["--checkpoint", checkpoint, "--questions-file", str(data), "--output", str(output), "--json"]
    done = run([*COMMAND, *words, "--max-new-tokens", str(NEW_TOKENS), "--infer-backend", "pt", *more])
    return float(json.loads(done.stdout)["summary"]["tokens_per_second"])


def raw_speed(arguments: list[str], data: Path, folder: Path, batch_size: int) -> float:
    result = folder / "raw.jsonl"
    result.unlink(missing_ok=True)
    words = ["--val_dataset", str(data), "--result_path", str(result), "--stream", "false"]
    done = run([*RAW, *arguments, *words, "--max_batch_size", str(batch_size)])
    found = re.search(r"'tokens/s': ([\d.]+)", done.stdout + done.stderr)
    if found is None:
        sys.exit("raw swift infer did not report tokens/s")
    return float(found[1])


def vllm(checkpoint: str, folder: Path, runs: int) -> None:
    """Tokens per second on vLLM: with inference_test.py, and with vLLM's offline engine on the same prompts."""
    from transformers import AutoTokenizer

    from inference_test import InferenceTester
    from swift_toolkit.evaluation.questions import QuestionSet
    from swift_toolkit.model.loading import local

    os.environ.setdefault("VLLM_PLUGINS", "")
    data = mixed_questions(folder)
    settings = {"vllm_max_model_len": 1024, "vllm_enforce_eager": True, "max_new_tokens": NEW_TOKENS}
    script = folder / "offline.py"
    script.write_text(OFFLINE_VLLM)

    def ours() -> float:
        output = folder / "vllm.json"
        output.unlink(missing_ok=True)
        with InferenceTester(checkpoint, infer_backend="vllm", **settings) as tester:
            tester.ask("Who are you?")  # as on the other side, the first answer includes compilation
            return float(tester.run_batch(data, output).summary["tokens_per_second"])

    with InferenceTester(checkpoint, infer_backend="pt", **settings) as tester:
        plan = tester.plan
        tokenizer = AutoTokenizer.from_pretrained(local(plan.model_of("tuned")))
        prompts = [
            tokenizer(tester.engine().render(one), add_special_tokens=False).input_ids
            for one in QuestionSet(data)
        ]
        dtype = tester.engine().ready["dtype"]
    order = {
        "model": local(plan.model_of("tuned")),
        "adapter": str(plan.checkpoint.path),
        "rank": 8,
        "dtype": dtype,
        "prompts": prompts,
        "new_tokens": NEW_TOKENS,
        "stop": [tokenizer.eos_token_id],
    }

    def theirs() -> float:
        done = run([sys.executable, str(script), json.dumps(order)])
        return float(done.stdout.split("RESULT")[1].split()[0])

    speeds = in_turn(runs, ours, theirs)
    ratio = report("inference_test.py on vllm", speeds[0], "tokens/s") / report(
        "raw vLLM", speeds[1], "tokens/s"
    )
    print(f"{'ratio (at least 0.95)':<48} {ratio:8.2f}\n", flush=True)


if __name__ == "__main__":
    main()
