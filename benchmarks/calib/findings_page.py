"""The part of docs/results/calib.md about what calib/findings.py measured: a table, a figure and what they say."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.calib.verdicts import mean_and_spread

BOUNDS = (0.0, 0.1, 0.2, 0.5, 1.0)
"""Shares of the calibrator's epsilon whose scores are put into words; the figure has all."""


def findings(record: dict[str, Any] | None, folder: Path) -> str:
    """The section, or nothing without a record; writes calib_findings.png into `folder`."""
    if record is None or not record["runs"]:
        return ""
    runs = record["runs"]
    _figure(folder / "calib_findings.png", runs)
    first = runs[0]
    lines = [
        "## The paper's reading of it\n",
        f"`calib analyse` of the row `{record['row']}` on {record['pair']}, seeds "
        f"{', '.join(str(run['seed']) for run in runs)}, trained anew for this: {first['images']:,} test images of the "
        f"target, epsilon {first['epsilon']:g} ({first['epsilon_unit']}).  Mean (standard deviation) over seeds.  "
        "[What each line is](../explanation/calib.md#the-papers-reading-as-experiments).\n",
        "| correction | target, % | mean size | taken for source by the critics, % |",
        "|---|---|---|---|",
    ]
    for rows in zip(*(run["corrections"] for run in runs), strict=True):
        score = mean_and_spread([row["score"] for row in rows])
        confusion = mean_and_spread([100 * row["confusion"] for row in rows])
        size = statistics.fmean(row["mean_size"] for row in rows)
        lines.append(f"| {rows[0]['name']} | {score} | {size:.4f} | {confusion} |")
    by_share = [_at(runs, share) for share in BOUNDS]
    cut = ", ".join(f"{values} at {share:g}" for share, values in zip(BOUNDS, by_share, strict=True))
    lines += [
        f"\nThe trained correction, cut to a share of its epsilon: {cut}.\n",
        "![accuracy against epsilon, and the change of Fourier amplitude](calib_findings.png)",
    ]
    return "\n".join(lines) + "\n"


def _at(runs: list[dict[str, Any]], share: float) -> str:
    """Target accuracy with the correction cut to that share."""
    scores = []
    for run in runs:
        by_epsilon = run["by_epsilon"]
        distances = [abs(epsilon - share * run["epsilon"]) for epsilon in by_epsilon["epsilon"]]
        scores.append(by_epsilon["target"][distances.index(min(distances))])
    return mean_and_spread(scores)


def _figure(path: Path, runs: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (bounds, spectra) = plt.subplots(1, 2, figsize=(9.6, 3.4))
    for place, run in enumerate(runs):
        for name, colour in (("target", "tab:red"), ("source", "tab:blue")):
            bounds.plot(
                run["by_epsilon"]["epsilon"],
                run["by_epsilon"][name],
                color=colour,
                alpha=0.7,
                label=None if place else name,
            )
        target = run["spectra"]["target"]
        for name, colour, label in (
            ("target, calibrated", "tab:red", "calibrated target"),
            ("source", "grey", "source"),
        ):
            change = [a - b for a, b in zip(run["spectra"][name], target, strict=True)]
            spectra.plot(change, color=colour, alpha=0.7, label=None if place else label)
    bounds.set_xlabel("bound to which the trained correction is cut")
    bounds.set_ylabel("test accuracy, %")
    spectra.set_xlabel("frequency, cycles an image")
    spectra.set_ylabel("mean log amplitude\nless the target's")
    for axis in (bounds, spectra):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
