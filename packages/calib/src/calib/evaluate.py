"""The four numbers of a calibrator: source and target, without and with it; and what it costs."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from shared_core.data.loader import dealt_loader
from shared_core.ops.gather import gather_objects, rank, world_size
from shared_core.ops.inputs import INTEGERS, check_dataset, check_images, check_tensor
from torch import Tensor
from torch.utils.data import Dataset

from calib.answers import Reading
from calib.attachment import CalibratedClassifier
from calib.domains import as_floats
from calib.segmentation import confusion, segmentation_scores

Predict = Callable[[Tensor], Any]
READ = Reading()


@torch.no_grad()
def evaluate_classifier(
    predict: Predict,
    dataset: Dataset,
    num_classes: int,
    device: torch.device,
    workers: int = 0,
    shared: bool = False,
) -> dict[str, Any]:
    """Accuracy and per-class accuracy in percent, and the confusion matrix [label][prediction].

    `predict` takes floats in [0, 1] and gives logits, alone or as the obvious part of its answer.  With `shared` all
    processes must call it; each takes every n-th batch, and the counts are summed.

    Raises ValueError for labels beyond the classes.
    """
    check_dataset("dataset", dataset)
    part = (rank(), world_size()) if shared else (0, 1)
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for images, labels in dealt_loader(dataset, 500, workers, *part):
        if int(labels.max()) >= num_classes:
            raise ValueError(
                f"the images have labels up to {int(labels.max())}, but the classifier has {num_classes} classes, 0 to "
                f"{num_classes - 1}: match them by name with shared_core.data.classes.in_classes_of"
            )
        found = READ(predict(as_floats(images.to(device)))).argmax(1).cpu()
        matrix += torch.bincount(labels * num_classes + found, minlength=num_classes**2).view_as(matrix)
    return scores_of(_summed(matrix) if shared else matrix)


def scores_of(matrix: Int64[Tensor, "classes classes"]) -> dict[str, Any]:
    """Accuracy, accuracy per class and the matrix as lists; None for an accuracy without images."""
    _check_matrix(matrix)
    right, count = matrix.diagonal(), matrix.sum(1)
    per_class = [round(100 * int(r) / int(n), 2) if n else None for r, n in zip(right, count, strict=True)]
    return {
        "accuracy": 100 * int(right.sum()) / int(count.sum()) if count.sum() else None,
        "per_class": per_class,
        "confusion": matrix.tolist(),
    }


def _check_matrix(matrix: Tensor) -> None:
    check_tensor("matrix", matrix, "labels predicted", numbers=INTEGERS)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; it must be square, [label][prediction]")


def _summed(matrix: Tensor) -> Tensor:
    return torch.stack(gather_objects(matrix)).sum(0)


def is_near_chance(matrix: Int64[Tensor, "classes classes"]) -> bool:
    """Whether a confusion matrix is that of guesses: right to less than a tenth of the way from chance to perfect.

    Right is the mean over classes of the share that is named right, so that naming always one class is chance too,
    however frequent that class is.
    """
    _check_matrix(matrix)
    count = matrix.sum(1)
    seen = count > 0
    if int(seen.sum()) < 2:
        return False
    right, chance = float((matrix.diagonal()[seen] / count[seen]).mean()), 1 / int(seen.sum())
    return right < chance + 0.1 * (1 - chance)


@torch.no_grad()
def evaluate_segmenter(
    predict: Predict,
    dataset: Dataset,
    num_classes: int,
    device: torch.device,
    ignore: int = 255,
    workers: int = 0,
    shared: bool = False,
) -> dict[str, Any]:
    """mIoU (as "accuracy", the figure that leads), fwIoU, pixel accuracy and IoU per class, in percent.

    `shared` as in :func:`evaluate_classifier`.
    """
    check_dataset("dataset", dataset)
    part = (rank(), world_size()) if shared else (0, 1)
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for images, masks in dealt_loader(dataset, 8, workers, *part):
        matrix += confusion(READ(predict(as_floats(images.to(device)))).cpu(), masks, ignore)
    matrix = _summed(matrix) if shared else matrix
    scores = segmentation_scores(matrix)
    return {
        "accuracy": scores.miou,
        "mean_iou": scores.miou,
        "frequency_weighted_iou": scores.fwiou,
        "pixel_accuracy": scores.pixel_accuracy,
        "per_class": [round(value, 2) if value == value else None for value in scores.iou.tolist()],
        "confusion": matrix.tolist(),
    }


def both_domains(
    predict: Predict,
    source_test: Dataset,
    target_test: Dataset | None,
    num_classes: int,
    device: torch.device,
    ignore: int | None = None,
    workers: int = 0,
    shared: bool = False,
) -> dict[str, dict[str, Any]]:
    """Evaluations of `predict` by domain, "source" and "target"; `ignore` given: segmentation.

    Without target images that can be scored every figure of the target is None.
    """

    def score(dataset: Dataset | None) -> dict[str, Any]:
        if dataset is None:
            return scores_of(torch.zeros(num_classes, num_classes, dtype=torch.int64))
        if ignore is None:
            return evaluate_classifier(predict, dataset, num_classes, device, workers, shared)
        return evaluate_segmenter(predict, dataset, num_classes, device, ignore, workers, shared)

    return {"source": score(source_test), "target": score(target_test)}


def four_numbers(
    model: CalibratedClassifier,
    source_test: Dataset,
    target_test: Dataset | None,
    num_classes: int,
    device: torch.device,
    ignore: int | None = None,
    workers: int = 0,
    shared: bool = False,
    before: dict[str, dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluations by name: source_before, source_after, target_before, target_after.

    `before` holds :func:`both_domains` of the classifier alone where they are known already, as they must be where
    an adaptation lets the classifier drift.  The model is left in eval mode.
    """
    model.to(device).eval()
    domains = (source_test, target_test, num_classes, device, ignore, workers, shared)
    before = before or both_domains(model.ask, *domains)
    after = both_domains(model.logits, *domains)
    return {
        f"{name}_{when}": found[name]
        for name in ("source", "target")
        for when, found in (("before", before), ("after", after))
    }


@torch.no_grad()
def latency_ratio(
    model: CalibratedClassifier, images: Float[Tensor, "batch channels height width"], repeats: int = 7
) -> float:
    """Time of calibrator and classifier over the classifier's alone: medians of interleaved runs."""
    check_images("images", images)
    model.eval()
    alone: list[float] = []
    together: list[float] = []
    for turn in range(repeats + 2):
        for net, times in ((model.classifier, alone), (model, together)):
            begun = _now(images.device)
            net(images)
            if turn >= 2:
                times.append(_now(images.device) - begun)
    return statistics.median(together) / statistics.median(alone)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
