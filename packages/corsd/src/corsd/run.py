"""A run: one training per method and seed, and what they come to together.

One method with one seed is an ordinary run folder.  Several are *cells* of a run:

    runs/NAME/  config.yaml env.json metrics.jsonl result.json report.html
                cells/METHOD-seedN/  each an ordinary run folder

``result.json`` follows ``result_schema.json``.
"""

from pathlib import Path
from typing import Any, NamedTuple

from shared_core.run.config import user_errors
from shared_core.run.folder import RunFolder
from shared_core.run.idle import refuse_idle
from shared_core.run.metrics import MetricsLog, cut_back
from shared_core.run.processes import is_main, join
from shared_core.run.result import check_result
from shared_core.run.seal import seal, unseal, write_sealed

from corsd import train
from corsd.config import TrainConfig
from corsd.data import open_data
from corsd.methods import batch_plan, build_method
from corsd.needs import NEEDS
from corsd.report import report
from corsd.summary import schema, summarise


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
    if len(cells) == 1:
        results = [train.train_cell(cells[0].config, cells[0].seed, out, resume)]
    else:
        results = train_cells(config, cells, out, resume)
    result = summarise(results)
    if is_main():
        check_result(result, schema())
        seal(out, ["metrics.jsonl"])
        write_sealed(out / "result.json", {**results[0], **result} if len(cells) == 1 else result)
        report(out)
    return result


def train_cells(config: TrainConfig, cells: list[Cell], out: Path, resume: bool) -> list[dict[str, Any]]:
    """Train several cells below ``out``, with a line in its metrics.jsonl for each."""
    with RunFolder(out) as folder:
        if is_main() and not (resume and folder.finished()):
            folder.open(config, resume)
        if is_main():
            unseal(out, [folder.metrics.name])
            cut_back(folder.metrics, 0)
        results = []
        for number, cell in enumerate(cells, start=1):
            results.append(train.train_cell(cell.config, cell.seed, cell.folder, resume))
            if is_main():
                log_cell(folder.metrics, number, results[-1])
    return results


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
        refuse_idle(config, NEEDS)
        join(config.device, config.precision)
        data = open_data(config)
        for cell in cells_of(config, Path()):
            batch_plan(cell.config, data.labels, cell.seed)
        for method in dict.fromkeys([config.method, *config.controls]):
            net = train.build_net(config, data)
            build_method(config.model_copy(update={"method": method}), net, data, seed=0, steps=1)


def log_cell(metrics: Path, number: int, result: dict[str, Any]) -> None:
    """One line about a finished cell."""
    wanted = ("method", "seed", "accuracy", "train_accuracy", "calibration_error", "images_seen")
    with MetricsLog(metrics) as log:
        log.log(number, time={"seconds": result["seconds"]}, **{name: result[name] for name in wanted})
