"""Refuse tensors that a public function cannot take, in one sentence: what was given, what is allowed, what to do.

jaxtyping's annotations are checked in tests alone; these checks always run. They read shapes, types and devices, which
the host knows, so nothing waits for the device.

    >>> check_tensor("opacity", opacity, "b 1 h w", "one mask per view: opacity[:, None]", b=len(cameras))
"""

from typing import Any

import numpy as np
from torch import Tensor


def check_tensor(name: str, value: Any, axes: str, hint: str = "", **sizes: int) -> None:
    """Check that `value` is a floating-point tensor with the given axes.

    `axes` names one size per axis, as jaxtyping does: a number is exact, a name is exact where `sizes` holds it and
    free otherwise. `hint` ends the message. Raises TypeError for another type, ValueError for another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__}; give a torch.Tensor of shape ({_shown(axes, sizes)})"
        )
    if not value.is_floating_point():
        advice = f"{name}.float() / 255 for bytes" if "uint8" in str(value.dtype) else f"{name}.float()"
        raise TypeError(
            f"{name} has the type {value.dtype}; give floating-point numbers, for instance {advice}"
        )
    _check_shape(name, tuple(value.shape), axes, hint, sizes)


def check_array(name: str, value: Any, axes: str, hint: str = "", **sizes: int) -> None:
    """Check that `value` is a numpy array of numbers with the given axes; as `check_tensor`."""
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name} is a {type(value).__name__}; give a numpy array of shape ({_shown(axes, sizes)})"
        )
    if value.dtype.kind not in "fiub":
        raise TypeError(f"{name} has the type {value.dtype}; give numbers")
    _check_shape(name, value.shape, axes, hint, sizes)


def check_together(**tensors: Tensor | None) -> None:
    """Check that all tensors lie on one device. Raises ValueError with the two that do not."""
    given = [(name, value.device) for name, value in tensors.items() if value is not None]
    for name, device in given[1:]:
        if device != given[0][1]:
            raise ValueError(
                f"{given[0][0]} is on {given[0][1]} and {name} on {device}; move both to one device with .to(device)"
            )


def check_cameras(cameras: Any) -> None:
    """Check that these are cameras, at least one. Raises TypeError or ValueError."""
    from fsd.cameras import Cameras

    if not isinstance(cameras, Cameras):
        raise TypeError(
            f"cameras is a {type(cameras).__name__}; give fsd.Cameras(c2w, fov_deg), or make them with "
            "fsd.cameras.place, orbit or turntable"
        )
    if not len(cameras):
        raise ValueError("there is no camera; give at least one")


def _check_shape(name: str, shape: tuple[int, ...], axes: str, hint: str, sizes: dict[str, int]) -> None:
    wanted = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes.split()]
    if len(shape) == len(wanted) and all(
        size is None or size == given for size, given in zip(wanted, shape, strict=True)
    ):
        return
    raise ValueError(
        f"{name} has shape {shape}; it must be ({_shown(axes, sizes)})" + (f": {hint}" if hint else "")
    )


def _shown(axes: str, sizes: dict[str, int]) -> str:
    return ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes.split())
