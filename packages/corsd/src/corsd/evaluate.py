"""What a trained net is worth: accuracy, per class, calibration, robustness to Gaussian noise."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from shared_core.data.augment import normalize, to_float
from shared_core.data.loader import test_loader
from shared_core.data.preprocess import Preprocess
from torch import Tensor, nn
from torch.utils.data import Dataset


def accuracy(net: nn.Module, dataset: Dataset, preprocess: Preprocess, device: torch.device) -> float:
    """Share of ``dataset`` that the net names right, in percent; the net is left in eval mode."""
    right = total = 0
    for logits, labels in predictions(net, dataset, preprocess, device):
        right += int((logits.argmax(1) == labels).sum())
        total += len(labels)
    return 100 * right / total


def evaluate(
    net: nn.Module,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    noise: Sequence[float] = (),
) -> dict[str, Any]:
    """Accuracy, per-class accuracy, expected calibration error (15 bins) and accuracy under noise, in percent.

    Args:
        noise: standard deviations of Gaussian noise added to pixels in [0, 1] (clipped back), the paper's test
            of robustness; the noise is the same for every net.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    batches = list(predictions(net, dataset, preprocess, device))
    logits = torch.cat([z for z, _ in batches])
    labels = torch.cat([y for _, y in batches])
    classes = logits.shape[1]
    right = (logits.argmax(1) == labels).double()
    count = torch.bincount(labels, minlength=classes)
    per_class = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, right) / count.clamp_min(1)
    error = multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=15)
    under_noise = {}
    for sigma in noise:
        noisy = predictions(net, dataset, preprocess, device, sigma)
        hits = torch.cat([z.argmax(1) == y for z, y in noisy])
        under_noise[str(sigma)] = 100 * float(hits.double().mean())
    return {
        "accuracy": 100 * float(right.mean()),
        "per_class": [round(100 * float(v), 2) for v in per_class],
        "calibration_error": 100 * float(error),
        "noise": under_noise,
    }


def predictions(
    net: nn.Module,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    noise: float = 0.0,
    batch_size: int = 500,
) -> Iterator[tuple[Float[Tensor, "batch classes"], Int[Tensor, " batch"]]]:
    """Logits and labels, batch by batch, on the CPU in float32."""
    net.eval()
    generator = torch.Generator().manual_seed(0)
    for images, labels in test_loader(dataset, batch_size):
        inputs = preprocess(images.to(device))
        if noise:
            pixels = to_float(images)
            pixels = (pixels + noise * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
            inputs = normalize(pixels.to(device), preprocess.mean, preprocess.std)
        # Not a decorator: whatever wraps a generator function hides from no_grad that it is one.
        with torch.no_grad():
            logits = net(inputs)
        yield logits.float().cpu(), labels
