"""A data set that lies in memory as one array of bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from shared_core.data.labels import as_labels


class ArrayImages(Dataset):
    """Images as uint8 [n, channel, height, width] with n labels; an item is `(uint8 CHW, int)`.

    Labels are anything that :func:`shared_core.data.labels.as_labels` takes, and kept as int64.

    Raises TypeError if the images are not uint8 and ValueError if shapes, labels and names do not fit.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n channel height width"],
        labels: Any,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"images are {images.dtype}; they must be torch.uint8, 0 to 255")
        if images.dim() != 4:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; it must be (n, channel, height, width)"
            )
        labels = as_labels(labels)
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        classes = int(labels.max()) + 1 if len(labels) else 0
        if class_names is None:
            class_names = [str(label) for label in range(classes)]
        if len(class_names) < classes:
            raise ValueError(f"{len(class_names)} class names, but labels up to {classes - 1}")
        self.images = images.contiguous()
        self.labels = labels
        self.class_names = list(class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def from_numpy(images: np.ndarray, labels: Any, class_names: Sequence[str] | None = None) -> ArrayImages:
    """An ArrayImages from uint8 arrays (n, height, width), (n, c, h, w) or (n, h, w, c) with c = 1 or 3.

    Where both readings of four dimensions fit, channels first wins.
    """
    return ArrayImages(channels_first(images), as_labels(labels), class_names)


def channels_first(images: np.ndarray) -> UInt8[Tensor, "n channel height width"]:
    """A copy of the bytes in the order (n, channel, height, width), from any layout of `from_numpy`."""
    if images.dtype != np.uint8:
        raise TypeError(f"images are {images.dtype}; they must be uint8, 0 to 255")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim != 4:
        raise ValueError(
            f"images have shape {images.shape}; it must be (n, h, w), (n, c, h, w) or (n, h, w, c)"
        )
    elif images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {images.shape}; neither reading has 1 or 3 channels")
    return torch.from_numpy(np.array(images, order="C"))
