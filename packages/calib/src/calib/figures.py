"""The figures of a report: each function draws numbers that it is given and returns a matplotlib Figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from shared_core.run.axes import class_ticks, legend_beside, plain_axes, row_percent, side_by_side

INK, QUIET, BEFORE, AFTER = "#22262b", "#8b9199", "#c0603a", "#2b5f75"
COLOURS = (AFTER, BEFORE, "#7a9a3c", "#8a6bb0", "#c49a2c", "#4f9ea0", "#b05b86", "#6b7078")
CRITIC_GUESS = 4 * math.log(4)
# Least squares of a critic that says 1/2 of everything, real and made.
PATCH_GUESS = 1 / 4
Values = Any


def four_numbers(numbers: Mapping[str, tuple[float, float]], measure: str) -> Figure:
    """An arrow per domain from the score without to the score with the calibrator, both in percent."""
    figure, (axes,) = side_by_side(1, 7.6, 0.9 + 0.55 * len(numbers))
    for row, (before, after) in enumerate(numbers.values()):
        axes.plot([before, after], [row, row], color=QUIET, linewidth=1.5, zorder=1)
        axes.plot(before, row, "o", color=BEFORE, markersize=9, label="without" if row == 0 else None)
        axes.plot(after, row, "o", color=AFTER, markersize=9, label="with" if row == 0 else None)
        axes.text(1.01, row, f"{after - before:+.2f}", transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(numbers)), list(numbers))
    axes.set_ylim(len(numbers) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_xlabel(f"{measure} on the test images (%)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, fontsize=9, ncols=2)
    return figure


def per_class(
    domains: Mapping[str, tuple[Values, Values]], class_names: Sequence[str], measure: str
) -> Figure:
    """Score of every class without and with the calibrator, a panel per domain; gaps where there is no image."""
    figure, panels = side_by_side(len(domains), 7.6, 3.0, sharey=True)
    places = np.arange(len(class_names))
    for axes, (name, (before, after)) in zip(panels, domains.items(), strict=True):
        before, after = (np.array(v, dtype=float) for v in (before, after))
        axes.vlines(places, before, after, color=QUIET, linewidth=1.2, zorder=1)
        size = 6 if len(places) <= 25 else 3
        axes.plot(places, before, "o", color=BEFORE, markersize=size, label="without")
        axes.plot(places, after, "o", color=AFTER, markersize=size, label="with")
        axes.set_title(name, fontsize=10)
        class_ticks(axes, class_names, y=False)
    panels[0].set_ylabel(f"{measure} (%)")
    legend_beside(panels[-1])
    return figure


def confusion(matrices: Mapping[str, np.ndarray], class_names: Sequence[str]) -> Figure:
    """True class by row, predicted class by column, in percent of the row; a panel per matrix."""
    figure, panels = side_by_side(len(matrices), 4.4 * len(matrices) + 0.4, 4.2, grid=False)
    pictures = []
    for axes, (name, counts) in zip(panels, matrices.items(), strict=True):
        percent = row_percent(counts)
        pictures.append(axes.imshow(percent, vmin=0, vmax=100, cmap="Blues"))
        if len(counts) <= 12:
            for (row, column), value in np.ndenumerate(percent):
                if value >= 0.5:
                    colour = "white" if value > 55 else INK
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=7)
        class_ticks(axes, class_names)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("predicted class")
    panels[0].set_ylabel("true class")
    bar = figure.colorbar(pictures[0], ax=panels, fraction=0.025, pad=0.02)
    bar.set_label("% of the true class")
    return figure


def losses(steps: Values, critics: Mapping[str, Values], calibrator: Mapping[str, Values]) -> Figure:
    """The critics' losses, if any, with what guessing costs them, and the calibrator's, over steps."""
    sides = {"critics": critics, "calibrator": calibrator}
    figure, panels = _curves(steps, {title: lines for title, lines in sides.items() if lines})
    if critics:
        panels[0].axhline(CRITIC_GUESS, color=QUIET, linewidth=1, linestyle="--")
        place = {"xytext": (2, 3), "textcoords": "offset points"}
        panels[0].annotate("guessing", (0, CRITIC_GUESS), **place, fontsize=8, color=QUIET)
    panels[0].set_ylabel("cross-entropy")
    return figure


def translation_losses(steps: Values, sides: Mapping[str, Mapping[str, Values]]) -> Figure:
    """A panel for each side of a CycleGAN, critics first, with what critics lose that cannot tell."""
    figure, panels = _curves(steps, sides)
    panels[0].axhline(PATCH_GUESS, color=QUIET, linewidth=1, linestyle="--")
    panels[0].set_ylabel("loss")
    return figure


def _curves(steps: Values, sides: Mapping[str, Mapping[str, Values]]) -> tuple[Figure, Sequence[Any]]:
    """A panel for each side of a game, a named line for each of its losses."""
    figure, panels = side_by_side(len(sides), 7.6, 2.9)
    for axes, (title, lines) in zip(panels, sides.items(), strict=True):
        for number, (name, values) in enumerate(lines.items()):
            axes.plot(steps, values, color=COLOURS[number], linewidth=1.4, label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8)
    return figure, panels


def validators(seeds: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel per validator over steps, a line per seed, a dot at the step that was kept.

    Each seed is {"steps": [...], "values": {validator: [...]}, "chosen": step}.
    """
    names = list(seeds[0]["values"])
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(7.6, 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axes, name in zip(panels, names, strict=False):
        plain_axes(axes)
        for number, seed in enumerate(seeds):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(seed["steps"], seed["values"][name], color=colour, linewidth=1.3)
            if seed["chosen"] in seed["steps"]:
                place = seed["steps"].index(seed["chosen"])
                axes.plot(seed["chosen"], seed["values"][name][place], "o", color=colour, markersize=6)
        axes.set_title(name, fontsize=9)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[-columns:]:
        axes.set_xlabel("step")
    return figure


def epsilon_curve(epsilons: Values, scores: Mapping[str, Values], measure: str) -> Figure:
    """Score against the bound to which the correction is cut back, a line per domain."""
    figure, (axes,) = side_by_side(1, 7.6, 3.2)
    for number, (name, values) in enumerate(scores.items()):
        axes.plot(epsilons, values, "o-", color=COLOURS[number], markersize=4, label=name)
    axes.set_xlabel("largest allowed correction (share of the value range)")
    axes.set_ylabel(f"{measure} (%)")
    legend_beside(axes)
    return figure


def spectra(curves: Mapping[str, Values]) -> Figure:
    """Mean log amplitude by frequency, as it is and as the difference to the first curve."""
    figure, (left, right) = side_by_side(2, 7.6, 2.9)
    first = np.asarray(next(iter(curves.values())))
    frequency = np.linspace(0, 0.5, len(first))
    for number, (name, values) in enumerate(curves.items()):
        left.plot(frequency, values, color=COLOURS[number], linewidth=1.4, label=name)
        right.plot(frequency, np.asarray(values) - first, color=COLOURS[number], linewidth=1.4, label=name)
    left.set_ylabel("mean ln amplitude")
    right.set_ylabel(f"less that of {next(iter(curves))}")
    for axes in (left, right):
        axes.set_xlabel("cycles per pixel")
    legend_beside(right)
    return figure


def seeds_dots(gains: Mapping[str, Values]) -> Figure:
    """A row per domain, a dot per seed for what the calibrator changed, a stroke at the mean."""
    figure, (axes,) = side_by_side(1, 7.6, 0.9 + 0.5 * len(gains))
    for row, values in enumerate(gains.values()):
        axes.plot(values, [row] * len(values), "o", color=AFTER, alpha=0.75, markersize=7, mec="white")
        axes.plot([np.mean(values)] * 2, [row - 0.28, row + 0.28], color=INK, linewidth=2)
        words = f"{np.mean(values):+.2f} ± {np.std(values, ddof=1):.2f}"
        axes.text(1.01, row, words, transform=axes.get_yaxis_transform(), va="center")
    axes.axvline(0, color=QUIET, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(gains)), list(gains))
    axes.set_ylim(len(gains) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_xlabel("points gained or lost by the calibrator")
    return figure


def colour_key(names: Sequence[str], colours: np.ndarray) -> Figure:
    """Which colour of a label map is which class; `colours` are bytes (classes, 3)."""
    columns = 4
    figure = Figure(figsize=(7.6, 0.25 + 0.27 * -(-len(names) // columns)))
    handles = [Patch(color=colour / 255, label=name) for name, colour in zip(names, colours, strict=True)]
    figure.legend(handles=handles, ncols=columns, loc="center", frameon=False, fontsize=9)
    return figure


def palette(count: int) -> np.ndarray:
    """`count` colours that differ, as bytes (count, 3)."""
    from matplotlib import colormaps

    # tab20 in an order that puts its ten strong colours before their pale versions.
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    colours = [colormaps["tab20"](order[k % 20])[:3] for k in range(count)]
    return np.round(255 * np.array(colours)).astype(np.uint8)
