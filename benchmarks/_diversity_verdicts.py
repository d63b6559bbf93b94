"""What the cells of fsd_diversity.py come to, in sentences: goals reached, missed or void, each with its interval.

`records` are finished cells of one prior; two methods are compared over the prompts that both have.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from _diversity_plan import METHODS, PROMPTS, work
from fsd.intervals import Interval, bootstrap_difference, bootstrap_ratio

Record = dict[str, Any]
Compare = Callable[[Sequence[float], Sequence[float]], Interval]

# Prior: cross-seed FID of FSD over SDS in the paper (MVDream 174.8 / 86.6, Stable Diffusion 141.8 / 106.5).
GOALS = {"multi-view": 2.02, "camera-free": 1.33}
# Points that prompt accuracy and view consistency may be lower by, at the lower end of the interval.
MARGIN = 5.0
LEAST_PROMPTS, SEEDS = 8, 4
REFERENCE, HEADLINE = "sds", "fsd-beta1"
FLOW = ("fsd-beta1", "fsd-constant", "fsd-beta0.5")
# Not asked for: judged where they are there.
FURTHER = ("fsd-shared", "fsd-beta0.25")
# The first tier of prompts whose figures nobody had seen when a method was chosen; 2 for all others.
UNSEEN_FROM = {"fsd-beta0.25": 3}
QUALITY = {"prompt_accuracy": "prompt accuracy", "view_consistency": "view consistency"}


class Verdict(NamedTuple):
    """A method against SDS: `diversity` is the ratio of cross-seed FID, `quality` differences in points by name."""

    method: str
    diversity: Interval | None
    quality: dict[str, Interval | None]
    prompts: int
    complete: bool

    def sound(self) -> bool:
        """Whether neither measure of quality is shown to be worse than the margin allows; unknown is not sound."""
        return all(found is not None and found.low > -MARGIN for found in self.quality.values())

    def reached(self, goal: float) -> bool:
        """The ratio reaches the goal and counts."""
        return self.diversity is not None and self.diversity.value >= goal and self.sound()


def of(records: Sequence[Record], method: str) -> dict[str, Record]:
    """The cells of a method, by prompt."""
    return {record["prompt"]: record for record in records if record["method"] == method}


def paired(
    records: Sequence[Record], method: str, other: str, name: str, compare: Compare, scale: float = 1.0
) -> tuple[Interval | None, int]:
    """`compare` of a measure over the prompts where both methods have it, and how many these are."""
    ours, theirs = of(records, method), of(records, other)
    shared = [
        prompt
        for prompt, record in ours.items()
        if prompt in theirs and record[name] is not None and theirs[prompt][name] is not None
    ]
    if len(shared) < 2:
        return None, len(shared)
    a, b = ([scale * group[prompt][name] for prompt in shared] for group in (ours, theirs))
    if compare is bootstrap_ratio and min(b) <= 0:
        return None, len(shared)
    return compare(a, b), len(shared)


def judged(records: Sequence[Record], method: str) -> Verdict:
    """A method against SDS."""
    diversity, prompts = paired(records, method, REFERENCE, "cross_fid", bootstrap_ratio)
    quality = {
        name: paired(records, method, REFERENCE, name, bootstrap_difference, 100.0)[0] for name in QUALITY
    }
    own = [*of(records, method).values(), *of(records, REFERENCE).values()]
    seeds = min((len(record["seeds"]) for record in own), default=0)
    return Verdict(method, diversity, quality, prompts, prompts >= LEAST_PROMPTS and seeds >= SEEDS)


def verdicts(prior: str, records: Sequence[Record]) -> list[str]:
    """Sentences on one prior: the goal by each FSD setting, the calls, and what the world map is for."""
    goal = GOALS[prior]
    found = [judged(records, method) for method in (*FLOW, *FURTHER) if of(records, method)]
    if not of(records, REFERENCE) or not found:
        return ["Not measured: it needs finished cells of `sds` and of an FSD setting."]
    lines = [sentence(verdict, goal) for verdict in found]
    by = [f"`{verdict.method}`" for verdict in found if verdict.reached(goal) and verdict.complete]
    missing = [method for method in FLOW if method not in {verdict.method for verdict in found}]
    if by:
        chosen = "" if HEADLINE in {word.strip("`") for word in by} else (
            f" Not by `{HEADLINE}`, the paper's own form, so that this is a pick among {len(found)} by these figures."
        )  # fmt: skip
        lines.append(f"**Goal {goal:g}: reached** by {', '.join(by)}.{chosen}")
    elif missing or not all(verdict.complete for verdict in found):
        unfinished = f" {', '.join(missing)} not measured." if missing else ""
        lines.append(
            f"**Goal {goal:g}: not decided**: not all of {LEAST_PROMPTS} prompts and {SEEDS} seeds are done."
            f"{unfinished}"
        )
    else:
        lines.append(f"**Goal {goal:g}: missed** by all FSD settings.")
    return [*lines, *unseen(records, goal), calls(records), enclosed(records)]


def unseen(records: Sequence[Record], goal: float) -> list[str]:
    """The same on the prompts alone whose figures nobody had seen when the method was chosen."""
    lines = []
    for method in (*FLOW, *FURTHER):
        fresh = [r for r in records if PROMPTS[r["prompt"]] >= UNSEEN_FROM.get(method, 2)]
        if of(fresh, method) and of(fresh, REFERENCE):
            verdict = judged(fresh, method)
            lines.append(
                f"On the {verdict.prompts} prompts that no earlier round had seen: {sentence(verdict, goal)}"
            )
    return lines


def sentence(verdict: Verdict, goal: float) -> str:
    """A ratio, its goal, and whether it counts."""
    quality = "; ".join(
        f"{QUALITY[name]} {_words(change, '+.1f')} points" if change else f"{QUALITY[name]} not known"
        for name, change in verdict.quality.items()
    )
    if verdict.diversity is None:
        why = "a distance of 0, or fewer than two prompts"
        return f"`{verdict.method}`: no ratio of cross-seed FID ({why}); {quality}."
    ratio = verdict.diversity
    if verdict.sound():
        outcome = "reached" if ratio.value >= goal else "**missed**"
    else:
        failed = [
            QUALITY[name]
            for name, change in verdict.quality.items()
            if change is None or change.low <= -MARGIN
        ]
        gain = "the gain is **void**" if ratio.value > 1 else "**missed**, and no gain"
        outcome = f"{gain}: {' and '.join(failed)} may be more than {MARGIN:g} points lower"
    outcome += "" if verdict.complete else " so far"
    part = "" if verdict.complete else f", preliminary: {verdict.prompts} of {LEAST_PROMPTS} prompts"
    return (
        f"`{verdict.method}` over `{REFERENCE}`: cross-seed FID {_words(ratio, '.2f')} times{part}; {quality}. "
        f"Goal {goal:g}: {outcome}."
    )


def calls(records: Sequence[Record]) -> str:
    """Whether all methods cost the prior the same work."""
    spent = {
        method: fmean(work(r) for r in of(records, method).values())
        for method in METHODS
        if of(records, method)
    }
    low, high = min(spent.values()), max(spent.values())
    if high <= 1.05 * low:
        return f"Equal work of the prior: {low:.0f} to {high:.0f} passes with guidance an object."
    listed = ", ".join(f"{method} {passes:.0f}" for method, passes in spent.items())
    return f"**Unequal** work of the prior, in passes with guidance an object: {listed}."


def enclosed(records: Sequence[Record]) -> str:
    """Whether constant noise leaves more enclosed empty space than the world map, which was made against it."""
    found, prompts = paired(records, "fsd-constant", HEADLINE, "enclosed_share", bootstrap_difference, 100.0)
    if found is None:
        return "Enclosed empty space: constant noise and the world map are not both measured."
    means = [
        100 * fmean(_all(of(records, method), "enclosed_share")) for method in ("fsd-constant", HEADLINE)
    ]
    worse = (
        "constant noise is worse"
        if found.low > 0
        else "constant noise is better"
        if found.high < 0
        else "no difference shown"
    )
    return (
        f"Enclosed empty space, the world map's reason to exist: {means[0]:.1f} % of the body with constant noise, "
        f"{means[1]:.1f} % with the world map, difference {_words(found, '+.1f')} points over {prompts} "
        f"prompts: {worse}."
    )


def _all(own: dict[str, Record], name: str) -> list[float]:
    return [record[name] for record in own.values() if record[name] is not None]


def _words(interval: Interval, form: str) -> str:
    """1.23 [0.45, 2.01]"""
    value, low, high = (format(number, form) for number in interval)
    return f"{value} [{low}, {high}]"
