"""Signed distance functions, and the kinds of objects made of them.

A solid maps points (..., 3) to the distance to its surface, negative inside (a lower bound of it after unions and
cuts, which sphere tracing needs no better).  z is up, objects face +y and lie within 0.85 of the origin.

    >>> distance = KINDS["mug"](torch.rand(100, 3) - 0.5)
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Solid = Callable[[Tensor], Tensor]


def ball(points: Float[Tensor, "*n 3"], radius: float) -> Float[Tensor, " *n"]:
    """Around the origin."""
    return points.norm(dim=-1) - radius


def box(
    points: Float[Tensor, "*n 3"], half: Sequence[float], at: Sequence[float] = (0.0, 0.0, 0.0)
) -> Float[Tensor, " *n"]:
    """Half sides `half`, centred at `at`."""
    q = (points - points.new_tensor(at)).abs() - points.new_tensor(half)
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


def ring(points: Float[Tensor, "*n 3"], radius: float, thickness: float) -> Float[Tensor, " *n"]:
    """A torus around the z axis."""
    x, y, z = points.unbind(-1)
    return torch.hypot(torch.hypot(x, y) - radius, z) - thickness


def polygon(
    u: Float[Tensor, " *n"], v: Float[Tensor, " *n"], corners: Sequence[tuple[float, float]]
) -> Tensor:
    """Exact signed distance in the plane; a point is inside if a ray to the right crosses an odd number of edges."""
    squared = torch.full_like(u, torch.inf)
    inside = torch.zeros_like(u, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        dx, dy = bx - ax, by - ay
        along = (((u - ax) * dx + (v - ay) * dy) / (dx**2 + dy**2)).clamp(0, 1)
        squared = torch.minimum(squared, (u - ax - along * dx) ** 2 + (v - ay - along * dy) ** 2)
        if dy != 0:
            crosses = ((v >= min(ay, by)) & (v < max(ay, by))) & (u < ax + (v - ay) * (dx / dy))
            inside ^= crosses
    return torch.where(inside, -squared.sqrt(), squared.sqrt())


def turned(points: Float[Tensor, "*n 3"], outline: Sequence[tuple[float, float]]) -> Float[Tensor, " *n"]:
    """A solid of revolution around z; `outline` is its half section, corners (radius, height)."""
    x, y, z = points.unbind(-1)
    return polygon(torch.hypot(x, y), z, outline)


def prism(
    points: Float[Tensor, "*n 3"], outline: Sequence[tuple[float, float]], half: float
) -> Float[Tensor, " *n"]:
    """`outline` in the x-z plane, drawn out by `half` to either side along y."""
    x, y, z = points.unbind(-1)
    flat, deep = polygon(x, z, outline), y.abs() - half
    outside = torch.hypot(flat.clamp(min=0), deep.clamp(min=0))
    return outside + torch.maximum(flat, deep).clamp(max=0)


def union(*parts: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
    """All of them."""
    return torch.stack(parts).amin(0)


def _cylinder(radius: float, low: float, high: float) -> list[tuple[float, float]]:
    # Mirrored at the axis, so that the axis itself is no boundary.
    return [(-radius, low), (radius, low), (radius, high), (-radius, high)]


def _mug(p: Tensor) -> Tensor:
    wall = [(-0.4, -0.45), (0.4, -0.45), (0.4, 0.45), (0.3, 0.45), (0.3, -0.35), (-0.3, -0.35), (-0.3, 0.45)]
    handle = ring(torch.stack([p[..., 0] - 0.42, p[..., 2], p[..., 1]], -1), 0.22, 0.07)
    return union(turned(p, [*wall, (-0.4, 0.45)]), handle)


def _table(p: Tensor) -> Tensor:
    legs = [box(p, (0.06, 0.06, 0.33), (x, y, -0.13)) for x in (-0.48, 0.48) for y in (-0.32, 0.32)]
    return union(box(p, (0.6, 0.45, 0.07), (0.0, 0.0, 0.25)), *legs)


def _house(p: Tensor) -> Tensor:
    roof = prism(p, [(-0.56, 0.05), (0.56, 0.05), (0.0, 0.6)], 0.46)
    return union(
        box(p, (0.46, 0.4, 0.3), (0.0, 0.0, -0.25)), roof, box(p, (0.08, 0.08, 0.3), (0.3, -0.1, 0.35))
    )


KINDS: dict[str, Solid] = {
    "cube": lambda p: box(p, (0.42, 0.42, 0.42)),
    "ball": lambda p: ball(p, 0.55),
    "cylinder": lambda p: turned(p, _cylinder(0.38, -0.5, 0.5)),
    "cone": lambda p: turned(p, [(-0.52, -0.5), (0.52, -0.5), (0.0, 0.6)]),
    "donut": lambda p: ring(p, 0.42, 0.19),
    "mug": _mug,
    "table": _table,
    "house": _house,
}
