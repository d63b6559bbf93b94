"""Trilinear interpolation that can be differentiated any number of times, with respect to values and positions.

`torch.nn.functional.grid_sample` is quicker and has no second derivative, which normals need.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def corners(
    points: Float[Tensor, "n 3"], resolution: int
) -> tuple[Int[Tensor, "n 8 3"], Float[Tensor, "n 8"]]:
    """The eight lattice points around each point of [0, 1]^3, and their weights.

    The lattice has `resolution` points along each axis, the outer ones on the faces of the cube; what lies outside
    is continued linearly.  Corners count in binary, z quickest.  Only the weights carry a gradient.
    """
    scaled = points * (resolution - 1)
    lower = scaled.detach().floor().clamp(0, resolution - 2)
    upper_weight = scaled - lower
    x, y, z = torch.stack([1 - upper_weight, upper_weight], -1).unbind(1)
    weights = x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]
    index = lower.long()[:, None] + _BINARY.to(points.device)
    return index, weights.reshape(-1, 8)


def slopes(points: Float[Tensor, "n 3"], resolution: int) -> Float[Tensor, "3 n 8"]:
    """The derivatives of the weights of `corners` with respect to x, y and z of the points."""
    scaled = points * (resolution - 1)
    upper_weight = scaled - scaled.floor().clamp(0, resolution - 2)
    x, y, z = torch.stack([1 - upper_weight, upper_weight], -1).unbind(1)
    step = torch.tensor([-1.0, 1.0], dtype=x.dtype, device=x.device).expand_as(x) * (resolution - 1)
    along = ((step, y, z), (x, step, z), (x, y, step))
    return torch.stack(
        [(a[:, :, None, None] * b[:, None, :, None] * c[:, None, None, :]).flatten(1) for a, b, c in along]
    )


def weighted_rows(
    table: Float[Tensor, "rows features"], rows: Int[Tensor, "n 8"], weights: Float[Tensor, "n 8"]
) -> Float[Tensor, "n features"]:
    """Sum over the corners of weight times the table's row."""
    # index_select has the quickest backward pass of all gathers on a CPU: 15 ms where embedding takes 40.
    picked = table.index_select(0, rows.flatten()).view(*rows.shape, -1)
    return torch.bmm(weights[:, None], picked)[:, 0]


_BINARY = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
