"""Evaluate the calibrators of a run again, on its own test sets or on others: ``reevaluation.json``."""

import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shared_core.run.atomic import read_json, write_json

from calib.data import scored
from calib.evaluate import four_numbers
from calib.summary import cautions, figure_words
from calib.trained import DRIFTED, cell_folders, open_test, open_trained

FOUR = ("source_before", "source_after", "target_before", "target_after")


def reevaluate(
    run: Path,
    device: torch.device,
    source: str | None = None,
    target: str | None = None,
    root: Path | None = None,
    calibrator: Path | None = None,
) -> dict[str, Any]:
    """The four numbers of every adaptation of `run`; they are written to ``run/reevaluation.json`` too.

    `source` and `target` name other data sets with the same classes; `calibrator` is another domain's folder.

    Returns:
        {"source", "target", "measure", "class_names", "cautions", "cells": [{"seed", "source_before": {"accuracy",
        "per_class", "confusion"}, ..., "classifier_unchanged"}]}, in percent; None without images that can be scored.

    Raises:
        ValueError: an unfinished adaptation, an unknown data set, or classes that the classifier does not know.
        FileNotFoundError: data that are not there.
    """
    first = open_trained(cell_folders(run)[0])
    cells = list(_evaluated(run, device, source, target, root, calibrator))
    result = read_json(first.folder / "result.json")
    for name in FOUR:
        values = [cell[name]["accuracy"] for cell in cells]
        result[name] = None if None in values else statistics.fmean(values)
    if calibrator is not None:
        # How this run trained and chose its own calibrator says nothing of another one.
        result |= {"oracle": False, "note": "", "chosen_step": None}
    said = cautions(result)
    if result["compat"] == "released":
        said.append("Evaluated again, the figures without the calibrator are of the drifted classifier, too.")
    evaluation = {
        "source": source or first.config.source,
        "target": target or first.config.target,
        "measure": "mIoU" if first.segmentation else "accuracy",
        "class_names": first.class_names,
        "cautions": said,
        "cells": cells,
    }
    write_json(run / "reevaluation.json", evaluation)
    return evaluation


def _evaluated(
    run: Path,
    device: torch.device,
    source: str | None,
    target: str | None,
    root: Path | None,
    calibrator: Path | None,
) -> Iterator[dict[str, Any]]:
    for folder in cell_folders(run):
        trained = open_trained(folder, calibrator)
        numbers = four_numbers(
            trained.model,
            open_test(trained, "source", source, root),
            scored(partial(open_test, trained, "target", target, root)),
            len(trained.class_names),
            device,
            trained.config.ignore_label if trained.segmentation else None,
        )
        unchanged = trained.model.unchanged() and not (folder / DRIFTED).is_file()
        yield {"seed": trained.config.seeds[0], **numbers, "classifier_unchanged": unchanged}


def lines(evaluation: dict[str, Any]) -> list[str]:
    """Cautions, the four numbers as a small table for the terminal, and what the classifier's checksums say."""
    unit = f"{evaluation['measure']} %"
    rows = [["", "seed", f"{unit} without", "with", "difference"]]
    for cell in evaluation["cells"]:
        for domain in ("source", "target"):
            before, after = (cell[f"{domain}_{when}"]["accuracy"] for when in ("before", "after"))
            name = f"{domain} {evaluation[domain]}"
            change = "-" if before is None or after is None else f"{after - before:+.2f}"
            rows.append([name, str(cell["seed"]), figure_words(before), figure_words(after), change])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        table.append("  ".join([row[0].ljust(widths[0]), *cells]))
    unchanged = all(cell["classifier_unchanged"] for cell in evaluation["cells"])
    return [
        *evaluation["cautions"],
        *table,
        f"classifier unchanged: {'yes, bit for bit' if unchanged else 'NO'}",
    ]
