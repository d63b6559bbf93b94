"""What the commands of the three methods have in common.  Nothing here imports torch before it is used."""

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

import pydantic

from shared_core.run.config import ConfigError, load_yaml, parse_config, user_errors
from shared_core.run.seal import check_seal


def command_parser(
    prog: str, command: str, description: str = "", **settings: Any
) -> argparse.ArgumentParser:
    """The parser of `prog command`: no abbreviated flags, and wrong usage raises ConfigError.

    `settings` go to ArgumentParser.
    """
    name = f"{prog} {command}"
    parser = argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False, **settings)

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}\nsee {name} --help")

    parser.error = refuse  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def user_path(text: str) -> Path:
    """A path of the command line; the shell leaves `~` alone in `--out=~/run`, this does not."""
    return Path(text).expanduser()


def json_line(record: Mapping[str, Any]) -> str:
    """One line of JSON that the terminal's encoding can print."""
    letters = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(record, ensure_ascii=not letters)


class RunArguments(NamedTuple):
    """What the main command of a method was told; `resume` is the folder to go on with."""

    config: Any
    out: Path | None
    resume: Path | None


def run_arguments(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    config: type[pydantic.BaseModel],
    presets: Mapping[str, Callable[[], Any]],
) -> RunArguments:
    """Reads --preset, --config, --out, --resume and the configuration's own flags; the later in this list win:
    preset, file, flags.

    `parser` is made with `add_help=False`, so that --help shows the configuration's flags too.
    Raises ConfigError for what is wrong in them; `--help` prints and raises SystemExit(0).
    """
    parser.add_argument("--preset", choices=presets, help="where to start from")
    parser.add_argument(
        "--config", type=user_path, metavar="FILE", help="YAML file; its values win over the preset's"
    )
    parser.add_argument(
        "--out", type=user_path, metavar="DIR", help="run folder; by default a new one in runs/"
    )
    parser.add_argument("--resume", type=user_path, metavar="DIR", help="go on with the run in this folder")
    given, flags = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(flags):
        print(parser.format_help() + "\nFlags win over the file, and the file over the preset:\n")
    if given.resume and (given.preset or given.config or given.out):
        raise ConfigError(
            "--resume takes everything from the run's folder: leave out --preset, --config, --out"
        )
    default = presets[given.preset]() if given.preset else None
    if given.config:
        default = load_yaml(config, given.config, default)
    if given.resume:
        # An emptied file, too, is a configuration: one of defaults alone.
        with user_errors():
            check_seal(given.resume, ["config.yaml"])
        default = load_yaml(config, given.resume / "config.yaml")
    refuse_keys(flags, config)
    return RunArguments(parse_config(config, flags, parser.prog, default), given.out, given.resume)


def refuse_keys(flags: Sequence[str], config: type[pydantic.BaseModel]) -> None:
    """Raises ConfigError for a flag that is a key of the file only; tyro just knows that it is no flag."""
    from tyro.conf import Suppress

    hidden = get_args(Suppress[int])[1]
    keys = {name for name, field in config.model_fields.items() if hidden in field.metadata}
    for flag in flags:
        key = flag.removeprefix("--").partition("=")[0].partition(".")[0].replace("-", "_")
        if flag.startswith("--") and key in keys:
            raise ConfigError(f"{flag} is no flag: {key} is set in the YAML file that --config names")


def free_folder(name: str) -> Path:
    """`runs/NAME`, or with -2, -3, ... where that is taken."""
    folders = (Path("runs") / (name if n == 1 else f"{name}-{n}") for n in range(1, 10_000))
    return next(folder for folder in folders if not folder.exists())


def short_name(spec: str) -> str:
    """A data set's or a net's spec as part of a file name: `digits`, and `birds` of `npz:data/birds.npz#day`."""
    kind, _, rest = spec.partition(":")
    return Path(rest.partition("#")[0]).stem if rest else kind


def resuming(command: str, out: Path, flag: str = "--resume") -> str:
    """The command that goes on with the run in `out`, ready for a shell."""
    return f"{command} {flag} {shlex.quote(str(out))}"


@contextlib.contextmanager
def sentences(prog: str, go_on: str = "") -> Iterator[list[Exception]]:
    """Failures of a run that a sentence explains are printed and kept in the list; others keep their traceback.

    A run folder that cannot be used is the caller's fault and becomes a ConfigError.  A run that was told to stop says
    that it saved, and the command, `go_on`, that goes on with it.

        >>> with sentences("corsd", resuming("corsd train", out)) as failed:
        ...     run(config, out)
        >>> return int(bool(failed))
    """
    from shared_core.data.images import BadImageError
    from shared_core.run.checkpoint import CheckpointError
    from shared_core.run.folder import RunFolderError
    from shared_core.run.guard import NonFiniteError
    from shared_core.run.processes import is_main
    from shared_core.run.stop import StopFlag

    failed: list[Exception] = []
    try:
        yield failed
    except SystemExit as ended:
        told = ended.code in {128 + number for number in StopFlag.SIGNALS}
        if told and go_on and is_main():
            print(f"{prog}: saved; go on with: {go_on}", file=sys.stderr)
        raise
    except RunFolderError as error:
        raise ConfigError(str(error)) from error
    except (BadImageError, NonFiniteError, CheckpointError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        failed.append(error)
