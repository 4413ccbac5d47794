"""Reading one file of settings: what it gives, and the message for everything that can be wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from swift_toolkit.config.file import read_config_file
from swift_toolkit.problems import RequestError


def message_for(name: str, content: str | bytes, folder: Path) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError) as caught:
        read_config_file(path)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.json", '{"model": "m",\n\n "lora_rank": 8}', {"model": 1, "lora_rank": 3}),
        ("bom.json", '\ufeff{"model": "m", "lora_rank": 8}', {"model": 1, "lora_rank": 1}),
        ("crlf.json", '{\r\n"model": "m",\r\n"lora_rank": 8}\r\n', {"model": 2, "lora_rank": 3}),
        ("a.yaml", "# a comment\nmodel: m\nlora_rank: 8\n", {"model": 2, "lora_rank": 3}),
        ("a.YML", "---\nmodel: m\n\nlora_rank: 8\n", {"model": 2, "lora_rank": 4}),
    ],
)
def test_values_and_lines(name: str, content: str, lines: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    read = read_config_file(path)
    assert read.values == {"model": "m", "lora_rank": 8}
    assert read.lines == lines


def test_yaml_is_1_2(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 1e-4\neval_strategy: no\nsystem: |\n  two\n  lines\ndataset: [a, b]\n")
    assert read_config_file(path).values == {
        "learning_rate": 1e-4,
        "eval_strategy": "no",
        "system": "two\nlines\n",
        "dataset": ["a", "b"],
    }


BAD = [
    ("a.json", '{"a": 1,\n "a": 2}', 'a.json:2: "a" is given twice (first on line 1). Keep one of the two.'),
    ("a.json", '{"a": 1,\n}', 'a.json:1: has a comma before the closing "}". Remove the comma.'),
    ("a.json", '{"a": [1,\n]}', 'a.json:1: has a comma before the closing "]". Remove the comma.'),
    (
        "a.json",
        '{"a": 1, // why\n}',
        "a.json:1: JSON does not allow comments. Remove it, or save the file as .yaml.",
    ),
    (
        "a.json",
        '# why\n{"a": 1}',
        "a.json:1: JSON does not allow comments. Remove it, or save the file as .yaml.",
    ),
    ("a.json", "{'a': 1}", 'a.json:1: JSON uses double quotes, not single quotes. Use ".'),
    ("a.json", '{"a": True}', "a.json:1: JSON writes true, false and null. Use these, in lower case."),
    ("a.json", '{"a": 1\n "b": 2}', "a.json:1: lacks a comma after this line's value. Add the comma."),
    ("a.json", '{"a": NaN}', "a.json:1: NaN is not a JSON value. Use a number or null."),
    ("a.json", '{"a": 1', "a.json:1: ends too early. A closing bracket or quote is missing."),
    ("a.json", '{"a": 1}\n{"b": 2}', "a.json:2: continues after the end of the object. Remove the rest."),
    ("a.json", '{"a": \x01}', "a.json:1: is not valid JSON (expecting value)."),
    (
        "a.json",
        '{"a": {"x": 1,\n"x": 2}}',
        'a.json:2: "x" is given twice in one object. Keep one of the two.',
    ),
    ("a.json", "[1]", 'a.json: holds a list, not an object. Write {"model": ..., "dataset": ...}.'),
    ("a.json", "3", 'a.json: holds the value 3, not an object. Write {"model": ..., "dataset": ...}.'),
    ("a.json", "[" * 5000, "a.json: is nested too deeply. Settings cannot be nested."),
    ("a.json", " \n", 'a.json: is empty. It needs at least "model" and "dataset".'),
    ("a.json", b'{"a":\n"\xff"}', "a.json:2: is not UTF-8 text (byte 0xff). Save it as UTF-8."),
    ("a.json", '{"a": 1}'.encode("utf-16"), "a.json: is UTF-16 text. Save it as UTF-8."),
    ("a.json", " " * (4 << 20) + "{}", "a.json: is over 4 MiB, too large for a config. Is it a data file?"),
    ("a.toml", "a = 1", "a.toml: has an unknown extension. Use .json, .yaml or .yml."),
    ("a.yaml", "a: 1\na: 2", 'a.yaml:2: "a" is given twice (first on line 1). Keep one of the two.'),
    ("a.yaml", "a: {b: 1,\n b: 2}", 'a.yaml:2: "b" is given twice in one object. Keep one of the two.'),
    ("a.yaml", "a: [1\nb: 2", "a.yaml:2: is not valid YAML (expected ',' or ']', but got ':')."),
    ("a.yaml", "a: x: y", "a.yaml:1: is not valid YAML (mapping values are not allowed here)."),
    ("a.yaml", "- a", 'a.yaml: holds a list, not settings. Write "model: ..." and "dataset: ..." lines.'),
    ("a.yaml", "# nothing", 'a.yaml: is empty. It needs at least "model" and "dataset".'),
    ("a.yaml", "a: 1\n? [x]\n: 2", "a.yaml:2: has a key that is not a name. Use plain names."),
    (
        "a.yaml",
        "a: 1\nb: !!python/object/apply:os.system [ls]",
        'a.yaml:2: uses the YAML tag "tag:yaml.org,2002:python/object/apply:os.system". '
        "Only plain values are supported: remove it.",
    ),
    ("a.yaml", "a: &x 1\nb: *x", 'a.yaml:2: uses the YAML alias "*x". Write the value itself.'),
    ("a.yaml", "a: 1\n---\nb: 2", "a.yaml:2: is not valid YAML (but found another document)."),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_what_is_wrong_with_a_file(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    assert message_for(name, content, tmp_path) == message


def test_all_repeated_keys_at_once(tmp_path: Path) -> None:
    assert message_for("a.json", '{"a": 1,\n"b": 1,\n"a": 2,\n"b": 2}', tmp_path) == (
        'a.json:3: "a" is given twice (first on line 1). Keep one of the two.\n'
        'a.json:4: "b" is given twice (first on line 2). Keep one of the two.'
    )


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "lora_sft.json").write_text("{}")
    with pytest.raises(RequestError) as caught:
        read_config_file(tmp_path / "lora_stf.json")
    assert (
        str(caught.value)
        == f'{tmp_path}/lora_stf.json: no such file. Did you mean "{tmp_path}/lora_sft.json"?'
    )
    with pytest.raises(RequestError) as caught:
        read_config_file("nowhere/lora.json")
    assert str(caught.value) == 'nowhere/lora.json: no such file. There is no directory "nowhere" either.'


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read_config_file(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a directory. Give a .json, .yaml or .yml file."
