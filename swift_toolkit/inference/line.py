"""What a command line for ms-swift says about the questions and the answers, which are options of this toolkit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.config.settings import Config, Setting
from swift_toolkit.model.files import read_json
from swift_toolkit.problems import Problem

DATA = ("val_dataset", "dataset", "load_data_args")


@dataclass(frozen=True)
class LineData:
    """The questions and answers of a command line for ms-swift.

    Args:
        questions: the local file with the questions.
        limit: how many of them are asked; None for all.
        output: the file for the answers.
        chat: the line means a chat: it names no data, or has "eval_human true".
        elsewhere: the problem of data that is missing or cannot be asked here; None if there is none.
    """

    questions: str | None = None
    limit: int | None = None
    output: str | None = None
    chat: bool = False
    elsewhere: Problem | None = None


NO_LINE = LineData()


def read_line(config: Config, checkpoint: Path | None, human: bool | None) -> LineData:
    """Take what a line says about questions and answers out of ``config``.

    Args:
        config: the settings of the line.
        checkpoint: the checkpoint, whose recorded validation data ``load_data_args`` means.
        human: the line's ``eval_human``, see `asks_human`.
    """
    given = {name: config.settings.pop(name) for name in DATA if name in config.settings}
    limit = config.settings.pop("val_dataset_sample", None)
    output = config.settings.pop("result_path", None)
    asked = _entries(given, checkpoint)
    questions, rows = _local_file(asked)
    file = None if output is None else str(Path(output.value).with_suffix(".json"))
    if file is not None:
        config.notices.append(f"result_path → --output {file}")
    least = min((one for one in (rows, limit and limit.value) if one and one > 0), default=None)
    if least is not None:
        config.notices.append(f"--limit {least}")
    if human or (human is None and not given):
        return LineData(chat=True)
    elsewhere = None if questions else _elsewhere(given, asked) if given else _NO_DATA
    return LineData(questions, least, file, elsewhere=elsewhere)


_NO_DATA = Problem(
    "is false, and the line names no data to ask", "Give the questions with --questions-file.", "--eval_human"
)


def asks_human(given: Mapping[str, object]) -> bool | None:
    """``eval_human`` of ms-swift 1 and 2: true for a chat, whatever data there is, and false for the data only; None if
    it is not given.

    Args:
        given: the settings of the line, as written.
    """
    word = str(given.get("eval_human", "")).lower()
    return {"true": True, "1": True, "false": False, "0": False}.get(word)


def _entries(given: dict[str, Setting], checkpoint: Path | None) -> Sequence[str]:
    """The data that is asked: ``val_dataset``, or the one that the training recorded."""
    if "val_dataset" in given:
        return [str(one) for one in given["val_dataset"].value]
    if "load_data_args" not in given or not given["load_data_args"].value or checkpoint is None:
        return []
    recorded, _ = read_json(checkpoint / "args.json")
    found = (recorded or {}).get("val_dataset")
    return [str(one) for one in found] if isinstance(found, list) else []


def _local_file(entries: Sequence[str]) -> tuple[str | None, int | None]:
    """The only entry, if it is a local file, and the number of rows after its ``#``."""
    if len(entries) != 1:
        return None, None
    parts = re.fullmatch(r"(.+?)(?:#(\d+))?", entries[0])
    for name, rows in ((entries[0], None), (parts[1], parts[2]) if parts else ("", None)):
        if name and Path(name).expanduser().is_file():
            return name, int(rows) if rows else None
    return None, None


def _elsewhere(given: dict[str, Setting], asked: Sequence[str]) -> Problem:
    name, setting = next(iter(given.items()))
    if name == "load_data_args":
        what = "means the validation data of the training, "
        what += (
            f"{' '.join(asked)}, which is not one local file"
            if asked
            else "which the checkpoint does not name"
        )
    else:
        what = f"is {setting.shown}, which is not one local file of questions"
    return setting.problem(what, "Give the questions with --questions-file.")
