"""``corsd train | evaluate | predict | export | report``.

    corsd train --preset digits --out runs/digits
    corsd evaluate runs/digits
    corsd predict runs/digits cat.png photos/
    corsd export runs/digits --format onnx --out digits.onnx

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 or 143 stopped by a signal after saving.
Nothing here imports torch before a command knows what it has to do: help answers at once.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from shared_core.run.config import ConfigError, load_yaml, parse_config, run_commands


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    commands = {"train": train}
    return run_commands("corsd", commands, arguments)


def train(arguments: list[str]) -> int:
    """Train a classifier with CORSD, and its controls on the same number of images."""
    from corsd.config import PRESETS, TrainConfig

    parser = _parser("train", add_help=False, usage="corsd train [--preset NAME] [--out DIR] [FLAGS]")
    parser.add_argument("--preset", choices=PRESETS, help="where to start from")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file; its values win over the preset's"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder; default runs/corsd-DATA")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    given, flags = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(flags):
        print(parser.format_help() + "\nFlags win over the file, and the file over the preset:\n")
    if given.resume and (given.preset or given.config or given.out):
        raise ConfigError(
            "--resume takes everything from the run's folder: leave out --preset, --config, --out"
        )
    default = PRESETS[given.preset]() if given.preset else None
    if given.config:
        default = load_yaml(TrainConfig, given.config, default)
    if given.resume:
        default = load_yaml(TrainConfig, given.resume / "config.yaml")
    config = parse_config(TrainConfig, flags, "corsd train", default)

    from corsd import run

    out = given.resume or given.out or _free_folder(config.data)
    return _reported(lambda: _train(run, config, out, resume=bool(given.resume)))


def _train(run: Any, config: Any, out: Path, resume: bool) -> None:
    result = run.run(config, out, resume)
    if run.is_main():
        print(run.sentence(result))
        print(f"open {out / 'report.html'}")


def _parser(command: str, description: str = "", **settings: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"corsd {command}", description=description, allow_abbrev=False, **settings
    )

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}\nsee corsd {command} --help")

    parser.error = refuse  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def _free_folder(data: str) -> Path:
    """runs/corsd-DATA, or with -2, -3, ... where that is taken."""
    kind, _, rest = data.partition(":")
    name = f"runs/corsd-{Path(rest.partition('#')[0]).stem if rest else kind}"
    folders = (Path(name if n == 1 else f"{name}-{n}") for n in range(1, 10_000))
    return next(folder for folder in folders if not folder.exists())


def _reported(work: Any) -> int:
    """Calls ``work``; failures that need no traceback become one sentence and exit code 1."""
    from shared_core.run.checkpoint import CheckpointError
    from shared_core.run.folder import RunFolderError
    from shared_core.run.guard import NonFiniteError

    try:
        work()
    except RunFolderError as error:
        raise ConfigError(str(error)) from error
    except (NonFiniteError, CheckpointError, OSError) as error:
        print(f"corsd: {error}", file=sys.stderr)
        return 1
    return 0
