"""The table of measured speed in benchmarks/README.md, from the JSON files in benchmarks/results/.

python -m benchmarks.core.readme
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
README = HERE / "README.md"
# Those that no page of docs/results/ quotes.
NAMES = (
    *("corsd_step", "corsd_loader", "corsd_import_time", "torchdistill_rkd", "calib_step", "calib_latency"),
    *("weak_scaling", "accuracy_again"),
)
MARKS = re.compile(r"(<!-- made by benchmarks/core/readme\.py -->\n).*?(<!-- end -->)", re.DOTALL)
VERDICTS = {True: "met", False: "**missed**", None: ""}


def filled(text: str, results: Path = HERE / "results") -> str:
    """The README's text with the table between its two marks.  Raises ValueError for one without them."""
    lines = ["| figure | measured | goal | |", "|---|---|---|---|"]
    notes = []
    for name in NAMES:
        record = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        lines += [row(name, figure) for figure in record["figures"]]
        commit = record["environment"]["git"]["commit"][:7]
        notes.append(f"`{name}` {record['load'][0]:.1f} ({commit})")
    table = "\n".join([*lines, "", f"Load of the machine at the end, and commit: {', '.join(notes)}."])
    text, count = MARKS.subn(lambda found: f"{found[1]}{table}\n{found[2]}", text)
    if count != 1:
        raise ValueError("the README has no place for the table")
    return text


def row(script: str, figure: dict[str, Any]) -> str:
    """One line: what, median with quartiles, goal, verdict."""
    kind, unit = ("ratio", "") if "ratio" in figure else ("difference", f" {figure['unit'].split(',')[0]}")
    spread, goal = figure[kind], figure["goal"]
    median, lower, upper = (_short(spread[name]) for name in ("median", "lower", "upper"))
    measured = f"{median}{unit}"
    if figure["repeats"] > 1:
        measured += f" ({lower} to {upper}), {figure['repeats']} rounds"
    wanted = "" if goal is None else f"{figure['goal_is']} {goal:g}{unit}"
    return f"| `{script}` {figure['name']} | {measured} | {wanted} | {VERDICTS[figure['met']]} |"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
