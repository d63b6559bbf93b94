"""Semantic segmentation at the scale of one CPU: a small net, its training, and the field's four scores.

>>> net = tiny_segmenter(num_classes=11)
>>> train_segmenter(net, images, masks, SegmenterSettings(), seed=0, ignore=11)
>>> scores = segmentation_scores(confusion_over(net, test_images, test_masks, ignore=11))
>>> scores.miou, scores.fwiou, scores.pixel_accuracy, scores.iou        # percent

The scores are those of the paper's Table 2 (arXiv 1911.12796) and of Long et al. 2015 (arXiv 1411.4038, section 5).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64, UInt8
from shared_core.data.augment import to_float
from shared_core.data.sampling import keyed_generator_seed, shuffled_plan
from shared_core.ops.host import read_back
from shared_core.ops.inputs import ANY, INTEGERS, check_images, check_tensor
from shared_core.ops.outputs import Which
from shared_core.run.guard import FiniteGuard
from torch import Tensor, nn
from torch.nn import functional

from calib.answers import Reading, settled

MASKS = "batch height width"


class TinySegmenter(nn.Module):
    """Images to class scores of the same size: convolutions down to 1/8, and up again past skip connections."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 20) -> None:
        super().__init__()
        self.channels = in_channels
        widths = [width * factor for factor in (1, 2, 3, 4)]
        self.stem = _conv_block(in_channels, width)
        self.down = nn.ModuleList(_conv_block(a, b, stride=2) for a, b in pairwise(widths))
        # At 1/8 a wide view is cheap: dilated convolutions see 30 further pixels to each side.
        self.context = nn.Sequential(
            _conv_block(widths[-1], widths[-1], dilation=2), _conv_block(widths[-1], widths[-1], dilation=4)
        )
        up = zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)
        self.up = nn.ModuleList(_conv_block(deep + skip, skip) for deep, skip in up)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        """Class scores (logits) of every pixel; images in [0, 1], any size from 8 by 8."""
        check_images("images", images, self.channels)
        skips = [self.stem(2 * images - 1)]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = self.context(skips.pop())
        for block, skip in zip(self.up, reversed(skips), strict=True):
            grown = functional.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([grown, skip], 1))
        return self.head(x)


def tiny_segmenter(num_classes: int, in_channels: int = 3, width: int = 20) -> TinySegmenter:
    """An encoder-decoder with batch norm; 311,331 parameters at width 20 and 11 classes."""
    return TinySegmenter(num_classes, in_channels, width)


@dataclass(frozen=True)
class SegmenterSettings:
    """How a segmenter is trained; the defaults take about five minutes of one CPU core on 153 images of 160x120.

    `crop` is height and width in pixels.  A class counts (median share / its share)**balance in the loss: 0 is
    plain cross-entropy, 1 gives all classes the same weight in all (Eigen and Fergus 2015, arXiv 1411.4734).
    """

    epochs: int = 50
    batch_size: int = 8
    learning_rate: float = 0.01
    weight_decay: float = 0.01
    crop: tuple[int, int] = (96, 128)
    balance: float = 0.25


def train_segmenter(
    net: nn.Module,
    images: UInt8[Tensor, "n channels height width"],
    masks: Int[Tensor, "n height width"] | UInt8[Tensor, "n height width"],
    settings: SegmenterSettings,
    seed: int,
    ignore: int = 255,
    output: Which = None,
    outputs: str = "auto",
) -> list[float]:
    """Trains `net` in place (AdamW, one cycle, cross-entropy) and returns the mean loss of each epoch.

    The net is trained on the device where it is.  A step sees crops of `settings.crop` pixels (height, width), half of
    them mirrored; all draws are a pure function of `seed`.  Pixels labelled `ignore` do not count.  The net is left in
    eval mode.  `output` and `outputs` say which part of its answer is the scores, see :func:`calib.attach`.

    Raises ValueError if images and masks do not fit each other or fill no batch, NonFiniteError for a loss that is
    not finite.
    """
    _check_pair(images, masks)
    plan = shuffled_plan(len(images), settings.batch_size, seed)
    steps = settings.epochs * (len(images) // settings.batch_size)
    device = next(net.parameters()).device
    net.eval()
    read = _reading(net, images, output, outputs)
    with torch.no_grad():
        classes = read(net(to_float(images[:1].to(device)))).shape[1]
    weights = class_weights(masks, classes, ignore, settings.balance).to(device)
    guard = FiniteGuard("error")
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    # A fifth of five steps would end its rise where it starts, which the schedule divides by.
    rise = 0.2 if steps != 4 else 0.4
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps + 1, pct_start=rise
    )
    losses = []
    net.train()
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(keyed_generator_seed(seed, epoch, 0, 1))
        seen = []
        table = plan(epoch)
        for row in table:
            x, y = _crop_and_mirror(images[row[:, 0]], masks[row[:, 0]], settings.crop, generator)
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            scores = read.training(net(to_float(x)))
            loss = functional.cross_entropy(scores, y.long(), weights, ignore_index=ignore)
            guard.accepts({"cross_entropy": loss}, schedule.last_epoch + 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seen.append(loss.detach())
        losses.append(sum(read_back(torch.stack(seen), "the mean loss of an epoch").tolist()) / len(table))
    net.eval()
    return losses


def class_weights(
    masks: Int[Tensor, "n height width"] | UInt8[Tensor, "n height width"],
    classes: int,
    ignore: int,
    balance: float,
) -> Float[Tensor, " classes"]:
    """(median share / share of the class)**balance, shares over all pixels; 0 for a class without pixels.

    Raises ValueError for a label that is neither `ignore` nor a class.
    """
    check_tensor("masks", masks, MASKS, numbers=INTEGERS)
    labels = _checked(masks, classes, ignore)
    counts = torch.bincount(labels[labels != ignore].flatten(), minlength=classes).double()
    present = counts > 0
    weights = torch.zeros(classes)
    weights[present] = ((counts[present].median() / counts[present]) ** balance).float()
    return weights


class SegmentationScores(NamedTuple):
    """All in percent.  `iou` is NaN for a class that neither labels nor predictions hold."""

    miou: float
    fwiou: float
    pixel_accuracy: float
    iou: Float[Tensor, " classes"]


def segmentation_scores(confusion: Int64[Tensor, "labels predicted"]) -> SegmentationScores:
    """Scores from counts n_ij of pixels labelled i and predicted j; t_i = sum_j n_ij.

    IoU_i = n_ii / (t_i + sum_j n_ji - n_ii); mIoU is their mean over the classes that labels or predictions
    hold; fwIoU = sum_i t_i IoU_i / sum_i t_i; pixel accuracy = sum_i n_ii / sum_i t_i.

    Raises ValueError if the matrix is not square or counts no pixel.
    """
    check_tensor("confusion", confusion, "labels predicted", numbers=INTEGERS)
    if confusion.dim() != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"the confusion matrix has shape {tuple(confusion.shape)}; it must be square")
    if int(confusion.sum()) == 0:
        raise ValueError("the confusion matrix counts no pixel: every label was the ignored one")
    counts = confusion.double()
    right, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    # 0 / 0 is NaN for an absent class.
    iou = right / (labelled + predicted - right)
    return SegmentationScores(
        miou=float(100 * iou.nanmean()),
        fwiou=float(100 * (labelled * iou.nan_to_num(0.0)).sum() / labelled.sum()),
        pixel_accuracy=float(100 * right.sum() / labelled.sum()),
        iou=100 * iou,
    )


def confusion(
    scores: Float[Tensor, "batch classes height width"],
    masks: Int[Tensor, "batch height width"] | UInt8[Tensor, "batch height width"],
    ignore: int = 255,
) -> Int64[Tensor, "classes classes"]:
    """Counts of pixels by label (row) and class of the highest score (column), without those labelled `ignore`.

    Raises ValueError for a label that is neither `ignore` nor a class.
    """
    check_tensor("scores", scores, "batch classes height width")
    sizes = dict(zip(MASKS.split(), (len(scores), *scores.shape[2:]), strict=True))
    check_tensor("masks", masks, MASKS, "one label per pixel of the scores", INTEGERS, **sizes)
    classes = scores.shape[1]
    labels, predicted = _checked(masks, classes, ignore).flatten(), scores.argmax(1).flatten()
    kept = labels != ignore
    labels, predicted = labels[kept], predicted[kept]
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


@torch.no_grad()
def confusion_over(
    net: nn.Module,
    images: UInt8[Tensor, "n channels height width"],
    masks: Int[Tensor, "n height width"] | UInt8[Tensor, "n height width"],
    ignore: int = 255,
    batch_size: int = 16,
    output: Which = None,
    outputs: str = "logits",
) -> Int64[Tensor, "classes classes"]:
    """:func:`confusion` of a net summed over images; `net` is called as it is, in whatever mode it is.

    `output` and `outputs` say which part of its answer is the scores, and whether one column is a probability.
    """
    _check_pair(images, masks)
    read = Reading(output, outputs)
    parts = zip(images.split(batch_size), masks.split(batch_size), strict=True)
    return torch.stack([confusion(read(net(to_float(x))), y, ignore) for x, y in parts]).sum(0)


def _check_pair(images: Tensor, masks: Tensor) -> None:
    check_images("images", images, numbers=ANY)
    check_tensor("masks", masks, MASKS, numbers=INTEGERS)
    if len(images) != len(masks) or images.shape[-2:] != masks.shape[-2:]:
        raise ValueError(
            f"images are {tuple(images.shape)} and masks {tuple(masks.shape)}; "
            "give one mask of the same height and width per image"
        )


def _reading(net: nn.Module, images: Tensor, output: Which, outputs: str) -> Reading:
    if outputs != "auto":
        return Reading(output, outputs)
    device = next(net.parameters()).device
    return Reading(output, settled(net, to_float(images[:2].to(device)), output))


def _checked(masks: Tensor, classes: int, ignore: int) -> Int64[Tensor, "n height width"]:
    labels = masks.long()
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != ignore)]
    if len(wrong):
        raise ValueError(
            f"masks hold the label {int(wrong.max())}, but there are scores of {classes} classes and the ignored "
            f"label is {ignore}: name the right one as ignore"
        )
    return labels


def _crop_and_mirror(
    images: Tensor, masks: Tensor, crop: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    height, width = (min(size, whole) for size, whole in zip(crop, images.shape[-2:], strict=True))
    top = int(torch.randint(images.shape[-2] - height + 1, (), generator=generator))
    left = int(torch.randint(images.shape[-1] - width + 1, (), generator=generator))
    images = images[..., top : top + height, left : left + width]
    masks = masks[..., top : top + height, left : left + width]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return (
        torch.where(mirrored[:, None, None, None], images.flip(-1), images),
        torch.where(mirrored[:, None, None], masks.flip(-1), masks),
    )


def _conv_block(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(True),
    )
