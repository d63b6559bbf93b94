"""The data of a run: training, validation and test sets, brought to the net's input size."""

from pathlib import Path
from typing import NamedTuple

import torch
from shared_core.data.augment import crop_flip
from shared_core.data.classes import in_classes_of
from shared_core.data.loader import KeyedDataset
from shared_core.data.open import ArrayImages, FolderImages, check_labels, labels_of, open_dataset
from shared_core.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Fitted, Preprocess, fitted
from torch import Tensor
from torch.utils.data import Dataset, Subset

from corsd.config import TrainConfig


class Data(NamedTuple):
    """Sets of (uint8 image, label) at the input's size; ``validation`` is None when nothing is held out."""

    train: Dataset
    validation: Dataset | None
    test: Dataset
    labels: Tensor
    class_names: list[str]
    preprocess: Preprocess

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def open_data(config: TrainConfig) -> Data:
    """Open the sets that a configuration names, split the validation set off, and read the channel statistics.

    Raises:
        ValueError: an unknown data set, fewer than two classes, or a class that the split leaves empty.
    """
    train, test = open_split(config, "train"), open_split(config, "test")
    labels = labels_of(train)
    names = list(getattr(train, "class_names", None) or map(str, range(int(labels.max()) + 1)))
    check_labels(labels, len(names))
    test = in_classes_of(test, names, f"{config.data} (test)")
    if len(labels.unique()) < 2:
        raise ValueError(f"the training set holds one class only ({names[int(labels[0])]}); give two or more")
    chosen, held_out = split(labels, config.validation, config.images_per_class)
    preprocess = _preprocess(config, train)
    sets = [Subset(train, chosen.tolist()), Subset(train, held_out.tolist()), test]
    train, validation, test = (fitted(part, preprocess) for part in sets)
    return Data(train, validation if len(held_out) else None, test, labels[chosen], names, preprocess)


def split(labels: Tensor, validation: float, images_per_class: int | None) -> tuple[Tensor, Tensor]:
    """Places of the training and of the validation images: of every class the first n, and the last share."""
    chosen, held_out = [], []
    order, counts = labels.argsort(stable=True), torch.bincount(labels).tolist()
    for label, places in enumerate(order.split(counts)):
        if len(places) == 0:
            continue
        kept = len(places) - round(len(places) * validation)
        if kept == 0:
            raise ValueError(f"validation={validation} leaves class {label} without training images")
        chosen.append(places[:kept][:images_per_class])
        held_out.append(places[kept:])
    return torch.cat(chosen).sort().values, torch.cat(held_out).sort().values


def training_set(config: TrainConfig, data: Data, seed: int, with_index: bool) -> KeyedDataset:
    """The training images with the run's augmentation, keyed by (seed, epoch, index, draw)."""
    if config.augment in ("crop_flip", "crop", "flip"):
        padding = 0 if config.augment == "flip" else max(data.preprocess.size // 8, 1)
        flip = config.augment != "crop"

        def cut(images: Tensor, uniforms: Tensor) -> Tensor:
            return crop_flip(images, uniforms, padding=padding, flip=flip)

        return KeyedDataset(data.train, seed, batch_transform=cut, with_index=with_index)
    if config.augment == "imagenet":
        from torchvision.transforms import v2

        size = data.preprocess.size
        transform = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
        # Crops are taken from the file's own pixels, not from the fitted centre.
        source = data.train.dataset if isinstance(data.train, Fitted) else data.train
        return KeyedDataset(source, seed, transform=transform, with_index=with_index)
    return KeyedDataset(data.train, seed, with_index=with_index)


def open_split(config: TrainConfig, part: str) -> Dataset:
    if config.data == "cub200":
        from corsd.cub200 import Cub200

        return Cub200(config.data_root or Path("."), part, on_bad=config.on_bad)
    return open_dataset(
        config.data, part, root=config.data_root, download=config.download, on_bad=config.on_bad
    )


def _preprocess(config: TrainConfig, train: Dataset) -> Preprocess:
    if isinstance(train, ArrayImages):
        values = train.images.float().div(255)
        mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3)).clamp_min(1e-3)
        size = config.image_size or train.images.shape[-1]
        rounded = [tuple(round(float(v), 4) for v in stat) for stat in (mean, std)]
        return Preprocess(size, train.images.shape[1], rounded[0], rounded[1], crop=False)
    folder = isinstance(train, FolderImages) or config.augment == "imagenet"
    return Preprocess(config.image_size or 224, 3, IMAGENET_MEAN, IMAGENET_STD, crop=folder)
