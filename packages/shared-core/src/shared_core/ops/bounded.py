"""Projection onto an L-infinity ball and a value box: what bounds a correction or an attack on images."""

import torch
from jaxtyping import Float
from torch import Tensor


def project(
    x: Float[Tensor, "*shape"],
    center: Float[Tensor, "*shape"],
    epsilon: float | Tensor,
    low: float | Tensor,
    high: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """The point nearest to `x` with |x - center| <= epsilon and low <= x <= high, element by element.

    `epsilon`, `low` and `high` are in the unit of `x`: numbers, or tensors that broadcast against it, as
    (channels, 1, 1) for one bound per channel.  Exact but for the rounding of center +- epsilon to the
    type of `center`.  Where `center` lies outside of the box the box wins: the result is in the box, and as
    near to the ball as the box allows.  NaN stays NaN.  The gradient in `x` is 1 inside and on the bounds,
    0 where a bound cuts.

    Raises ValueError if x and center differ in shape, if epsilon is negative or low is above high anywhere, or if
    one is NaN.  Compiled and exported code leaves the check of values out.
    """
    if x.shape != center.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and center {tuple(center.shape)}; they must be equal")
    epsilon, low, high = (v.to(center) if isinstance(v, Tensor) else v for v in (epsilon, low, high))
    if not torch.compiler.is_compiling():
        _check(epsilon, low, high)
    # Each bound is itself brought into the box, so that lower <= upper also around a center outside.
    lower = (center - epsilon).clamp(min=low).clamp(max=high)
    upper = (center + epsilon).clamp(min=low).clamp(max=high)
    # Not clamp: with tensors as bounds it halves the gradient of a pixel that sits on its bound.
    return torch.where(x < lower, lower, torch.where(x > upper, upper, x))


def _check(epsilon: float | Tensor, low: float | Tensor, high: float | Tensor) -> None:
    if not _all(epsilon >= 0):
        raise ValueError(f"epsilon is {_shown(epsilon)}; it must be 0 or more")
    if not _all(low <= high):
        raise ValueError(f"low is {_shown(low)} and high is {_shown(high)}; low must not be above high")


def _all(condition: bool | Tensor) -> bool:
    return bool(condition.all()) if isinstance(condition, Tensor) else condition


def _shown(value: float | Tensor) -> str:
    return str(value.flatten().tolist()) if isinstance(value, Tensor) else str(value)
