"""A data set for semantic segmentation that lies in memory: images and one label per pixel, as bytes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from shared_core.data.arrays import channels_first


class ArrayMasks(Dataset):
    """Images uint8 [n, channel, height, width] with masks uint8 [n, height, width].

    An item is `(uint8 CHW, int64 HW)`.  A mask holds classes from 0 on, and `ignore` where a pixel does not
    count.  Without `class_names` the classes are called by their numbers, up to the largest one found.

    Raises TypeError if images or masks are not uint8 and ValueError if shapes, labels and names do not fit.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n channel height width"],
        masks: UInt8[Tensor, "m rows columns"],
        class_names: Sequence[str] | None = None,
        ignore: int = 255,
    ) -> None:
        for name, tensor in (("images", images), ("masks", masks)):
            if tensor.dtype != torch.uint8:
                raise TypeError(f"{name} are {tensor.dtype}; they must be torch.uint8, 0 to 255")
        if images.dim() != 4 or masks.shape != (len(images), *images.shape[2:]):
            raise ValueError(
                f"images have shape {tuple(images.shape)} and masks {tuple(masks.shape)}; "
                "they must be (n, channel, height, width) and (n, height, width)"
            )
        labels = masks[masks != ignore]
        classes = int(labels.max()) + 1 if len(labels) else 0
        if class_names is None:
            class_names = [str(label) for label in range(classes)]
        if len(class_names) < classes:
            raise ValueError(
                f"{len(class_names)} class names, but labels up to {classes - 1} (ignored is {ignore}): "
                "name every class, or give the label that does not count as ignore"
            )
        self.images = images.contiguous()
        self.masks = masks.contiguous()
        self.class_names = list(class_names)
        self.ignore = ignore

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.masks[index].long()


def masks_from_numpy(
    images: np.ndarray, masks: np.ndarray, class_names: Sequence[str] | None = None, ignore: int = 255
) -> ArrayMasks:
    """An ArrayMasks from uint8 images in any layout of `from_numpy` and whole-number masks (n, height, width).

    Raises TypeError for masks of fractions, ValueError for labels outside of 0 to 255.
    """
    if masks.dtype.kind not in "uib":
        raise TypeError(f"masks are {masks.dtype}; they must be whole numbers, best uint8")
    if masks.size and not 0 <= int(masks.min()) <= int(masks.max()) <= 255:
        raise ValueError(f"masks run from {masks.min()} to {masks.max()}; labels must be 0 to 255")
    return ArrayMasks(
        channels_first(images), torch.from_numpy(masks.astype(np.uint8, order="C")), class_names, ignore
    )
