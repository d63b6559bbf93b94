"""Mixed images and their two-hot labels, pure functions of what is drawn, and cross-entropy on them.

Image a is mixed with its neighbour in the batch: images 2k and 2k + 1 are partners.  Batches are shuffled, so a
neighbour is a random image, and it is on the same process.  Where a batch is sorted by class, shuffle it first;
batches of :mod:`corsd.balanced` have neighbours of different classes.

    >>> draws = mixing_draws(seed=0, step=7, count=len(images))
    >>> mixed, labels = mixup(images, labels, draws)
    >>> two_hot_cross_entropy(net(mixed), labels)
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.data.sampling import keyed_generator_seed
from shared_core.ops.gather import rank, world_size
from shared_core.ops.inputs import check_images, check_tensor
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.distiller import Output, check_labels
from corsd.frame import HostCount, labels_for, own_type, run_net, widened

Mixing = Literal["off", "mixup", "cutmix"]


class TwoHot(NamedTuple):
    """The label lam e_first + (1 - lam) e_second of each image."""

    first: Int[Tensor, " batch"]
    second: Int[Tensor, " batch"]
    lam: Float[Tensor, " batch"]


def mixing_draws(seed: int, step: int, count: int, alpha: float = 1.0) -> Float[Tensor, "count 3"]:
    """Return lam ~ Beta(alpha, alpha) and a place (row, column) in [0, 1) per image, on the CPU in float64.

    A pure function of (seed, step) over all processes; each returns its own ``count`` rows.

    Raises:
        ValueError: alpha is not a finite number above 0.
    """
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha is {alpha}; it must be a finite number above 0")
    # Draw 1: the loader's plans use draw 0 of the same seed.
    generator = np.random.default_rng(keyed_generator_seed(seed, step, 0, 1))
    total = count * world_size()
    lam, places = generator.beta(alpha, alpha, total), generator.random((total, 2))
    return torch.from_numpy(np.column_stack([lam, places])[rank() * count :][:count])


def partners(count: int, device: torch.device | str = "cpu") -> Int[Tensor, " count"]:
    """Return each image's neighbour: 1, 0, 3, 2, ...; the last of an odd number is its own."""
    return (torch.arange(count, device=device) ^ 1).clamp_max(max(count - 1, 0))


def mixup(
    images: Float[Tensor, "batch ..."], labels: Int[Tensor, " batch"], draws: Float[Tensor, "batch 3"]
) -> tuple[Float[Tensor, "batch ..."], TwoHot]:
    """x~_a = lam_a x_a + (1 - lam_a) x_b, b the partner of a (Zhang et al., ICLR 2018); column 0 of draws is lam."""
    check_tensor("images", images, "batch ...")
    check_tensor("draws", draws, "batch 3", "see mixing_draws", batch=len(images))
    lam = draws[:, 0].to(images.device, _wide(images), non_blocking=True)
    share = lam.to(images.dtype).view(-1, *[1] * (images.dim() - 1))
    other = images[partners(len(images), images.device)]
    return share * images + (1 - share) * other, _two_hot(labels, lam)


def cutmix(
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    draws: Float[Tensor, "batch 3"],
) -> tuple[Float[Tensor, "batch channels height width"], TwoHot]:
    """Paste a box of the partner into each image (Yun et al., ICCV 2019).

    The box has sides sqrt(1 - lam) of the image's, a centre at columns 1 and 2 of draws, and ends at the border; the
    label's lam is the share of pixels that stays.
    """
    check_images("images", images)
    check_tensor("draws", draws, "batch 3", "see mixing_draws", batch=len(images))
    height, width = images.shape[2:]
    draws = draws.double() if draws.device.type != "mps" else draws
    side = (1 - draws[:, 0]).clamp_min(0).sqrt()
    edges = []
    for size, centre in ((height, draws[:, 1]), (width, draws[:, 2])):
        length, middle = (side * size).long(), (centre * size).long()
        start = middle - length // 2
        edges += [start.clamp(0, size), (start + length).clamp(0, size)]
    area = (edges[1] - edges[0]) * (edges[3] - edges[2])
    lam = (1 - area.to(draws.dtype) / (height * width)).to(images.device, _wide(images), non_blocking=True)
    top, bottom, left, right = torch.stack(edges).to(images.device, non_blocking=True)[..., None]
    row, column = (torch.arange(n, device=images.device)[None] for n in (height, width))
    box = ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None]
    other = images[partners(len(images), images.device)]
    return torch.where(box[:, None], other, images), _two_hot(labels, lam)


def mix(
    images: Tensor, labels: Int[Tensor, " batch"], kind: Mixing, alpha: float, seed: int, step: int
) -> tuple[Tensor, TwoHot]:
    """Mix the images of a step by name; "off" gives them back with labels of lam 1.

    Raises:
        TypeError: the images are not of floating point.
        ValueError: another number of labels, or images that CutMix cannot cut.
    """
    labels = labels_for(class_numbers(labels, len(images)), images)
    if kind == "off":
        return images, TwoHot(
            labels, labels, torch.ones(len(labels), dtype=_wide(images), device=images.device)
        )
    if not images.is_floating_point():
        raise TypeError(f"mixing needs images of floating point; got {images.dtype}: give images / 255")
    check_mixing(kind, images.dim())
    draws = mixing_draws(seed, step, len(images), alpha)
    return (mixup if kind == "mixup" else cutmix)(images, labels, draws)


def two_hot_cross_entropy(logits: Float[Tensor, "batch classes"], labels: TwoHot) -> Float[Tensor, ""]:
    """Return mean_a lam_a CE(z_a, first_a) + (1 - lam_a) CE(z_a, second_a)."""
    check_tensor("logits", logits, "batch classes")
    check_tensor("lam", labels.lam, "batch", "of the same images", batch=len(logits))
    logits = widened(logits)
    lam = labels.lam.to(logits.dtype)
    first, second = (F.cross_entropy(logits, y, reduction="none") for y in (labels.first, labels.second))
    return (lam * first + (1 - lam) * second).sum() / max(len(logits), 1)


def check_mixing(kind: str, images_dims: int | None = None) -> None:
    """Raises ValueError for a kind of mixing that is not there, or images that CutMix cannot cut."""
    if kind not in ("off", "mixup", "cutmix"):
        raise ValueError(f"mixing={kind!r}; choose 'off', 'mixup' or 'cutmix'")
    if kind == "cutmix" and images_dims not in (None, 4):
        raise ValueError(
            f"cutmix needs images (batch, channels, height, width); got {images_dims} dimensions: use 'mixup'"
        )


class MixedCrossEntropy(nn.Module):
    """Cross-entropy on mixed images: the control of every method that mixes.

    Nothing is mixed in evaluation mode.  What is drawn is a pure function of (seed, number of steps done).
    """

    steps: Int[Tensor, ""]

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        mixing: Literal["mixup", "cutmix"] = "mixup",
        alpha: float = 1.0,
        seed: int = 0,
        output: Which = None,
    ):
        super().__init__()
        check_mixing(mixing)
        mixing_draws(seed, 0, 0, alpha)
        self.net, self.num_classes, self.output = net, num_classes, output
        self.mixing, self.alpha, self.seed = mixing, alpha, seed
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=own_type(net)["device"]))
        self._done = HostCount()
        # Every process counts alike.
        self._ddp_params_and_buffers_to_ignore = ["steps"]

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        kind: Mixing = self.mixing if self.training else "off"
        mixed, two_hot = mix(images, labels, kind, self.alpha, self.seed, self._done.value(self.steps))
        logits = run_net(self.net, mixed, self.output)
        check_labels(labels, logits, self.num_classes)
        ce = two_hot_cross_entropy(logits, two_hot)
        if self.training:
            self._done.add(self.steps, 1)
        return Output(logits, ce, {"ce": ce}, [])


def _two_hot(labels: Tensor, lam: Tensor) -> TwoHot:
    labels = class_numbers(labels, len(lam)).to(lam.device, non_blocking=True)
    return TwoHot(labels, labels[partners(len(labels), labels.device)], lam)


def _wide(images: Tensor) -> torch.dtype:
    return torch.float64 if images.dtype == torch.float64 else torch.float32
