"""The figures of docs/results/fsd.md: quality against diversity, ablations, and contact sheets of all cells."""

import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_core.run.atomic import write_bytes

from benchmarks.fsd import plan
from benchmarks.fsd.verdicts import Record, of

QUALITY = {"prompt_accuracy": "prompt accuracy, %", "view_consistency": "view consistency, %"}
# A colour and a marker for each method: FSD's settings are warm or violet, CFD is green.
LOOKS = {
    "sds": ("black", "s"),
    "fsd-beta1": ("#d62728", "o"),
    "fsd-constant": ("#ff9f1c", "D"),
    "fsd-beta0.5": ("#e377c2", "^"),
    "fsd-shared": ("#8c564b", "p"),
    "fsd-beta0.25": ("#9467bd", "v"),
    "fsd-constant0.5": ("#b8860b", "d"),
    "fsd-constant0.25": ("#cd5c5c", "H"),
    "sds-random": ("#8f8f8f", "X"),
    "cfd": ("#2ca02c", "P"),
    "csd": ("#1f77b4", "<"),
    "nfsd": ("#17becf", ">"),
    "ism": ("#bcbd22", "*"),
    "sdi": ("#0b3c8c", "h"),
}
KNOBS_IN_A_ROW = 3
# Of a contact sheet.
SIDE, LABEL, TITLE = 128, 112, 18


def trade_off(path: Path, records: Sequence[Record]) -> None:
    """A panel per prior and measure of quality, over the prompts that all methods have; the large marks are means."""
    plt = _pyplot()
    priors = [prior for prior in plan.PRIORS if any(record["prior"] == prior for record in records)]
    figure, axes = plt.subplots(len(priors), 2, figsize=(10.4, 3.9 * len(priors)), squeeze=False)
    for line, prior in zip(axes, priors, strict=True):
        own = [record for record in records if record["prior"] == prior]
        methods = {method: found for method in plan.METHODS if (found := of(own, method))}
        shared = set.intersection(*(set(found) for found in methods.values()))
        for axis, (name, title) in zip(line, QUALITY.items(), strict=True):
            known = 0
            for method, found in methods.items():
                points = [
                    (found[prompt]["cross_fid"], 100 * found[prompt][name])
                    for prompt in sorted(shared)
                    if None not in (found[prompt]["cross_fid"], found[prompt][name])
                ]
                known = max(known, len(points))
                if points:
                    x, y = zip(*points, strict=True)
                    colour, marker = LOOKS[method]
                    axis.plot(x, y, marker, color=colour, alpha=0.25, markersize=5, markeredgewidth=0)
                    mean = statistics.fmean(x), statistics.fmean(y)
                    axis.plot(
                        *mean, marker, color=colour, markersize=11, markeredgecolor="white", label=method
                    )
            axis.set_xscale("symlog", linthresh=1.0)
            axis.set_xlim(left=0.0)
            axis.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
            axis.set_title(f"{prior} prior, the {known} prompts of all methods", fontsize=11)
            axis.set_xlabel("cross-seed FID: diversity (logarithmic above 1)")
            axis.set_ylabel(title)
            axis.grid(alpha=0.3)
        line[-1].legend(fontsize=10, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(plt, figure, path)


def ablations(path: Path, found: Mapping[tuple[str, str, str], Sequence[Record]]) -> None:
    """Two panels per knob, diversity above and quality below: a line for the mean, a dot for each prompt."""
    plt = _pyplot()
    knobs = [knob for knob in plan.ABLATIONS if any(own == knob for _, own, _ in found)]
    priors = [prior for prior in plan.PRIORS if any(own == prior for own, _, _ in found)]
    blocks, columns = -(-len(knobs) // KNOBS_IN_A_ROW), min(len(knobs), KNOBS_IN_A_ROW)
    figure, axes = plt.subplots(2 * blocks, columns, figsize=(10.4, 4.7 * blocks + 0.6), squeeze=False)
    # Some panels stay empty where the knobs do not fill the last row.
    for axis in axes.flat:
        axis.set_visible(False)
    for place, knob in enumerate(knobs):
        block, column = divmod(place, KNOBS_IN_A_ROW)
        pair = axes[2 * block][column], axes[2 * block + 1][column]
        values = [value for value in plan.ABLATIONS[knob] if any((p, knob, value) in found for p in priors)]
        for prior in priors:
            _knob(pair, [found.get((prior, knob, value), ()) for value in values], prior, priors)
        for axis in pair:
            axis.set_visible(True)
            labels = [value.replace(" ", "\n") for value in values]
            crowded = len(labels) * max(len(word) for label in labels for word in label.split()) > 30
            axis.set_xticks(range(len(values)), labels, rotation=20 if crowded else 0)
            axis.tick_params(labelsize=10)
            axis.set_xlim(-0.3, len(values) - 0.7)
            axis.grid(alpha=0.3)
        pair[0].set_title(knob, fontsize=12)
        # One scale for all knobs, so that they compare.
        pair[0].set_ylim(0, 1.1 * max(_known(found, ["cross_fid"])))
        pair[1].set_ylim(100 * min(_known(found, QUALITY)) - 5, 105)
        if column == 0:
            pair[0].set_ylabel("cross-seed FID", fontsize=11)
            pair[1].set_ylabel("quality, %", fontsize=11)
    handles = {
        label: line
        for axis in axes.flat
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=3, fontsize=11, frameon=False)
    _save(plt, figure, path, top=1 - 0.7 / figure.get_figheight())


def _knob(
    pair: Sequence[Any], cells_of: Sequence[Sequence[Record]], prior: str, priors: Sequence[str]
) -> None:
    """One knob and prior: means as lines, prompts as dots."""
    start = 3 * priors.index(prior)
    part = f", {prior}" if len(priors) > 1 else ""
    drawn = {"cross_fid": (pair[0], "cross-seed FID", f"C{start}", 1.0, "o")} | {
        name: (pair[1], title[:-3], f"C{start + number}", 100.0, marker)
        for number, (marker, (name, title)) in enumerate(zip("sD", QUALITY.items(), strict=True), 1)
    }
    for name, (axis, title, colour, scale, marker) in drawn.items():
        means = [_mean(own, name, scale) for own in cells_of]
        axis.plot(range(len(means)), means, "-", color=colour, linewidth=2, label=f"{title}{part}, mean")
        dots = [(x, scale * r[name]) for x, own in enumerate(cells_of) for r in own if r[name] is not None]
        if dots:
            axis.plot(
                *zip(*dots, strict=True), marker, color=colour, alpha=0.5, label=f"{title}{part}, a prompt"
            )


def montage(path: Path, records: Sequence[Record]) -> None:
    """The pictures of all cells of a prior: prompts as rows, methods as columns.

    Those that are not in runs/ stay as the sheet at `path` has them; it names the settings of each in its text "tiles".
    """
    from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

    methods = [method for method in plan.METHODS if of(records, method)]
    prompts = [prompt for prompt in plan.PROMPTS if any(record["prompt"] == prompt for record in records)]
    gap, font = 4, ImageFont.load_default(12)
    width, height = LABEL + len(methods) * (SIDE + gap), TITLE + len(prompts) * (SIDE + gap)
    whole = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(whole)
    kept, tiles = _tiles(path), {}
    for column, method in enumerate(methods):
        left = LABEL + column * (SIDE + gap)
        draw.text((left + SIDE // 2, 2), method, "black", font, anchor="ma")
        for row, prompt in enumerate(prompts):
            top = TITLE + row * (SIDE + gap)
            draw.text((LABEL - 6, top + SIDE // 2), prompt, "black", font, anchor="rm")
            record = of(records, method).get(prompt)
            if record is None:
                continue
            before = kept.get(f"{method}: {prompt}")
            if record["picture"].is_file():
                with Image.open(record["picture"]) as sheet:
                    whole.paste(sheet.convert("RGB"), (left, top))
            elif before and before["print"] == record["print"]:
                box = (*before["at"], before["at"][0] + SIDE, before["at"][1] + SIDE)
                with Image.open(path) as sheet:
                    whole.paste(sheet.crop(box).convert("RGB"), (left, top))
            else:
                continue
            tiles[f"{method}: {prompt}"] = {"print": record["print"], "at": [left, top]}
    if tiles == kept:
        return
    text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("tiles", json.dumps(tiles))
    whole.quantize(128).save(buffer, format="PNG", optimize=True, pnginfo=text)
    write_bytes(path, buffer.getvalue())


def _tiles(path: Path) -> dict[str, Any]:
    """Of each picture on a sheet the settings and the upper left corner."""
    from PIL import Image

    if not path.is_file():
        return {}
    with Image.open(path) as sheet:
        return json.loads(sheet.info.get("tiles", "{}"))


def _known(found: Mapping[Any, Sequence[Record]], names: Iterable[str]) -> list[float]:
    return [r[name] for own in found.values() for r in own for name in names if r[name] is not None]


def _mean(records: Sequence[Record], name: str, scale: float) -> float:
    values = [scale * record[name] for record in records if record[name] is not None]
    return statistics.fmean(values) if values else float("nan")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path, top: float = 1.0) -> None:
    figure.tight_layout(rect=(0, 0, 1, top))
    figure.savefig(path, dpi=110)
    plt.close(figure)
