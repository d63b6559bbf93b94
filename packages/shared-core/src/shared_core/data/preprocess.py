"""How bytes become a net's input: the same in training, evaluation, prediction and the metadata of exports."""

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset, Subset

from shared_core.data.arrays import ArrayImages
from shared_core.data.augment import normalize, to_float
from shared_core.data.labels import labels_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """From uint8 images to the net's input: `size` by `size`, (x / 255 - mean) / std per channel.

    `crop` first scales the shorter side to size * 256 / 224 and keeps the centre (ImageNet's custom);
    otherwise images are scaled to the size as they are.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: bool

    def fit(self, image: UInt8[Tensor, "channels height width"]) -> UInt8[Tensor, "_ size size"]:
        """One image of any size brought to the input's size and channel count."""
        from torchvision.transforms.v2 import functional as tv

        if self.channels == 1 and image.shape[0] == 3:
            image = tv.rgb_to_grayscale(image)
        elif self.channels == 3 and image.shape[0] == 1:
            image = image.expand(3, -1, -1)
        if self.crop:
            image = tv.resize(_shortened(image), [round(self.size * 256 / 224)], antialias=True)
            return tv.center_crop(image, [self.size])
        return tv.resize(image, [self.size, self.size], antialias=True)

    def __call__(
        self, images: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels size size"]:
        """A batch of fitted bytes as the net's input; runs on the images' device."""
        return normalize(to_float(images), self.mean, self.std)

    def record(self) -> dict[str, Any]:
        """Plain values, for metadata; `Preprocess(**record)` brings it back."""
        return asdict(self)


class Fitted(Dataset):
    """A data set whose images are brought to the input's size one by one, as they are read."""

    def __init__(self, dataset: Dataset, preprocess: Preprocess):
        self.dataset, self.preprocess = dataset, preprocess
        self.labels = labels_of(dataset)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = cast(Any, self.dataset)[index]
        return self.preprocess.fit(image), int(label)


def fitted(part: Dataset, preprocess: Preprocess) -> Dataset:
    """`part` at the input's size: in-memory sets are fitted at once and stay in memory, others as they are read."""
    source, places = part, slice(None)
    if isinstance(part, Subset):
        source, places = part.dataset, torch.tensor(part.indices, dtype=torch.long)
    if not isinstance(source, ArrayImages):
        return Fitted(part, preprocess)
    images, labels = source.images[places], source.labels[places]
    if images.shape[1:] != (preprocess.channels, preprocess.size, preprocess.size) and len(images):
        images = torch.stack([preprocess.fit(image) for image in images])
    return ArrayImages(images, labels, source.class_names)


def _shortened(image: Tensor) -> Tensor:
    """The middle of an image more than 16 times as long as wide, 8 times as long as wide; others as they are.

    Scaled by its shorter side, a strip of 1 by 8,000 pixels would take gigabytes, for a square of which all
    but the middle is cut off.
    """
    height, width = image.shape[-2:]
    short, long = min(height, width), max(height, width)
    if long <= 16 * short:
        return image
    # Of the same parity, so that the middle stays where it is.
    kept = 8 * short + (long - 8 * short) % 2
    return image.narrow(-1 if width > height else -2, (long - kept) // 2, kept)
