"""The script that compares a version of ms-swift with our tables knows the tested ones and names what a new one brings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from swift_toolkit.machine.msswift import installed, installed_in
from swift_toolkit.machine.packages import record_of

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools/check_new_ms_swift.py"
OTHERS = sorted(ROOT.glob(".venv*/lib/python3.*/site-packages/swift/version.py"))


def check(place: Path) -> tuple[int, list[str], str]:
    run = subprocess.run([sys.executable, SCRIPT, place], capture_output=True, text=True)
    return run.returncode, run.stdout.splitlines(), run.stderr.strip()


@pytest.mark.parametrize("package", [installed().location, *(file.parent for file in OTHERS)], ids=str)
def test_nothing_is_unknown_in_the_tested_versions(package: Path) -> None:
    assert check(package) == check(package.parent) == (0, [], "everything is known")


def test_nothing_of_ms_swift_is_imported() -> None:
    code = f"import sys; sys.argv = ['check', {str(installed().location)!r}]; import runpy\n"
    code += f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\nexcept SystemExit: pass\n"
    code += "print(sorted({'swift', 'torch', 'transformers'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n"


CHANGES_OF_4 = [
    ("arguments/rlhf_args.py", r"'gkd'\]", "'gkd', 'zpo']"),
    ("arguments/base_args/model_args.py", r"task_type: Literal\['causal_lm'", "task_type: Literal['causal_lm', 'poetry'"),
    ("arguments/base_args/data_args.py", "decision_shuffle_fields: bool = False", "colour: str = 'red'"),
    ("optimizers/mapping.py", "optimizers_map", "all_optimizers"),
    ("dataset/preprocessor/core.py", "'margin',", "'margin', 'colour',"),
]  # fmt: skip


@pytest.mark.skipif(installed().line != "v4", reason="changes the source of ms-swift 4")
def test_what_a_new_version_brings_is_named_with_the_file_to_change(tmp_path: Path) -> None:
    location, record = installed().location, record_of("ms-swift")
    assert record is not None
    copy = tmp_path / "swift"
    shutil.copytree(location, copy, ignore=shutil.ignore_patterns("__pycache__", "megatron"))
    for name, old, new in CHANGES_OF_4:
        text, count = re.subn(old, new, (copy / name).read_text())
        assert count, name
        (copy / name).write_text(text)
    metadata = (record / "METADATA").read_text()
    metadata = re.sub("(Requires-Dist: trl)[^;\n]*", r"\1>=99", metadata)
    wheel = tmp_path / "ms_swift-4.7.0-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for file in copy.rglob("*.py"):
            archive.write(file, file.relative_to(tmp_path))
        archive.writestr("ms_swift-4.7.0.dist-info/METADATA", metadata)
    pinned = re.search(r"^trl==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    all_commands = "sft, pt, rlhf, infer, deploy, export, eval"
    assert check(wheel) == (
        1,
        [
            "swift_toolkit/config/tasks.py",
            '  rlhf_type "zpo" is not a task',
            '  task_type "poetry" is not a task',
            "swift_toolkit/config/names/renames.json",
            f'  "colour" is new ({all_commands})',
            f'  "decision_shuffle_fields" was removed and has no row ({all_commands})',
            '  "rlhf_type" takes the new "zpo" (rlhf)',
            f'  "task_type" takes the new "poetry" ({all_commands})',
            "swift_toolkit/config/names/registries.py",
            "  the table of optimizer has moved",
            "swift_toolkit/dataset/rows/formats.py",
            '  column "colour" is not known',
            "constraints.txt",
            f"  trl=={pinned[1]} is pinned, but it needs trl>=99",
        ],
        "9 to check",
    )


@pytest.mark.skipif(not OTHERS, reason="needs another ms-swift in a virtual environment beside")
def test_a_wheel_of_another_generation_is_not_compared_with_our_transformers(tmp_path: Path) -> None:
    (package,) = [file.parent for file in OTHERS if file.parent != installed().location][:1] or [None]
    if package is None or installed_in(package).line == installed().line:
        pytest.skip("needs the other generation")
    (record,) = package.parent.glob("ms_swift-*.dist-info")
    wheel = tmp_path / "ms_swift.whl"
    with ZipFile(wheel, "w") as archive:
        for file in package.rglob("*.py"):
            archive.write(file, file.relative_to(package.parent))
        archive.write(record / "METADATA", f"{record.name}/METADATA")
    status, found, said = check(wheel)
    assert (status, found) == (0, []), said
    assert re.fullmatch(
        r"transformers \S+ is installed, but ms-swift \S+ needs \S+: "
        r"renamed arguments of training were not compared\neverything is known",
        said,
    )


def test_a_place_without_ms_swift(tmp_path: Path) -> None:
    (tmp_path / "no.whl").write_text("no wheel")
    assert check(tmp_path)[::2] == (
        2,
        f'{tmp_path}: ms-swift is not installed. Run: pip install "ms-swift==4.6.0".',
    )
    assert check(tmp_path / "no.whl")[::2] == (2, f"{tmp_path}/no.whl: File is not a zip file")
