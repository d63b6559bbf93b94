"""report.html of a run: the four numbers, what the correction looks like, how it came about."""

import warnings
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from shared_core.run.atomic import read_json
from shared_core.run.device import choose_device
from shared_core.run.folder import RunFolder
from shared_core.run.report import (
    cards,
    duration,
    figure,
    heading,
    settings,
    table,
    text,
    write_report,
)
from shared_core.run.seal import check_seal

from calib import figures, report_analysis, report_images, report_training
from calib.samples import sample
from calib.summary import BASELINE_NAMES, cautions, domain_name, figure_words, sentence
from calib.trained import cell_folders, open_test, open_trained

FOUR = ("source_before", "source_after", "target_before", "target_after")


def report(run: Path) -> Path:
    """Write ``run/report.html`` from the run folder, and its test images where they can be opened; its path.

    Raises:
        ValueError: an adaptation of the run is not finished.
    """
    folder = RunFolder(run)
    cells = [(read_json(cell / "result.json"), cell) for cell in cell_folders(run) if _finished(cell)]
    check_seal(run)
    for _, cell in cells:
        check_seal(cell)
    result = read_json(folder.result)
    evaluations = [read_json(cell / "evaluation.json") for _, cell in cells]
    sections = [
        *_outcome(result, cells),
        *_baselines(result),
        *_seeds(cells),
        *_pictures(cells[0][1]),
        *report_images.classes(evaluations, result["measure"]),
        *report_training.training([cell for _, cell in cells], result["selection"]),
        *report_analysis.analysis(run),
        *settings(folder),
    ]
    seconds = sum(cell["seconds"] for cell, _ in cells)
    subtitle = f"{result['classifier']}, frozen, behind a calibrator; the run took {duration(seconds)}"
    if result["oracle"]:
        subtitle = f"ORACLE selection. {subtitle}"
    if result["compat"] == "released":
        subtitle = f"Faults of the RELEASED code. {subtitle}"
    title = " to ".join(domain_name(result[domain]) for domain in ("source", "target"))
    write_report(folder.report, title, sections, subtitle)
    return folder.report


def _finished(cell: Path) -> bool:
    if not (cell / "result.json").is_file():
        raise ValueError(f"{cell} is not finished: go on with calib adapt --resume")
    return True


def _outcome(result: dict[str, Any], cells: list[tuple[dict[str, Any], Path]]) -> list[Markup]:
    measure = result["measure"]
    shown = {
        f"{domain} {'with' if when == 'after' else 'without'} ({measure})": _percent(
            result, f"{domain}_{when}"
        )
        for domain in ("target", "source")
        for when in ("before", "after")
    }
    levels = 255 * result["epsilon"]
    further = {
        "classifier unchanged": "yes" if result["classifier_unchanged"] else "NO",
        **_size(result),
        "time, of the classifier's": f"× {result['latency_ratio']:.2f}",
        "epsilon, of the value range": f"{result['epsilon']:g}",
    }
    words = [*cautions(result), sentence(result), _proof(result, cells)]
    words.append(
        f"No value of an image moves by more than epsilon = {result['epsilon']:g} ({result['epsilon_unit']}), which "
        f"is {levels:.0f} of 255 grey levels. Time is that of classifier and calibrator together over the classifier "
        "alone, measured side by side on this machine."
    )
    chosen = f"the validator {result['selection']!r}, which sees no target label"
    if result["oracle"]:
        chosen = "target labels (oracle)"
    elif result["selection"] == "last":
        chosen = "nothing: the last one was kept"
    words.append(
        f"The kept calibrator was chosen by {chosen}. Target labels scored the test images"
        + (" and chose." if result["oracle"] else ", and nothing else.")
    )
    numbers = {
        domain: (result[f"{domain}_before"], result[f"{domain}_after"])
        for domain in ("target", "source")
        if result[f"{domain}_before"] is not None
    }
    return [
        cards(shown),
        cards(further),
        text("\n\n".join(words)),
        figure(figures.four_numbers(numbers, measure), "Numbers at the right: points gained or lost."),
    ]


def _size(result: dict[str, Any]) -> dict[str, str]:
    if result["parameter_ratio"] is None:
        # What is inside an ONNX file or an int8 net is not counted.
        return {"parameters": str(result["parameters"])}
    return {"parameters, of the classifier's": f"{100 * result['parameter_ratio']:.2f} %"}


def _proof(result: dict[str, Any], cells: list[tuple[dict[str, Any], Path]]) -> str:
    digests = {cell["classifier_digest"] for cell, _ in cells}
    what = f"SHA-256 over all its parameters and buffers: {min(digests)[:16]}…, in full in result.json"
    if len(digests) > 1:
        what = "every seed trained a classifier of its own; their SHA-256 are in the cells' result.json"
    # Runs of earlier versions do not say where the weights came from.
    origin = f" It {result['classifier_origin']}." if "classifier_origin" in result else ""
    if not result["classifier_unchanged"]:
        return f"Classifier NOT unchanged (before: {what}).{origin}"
    return f"Classifier unchanged, bit for bit ({what}).{origin}"


def _baselines(result: dict[str, Any]) -> list[Markup]:
    if not result["baselines"]:
        return []
    before = {
        "method": "source only",
        "target %": result["target_before"],
        "source %": result["source_before"],
    }
    own = {"method": BASELINE_NAMES["calibrator"], "target %": result["target_after"]}
    own |= {"source %": result["source_after"]}
    touched = {"touched in the classifier": "nothing" if result["classifier_unchanged"] else "CHANGED"}
    rows = [before | {"touched in the classifier": "nothing"}, own | touched]
    missing = []
    for row in result["baselines"]:
        name = BASELINE_NAMES[row["method"]]
        if "not_applicable" in row:
            missing.append(f"{name} is left out: {row['not_applicable']}.")
            continue
        scores = {"target %": row["target_after"], "source %": row["source_after"]}
        rows.append({"method": name, **scores, "touched in the classifier": row["touched"]})
    for row in rows:
        row["source change"] = f"{row['source %'] - result['source_before']:+.2f}"
        scored = row["target %"] is not None
        row["target gain"] = f"{row['target %'] - result['target_before']:+.2f}" if scored else "-"
        row |= {name: figure_words(row[name]) for name in ("target %", "source %")}
    order = ("method", "target %", "target gain", "source %", "source change", "touched in the classifier")
    caption = (
        "Both test sets, in percent and in points against source only. Methods that touch the classifier give a "
        "model that is not the one that was deployed; their source figures are of that model."
    )
    if any(row["method"] == BASELINE_NAMES["target_supervised"] for row in rows):
        caption += " The bound was trained with target labels."
    sections = [heading("Other ways"), table([{name: row[name] for name in order} for row in rows], caption)]
    return [*sections, text("\n\n".join(missing))] if missing else sections


def _seeds(cells: list[tuple[dict[str, Any], Path]]) -> list[Markup]:
    if len(cells) == 1:
        return []
    rows = [
        {"seed": result["seed"], **{name.replace("_", " "): figure_words(result[name]) for name in FOUR}}
        | {"kept step": result["chosen_step"]}
        for result, _ in cells
    ]
    gains = {
        domain: [result[f"{domain}_after"] - result[f"{domain}_before"] for result, _ in cells]
        for domain in ("target", "source")
        if cells[0][0][f"{domain}_before"] is not None
    }
    caption = "A dot is one seed, a stroke the mean; numbers are mean ± standard deviation."
    return [heading("By seed"), table(rows, "In percent."), figure(figures.seeds_dots(gains), caption)]


@torch.no_grad()
def _pictures(cell: Path) -> list[Markup]:
    samples, missing = {}, []
    try:
        trained = open_trained(cell)
    except (ValueError, OSError, ImportError) as error:
        return [
            heading("Images"),
            text(f"Images are left out, the classifier cannot be opened here: {error}."),
        ]
    # The page may be written on another machine than the run's.
    device = choose_device("cpu" if trained.config.device == "cpu" else "auto")
    for name in ("target", "source"):
        try:
            with warnings.catch_warnings():
                # Said when the run began.
                warnings.simplefilter("ignore", UserWarning)
                samples[name] = sample(trained, open_test(trained, name), device)
        except (ValueError, OSError, ImportError) as error:
            missing.append(f"Images of the {name} are left out, they cannot be opened here: {error}.")
    said = [heading("Images"), text("\n\n".join(missing))] if missing else []
    if not samples:
        return said
    return [
        *said,
        *report_images.pictures(trained, samples),
        *report_images.over_epsilon(trained, samples, device),
    ]


def _percent(result: dict[str, Any], name: str) -> str:
    spread = result.get(f"{name}_sd")
    if result[name] is None:
        return "no labels"
    return f"{result[name]:.2f} %" if spread is None else f"{result[name]:.2f} ± {spread:.2f} %"
