"""What the rows of calib's accuracy tables come to: gains with intervals, floors and goals reached or missed."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

# Pair: target accuracy that the paper claims without and with translated source images.
CLAIMS = {"usps-mnist": (97.1, 98.3), "mnist-usps": (95.6, 97.1)}
# Pair: points that the target must gain on average within 20 core-minutes a run.
FLOORS = {"usps-mnist": 10.0, "mnist-usps": 6.0}
SOURCE_FLOOR, SOURCE_GOAL = -1.0, -0.5
FLOOR_SECONDS, SEEDS = 20 * 60, 3
METHOD, LONGER = "calibrator", "calibrator 1000 steps"
# Taught calibrator: its teacher alone, and what that needs at test time.
ASKED_AROUND = ("neighbours", "four passes of the classifier an image and the target's images")
TAUGHT = {
    "calibrator views": ("surest view", "eight passes of the classifier an image"),
    "calibrator neighbours": ASKED_AROUND,
    "calibrator taught": ASKED_AROUND,
    "calibrator taught shaken": ASKED_AROUND,
}


def pairs_of(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by pair, "source-target" where a row names none, in the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.get("pair") or f"{row['source']}-{row['target']}", []).append(row)
    return found


def paired_interval(gains: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of paired differences, by Student's t; None of a single one."""
    if len(gains) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    return statistics.fmean(gains) - half, statistics.fmean(gains) + half


def difference(own: Sequence[float], other: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean of own - other seed by seed, and its interval."""
    gains = [a - b for a, b in zip(own, other, strict=True)]
    return statistics.fmean(gains), paired_interval(gains)


def against(own: Row, other: Row) -> tuple[float, tuple[float, float] | None] | None:
    """Mean of own - other on the target over the seeds that both have, and its interval; None without any."""
    shared = [seed for seed in own["seeds"] if seed in other["seeds"]]
    a, b = ([row["target_after"][row["seeds"].index(seed)] for seed in shared] for row in (own, other))
    return difference(a, b) if shared else None


def words(gain: float, interval: tuple[float, float] | None) -> str:
    """+1.23 [+0.45, +2.01]"""
    return f"{gain:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def mean_and_spread(values: Sequence[float]) -> str:
    """1.23 (0.45): the standard deviation in brackets; none of a single value."""
    spread = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def source_only(rows: list[Row], row: Row) -> dict[str, list[float]]:
    """Source and target of the classifier alone, for the seeds of `row`.

    Of a calibrator whose classifier changed (the released code's drift), its own "before" is of the changed one, so
    that it comes from another row of the same seeds, where there is one.
    """
    base = row
    if row["method"].startswith(METHOD) and not row["classifier_unchanged"]:
        others = [r for r in rows if r is not row and "target_before" in r]
        base = next((r for r in others if set(row["seeds"]) <= set(r["seeds"])), row)
    at = [base["seeds"].index(seed) for seed in row["seeds"]]
    return {side: [base[f"{side}_before"][k] for k in at] for side in ("source", "target")}


def verdicts(pair: str, rows: list[Row]) -> list[str]:
    """Sentences on one pair: the gain, the floor, the goals, and who else did how well."""
    own = next((row for row in rows if row["method"] == METHOD and "target_after" in row), None)
    if own is None:
        return [f"The row `{METHOD}` is not finished."]
    before = source_only(rows, own)
    gain, interval = difference(own["target_after"], before["target"])
    change, _ = difference(own["source_after"], before["source"])
    low, high = interval or (0.0, 0.0)
    shown = "a gain" if low > 0 else "a loss" if high < 0 else "no difference shown"
    after = statistics.fmean(own["target_after"])
    seeds = len(own["seeds"])
    lines = [
        f"`{METHOD}`: {statistics.fmean(before['target']):.2f} -> {after:.2f} on the target, {words(gain, interval)} "
        f"over the classifier alone ({shown}, {seeds} seeds); source {change:+.2f}; the classifier is "
        f"{'bit-identical' if own['classifier_unchanged'] else '**CHANGED**'}."
    ]
    if pair.startswith("camvid"):
        return [*lines, _segmentation_floor(own, before), *_others(own, rows)]
    if pair in FLOORS:
        lines += [_floor(pair, row, rows) for row in rows if row["method"] in (METHOD, LONGER, *TAUGHT)]
    if pair in CLAIMS:
        lines += _goals(pair, rows)
    return lines + _others(own, rows) + _taught(rows)


def _floor(pair: str, row: Row, rows: list[Row]) -> str:
    """What a run of minutes should reach, for one budget of the method."""
    before = source_only(rows, row)
    gain, _ = difference(row["target_after"], before["target"])
    change, _ = difference(row["source_after"], before["source"])
    longest, seeds = max(row.get("processor_seconds", [math.inf])), len(row["seeds"])
    tests = {
        f"target {FLOORS[pair]:+g} ({gain:+.2f})": gain >= FLOORS[pair],
        f"source at most {-SOURCE_FLOOR:g} lower ({change:+.2f})": change >= SOURCE_FLOOR,
        "classifier bit-identical": row["classifier_unchanged"],
        f"20 core-minutes ({longest / 60:.1f})": longest <= FLOOR_SECONDS,
        f"{SEEDS} seeds ({seeds})": seeds >= SEEDS,
    }
    return f"Floor, `{row['method']}`: {_judged(tests)}."


def _goals(pair: str, rows: list[Row]) -> list[str]:
    """The paper's own figures, for every calibrator that keeps the classifier and looks at no target label."""
    lines = []
    plain, translated = CLAIMS[pair]
    for name, claimed, wanted in (("no GAN images", plain, False), ("translated images", translated, True)):
        able = [row for row in rows if _counts(row) and ("translated" in row["method"]) == wanted]
        if not able:
            lines.append(f"Goal {claimed} ({name}): not measured.")
            continue
        best = max(able, key=lambda row: statistics.fmean(row["target_after"]))
        after = statistics.fmean(best["target_after"])
        change, _ = difference(best["source_after"], source_only(rows, best)["source"])
        short = f", {claimed - after:.2f} short" if after < claimed else ""
        tests = {
            f"{claimed} ({after:.2f}{short})": after >= claimed,
            f"source at most {-SOURCE_GOAL:g} lower ({change:+.2f})": change >= SOURCE_GOAL,
        }
        picked = f", the best of {len(able)} such rows, picked by these test figures" if len(able) > 1 else ""
        if len(best["seeds"]) < SEEDS:
            picked += f", on {len(best['seeds'])} of {SEEDS} seeds"
        lines.append(f"Goal, {name}, by `{best['method']}`{picked}: {_judged(tests)}.")
    return lines


def _counts(row: Row) -> bool:
    named = row["method"].startswith(METHOD) and "target_after" in row
    return named and row["classifier_unchanged"] and row["selection"] != "oracle"


def _segmentation_floor(own: Row, before: dict[str, list[float]]) -> str:
    dusk = [a - b for a, b in zip(own["target_after"], before["target"], strict=True)]
    day = [a - b for a, b in zip(own["source_after"], before["source"], strict=True)]
    tests = {
        f"mIoU up on the target in each seed ({_list(dusk)})": min(dusk) > 0,
        f"source at most {-SOURCE_FLOOR:g} lower in each ({_list(day)})": min(day) >= SOURCE_FLOOR,
        "classifier bit-identical": own["classifier_unchanged"],
        f"{SEEDS} seeds ({len(dusk)})": len(dusk) >= SEEDS,
    }
    failed = "" if all(tests.values()) else "  This experiment failed."
    return f"Wanted: {_judged(tests)}.{failed}"


def _others(own: Row, rows: list[Row]) -> list[str]:
    """The best row that leaves the classifier alone without a calibrator, the best that does not, and the bound."""
    lines = []
    scored = [row for row in rows if "target_after" in row and not row["method"].startswith(METHOD)]
    bound = [row for row in scored if row["method"] == "target supervised"]
    rivals = [row for row in scored if row not in bound]
    alike = [row for row in rivals if row.get("touched") == "nothing"]
    others = [row for row in rivals if row not in alike]
    for title, group in (
        ("Best other row that touches nothing", alike),
        ("Best row that changes the classifier", others),
        ("Bound", bound),
    ):
        if group:
            best = max(group, key=lambda row: statistics.fmean(row["target_after"]))
            gap = against(own, best)
            lines.append(
                f"{title}: {best['method']}, {statistics.fmean(best['target_after']):.2f}; "
                f"`{METHOD}` against it {words(*gap) if gap else 'not comparable: no shared seed'}."
            )
    return lines


def _taught(rows: list[Row]) -> list[str]:
    """Taught calibrators against their teachers alone, which need no training but more at test time."""
    named = {row["method"]: row for row in rows if "target_after" in row}
    lines = []
    for taught, (teacher, needs) in TAUGHT.items():
        gap = against(named[taught], named[teacher]) if {taught, teacher} <= set(named) else None
        if gap is None:
            continue
        lost = [
            difference(named[name]["source_after"], source_only(rows, named[name])["source"])[0]
            for name in (taught, teacher)
        ]
        lines.append(
            f"`{taught}` against `{teacher}`, its teacher without a calibrator ({needs}): "
            f"target {words(*gap)}; source {lost[0]:+.2f} against {lost[1]:+.2f}."
        )
    return lines


def _judged(tests: dict[str, bool]) -> str:
    return "; ".join(f"{what} {'reached' if met else '**missed**'}" for what, met in tests.items())


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)
