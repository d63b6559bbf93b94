"""What a benchmark measures and says: interleaved rounds, medians with quartiles, one JSON, one line a figure.

Machines are shared and clocks drift, so nothing is measured in a block of its own: a round runs every variant
once, the next round begins with another one, and two variants are compared round by round.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from shared_core.run.environment import describe


def options(doc: str | None) -> argparse.ArgumentParser:
    """The two options that every benchmark has; ``doc`` is its docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON to write")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: whether it works, no goal is judged"
    )
    return parser


def interleaved(
    variants: dict[str, Callable[[], float]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """What each variant returned in each round, without the first ``warmup`` rounds."""
    values: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for index in range(warmup + rounds):
        # Whoever comes first meets another state of caches and clocks, so the first place goes round.
        start = index % len(names)
        for name in names[start:] + names[:start]:
            value = variants[name]()
            if index >= warmup:
                values[name].append(value)
    return values


def ratio(
    name: str, what: str, unit: str, values: dict[str, list[float]], variant: str, base: str, **judged: Any
) -> dict[str, Any]:
    """The figure ``variant`` / ``base``; ``judged`` is as in :func:`figure`."""
    pairs = zip(values[variant], values[base], strict=True)
    return figure(name, what, unit, _two(values, variant, base), "ratio", [a / b for a, b in pairs], **judged)


def difference(
    name: str, what: str, unit: str, values: dict[str, list[float]], variant: str, base: str, **judged: Any
) -> dict[str, Any]:
    """The figure ``variant`` - ``base`` in ``unit``; ``judged`` is as in :func:`figure`."""
    pairs = zip(values[variant], values[base], strict=True)
    return figure(
        name, what, unit, _two(values, variant, base), "difference", [a - b for a, b in pairs], **judged
    )


def figure(
    name: str,
    what: str,
    unit: str,
    values: dict[str, list[float]],
    kind: str,
    compared: list[float],
    goal: float | None = None,
    at_least: bool = False,
    quick: bool = False,
) -> dict[str, Any]:
    """One claim, its measurements and whether its goal is met; prints it as one line.

    ``compared`` holds the ratio or difference of every round, and its median is judged: by ``at_least`` from
    below, else from above; not at all (``met`` is None) without a goal or in a quick run.
    """
    spread = _spread(compared)
    met = None
    if goal is not None and not quick:
        met = spread["median"] >= goal if at_least else spread["median"] <= goal
    line = f"{name}: {kind} {spread['median']:.3g} ({spread['lower']:.3g} to {spread['upper']:.3g})"
    if goal is not None:
        line += f", goal {'at least' if at_least else 'at most'} {goal:g}: {_VERDICTS[met]}"
    print(f"{line}; {what}", flush=True)
    return {
        "name": name,
        "what": what,
        "unit": unit,
        "values": {variant: _spread(numbers) for variant, numbers in values.items()},
        kind: spread,
        "goal": goal,
        "goal_is": "at least" if at_least else "at most",
        "met": met,
        "repeats": len(compared),
    }


def write(out: Path, quick: bool, figures: list[dict[str, Any]], **more: Any) -> None:
    """Figures and what they were measured on, as JSON.  ``load`` is the 1, 5 and 15 minute average at the end."""
    record = {"quick": quick, "figures": figures, "load": os.getloadavg(), "environment": describe(), **more}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


_VERDICTS = {True: "met", False: "NOT MET", None: "not judged"}


def _two(values: dict[str, list[float]], variant: str, base: str) -> dict[str, list[float]]:
    return {variant: values[variant], base: values[base]}


def _spread(numbers: list[float]) -> dict[str, float]:
    """Median and the quartiles around it."""
    if len(numbers) == 1:
        return dict.fromkeys(("median", "lower", "upper"), numbers[0])
    lower, _, upper = quantiles(numbers, n=4, method="inclusive")
    return {"median": median(numbers), "lower": lower, "upper": upper}
