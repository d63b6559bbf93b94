"""Test images of an adapted classifier, taken evenly: corrected and named, and scored at smaller bounds."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from shared_core.data.augment import to_float
from shared_core.ops.bounded import project
from torch import Tensor
from torch.utils.data import Dataset

from calib.analyse import accuracy_by_epsilon
from calib.segmentation import confusion, segmentation_scores
from calib.trained import Trained


class Shown(NamedTuple):
    """Images in [0, 1], labels (or masks), corrected images, classes before and after; on the CPU; `of` how many.

    Without `labelled` the labels are -1 and mean nothing.
    """

    pixels: Float[Tensor, "n channels height width"]
    labels: Int64[Tensor, "n ..."]
    corrected: Float[Tensor, "n channels height width"]
    before: Int64[Tensor, "n ..."]
    after: Int64[Tensor, "n ..."]
    of: int
    labelled: bool = True


def sample(
    trained: Trained, test: Dataset, device: torch.device, most: int | None = None, labelled: bool = True
) -> Shown:
    """Up to `most` test images; default 1000, of more than 64 by 64 pixels 100, with masks 20."""
    size = len(cast(Any, test))
    first = cast(Any, test)[0][0]
    most = most or (20 if trained.segmentation else 1000 if first[0].numel() <= 64 * 64 else 100)
    places = torch.linspace(0, size - 1, min(size, most)).round().long().tolist()
    items = [cast(Any, test)[place] for place in places]
    pixels = to_float(torch.stack([image for image, _ in items]))
    if labelled:
        labels = torch.stack([torch.as_tensor(label) for _, label in items]).long()
    else:
        labels = torch.full((len(items),), -1)
    model = trained.model.to(device).eval()
    corrected, before, after = [], [], []
    with torch.no_grad():
        for part in pixels.split(10 if trained.segmentation else 100):
            on = part.to(device)
            moved = model.calibrator(on)
            corrected.append(moved.cpu())
            before.append(model.ask(on).argmax(1).cpu())
            after.append(model.ask(moved).argmax(1).cpu())
    return Shown(pixels, labels, torch.cat(corrected), torch.cat(before), torch.cat(after), size, labelled)


def scores_by_epsilon(
    trained: Trained, shown: Shown, epsilons: Sequence[float], device: torch.device
) -> list[float]:
    """Accuracy or mIoU in percent for each bound; 0 is the classifier alone."""
    model = trained.model.to(device)
    if not trained.segmentation:
        return accuracy_by_epsilon(model, shown.pixels.to(device), shown.labels.to(device), epsilons)
    classes, ignore = len(trained.class_names), trained.config.ignore_label
    span = (model.calibrator.high - model.calibrator.low).cpu()
    low, high = model.calibrator.low.cpu(), model.calibrator.high.cpu()
    found = []
    for epsilon in epsilons:
        matrix = torch.zeros(classes, classes, dtype=torch.int64)
        parts = (t.split(10) for t in (shown.pixels, shown.corrected, shown.labels))
        for pixels, corrected, labels in zip(*parts, strict=True):
            within = project(corrected, pixels, epsilon * span, low, high) if epsilon else pixels
            with torch.no_grad():
                matrix += confusion(model.ask(within.to(device)).cpu(), labels, ignore)
        found.append(segmentation_scores(matrix).miou)
    return found


def score(trained: Trained, answers: Int64[Tensor, "n ..."], labels: Int64[Tensor, "n ..."]) -> float:
    """Accuracy, or mIoU of label maps, in percent."""
    if not trained.segmentation:
        return 100 * float((answers == labels).float().mean())
    classes = len(trained.class_names)
    one_hot = torch.nn.functional.one_hot(answers, classes).movedim(-1, 1).float()
    return segmentation_scores(confusion(one_hot, labels, trained.config.ignore_label)).miou
