"""The figures of docs/results/fsd.md: quality against diversity, ablations, and contact sheets of all cells."""

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _diversity_cells as cells
import _diversity_plan as plan
from _diversity_verdicts import Record, of
from shared_core.run.atomic import write_bytes

QUALITY = {"prompt_accuracy": "prompt accuracy, %", "view_consistency": "view consistency, %"}
# Of a contact sheet.
SIDE, LABEL, TITLE = 128, 112, 18


def trade_off(path: Path, records: Sequence[Record]) -> None:
    """A panel per prior and measure of quality; a dot is a prompt, a diamond a method's mean."""
    plt = _pyplot()
    priors = [prior for prior in plan.PRIORS if any(record["prior"] == prior for record in records)]
    figure, axes = plt.subplots(len(priors), 2, figsize=(9.4, 3.4 * len(priors)), squeeze=False)
    for line, prior in zip(axes, priors, strict=True):
        own = [record for record in records if record["prior"] == prior]
        for axis, (name, title) in zip(line, QUALITY.items(), strict=True):
            for number, method in enumerate(plan.METHODS):
                points = [
                    (record["cross_fid"], 100 * record[name])
                    for record in of(own, method).values()
                    if None not in (record["cross_fid"], record[name])
                ]
                if points:
                    x, y = zip(*points, strict=True)
                    colour = f"C{number}"
                    axis.plot(x, y, "o", color=colour, alpha=0.3, markersize=4)
                    axis.plot(statistics.fmean(x), statistics.fmean(y), "D", color=colour, label=method)
            axis.set_title(f"{prior} prior", fontsize=10)
            axis.set_xlabel("cross-seed FID: diversity")
            axis.set_ylabel(title)
            axis.grid(alpha=0.3)
        line[-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    _save(plt, figure, path)


def ablations(path: Path, found: Mapping[tuple[str, str, str], Sequence[Record]]) -> None:
    """A column per knob; diversity above, quality below."""
    plt = _pyplot()
    knobs = [knob for knob in plan.ABLATIONS if any(own == knob for _, own, _ in found)]
    priors = [prior for prior in plan.PRIORS if any(own == prior for own, _, _ in found)]
    figure, axes = plt.subplots(
        2, len(knobs), figsize=(2.4 * len(knobs) + 2.4, 5.0), squeeze=False, sharey="row"
    )
    for column, knob in zip(axes.T, knobs, strict=True):
        values = [value for value in plan.ABLATIONS[knob] if any((p, knob, value) in found for p in priors)]
        for number, prior in enumerate(priors):
            lines = {"cross_fid": (column[0], "-", 1.0)} | {
                name: (column[1], style, 100.0) for name, style in zip(QUALITY, ("-", "--"), strict=True)
            }
            for name, (axis, style, scale) in lines.items():
                means = [_mean(found.get((prior, knob, value), ()), name, scale) for value in values]
                label = prior if name == "cross_fid" else f"{prior}, {QUALITY[name][:-3]}"
                axis.plot(
                    range(len(values)), means, f"o{style}", color=f"C{number}", markersize=4, label=label
                )
        for axis in column:
            axis.set_xticks(range(len(values)), values, fontsize=8, rotation=30)
            axis.grid(alpha=0.3)
        column[0].set_title(knob, fontsize=10)
    axes[0][0].set_ylabel("cross-seed FID")
    axes[1][0].set_ylabel("%")
    for line in axes:
        line[-1].legend(fontsize="xx-small", loc="center left", bbox_to_anchor=(1, 0.5))
    _save(plt, figure, path)


def montage(path: Path, records: Sequence[Record], root: Path) -> None:
    """The pictures of all cells of a prior: prompts as rows, methods as columns."""
    from PIL import Image, ImageDraw, ImageFont

    methods = [method for method in plan.METHODS if of(records, method)]
    prompts = [prompt for prompt in plan.PROMPTS if any(record["prompt"] == prompt for record in records)]
    gap, font = 4, ImageFont.load_default(12)
    width, height = LABEL + len(methods) * (SIDE + gap), TITLE + len(prompts) * (SIDE + gap)
    whole = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(whole)
    for column, method in enumerate(methods):
        left = LABEL + column * (SIDE + gap)
        draw.text((left + SIDE // 2, 2), method, "black", font, anchor="ma")
        for row, prompt in enumerate(prompts):
            top = TITLE + row * (SIDE + gap)
            draw.text((LABEL - 6, top + SIDE // 2), prompt, "black", font, anchor="rm")
            record = of(records, method).get(prompt)
            if record:
                with Image.open(picture_of(record, root)) as sheet:
                    whole.paste(sheet.convert("RGB"), (left, top))
    buffer = io.BytesIO()
    whole.quantize(128).save(buffer, format="PNG", optimize=True)
    write_bytes(path, buffer.getvalue())


def picture_of(record: Record, root: Path) -> Path:
    """The contact sheet of a main cell."""
    cell = plan.Cell("main", record["prior"], record["method"], record["prompt"], (), {})
    return cells.record_of(cell, root).with_suffix(".png")


def _mean(records: Sequence[Record], name: str, scale: float) -> float:
    values = [scale * record[name] for record in records if record[name] is not None]
    return statistics.fmean(values) if values else float("nan")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
