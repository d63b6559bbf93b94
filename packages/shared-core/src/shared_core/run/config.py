"""Configuration: one frozen pydantic model is the file, the flags, the validation and the record.

Nothing here imports torch: `corsd train --help` must answer at once.  Let the commands import what they need.

    >>> class TrainConfig(Config):
    ...     '''Train a classifier.'''
    ...     epochs: int = Field(100, ge=1, description="Passes over the images.")
    >>> parse_config(TrainConfig, ["--config", "run.yaml", "--epochs", "5"], prog="corsd train")
"""

import contextlib
import io
import os
import re
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import pydantic

from shared_core.run.atomic import write_yaml
from shared_core.run.yaml_file import YamlError, read_yaml


class Config(pydantic.BaseModel):
    """Base of all configurations: an unknown key is an error, and nothing changes after it was checked.

    `~` at the beginning of a path is the home.  Numbers are finite and of at most 64 bits; true is not 1.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: Any) -> Any:
        kinds = _kinds(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("give a number")
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ValueError("the number does not fit into 64 bits")
        is_path = isinstance(value, str | Path) and Path in kinds
        return Path(value).expanduser() if is_path else value


class ConfigError(ValueError):
    """The user's command line or configuration is wrong; the message has at most three lines."""


Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
"""A seed: what every generator takes, also once a step is added to it."""

C = TypeVar("C", bound=pydantic.BaseModel)
Command = Callable[[list[str]], int | None]


def load_yaml(cls: type[C], path: str | os.PathLike[str], default: C | None = None) -> C:
    """Reads a YAML file into `cls`; keys that the file leaves out come from `default`.

    Raises ConfigError naming the file and the first wrong keys.
    """
    try:
        values = read_yaml(Path(path).expanduser())
    except YamlError as error:
        raise ConfigError(str(error)) from error
    base = {} if default is None else default.model_dump(exclude_unset=False)
    try:
        return cls.model_validate(_merged(base, values))
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {validation_lines(error, cls)}") from error


def save_yaml(config: pydantic.BaseModel, path: str | os.PathLike[str]) -> None:
    """Writes all values, also the defaults, so that the file repeats the run after defaults change."""
    write_yaml(path, config.model_dump(mode="json"))


def parse_config(cls: type[C], arguments: Sequence[str], prog: str, default: C | None = None) -> C:
    """Defaults (a preset's, if given), then the file after `--config`, then the other flags: the last wins.

    Raises ConfigError for what is wrong in them; `--help` prints and raises SystemExit(0).
    """
    import tyro

    arguments, path = _take_option(list(arguments), "--config", prog)
    if path is not None:
        default = load_yaml(cls, path, default)
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            if default is None:
                return tyro.cli(cls, args=arguments, prog=prog)
            return tyro.cli(cls, args=arguments, prog=prog, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_tyro_lines(heard.getvalue(), prog)) from None
    except pydantic.ValidationError as error:
        raise ConfigError(validation_lines(error, cls)) from error


def run_commands(prog: str, commands: Mapping[str, Command], arguments: Sequence[str] | None = None) -> int:
    """`prog COMMAND ...`: calls the command with the arguments after its name; returns the exit code.

    0 done, 1 failed (with a traceback, but for what the disk or the memory refused), 2 wrong usage or configuration
    (at most three lines), 130 interrupted.  A command may return another code.  `prog` alone and `prog --help` list
    the commands by the first line of their docstrings.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _print_anything()
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, commands))
        lines = [f"  {name:<{width}}  {(function.__doc__ or '').strip().splitlines()[0]}"
                 for name, function in commands.items()]  # fmt: skip
        print(f"usage: {prog} COMMAND ...\n", *lines, f"\n{prog} COMMAND --help tells more.", sep="\n")
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise ConfigError(f"there is no command {arguments[0]!r}; there are {', '.join(commands)}")
        return commands[arguments[0]](arguments[1:]) or 0
    except ConfigError as error:
        print(*f"{prog}: {error}".splitlines()[:3], sep="\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Outside of a training: what was saved before is all there is.
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except (OSError, MemoryError) as error:
        # The disk, the rights or the memory of the machine: a traceback would say no more.
        print(f"{prog}: {_one_line(error) or 'not enough memory'}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Inside it, errors that the user's input causes (a missing file, a wrong name) become ConfigErrors.

    For the part of a command that opens data and builds models, not for the training.
    """
    try:
        yield
    except (
        ValueError,
        TypeError,
        ImportError,
        FileNotFoundError,
        NotADirectoryError,
        PermissionError,
    ) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("\n".join(str(error).splitlines()[:3]) or type(error).__name__) from error


def validation_lines(error: pydantic.ValidationError, cls: type[pydantic.BaseModel]) -> str:
    """At most three lines naming key, fault and, for a misspelt key, the likely one."""
    import difflib

    lines = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            names = _field_names(cls)
            close = [n for n in names if n.endswith(f".{where}")]
            close += [n for n in difflib.get_close_matches(where, names, n=2) if n != where]
            text = f"there is no {where!r}" + (f", did you mean {close[0]!r}?" if close else "")
        else:
            text = f"{where or 'the configuration'}: {fault['msg']} (given: {_short(fault['input'])})"
            if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
                text += "; put it in quotes"
        lines.append(text)
    if len(lines) > 3:
        lines[2:] = [f"and {len(lines) - 2} more faults"]
    return "\n".join(lines)


def _kinds(annotation: Any) -> set[Any]:
    """The plain types in an annotation such as `list[int] | None`."""
    inner = get_args(annotation)
    return {annotation} if not inner else {kind for part in inner for kind in _kinds(part)}


def _print_anything() -> None:
    """What a stream's encoding lacks, such as letters where it is ASCII, is printed by its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _field_names(cls: type[pydantic.BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in cls.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            names += _field_names(field.annotation, f"{prefix}{name}.")
    return names


def _take_option(arguments: list[str], option: str, prog: str) -> tuple[list[str], str | None]:
    value, rest = None, []
    items = iter(arguments)
    for item in items:
        if item == option:
            value = next(items, None)
            if value is None:
                raise ConfigError(f"{option} needs a file\nsee {prog} --help")
        elif item.startswith(f"{option}="):
            value = item.removeprefix(f"{option}=")
        else:
            rest.append(item)
    return rest, value


def _merged(base: dict[str, Any], over: dict[Any, Any]) -> dict[Any, Any]:
    """`over` may hold anything for a key, as YAML does; the model names what it does not know."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _tyro_lines(printed: str, prog: str) -> str:
    """What tyro says in a box of many lines, in at most three."""
    printed = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    # A box drawn with lines, whose title is in its edge; or, where the encoding has no lines, plain text with
    # the title as the first block.
    boxed = "│" in printed
    body = [line.strip("│ ") for line in printed.splitlines() if line.startswith("│") or not boxed]
    blocks = " ".join("\0" if line and set(line) <= {"─", "-"} else line for line in body).split("\0")
    if not boxed:
        blocks = blocks[1:] or blocks
    fault = re.sub(r"\[type=.*?\]|For further information visit \S+", "", blocks[0])
    fault = re.sub(r"Error parsing \S+: \d+ validation errors? for \S+", "", fault)
    lines = [" ".join(fault.split()) or "the command line is wrong"]
    meant = next((re.findall(r"--[\w.-]+", b) for b in blocks if "you meant" in b), [])
    # What was given is no help.
    meant = [flag for flag in meant if flag not in re.findall(r"--[\w.-]+", blocks[0])]
    if meant:
        lines.append(f"perhaps you meant {' or '.join(dict.fromkeys(meant[:3]))}")
    return "\n".join([*lines, f"see {prog} --help"])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _short(value: Any) -> str:
    # reprlib: a few lines of YAML that refer to each other can stand for gigabytes of text.
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
