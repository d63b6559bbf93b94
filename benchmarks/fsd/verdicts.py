"""What the cells of fsd/diversity.py come to, in sentences: goals reached, missed or void, each with its interval.

`records` are finished cells of one prior; two methods are compared over the prompts that both have.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from fsd.intervals import Interval, bootstrap_difference, bootstrap_ratio

from benchmarks.fsd.plan import METHODS, PROMPTS, work

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
FURTHER = ("fsd-shared", "fsd-beta0.25", "fsd-constant0.5", "fsd-constant0.25")
# Not FSD, so they reach no goal of it; judged in the same way.
OTHERS = ("cfd",)
# Prior and method: the first tier of prompts whose figures nobody had seen when the method was chosen, or was measured
# on more prompts for being close; 2 for all others.
UNSEEN_FROM = {
    **{(prior, "fsd-beta0.25"): 3 for prior in GOALS},
    **{(prior, method): 4 for prior in GOALS for method in ("fsd-constant0.5", "fsd-constant0.25")},
    ("camera-free", "fsd-beta0.5"): 4,
}
COUNTED = {"more": lambda gap: gap > 0, "less": lambda gap: gap < 0, "the same": lambda gap: gap == 0}
QUALITY = {"prompt_accuracy": "prompt accuracy", "view_consistency": "view consistency"}


class Verdict(NamedTuple):
    """A method against SDS: `diversity` is the ratio of cross-seed FID, `quality` differences in points by name."""

    method: str
    diversity: Interval | None
    quality: dict[str, Interval | None]
    prompts: int
    complete: bool

    def lower(self) -> str:
        """The measures of quality that may be worse than the margin allows, "" if none; unknown ones may be."""
        return " and ".join(
            QUALITY[name] for name, change in self.quality.items() if change is None or change.low <= -MARGIN
        )

    def reached(self, goal: float) -> bool:
        """The ratio reaches the goal and counts."""
        return self.diversity is not None and self.diversity.value >= goal and not self.lower()

    def outcome(self, goal: float) -> str:
        """Whether the goal is reached, and why a gain does not count."""
        if self.diversity is None:
            return "not known"
        if not self.lower():
            return "reached" if self.diversity.value >= goal else "**missed**"
        gain = "**void**" if self.diversity.value > 1 else "**missed**, and no gain"
        return f"{gain}: {self.lower()} may be more than {MARGIN:g} points lower"


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


def settings_judged(records: Sequence[Record]) -> list[Verdict]:
    """Every FSD setting against SDS, as far as they are there."""
    if not of(records, REFERENCE):
        return []
    return [judged(records, method) for method in (*FLOW, *FURTHER) if of(records, method)]


def against_sds(records: Sequence[Record], method: str) -> dict[str, Any]:
    """Cross-seed FID of SDS over the method's prompts, and the ratio; None where there is none."""
    theirs = of(records, REFERENCE)
    shared = [prompt for prompt in of(records, method) if prompt in theirs]
    distances = [d for prompt in shared if (d := theirs[prompt]["cross_fid"]) is not None]
    ratio, _ = paired(records, method, REFERENCE, "cross_fid", bootstrap_ratio)
    return {
        "sds_prompts": len(shared),
        "sds_cross_fid": fmean(distances) if distances else None,
        "ratio_to_sds": ratio and ratio._asdict(),
    }


def verdicts(prior: str, records: Sequence[Record]) -> list[str]:
    """Sentences on one prior: the goal by each FSD setting, the calls, and what the world map is for."""
    goal, found = GOALS[prior], settings_judged(records)
    if not found:
        return ["Not measured: it needs finished cells of `sds` and of an FSD setting."]
    others = [judged(records, method) for method in OTHERS if of(records, method)]
    lines = [sentence(verdict, goal) for verdict in (*found, *others)]
    return [decision(goal, found), *lines, *unseen(records, goal), calls(records), enclosed(records)]


def decision(goal: float, found: Sequence[Verdict]) -> str:
    """Whether the goal is reached, by which settings; nothing is decided before all prompts and seeds are done."""
    by = [verdict.method for verdict in found if verdict.reached(goal) and verdict.complete]
    missing = [method for method in FLOW if method not in {verdict.method for verdict in found}]
    if by:
        chosen = "" if HEADLINE in by else (
            f" Not by `{HEADLINE}`, the paper's own form, so that this is a pick among {len(found)} by these figures."
        )  # fmt: skip
        return f"**Goal {goal:g}: reached** by {', '.join(f'`{method}`' for method in by)}.{chosen}"
    if missing or not all(verdict.complete for verdict in found):
        unfinished = f" {', '.join(missing)} not measured." if missing else ""
        return (
            f"**Goal {goal:g}: not decided**: not all of {LEAST_PROMPTS} prompts and {SEEDS} seeds are done."
            f"{unfinished}"
        )
    return f"**Goal {goal:g}: missed** by all FSD settings."


def sentence(verdict: Verdict, goal: float) -> str:
    """A ratio, what it costs in quality, and whether it counts."""
    quality = ", ".join(
        f"{QUALITY[name]} {_words(change, '+.1f')}" if change else f"{QUALITY[name]} not known"
        for name, change in verdict.quality.items()
    )
    if verdict.diversity is None:
        why = "a distance of 0, or fewer than two prompts"
        return f"`{verdict.method}`: no ratio of cross-seed FID ({why}); {quality} points."
    part = "" if verdict.complete else f", preliminary: {verdict.prompts} of {LEAST_PROMPTS} prompts"
    return (
        f"`{verdict.method}`: {_words(verdict.diversity, '.2f')} times{part}; {quality} points; "
        f"{verdict.outcome(goal)}{'' if verdict.complete else ' so far'}."
    )


def unseen(records: Sequence[Record], goal: float) -> list[str]:
    """The same on the prompts alone whose figures nobody had seen when the method was chosen."""
    lines = []
    for method in (*FLOW, *FURTHER):
        fresh = [r for r in records if PROMPTS[r["prompt"]] >= UNSEEN_FROM.get((r["prior"], method), 2)]
        if of(fresh, method) and of(fresh, REFERENCE):
            verdict = judged(fresh, method)
            lines.append(
                f"On the {verdict.prompts} prompts that no earlier round had seen, {sentence(verdict, goal)}"
            )
    return lines


def calls(records: Sequence[Record]) -> str:
    """Whether all methods cost the prior the same work."""
    spent = {
        method: fmean(work(r) for r in of(records, method).values())
        for method in METHODS
        if of(records, method)
    }
    low, high = (f"{passes:.0f}" for passes in (min(spent.values()), max(spent.values())))
    if max(spent.values()) <= 1.05 * min(spent.values()):
        passes = low if low == high else f"{low} to {high}"
        return f"Equal work of the prior: {passes} passes with guidance an object."
    listed = ", ".join(f"{method} {passes:.0f}" for method, passes in spent.items())
    return f"**Unequal** work of the prior, in passes with guidance an object: {listed}."


def enclosed(records: Sequence[Record]) -> str:
    """Whether constant noise leaves more enclosed empty space than the world map, which was made against it."""
    name, pair = "enclosed_share", ("fsd-constant", HEADLINE)
    found, prompts = paired(records, *pair, name, bootstrap_difference, 100.0)
    if found is None:
        return "Enclosed empty space: constant noise and the world map are not both measured."
    constant, mapped = (of(records, method) for method in pair)
    shared = [prompt for prompt in constant if prompt in mapped]
    gaps = {prompt: 100 * (constant[prompt][name] - mapped[prompt][name]) for prompt in shared}
    largest = max(gaps, key=lambda prompt: abs(gaps[prompt]))
    means = [100 * fmean(own[prompt][name] for prompt in shared) for own in (constant, mapped)]
    rest = [record for record in records if record["prompt"] != largest]
    without, _ = paired(rest, *pair, name, bootstrap_difference, 100.0)
    worse = "no difference shown"
    if found.low > 0 or found.high < 0:
        worse = f"constant noise is {'worse' if found.low > 0 else 'better'}"
        if without and abs(without.value) < abs(found.value) / 2:
            worse += ", mostly by one prompt"
    ties = {word: sum(map(test, gaps.values())) for word, test in COUNTED.items()}
    counted = ", ".join(f"{word} on {count}" for word, count in ties.items())
    alone = f"; without '{largest}' {_words(without, '+.2f')}" if without else ""
    rates = [next(iter(own.values()))["settings"]["optim"]["learning_rate"] for own in (constant, mapped)]
    differ = (
        f" Their tuned learning rates differ, too: {rates[0]:g} and {rates[1]:g}."
        if rates[0] != rates[1]
        else ""
    )
    return (
        f"Enclosed empty space, the world map's reason to exist: {means[0]:.2f} % of the body with constant noise, "
        f"{means[1]:.2f} % with the world map, difference {_words(found, '+.2f')} points over {prompts} prompts"
        f"{alone}: {worse}. Constant noise leaves {counted} prompts.{differ}"
    )


def _words(interval: Interval, form: str) -> str:
    """1.23 [0.45, 2.01]"""
    value, low, high = (format(number, form) for number in interval)
    return f"{value} [{low}, {high}]"
