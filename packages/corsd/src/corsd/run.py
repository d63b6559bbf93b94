"""A run: one training per method and seed, and what they come to together.

One method with one seed is an ordinary run folder.  Several are *cells* of a run:

    runs/NAME/  config.yaml env.json metrics.jsonl result.json report.html
                cells/METHOD-seedN/  each an ordinary run folder

``result.json`` follows ``result_schema.json``.
"""

import json
import math
import os
import statistics
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from shared_core.ops.gather import rank
from shared_core.run.atomic import write_json
from shared_core.run.config import user_errors
from shared_core.run.folder import RunFolder
from shared_core.run.metrics import MetricsLog, cut_back
from shared_core.run.result import check_result

from corsd import train
from corsd.config import TrainConfig
from corsd.data import open_data
from corsd.nets import open_net


class Cell(NamedTuple):
    """One training of a run: a configuration of one method and one seed, and its folder."""

    config: TrainConfig
    seed: int
    folder: Path


def run(config: TrainConfig, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train every cell that ``out`` does not hold yet, write result.json and report.html, return the result.

    Raises:
        ConfigError: the configuration cannot work; found before the first step of the first cell.
        RunFolderError: ``out`` holds another run.
        NonFiniteError: a loss became NaN or infinite.
        SystemExit: 130 or 143, after saving, when the process was told to stop.
    """
    check(config)
    cells = cells_of(config, out)
    folder = RunFolder(out)
    if len(cells) == 1:
        results = [train.train_cell(cells[0].config, cells[0].seed, out, resume)]
    else:
        if is_main() and not (resume and folder.finished()):
            folder.open(config, resume)
        cut_back(folder.metrics, 0) if is_main() else None
        results = []
        for number, cell in enumerate(cells, start=1):
            results.append(train.train_cell(cell.config, cell.seed, cell.folder, resume))
            if is_main():
                log_cell(folder.metrics, number, results[-1])
    result = summarise(results)
    if is_main():
        check_result(result, schema())
        write_json(folder.result, {**results[0], **result} if len(cells) == 1 else result)
        folder.close()
        from corsd.report import report

        report(out)
    return result


def cells_of(config: TrainConfig, out: Path) -> list[Cell]:
    """The cells of a run in the order of training: seed by seed, so that a first comparison comes early."""
    methods = dict.fromkeys([config.method, *config.controls])
    several = len(methods) * len(config.seeds) > 1
    cells = []
    for seed in config.seeds:
        for method in methods:
            own = config.model_copy(update={"method": method, "controls": [], "seeds": [seed]})
            cells.append(Cell(own, seed, out / "cells" / f"{method}-seed{seed}" if several else out))
    return cells


def check(config: TrainConfig) -> None:
    """Try everything that can be wrong in a configuration without training: ConfigError says what is."""
    with user_errors():
        open_accelerator(config)
        data = open_data(config)
        for cell in cells_of(config, Path()):
            train._plan(cell.config, data.labels, cell.seed)
        for method in dict.fromkeys([config.method, *config.controls]):
            net = open_net(
                config.model,
                data.num_classes,
                data.preprocess.channels,
                config.width,
                config.pretrained,
                config.weights,
            )
            train.build_method(config.model_copy(update={"method": method}), net, data, seed=0, steps=1)


def open_accelerator(config: TrainConfig) -> Accelerator:
    """Join the other processes, if any, and take the device.  Raises ValueError for what this machine lacks."""
    kind = config.device.partition(":")[0]
    present = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in present:
        raise ValueError(f"device is {config.device!r}; it must be auto, cpu, cuda, cuda:N or mps")
    if not present[kind]:
        raise ValueError(f"device is {config.device!r}, but torch finds no {kind} here; choose auto or cpu")
    if config.device not in ("auto", "cpu"):
        os.environ["ACCELERATE_TORCH_DEVICE"] = config.device
    return Accelerator(cpu=config.device == "cpu", mixed_precision=train.PRECISION[config.precision])


def is_main() -> bool:
    """Whether this process writes files."""
    return rank() == 0


def log_cell(metrics: Path, number: int, result: dict[str, Any]) -> None:
    """One line about a finished cell."""
    wanted = ("method", "seed", "accuracy", "train_accuracy", "calibration_error", "images_seen")
    with MetricsLog(metrics) as log:
        log.log(number, time={"seconds": result["seconds"]}, **{name: result[name] for name in wanted})


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of a run from those of its cells, of which the first is of the method in question.

    Raises:
        ValueError: the cells did not see the same number of images, or not the same seeds.
    """
    budgets = {result["images_seen"] for result in results}
    if len(budgets) > 1:
        raise ValueError(f"a comparison needs equal budgets; the trainings saw {sorted(budgets)} images")
    method = results[0]["method"]
    seeds = sorted({result["seed"] for result in results})
    accuracy: dict[str, list[float]] = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        accuracy.setdefault(result["method"], []).append(result["accuracy"])
    if any(len(values) != len(seeds) for values in accuracy.values()):
        raise ValueError(f"a comparison needs every method at every seed; seeds {seeds}, {accuracy}")
    own = accuracy.pop(method)
    controls = {
        name: {"accuracy": values, "mean": statistics.fmean(values), "sd": spread(values)}
        for name, values in accuracy.items()
    }
    baseline = controls.get("ce")
    best = max(controls, key=lambda name: controls[name]["mean"], default=None)
    return {
        "method": method,
        "dataset": results[0]["dataset"],
        "net": results[0]["net"],
        "seeds": seeds,
        "accuracy": own,
        "accuracy_mean": statistics.fmean(own),
        "accuracy_sd": spread(own),
        "baseline_mean": baseline and baseline["mean"],
        "baseline_sd": baseline and baseline["sd"],
        "gain": baseline and statistics.fmean(own) - baseline["mean"],
        "gain_interval": baseline and paired_interval(own, baseline["accuracy"]),
        "best_control": best,
        "gain_over_best_control": best and statistics.fmean(own) - controls[best]["mean"],
        "gain_over_best_control_interval": best and paired_interval(own, controls[best]["accuracy"]),
        "controls": controls,
        "images_seen": results[0]["images_seen"],
        "seconds": sum(result["seconds"] for result in results),
    }


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; one value has none."""
    return statistics.stdev(values) if len(values) > 1 else None


def paired_interval(own: Sequence[float], other: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean of own - other over paired seeds, by Student's t; None with one seed."""
    if len(own) < 2:
        return None
    from scipy.stats import t

    gains = [a - b for a, b in zip(own, other, strict=True)]
    half = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    return [statistics.fmean(gains) - half, statistics.fmean(gains) + half]


def sentence(result: dict[str, Any]) -> str:
    """What the run shows, and no more than it shows."""
    words = (
        f"{result['method']}: {_with_spread(result['accuracy_mean'], result['accuracy_sd'])} on the test set"
    )
    for name, gain, interval in (
        ("ce", result["gain"], result["gain_interval"]),
        (result["best_control"], result["gain_over_best_control"], result["gain_over_best_control_interval"]),
    ):
        if gain is None or (name == "ce" and interval is not result["gain_interval"]):
            continue
        words += f"; {gain:+.2f} points against {name} ({verdict(interval)})"
    return words + "."


def verdict(interval: Sequence[float] | None) -> str:
    """How far a difference can be trusted."""
    if interval is None:
        return "one seed, so chance is not ruled out"
    low, high = interval
    text = f"95 % interval {low:+.2f} to {high:+.2f}"
    return text if low > 0 or high < 0 else f"{text}, which holds 0: no difference shown"


def schema() -> dict[str, Any]:
    """The JSON schema of result.json."""
    return json.loads(resources.files("corsd").joinpath("result_schema.json").read_text(encoding="utf-8"))


def _with_spread(mean: float, sd: float | None) -> str:
    return f"{mean:.2f} %" if sd is None else f"{mean:.2f} ± {sd:.2f} %"
