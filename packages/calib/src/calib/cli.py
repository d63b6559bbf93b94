"""``calib adapt | evaluate | predict | analyse | translate | export | report``.

    calib adapt --preset digits --out runs/digits
    calib evaluate runs/digits
    calib predict runs/digits photo.png folder/ --json
    calib analyse runs/digits
    calib translate --source mnist --target usps --data-root data --out runs/style
    calib export runs/digits --format onnx --out digits.onnx

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 or 143 stopped by a signal after saving.
Nothing here imports torch before a command knows what it has to do: help answers at once.
"""

import argparse
import shlex
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
from shared_core.run.config import ConfigError, run_commands, user_errors


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    commands = {
        "adapt": adapt,
        "evaluate": evaluate,
        "predict": predict,
        "analyse": analyse,
        "translate": translate,
        "export": export,
        "report": report,
    }
    return run_commands("calib", commands, arguments)


def adapt(arguments: list[str]) -> int:
    """Train a calibrator in front of a frozen classifier, and the baselines beside it."""
    from calib.config import PRESETS, AdaptConfig

    parser = _parser("adapt", add_help=False, usage="calib adapt [--preset NAME] [--out DIR] [FLAGS]")
    config, out, resume = run_arguments(parser, arguments, AdaptConfig, PRESETS)

    from shared_core.run.processes import is_main, leave

    from calib.run import run
    from calib.summary import cautions, sentence

    out = resume or out or free_folder(f"calib-{short_name(config.target)}")
    with sentences("calib", resuming("calib adapt", out)) as failed:
        result = run(config, out, resume is not None)
        if is_main():
            print(*cautions(result), sentence(result), sep="\n")
            print(f"open {out / 'report.html'}")
        leave()
    return int(bool(failed))


def evaluate(arguments: list[str]) -> int:
    """Score source and target, without and with the calibrator: the four numbers."""
    parser = _parser("evaluate", "Prints a table and writes reevaluation.json into the run folder.")
    _add_run(parser)
    parser.add_argument("--data-source", metavar="SPEC", help="another source with the same classes")
    parser.add_argument("--data-target", metavar="SPEC", help="another target with the same classes")
    parser.add_argument(
        "--data-root", type=user_path, metavar="DIR", help="folder of the torchvision data sets"
    )
    given = parser.parse_args(arguments)

    from shared_core.run.device import choose_device

    from calib.reevaluate import lines, reevaluate

    with user_errors():
        device = choose_device(given.device)
        evaluation = reevaluate(
            given.run, device, given.data_source, given.data_target, given.data_root, given.calibrator
        )
    print(*lines(evaluation), sep="\n")
    return 0


def predict(arguments: list[str]) -> int:
    """Name what image files show: path, class, probability."""
    parser = _parser("predict", "One line per image; exit code 1 if an image could not be read.")
    _add_run(parser)
    parser.add_argument("images", nargs="+", type=user_path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument(
        "--alpha", type=float, default=1.0, help="share of the correction, 0 is off; default 1"
    )
    parser.add_argument(
        "--out", type=user_path, metavar="DIR", help="where a segmentation run writes label maps"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON per image")
    given = parser.parse_args(arguments)

    from shared_core.data.images import find_images
    from shared_core.run.device import choose_device

    from calib.predict import predict as named
    from calib.predict import segment
    from calib.trained import cell_folders, open_trained

    failed = False
    with user_errors():
        device = choose_device(given.device)
        paths = find_images(given.images)
        trained = open_trained(cell_folders(given.run)[0], given.calibrator)
        if given.out is None:
            answers = named(trained, paths, device, given.alpha)
        else:
            answers = segment(trained, paths, given.out, device, given.alpha)
        for answer in answers:
            failed |= "error" in answer
            if given.json:
                print(json_line(answer))
            elif "error" in answer:
                print(f"calib: {answer['error']}", file=sys.stderr)
            elif given.out is None:
                print(f"{answer['path']}\t{answer['class']}\t{answer['probability']:.4f}")
            else:
                print(f"{answer['path']}\t{answer['map']}")
    return int(failed)


def analyse(arguments: list[str]) -> int:
    """Compare the calibrator with an attack on its critics and with noise; spectra; score by epsilon."""
    parser = _parser("analyse", "Writes analysis.json into the run folder, and the report again.")
    parser.add_argument("run", type=user_path, metavar="RUN", help="a run folder; of several seeds the first")
    parser.add_argument("--images", type=int, metavar="N", help="test images of each domain; default by size")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps of the attack; default 10")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N | mps")
    given = parser.parse_args(arguments)

    from shared_core.run.device import choose_device

    from calib.analysis import analyse as analysed
    from calib.analysis import lines
    from calib.report import report as write

    with sentences("calib") as failed, user_errors():
        analysis = analysed(given.run, choose_device(given.device), given.images, given.steps)
        print(*lines(analysis), f"open {write(given.run)}", sep="\n")
    return int(bool(failed))


def translate(arguments: list[str]) -> int:
    """Train a small CycleGAN from source to target and write the source's images in the target's style."""
    parser = _parser(
        "translate",
        "Writes OUT/train/CLASS/ID.png, for calib adapt --translated imagefolder:OUT. Images may turn into those of "
        "another class: look at them, or let --judge count.",
    )
    parser.add_argument("--source", required=True, metavar="SPEC", help="labelled images, as in calib adapt")
    parser.add_argument("--target", required=True, metavar="SPEC", help="images of the style")
    parser.add_argument("--out", required=True, type=user_path, metavar="DIR", help="run folder")
    parser.add_argument("--preset", choices=("digits", "large"), default="digits", help="default digits")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the preset's")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the images, a multiple of 4")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="default: the preset's")
    parser.add_argument(
        "--pose",
        action="store_true",
        help="first magnify, slant and move the source's figures as the target's are; for one figure on an even ground",
    )
    parser.add_argument("--seed", type=int, default=0, choices=range(2**32), metavar="N")
    parser.add_argument(
        "--tracker", choices=("none", "tensorboard", "wandb"), default="none", help="where curves go, too"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the training in --out")
    parser.add_argument(
        "--data-root", type=user_path, metavar="DIR", help="folder of the torchvision data sets"
    )
    parser.add_argument(
        "--judge",
        type=user_path,
        metavar="RUN",
        help="count changed labels with the classifier of a calib run",
    )
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N | mps")
    given = parser.parse_args(arguments)

    from dataclasses import replace

    from shared_core.data.classes import in_classes_of
    from shared_core.run.device import choose_device
    from shared_core.run.processes import is_main, leave

    from calib.config import AdaptConfig
    from calib.data import open_domain
    from calib.report_translation import report_translation
    from calib.trained import cell_folders, open_trained
    from calib.translate import PRESETS, train_translation
    from calib.translations import label_flips, load_translation, write_translations

    chosen = {name: getattr(given, name) for name in ("steps", "size", "channels")}
    changes: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    settings = replace(PRESETS[given.preset], **changes, pose=given.pose, tracker=given.tracker)
    if settings.steps < 1 or settings.size < 8 or settings.size % 4:
        raise ConfigError(
            f"steps={settings.steps}, size={settings.size}; give 1 or more, and a multiple of 4 from 8 on"
        )
    with user_errors():
        device = choose_device(given.device)
        config = AdaptConfig.model_validate({"data_root": given.data_root})
        source = open_domain(config, given.source, "train")
        target = open_domain(config, given.target, "train", labelled=False)
        judge, judged = None, source
        if given.judge is not None:
            judging = open_trained(cell_folders(given.judge)[0])
            judge, judged = (
                judging.model.to(device).ask,
                in_classes_of(source, judging.class_names, given.source),
            )
    # It reads nothing from the folder: all flags have to come again.
    flags = [word for word in arguments if word != "--resume"]
    again = f"calib translate {shlex.join(flags)} --resume"
    with sentences("calib", again) as failed:
        train_translation(source, target, settings, given.seed, given.out, given.resume, given.device)
        with user_errors():
            if is_main():
                translation = load_translation(given.out, device=device)
                count = write_translations(translation, source, given.out)
                print(f"wrote {count} images: calib adapt --translated imagefolder:{given.out} ...")
                flips = None
                if judge is not None:
                    flips = label_flips(judge, judged, translation)
                    print(
                        f"named otherwise than their label: {flips['before']:.2f} % before, "
                        f"{flips['after']:.2f} % after (a changed digit or a strange style)"
                    )
                title = f"{given.source} in the style of {given.target}"
                print(f"open {report_translation(given.out, source, target, title, flips)}")
        leave()
    return int(bool(failed))


def export(arguments: list[str]) -> int:
    """Export the calibrator alone, with the normalisation, or fused with the classifier."""
    parser = _parser(
        "export", "Writes one file that holds its metadata: epsilon, value range, the four numbers."
    )
    parser.add_argument("run", type=user_path, metavar="RUN", help="a run folder; of several seeds the first")
    parser.add_argument("--out", type=user_path, metavar="FILE", required=True)
    parser.add_argument("--format", choices=("safetensors", "onnx", "torch_export"), default="safetensors")
    parser.add_argument(
        "--what",
        choices=("calibrator", "normalized", "fused"),
        default="calibrator",
        help="alone, with the classifier's normalisation behind it, or with the classifier; default alone",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="fix the size of the images; default: any, fused the run's",
    )
    given = parser.parse_args(arguments)

    from shared_core.run.atomic import read_json

    from calib.export import export as write
    from calib.export import summary
    from calib.trained import cell_folders, open_trained

    with user_errors():
        trained = open_trained(cell_folders(given.run)[0])
        size = tuple(given.size) if given.size else None
        if size is None and given.what == "fused" and trained.preprocess is not None:
            size = (trained.preprocess.size, trained.preprocess.size)
        result = read_json(trained.folder / "result.json")
        write(trained.model, given.out, given.format, given.what, size=size, metadata=summary(result))
    print(f"wrote {given.out}: {given.what} of {trained.folder}, {given.out.stat().st_size / 1000:.0f} kB")
    return 0


def report(arguments: list[str]) -> int:
    """Write report.html of a finished run again."""
    parser = _parser("report", "Reads the run folder, and the test images from where the run found them.")
    parser.add_argument("run", type=user_path, metavar="RUN", help="a run folder")
    given = parser.parse_args(arguments)

    from calib.report import report as write

    with user_errors():
        print(f"open {write(given.run)}")
    return 0


def _parser(command: str, description: str = "", **settings: Any) -> argparse.ArgumentParser:
    return command_parser("calib", command, description, **settings)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=user_path, metavar="RUN", help="a run folder; predict: of several seeds the first"
    )
    parser.add_argument(
        "--calibrator",
        type=user_path,
        metavar="DIR",
        help="another domain's calibrator; default the run's own",
    )
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N | mps")
