"""Fields: what the density and the colour of an object are at a point of space.

A field is any nn.Module with `radius` (the object lies within [-radius, radius]^3), `forward(points)` that returns
density and colour, and `density(points)` alone.  Density is per unit of length and not negative; colours are in
[0, 1].  Both fields here begin as the soft ball of Magic3D, as density = softplus(raw + blob).

    >>> field = DenseGrid(resolution=32)
    >>> density, color = field(torch.rand(1000, 3) * 2 - 1)
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fsd.inputs import check_tensor
from fsd.trilinear import corners, hashed, in_order, slopes, weighted_rows

Points = Float[Tensor, "n 3"]
Density = Float[Tensor, " n"]
Color = Float[Tensor, "n 3"]


@runtime_checkable
class Field(Protocol):
    """What the renderer asks of a field; any renderer's own will do."""

    radius: float

    def __call__(self, points: Points) -> tuple[Density, Color]:
        """Density and colour at each point."""
        ...

    def density(self, points: Points) -> Density:
        """Density alone, which may be cheaper."""
        ...


def blob(points: Points, scale: float = 10.0, width: float = 0.5) -> Density:
    """What Magic3D adds to the raw density: `scale` (1 - |x| / `width`), so that training starts from a soft ball.

    Lin et al. 2023, arXiv 2211.10440; scale and width are threestudio's.
    """
    # The length has no derivative in the origin; the smallest offset gives it one, zero.
    return scale * (1 - (points.square().sum(1) + 1e-12).sqrt() / width)


class DenseGrid(nn.Module):
    """Density and colour on a lattice of `resolution`^3 points, trilinear between them.

    The colour is a sigmoid of its interpolated value.  `blob_scale` 0 starts from the same density everywhere,
    softplus(`offset`).  Raises ValueError for a lattice of less than two points or a radius that is not positive.
    """

    def __init__(
        self,
        resolution: int = 32,
        radius: float = 1.0,
        blob_scale: float = 10.0,
        blob_width: float = 0.5,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        _refuse_cube(resolution, radius)
        self.radius, self.resolution = radius, resolution
        self.blob_scale, self.blob_width, self.offset = blob_scale, blob_width, offset
        # One array, so that a point's density and colour lie side by side: raw density, then raw colour.
        self.values = nn.Parameter(torch.zeros(1, 4, resolution, resolution, resolution))

    def forward(self, points: Points) -> tuple[Density, Color]:
        _check_points(points)
        raw = self._raw(points)
        return self._activated(raw[:, 0], points), raw[:, 1:].sigmoid()

    def density(self, points: Points) -> Density:
        """At each point; the color is left out."""
        _check_points(points)
        return self._activated(self._raw(points, channels=1)[:, 0], points)

    def density_gradient(self, points: Points) -> Float[Tensor, "n 3"]:
        """The derivative of the density with respect to position, in closed form; differentiable in the values."""
        unit = (points / self.radius + 1) / 2
        rows = in_order(corners(unit, self.resolution)[0], self.resolution)
        table = self.values[0, :1].flatten(1).t()
        across = [weighted_rows(table, rows, weights)[:, 0] for weights in slopes(unit, self.resolution)]
        length = (points.square().sum(1, keepdim=True) + 1e-12).sqrt()
        raw = torch.stack(across, 1) / (2 * self.radius) - self.blob_scale / self.blob_width * points / length
        # Softplus has a sigmoid for a derivative, which is 1 - exp(-softplus).
        return raw * -torch.expm1(-self.density(points))[:, None]

    @torch.no_grad()
    def resized(self, resolution: int) -> "DenseGrid":
        """The same field on another lattice, as coarse-to-fine training wants it."""
        grid = DenseGrid(resolution, self.radius, self.blob_scale, self.blob_width, self.offset)
        size = (resolution,) * 3
        grid.values.copy_(F.interpolate(self.values, size, mode="trilinear", align_corners=True))
        return grid.to(self.values)

    def _raw(self, points: Points, channels: int = 4) -> Float[Tensor, "n channels"]:
        values = self.values[:, :channels]
        if points.requires_grad:
            lower, weights = corners((points / self.radius + 1) / 2, self.resolution)
            return weighted_rows(values[0].flatten(1).t(), in_order(lower, self.resolution), weights)
        # grid_sample takes the last axis first, and half the time.
        where = (points / self.radius).flip(1).view(1, 1, 1, -1, 3)
        sampled = F.grid_sample(values, where, padding_mode="border", align_corners=True)
        return sampled.view(channels, -1).t()

    def _activated(self, raw: Density, points: Points) -> Density:
        return F.softplus(raw + self.offset + blob(points, self.blob_scale, self.blob_width))


class HashGrid(nn.Module):
    """The multi-resolution hash grid of Instant-NGP (Müller et al. 2022, arXiv 2201.05989), in plain torch.

    `levels` lattices from `base` to `finest` points a side in geometric steps, each with `features` numbers a point
    in a table of at most 2^`log2_size` rows; a small network of one hidden layer of `width` reads their values
    at a point.  Lattices that fit into the table are stored as they are, finer ones through the hash (equation 4).

    Raises ValueError for sizes below one, finest below base, or a radius that is not positive.
    """

    def __init__(
        self,
        radius: float = 1.0,
        levels: int = 16,
        features: int = 2,
        log2_size: int = 19,
        base: int = 16,
        finest: int = 2048,
        width: int = 64,
        blob_scale: float = 10.0,
        blob_width: float = 0.5,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        _refuse_cube(base, radius)
        if min(levels, features, log2_size, width) < 1 or finest < base:
            raise ValueError(
                f"levels={levels}, features={features}, log2_size={log2_size}, width={width}, base={base}, "
                f"finest={finest}; all must be at least 1 and finest at least base"
            )
        self.radius = radius
        self.blob_scale, self.blob_width, self.offset = blob_scale, blob_width, offset
        growth = (finest / base) ** (1 / max(levels - 1, 1))
        # A hair above, so that the last level is not lost to rounding: 2047.99 must be 2048.
        self.resolutions = [int(base * growth**level + 1e-6) for level in range(levels)]
        self.tables = nn.ParameterList(
            nn.Parameter(torch.empty(min(2**log2_size, size**3), features).uniform_(-1e-4, 1e-4))
            for size in self.resolutions
        )
        self.network = nn.Sequential(
            nn.Linear(levels * features, width), nn.ReLU(inplace=True), nn.Linear(width, 4)
        )

    def forward(self, points: Points) -> tuple[Density, Color]:
        _check_points(points)
        raw = self.network(self.encode(points))
        bias = self.offset + blob(points, self.blob_scale, self.blob_width)
        return F.softplus(raw[:, 0] + bias), raw[:, 1:].sigmoid()

    def density(self, points: Points) -> Density:
        """At each point."""
        return self(points)[0]

    def encode(self, points: Points) -> Float[Tensor, "n features"]:
        """The interpolated features of all levels, coarse to fine."""
        unit = (points / self.radius + 1) / 2
        found = []
        for table, size in zip(self.tables, self.resolutions, strict=True):
            lower, weights = corners(unit, size)
            rows = in_order(lower, size) if size**3 <= len(table) else hashed(lower, len(table))
            found.append(weighted_rows(table, rows, weights))
        return torch.cat(found, 1)


def _check_points(points: Tensor) -> None:
    check_tensor("points", points, "n 3", "one point per row; flatten a lattice with .reshape(-1, 3)")


def _refuse_cube(resolution: int, radius: float) -> None:
    if resolution < 2:
        raise ValueError(f"a lattice of {resolution} points a side has no inside; give at least 2")
    if not radius > 0:
        raise ValueError(f"radius={radius}; give half the side of the cube that holds the object, above 0")
