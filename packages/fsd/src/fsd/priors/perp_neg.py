"""Perp-Neg: negative prompts that cannot undo the prompt (Armandpour et al. 2023, arXiv 2304.04968).

With d(y) = noise(y) - noise(negative prompt), the guided noise is

    noise(negative prompt) + scale (d(y) - sum_i w_i (d(y_i) - <d(y_i), d(y)> / |d(y)|^2 d(y)))

so that only the part of a negative direction at right angles to the prompt's is taken away.  For views, y runs from
front over side to back with the azimuth, and the y_i are the views that the object must not show from there: against
"front" at the side and behind, which is what makes an object with two faces.  w_i = a exp(-b r) + c, with r the
place between two views; the constants are those in use in threestudio, and make w continuous in the azimuth.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fsd.cameras import Cameras
from fsd.priors.view_words import VIEWS, from_front


class ViewMix(NamedTuple):
    """Weights over VIEWS of the prompt's text, and of two negative texts with the weight w of each."""

    prompt: Float[Tensor, "b 4"]
    against: Float[Tensor, "2 b 4"]
    weight: Float[Tensor, "2 b"]


def mix_views(cameras: Cameras, overhead_deg: float = 60.0) -> ViewMix:
    """The texts for each camera; straight above (over `overhead_deg`) it is "overhead" alone."""
    away = from_front(cameras)
    one = torch.eye(len(VIEWS), dtype=away.dtype, device=away.device)
    front, side, back, overhead = one[:, None]
    near = (away < 90.0)[:, None]
    # 1 at the front and 0 at the side; then 1 at the side and 0 at the back.
    r = torch.where(away < 90.0, 1.0 - away / 90.0, 2.0 - away / 90.0)
    prompt = torch.where(near, _between(r, front, side), _between(r, side, back))
    against = torch.stack([front.expand_as(prompt), side.expand_as(prompt)])
    weight = torch.where(
        away < 90.0,
        torch.stack([_decay(4.0, r), _decay(4.0, 1 - r)]),
        torch.stack([_decay(1.0, r, 4.0 * (1.0 - _END)), _decay(1.0, r)]),
    )
    above = cameras.elevation_deg > overhead_deg
    prompt = torch.where(above[:, None], overhead, prompt)
    return ViewMix(prompt, against, weight.masked_fill(above, 0.0))


def combine(
    base: Float[Tensor, "b c h w"],
    prompt: Float[Tensor, "b c h w"],
    against: Float[Tensor, "n b c h w"],
    weight: Float[Tensor, "n b"],
    guidance_scale: float,
) -> Float[Tensor, "b c h w"]:
    """The guided noise from the noises of the negative prompt, the prompt, and the texts to stay away from."""
    towards = prompt - base
    away = perpendicular(against - base, towards)
    return base + guidance_scale * (towards - (weight[:, :, None, None, None] * away).sum(0))


def perpendicular(x: Float[Tensor, "*n b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, "*n b c h w"]:
    """x without its component along y, image by image; x itself where y is zero."""
    along = (x * y).sum((-3, -2, -1), keepdim=True)
    length = y.square().sum((-3, -2, -1), keepdim=True)
    return x - torch.where(length > 0, along / length.clamp_min(torch.finfo(y.dtype).tiny), 0.0) * y


_END = math.exp(-0.5)


def _decay(size: float, r: Tensor, end: float = 0.0) -> Tensor:
    """size exp(-r / 2) + c, with c such that it is `end` at r = 1."""
    return size * (torch.exp(-r / 2) - _END) + end


def _between(r: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return r[:, None] * a + (1 - r[:, None]) * b
