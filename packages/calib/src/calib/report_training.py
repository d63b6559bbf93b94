"""The part of a report about the training: losses of both players, and the validators that chose a calibrator."""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from shared_core.run import metrics
from shared_core.run.report import figure, heading, text

from calib import figures

CRITICS = {"critic_pixel": "pixels", "critic_feature": "features"}
CALIBRATOR = {"pixel": "pixels", "feature": "features", "views": "views", "hold": "source held"}


def training(cells: list[Path], selection: str) -> list[Markup]:
    """Curves of all seeds: losses as their mean, validators one by one."""
    logs = [metrics.read(cell / "metrics.jsonl") for cell in cells]
    return [*_losses(logs), *_validators(logs, selection)]


def _losses(logs: list[list[dict[str, Any]]]) -> list[Markup]:
    lines = [[line for line in log if "validators" not in line] for log in logs]
    # A step that was passed over leaves parts out, and seeds may differ in which one that is.
    names = [name for name in (*CRITICS, *CALIBRATOR) if any(name in line for line in lines[0])]
    whole = [{line["step"]: line for line in log if all(name in line for name in names)} for log in lines]
    steps = sorted(set.intersection(*(set(log) for log in whole)))
    if not steps:
        return []
    mean = {
        name: _smooth(np.mean([[log[step][name] for step in steps] for log in whole], axis=0))
        for name in names
    }
    critics, calibrator = (
        {words: mean[name] for name, words in side.items() if name in mean} for side in (CRITICS, CALIBRATOR)
    )
    seeds = "over seeds and " if len(logs) > 1 else "over "
    game = (
        "The critics tell four groups apart (source, target, and both calibrated); the calibrator wants its two to "
        "pass for source. Neither should win: critics at the dashed line have nothing left to tell apart, critics near "
        "0 teach nothing."
    )
    alone = "No critic plays: what the views say is all that teaches."
    caption = f"Mean {seeds}five neighbouring log lines. {game if critics else alone}"
    return [heading("Training"), figure(figures.losses(steps, critics, calibrator), caption)]


def _validators(logs: list[list[dict[str, Any]]], selection: str) -> list[Markup]:
    seeds = []
    for log in logs:
        lines = [line for line in log if "validators" in line]
        chosen = [line["step"] for line in lines if line["chosen"]]
        seeds.append(
            {
                "steps": [line["step"] for line in lines],
                "values": {
                    name: [line["validators"][name] for line in lines] for name in lines[0]["validators"]
                },
                "chosen": chosen[-1],
            }
        )
    kept = ", ".join(str(seed["chosen"]) for seed in seeds)
    words = (
        "Higher is better in every panel. Among the calibrators that keep the source (source_kept), the one with "
        f"the highest {selection} is taken; step 0 is the identity. Kept: step {kept}."
    )
    if selection == "last":
        words = (
            f"Higher is better in every panel; the last calibrator was kept whatever they say: step {kept}."
        )
    if selection == "oracle":
        words += " ORACLE: that panel is accuracy on labelled target images, which no real use has."
    caption = "On samples of the training images" + (", a colour per seed." if len(logs) > 1 else ".")
    return [
        heading("Which calibrator was kept"),
        text(words),
        figure(figures.validators(seeds), caption),
    ]


def _smooth(values: Any, width: int = 5) -> list[float]:
    """Mean over a window that shrinks at the ends."""
    values, half = np.asarray(values, dtype=float), width // 2
    return [float(values[max(0, i - half) : i + half + 1].mean()) for i in range(len(values))]
