"""``fsd generate | evaluate | export | view | train-prior | report``.

    fsd generate "a mushroom" --guidance fsd sds-annealed --seeds 0-3 --out runs/mushrooms
    fsd generate "a red mug" --preset stable-diffusion --prior PATH-OR-HUB-ID
    fsd evaluate runs/objects
    fsd export runs/objects --out meshes/ --format obj
    fsd view runs/objects
    fsd train-prior --variant camera-free --out runs/prior-2d

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 or 143 stopped by a signal after saving.
Nothing here imports torch before a command knows what it has to do: help answers at once.
"""

import argparse
import re

from shared_core.run.command import (
    command_parser,
    free_folder,
    resuming,
    run_arguments,
    sentences,
    user_path,
)
from shared_core.run.config import ConfigError, run_commands, user_errors


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    commands = {
        "generate": generate,
        "evaluate": evaluate,
        "export": export,
        "view": view,
        "train-prior": train_prior,
        "report": report,
    }
    return run_commands("fsd", commands, arguments)


def generate(arguments: list[str]) -> int:
    """Make 3D objects from prompts, one per seed and method."""
    from fsd.config import PRESETS, GenerateConfig, seed_range

    usage = 'fsd generate ["PROMPT" ...] [--preset NAME] [--out DIR] [FLAGS]'
    parser = command_parser("fsd", "generate", add_help=False, usage=usage)
    first_flag = next((n for n, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    prompts, flags = arguments[:first_flag], arguments[first_flag:]
    with user_errors():
        # A range of seeds as its numbers, which is what the flag takes.
        ranges = [seed_range(word) if re.fullmatch(r"\d+-\d+", word) else [word] for word in flags]
    flags = [str(word) for words in ranges for word in words]
    if prompts and any(word.partition("=")[0] == "--resume" for word in flags):
        raise ConfigError("--resume takes everything from the run's folder: leave out the prompts")
    config, out, resume = run_arguments(parser, flags, GenerateConfig, PRESETS)
    if prompts:
        with user_errors():
            config = GenerateConfig.model_validate({**config.model_dump(), "prompts": prompts})
    if not config.prompts:
        raise ConfigError('say what to make: fsd generate "an object" (the first words, before all flags)')

    from fsd.evaluate import as_text
    from fsd.run import run, slug

    out = resume or out or free_folder(f"fsd-{slug(config.prompts[0])}")
    with sentences("fsd", resuming("fsd generate", out)) as failed, user_errors():
        result = run(config, out, resume is not None)
        if result is not None:
            print(as_text(result), f"open {out / 'report.html'}", sep="\n")
    return int(bool(failed) or bool(result and result["failed"]))


def evaluate(arguments: list[str]) -> int:
    """Measure diversity, consistency and quality of a run's objects."""
    parser = command_parser(
        "fsd", "evaluate", "Prints a table and writes evaluation.json into the run folder."
    )
    _add_run(parser)
    parser.add_argument(
        "--clip", type=user_path, metavar="DIR", help="a CLIPModel with its processor: CLIP score too"
    )
    parser.add_argument(
        "--inception",
        type=user_path,
        metavar="FILE",
        help="torchvision's inception_v3 as safetensors: the paper's IS and CROSS-FID too",
    )
    given = parser.parse_args(arguments)

    from shared_core.run.atomic import write_json

    from fsd.evaluate import as_text
    from fsd.evaluate import evaluate as measure
    from fsd.paper_metrics import PAPER_COLUMNS, paper_metrics

    with user_errors():
        result = measure(given.run)
        if given.clip or given.inception:
            result["paper"] = paper_metrics(given.run, given.clip, given.inception)
    write_json(given.run / "evaluation.json", result)
    print(as_text(result))
    if "paper" in result:
        print(as_text(result["paper"], PAPER_COLUMNS))
    return 0


def export(arguments: list[str]) -> int:
    """Write the meshes of a run's objects, at any resolution, as GLB, OBJ or PLY."""
    parser = command_parser("fsd", "export", "Writes one mesh per object of the run, named like its folder.")
    _add_run(parser)
    parser.add_argument("--out", type=user_path, metavar="DIR", required=True)
    parser.add_argument("--format", choices=("glb", "obj", "ply"), default="glb")
    parser.add_argument("--resolution", type=int, default=128, metavar="N", help="cells a side; default 128")
    parser.add_argument(
        "--threshold", type=float, metavar="DENSITY", help="default: where silhouettes agree with the renders"
    )
    parser.add_argument(
        "--texture", action="store_true", help="colours in a picture instead of at corners (glb, obj)"
    )
    given = parser.parse_args(arguments)
    if given.texture and given.format == "ply":
        raise ConfigError(
            "a PLY holds colours at its corners: leave out --texture, or choose --format glb or obj"
        )

    from fsd.mesh import extract_mesh, write_mesh
    from fsd.objects import finished
    from fsd.scene import load_scene
    from fsd.texture import bake_texture, write_textured

    empty = False
    with user_errors():
        objects = finished(given.run)
        given.out.mkdir(parents=True, exist_ok=True)
        for item in objects:
            path = given.out / f"{item.path.name}.{given.format}"
            try:
                scene = load_scene(item.path / "scene.safetensors")
                mesh = extract_mesh(scene, given.resolution, given.threshold)
                if given.texture:
                    write_textured(bake_texture(scene, mesh), path)
                else:
                    write_mesh(mesh, path)
                print(f"wrote {path}")
            except ValueError as error:
                empty = True
                print(f"fsd: {item.path.name}: {error}")
    return int(empty)


def view(arguments: list[str]) -> int:
    """Turn the objects of a run in the browser (extra: viewer)."""
    parser = command_parser("fsd", "view", "Serves the meshes of the run until it is stopped with Ctrl-C.")
    _add_run(parser)
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args(arguments)

    from fsd.live import view as serve

    with user_errors():
        server = serve(given.run, given.port)
    server.sleep_forever()
    return 0


def train_prior(arguments: list[str]) -> int:
    """Train the small diffusion models that fsd brings along, on pictures it draws itself."""
    from fsd.prior_config import PRESETS, PriorConfig

    usage = "fsd train-prior [--preset NAME] [--out DIR] [FLAGS]"
    parser = command_parser("fsd", "train-prior", add_help=False, usage=usage)
    config, out, resume = run_arguments(parser, arguments, PriorConfig, PRESETS)

    from shared_core.run.processes import is_main, leave

    from fsd.train_prior import train_prior as train

    out = resume or out or free_folder(f"prior-{config.variant}")
    with sentences("fsd", resuming("fsd train-prior", out)) as failed, user_errors():
        result = train(config, out, bool(resume))
        if is_main():
            print(
                f"loss {result['loss']:.4f}",
                f"pipeline {out / 'pipeline'}",
                f"open {out / 'report.html'}",
                sep="\n",
            )
        leave()
    return int(bool(failed))


def report(arguments: list[str]) -> int:
    """Write report.html of a run again."""
    parser = command_parser("fsd", "report", "Reads the run folder.")
    _add_run(parser)
    given = parser.parse_args(arguments)

    from fsd.report import report as write

    with user_errors():
        print(f"open {write(given.run)}")
    return 0


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="a run folder")
