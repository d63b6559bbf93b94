"""docs/results/calib.md with its figure and rows, from the finished runs of calib/accuracy.py.

`write_page(folder, rows, by_class)` needs nothing but the runs' figures; what the speed benchmarks
measured joins where it is there.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from shared_core.run.atomic import write_json, write_text

from benchmarks.calib.findings_page import findings
from benchmarks.calib.plan import RACERS
from benchmarks.calib.verdicts import (
    CLAIMS,
    Row,
    against,
    difference,
    mean_and_spread,
    pairs_of,
    source_only,
    verdicts,
    words,
)
from benchmarks.core.marks import filled

PAGE = Path(__file__).parents[2] / "docs" / "results" / "calib.md"
MEASURED = Path(__file__).parents[1] / "results"


def write_page(
    folder: Path, rows: list[Row], by_class: dict[str, list[dict[str, Any]]], measured: Path = MEASURED
) -> None:
    """Write calib.json, calib.png and calib.md into `folder`; `measured` holds the speed benchmarks' files.

    `by_class` has the calibrator's figures by class of each pair, seed by seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "calib.json", rows)
    _figure(folder / "calib.png", [row for row in rows if "target_after" in row])
    found = {
        name: _read(measured / f"calib_{name}.json") for name in ("step", "latency", "to_90", "findings")
    }
    pairs = []
    for pair, own in pairs_of(rows).items():
        pairs += [
            _section(pair, own),
            _further_scores(own),
            _translations(own),
            _by_class(by_class.get(pair, [])),
        ]
    parts = {
        "in short": _in_short(rows),
        "pairs": "\n".join(part for part in pairs if part),
        "bodies": _bodies(rows, found["latency"]),
        "step": _figures("The step", found["step"]),
        "to 90": _to_90(found["to_90"]),
        "findings": findings(found["findings"], folder),
        "not run": _not_run(rows),
    }
    write_text(folder / "calib.md", filled(PAGE.read_text(encoding="utf-8"), parts))


# What has to be known of a pair beside its numbers.
NOTES = {
    "camvid-day-dusk": "mIoU over 11 classes, 160 by 120 pixels.  **A leak**: dusk train (62 images) and dusk test\n"
    "(62) are the two halves of one drive, so that test frames look like training frames, which a calibrator sees\n"
    "without labels.  A gain here says little about another drive.",
}
# Pair: core-hours a seed, worked out as on the page.
FULL_SCHEDULE = {"usps-mnist": "1 to 3", "mnist-usps": "9 to 25"}


def _not_run(rows: list[Row]) -> str:
    """That the paper's full schedule was not measured, for the pairs of which that is so."""
    done = {row.get("pair") for row in rows if row["method"] == "calibrator full schedule"}
    missing = {pair: hours for pair, hours in FULL_SCHEDULE.items() if pair not in done}
    if not missing:
        return ""
    hours = ", ".join(f"{pair} {count}" for pair, count in missing.items())
    return (
        "**Not run**: the row `calibrator full schedule` (these presets in front of a classifier trained as long as "
        f"the paper's; core-hours a seed: {hours}), and so nothing on this page shows what the full schedule brings.  "
        "It runs in the background and goes on after an interruption:\n\n"
        '    python -m benchmarks.calib.accuracy run --row "calibrator full schedule" --jobs 2\n'
    )


def _read(path: Path) -> dict[str, Any] | None:
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    # A quick run only shows that the script works.
    return None if record is None or record["quick"] else record


def _in_short(rows: list[Row]) -> str:
    lines = ["## In short\n"]
    for pair, own in pairs_of(rows).items():
        lines.append(f"**{pair}**\n")
        lines += [f"- {line}" for line in verdicts(pair, own)] + [""]
    return "\n".join(lines)


def _section(pair: str, rows: list[Row]) -> str:
    measure = next((row["measure"] for row in rows if "measure" in row), "accuracy")
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    lines = [f"## {pair}\n"] + ([NOTES[pair] + "\n"] if pair in NOTES else [])
    lines += [
        f"Test {measure} in percent; seeds {', '.join(map(str, seeds))}.\n",
        "| method | touches | target, before -> after | gain over the classifier alone "
        "| source, before -> after | core-seconds | selection |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "target_after" not in row:
            lines.append(f"| {row['method']} | | {row.get('not_applicable', 'no figures')} | | | | |")
            continue
        before = source_only(rows, row)
        gain = words(*difference(row["target_after"], before["target"]))
        change, _ = difference(row["source_after"], before["source"])
        seconds = row.get("processor_seconds")
        cells = [
            row.get("touched", "nothing"),
            _moved(before["target"], row["target_after"]),
            gain,
            f"{_moved(before['source'], row['source_after'])}: {change:+.2f}",
            f"{statistics.fmean(seconds):.0f}" if seconds else "",
            row["selection"],
        ]
        lines.append(_line(row["method"], cells))
    return "\n".join(lines) + "\n"


def _further_scores(rows: list[Row]) -> str:
    """What a segmentation is scored by beside mIoU, of rows whose runs kept it."""
    named = {"frequency_weighted_iou": "fwIoU", "pixel_accuracy": "pixel accuracy"}
    found = [(row, score) for row in rows for score in named if score in row]
    if not found:
        return ""
    lines = ["| method | score, % | target, before -> after | source, before -> after |", "|---|---|---|---|"]
    for row, score in found:
        values = {name: [seed[name] for seed in row[score]] for name in row[score][0]}
        moved = [_moved(values[f"{side}_before"], values[f"{side}_after"]) for side in ("target", "source")]
        lines.append(_line(row["method"], [named[score], *moved]))
    return "\n".join(lines) + "\n"


def _translations(rows: list[Row]) -> str:
    """What translated images cost, and how many of them may have become another digit."""
    lines = []
    for row in (row for row in rows if "label_flips" in row):
        before, after = (
            mean_and_spread([seed[when] for seed in row["label_flips"]]) for when in ("before", "after")
        )
        lines.append(
            f"`{row['method']}`: its CycleGAN was trained in {row['translation_seconds'][0]:.0f} s, not in "
            "core-seconds above.  Of source test images the classifier that knows only originals names otherwise than "
            f"their label {before} %, and of their translations {after} %: changed digits, and a style "
            "that is strange to it.  The classifier that knows only translations names otherwise "
            f"{mean_and_spread([100 - right for right in row['source_before']])} % of those images as they are.\n"
        )
    return "\n".join(lines)


def _moved(before: list[float], after: list[float]) -> str:
    return f"{mean_and_spread(before)} -> {mean_and_spread(after)}"


def _by_class(found: list[dict[str, Any]]) -> str:
    """Where the rest is lost: the calibrator's target figures by class, means over the seeds that have them."""
    if not found:
        return ""
    sides = []
    for name in ("target_before", "target_after"):
        columns = zip(*(seed[name] for seed in found), strict=True)
        known = [[value for value in column if value is not None] for column in columns]
        sides.append([f"{statistics.fmean(column):.1f}" if column else "-" for column in known])
    classes = [str(index) for index in range(len(sides[0]))]
    lines = ["Target by class, without and with the calibrator:\n", _line("class", classes)]
    lines += ["|---" * (len(classes) + 1) + "|", _line("before", sides[0]), _line("after", sides[1])]
    return "\n".join(lines) + "\n"


def _line(first: str, cells: list[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


# The full body's row of the accuracy table: rows trained as it is, and their bodies in calib_latency.json.
BODIES = {
    "calibrator": {
        "calibrator": "residual 4x3",
        "calibrator lowres": "lowres 4x9",
        "calibrator lowres 3 blocks": "lowres 4x3",
        "calibrator constant": "constant",
    },
    "calibrator neighbours": {
        "calibrator neighbours": "residual 4x3",
        "calibrator neighbours lowres": "lowres 4x3",
        "calibrator neighbours folded": "folded 8x3",
    },
}
FULL_BODY = (
    "Accuracies are of rows above.  The full body that the cheaper ones are compared with, seed by seed, is `residual "
    "4x3`: width 4 with 3 blocks, which the rows `calibrator` and `calibrator neighbours` train, not the paper's 9."
)
LATENCY_GOAL, ACCURACY_GOAL = 1.25, 1.0


def _bodies(rows: list[Row], latency: dict[str, Any] | None) -> str:
    if latency is None:
        return ""
    pairs = [pair for pair in pairs_of(rows) if not pair.startswith("camvid")]
    columns = [(full, pair) for full in BODIES for pair in pairs if full in _by_name(rows, pair)]
    lines = ["## Bodies: what they cost and what they bring\n", latency["what"] + "\n", FULL_BODY + "\n"]
    lines += [
        f"| body (width x blocks) | parameters | DTN | LeNet |{''.join(f' {full}, {p} |' for full, p in columns)}",
        "|---" * (4 + len(columns)) + "|",
    ]
    verdicts: list[str] = []
    for body, cost in latency["bodies"].items():
        gaps: dict[str, dict[str, float]] = {full: {} for full in BODIES}
        targets = []
        for full, pair in columns:
            by_name = _by_name(rows, pair)
            named = [name for name, its in BODIES[full].items() if its == body]
            own = by_name.get(named[0]) if named else None
            gap = against(own, by_name[full]) if own else None
            if own is None or gap is None:
                targets.append("")
                continue
            gaps[full][pair] = gap[0]
            over = "" if own is by_name[full] else f": {words(*gap)}"
            targets.append(mean_and_spread(own["target_after"]) + over)
        if body != "constant" and cost["dtn"] < LATENCY_GOAL:
            known = {full for full, _ in columns}
            verdicts += [
                f"{body}, as `{full}`: {_near(gaps[full], pairs)}"
                for full, its in BODIES.items()
                if full in known and body in its.values()
            ]
        lines.append(
            _line(body, [f"{cost['parameters']:,}", f"{cost['dtn']:.2f}", f"{cost['lenet']:.2f}", *targets])
        )
    somewhere = any(": reached on " in verdict for verdict in verdicts)
    outcome = "reached where both are measured" if somewhere else "**missed**"
    if any(verdict.endswith(": reached") for verdict in verdicts):
        outcome = "reached"
    goal = (
        f"Goal: a body other than the constant under {LATENCY_GOAL} on DTN, less than {ACCURACY_GOAL:g} point of mean "
        f"target accuracy below the full body, trained alike, on every pair: {outcome} "
        f"({'; '.join(verdicts) or 'no body is that fast'})."
    )
    return "\n".join([*lines, "", goal]) + "\n"


def _by_name(rows: list[Row], pair: str) -> dict[str, Row]:
    return {row["method"]: row for row in pairs_of(rows)[pair] if "target_after" in row}


def _near(gaps: dict[str, float], pairs: list[str]) -> str:
    """Whether a fast body is as accurate as the full one; `gaps` are of those of the `pairs` that have both."""
    if not gaps:
        return "accuracy not measured"
    far = [pair for pair, gap in gaps.items() if gap <= -ACCURACY_GOAL]
    if far:
        return f"less accurate on {' and '.join(far)}"
    unknown = [pair for pair in pairs if pair not in gaps]
    if unknown:
        return f"reached on {' and '.join(gaps)}, not measured on {' and '.join(unknown)}"
    return "reached"


def _figures(title: str, record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    lines = [f"## {title}\n", "| what | ratio (quartiles) | goal |", "|---|---|---|"]
    verdict = {True: ": reached", False: ": **missed**", None: ""}
    for figure in record["figures"]:
        r = figure["ratio"]
        goal = (
            ""
            if figure["goal"] is None
            else f"{figure['goal_is']} {figure['goal']:g}{verdict[figure['met']]}"
        )
        lines.append(
            f"| {figure['what']} | {r['median']:.2f} ({r['lower']:.2f} to {r['upper']:.2f}) | {goal} |"
        )
    return "\n".join(lines) + "\n"


def _to_90(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    lines = [f"## Core-seconds to {record['goal']:g} % on the target\n", record["what"] + "\n"]
    lines += ["| method | seed | reached | best | at the end |", "|---|---|---|---|---|"]
    for run in record["runs"]:
        reached = "not reached" if run["reached"] is None else f"{run['reached']:.0f} s"
        best, last = ("{accuracy:.2f} at {seconds:.0f} s".format(**run[name]) for name in ("best", "last"))
        lines.append(f"| {run['method']} | {run['seed']} | {reached} | {best} | {last} |")
    lines += [f"\nNot measured: {missing}" for missing in record["not_measured"]]
    seeds = len({run["seed"] for run in record["runs"]})
    if seeds == 1 and record["runs"]:
        lines.append("\nOne seed, so that differences of some tens of seconds say nothing.")
    if "load" in record:
        load = f"{record['load'][0]:.1f} on {record['environment']['cpus']} cores"
        lines.append(f"\nLoad of the machine at the end: {load}, which slows processor time, too.")
    if "note" in record:
        lines.append(f"\n{record['note']}")
    unseen = [name for name in RACERS if name not in {run["method"] for run in record["runs"]}]
    if unseen:
        lines.append(f"\nNot in these measurements, which the script would race, too: {', '.join(unseen)}.")
    return "\n".join(lines) + "\n"


def _figure(path: Path, rows: list[Row]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pairs = pairs_of(rows)
    height = 1.4 + 0.3 * max((len(own) for own in pairs.values()), default=1)
    figure, axes = plt.subplots(
        1, max(len(pairs), 1), figsize=(5.2 * max(len(pairs), 1), height), squeeze=False
    )
    for axis, (pair, own) in zip(axes[0], pairs.items(), strict=False):
        for place, row in enumerate(own[::-1]):
            colour = "tab:red" if row["method"].startswith("calibrator") else "tab:blue"
            axis.plot(row["target_after"], [place] * len(row["seeds"]), "o", color=colour, alpha=0.5)
            mean = statistics.fmean(row["target_after"])
            axis.plot(mean, place, "|", color=colour, markersize=16, markeredgewidth=2)
        alone = statistics.fmean(source_only(own, own[0])["target"])
        axis.axvline(alone, color="grey", linestyle=":", label="classifier alone")
        if pair in CLAIMS:
            axis.axvline(CLAIMS[pair][0], color="black", linestyle="--", label="claimed, no GAN images")
        axis.set_yticks(range(len(own)), [row["method"] for row in own[::-1]])
        axis.set_xlabel("target test, %  (dot: a seed, bar: mean)")
        axis.set_title(pair)
        axis.legend(
            fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, frameon=False
        )
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
