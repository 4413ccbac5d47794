"""Names of EvalScope's benchmarks in ``eval_dataset``, with a package of EvalScope's layout on the path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import inference_test
from swift_toolkit.config.names.benchmarks import benchmark_names
from swift_toolkit.config.request import load_config
from swift_toolkit.config.requirements import unusual_values
from swift_toolkit.problems import RequestError

ADAPTER = """
@register_benchmark(
    BenchmarkMeta(
        name={},
        pretty_name='Some benchmark',
    )
)
class Adapter(DefaultDataAdapter):
    pass
"""
FILES = {
    "__init__.py": "raise ImportError('only its source is read')\n",
    "constants.py": "class DataCollection:\n    NAME = 'data_collection'\n    INFO = 'collection_info'\n",
    "benchmarks/gsm8k/gsm8k_adapter.py": ADAPTER.format("'gsm8k'"),
    "benchmarks/aime/aime_adapter.py": ADAPTER.format("'aime24'") + ADAPTER.format("'aime25'"),
    "benchmarks/data_collection/data_collection_adapter.py": ADAPTER.format("DataCollection.NAME"),
}
BASE = {"model": "builtin/SmolLM2-135M-Instruct", "dataset": "data/self_cognition.jsonl"}
EVALUATED = {**BASE, "eval_use_evalscope": True}


@pytest.fixture
def evalscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package = tmp_path / "packages/evalscope"
    for name, content in FILES.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.invalidate_caches()
    return package


def problems_of(**settings: object) -> list[str]:
    try:
        load_config({**EVALUATED, **settings})
    except RequestError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.usefixtures("evalscope")
def test_a_misspelled_benchmark_is_an_error_with_the_nearest_name() -> None:
    assert problems_of(eval_dataset=["gsm8k", "aime24x"]) == [
        '"eval_dataset" cannot be "aime24x". Did you mean "aime24"?'
    ]
    assert problems_of(eval_dataset=["nothing_alike"]) == [
        '"eval_dataset" cannot be "nothing_alike". Use one of EvalScope\'s 4 benchmarks.'
    ]
    assert problems_of(eval_dataset=["GSM8K"]) == ['"eval_dataset" cannot be "GSM8K". Did you mean "gsm8k"?']


@pytest.mark.usefixtures("evalscope")
@pytest.mark.parametrize(
    "settings",
    [
        {"eval_dataset": ["gsm8k", "aime25", "data_collection"]},
        {"eval_dataset": ["mine"], "extra_eval_args": {"datasets": ["gsm8k"]}},
        {"eval_dataset": ["mine"], "eval_use_evalscope": False},
    ],
)
def test_nothing_that_is_found_or_not_looked_up_is_an_error(settings: dict[str, object]) -> None:
    assert problems_of(**settings) == []


@pytest.mark.usefixtures("evalscope")
def test_one_of_the_two_settings_alone_has_no_effect() -> None:
    def warnings(**settings: object) -> list[str]:
        config = load_config({**BASE, **settings})
        return [str(problem) for problem in unusual_values(config)]

    assert warnings(eval_dataset=["gsm8k"]) == [
        '"eval_dataset" has no effect without "eval_use_evalscope". Add it.'
    ]
    assert warnings(eval_use_evalscope=True) == [
        '"eval_use_evalscope" has no effect without "eval_dataset". Add it.'
    ]
    assert warnings(eval_use_evalscope=True, eval_dataset=["gsm8k"]) == []


@pytest.mark.usefixtures("evalscope")
def test_a_plugin_may_register_a_benchmark(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("from evalscope.api.registry import register_benchmark as register\n")
    assert problems_of(eval_dataset=["mine"], external_plugins=[str(plugin)]) == []


def _computed(package: Path) -> None:
    (package / "benchmarks/gsm8k/gsm8k_adapter.py").write_text(ADAPTER.format("f'gsm8k_{language}'"))


def _no_benchmarks(package: Path) -> None:
    (package / "benchmarks").rename(package / "tasks")


@pytest.mark.parametrize("change", [_computed, _no_benchmarks])
def test_names_that_the_source_does_not_show_are_not_refused(
    change: Callable[[Path], None], evalscope: Path
) -> None:
    change(evalscope)
    assert benchmark_names() == ()
    assert problems_of(eval_dataset=["mine"]) == []


def test_the_index_of_newer_versions_is_read_as_well(evalscope: Path) -> None:
    assert "gsm8k_de" not in benchmark_names()
    _computed(evalscope)
    (evalscope / "benchmarks/_index.json").write_text(
        '{"gsm8k_de": "evalscope.benchmarks.gsm8k.gsm8k_adapter"}'
    )
    assert "gsm8k_de" in benchmark_names()


def test_a_benchmark_that_was_added_in_the_same_place_is_read(evalscope: Path) -> None:
    assert "mine" not in benchmark_names()
    (evalscope / "benchmarks/mine").mkdir()
    (evalscope / "benchmarks/mine/mine_adapter.py").write_text(ADAPTER.format("'mine'"))
    assert "mine" in benchmark_names()


@pytest.mark.usefixtures("evalscope")
def test_lines_of_swift_eval(capsys: pytest.CaptureFixture[str]) -> None:
    line = "swift eval --model a/b --eval_dataset gsm8kk AIME24"
    assert inference_test.main(["--from-command", line]) == 2
    said = capsys.readouterr().err
    assert said.strip().endswith(
        '--eval_dataset gsm8kk AIME24 (eval_dataset cannot be "gsm8kk". Did you mean "gsm8k"?)'
    )
    assert inference_test.main(["--from-command", f"{line} --eval_backend OpenCompass"]) == 2
    assert "Did you mean" not in capsys.readouterr().err
    assert "evalscope" not in sys.modules
