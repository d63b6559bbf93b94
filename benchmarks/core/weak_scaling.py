"""How many more images per second two processes train with than one, each with a batch of its own.

    python -m benchmarks.core.weak_scaling --out FILE [--quick]

Each method's own command on a CPU with one thread a process: alone, and under torchrun on two processes with twice the
batch (corsd and calib, which exchange gradients) or twice the seeds (fsd, whose objects share nothing: what the machine
gives at best).  Rates are those of the steps in metrics.jsonl, so start-up, evaluation and report are left out.  The
images are random bytes.  The goal is for two idle cores; `load_before` says whether they were.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from calib.config import AdaptConfig
from corsd.config import TrainConfig
from fsd.config import GenerateConfig
from shared_core.run.config import Config
from shared_core.run.metrics import read

from benchmarks.core.figures import interleaved, options, ratio, write

BIN = Path(sys.executable).parent
GOAL = 1.5
ON_ONE_CORE: dict[str, Any] = {"device": "cpu", "threads": 1}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    given = parser.parse_args()
    load = os.getloadavg()
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        data = random_images(Path(scratch) / "data.npz", images(given.quick))
        for name in given.only:
            what, rate = TRAINERS[name]
            measured = partial(rate, Path(scratch), data, given.quick)
            rates = interleaved(
                {"two processes": lambda m=measured: m(2), "one process": lambda m=measured: m(1)},
                rounds=1 if given.quick else 3,
                warmup=0,
            )
            figures.append(
                ratio(
                    name, what, "images per second, wall clock", rates, "two processes", "one process",
                    goal=GOAL, at_least=True, quick=given.quick,
                )
            )  # fmt: skip
    write(given.out, given.quick, figures, load_before=load)


def corsd(scratch: Path, data: str, quick: bool, processes: int) -> float:
    """Images per second of CORSD with in-batch pairs on a ResNet-18."""
    batch, steps = (16, 4) if quick else (96, 14)
    own = {
        "data": data, "model": "small:resnet18", "width": 4 if quick else 16, "batch_size": batch * processes,
        "epochs": steps * batch * processes / images(quick), "log_every": 1, "checkpoint_every": steps,
    }  # fmt: skip
    config = TrainConfig(**ON_ONE_CORE, **own)
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        run("corsd train", config, Path(out, "run"), processes)
        lines = read(Path(out, "run/metrics.jsonl"))
    # One process writes now and then how the loss divides, which costs another backward pass.
    warm = [line["time"] for line in lines if line["step"] > 2 and "shares" not in line]
    return statistics.median(time["images_per_second"] for time in warm)


def calib(scratch: Path, data: str, quick: bool, processes: int) -> float:
    """Images per second, of both domains together, of a calibrator in front of DTN."""
    batch, steps = (8, 4) if quick else (64, 22)
    own = {
        "source": data, "target": data, "classifier": "small:dtn", "training": {"epochs": 0.1, "batch_size": 32},
        "width": 2 if quick else 4, "blocks": 1 if quick else 9, "batch_size": batch * processes, "steps": steps,
        "selection": "last", "validate_every": steps, "validation_images": 32,
        "log_every": 1, "checkpoint_every": steps,
    }  # fmt: skip
    config = AdaptConfig(**ON_ONE_CORE, **own)
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        run("calib adapt", config, Path(out, "run"), processes)
        lines = read(Path(out, "run/metrics.jsonl"))
    warm = [line["time"] for line in lines if line["step"] > 2 and "time" in line]
    return 2 * config.batch_size / statistics.median(time["step_seconds"] for time in warm)


def fsd(scratch: Path, data: str, quick: bool, processes: int) -> float:
    """Rendered views per second of all objects together, one object a process."""
    steps = 6 if quick else 150
    own = {
        "prompts": ["a red mushroom"], "seeds": list(range(processes)), "steps": steps,
        "picture_every": 10 * steps, "checkpoint_every": steps, "mesh_resolution": 16, "frames": 4,
    }  # fmt: skip
    config = GenerateConfig(**ON_ONE_CORE, **own)
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        run("fsd generate", config, Path(out, "run"), processes)
        logs = [read(path) for path in Path(out).glob("run/objects/*/metrics.jsonl")]
    seconds = [lines[-1]["time"]["seconds"] - lines[0]["time"]["seconds"] for lines in logs]
    return sum(config.batch_size * (steps - 1) / each for each in seconds)


TRAINERS: dict[str, tuple[str, Callable[[Path, str, bool, int], float]]] = {
    "corsd": ("corsd train on two processes over one, the same batch a process", corsd),
    "calib": ("calib adapt on two processes over one, the same batch a process", calib),
    "fsd": ("fsd generate, two objects by two processes over one by one", fsd),
}


def run(command: str, config: Config, out: Path, processes: int) -> None:
    """The method's command, alone or under torchrun; its words are shown only if it fails."""
    program, verb = command.split()
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    launch = [BIN / "torchrun", "--standalone", "--nproc-per-node", processes, "--no-python"]
    words = [*(launch if processes > 1 else []), BIN / program, verb, "--config", file, "--out", out]
    done = subprocess.run(
        [str(word) for word in words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{command} on {processes} processes failed:\n{done.stdout}{done.stderr}")


def images(quick: bool) -> int:
    """How many training images there are."""
    return 64 if quick else 768


def random_images(path: Path, number: int) -> str:
    """A file of as many training images of 32 x 32 in ten classes, and a few for the test."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, length in (("train", number), ("test", 40)):
        arrays[f"x_{part}"] = random.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(length) % 10
    np.savez(path, **arrays)
    return f"npz:{path}"


if __name__ == "__main__":
    main()
