"""The figures of a report: each function draws numbers that it is given and returns a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from shared_core.run.axes import class_ticks, legend_beside, plain_axes, row_percent, side_by_side

INK, QUIET, OWN, OTHER = "#22262b", "#8b9199", "#2b5f75", "#c0603a"
COLOURS = (OWN, OTHER, "#7a9a3c", "#8a6bb0", "#c49a2c", "#4f9ea0", "#b05b86", "#6b7078", "#3f6fc0", "#93563a")
Values = Any


def seeds_dots(accuracy: Mapping[str, Values]) -> Figure:
    """A row per method with a dot per seed and a stroke at the mean; the first is the method in question."""
    figure, (axes,) = side_by_side(1, 7.6, 0.9 + 0.42 * len(accuracy))
    for row, values in enumerate(accuracy.values()):
        colour = OWN if row == 0 else QUIET
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.75, markersize=7, mec="white")
        axes.plot([np.mean(values)] * 2, [row - 0.28, row + 0.28], color=INK, linewidth=2)
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        words = f"{np.mean(values):.2f}{spread}"
        axes.text(1.01, row, words, transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(accuracy)), list(accuracy))
    axes.set_ylim(len(accuracy) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_xlabel("test accuracy after the last step (%)")
    return figure


def curves(lines: Mapping[str, tuple[Values, Values]], ylabel: str, log: bool = False) -> Figure:
    """Named lines of (images seen, value), with the names beside the axes."""
    figure, (axes,) = side_by_side(1, 7.6, 3.6)
    for number, (name, (x, y)) in enumerate(lines.items()):
        axes.plot(x, y, color=COLOURS[number % len(COLOURS)], label=name, linewidth=1.6)
    if log:
        axes.set_yscale("log")
    axes.set_ylabel(ylabel)
    axes.set_xlabel("images seen")
    legend_beside(axes)
    return figure


def shares(images: Values, parts: Mapping[str, Values]) -> Figure:
    """How the parts of the loss divide the gradient, as a filled stack from 0 to 100 %."""
    figure, (axes,) = side_by_side(1, 7.6, 3.2)
    values = [100 * np.asarray(parts[name]) for name in parts]
    # Margins, not limits: a run of one record has no width.
    axes.set_xmargin(0)
    axes.stackplot(images, values, labels=list(parts), colors=COLOURS[: len(parts)], linewidth=0)
    axes.set_ylim(0, 100)
    axes.set_ylabel("share of the gradient's norm (%)")
    axes.set_xlabel("images seen")
    legend_beside(axes, reverse=True)
    return figure


def relations(images: Values, stages: Mapping[str, Sequence[Mapping[str, Values]]]) -> Figure:
    """For each stage the relations of same-class and of other-class pairs; a thin line per seed."""
    figure, panels = side_by_side(len(stages), 2.5 * len(stages) + 0.6, 2.6, sharey=True)
    for axes, (name, seeds) in zip(panels, stages.items(), strict=True):
        for kind, colour in (("same", OWN), ("other", OTHER)):
            for seed in seeds:
                axes.plot(images, seed[kind], color=colour, linewidth=0.8, alpha=0.45)
            mean = np.mean([seed[kind] for seed in seeds], axis=0)
            axes.plot(images, mean, color=colour, linewidth=2, label=f"{kind}-class pairs")
        axes.set_title(name, fontsize=10)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("images seen")
        axes.locator_params(axis="x", nbins=4)
    panels[0].set_ylabel("relation (0 alike, 1 unlike)")
    legend_beside(panels[-1])
    return figure


def matrices(stages: Mapping[str, np.ndarray], class_names: Sequence[str]) -> Figure:
    """The mean relation between all pairs of classes, one picture per stage, all on one scale."""
    figure, panels = side_by_side(len(stages), 2.6 * len(stages) + 0.8, 2.9, grid=False)
    pictures = []
    for axes, (name, values) in zip(panels, stages.items(), strict=True):
        pictures.append(axes.imshow(values, vmin=0, vmax=1, cmap="viridis"))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("class of the second image")
        class_ticks(axes, class_names)
    panels[0].set_ylabel("class of the first image")
    bar = figure.colorbar(pictures[0], ax=panels, fraction=0.03, pad=0.02)
    bar.set_label("relation (0 alike, 1 unlike)")
    return figure


def per_class(accuracy: Mapping[str, Values], class_names: Sequence[str]) -> Figure:
    """Accuracy of every class; with many classes in order of the first method's accuracy."""
    figure, (axes,) = side_by_side(1, 7.6, 3.2)
    order = np.arange(len(class_names))
    if len(order) > 25:
        order = np.argsort(next(iter(accuracy.values())))
    for number, (name, values) in enumerate(accuracy.items()):
        marker = {"marker": "o", "linestyle": "", "markersize": 6 if len(order) <= 25 else 3}
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            np.arange(len(order)), np.asarray(values)[order], color=colour, label=name, alpha=0.85, **marker
        )
    if len(order) <= 25:
        class_ticks(axes, class_names, y=False)
        axes.set_xlabel("class")
    else:
        axes.set_xlabel("classes, from the hardest to the easiest")
    axes.set_ylabel("accuracy (%)")
    legend_beside(axes)
    return figure


def confusion(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """True class by row, predicted class by column, in percent of the row."""
    figure, (axes,) = side_by_side(1, 5.4, 4.6, grid=False)
    percent = row_percent(counts)
    picture = axes.imshow(percent, vmin=0, vmax=100, cmap="Blues")
    if len(counts) <= 15:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                colour = "white" if value > 55 else INK
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    class_ticks(axes, class_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.03).set_label("% of the true class")
    return figure


def reliability(nets: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 15) -> Figure:
    """Accuracy against confidence in equal bins of five images or more, and the share of images in each."""
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 100], [0, 100], color=QUIET, linewidth=1, linestyle="--", label="perfectly calibrated")
    edges = np.linspace(0, 1, bins + 1)
    for number, (name, (confidence, right)) in enumerate(nets.items()):
        place = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
        count = np.bincount(place, minlength=bins)
        filled = count >= 5
        x = 100 * np.bincount(place, confidence, bins)[filled] / count[filled]
        y = 100 * np.bincount(place, right, bins)[filled] / count[filled]
        colour = COLOURS[number]
        upper.plot(x, y, "o-", color=colour, label=name, markersize=4)
        share = 100 * count / len(confidence)
        lower.stairs(share, 100 * edges, color=colour, linewidth=1.4)
    upper.set_ylabel("accuracy (%)")
    lower.set_ylabel("images (%)")
    lower.set_xlabel("confidence (%)")
    for axes in (upper, lower):
        plain_axes(axes)
    legend_beside(upper)
    return figure


def noise(accuracy: Mapping[str, Mapping[float, Values]]) -> Figure:
    """Accuracy against the strength of the noise, the mean over seeds, with a dot per seed."""
    figure, (axes,) = side_by_side(1, 7.6, 3.2)
    for number, (name, levels) in enumerate(accuracy.items()):
        x = sorted(levels)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(x, [np.mean(levels[s]) for s in x], color=colour, label=name, linewidth=1.6)
        for sigma in x:
            axes.plot([sigma] * len(levels[sigma]), levels[sigma], "o", color=colour, markersize=4, alpha=0.6)
    axes.set_xlabel("standard deviation of Gaussian noise on pixels from 0 to 1")
    axes.set_ylabel("test accuracy (%)")
    legend_beside(axes)
    return figure


def compute(
    thresholds: Sequence[Mapping[str, Any]], exits: Mapping[str, tuple[float | int, float]], ensemble: float
) -> Figure:
    """Accuracy against mean compute: a line over thresholds, a square per exit for (FLOPs, accuracy)."""
    figure, (axes,) = side_by_side(1, 7.6, 3.6)
    million = 1e6
    x = [row["flops"] / million for row in thresholds]
    axes.plot(x, [r["accuracy"] for r in thresholds], "o-", color=OWN, markersize=4, label="by threshold")
    for row, place in zip(thresholds, x, strict=True):
        if row["threshold"] <= 1 and row["threshold"] in (0.5, 0.7, 0.9, 0.99):
            axes.annotate(
                f"{row['threshold']}",
                (place, row["accuracy"]),
                (4, -12),
                textcoords="offset points",
                fontsize=8,
            )
    for name, (flops, accuracy) in exits.items():
        axes.plot(flops / million, accuracy, "s", color=OTHER, markersize=6)
        axes.annotate(name, (flops / million, accuracy), (6, 4), textcoords="offset points", fontsize=9)
    axes.plot([], [], "s", color=OTHER, label="one exit for all")
    axes.axhline(ensemble, color=QUIET, linewidth=1, linestyle="--", label="ensemble of all exits")
    axes.set_xlabel("mean compute per image (million FLOPs)")
    axes.set_ylabel("test accuracy (%)")
    axes.margins(x=0.12, y=0.12)
    legend_beside(axes)
    return figure
