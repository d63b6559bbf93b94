"""Augmentation of whole batches, driven by uniform numbers that the caller gives: no global randomness.

>>> uniforms = keyed_uniform(seed, keys, 3)
>>> images = normalize(to_float(crop_flip(images, torch.from_numpy(uniforms))), mean, std)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional


def crop_flip(
    images: UInt8[Tensor, "batch channel height width"],
    uniforms: Float[Tensor, "batch n"],
    padding: int = 4,
    fill: int = 0,
    flip: bool = True,
) -> UInt8[Tensor, "batch channel height width"]:
    """Pads by `padding` pixels of value `fill`, cuts the old size at a random place, mirrors half of them.

    Column 0 of `uniforms` (in [0, 1)) places the cut vertically, 1 horizontally, 2 decides on the mirror
    (below 0.5: mirrored); further columns are ignored.  Raises ValueError for fewer than 3 columns.
    """
    if uniforms.shape[1] < 3:
        raise ValueError(f"uniforms has {uniforms.shape[1]} columns; crop_flip needs 3")
    batch, _, height, width = images.shape
    if padding:
        padded = functional.pad(images, (padding,) * 4, value=fill)
        top, left = (uniforms[:, :2] * (2 * padding + 1)).long().unbind(dim=1)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(batch, device=images.device), :, top, left]
    if flip:
        images = torch.where((uniforms[:, 2] < 0.5)[:, None, None, None], images.flip(-1), images)
    return images


def to_float(
    images: UInt8[Tensor, "*batch channel height width"],
) -> Float[Tensor, "*batch channel height width"]:
    """Bytes 0..255 to float32 in [0, 1]."""
    return images.float().div_(255.0)


def normalize(
    images: Float[Tensor, "*batch channel height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*batch channel height width"]:
    """(images - mean) / std per channel.  Raises ValueError if the counts differ or a std is not positive."""
    channels = images.shape[-3]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(
            f"images have {channels} channels; mean {tuple(mean)} and std {tuple(std)} need one number each, "
            "std above 0"
        )
    shift = torch.tensor(mean, dtype=images.dtype, device=images.device)[:, None, None]
    scale = torch.tensor(std, dtype=images.dtype, device=images.device)[:, None, None]
    return (images - shift) / scale
