"""What a trained net is worth: accuracy, per class, calibration, robustness to Gaussian noise."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float, Int
from shared_core.data.augment import normalize, to_float
from shared_core.data.loader import dealt_loader
from shared_core.data.preprocess import Preprocess
from shared_core.ops.gather import gather_objects, rank, world_size
from torch import Tensor, nn
from torch.utils.data import Dataset

from corsd.frame import run_net


def accuracy(
    net: nn.Module,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    workers: int = 0,
    shared: bool = False,
) -> float:
    """Share of ``dataset`` that the net names right, in percent; the net is left in eval mode.

    Args:
        workers: of the loader that decodes the images.
        shared: all processes must call it; each takes every n-th batch, and the counts are summed.
    """
    right = total = 0
    for logits, labels in predictions(net, dataset, preprocess, device, workers=workers, shared=shared):
        right += int((logits.argmax(1) == labels).sum())
        total += len(labels)
    if shared:
        right, total = (sum(counts) for counts in zip(*gather_objects((right, total)), strict=True))
    return 100 * right / total


def evaluate(
    net: nn.Module,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    noise: Sequence[float] = (),
    workers: int = 0,
    shared: bool = False,
) -> dict[str, Any]:
    """Accuracy, per-class accuracy, expected calibration error (15 bins) and accuracy under noise, in percent.

    The accuracy of a class without images is None.

    Args:
        noise: standard deviations of Gaussian noise added to pixels in [0, 1] (clipped back), the paper's test
            of robustness; the noise is the same for every net.
        workers, shared: as in :func:`accuracy`.

    Raises:
        ValueError: labels beyond the net's classes.
    """
    from torchmetrics.functional.classification import binary_calibration_error

    found = [_judged(*batch) for batch in predictions(net, dataset, preprocess, device, 0.0, workers, shared)]
    batches = _in_order(found) if shared else found
    parts, class_counts = [batch[:3] for batch in batches], {batch[3] for batch in batches}
    right, confidence, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    (classes,) = class_counts
    count = torch.bincount(labels, minlength=classes)
    per_class = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, right) / count
    # Of the highest class alone: whether it is right, as often as it is sure?
    error = binary_calibration_error(confidence, right.long(), n_bins=15)
    under_noise = {
        str(sigma): _accuracy_under(sigma, net, dataset, preprocess, device, workers, shared)
        for sigma in noise
    }
    return {
        "accuracy": 100 * float(right.mean()),
        "per_class": [round(100 * float(v), 2) if n else None for v, n in zip(per_class, count, strict=True)],
        "calibration_error": 100 * float(error),
        "noise": under_noise,
    }


def predictions(
    net: nn.Module,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    noise: float = 0.0,
    workers: int = 0,
    shared: bool = False,
    batch_size: int = 500,
) -> Iterator[tuple[Float[Tensor, "batch classes"], Int[Tensor, " batch"]]]:
    """Logits and labels, batch by batch, on the CPU in float32; with ``shared`` every n-th batch, for rank n."""
    net.eval()
    generator, drawn = torch.Generator().manual_seed(0), 0
    first, step = (rank(), world_size()) if shared else (0, 1)
    loader = dealt_loader(dataset, batch_size, workers, first, step)
    for number, (images, labels) in enumerate(loader):
        inputs = preprocess(images.to(device))
        if noise:
            pixels = to_float(images)
            # Also what other processes draw, so that each image gets its own noise on any number of them.
            for _ in range(drawn, first + number * step):
                torch.randn((batch_size, *pixels.shape[1:]), generator=generator)
            drawn = first + number * step + 1
            pixels = (pixels + noise * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
            inputs = normalize(pixels.to(device), preprocess.mean, preprocess.std)
        # Not a decorator: whatever wraps a generator function hides from no_grad that it is one.
        with torch.no_grad():
            logits = run_net(net, inputs)
        yield logits.float().cpu(), labels


def _judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Of each image whether it is right, how sure the net is, and its label; and the number of classes."""
    classes = logits.shape[1]
    if int(labels.max()) >= classes:
        raise ValueError(
            f"the images have labels up to {int(labels.max())}, but the net has {classes} classes, 0 to {classes - 1}: "
            "match them by name with shared_core.data.classes.in_classes_of"
        )
    confidence, predicted = logits.softmax(1).max(1)
    return (predicted == labels).double(), confidence, labels, classes


def _in_order(batches: list[Any]) -> list[Any]:
    """The batches of all processes in the order of one: they were dealt out in turn."""
    dealt = gather_objects(batches)
    return [batch for row in zip_longest(*dealt) for batch in row if batch is not None]


def _accuracy_under(
    sigma: float,
    net: nn.Module,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    workers: int,
    shared: bool,
) -> float:
    hits = total = 0
    for logits, labels in predictions(net, dataset, preprocess, device, sigma, workers, shared):
        hits += int((logits.argmax(1) == labels).sum())
        total += len(labels)
    if shared:
        hits, total = (sum(counts) for counts in zip(*gather_objects((hits, total)), strict=True))
    return 100 * (hits / total)
