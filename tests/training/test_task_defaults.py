"""What a task needs is chosen where it was left open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_trainer import FineTuner
from swift_toolkit.dataset.classes import Classes, find_classes
from swift_toolkit.problems import RequestError

GIVEN = {"model": "builtin/SmolLM2-135M-Instruct", "train_type": "lora"}


def tuner(task: str, **more: object) -> FineTuner:
    return FineTuner({**GIVEN, "task": task, "dataset": f"data/{task}.jsonl", **more})


def test_grpo_starts_with_nothing_but_reward_functions() -> None:
    made = tuner("grpo", reward_funcs="format")
    setting = made.config.settings["gradient_accumulation_steps"]
    assert (setting.value, made.plan.batch.effective) == (8, 8)
    assert str(setting.source) == "automatic: 1 × 8 answers, a multiple of the 8 per prompt (num_generations)"
    made = tuner("grpo", reward_funcs="format", num_generations=6, per_device_train_batch_size=4)
    assert made.config.get("gradient_accumulation_steps") == 3
    made = tuner("grpo", reward_funcs="format", per_device_train_batch_size=8, split_dataset_ratio=0.2)
    assert "gradient_accumulation_steps" not in made.config.settings
    assert made.config.get("per_device_eval_batch_size") == 8


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 2, 1], Classes(3, "", "labels from 0 to 2")),
        (["0", "1"], Classes(2, "", "labels from 0 to 1")),
        ([[0], [3, 1], []], Classes(4, "multi_label_classification", "lists of labels from 0 to 3")),
        ([0.5, 2, 1.25], Classes(1, "regression", "numbers as labels")),
        (["good", "bad"], None),
        ([0, 0], None),
        ([0, [1]], None),
        ([None], None),
    ],
)
def test_the_classes_of_labels(labels: list[object], found: Classes | None, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"messages": [{"role": "user", "content": "Hello"}], "label": label} for label in labels]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert find_classes([str(file)]) == found
    with file.open("a") as out:
        out.write("{broken\n")
    assert find_classes([str(file)]) == found


def test_a_classifier_counts_its_classes_unless_they_are_given() -> None:
    made = tuner("seq_cls")
    assert str(made.config.settings["num_labels"].source) == "automatic: labels from 0 to 2 in the data"
    assert made.config.get("num_labels") == 3
    (warning,) = tuner("seq_cls", dataset="owner/labels").config.warnings
    assert "the labels are on a hub: ms-swift assumes 2 classes" in warning.what
    assert tuner("seq_cls", num_labels=5).config.get("num_labels") == 5
    made = tuner("seq_cls", dataset="data/seq_cls_multi.jsonl")
    assert made.config.get("problem_type") == "multi_label_classification"


def test_embeddings_are_compared_with_others() -> None:
    made = tuner("embedding")
    assert (made.config.get("loss_type"), made.plan.batch.rows, made.plan.batch.effective) == (
        "infonce",
        8,
        16,
    )
    assert tuner("reranker").config.get("loss_type") in ("pointwise_reranker", "reranker")


def test_a_batch_of_one_embedding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    texts = [[{"role": "user", "content": f"{n} is a number"}] for n in range(4)]
    file.write_text(
        "".join(json.dumps({"messages": one, "positive_messages": [one]}) + "\n" for one in texts)
    )
    with pytest.raises(RequestError) as caught:
        tuner("embedding", dataset=str(file), per_device_train_batch_size=1)
    assert "there is nothing to compare with, and the loss is 0. Use at least 2." in str(caught.value)


def test_the_steps_of_ppo(tiny_model: Path) -> None:
    judge = {"reward_model": str(tiny_model), "reward_model_type": "llama"}
    given = {"dataset": "data/grpo.jsonl", **judge, "per_device_train_batch_size": 4}
    assert tuner("ppo", **given, max_steps=5).plan.steps == 5
    rows = len(Path("data/grpo.jsonl").read_text().splitlines())
    assert tuner("ppo", **given, num_train_epochs=2).plan.steps == -(-2 * rows // 16)


def test_an_adapter_is_no_reward_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "m/m"}))
    with pytest.raises(RequestError) as caught:
        tuner("ppo", dataset="data/grpo.jsonl", reward_model=str(tmp_path))
    command = f"swift export --adapters {tmp_path} --merge_lora true --output_dir {tmp_path}-merged"
    assert (
        f'names the adapter "{tmp_path}", but ms-swift needs a complete model. Merge it with "{command}"'
        in str(caught.value)
    )


def test_rows_of_gkd_need_no_answers_where_all_are_generated(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    talk = [{"role": "user", "content": "How far is the moon from the earth?"}]
    file.write_text((json.dumps({"messages": talk}) + "\n") * 16)
    given = {"dataset": str(file), "teacher_model": GIVEN["model"]}
    assert tuner("gkd", **given, lmbda=1).data.ok
    for more in ({}, {"lmbda": 0.9}, {"lmbda": 1, "split_dataset_ratio": 0.5}):
        with pytest.raises(RequestError) as caught:
            tuner("gkd", **given, **more)
        assert "assistant" in str(caught.value)


@pytest.mark.swift4
@pytest.mark.parametrize(
    ("rows", "accumulation", "refused"), [(8, None, True), (16, None, False), (8, 8, False)]
)
def test_gkd_needs_the_rows_of_a_step(
    rows: int, accumulation: int | None, refused: bool, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    lines = Path("data/gkd.jsonl").read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join(lines[:rows]) + "\n", encoding="utf-8")
    given = {"dataset": str(data), "teacher_model": "m/t", "gradient_accumulation_steps": accumulation}
    given["per_device_train_batch_size"] = None if accumulation is None else 1
    if not refused:
        tuner("gkd", **given)
        return
    with pytest.raises(RequestError) as caught:
        tuner("gkd", **given)
    assert str(caught.value) == (
        '"gradient_accumulation_steps" makes a step of 16 rows, but there are 8, and ms-swift drops a step that is not '
        "full. Use a smaller one, or more rows."
    )
