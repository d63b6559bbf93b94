"""How a figure stands in its frame, and images made to stand as those of another domain do (ours, not the paper's).

A convolution paints strokes otherwise; it does not magnify, slant or move a figure.  Where two domains hold the same
figures larger or more slanted, a CycleGAN learns to paint other figures instead.  So images can be brought there first,
and the CycleGAN is left with the style.  With u across and v down, both from -1 to 1 over the frame:

    m       how far a pixel differs from the ground of its image, summing to 1
    x, y    sum m u, sum m v: the centre of mass
    height  sqrt(sum m (v - y)^2)
    slant   sum m (u - x) (v - y) / height^2

Each image gets height, slant and centre of one image of the other domain, drawn at random and without labels; its
breadth follows its height, because breadth tells a one from a nought.

>>> like = poses_of(target, size=32, channels=3)
>>> posed = PosedImages(source, like, size=32, channels=3, seed=0)          # a data set of (uint8 image, label)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, UInt8
from shared_core.data.augment import to_float
from shared_core.data.labels import labels_of
from shared_core.data.loader import KeyedDataset, test_loader
from shared_core.data.preprocess import Preprocess
from shared_core.data.sampling import Key, keyed_uniform
from shared_core.ops.inputs import check_dataset, check_images, check_tensor
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

POSE = 12
"""Whose random numbers: the last part of a :class:`shared_core.data.sampling.Key`."""
FARTHEST = 4.0
"""No image is magnified or shrunk further: the height of a speck says nothing."""
LEVELS = 32
"""Of values, when the commonest is sought."""


class Poses(NamedTuple):
    """Where figures stand, one number per image; positions and heights in halves of the frame, slants at most 1."""

    x: Float[Tensor, " images"]
    y: Float[Tensor, " images"]
    height: Float[Tensor, " images"]
    slant: Float[Tensor, " images"]

    def at(self, places: Sequence[int]) -> "Poses":
        """Those of the images at these places."""
        return Poses(*(part[list(places)] for part in self))


def poses(
    images: Float[Tensor, "batch channels height width"],
    ground: Float[Tensor, "batch channels"] | None = None,
) -> Poses:
    """Where the figures of these images stand, channels taken together; an image without a figure has height 0.

    `ground` is what they stand on, see :func:`grounds`; without it the median of each image, whatever its range.
    """
    check_images("images", images)
    if ground is not None:
        check_tensor("ground", ground, "batch channels", batch=len(images), channels=images.shape[1])
    gray = images.mean(1)
    beside = gray.flatten(1).median(1).values if ground is None else ground.mean(1)
    mass = (gray - beside[:, None, None]).abs()
    mass = mass / mass.sum((1, 2), keepdim=True).clamp_min(1e-12)
    height, width = gray.shape[1:]
    v = (2 * torch.arange(height, device=images.device).to(images) + 1) / height - 1
    u = (2 * torch.arange(width, device=images.device).to(images) + 1) / width - 1
    x, y = (mass.sum(1) * u).sum(1), (mass.sum(2) * v).sum(1)
    across, down = u[None, None, :] - x[:, None, None], v[None, :, None] - y[:, None, None]
    spread = (mass * down**2).sum((1, 2))
    slant = ((mass * across * down).sum((1, 2)) / spread.clamp_min(1e-12)).clamp(-1, 1)
    return Poses(x, y, spread.sqrt(), slant)


def reposing_grid(have: Poses, want: Poses, shape: Sequence[int]) -> Float[Tensor, "batch height width 2"]:
    """Where each pixel of the image in the wanted pose lies in the image as it is, for `grid_sample`.

    A figure without height keeps its size.
    """
    flat = (have.height == 0) | (want.height == 0)
    zoom = torch.where(flat, 1.0, want.height / have.height).clamp(1 / FARTHEST, FARTHEST)
    one, slant = 1 / zoom, (have.slant - want.slant) / zoom
    rows = [
        torch.stack([one, slant, have.x - want.x * one - want.y * slant], 1),
        torch.stack([torch.zeros_like(one), one, have.y - want.y * one], 1),
    ]
    return functional.affine_grid(torch.stack(rows, 1), list(shape), align_corners=False)


def reposed(
    images: Float[Tensor, "batch channels height width"], want: Poses
) -> Float[Tensor, "batch channels height width"]:
    """The images, in [0, 1], with their figures in the wanted poses; values stay within those of each image.

    What lies beyond the border is ground: a figure that is cut off there does not go on.
    """
    check_images("images", images)
    if not isinstance(want, Poses) or len(want.x) not in (1, len(images)):
        raise ValueError(f"want must be calib.pose.Poses, one per image or one for all {len(images)} images")
    ground = grounds(images)
    grid = reposing_grid(poses(images, ground), want, images.shape)
    # Beyond the border `grid_sample` has zeros.
    lifted = images - ground[:, :, None, None]
    seen = functional.grid_sample(lifted, grid, align_corners=False) + ground[:, :, None, None]
    # Interpolation rounds; a hair outside of the value range would be refused.
    return seen.clamp(images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True))


def grounds(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels"]:
    """The value on which the figure of each image in [0, 1] stands, to the nearest of 32.

    The commonest of those that are dark, or bright, as the corners of the image are: the median is too near to a
    broad figure with soft edges, and of all values the commonest may be that of its ink.  An image of one value is
    its own ground.

    Raises ValueError for values outside of [0, 1].
    """
    check_images("images", images)
    if images.numel() and not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise ValueError(
            f"values run from {float(images.min()):g} to {float(images.max()):g}; give images in [0, 1]"
        )
    values = images.flatten(2)
    middle = (values.amin(2, keepdim=True) + values.amax(2, keepdim=True)) / 2
    rows, columns = (max(1, side // 8) for side in images.shape[2:])
    edges = torch.cat([images[:, :, :rows], images[:, :, -rows:]], 2)
    corners = torch.cat([edges[..., :columns], edges[..., -columns:]], 3).flatten(2)
    dark = corners.median(2, keepdim=True).values <= middle
    counted = ((values <= middle) == dark).to(values)
    counts = values.new_zeros(*values.shape[:2], LEVELS)
    counts.scatter_add_(2, ((LEVELS - 1) * values).round().long(), counted)
    found = counts.argmax(2) / (LEVELS - 1)
    return torch.where(values.amin(2) == values.amax(2), values[:, :, 0], found)


def poses_of(dataset: Dataset, size: int, channels: int) -> Poses:
    """Where the figures of a data set of uint8 images stand, at `size` by `size` pixels, in its order."""
    check_dataset("dataset", dataset)
    loader = test_loader(KeyedDataset(dataset, 0, transform=fitting(size, channels).fit), 250)
    batches = (to_float(images) for images, *_ in loader)
    parts = [poses(images, grounds(images)) for images in batches]
    return Poses(*(torch.cat(part) for part in zip(*parts, strict=True)))


class PosedImages(Dataset):
    """The images of a data set at `size` by `size` pixels, each in one of the poses `like`; labels are kept.

    Which pose an image gets is a pure function of (seed, its place).
    """

    def __init__(self, dataset: Dataset, like: Poses, size: int, channels: int, seed: int) -> None:
        check_dataset("dataset", dataset)
        self.dataset, self.like, self.seed = dataset, like, seed
        self.preprocess = fitting(size, channels)
        self.labels = labels_of(dataset)
        self.class_names = getattr(dataset, "class_names", None)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "channels size size"], int]:
        image, label = cast(Any, self.dataset)[index]
        drawn = float(keyed_uniform(self.seed, [Key(0, index, POSE)], 1)[0, 0])
        want = self.like.at([int(drawn * len(self.like.x))])
        seen = reposed(to_float(self.preprocess.fit(image))[None], want)
        return (seen[0] * 255).round().to(torch.uint8), int(label)


def fitting(size: int, channels: int) -> Preprocess:
    """Images of any size and 1 or 3 channels brought to `size` by `size` and `channels`, as bytes."""
    return Preprocess(size, channels, (0.0,) * channels, (1.0,) * channels, crop=False)
