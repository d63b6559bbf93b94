import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field
from shared_core.data.images import BadImageError
from shared_core.run.checkpoint import CheckpointError
from shared_core.run.command import (
    command_parser,
    free_folder,
    refuse_keys,
    run_arguments,
    sentences,
    short_name,
)
from shared_core.run.config import Config, ConfigError
from shared_core.run.folder import RunFolderError
from shared_core.run.guard import NonFiniteError
from shared_core.run.seal import seal
from tyro.conf import Suppress


class Settings(Config):
    """Settings of a run."""

    epochs: int = Field(1, description="Passes.")
    inner_steps: Suppress[int] = 3


def test_wrong_usage_names_the_command():
    parser = command_parser("prog", "run", "Runs.", usage="prog run [--data SPEC]")
    parser.add_argument("--data")
    assert parser.parse_args(["--data", "digits"]).data == "digits"
    for wrong in (["--dat", "digits"], ["--data"]):
        with pytest.raises(ConfigError, match=r"\nsee prog run --help$"):
            parser.parse_args(wrong)


def arguments(*words):
    parser = command_parser("prog", "run", add_help=False)
    return run_arguments(parser, words, Settings, {"long": lambda: Settings(epochs=100, inner_steps=9)})


def test_preset_file_and_flags_in_rising_order(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 7\n")
    assert arguments().config == Settings()
    assert arguments("--preset", "long").config == Settings(epochs=100, inner_steps=9)
    assert arguments("--preset", "long", "--config", str(file)).config == Settings(epochs=7, inner_steps=9)
    found = arguments("--preset", "long", "--config", str(file), "--epochs", "5", "--out", "x")
    assert found == (Settings(epochs=5, inner_steps=9), Path("x"), None)


def test_resume_takes_the_folders_configuration_and_nothing_beside_it(tmp_path):
    (tmp_path / "config.yaml").write_text("epochs: 4\n")
    assert arguments("--resume", str(tmp_path)) == (Settings(epochs=4), None, tmp_path)
    for more in (["--out", "x"], ["--preset", "long"], ["--config", "x.yaml"]):
        with pytest.raises(ConfigError, match="takes everything from the run's folder"):
            arguments("--resume", str(tmp_path), *more)


def test_resume_refuses_a_configuration_that_another_hand_wrote(tmp_path):
    (tmp_path / "config.yaml").write_text("epochs: 4\n")
    seal(tmp_path, ["config.yaml"])
    assert arguments("--resume", str(tmp_path)).config == Settings(epochs=4)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"config\.yaml is not what this run wrote"):
        arguments("--resume", str(tmp_path))


def test_help_names_the_configurations_flags_too(capsys):
    with pytest.raises(SystemExit) as stopped:
        arguments("--help")
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "--preset" in printed
    assert "--epochs" in printed


@pytest.mark.parametrize("flag", ["--inner-steps", "--inner-steps=4", "--inner_steps"])
def test_keys_of_the_file_are_refused_as_flags(flag):
    with pytest.raises(
        ConfigError, match=r"is no flag: inner_steps is set in the YAML file that --config names"
    ):
        refuse_keys(["--epochs", "3", flag], Settings)
    refuse_keys(["--epochs", "3", "inner-steps"], Settings)


def test_a_free_folder_is_counted_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("runs/a", "runs/a-2", "runs/a-3"):
        folder = free_folder("a")
        assert folder == Path(expected)
        folder.mkdir(parents=True)


@pytest.mark.parametrize(
    ("spec", "name"),
    [("digits", "digits"), ("npz:data/birds.npz#day", "birds"), ("imagefolder:/a/cats", "cats")],
)
def test_short_names(spec, name):
    assert short_name(spec) == name


@pytest.mark.parametrize("kind", [BadImageError, NonFiniteError, CheckpointError, OSError])
def test_failures_with_a_sentence_are_printed(kind, capsys):
    with sentences("prog") as failed:
        raise kind("the disk is full")
    assert [type(error) for error in failed] == [kind]
    assert capsys.readouterr().err == "prog: the disk is full\n"


def test_other_failures_pass_and_folders_are_the_users():
    with pytest.raises(KeyError), sentences("prog"):
        raise KeyError("a bug")
    with pytest.raises(ConfigError, match="is taken"), sentences("prog"):
        raise RunFolderError("the folder is taken")
    with sentences("prog") as failed:
        pass
    assert failed == []


@pytest.mark.parametrize(("code", "go_on", "said"), [
    (143, "prog do --resume runs/a", "prog: saved; go on with: prog do --resume runs/a\n"),
    (130, "prog do --resume runs/a", "prog: saved; go on with: prog do --resume runs/a\n"),
    (0, "--resume runs/a", ""),  # as --help ends
    (143, "", ""),  # a command that cannot go on
])  # fmt: skip
def test_a_run_that_was_told_to_stop_says_how_to_go_on(code, go_on, said, capsys):
    with pytest.raises(SystemExit) as ended, sentences("prog", go_on):
        raise SystemExit(code)
    assert ended.value.code == code
    assert capsys.readouterr().err == said


def test_nothing_here_loads_torch():
    code = "import sys, shared_core.run.command; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
