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
from typing import Any

from shared_core.run.command import (
    command_parser,
    free_folder,
    json_line,
    resuming,
    run_arguments,
    sentences,
    short_name,
    user_path,
)
from shared_core.run.config import run_commands, user_errors


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    commands = {"train": train, "evaluate": evaluate, "predict": predict, "export": export, "report": report}
    return run_commands("corsd", commands, arguments)


def train(arguments: list[str]) -> int:
    """Train a classifier with CORSD, and its controls on the same number of images."""
    from corsd.config import PRESETS, TrainConfig

    parser = _parser("train", add_help=False, usage="corsd train [--preset NAME] [--out DIR] [FLAGS]")
    config, out, resume = run_arguments(parser, arguments, TrainConfig, PRESETS)

    from shared_core.run.processes import is_main, leave

    from corsd.run import run
    from corsd.summary import sentence

    out = resume or out or free_folder(f"corsd-{short_name(config.data)}")
    with sentences("corsd", resuming("corsd train", out)) as failed:
        result = run(config, out, resume is not None)
        if is_main():
            print(sentence(result))
            print(f"open {out / 'report.html'}")
        leave()
    return int(bool(failed))


def evaluate(arguments: list[str]) -> int:
    """Evaluate the nets of a run: accuracy, per class, calibration, noise, early exits."""
    parser = _parser("evaluate", "Prints a table and writes evaluation.json into the run folder.")
    _add_run(parser)
    parser.add_argument("--data", metavar="SPEC", help="another data set with the same classes")
    parser.add_argument(
        "--data-root", type=user_path, metavar="DIR", help="folder of the torchvision data sets"
    )
    given = parser.parse_args(arguments)

    from shared_core.run.device import choose_device

    from corsd.reevaluate import lines, reevaluate

    with user_errors():
        device = choose_device(given.device)
        evaluation = reevaluate(given.run, device, given.which, given.data, given.data_root)
    print(*lines(evaluation), sep="\n")
    return 0


def predict(arguments: list[str]) -> int:
    """Name what image files show: path, class, probability."""
    parser = _parser("predict", "One line per image; exit code 1 if an image could not be read.")
    _add_run(parser)
    parser.add_argument("images", nargs="+", type=user_path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--json", action="store_true", help="one line of JSON per image")
    given = parser.parse_args(arguments)

    from shared_core.data.images import find_images
    from shared_core.run.device import choose_device

    from corsd.predict import predict as answers
    from corsd.trained import cell_folders, open_trained

    with user_errors():
        device = choose_device(given.device)
        paths = find_images(given.images)
        trained = open_trained(cell_folders(given.run)[0], given.which)
    failed = False
    for answer in answers(trained, paths, device):
        failed |= "error" in answer
        if given.json:
            print(json_line(answer))
        elif "error" in answer:
            print(f"corsd: {answer['error']}", file=sys.stderr)
        else:
            print(f"{answer['path']}\t{answer['class']}\t{answer['probability']:.4f}")
    return int(failed)


def export(arguments: list[str]) -> int:
    """Export the plain net as safetensors, ONNX or torch.export."""
    parser = _parser("export", "Writes the net without anything that only training needed.")
    _add_run(parser)
    parser.add_argument("--format", choices=("safetensors", "onnx", "torch_export"), default="safetensors")
    parser.add_argument("--out", type=user_path, metavar="FILE", required=True)
    given = parser.parse_args(arguments)

    from corsd.export import export as write
    from corsd.trained import cell_folders, open_trained

    with user_errors():
        trained = open_trained(cell_folders(given.run)[0], given.which)
        write(trained, given.format, given.out)
    print(f"wrote {given.out}: {trained.config.model} of {trained.folder}")
    return 0


def report(arguments: list[str]) -> int:
    """Write report.html of a finished run again."""
    parser = _parser("report", "Reads the run folder, and the test images from where the run found them.")
    parser.add_argument("run", type=user_path, metavar="RUN", help="a run folder")
    given = parser.parse_args(arguments)

    from corsd.report import report as write

    with user_errors():
        print(f"open {write(given.run)}")
    return 0


def _parser(command: str, description: str = "", **settings: Any) -> argparse.ArgumentParser:
    return command_parser("corsd", command, description, **settings)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=user_path, metavar="RUN", help="a run folder; of several trainings the first"
    )
    parser.add_argument(
        "--which", choices=("last", "best"), default="last", help="last step, or best validated"
    )
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N | mps")
