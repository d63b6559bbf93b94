"""One stored run of each accuracy benchmark, made anew in a scratch folder: does today's code come to the same?

    python -m benchmarks.core.accuracy_again --out FILE [--quick] [--only corsd calib fsd]

`make bench` has corsd/accuracy.py, calib/accuracy.py and fsd/diversity.py write their pages from stored runs, which
took hours; here one run of each is measured.  A figure is how far it lies from the stored one, in points, and its goal
is TOLERANCE.  Where processor and torch are those of the run it is often 0; elsewhere sums are rounded in another way,
which a training makes larger, so that about the spread over seeds is allowed.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.calib import accuracy as calib_accuracy
from benchmarks.calib import plan as calib_plan
from benchmarks.core.figures import figure, options, write
from benchmarks.core.table import key_of, read
from benchmarks.corsd import accuracy as corsd_accuracy
from benchmarks.fsd import cells as diversity_cells
from benchmarks.fsd import plan as diversity_plan

STORED = {
    "corsd": (corsd_accuracy.RUNS_DONE, ("final", "digits", "CORSD (in-batch)", 10)),
    "calib": (calib_accuracy.RUNS_DONE, ("usps-mnist", "calibrator", 1)),
    "fsd": (diversity_cells.TABLE, ("main", "multi-view", "fsd-beta0.5", "a mushroom")),
}
TOLERANCE = {
    "corsd": {"accuracy": 2.0},
    "calib": {"target_after": 4.0},
    "fsd": {"prompt_accuracy": 10.0, "view_consistency": 15.0, "pairwise_distance": 4.0},
}


class Missing(Exception):
    """The data of a run are not on this machine."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CELLS), default=list(CELLS))
    given = parser.parse_args()
    figures, not_measured = [], {}
    for name in given.only:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                new = CELLS[name](Path(scratch), given.quick)
        except Missing as reason:
            not_measured[name] = str(reason)
            print(f"{name}: not measured, {reason}", flush=True)
        else:
            figures += compared(name, new, given.quick)
    write(given.out, given.quick, figures, not_measured=not_measured)


def compared(name: str, new: dict[str, Any], quick: bool = False) -> list[dict[str, Any]]:
    """How far the measures of a run lie from the stored ones, in points."""
    old = stored_run(name)
    scale = 100.0 if name == "fsd" else 1.0  # shares and a distance there, percent elsewhere
    figures = []
    for measure, tolerance in TOLERANCE[name].items():
        anew, stored = scale * new[measure], scale * old[measure]
        figures.append(
            figure(
                f"{name}: {measure}", f"{anew:.2f} anew, {stored:.2f} in {STORED[name][0].path.name}", "points",
                {"anew": [anew], "stored": [stored]}, "difference", [abs(anew - stored)],
                goal=tolerance, quick=quick,
            )
        )  # fmt: skip
    return figures


def stored_run(name: str) -> dict[str, Any]:
    """The line of the table with which the new run is compared."""
    table, key = STORED[name]
    return {key_of(table, run): run for run in read(table)}[key]


def corsd(scratch: Path, quick: bool) -> dict[str, Any]:
    """CORSD with in-batch pairs on the digits: seconds."""
    from corsd.train import train_cell

    config = corsd_accuracy.configuration("final", "digits", "CORSD (in-batch)")
    config = config.model_copy(update={"epochs": 1.0}) if quick else config
    return train_cell(config, 10, scratch / "run")


def calib(scratch: Path, quick: bool) -> dict[str, Any]:
    """The calibrator of 500 steps on USPS to MNIST, its classifier first: minutes."""
    settings = calib_plan.PAIRS["usps-mnist"]
    if not settings["data_root"].is_dir():
        raise Missing(f"USPS and MNIST have to be in {settings['data_root']}")
    if quick:
        settings |= {"steps": 2, "validate_every": 2, "validation_images": 100, "training": {"epochs": 0.1}}
    calib_accuracy.RUNS = scratch
    return calib_accuracy.run_one("usps-mnist", "calibrator", 1, scratch / "cell")


def fsd(scratch: Path, quick: bool) -> dict[str, Any]:
    """Four mushrooms by FSD with beta 0.5 on the multi-view prior: a minute."""
    (cell,) = [
        cell
        for cell in diversity_plan.main_cells(1, diversity_plan.read_settings(), ["multi-view"])
        if (cell.method, cell.prompt) == ("fsd-beta0.5", "a mushroom")
    ]
    if quick:
        cell = cell._replace(seeds=(0, 1), settings={**cell.settings, "steps": 2, "checkpoint_every": 2})
    prior = diversity_cells.open_embedded(cell, None)
    record, _ = diversity_cells.make(cell, prior, diversity_cells.weights_hash(cell.prior), scratch)
    return record


CELLS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {"corsd": corsd, "calib": calib, "fsd": fsd}


if __name__ == "__main__":
    main()
