"""Open a data set by name.

| spec | what |
|---|---|
| `digits` | scikit-learn's 1,797 grey 8x8 digits, split 1,297 / 500 by class and shuffled, always the same |
| `mnist usps svhn cifar10 cifar100 fashion-mnist` | through torchvision, from `root` |
| `imagefolder:PATH` | `PATH/train/CLASS/*.jpg` and `PATH/test` or `PATH/val` |
| `npz:PATH` | keys `x_train y_train x_test y_test`, optionally `class_names` |
| `npz:PATH#day` | keys `x_day_train y_day_train x_day_test y_day_test`; with `y` of shape (n, h, w): ArrayMasks |
| `hf:NAME` | Hugging Face datasets (extra `hf`); NAME may be a folder |
| a Dataset | as it is |

`~` at the beginning of a path is the home folder.

    >>> train = open_dataset("digits", "train")
    >>> train.images.shape, train.labels.shape, train.class_names
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from shared_core.data.arrays import ArrayImages, from_numpy
from shared_core.data.folder import FolderImages, class_folders, has_classes
from shared_core.data.images import printable
from shared_core.data.labels import UNLABELLED, NoSplitError, as_labels, check_labels, labels_of
from shared_core.data.masks import ArrayMasks
from shared_core.data.npz import open_npz
from shared_core.data.sampling import Key, keyed_uniform

__all__ = [
    "ArrayImages",
    "ArrayMasks",
    "FolderImages",
    "NoSplitError",
    "check_labels",
    "labels_of",
    "open_dataset",
]

TORCHVISION = ("mnist", "usps", "svhn", "cifar10", "cifar100", "fashion-mnist")


def open_dataset(
    spec: str | Dataset,
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    on_bad: str = "raise",
    labelled: bool = True,
) -> Any:
    """The data set that `spec` names (table above): ArrayImages, ArrayMasks, FolderImages, or the Dataset given.

    `root` and `download` are for torchvision's sets, `on_bad` ("raise" or "skip") for folders of images.  With
    `labelled` off the data need no labels: folders, files and hub data without them have the one class UNLABELLED.

    Raises NoSplitError without images of the split, other ValueErrors or FileNotFoundError with what is missing,
    ImportError naming an extra to install.
    """
    if not isinstance(spec, str):
        return spec
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    kind, _, rest = spec.partition(":")
    root = None if root is None else os.path.expanduser(root)
    if spec == "digits":
        return _digits(split)
    if spec in TORCHVISION:
        return _torchvision(spec, split, root, download)
    if kind == "imagefolder" and rest:
        return _folder(Path(os.path.expanduser(rest)), split, on_bad, labelled)
    if kind == "npz" and rest:
        return open_npz(rest, split, labelled)
    if kind == "hf" and rest:
        from shared_core.data.hub import open_hub

        return open_hub(os.path.expanduser(rest) if rest.startswith("~") else rest, split, labelled)
    raise ValueError(
        f"there is no data set {spec!r}: give digits, {', '.join(TORCHVISION)}, imagefolder:PATH, "
        "npz:PATH, npz:PATH#prefix or hf:NAME"
    )


def _digits(split: str) -> ArrayImages:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    labels = as_labels(bunch.target)
    # In an order of their own: the file goes writer by writer, so its first images of a class look alike.
    order = _hashed_order(len(labels))
    test = torch.isin(order, _stratified(labels, order, 500))
    chosen = order[test if split == "test" else ~test]
    # 16 levels of grey to 256.
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    return ArrayImages(images[chosen], labels[chosen])


def _hashed_order(size: int) -> torch.Tensor:
    """A permutation of `size` items that is the same for ever and on every version of the libraries."""
    scores = keyed_uniform(0, [Key(0, i, 0) for i in range(size)], 1)[:, 0]
    return torch.from_numpy(scores.argsort(kind="stable"))


def _stratified(labels: torch.Tensor, order: torch.Tensor, size: int) -> torch.Tensor:
    """`size` items with the class shares of the whole: of each class those that come first in `order`."""
    counts = torch.bincount(labels)
    exact = counts * size / len(labels)
    quota = exact.floor().long()
    # The largest remainders take what rounding down left over.
    quota[(exact - quota).argsort(descending=True, stable=True)[: size - int(quota.sum())]] += 1
    return torch.cat([order[labels[order] == label][: quota[label]] for label in range(len(counts))])


def _torchvision(name: str, split: str, root: str | os.PathLike[str] | None, download: bool) -> ArrayImages:
    if root is None:
        raise ValueError(
            f"{name} needs a folder: give root=FOLDER (with download=True to fetch it into there)"
        )
    from torchvision import datasets

    train = split == "train"
    try:
        if name == "svhn":
            found: Any = datasets.SVHN(Path(root), split=split, download=download)
        else:
            kind = {
                "mnist": datasets.MNIST,
                "usps": datasets.USPS,
                "cifar10": datasets.CIFAR10,
                "cifar100": datasets.CIFAR100,
                "fashion-mnist": datasets.FashionMNIST,
            }[name]
            found = kind(Path(root), train=train, download=download)
    except (RuntimeError, FileNotFoundError) as error:
        if download:
            raise
        raise FileNotFoundError(
            f"{name} is not in {printable(root)}: give the folder that holds it as root, "
            "or download=True to fetch it into there"
        ) from error
    labels = found.labels if name == "svhn" else found.targets
    return from_numpy(np.asarray(found.data), labels, getattr(found, "classes", None))


def _folder(path: Path, split: str, on_bad: str, labelled: bool) -> FolderImages:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {printable(path)}")
    train = path / "train"
    parts = [train] if split == "train" else [path / "test", path / "val"]
    found = [part for part in parts if part.is_dir()]
    if not found:
        wanted = " or ".join(f"{part.name}/" for part in parts)
        raise NoSplitError(f"{printable(path)} has no {wanted}: put the classes of the {split} set in there")
    if not labelled and not has_classes(found[0]):
        return FolderImages(found[0], on_bad=on_bad, class_names=[UNLABELLED])
    # The training folder numbers the classes, so that a class without test images shifts nothing; what only
    # the test folder has comes behind, for whoever matches the names to refuse.
    names = class_folders(found[0])
    if train.is_dir():
        known = class_folders(train)
        names = known + [name for name in names if name not in known]
    return FolderImages(found[0], on_bad=on_bad, class_names=names)
