"""What the trainings of a run come to together: the comparison of a method with its controls.

The record follows ``result_schema.json``, which :func:`schema` reads.
"""

import json
import math
import statistics
from collections.abc import Sequence
from importlib import resources
from typing import Any

NAMES = {
    "corsd": "CORSD",
    "ce": "cross-entropy",
    "ce_triplets": "cross-entropy, triplet sampler",
    "label_smoothing": "label smoothing",
    "deep_supervision": "deep supervision",
    "byot": "BYOT (2019)",
    "byot_tpami": "BYOT (2022)",
    "rkd": "RKD",
    "sp": "SP",
    "pkt": "PKT",
    "cs_kd": "CS-KD",
    "ps_kd": "PS-KD",
    "dlb": "DLB",
    "corsd_v2": "CORSD, version 2",
    "mixup": "mixup",
    "cutmix": "CutMix",
    "dks": "DKS",
    "contrastive": "contrastive deep supervision",
    "one": "ONE, of stages",
    "sla": "SLA, rotation heads",
    "bake": "BAKE",
    "ols": "online label smoothing",
    "mixskd": "MixSKD, simplified",
}

BY_STAGE = ("stage_accuracy", "relation_auc")


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of a run from those of its cells, of which the first is of the method in question.

    Raises:
        ValueError: the cells did not see the same number of images, or not the same seeds.
    """
    budgets = {result["images_seen"] for result in results}
    if len(budgets) > 1:
        raise ValueError(f"a comparison needs equal budgets; the trainings saw {sorted(budgets)} images")
    method = results[0]["method"]
    seeds = sorted({result["seed"] for result in results})
    accuracy: dict[str, list[float]] = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        accuracy.setdefault(result["method"], []).append(result["accuracy"])
    if any(len(values) != len(seeds) for values in accuracy.values()):
        raise ValueError(f"a comparison needs every method at every seed; seeds {seeds}, {accuracy}")
    own = accuracy.pop(method)
    controls = {
        name: {
            "accuracy": values,
            "mean": statistics.fmean(values),
            "sd": spread(values),
            **_by_stage(results, name),
        }
        for name, values in accuracy.items()
    }
    baseline = controls.get("ce")
    best = max(controls, key=lambda name: controls[name]["mean"], default=None)
    return {
        "method": method,
        "dataset": results[0]["dataset"],
        "net": results[0]["net"],
        "seeds": seeds,
        "accuracies": own,
        "accuracy_mean": statistics.fmean(own),
        "accuracy_sd": spread(own),
        **_by_stage(results, method),
        "baseline_mean": baseline and baseline["mean"],
        "baseline_sd": baseline and baseline["sd"],
        "gain": baseline and statistics.fmean(own) - baseline["mean"],
        "gain_interval": baseline and paired_interval(own, baseline["accuracy"]),
        "best_control": best,
        "gain_over_best_control": best and statistics.fmean(own) - controls[best]["mean"],
        "gain_over_best_control_interval": best and paired_interval(own, controls[best]["accuracy"]),
        "controls": controls,
        "images_seen": results[0]["images_seen"],
        "seconds": sum(result["seconds"] for result in results),
    }


def _by_stage(results: Sequence[dict[str, Any]], method: str) -> dict[str, dict[str, float] | None]:
    """Means over a method's seeds of what each training says of its stages; None where it has none to speak of."""
    found = {}
    for name in BY_STAGE:
        values = [r[name] for r in results if r["method"] == method and r.get(name)]
        means = {stage: statistics.fmean(v[stage] for v in values) for stage in values[0]} if values else None
        found[name] = means
    return found


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; one value has none."""
    return statistics.stdev(values) if len(values) > 1 else None


def paired_interval(own: Sequence[float], other: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean of own - other over paired seeds, by Student's t; None with one seed."""
    if len(own) < 2:
        return None
    from scipy.stats import t

    gains = [a - b for a, b in zip(own, other, strict=True)]
    half = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    return [statistics.fmean(gains) - half, statistics.fmean(gains) + half]


def sentence(result: dict[str, Any]) -> str:
    """What the run shows, and no more than it shows."""
    words = [
        f"{result['method']}: {with_spread(result['accuracy_mean'], result['accuracy_sd'])} on the test set"
    ]
    if result["gain"] is not None:
        words.append(f"{result['gain']:+.2f} points against ce ({verdict(result['gain_interval'])})")
    if result["best_control"] not in (None, "ce"):
        interval = verdict(result["gain_over_best_control_interval"])
        gain = f"{result['gain_over_best_control']:+.2f} points"
        words.append(f"{gain} against {result['best_control']}, the best control ({interval})")
    return "; ".join(words) + "."


def verdict(interval: Sequence[float] | None) -> str:
    """How far a difference can be trusted."""
    if interval is None:
        return "one seed, so chance is not ruled out"
    low, high = interval
    text = f"95 % interval {low:+.2f} to {high:+.2f}"
    return text if low > 0 or high < 0 else f"{text}, which holds 0: no difference shown"


def schema() -> dict[str, Any]:
    """The JSON schema of result.json."""
    return json.loads(resources.files("corsd").joinpath("result_schema.json").read_text(encoding="utf-8"))


def with_spread(mean: float, sd: float | None) -> str:
    """A mean in percent, with the standard deviation over seeds where there is one."""
    return f"{mean:.2f} %" if sd is None else f"{mean:.2f} ± {sd:.2f} %"
