"""Labels of a data set: found without decoding images where possible, and checked."""

import warnings
from collections.abc import Sized
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

UNLABELLED = "(unlabelled)"
"""The one class name of a data set without labels; no classifier has it."""


class NoSplitError(ValueError):
    """The data set has no images of the split that was asked for."""


def labels_of(dataset: Dataset) -> Int64[Tensor, " n"]:
    """The label of every item: from `.labels` or `.targets`, through Subset and ConcatDataset, else one pass.

    Raises ValueError if the labels are not integers from 0 on, or the images have masks instead.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part) for part in dataset.datasets])
    for name in ("labels", "targets"):
        found = getattr(dataset, name, None)
        if found is not None and not callable(found):
            return as_labels(found)
    if isinstance(getattr(dataset, "masks", None), Tensor):
        raise ValueError(
            "the data set has a mask for each image (segmentation), not one label: use its masks, "
            "or give labels of shape (n,)"
        )
    items = cast(Any, dataset)
    return as_labels([items[i][1] for i in range(len(cast(Sized, dataset)))])


def as_labels(values: Any) -> Int64[Tensor, " n"]:
    """Return one class number per image as int64, from any integer type, bool, or whole floats.

    `values` is a tensor, a NumPy array of any byte order, a list or tuple of numbers (also 0-d tensors), or
    anything that NumPy takes, such as a column of pandas.  The result is a copy.

    Raises ValueError for fractions, text, negative numbers, and any other shape than (n,): one-hot labels
    are refused with the expression that turns them into class numbers.
    """
    labels = _as_tensor(values)
    if labels.dim() != 1:
        raise ValueError(f"labels must be one number per image, found {_remedy(labels)}")
    if labels.is_complex():
        raise ValueError(f"labels must be whole numbers from 0 on, found {_excerpt(labels.tolist())}")
    if labels.is_floating_point() and not bool((labels.isfinite() & (labels == labels.round())).all()):
        raise ValueError(f"labels must be whole numbers from 0 on, found {_excerpt(labels.tolist())}")
    # A copy: an array that is not writable (a memory map, a broadcast) is not a tensor's memory.
    labels = labels.to(torch.int64, copy=True)
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"labels must be whole numbers from 0 on, found {int(labels.min())}")
    return labels


def _as_tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    try:
        # Not numpy's part: a list of tensors, which it would take apart number by number.
        if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
            return torch.stack([torch.as_tensor(value) for value in values])
        array = np.asarray(values)
        if array.dtype == object:
            # Whole numbers behind `object`, as pandas keeps them; None and text are refused by torch.
            array = np.asarray(torch.tensor(array.tolist()))
        if array.dtype.kind not in "biuf" and array.size:
            raise ValueError(f"they are {array.dtype}")
        if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise ValueError("they do not fit 64 bits")
        return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"labels must be whole numbers from 0 on, found {_excerpt(values)}") from error


def _remedy(labels: Tensor) -> str:
    found = f"shape {tuple(labels.shape)}"
    if labels.dim() == 2 and labels.shape[1] == 1:
        return f"{found}: give labels.squeeze(1)"
    if labels.dim() == 2:
        return f"{found}, as of one-hot or soft labels: give the class numbers, labels.argmax(1)"
    return found


def check_labels(labels: Int64[Tensor, " n"], num_classes: int) -> list[int]:
    """The classes without a single image, in order; warns if there are any.

    Raises ValueError if a label is outside 0 .. num_classes - 1 or there is no label at all.
    """
    if labels.numel() == 0:
        raise ValueError("there are no labels: the data set is empty")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels run from {low} to {high}, but {num_classes} classes allow 0 to {num_classes - 1}: "
            "set the number of classes, or renumber the labels"
        )
    empty = torch.nonzero(torch.bincount(labels, minlength=num_classes) == 0).flatten().tolist()
    if empty:
        shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        warnings.warn(f"{len(empty)} of {num_classes} classes have no image: {shown}", stacklevel=2)
    return empty


def _excerpt(values: Any) -> str:
    shown = repr(list(values[:5]) if hasattr(values, "__getitem__") else values)
    return shown if len(shown) < 120 else shown[:120] + "..."
