"""Configuration files as people write them: words, numbers, dates, keys that come twice, tabs, marks of order."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field
from shared_core.run.command import json_line, user_path
from shared_core.run.config import Config, ConfigError, Seed, load_yaml, save_yaml
from shared_core.run.yaml_file import YamlError, read_yaml


class Inner(Config):
    """A record inside."""

    lr: float = Field(0.1, gt=0)
    exits: Literal["off", "no", "on", "yes"] = "on"


class Outer(Config):
    """A configuration."""

    steps: int = 10
    rate: float = 1.0
    seeds: list[Seed] = Field([0])
    name: str = "a"
    flag: bool = False
    data_root: Path | None = None
    inner: Inner = Inner()


def load(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_yaml(Outer, path)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        *((f"inner: {{exits: {word}}}", "inner.exits", word) for word in ("off", "no", "on", "yes")),
        ("name: no", "name", "no"),
        ("name: 2024-01-01", "name", "2024-01-01"),
        ("name: 12:30", "name", "12:30"),
        ("flag: on", "flag", True),
        ("flag: no", "flag", False),
        ("flag: True", "flag", True),
        ("steps: 1e3", "steps", 1000),
        ("steps: 0x10", "steps", 16),
        ("steps: 010", "steps", 10),
        ("steps: 1_000", "steps", 1000),
        ("rate: 1e-3", "rate", 1e-3),
        ("rate: 1.e-3", "rate", 1e-3),
        ("rate: -.5", "rate", -0.5),
        ("rate: '2'", "rate", 2.0),
        ("inner.lr: 0.5", "inner.lr", 0.5),
        ("inner.lr: 0.5\ninner: {exits: off}", "inner.lr", 0.5),
        ("inner: {exits: off}\ninner.lr: 0.5", "inner.exits", "off"),
        ("\ufeffsteps: 3", "steps", 3),
        ("steps: 3\r\nname: b\r\n", "name", "b"),
        ("a: &x {lr: 2}\n", None, r"there is no 'a'"),
        ("data_root: ~/sets", "data_root", Path.home() / "sets"),
        ("data_root: ~", "data_root", None),
    ],
)
def test_what_is_meant_is_read(tmp_path, text, key, value):
    if key is None:
        with pytest.raises(ConfigError, match=value):
            load(tmp_path, text)
        return
    found = load(tmp_path, text)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate: .inf", r"rate: Input should be a finite number"),
        ("rate: .nan", r"finite number"),
        ("rate: 1e999", r"finite number"),
        ("inner: {lr: .inf}", r"inner.lr: Input should be a finite number"),
        ("steps: .inf", r"steps: "),
        (f"steps: {2**63}", r"steps: .*does not fit into 64 bits"),
        (f"rate: {10**400}", r"rate: .*does not fit into 64 bits"),
        (f"seeds: [{2**32}]", r"seeds.0: Input should be less than"),
        (f"seeds: [{-(2**70)}]", r"seeds: .*64 bits"),
        ("seeds: [-1]", r"seeds.0: Input should be greater than or equal to 0"),
        ("steps: " + "9" * 5000, r"is not a configuration: Exceeds the limit"),
        ("steps: true", r"steps: .*give a number"),
        ("rate: yes", r"rate: Input should be a valid number"),
        ("name: 7", r"name: Input should be a valid string \(given: 7\); put it in quotes"),
        ("steps: 1:30", r"steps: "),
        ("steps: 1\nrate: 2\nsteps: 3", r"run.yaml, line 3: the key 'steps' is there twice; keep one"),
        ("inner: {lr: 1, lr: 2}", r"line 1: the key 'lr' is there twice"),
        ("inner.lr: 1\ninner: {lr: 2}", r"'inner.lr' is there twice"),
        ("inner.lr: 1\ninner.lr: 2", r"the key 'inner.lr' is there twice"),
        ("inner.rl: 1", r"there is no 'inner.rl', did you mean 'inner.lr'\?"),
        ("lr: 1", r"there is no 'lr', did you mean 'inner.lr'\?"),
        ("inner:\n\tlr: 1", r"run.yaml, line 2: a tab cannot indent YAML; use blanks"),
        ("steps: [1", r"is not YAML"),
        ("--- {}\n--- {}\n", r"is not YAML"),
        ("? [1, 2]\n: 3\n", r"is not a configuration|is not YAML|no "),
        ("- 1", r"must hold `key: value` lines, it holds a list"),
        ("steps: 3".encode("utf-16"), r"it is not a text file in UTF-8"),
    ],
)
def test_what_cannot_be_meant_gets_a_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as refused:
        load(tmp_path, text)
    assert len(str(refused.value).splitlines()) <= 3
    given = text if isinstance(text, str) else ""
    for key in [line.partition(":")[0] for line in given.splitlines()]:
        assert f"did you mean '{key}'" not in str(refused.value)


def test_merge_keys_and_saved_files(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &x {lr: 2, exits: off}\nb: {<<: *x, lr: 3}\n")
    assert read_yaml(path)["b"] == {"lr": 3, "exits": "off"}
    config = Outer(name="off", inner=Inner(exits="no", lr=1e-7), seeds=[2**32 - 1])
    save_yaml(config, path)
    assert load_yaml(Outer, path) == config
    with pytest.raises(YamlError, match=r"cannot read the configuration .*: Is a directory"):
        read_yaml(tmp_path)


def test_home_in_paths_of_the_command_line_and_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("steps: 4\n")
    assert user_path("~/runs") == tmp_path / "runs"
    assert load_yaml(Outer, "~/run.yaml").steps == 4
    assert Outer(data_root=Path("~/x")).data_root == tmp_path / "x"
    assert Outer(name="~/x").name == "~/x"


PROGRAM = """
import sys
from shared_core.run.command import json_line
from shared_core.run.config import run_commands
def show(arguments):
    '''Print a caf\\u00e9.'''
    print("caf\\u00e9 \\u2502")
    print(json_line({"name": "caf\\u00e9"}))
sys.exit(run_commands("demo", {"show": show}))
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_terminal(encoding):
    def run(*arguments):
        command = [sys.executable, "-c", PROGRAM, *arguments]
        done = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": encoding}, check=True)
        return done.stdout.decode(encoding).splitlines()

    shown, line = run("show")
    assert shown.startswith("caf")
    assert json.loads(line) == {"name": "café"}
    assert any(text.strip().startswith("show") for text in run("--help"))


def test_lines_of_json_on_a_stream_without_an_encoding(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert json.loads(json_line({"a": "é"})) == {"a": "é"}
