"""report.html of a run: what it shows, how it came about, and what the net gets wrong."""

from pathlib import Path
from typing import Any

from markupsafe import Markup
from shared_core.run.atomic import read_json
from shared_core.run.device import choose_device
from shared_core.run.folder import RunFolder
from shared_core.run.report import (
    cards,
    duration,
    figure,
    settings,
    text,
    write_report,
)
from shared_core.run.seal import check_seal

from corsd import figures, report_images, report_stages, report_training
from corsd.summary import NAMES, verdict
from corsd.trained import cell_folders, open_test, open_trained


def report(run: Path) -> Path:
    """Write ``run/report.html`` from the run folder and the run's test images; returns its path.

    Raises:
        ValueError: a training of the run is not finished, or its data set cannot be opened.
    """
    folder = RunFolder(run)
    cells = [(read_json(cell / "result.json"), cell) for cell in cell_folders(run) if _finished(cell)]
    check_seal(run)
    for _, cell in cells:
        check_seal(cell)
    result = read_json(folder.result)
    trained = open_trained(cells[0][1])
    device = choose_device(trained.config.device)
    trained.net.to(device)
    test = open_test(trained)
    name = NAMES[result["method"]]
    sections = [
        *_outcome(result),
        *report_stages.stages(cells),
        *report_training.training(cells),
        *report_training.relations(trained, test, cells, device),
        *report_images.test_images(cells, trained, test, device),
        *report_images.early_exits(trained, test, device),
        *settings(folder),
    ]
    subtitle = f"{result['net']}, {_count(result['images_seen'])} training images seen by every method; "
    subtitle += f"all trainings took {duration(result['seconds'])}"
    write_report(folder.report, f"{name} on {result['dataset']}", sections, subtitle)
    return folder.report


def _finished(cell: Path) -> bool:
    if not (cell / "result.json").is_file():
        raise ValueError(f"{cell} is not finished: go on with corsd train --resume")
    return True


def _outcome(result: dict[str, Any]) -> list[Markup]:
    name, seeds = NAMES[result["method"]], len(result["seeds"])
    shown = {name: f"{result['accuracy_mean']:.2f} %"}
    said = []
    if result["gain"] is not None:
        shown["cross-entropy"] = f"{result['baseline_mean']:.2f} %"
        shown["difference in points"] = f"{result['gain']:+.2f}"
        shown["its 95 % interval"] = _interval(result["gain_interval"])
        said.append(_comparison(name, "cross-entropy", result["gain"], result["gain_interval"]))
    if result["best_control"] not in (None, "ce"):
        best = f"{NAMES[result['best_control']]}, the best control"
        interval = result["gain_over_best_control_interval"]
        said.append(_comparison(name, best, result["gain_over_best_control"], interval))
    shown["seeds"] = str(seeds)
    said.append(
        "Accuracy is that of the net after its last step. The training never looks at the test images."
        + (" One seed only: a second one may well differ by more than methods do." if seeds == 1 else "")
    )
    sections = [cards(shown), text("\n\n".join(said))]
    if result["controls"] or seeds > 1:
        accuracy = {name: result["accuracies"]}
        accuracy |= {NAMES[key]: value["accuracy"] for key, value in result["controls"].items()}
        caption = "A dot is one training, a stroke the mean; numbers are mean ± standard deviation."
        sections.append(figure(figures.seeds_dots(accuracy), caption))
    return sections


def _comparison(name: str, other: str, gain: float, interval: list[float] | None) -> str:
    direction = "above" if gain >= 0 else "below"
    return f"{name} is {abs(gain):.2f} points {direction} {other}. Paired by seed: {verdict(interval)}."


def _interval(interval: list[float] | None) -> str:
    return "unknown" if interval is None else f"{interval[0]:+.1f} to {interval[1]:+.1f}"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")
