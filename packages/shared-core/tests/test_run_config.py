import subprocess
import sys

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field
from shared_core.run.config import (
    Config,
    ConfigError,
    load_yaml,
    parse_config,
    run_commands,
    save_yaml,
    user_errors,
)


class Optim(Config):
    """Optimizer."""

    lr: float = Field(0.1, gt=0, description="Peak learning rate.")
    decay: float = 0.0


class Train(Config):
    """Train a classifier."""

    epochs: int = Field(10, ge=1, description="Passes over the images.")
    stages: tuple[str, ...] | None = None
    name: str = "a"
    optim: Optim = Optim()


def lines_of_error(function, *arguments):
    """0 if the call succeeds; any other exception than the one for users comes through."""
    try:
        function(*arguments)
    except ConfigError as error:
        return len(str(error).splitlines())
    return 0


def parse(*arguments, **options):
    return parse_config(Train, list(arguments), prog="demo train", **options)


def test_defaults_then_file_then_flags(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 3\noptim:\n  lr: 0.5\n")
    preset = Train(name="preset", optim=Optim(decay=0.25), epochs=7)
    assert parse() == Train()
    assert parse(default=preset).epochs == 7
    found = parse("--config", str(file), "--optim.lr", "0.75", default=preset)
    assert found == Train(epochs=3, name="preset", optim=Optim(lr=0.75, decay=0.25))
    assert parse(f"--config={file}").optim.lr == 0.5


@given(
    st.builds(
        Train,
        epochs=st.integers(1, 10**9),
        name=st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20),
        stages=st.none() | st.lists(st.sampled_from(["layer1", "a b", "é: -", "'"]), max_size=3).map(tuple),
        optim=st.builds(
            Optim, lr=st.floats(1e-300, 1e300), decay=st.floats(allow_nan=False, allow_infinity=False)
        ),
    )
)
@example(Train(name="one\x85line\u2028and\u2029more"))
@settings(max_examples=60, deadline=None)
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("c") / "config.yaml"
    save_yaml(config, path)
    assert load_yaml(Train, path) == config


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_file_is_a_config_or_the_one_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "garbage.yaml"
    path.write_bytes(content)
    assert 0 <= lines_of_error(load_yaml, Train, path) <= 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch: 3", "there is no 'epoch', did you mean 'epochs'?"),
        ("lr: 3", "there is no 'lr', did you mean 'optim.lr'?"),
        ("epochs: 0", "epochs: Input should be greater than or equal to 1 (given: 0)"),
        ("optim: {lr: fast}", "optim.lr: Input should be a valid number"),
        ("- 1\n- 2", "must hold `key: value` lines, it holds a list"),
        ("a: [", "is not YAML: while parsing"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML: could not determine a constructor"),
        ("a: 1\nb: 2\nc: 3\nd: 4", "and 2 more faults"),
    ],
)
def test_errors_of_a_file_are_short_and_say_what(tmp_path, content, message):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(file))
    assert message in str(caught.value)
    assert "c.yaml" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "perhaps you meant --epochs"),
        (["--epochs", "many"], "--epochs: "),
        (["--epochs", "0"], "epochs Input should be greater than or equal to 1"),
        (["--config"], "--config needs a file"),
        (["--config", "/nowhere.yaml"], "cannot read the configuration /nowhere.yaml: No such file"),
        (["stray"], "stray"),
    ],
)
def test_errors_of_flags_are_short_and_say_what(arguments, message):
    with pytest.raises(ConfigError) as caught:
        parse(*arguments)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@given(
    st.lists(st.sampled_from(["--epochs", "--", "-x", "3", "--optim.lr", "nan", "--stages", "None", "", "é"]))
)
@settings(max_examples=60, deadline=None)
def test_any_flags_are_a_config_or_the_one_error(arguments):
    assert 0 <= lines_of_error(parse, *arguments) <= 3


def train(arguments):
    """Train a classifier."""
    parse(*arguments)


def commands():
    def fail(arguments):
        """Fail."""
        raise ZeroDivisionError("on purpose")

    def stop(arguments):
        """Stop."""
        return 143

    def interrupt(arguments):
        """Interrupt."""
        raise KeyboardInterrupt

    return {"train": train, "fail": fail, "stop": stop, "interrupt": interrupt}


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["train"], 0, "", ""),
        (["--help"], 0, "train      Train a classifier.", ""),
        ([], 2, "usage: demo COMMAND", ""),
        (["stop"], 143, "", ""),
        (["interrupt"], 130, "", ""),
        (["fail"], 1, "", "ZeroDivisionError: on purpose"),
        (["trian"], 2, "", "demo: there is no command 'trian'; there are train, fail"),
        (["train", "--epochs", "0"], 2, "", "demo: epochs Input should be greater"),
    ],
)
def test_exit_codes(capsys, arguments, code, out, err):
    assert run_commands("demo", commands(), arguments) == code
    printed = capsys.readouterr()
    assert out in printed.out
    assert err in printed.err
    if code == 2:
        assert len(printed.err.splitlines()) <= 3
        assert "Traceback" not in printed.err


def test_help_exits_with_0(capsys):
    with pytest.raises(SystemExit) as caught:
        run_commands("demo", commands(), ["train", "--help"])
    assert caught.value.code == 0
    assert "Peak learning rate." in capsys.readouterr().out


def test_user_errors_are_turned():
    with pytest.raises(ConfigError, match="a data set"), user_errors():
        raise FileNotFoundError("a data set")
    with pytest.raises(ZeroDivisionError), user_errors():
        raise ZeroDivisionError
    with pytest.raises(ConfigError) as caught, user_errors():
        raise ValueError("a\nb\nc\nd")
    assert str(caught.value) == "a\nb\nc"


def test_frozen_and_closed():
    with pytest.raises(ValueError, match="frozen"):
        Train().epochs = 3
    with pytest.raises(ValueError, match="Extra inputs"):
        Train(epoch=3)


def test_help_does_not_import_torch():
    code = (
        "import sys\nimport shared_core\n"
        "from shared_core.run import config, environment, folder, metrics, report, result, stop\n"
        "from shared_core.run.config import Config, parse_config\n"
        "class C(Config):\n    '''X.'''\n    a: int = 1\n"
        "try:\n    parse_config(C, ['--help'], prog='x')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_saved_yaml_holds_all_values_in_order(tmp_path):
    save_yaml(Train(), tmp_path / "c.yaml")
    assert list(yaml.safe_load((tmp_path / "c.yaml").read_text())) == ["epochs", "stages", "name", "optim"]
