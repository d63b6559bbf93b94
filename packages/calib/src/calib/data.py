"""The domains of a run: source and target, training and test images, brought to one size and channel count.

Images stay bytes; what a classifier wants beyond [0, 1] is inside it (:class:`calib.classifiers.Normalized`).
"""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, UInt8
from shared_core.data.arrays import ArrayImages
from shared_core.data.classes import NoCommonClassError, in_classes_of, match_classes
from shared_core.data.masks import ArrayMasks
from shared_core.data.open import NoSplitError, labels_of, open_dataset
from shared_core.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, fitted
from torch import Tensor
from torch.utils.data import Dataset

from calib import streets
from calib.config import AdaptConfig

PHOTO_DIGITS = "photo-digits"


class Domains(NamedTuple):
    """Data sets of (uint8 image, label or mask); `source_train` holds the translated images if a run names some.

    Labels are places in `class_names`, which are the source's.  `target_test` is None where the target has no test
    images whose labels are among them: there is nothing to score.  Without `target_labelled` the labels of
    `target_train` mean nothing; training does not read them.
    """

    source_train: Dataset
    source_test: Dataset
    target_train: Dataset
    target_test: Dataset | None
    class_names: list[str]
    channels: int
    segmentation: bool
    preprocess: Preprocess | None
    target_labelled: bool = True

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def open_domains(config: AdaptConfig) -> Domains:
    """Open what a configuration names.

    Labels are matched by the names of classes.  The target's training images need none; where its test images
    have none that fit, there is no score, with a warning.

    Raises:
        ValueError: an unknown data set, classes that the source does not have, or one domain with a label per image
            and the other with a label per pixel.
        FileNotFoundError: data that are not there.
    """
    source = [open_domain(config, config.source, split) for split in ("train", "test")]
    target_train, target_test = open_domain(config, config.target, "train", labelled=False), None
    with contextlib.suppress(NoSplitError):
        target_test = open_domain(config, config.target, "test", labelled=False)
    names = _class_names(config, source[0])
    if config.translated is not None:
        source[0] = open_domain(config, config.translated, "train")
    found = [*source, target_train, *([] if target_test is None else [target_test])]
    masks = [has_masks(part) for part in found]
    if any(masks) and not all(masks):
        raise ValueError(
            f"source {config.source} and target {config.target} differ: one has a label per pixel, one per image"
        )
    fit = _preprocess(config, source[1]) if not any(masks) else None

    def domain(part: Dataset, what: str, warn: bool = True) -> Dataset:
        return fit_to(part, names, f"the {what}", fit, config.ignore_label, warn)

    translated = config.translated or f"{config.source} (train)"
    source_train = domain(source[0], f"source {translated}")
    source_test = domain(source[1], f"source {config.source} (test)")
    labelled = True
    try:
        target_train = domain(target_train, f"target {config.target} (train)", warn=False)
    except ValueError as error:
        if config.selection == "oracle" or "target_supervised" in config.baselines:
            raise ValueError(
                f"selection 'oracle' and the baseline target_supervised need target labels: {error}"
            ) from error
        labelled, target_train = False, target_train if fit is None else fitted(target_train, fit)
    if target_test is not None:
        target_test = scored(lambda: domain(cast(Dataset, target_test), f"target {config.target} (test)"))
    else:
        warnings.warn(f"the target {config.target} has no test images: it gets no score", stacklevel=2)
    channels = fit.channels if fit is not None else len(cast(Any, source[0])[0][0])
    four = (source_train, source_test, target_train, target_test)
    return Domains(*four, names, channels, any(masks), fit, labelled)


def scored(open_set: Callable[[], Dataset]) -> Dataset | None:
    """What `open_set` opens; None, with a warning, if no label of it is one of the classes."""
    try:
        return open_set()
    except NoCommonClassError as error:
        warnings.warn(f"no score on the target: {error}", stacklevel=2)
        return None


def fit_to(
    part: Dataset,
    class_names: Sequence[str],
    what: str,
    preprocess: Preprocess | None,
    ignore: int,
    warn: bool = True,
) -> Dataset:
    """A data set with labels that are places in `class_names`, at the classifier's size unless it has masks.

    Raises ValueError as :func:`shared_core.data.classes.in_classes_of`, and for scenes of other classes.
    """
    if isinstance(part, streets.SceneFiles):
        places = match_classes(part.class_names, class_names, range(len(part.class_names)), what)
        if places != list(range(len(places))):
            raise ValueError(f"{what} lists its classes in another order than {', '.join(class_names)}")
        return part
    part = in_classes_of(part, class_names, what, warn, ignore)
    return part if preprocess is None else fitted(part, preprocess)


def _class_names(config: AdaptConfig, source: Dataset) -> list[str]:
    names = getattr(source, "class_names", None)
    if names is None:
        names = map(str, range(int(labels_of(source).max()) + 1))
    names = list(names)[: config.num_classes]
    if has_masks(source):
        return names
    return names + [str(k) for k in range(len(names), config.num_classes or 0)]


def open_domain(config: AdaptConfig, spec: str, split: str, labelled: bool = True) -> Dataset:
    """One split of one domain, as it lies on the disk; a folder may lack classes if it is not to be `labelled`."""
    if spec == PHOTO_DIGITS:
        return photo_digits(split)
    if spec in streets.NAMES:
        if config.on_bad != "raise":
            raise ValueError(f"on_bad={config.on_bad!r}: of {spec} only 'raise' is offered")
        return streets.open_scenes(spec, split, config.data_root, config.scene_size)
    return open_dataset(spec, split, config.data_root, config.download, config.on_bad, labelled)


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
