"""The part of a report about the stages: how well each classifies, and how well its relations tell classes apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from shared_core.run import metrics
from shared_core.run.report import figure, heading, table, text

from corsd import figures
from corsd.areas import JUDGED, WATCHED
from corsd.summary import NAMES, spread

Cells = list[tuple[dict[str, Any], Path]]
ROWS = {"net": "deployed net", "ensemble": "ensemble of all"}


def stages(cells: Cells) -> list[Markup]:
    """Nothing where no method of the run has class heads on its stages or learns relations."""
    accuracy, areas = (_by_method(cells, name) for name in ("stage_accuracy", "relation_auc"))
    if not accuracy and not areas:
        return []
    sections = [heading("Stages")]
    if accuracy:
        sections += [
            text(_first_sentence(accuracy)),
            table(_rows(accuracy, 1), f"Test accuracy in percent, {_spread_words(cells)}."),
        ]
    if areas:
        sections += [
            text(
                "Relations tell classes apart if pairs of one class are more alike than pairs of two classes. The area "
                "under the ROC curve is the share of comparisons in which they are: 0.5 is chance, 1 is perfect."
            ),
            table(
                _rows(areas, 3),
                f"Area under the ROC curve on test images (at most {JUDGED:,}), {_spread_words(cells)}.",
            ),
        ]
    return [*sections, *_over_time(cells)]


def _over_time(cells: Cells) -> list[Markup]:
    method = cells[0][0]["method"]
    logs = [metrics.read(cell / "metrics.jsonl") for result, cell in cells if result["method"] == method]
    logs = [[line for line in log if "relation_auc" in line] for log in logs]
    if not logs[0]:
        return []
    seen = [line["images"] for line in logs[0]]
    lines = {
        stage: (seen, np.mean([[line["relation_auc"][stage] for line in log] for log in logs], axis=0))
        for stage in logs[0][0]["relation_auc"]
    }
    caption = (
        f"{NAMES[method]} during training, on at most {WATCHED} images without augmentation: validation images if some "
        "are held out, else training images. Mean over seeds."
    )
    return [figure(figures.curves(lines, "area under the ROC curve"), caption)]


def _by_method(cells: Cells, name: str) -> dict[str, dict[str, list[float]]]:
    """Of each method that has it, the values of each stage over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for result, _ in cells:
        for stage, value in (result.get(name) or {}).items():
            found.setdefault(NAMES[result["method"]], {}).setdefault(stage, []).append(value)
    return found


def _first_sentence(accuracy: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    name, values = next(iter(accuracy.items()))
    means = {stage: np.mean(v) for stage, v in values.items()}
    heads = ", ".join(f"{value:.1f} %" for stage, value in means.items() if stage not in ROWS)
    return (
        f"{name}: {means['net']:.1f} % for the deployed net, {means['ensemble']:.1f} % for the ensemble of all stages "
        f"(mean of their probabilities), {heads} for the class heads of the stages, shallow to deep. The heads are not "
        "part of the deployed net."
    )


def _rows(values: Mapping[str, Mapping[str, Sequence[float]]], digits: int) -> list[dict[str, str]]:
    order = dict.fromkeys(stage for by_stage in values.values() for stage in by_stage)
    names = [*(stage for stage in order if stage not in ROWS), *(stage for stage in ROWS if stage in order)]
    return [
        {"stage": ROWS.get(stage, stage)}
        | {method: _with_spread(by_stage.get(stage, ()), digits) for method, by_stage in values.items()}
        for stage in names
    ]


def _with_spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    deviation = spread(values)
    return f"{np.mean(values):.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _spread_words(cells: Cells) -> str:
    seeds = {result["seed"] for result, _ in cells}
    return "one seed" if len(seeds) == 1 else f"mean ± standard deviation over {len(seeds)} seeds"
