"""The part of a report about images: before, correction, after; scores per class; score against epsilon."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from markupsafe import Markup
from shared_core.run.report import figure, heading, images, text
from torch import Tensor
from torch.nn import functional

from calib import figures
from calib.samples import Shown, scores_by_epsilon
from calib.trained import Trained

SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
EVENLY, CHANGED = 8, 12
WIDEST = 160


def pictures(trained: Trained, samples: Mapping[str, Shown]) -> list[Markup]:
    """Both domains: some images taken evenly, and of a classifier those whose answer changed."""
    if trained.segmentation:
        return _segmented(trained, samples)
    sections = [
        heading("Images before and after"),
        text(
            "From top to bottom: as it came, the correction, as the classifier gets it. Grey in the correction is "
            "no change; its colours are amplified, to the largest correction in the row. Below: what the classifier "
            "says without, and after the arrow with the calibrator."
        ),
    ]
    for domain, shown in samples.items():
        changed = (shown.before != shown.after).nonzero().squeeze(1)
        helped = int((shown.after[changed] == shown.labels[changed]).sum())
        harmed = int((shown.before[changed] == shown.labels[changed]).sum())
        counted = "all" if len(shown.pixels) == shown.of else f"{len(shown.pixels)} of"
        words = (
            f"{domain}: of {counted} {shown.of} test images the calibrator changes the answer to {len(changed)}; "
            f"{helped} become right, {harmed} become wrong, {len(changed) - helped - harmed} stay wrong."
        )
        sections += [
            text(words.capitalize()),
            *_strips(trained, shown, torch.arange(len(shown.pixels)), EVENLY),
        ]
        if len(changed):
            sections += [
                text(f"{domain.capitalize()} images whose answer changes, taken evenly over these:"),
                *_strips(trained, shown, changed, CHANGED),
            ]
    return sections


def _strips(trained: Trained, shown: Shown, places: Tensor, most: int) -> list[Markup]:
    places = places[evenly(len(places), most)]
    largest = _largest(shown, places)
    strips, captions = [], []
    for place in places.tolist():
        strips.append(_strip(_triple(shown, place, largest)))
        before, after, true = (
            trained.class_names[int(names[place])] for names in (shown.before, shown.after, shown.labels)
        )
        said = before if before == after else f"{before} → {after}"
        captions.append(said if after == true == before else f"{said}, is {true}")
    return [images(strips, captions, width=84), text(_scale_words(largest))]


def _segmented(trained: Trained, samples: Mapping[str, Shown]) -> list[Markup]:
    colours = figures.palette(len(trained.class_names))
    sections = [
        heading("Images before and after"),
        text(
            "From top to bottom: the image, the correction (grey is no change, colours amplified), the corrected "
            "image; the labels, the prediction without the calibrator, and with it. Black pixels do not count."
        ),
        figure(figures.colour_key(trained.class_names, colours), "Classes of the label maps."),
    ]
    for domain, shown in samples.items():
        places = evenly(len(shown.pixels), 4)
        largest = _largest(shown, places)
        strips = []
        for place in places.tolist():
            maps = [_coloured(m[place], colours) for m in (shown.labels, shown.before, shown.after)]
            strips.append(_strip([*_triple(shown, place, largest), *maps]))
        words = f"{domain.capitalize()}, taken evenly over {shown.of} test images."
        sections += [text(words), images(strips, width=200), text(_scale_words(largest))]
    return sections


def over_epsilon(trained: Trained, samples: Mapping[str, Shown], device: torch.device) -> list[Markup]:
    """Score of both domains with the correction cut back to ever smaller bounds."""
    epsilons = [share * trained.model.calibrator.epsilon for share in SHARES]
    scores = {name: scores_by_epsilon(trained, shown, epsilons, device) for name, shown in samples.items()}
    counts = " and ".join(f"{len(shown.pixels)} {name}" for name, shown in samples.items())
    measure = "mIoU" if trained.segmentation else "accuracy"
    return [
        heading("How much correction is needed"),
        figure(
            figures.epsilon_curve(epsilons, scores, measure),
            f"The trained correction, cut to smaller bounds without training anew; on {counts} test images.",
        ),
    ]


def classes(evaluations: Sequence[dict[str, Any]], measure: str) -> list[Markup]:
    """Scores per class, mean over seeds, and confusion of the first seed, on the target if it has labels."""
    names = evaluations[0]["class_names"]
    unit = "IoU" if measure == "mIoU" else measure
    domains = {
        domain: tuple(_mean_per_class(evaluations, f"{domain}_{when}") for when in ("before", "after"))
        for domain in ("target", "source")
        if evaluations[0][f"{domain}_before"]["accuracy"] is not None
    }
    shown = next(iter(domains))
    matrices = {
        f"{shown}, {words} the calibrator": np.array(evaluations[0][f"{shown}_{when}"]["confusion"])
        for when, words in (("before", "without"), ("after", "with"))
    }
    mean = ", mean over seeds" if len(evaluations) > 1 else ""
    first = ", first seed" if len(evaluations) > 1 else ""
    what = "Pixels" if measure == "mIoU" else "Images"
    sections = [
        heading("By class"),
        figure(
            figures.per_class(cast(Any, domains), names, unit),
            f"{unit[0].upper()}{unit[1:]} of every class{mean}.",
        ),
        figure(figures.confusion(matrices, names), f"{what} of the {shown}'s test set{first}."),
    ]
    if measure == "mIoU":
        rows = [
            f"{key.replace('_', ' ')}: {_segmentation_words(evaluations[0][key])}"
            for key in FOUR
            if key.startswith(tuple(domains))
        ]
        sections.append(text("\n".join(rows)))
    return sections


FOUR = ("target_before", "target_after", "source_before", "source_after")


def _segmentation_words(scores: dict[str, Any]) -> str:
    named = {"mIoU": "mean_iou", "fwIoU": "frequency_weighted_iou", "pixel accuracy": "pixel_accuracy"}
    return ", ".join(f"{name} {scores[key]:.2f} %" for name, key in named.items())


def _mean_per_class(evaluations: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    values = np.array([evaluation[name]["per_class"] for evaluation in evaluations], dtype=float)
    counts = np.isfinite(values).sum(0)
    # By hand: nanmean warns of classes without an image.
    return np.where(counts > 0, np.nansum(values, 0) / counts.clip(1), np.nan)


def evenly(count: int, most: int) -> Tensor:
    """At most `most` of `count` places, from the first to the last."""
    return torch.linspace(0, max(count - 1, 0), min(most, count)).round().long()


def _largest(shown: Shown, places: Tensor) -> float:
    return float((shown.corrected[places] - shown.pixels[places]).abs().max())


def _scale_words(largest: float) -> str:
    if largest == 0:
        return "There is no correction in these images."
    return f"Full colour is a correction of {255 * largest:.1f} of 255 grey levels."


def _triple(shown: Shown, place: int, largest: float) -> list[np.ndarray]:
    before, after = shown.pixels[place], shown.corrected[place]
    correction = 0.5 + 0.5 * (after - before) / (largest or 1.0)
    return [_bytes(picture) for picture in (before, correction, after)]


def _bytes(picture: Tensor) -> UInt8[np.ndarray, "height width 3"]:
    if picture.shape[0] not in (1, 3):
        # A camera of more bands: their mean is what can be shown.
        picture = picture.mean(0, keepdim=True)
    longest = max(picture.shape[1:])
    if longest > WIDEST:
        size = [max(1, round(side * WIDEST / longest)) for side in picture.shape[1:]]
        picture = functional.interpolate(picture[None], size=size, mode="area")[0]
    levels = (255 * picture.clamp(0, 1)).round().to(torch.uint8)
    return levels.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _coloured(labels: Tensor, colours: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    longest = max(labels.shape)
    if longest > WIDEST:
        size = [max(1, round(side * WIDEST / longest)) for side in labels.shape]
        labels = functional.interpolate(labels[None, None].float(), size=size, mode="nearest")[0, 0].long()
    black = np.zeros((256, 3), np.uint8)
    black[: len(colours)] = colours
    return black[labels.clamp(0, 255).numpy()]


def _strip(parts: list[np.ndarray]) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures of one size, one below the other, with white between them."""
    width = parts[0].shape[1]
    gap = np.full((max(1, parts[0].shape[0] // 24), width, 3), 255, np.uint8)
    rows = [row for part in parts for row in (part, gap)]
    return np.concatenate(rows[:-1])
