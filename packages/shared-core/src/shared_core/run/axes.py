"""How the figures of a report look: matplotlib axes with the house's spines, grid and legend."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def side_by_side(
    count: int, width: float, height: float, sharey: bool = False, grid: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes side by side, `width` by `height` inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False, sharey=sharey)[0])
    for axes in panels:
        plain_axes(axes, grid)
    return figure, panels


def plain_axes(axes: Axes, grid: bool = True) -> None:
    """Two spines and a pale grid behind everything; without a grid nothing changes."""
    if grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e0da", linewidth=0.7)
        axes.set_axisbelow(True)


def legend_beside(axes: Axes, reverse: bool = False) -> None:
    """Beside the axes, where it covers nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, reverse=reverse)


def class_ticks(axes: Axes, names: Sequence[str], y: bool = True) -> None:
    """Class names at the ticks of x, and of y unless told otherwise; none where there are more than 25."""
    if len(names) > 25:
        return
    turned = 90 if max(map(len, names)) > 2 else 0
    axes.set_xticks(range(len(names)), names, rotation=turned, fontsize=8)
    if y:
        axes.set_yticks(range(len(names)), names, fontsize=8)


def row_percent(counts: np.ndarray) -> Float[np.ndarray, "rows columns"]:
    """Counts as percent of their row; NaN, which is drawn as nothing, in a row without any."""
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, 100 * counts / total.clip(1), np.nan)
