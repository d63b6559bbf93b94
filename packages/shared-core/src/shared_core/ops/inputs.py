"""Refuse tensors and data sets that a public function cannot take, in one sentence: what was given, what is allowed.

jaxtyping's annotations are checked in tests alone; these checks always run. They read shapes, types and devices, which
the host knows, so nothing waits for the device.

    >>> check_tensor("opacity", opacity, "b 1 h w", "one mask per view: opacity[:, None]", b=len(cameras))
    >>> check_images("images", images, channels=3)
    >>> check_dataset("source", source)
"""

from typing import Any

import torch
from torch import Tensor, nn

from shared_core.ops.autocast import under_autocast

FLOATS, INTEGERS, ANY = "floating-point numbers", "integers", "numbers"
IMAGES = "batch channels height width"


def check_tensor(
    name: str, value: Any, axes: str, hint: str = "", numbers: str = FLOATS, **sizes: int
) -> None:
    """Check that `value` is a tensor with the given axes, of floating point unless `numbers` says otherwise.

    `axes` names one size per axis, as jaxtyping does: a number is exact, a name is exact if `sizes` holds it and free
    otherwise, "..." at the end stands for any further axes. `hint` ends the message. Raises TypeError for another type,
    ValueError for another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__}; give a torch.Tensor of shape ({_shown(axes, sizes)})"
        )
    floating = value.is_floating_point()
    if numbers == FLOATS and not floating:
        advice = f"{name}.float() / 255 for bytes" if "uint8" in str(value.dtype) else f"{name}.float()"
        raise TypeError(f"{name} has the type {value.dtype}; give {FLOATS}, for instance {advice}")
    if numbers == INTEGERS and (floating or value.is_complex()):
        raise TypeError(
            f"{name} has the type {value.dtype}; give {INTEGERS}, {name}.long() if they are whole numbers"
        )
    _check_shape(name, tuple(value.shape), axes, hint, sizes)


def check_images(name: str, value: Any, channels: int | None = None, numbers: str = FLOATS) -> None:
    """Check that `value` is a batch of images; `channels` is exact if given. Raises TypeError or ValueError."""
    lone = isinstance(value, Tensor) and value.dim() == 3
    hint = f"for one image give {name}[None]" if lone else ""
    sizes = {} if channels is None else {"channels": channels}
    check_tensor(name, value, IMAGES, hint, numbers, **sizes)


def copy_for(net: nn.Module, images: Tensor) -> Tensor:
    """A copy of the images, which a net that works in place may change, in the net's type.

    Images of another floating-point type than that of all parameters are converted, where the net would refuse them.
    """
    types = {p.dtype for p in net.parameters() if p.is_floating_point()}
    # Under autocast a net takes all types but float64 by itself.
    as_they_are = under_autocast(images) and images.dtype != torch.float64
    if images.is_floating_point() and len(types) == 1 and images.dtype not in types and not as_they_are:
        return images.to(next(iter(types)))
    return images.clone()


def check_dataset(name: str, value: Any) -> None:
    """Check that `value` can be asked for items by number and for how many there are, and holds at least one.

    Raises TypeError or ValueError.
    """
    if isinstance(value, Tensor | str | dict) or not (
        hasattr(value, "__getitem__") and hasattr(value, "__len__")
    ):
        raise TypeError(
            f"{name} is a {type(value).__name__}; give a map-style Dataset of (image, label), with len() and items by "
            "number"
        )
    if not len(value):
        raise ValueError(f"{name} holds no images; give at least one")


def _check_shape(name: str, shape: tuple[Any, ...], axes: str, hint: str, sizes: dict[str, int]) -> None:
    # Sizes are symbols while a graph is exported.
    named = axes.removesuffix("...").split()
    wanted = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in named]
    enough = len(shape) >= len(wanted) if axes.endswith("...") else len(shape) == len(wanted)
    if enough and all(size is None or size == given for size, given in zip(wanted, shape, strict=False)):
        return
    raise ValueError(
        f"{name} has shape {shape}; it must be ({_shown(axes, sizes)})" + (f": {hint}" if hint else "")
    )


def _shown(axes: str, sizes: dict[str, int]) -> str:
    return ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes.split())
