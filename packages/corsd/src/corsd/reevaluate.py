"""Evaluate the nets of a run again, on its own test set or on another one: ``evaluation.json``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from shared_core.run.atomic import write_json

from corsd.early import exit_accuracy, exit_logits
from corsd.evaluate import evaluate
from corsd.trained import Trained, Which, cell_folders, open_exits, open_test, open_trained

NOISE = (0.05, 0.1, 0.2)


def reevaluate(
    run: Path,
    device: torch.device,
    which: Which = "last",
    spec: str | None = None,
    root: Path | None = None,
) -> dict[str, Any]:
    """Evaluate every training of ``run`` and write ``run/evaluation.json``.

    Returns:
        {"data", "which", "class_names", "cells": [{"method", "seed", "accuracy", "per_class",
        "calibration_error", "noise", "exits"}]}, in percent; "exits" is None where none were trained, and a class
        without images has None in "per_class".

    Raises:
        ValueError: an unfinished training, an unknown data set, or classes that the nets do not know.
    """
    cells = list(_evaluated(run, device, which, spec, root))
    first = open_trained(cell_folders(run)[0], which)
    evaluation = {
        "data": spec or first.config.data,
        "which": which,
        "class_names": first.class_names,
        "cells": cells,
    }
    write_json(run / "evaluation.json", evaluation)
    return evaluation


def _evaluated(
    run: Path, device: torch.device, which: Which, spec: str | None, root: Path | None
) -> Iterator[dict[str, Any]]:
    for folder in cell_folders(run):
        trained = open_trained(folder, which)
        test = open_test(trained, spec, root)
        net = trained.net.to(device)
        values = evaluate(net, test, trained.preprocess, device, NOISE)
        yield {
            "method": trained.config.method,
            "seed": trained.config.seeds[0],
            **values,
            # The shallow classifiers are those of the last step and do not fit an earlier net.
            "exits": _exits(trained, test, device) if which == "last" else None,
        }


def _exits(trained: Trained, test: Any, device: torch.device) -> dict[str, float] | None:
    found = open_exits(trained)
    if found is None:
        return None
    stages, exits = found
    logits, labels = exit_logits(trained.net, stages, exits.to(device), test, trained.preprocess, device)
    return exit_accuracy(logits, labels, stages)


def _worst(per_class: list[float | None]) -> float:
    """The lowest accuracy of a class that has images."""
    return min(value for value in per_class if value is not None)


def lines(evaluation: dict[str, Any]) -> list[str]:
    """The evaluation as a small table for the terminal."""
    noises = list(evaluation["cells"][0]["noise"])
    rows = [["method", "seed", "accuracy %", "worst class %", "calibration error %"]]
    rows[0] += [f"noise {sigma} %" for sigma in noises]
    for cell in evaluation["cells"]:
        rows.append(
            [
                cell["method"],
                str(cell["seed"]),
                *(
                    f"{v:.2f}"
                    for v in (cell["accuracy"], _worst(cell["per_class"]), cell["calibration_error"])
                ),
                *(f"{cell['noise'][sigma]:.2f}" for sigma in noises),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for cell in evaluation["cells"]:
        if cell["exits"]:
            found = ", ".join(f"{name} {value:.2f} %" for name, value in cell["exits"].items())
            table.append(f"exits of {cell['method']} seed {cell['seed']}: {found}")
    return table
