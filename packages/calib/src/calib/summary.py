"""What the four numbers of a run mean, in words."""

from pathlib import Path
from typing import Any

BASELINE_NAMES = {
    "calibrator": "calibrator (this run)",
    "source_only": "source only",
    "moment_matching": "moment matching",
    "random_correction": "random correction",
    "surest_view": "surest view",
    "neighbours": "neighbours",
    "bn_adapt": "BN-adapt",
    "tent": "TENT",
    "deep_coral": "Deep CORAL",
    "dann": "DANN",
    "adda": "ADDA",
    "shot_im": "SHOT-IM",
    "target_supervised": "target supervised (bound)",
}

UNTRAINED = (
    "THE CLASSIFIER SEEMS UNTRAINED: it names the source's own test images hardly better than chance. Give its weights "
    "(--weights FILE), or let it be trained on the source (train_classifier: true in the YAML file)."
)


def sentence(result: dict[str, Any]) -> str:
    """What was gained on the target and what it cost on the source, and no more than the run shows."""
    cost = _moved(result["source_after"] - result["source_before"])
    target = f"The target {domain_name(result['target'])} has no labels to score"
    source = (
        f"on the source {domain_name(result['source'])} {result['measure']} is {cost} with the calibrator"
    )
    if result["target_before"] is not None:
        gain = _moved(result["target_after"] - result["target_before"])
        target = f"With the calibrator, {result['measure']} on {domain_name(result['target'])} is {gain}"
        source = f"on the source {domain_name(result['source'])} it is {cost}"
    seeds = len(result.get("cells", [result]))
    count = "one seed" if seeds == 1 else f"mean of {seeds} seeds"
    return f"{target}; {source} ({count})."


def domain_name(spec: str) -> str:
    """A data set's spec without folders: `digits`, and `birds.npz#day` of `npz:data/birds.npz#day`."""
    kind, _, rest = spec.partition(":")
    return Path(rest).name if rest else kind


def cautions(result: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the figures; empty for an ordinary run."""
    found = []
    if result.get("classifier_near_chance"):
        found.append(UNTRAINED)
    if result["oracle"]:
        found.append(
            "ORACLE: target labels chose the calibrator of this run. Its target figures are an upper bound that "
            "nobody without labels reaches; do not compare them with label-free selection."
        )
    if result["compat"] == "released":
        found.append(
            "RELEASED CODE: this run repeats the faults of the authors' released code. The classifier's batch-norm "
            "buffers drifted while the calibrator was trained, so that the figures with it are of another classifier "
            "than the one that was given; the pixel critic saw the top rows only, and the correction only brightens."
        )
    elif not result["classifier_unchanged"]:
        found.append("THE CLASSIFIER CHANGED during this run: its figures prove nothing.")
    if "pixels only" in result.get("note", ""):
        found.append(
            "The classifier gives no gradient: the calibrator was trained with the pixel critic only."
        )
    if "surrogate" in result.get("note", ""):
        found.append(
            "The classifier gives no gradient: the calibrator was trained in front of a stand-in distilled from its "
            "answers. The figures are of the real classifier."
        )
    if result["target_before"] is None:
        found.append(
            "NO SCORE ON THE TARGET: its test images are missing, or have no class in common with the source."
        )
    elif result["target_after"] < result["target_before"]:
        found.append("On the target the calibrator does harm in this run: do not use it.")
    if result["chosen_step"] == 0:
        found.append(
            "The chosen calibrator is that of step 0, the identity: no later one was better by the validator "
            "while it kept the source."
        )
    return found


def figure_words(score: float | None) -> str:
    """A score in percent with two digits, "-" for none."""
    return "-" if score is None else f"{score:.2f}"


def _moved(points: float) -> str:
    if abs(points) < 0.005:
        return "the same"
    return f"{abs(points):.2f} points {'higher' if points > 0 else 'lower'}"
