"""Parts of objects: convex bodies and rings, as rows of numbers.

A part is a convex body, or a ring, in its own coordinates u = (x, y, z), placed in the world by p = axes u + at with
orthogonal axes.  There are three shapes, each with up to six numbers:

    quadric   x^2 + y^2 + c2 z^2 + c1 z + c0 <= 0 with low <= z <= high: balls, domes, cylinders, cones
    box       |x| <= ax + bx z and |y| <= ay + by z with low <= z <= high: boxes, wedges, pyramids, roofs
    ring      a torus around z of radius 1 and a given thickness

    >>> parts = Parts(); parts.ball((0, 0, 0), 0.5, colour); parts.tube((0, 0, -1), (0, 0, 0), 0.2, 0.1, colour)
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Whole numbers are written as such: `(0, 0, tall)`.
Number = float | int
Vector = Sequence[Number]
SHAPES = ("quadric", "box", "ring")
# A part is a row: axes (3 columns of 3), at (3), numbers (6), colour (3).
ROW = 21
# No height, less than no width, no thickness: missed by every ray whatever the shape.
NOTHING = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0, 0, 0, 0, 0, 0, -1.0, 0, 1.0, 0, 0, 0, 0)


class Parts:
    """The parts of one object, added one by one; `rows` holds them by shape."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Number, ...]]] = {shape: [] for shape in SHAPES}

    def ball(
        self, at: Vector, radii: Number | Vector, colour: Vector, low: Number = -1.0, high: Number = 1.0
    ) -> None:
        """An ellipsoid, or what lies between heights `low` and `high` of it, as parts of the upper radius."""
        a, b, c = (radii,) * 3 if isinstance(radii, (int, float)) else radii
        self._add("quadric", (a, 0, 0, 0, b, 0, 0, 0, c), at, (low, high, 1.0, 0.0, -1.0, 0.0), colour)

    def tube(self, start: Vector, end: Vector, first: Number, last: Number, colour: Vector) -> None:
        """A cylinder or cone around the line from `start` to `end`, of radius `first` there and `last` here."""
        change = last - first
        numbers = (0.0, 1.0, -(change**2), -2 * first * change, -(first**2), 0.0)
        self._add("quadric", _axes_along(start, end), start, numbers, colour)

    def box(
        self, at: Vector, half: Vector, colour: Vector, top: Vector = (1.0, 1.0), tilt: Number = 0
    ) -> None:
        """Half sides `half`; the upper face is `top` times the lower one in x and y; `tilt` degrees around x."""
        a, b, c = half
        cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        axes = (a, 0, 0, 0, b * cos, b * sin, 0, -c * sin, c * cos)
        slopes = [number for s in top for number in ((1 + s) / 2, (s - 1) / 2)]
        self._add("box", axes, at, (-1.0, 1.0, *slopes), colour)

    def fan(
        self,
        start: Vector,
        end: Vector,
        first: Vector,
        last: Vector,
        colour: Vector,
    ) -> None:
        """A box along the line from `start` to `end`; `first` and `last` are its half sides, across and upright."""
        x, y, z = (a / 2 for a in _axes_along(start, end)[6:])
        middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        axes = (*_axes_along(start, end)[:6], x, y, z)
        slopes = [n for a, b in zip(first, last, strict=True) for n in ((a + b) / 2, (b - a) / 2)]
        self._add("box", axes, middle, (-1.0, 1.0, *slopes), colour)

    def ring(
        self, at: Vector, radius: Number, thickness: Number, colour: Vector, axis: Vector = (0, 0, 1)
    ) -> None:
        """A torus; `thickness` is the radius of what is bent round."""
        end = [p + radius * n for p, n in zip(at, axis, strict=True)]
        axes = [radius * x for x in _axes_along(at, end)[:6]] + [radius * n for n in axis]
        self._add("ring", axes, at, (thickness / radius, 0, 0, 0, 0, 0), colour)

    def _add(self, shape: str, axes: Vector, at: Vector, numbers: Vector, colour: Vector) -> None:
        self.rows[shape].append((*axes, *at, *numbers, *colour))


class PartTensors:
    """The parts of n objects: `rows` (n, k, ROW), of each shape as many as the richest object has."""

    def __init__(self, objects: Sequence[Parts]) -> None:
        self.counts = [max(len(one.rows[shape]) for one in objects) for shape in SHAPES]
        rows = []
        for one in objects:
            for shape, count in zip(SHAPES, self.counts, strict=True):
                rows += one.rows[shape] + [NOTHING] * (count - len(one.rows[shape]))
        self.rows = torch.tensor(rows, dtype=torch.float32).view(len(objects), -1, ROW)

    def fit(self, radius: Float[Tensor, " n"]) -> None:
        """Moves each object so that its bounding box is centred, and scales it to lie within `radius`."""
        points, real = self._surface()
        far = torch.where(real, points, torch.inf), torch.where(real, points, -torch.inf)
        middle = (far[0].amin(1) + far[1].amax(1)) / 2
        reach = torch.where(real[..., 0], (points - middle[:, None]).norm(dim=-1), 0.0).amax(1)
        scale = (radius / reach)[:, None, None]
        self.rows[..., 9:12] = (self.rows[..., 9:12] - middle[:, None]) * scale
        self.rows[..., :9] *= scale

    def _surface(self) -> tuple[Float[Tensor, "n s 3"], Tensor]:
        """Points of the surface, and whether they belong to a part that is there."""
        angle = torch.arange(12) * (2 * math.pi / 12)
        circle = torch.stack([angle.cos(), angle.sin(), torch.zeros(12)], 1)
        upward = torch.tensor([0.0, 0.0, 1.0])
        quadric, box, ring = self.rows[..., 12:18].split(self.counts, 1)
        z = quadric[..., :1] + (quadric[..., 1:2] - quadric[..., :1]) * torch.linspace(0, 1, 5)
        wide = -(quadric[..., 2:3] * z**2 + quadric[..., 3:4] * z + quadric[..., 4:5])
        wide = wide.clamp(min=0).sqrt()[..., None, None]
        rounds = (wide * circle + z[..., None, None] * upward).flatten(2, 3)
        corner = torch.tensor([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).float()
        half = box[..., None, [2, 4]] + box[..., None, [3, 5]] * corner[:, 2:]
        corners = torch.cat([corner[:, :2] * half, corner[:, 2:].expand(*half.shape[:-1], 1)], -1)
        thick = ring[..., :1, None]
        loops = torch.cat([circle * (1 + thick), circle + thick * upward, circle - thick * upward], -2)
        world, real = [], []
        for rows, local in zip(self.rows.split(self.counts, 1), (rounds, corners, loops), strict=True):
            axes = rows[..., :9].unflatten(-1, (3, 3))
            world.append(
                ((local[..., None] * axes[..., None, :, :]).sum(-2) + rows[..., None, 9:12]).flatten(1, 2)
            )
            there = (rows[..., 12] < rows[..., 13]) if local is not loops else rows[..., 12] > 0
            real.append(there[..., None].expand(local.shape[:-1]).flatten(1))
        return torch.cat(world, 1), torch.cat(real, 1)[..., None]


def _axes_along(start: Vector, end: Vector) -> tuple[Number, ...]:
    """Two unit axes across, and the line from start to end itself."""
    x, y, z = (b - a for a, b in zip(start, end, strict=True))
    length = math.sqrt(x * x + y * y + z * z)
    # Crossed with the world axis that is farthest from it.
    if abs(z) < 0.9 * length:
        flat = math.hypot(x, y)
        side = (-y / flat, x / flat, 0.0)
    else:
        flat = math.hypot(x, z)
        side = (z / flat, 0.0, -x / flat)
    n = (x / length, y / length, z / length)
    other = (
        n[1] * side[2] - n[2] * side[1],
        n[2] * side[0] - n[0] * side[2],
        n[0] * side[1] - n[1] * side[0],
    )
    return (*side, *other, x, y, z)
