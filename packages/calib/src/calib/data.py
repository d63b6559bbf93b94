"""The domains of a run: source and target, training and test images, brought to one size and channel count.

Images stay bytes; what a classifier wants beyond [0, 1] is inside it (:class:`calib.classifiers.Normalized`).
"""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, UInt8
from shared_core.data.arrays import ArrayImages
from shared_core.data.masks import ArrayMasks
from shared_core.data.open import check_labels, labels_of, open_dataset
from shared_core.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, fitted
from torch import Tensor
from torch.utils.data import Dataset

from calib import streets
from calib.config import AdaptConfig

PHOTO_DIGITS = "photo-digits"


class Domains(NamedTuple):
    """Data sets of (uint8 image, label or mask); `source_train` holds the translated images if a run names some."""

    source_train: Dataset
    source_test: Dataset
    target_train: Dataset
    target_test: Dataset
    class_names: list[str]
    channels: int
    segmentation: bool
    preprocess: Preprocess | None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def open_domains(config: AdaptConfig) -> Domains:
    """Open what a configuration names.

    Raises:
        ValueError: an unknown data set, labels beyond the classes, or one domain with a label per image and the
            other with a label per pixel.
        FileNotFoundError: data that are not there.
    """
    found = [
        open_domain(config, spec, split)
        for spec, split in (
            (config.source, "train"),
            (config.source, "test"),
            (config.target, "train"),
            (config.target, "test"),
        )
    ]
    if config.translated is not None:
        found[0] = open_domain(config, config.translated, "train")
    masks = [has_masks(part) for part in found]
    if any(masks):
        if not all(masks):
            raise ValueError(
                f"source {config.source} and target {config.target} differ: one has a label per pixel, one per image"
            )
        names = cast(ArrayMasks, found[0]).class_names[: config.num_classes]
        channels = len(cast(Any, found[0])[0][0])
        return Domains(*found, names, channels, True, None)
    labels = labels_of(found[0])
    named = getattr(found[0], "class_names", None) or map(str, range(int(labels.max()) + 1))
    names = list(named)[: config.num_classes]
    names += [str(k) for k in range(len(names), config.num_classes or 0)]
    check_labels(labels, len(names))
    check_labels(labels_of(found[1]), len(names))
    preprocess = _preprocess(config, found[1])
    parts = [fitted(part, preprocess) for part in found]
    return Domains(*parts, names, preprocess.channels, False, preprocess)


def open_domain(config: AdaptConfig, spec: str, split: str) -> Dataset:
    """One split of one domain, as it lies on the disk."""
    if spec == PHOTO_DIGITS:
        return photo_digits(split)
    if spec in streets.NAMES:
        if config.on_bad != "raise":
            raise ValueError(f"on_bad={config.on_bad!r}: of {spec} only 'raise' is offered")
        return streets.open_scenes(spec, split, config.data_root, config.scene_size)
    return open_dataset(spec, split, config.data_root, config.download, config.on_bad)


def has_masks(dataset: Dataset) -> bool:
    """Whether the items have a label per pixel."""
    return isinstance(dataset, ArrayMasks | streets.SceneFiles)


def normalization(config: AdaptConfig, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the classifier wants taken out of images in [0, 1]."""
    if config.normalize == "imagenet":
        if channels != 3:
            raise ValueError(f"normalize imagenet needs 3 channels, not {channels}; choose half or none")
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = (0.5, 0.5) if config.normalize == "half" else (0.0, 1.0)
    return (mean,) * channels, (std,) * channels


def photo_digits(split: str, strength: float = 0.7) -> ArrayImages:
    """scikit-learn's digits blended over its two real photographs, in colour, 32 by 32 pixels, made when asked for.

    (1 - strength) * digit + strength * photograph.  Train and test digits are those of `digits`; which piece of a
    photograph lies under a digit is a function of its place alone.
    """
    digits = open_dataset("digits", split)
    images = torch.nn.functional.interpolate(
        digits.images.float(), size=(32, 32), mode="bilinear", align_corners=False
    )
    pieces = photo_pieces(len(images), seed=0 if split == "train" else 1)
    blended = ((1 - strength) * images + strength * pieces.float()).round()
    return ArrayImages(blended.to(torch.uint8), digits.labels, digits.class_names)


def photo_pieces(count: int, seed: int, size: int = 32) -> UInt8[Tensor, "count 3 size size"]:
    """`count` squares cut out of scikit-learn's two sample photographs at half their resolution."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    halved: list[Float[Tensor, "1 3 height width"]] = [
        torch.nn.functional.avg_pool2d(photograph[None].float(), 2) for photograph in photographs
    ]
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for _ in range(count):
        photograph = halved[int(torch.randint(len(halved), (1,), generator=generator))][0]
        top, left = (
            int(torch.randint(side - size + 1, (1,), generator=generator)) for side in photograph.shape[1:]
        )
        pieces.append(photograph[:, top : top + size, left : left + size])
    return torch.stack(pieces).round().to(torch.uint8)


def _preprocess(config: AdaptConfig, source: Dataset) -> Preprocess:
    if isinstance(source, ArrayImages):
        size = config.image_size or source.images.shape[-1]
        channels = config.channels or source.images.shape[1]
    else:
        size, channels = config.image_size or 224, config.channels or 3
    files = not isinstance(source, ArrayImages)
    return Preprocess(size, channels, (0.0,) * channels, (1.0,) * channels, crop=files)
