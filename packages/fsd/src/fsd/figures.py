"""The figures of a report: each function draws pictures or numbers that it is given."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from shared_core.run.axes import legend_beside, side_by_side

QUIET = "#8b9199"
COLOURS = ("#2b5f75", "#c0603a", "#7a9a3c", "#8a6bb0", "#c49a2c", "#4f9ea0", "#b05b86", "#6b7078")
WIDTH = 9.4


def contact_sheet(
    views: Sequence[UInt8[np.ndarray, "views h w 3"]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> Figure:
    """Seeds as rows, views as columns."""
    # One image: axes of their own for some hundred pictures would take minutes.
    sheet, middles = _tiled(views)
    count, lines = len(columns), len(rows)
    cell = min(1.3, (WIDTH - 1.0) / count)
    width, height = cell * count + 1.0, cell * lines + 0.3
    figure = Figure(figsize=(width, height), dpi=144)
    axes = figure.add_axes((1.0 / width, 0, 1 - 1.0 / width, 1 - 0.3 / height))
    axes.imshow(sheet, aspect="auto", interpolation="antialiased")
    axes.set_yticks(middles[0][:lines], rows, fontsize=9)
    axes.set_xticks(middles[1][:count], columns, fontsize=8, color=QUIET)
    axes.tick_params(length=0, pad=3, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def _tiled(
    views: Sequence[UInt8[np.ndarray, "views h w 3"]],
) -> tuple[UInt8[np.ndarray, "height width 3"], tuple[list[float], list[float]]]:
    """Pictures in lines with white gaps between them, and the middles of lines and columns in pixels."""
    count = max(len(line) for line in views)
    h, w = views[0].shape[1:3]
    gap = max(1, w // 32)
    sheet = np.full((len(views) * (h + gap) - gap, count * (w + gap) - gap, 3), 255, np.uint8)
    for y, line in enumerate(views):
        for x, picture in enumerate(line):
            sheet[y * (h + gap) :, x * (w + gap) :][:h, :w] = picture
    middles = [(side - 1) / 2 + (side + gap) * np.arange(n) for side, n in ((h, len(views)), (w, count))]
    return sheet, (middles[0].tolist(), middles[1].tolist())


def strip(pictures: UInt8[np.ndarray, "n h w 3"], names: Sequence[str]) -> Figure:
    """Pictures side by side in one line, a name above each."""
    return contact_sheet([pictures], [""], names)


def curves(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Time t, loss, gradient norm and opacity over steps, a line per seed; a panel that nothing logged is left out.

    `records` maps the name of a line to the lines of its metrics.jsonl; values that are not finite leave gaps.
    """
    panels = {"t": "time t", "loss": "loss", "grad_norm": "gradient norm", "opacity": "mean opacity"}
    logged = [key for key in panels if any(key in record for lines in records.values() for record in lines)]
    figure, all_axes = side_by_side(max(1, len(logged)), WIDTH, 2.4)
    for axes, key in zip(all_axes, logged, strict=False):
        values = {
            name: np.array([[r["step"], r[key]] for r in lines if key in r], dtype=float).reshape(-1, 2)
            for name, lines in records.items()
        }
        for number, (name, points) in enumerate(values.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                *points.T, color=colour, linewidth=1.1, marker="" if len(points) > 1 else "o", label=name
            )
        everything = np.concatenate([points[:, 1] for points in values.values()])
        positive = everything[np.isfinite(everything)]
        # Losses weighted by alpha and sigma fall over decades with t.
        if key in ("loss", "grad_norm") and len(positive) and positive.min() > 0:
            axes.set_yscale("log")
        axes.set_title(panels[key], fontsize=10)
        axes.set_xlabel("step")
    if len(records) > 1:
        legend_beside(all_axes[-1])
    return figure
